"""Hooks of a router that somebody else took off: nothing routes or ablates at their sites any more."""

from __future__ import annotations

from collections.abc import Sequence
from operator import contains, is_
from typing import Any

from torch.utils.hooks import RemovableHandle

from ... import _torch_private as private
from ...errors import UsageError
from .._attachment import Attachment


class TakenOff:
    """Notices, as a block begins, that hooks of the router are gone.

    Args:
        attachment: What the router knows of itself.
        handles: The handles of all its hooks.
    """

    def __init__(self, attachment: Attachment, handles: Sequence[RemovableHandle]) -> None:
        self._attachment = attachment
        self._handles = handles
        self._noted = False

    def _note_places(self) -> None:
        """Note in which table of which module each hook stands; not as this is made, when a copy is not whole yet."""
        modules = [self._attachment.model, *(site.module for site in self._attachment.sites)]
        known = private.places_of_hooks(modules)
        places = [known.get(id(handle.hooks_dict_ref()), ({}, "gone")) for handle in self._handles]
        # In columns, which are compared without a line of Python for each: this is done in each block.
        self._holders, self._keys = [held for held, _ in places], [key for _, key in places]
        self._tables: list[Any] = list(map(dict.get, self._holders, self._keys))
        self._ids = [handle.id for handle in self._handles]
        self._noted = True

    def check(self) -> None:
        """Refuse a model from which they were taken.

        Raises:
            UsageError: They were.
        """
        if not self._noted:
            self._note_places()
        tables = map(dict.get, self._holders, self._keys)
        there = all(map(is_, tables, self._tables)) and None not in self._tables
        if not (there and all(map(contains, self._tables, self._ids))):
            raise UsageError(
                "hooks of this router are no longer on the model: something has taken off all hooks of a module, or "
                "put others in the place of its table of hooks, so that nothing would be routed there. Let each tool "
                "remove its own hooks by their handles; remove this router, and make a new one."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return TakenOff, (self._attachment, self._handles)  # a copy's modules have tables of their own
