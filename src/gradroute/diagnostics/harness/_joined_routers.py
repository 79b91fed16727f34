"""Several routers on one model, as one: what a diagnosis runs and looks at, while each masks by labels of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import LabelError, UsageError
from ...router._attachment import Attachment, Group, Labels, attachment_of
from ...router._router import Router
from ...spec._masks import Mask


def joined(router: Router | Sequence[Router]) -> Router:
    """The router itself; of several, one that stands for all of them.

    Raises:
        UsageError: There are none, one is given twice, was removed, or is on another model.
    """
    return router if isinstance(router, Router) else JoinedRouters(router)


def joined_labels(router: Router, labels: Labels | Sequence[Labels]) -> Labels:
    """The labels that were given for one router or several, as the joined one takes them.

    Raises:
        LabelError: There are labels for another number of routers, or one tensor for routers of different labels.
    """
    if not isinstance(router, JoinedRouters):
        if isinstance(labels, Sequence):
            raise LabelError(f"labels must be a tensor or a mapping for one router; got a {type(labels).__name__}.")
        return labels
    return router.join(labels)


class JoinedRouters(Router):
    """Stands for several routers on one model in a diagnosis. It adds nothing to the model, and masks nothing itself.

    Args:
        routers: The routers.
    """

    def __init__(self, routers: Sequence[Router]) -> None:
        if not isinstance(routers, Sequence) or not routers or not all(isinstance(each, Router) for each in routers):
            given = (
                [type(each).__name__ for each in routers] if isinstance(routers, Sequence) else type(routers).__name__
            )
            raise UsageError(f"expected a Router, or a list of one or more of them; got {given}.")
        if len({id(each) for each in routers}) < len(routers):
            raise UsageError("one router is given twice: give each once.")
        if any(each.model is not routers[0].model for each in routers):
            raise UsageError(
                "the routers are on different models: several can be looked at together if they were made with the "
                "same model, so that one set of names serves all."
            )
        self._routers = tuple(routers)
        self._attachment = _JoinedAttachment([attachment_of(each) for each in routers])

    def __call__(self, labels: Labels) -> Any:
        """A block of each of the routers."""
        return self._blocks(labels)

    @contextlib.contextmanager
    def _blocks(self, labels: Labels) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for number, router in enumerate(self._routers):
                stack.enter_context(router(_of_one(labels, number)))
            yield

    def join(self, labels: Labels | Sequence[Labels]) -> Labels:
        """One tensor for all of the routers as it is; labels of each router as one mapping, by number and pattern."""
        if isinstance(labels, Tensor):
            by_labels = {group.spec.labels for group in self._attachment.groups}
            if len(by_labels) > 1:
                raise LabelError(
                    "the routers name different labels, so one label tensor cannot serve all: give a list, with the "
                    "labels of each router in the order of the routers."
                )
            return labels
        if isinstance(labels, Mapping) or len(labels) != len(self._routers):
            given = "a mapping" if isinstance(labels, Mapping) else f"{len(labels)} in a {type(labels).__name__}"
            raise LabelError(
                f"labels must be one tensor for all {len(self._routers)} routers, or a list with those of each; got "
                f"{given}."
            )
        found: dict[str, Tensor] = {}
        for number, (router, given_labels) in enumerate(zip(self._routers, labels, strict=True)):
            attachment_of(router).masks(given_labels)  # says what does not fit
            for pattern in dict.fromkeys(group.pattern for group in attachment_of(router).groups):
                one = given_labels[pattern] if isinstance(given_labels, Mapping) else given_labels
                found[_key(number, pattern)] = one
        return found


class _JoinedAttachment(Attachment):
    """What several routers know of themselves, in the order of the routers."""

    def __init__(self, attachments: Sequence[Attachment]) -> None:
        sites, groups = [], list[Group]()
        for number, attachment in enumerate(attachments):
            attachment.check_usable()
            sites += [dataclasses.replace(site, group=site.group + len(groups)) for site in attachment.sites]
            groups += [Group(_key(number, group.pattern), group.spec) for group in attachment.groups]
        super().__init__(attachments[0].model, attachments[0].state, sites, groups)
        self._attachments = tuple(attachments)

    def masks(self, labels: Labels) -> tuple[Mask, ...]:
        found = (one.masks(_of_one(labels, number)) for number, one in enumerate(self._attachments))
        return tuple(mask for masks in found for mask in masks)

    def check_usable(self) -> None:
        for attachment in self._attachments:
            attachment.check_usable()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for attachment in self._attachments:
                stack.enter_context(attachment.quiet())
            yield

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for attachment in self._attachments:
                stack.enter_context(attachment.suspended())
            yield


def _key(number: int, pattern: str) -> str:
    return f"{number}: {pattern}"


def _of_one(labels: Labels, number: int) -> Labels:
    if not isinstance(labels, Mapping):
        return labels
    prefix = _key(number, "")
    return {key.removeprefix(prefix): tensor for key, tensor in labels.items() if key.startswith(prefix)}
