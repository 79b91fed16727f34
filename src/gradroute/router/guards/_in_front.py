"""Forward hooks of others that came to stand before those of the sites: they see what is not routed yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import _torch_private as private
from .._attachment import AttachedSite, Attachment


class InFront:
    """Notices forward hooks of others that came to stand before those of the sites: they see what is not routed yet.

    Args:
        attachment: What the router knows of itself.
        before: The hooks that see a site's tensor before the site's own.
    """

    def __init__(self, attachment: Attachment, before: Callable[[AttachedSite], list[Any]]) -> None:
        self._attachment = attachment
        self._before = before
        self._sites = [site for site in attachment.sites if site.site.on == "output" and not site.routes_parameters]
        self._look()

    def _look(self) -> None:
        self._tables = [private.forward_hook_table(site.module) for site in self._sites]
        self._first = self._first_now()

    def _first_now(self) -> list[int | None]:
        """The number of the first hook of each site's module."""
        return [next(iter(table), None) for table in self._tables]

    def check(self) -> None:
        """Warn once of such hooks, as a block begins."""
        of_all = private.forward_hooks_of_all_modules()
        if self._attachment.state.muted or (self._first_now() == self._first and not of_all):
            return
        self._look()
        for site in self._sites:
            theirs = [hook for hook in (*of_all.values(), *self._before(site)) if _is_foreign(hook)]
            if theirs:
                name = getattr(theirs[0], "__name__", type(theirs[0]).__name__)
                self._attachment.state.warn(
                    ("in front", site.name),
                    f"site {site.name!r}: the forward hook {name!r} sees what the module returns before it is routed: "
                    "it was registered for all modules, or with prepend=True after the router was made. A loss on what "
                    "it sees teaches every unit. Register it on the module, without prepend=True.",
                    stacklevel=4,
                )
                return

    def __reduce__(self) -> tuple[Any, ...]:
        return InFront, (self._attachment, self._before)  # a copy's modules have tables of their own


def _is_foreign(hook: Any) -> bool:
    """Whether a hook is of neither torch nor gradroute, which only look."""
    owners = (type(getattr(hook, "__self__", hook)).__module__, getattr(hook, "__module__", None) or "")
    return not any(owner.split(".")[0] in ("torch", "gradroute") for owner in owners)
