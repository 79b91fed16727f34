"""From labels to the weights that multiply a gradient: tensors only, and the one place that reads label tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from .. import _torch_private as private
from ..errors import LabelError, LabelWarning, did_you_mean, preview

UNLABELED: Final = -1
"""The label of an example whose label is unknown: its gradient follows the spec's `unlabeled` rule."""

Kind: TypeAlias = Literal["rows", "union", "mixture"]

Kept: TypeAlias = "tuple[Tensor, Tensor, int, Mask | None]"
"""What is kept of a small tensor's mask.

Which units keep their gradient, bool, such that it broadcasts to the tensor; the labels as they were given, or a copy
where nobody holds them, and how often they had been written to; and the mask of the block, if there is one.
"""

INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskTable:
    """The masks of all labels of a spec, stored once however many labels share a mask.

    Attributes:
        labels: The labels, in the order of multi-hot and mixture columns.
        rows: The distinct masks, float32 [n_rows, width]: 50,000 token labels with two routes have three.
        row_of_label: The row of each label, and last that of unlabeled data: int64 [n_labels + 1].
        row_of_key: What a label tensor holds, to its row: int64 [largest key + 2]. The last entry is that of
            unlabeled data, so that indexing with -1 finds it. Integers that are no key find row `n_rows`, which
            does not exist, so that a look-up that no check preceded fails too.
        off: Of each row, the units that are off, bool [n_rows, width]; None where none are.
    """

    def __init__(
        self,
        rows: Tensor,
        row_of_label: Tensor,
        labels: tuple[Hashable, ...],
        *,
        integer_keys: bool,
        off: Tensor | None = None,
    ) -> None:
        self.labels = labels
        self.width = rows.shape[1]
        self.rows = rows
        self.row_of_label = row_of_label
        self._integer_keys = integer_keys
        self.off = off
        keys = torch.tensor(labels if integer_keys else range(len(labels)), device="cpu")
        self.row_of_key = torch.full((int(keys.max()) + 2,), len(rows), device="cpu")
        self.row_of_key[keys] = row_of_label[:-1]
        self.row_of_key[-1] = row_of_label[-1]
        self.keeps = rows != 0
        self.is_hard = bool(((rows == 0) | (rows == 1)).all())
        self.has_zero = bool((rows == 0).any())
        # Whether a label tensor without -1 already holds the row numbers, as with one unit per label.
        self._keys_are_rows = self.row_of_key[:-1].tolist() == list(range(len(self.row_of_key) - 1))
        self._has_gaps = bool((self.row_of_key == len(rows)).any())
        # Without the row of unlabeled data, which no label may find by its number.
        self._keeps_of_keys = self.keeps[: len(self.row_of_key) - 1]
        self.is_plain = self.is_hard and off is None
        self._met_unlabeled = False
        self._moved: dict[object, Tensor] = {}
        self._parts: dict[tuple[int, int], MaskTable] = {}
        self._warned_of_sets = False

    def dense(self) -> Tensor:
        """The mask of each label and, last, of unlabeled data: float32 [n_labels + 1, width]."""
        return self.rows.index_select(0, self.row_of_label)

    def resolve(self, labels: Tensor) -> Mask:
        """Check a label tensor and say which mask each of its entries means.

        Raises:
            LabelError: The labels are no tensor, or their dtype, last dimension or values do not fit the spec.
        """
        if not isinstance(labels, Tensor):
            raise LabelError(
                f"labels must be a torch.Tensor; got {type(labels).__name__}: RoutingSpec.encode makes one from names."
            )
        if labels.dtype is torch.int64 and not private.transforms_active() and _can_read(labels):
            lowest = self._check_keys(labels)
            if lowest >= 0 and self._keys_are_rows:  # the common case, in few steps
                return Mask(self, labels, "rows", given=labels)
            looked_up = self.row_of_key[labels]  # of -1 the last entry
            return Mask(self, looked_up, "rows", given=looked_up, copy=False)
        if private.is_distributed(labels):
            raise LabelError(
                "labels are a DTensor: give each process the labels of the whole tensor as a plain one, "
                "labels.full_tensor(). Of these it takes the part that it needs."
            )
        given, labels = labels, labels.detach()
        if labels.dtype.is_floating_point or labels.dtype == torch.bool:
            n = len(self.labels)
            if labels.ndim == 0 or labels.shape[-1] != n:
                name = "bool (multi-hot)" if labels.dtype == torch.bool else "floating (mixture)"
                raise LabelError(
                    f"{name} labels need one column per label: expected shape [..., {n}], got {tuple(labels.shape)}. "
                    "Labels that are ids must have an integer dtype: labels.long()."
                )
            if labels.dtype == torch.bool:
                return Mask(self, labels, "union", given=given)
            if _can_read(labels):
                self._check_mixture(private.unwrapped(labels))
            return Mask(self, labels, "mixture", given=given)
        if labels.dtype.is_complex:
            raise LabelError(f"labels must have an integer, bool or floating dtype; got {labels.dtype}.")
        if labels.dtype is torch.uint64:
            labels = self._signed(labels)
        labels = labels.long()
        if _can_read(labels):
            lowest = self._check_keys(private.unwrapped(labels))
            if lowest >= 0 and self._keys_are_rows:
                return Mask(self, labels, "rows", given=given)
        lookup = self._on(labels.device, "row_of_key", self.row_of_key)
        # Where nothing could be checked the look-up itself must fail: no unknown label may find the unlabeled row.
        last = len(lookup) - 1
        entry = torch.where((labels >= UNLABELED) & (labels < last), labels, last + 1)
        entry = torch.where(labels == UNLABELED, last, entry)
        looked_up = lookup.index_select(0, entry.reshape(-1)).view(labels.shape)
        return Mask(self, looked_up, "rows", given=looked_up, copy=False)

    def look_up(self, labels: Tensor, shape: torch.Size) -> Kept | None:
        """The mask of a small tensor, its units last; None where one look-up does not say it.

        It is for int64 labels of as many dimensions as x has without its units, both on the CPU, and for weights of 0
        and 1 without silent units.

        Args:
            labels: Labels as they were given.
            shape: The shape of the tensor.

        Raises:
            LabelError: A label is unknown.
        """
        if type(labels) is not Tensor or labels.dtype is not torch.int64 or not labels.is_cpu or not self.is_plain:
            return None
        if labels.is_inference():  # nobody counts what is written to it
            return None
        several = labels.ndim != 1
        keys = labels.reshape(-1) if several else labels
        given = labels
        keep: Tensor | None = None
        if self._keys_are_rows and not self._met_unlabeled:
            try:  # it refuses what is no row: that checks the labels, for nothing
                keep = self._keeps_of_keys.index_select(0, keys)
            except IndexError:
                self._met_unlabeled = True  # or an unknown label
        if keep is None:
            rows, lowest = keys, self._check_keys(keys)
            if lowest < 0 or not self._keys_are_rows:
                rows = given = self.row_of_key[keys]  # as in `resolve`: what is written to the labels is no matter then
            keep = self.keeps.index_select(0, rows)
        if several:
            keep = keep.view(*labels.shape, self.width)
        return (keep, given, private.writes(given), None) if keep.shape == shape else None

    def _check_mixture(self, labels: Tensor) -> None:
        """Raise for weights that are not finite; warn, once for a spec, of sets of labels that were given as floats."""
        if not bool(torch.isfinite(labels).all()):
            raise LabelError("mixture labels must be finite: NaN or inf found.")
        if self._warned_of_sets:
            return
        ones = labels == 1
        if bool((ones.sum(-1) > 1).any()) and bool((ones | (labels == 0)).all()):
            self._warned_of_sets = True
            warnings.warn(
                f"floating labels are mixtures, the weighted sum of the routes, and these hold only zeros and ones, "
                f"several in a row: what two set labels both teach is taught twice. If they are sets of labels, such "
                f"as the targets of a binary cross entropy, give labels.bool(): the union of the routes (labels "
                f"{preview(self.labels, 3)}).",
                LabelWarning,
                stacklevel=4,
            )

    def _signed(self, labels: Tensor) -> Tensor:
        """uint64 labels as int64, without 2**64 - 1 becoming -1, which means unlabeled."""
        signed = labels.long()
        if _can_read(labels):
            wrapped = private.unwrapped(signed)
            bad = [value + 2**64 for value in torch.unique(wrapped[wrapped < 0]).tolist()]
            if bad:
                raise self._unknown(bad)
        return torch.where(signed < 0, torch.iinfo(torch.int64).max, signed)

    def _unknown(self, values: list[int]) -> LabelError:
        return LabelError(
            f"unknown label {preview(values, 5)} in the batch. Label tensors of this spec hold {self._keys()}, "
            f"and {UNLABELED} for unlabeled data."
        )

    def _check_keys(self, labels: Tensor) -> int:
        """Raise for integers that are neither a key nor -1; return the smallest."""
        if labels.numel() == 0:
            return 0
        smallest, largest = torch.aminmax(labels)
        lowest, highest = smallest.item(), largest.item()
        known = lowest >= UNLABELED and highest < len(self.row_of_key) - 1
        if known and self._has_gaps:
            known = bool((self.row_of_key[labels.reshape(-1)] < len(self.rows)).all())
        if not known:
            values = torch.unique(labels)
            inside = (values >= UNLABELED) & (values < len(self.row_of_key) - 1)
            inside &= self.row_of_key[values.where(inside, UNLABELED)] < len(self.rows)
            raise self._unknown(values[~inside].tolist())
        return int(lowest)

    def _keys(self) -> str:
        if all(isinstance(label, int) for label in self.labels):
            return f"its integer keys {preview(self.labels)}"
        return f"the ids 0 to {len(self.labels) - 1} of {preview(self.labels)}"

    def _on(self, device: torch.device, name: str, tensor: Tensor) -> Tensor:
        """A table on another device, moved once. Tables live on the CPU, since a spec knows no model."""
        if device == tensor.device:
            return tensor
        return self._kept((name, device), lambda: tensor.to(device))

    def _kept(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """What was made before under this key, or else what is made now, kept for the next time."""
        if key in self._moved:
            return self._moved[key]
        made = make()
        # Writing while Dynamo traces would change what the graph is guarded on; a tensor of a torch.func transform or
        # of a fake mode is good for nothing outside of it.
        real = not torch.compiler.is_compiling() and type(made) is Tensor and private.unwrapped(made) is made
        if real:
            self._moved[key] = made
        return made

    def warm(self, device: torch.device) -> None:
        """Move the tables to a device ahead of use, so that compiled code finds them there."""
        self._on(device, "rows", self.rows)
        self._on(device, "row_of_key", self.row_of_key)
        if self.off is not None:
            self._on(device, "off", self.off)

    def part(self, start: int, size: int) -> MaskTable:
        """The table of some consecutive units, which share its labels; of a single unit, which fits any, itself."""
        if self.width in (size, 1):
            return self
        if (start, size) not in self._parts:
            rows = self.rows.narrow(1, start, size)
            off = None if self.off is None else self.off.narrow(1, start, size)
            part = MaskTable(rows, self.row_of_label, self.labels, integer_keys=self._integer_keys, off=off)
            self._parts[start, size] = part
        return self._parts[start, size]

    def weights(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The distinct masks in a dtype (bool: whether the weight is not 0), on a device: [n_rows, width]."""
        rows = self._on(device, "rows", self.rows)
        return rows.to(dtype) if torch.compiler.is_compiling() else self._kept((dtype, device), lambda: rows.to(dtype))

    def bits(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The distinct masks as bit patterns under a floating dtype: all bits set where the weight is not 0.

        ``bits & gradient`` keeps a gradient bit for bit, or makes it exactly 0, even where it is inf or NaN, in one
        pass over memory. A multiplication would give 0 * inf = NaN, and `torch.where` takes three times as long.
        """

        def make() -> Tensor:
            return self.weights(torch.bool, device).to(INTEGER_OF_SIZE[dtype.itemsize]).neg_().view(dtype)

        return self._kept(("bits", dtype, device), make)


class Applied:
    """In which backward pass a mask was applied last, by its number; for who outlives the mask."""

    __slots__ = ("backward",)

    def __init__(self) -> None:
        self.backward = -1


class Mask:
    """The mask of one batch, not yet a tensor: it keeps labels and tables, and what small tensors look up."""

    __slots__ = ("__weakref__", "_given", "_keeps", "_version", "applied", "kind", "labels", "table")

    def __init__(self, table: MaskTable, labels: Tensor, kind: Kind, *, given: Tensor, copy: bool = True) -> None:
        self._given: Callable[[], Tensor | None] = _nobody
        self._version = 0
        self.applied = Applied()
        if not torch.compiler.is_compiling():
            # Whoever holds them may write to them, and hears of it; held here, they would be kept twice.
            self._given = private.weak_reference(given)
            self._version = private.version(given)
        if copy:  # in compiled code, too: it may hand the mask to code that is not
            # Not everything that writes to a tensor is counted: `.data`, numpy's view of it, inference mode.
            labels = labels.clone()
        self.table = table
        self.labels = labels
        self.kind: Kind = kind
        self._keeps: dict[torch.Size, Tensor] = {}

    def known(self) -> Mask:
        """The mask itself: of one whose labels come late, see `DeferredMask`."""
        return self

    def if_known(self) -> Mask | None:
        """The same."""
        return self

    def known_in_forward(self, why: str) -> Mask:
        """The same."""
        return self

    # Computed, not stored: what a compiled model finds stored here it takes for a constant, and recompiles for another.
    @property
    def shape(self) -> torch.Size:
        """The shape of the labels without the column dimension of multi-hot and mixture labels."""
        return self.labels.shape if self.kind == "rows" else self.labels.shape[:-1]

    @property
    def width(self) -> int:
        """The number of units."""
        return self.table.width

    @property
    def is_hard(self) -> bool:
        """Whether every weight is 0 or 1, so that the mask only keeps or stops gradients."""
        return self.table.is_hard and self.kind != "mixture"

    @property
    def has_zero(self) -> bool:
        """Whether a weight may be 0."""
        return self.table.has_zero or self.kind == "mixture"

    def check_fits(self, shape: torch.Size, dim: int, *, broadcast: bool = False) -> int:
        """Check the mask against the shape of the routed tensor; return `dim` counted from the front.

        With ``broadcast=True`` a mask of one unit fits any number of them.

        Raises:
            LabelError: `dim` does not exist, the width differs, or the labels do not lead the shape.
        """
        ndim = len(shape)
        if dim in (-1, ndim - 1) and ndim and self.kind == "rows" and shape[-1] == self.table.width:
            # The common case, in few steps: at small sizes these checks are most of what routing costs.
            labels = self.labels.shape
            if labels == shape[: len(labels)] and len(labels) < ndim:
                return ndim - 1
        dim = check_units(shape, dim, self.width, broadcast=broadcast)
        others = shape[:dim] + shape[dim + 1 :]
        # A multi-hot or mixture row for a whole batch is refused: [n_labels] might as well be n_labels examples.
        shortest = 1 if others and self.kind != "rows" else 0
        if self.shape != others[: len(self.shape)] or len(self.shape) < shortest:
            columns = () if self.kind == "rows" else (len(self.table.labels),)
            expected = " or ".join(str(tuple(others[:n]) + columns) for n in range(1, len(others) + 1)) or str(columns)
            some = (
                " If the module is given a selection of the examples or tokens, as an expert is, call it in a block "
                "with the labels of the selected ones."
                if self.shape and others and self.shape.numel() > others[0]
                else ""
            )
            raise LabelError(
                f"labels of shape {(*self.shape, *columns)} do not fit a tensor of shape {tuple(shape)} routed along "
                f"dim {dim}: expected {expected}.{some}{_if_divided(others.numel(), self.shape.numel())}"
            )
        return dim

    def check_device(self, device: torch.device) -> None:
        """Refuse labels on the meta device, which hold no values, for a tensor that has some.

        Raises:
            LabelError: They are there, and the tensor is on another device.
        """
        if self.labels.is_meta and device.type != "meta":
            raise LabelError(
                f"labels are on the meta device, which holds no values, and the routed tensor is on {device}: make the "
                "labels on a real device."
            )

    def tensor(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weights, ``shape + (width,)``, in a dtype; with bool, whether the weight is not 0."""
        labels = self._labels_on(device)
        if self.kind == "rows":
            # Indexing by a tensor of any shape; index_select takes one dimension only, but is much faster.
            # While Dynamo traces, weights are looked up and then compared: of bools no compiler makes wide loads.
            tracing = dtype == torch.bool and torch.compiler.is_compiling()
            rows = self.table.weights(torch.float32 if tracing else dtype, device)
            flat = rows.index_select(0, labels.reshape(-1)).view(*self.shape, self.width)
            return flat != 0 if tracing else flat
        dense = self.table.weights(torch.float32, device)[
            self.table._on(device, "row_of_label", self.table.row_of_label)
        ]
        with torch.autocast(autocast_device(device), enabled=False):  # which would round the products to half precision
            weights = _union(labels, dense, self.table.is_hard) if self.kind == "union" else _mixture(labels, dense)
        return weights.to(dtype)

    @property
    def silences(self) -> bool:
        """Whether a unit may be off in the forward pass."""
        return self.table.off is not None

    def off(self, device: torch.device) -> Tensor:
        """Which units are off, bool, ``shape + (width,)``, of a table that silences some.

        A unit is on if a label that an example has, in a set or with a weight, has it on. Without any the example is
        unlabeled.
        """
        assert self.table.off is not None
        labels, rows = self._labels_on(device), self.table._on(device, "off", self.table.off)
        if self.kind == "rows":
            return rows.index_select(0, labels.reshape(-1)).view(*self.shape, self.width)
        of_label = rows[self.table._on(device, "row_of_label", self.table.row_of_label)]
        with torch.autocast(autocast_device(device), enabled=False):
            return _off_of_several(labels, of_label)

    def of_example(self, position: int, length: int, *, of: int) -> Mask:
        """The mask of one of so many examples, a batch of its own, of as many tokens as it has without padding.

        Raises:
            LabelError: The labels are for another number of examples.
        """
        if not self.shape:
            return self
        if self.shape[0] != of:
            raise LabelError(f"labels are for {self.shape[0]} examples, and a nested tensor holds {of}.")
        self._check_version()
        labels = self.labels[position : position + 1]
        if len(self.shape) > 1:
            labels = labels[:, :length]
        return Mask(self.table, labels, self.kind, given=labels, copy=False)

    def look_up(self, shape: torch.Size) -> Kept | None:
        """The mask of a small tensor of this shape, its units last; None where one look-up does not say it.

        Looked up once for all sites of a block whose tensors have the shape.

        Raises:
            LabelError: The labels do not fit the shape.
        """
        keep = self._keeps.get(shape)
        if keep is None:
            if self.kind != "rows" or not self.table.is_plain or shape[-1] != self.width:
                return None  # also where one unit is to fit any number of them
            self.check_fits(shape, -1)
            labels = self.labels
            flat = self.table.weights(torch.bool, labels.device).index_select(0, labels.reshape(-1))
            keep = align(flat.view(*labels.shape, self.width), len(shape), len(shape) - 1)
            if type(keep) is not Tensor:  # of a fake mode, and good for nothing outside of it
                return None
            self._keeps[shape] = keep
        given, version = self._given(), self._version
        if given is None:  # so that nobody can write to them
            given, version = self.labels, private.version(self.labels)
        if given.is_inference():  # nobody counts what is written to it
            return None
        return keep, given, version, self

    def part(self, dim: int, starts: Sequence[int], sizes: Sequence[int]) -> Mask:
        """The mask of a part of the routed tensor, which has its units along `dim`, counted from the front.

        Args:
            dim: The dimension of the units.
            starts: Where the part begins, along each dimension of the tensor.
            sizes: Its shape.
        """
        self._check_version()
        labels = self.labels
        others = [other for other in range(len(sizes)) if other != dim]
        for position, other in enumerate(others[: len(self.shape)]):
            labels = labels.narrow(position, starts[other], sizes[other])
        table = self.table.part(starts[dim], sizes[dim])
        return Mask(table, labels, self.kind, given=labels, copy=False)

    def taught(self) -> Tensor:
        """Which units at least one entry of the batch may teach: bool [width], on the CPU or the labels' device."""
        labels = self.labels if torch.compiler.is_compiling() else private.unwrapped(self.labels)
        if labels is not self.labels:
            return Mask(self.table, labels, self.kind, given=labels, copy=False).taught()
        device = labels.device
        if device.type == "meta":  # nobody can know, so nothing may be taken for untaught
            return torch.ones(self.width, dtype=torch.bool, device="cpu")
        if self.kind != "rows":
            return self.tensor(torch.bool, device).reshape(-1, self.width).any(0)
        rows = self.table.weights(torch.bool, device)
        # Which rows occur, then their union: no tensor of the size of the mask.
        occurs = torch.zeros(len(rows), dtype=torch.bool, device=device)
        occurs = occurs.index_fill(0, self._labels_on(device).reshape(-1), True)
        return (rows & occurs[:, None]).any(0)

    def bits(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The bit patterns of `MaskTable.bits` for this batch: ``shape + (width,)``, a new tensor."""
        if self.kind == "rows":
            flat = self.table.bits(dtype, device).index_select(0, self._labels_on(device).reshape(-1))
            return flat.view(*self.shape, self.width)
        return self.tensor(torch.bool, device).to(INTEGER_OF_SIZE[dtype.itemsize]).neg_().view(dtype)

    def _labels_on(self, device: torch.device) -> Tensor:
        self._check_version()
        # Not so towards the CPU: there, nothing waits until the labels have arrived.
        return self.labels.to(device, non_blocking=device.type != "cpu")

    def _check_version(self) -> None:
        if not torch.compiler.is_compiling():
            given = self._given()
            if given is not None:
                refuse_changed(given, self._version)


def _nobody() -> None:
    """In place of a reference to the labels that were given, where nobody checks what is written to them."""


def refuse_changed(labels: Tensor, version: int) -> None:
    """Refuse labels that were written to since they had this version.

    Raises:
        LabelError: They were.
    """
    if private.version(labels) != version:
        raise LabelError(
            "the label tensor was changed in place between forward and backward, so the gradient would follow other "
            "labels than the forward pass was given: pass labels.clone()."
        )


def check_units(shape: torch.Size, dim: int, width: int, *, broadcast: bool = False) -> int:
    """Check that a tensor of this shape has so many units along `dim`; return `dim` counted from the front.

    With ``broadcast=True`` one unit fits any number of them.

    Raises:
        LabelError: `dim` does not exist, or the width differs.
    """
    ndim = len(shape)
    if not -ndim <= dim < ndim:
        raise LabelError(f"dim {dim} does not exist in a tensor of shape {tuple(shape)}.")
    dim = dim % ndim
    if shape[dim] != width and not (broadcast and width == 1):
        units = f"{width} units" if width != 1 else "one unit"
        whole = (
            f" Is the whole tensor the unit? Say so by Site(..., dim=None), or route by spec.repeat({shape[dim]})."
            if width == 1
            else ""
        )
        raise LabelError(
            f"the spec routes {units}, but the tensor of shape {tuple(shape)} has {shape[dim]} along "
            f"dim {dim}: build the spec with width={shape[dim]}, or name the right dim.{whole}"
            f"{_if_divided(shape[dim], width)}"
        )
    return dim


def autocast_device(device: torch.device) -> str:
    """The device that autocast is told of. It knows no meta device, where nothing is computed."""
    return "cpu" if device.type == "meta" else device.type


def align(weights: Tensor, ndim: int, dim: int) -> Tensor:
    """Weights of shape ``labels.shape + (width,)``, such that they broadcast against a routed tensor: a view."""
    filled = weights.view(*weights.shape[:-1], *[1] * (ndim - weights.ndim), weights.shape[-1])
    return filled.movedim(-1, dim)


def _mixture(labels: Tensor, dense: Tensor) -> Tensor:
    """The weighted sum of the routes.

    A weight that is NaN or inf makes NaN of the units of its own label's route, and of no others: 0 * NaN would open
    them all.
    """
    dtype = torch.promote_types(labels.dtype, torch.float32)
    weights, rows = labels.to(dtype), dense[:-1].to(dtype)
    if _can_read(labels):  # checked when the labels came
        return weights @ rows
    finite = torch.isfinite(weights)
    reached = (~finite).to(dtype) @ (rows != 0).to(dtype)
    return torch.where(reached > 0, float("nan"), torch.where(finite, weights, 0) @ rows)


def _union(labels: Tensor, dense: Tensor, is_hard: bool) -> Tensor:
    """Per unit, the weight of largest magnitude among the set labels (the positive one of two equal ones).

    A row in which no label is set is unlabeled data, whose mask is the last row of `dense`.
    """
    if is_hard:
        weights = ((labels.float() @ dense[:-1]) > 0).float()
    else:
        highest = torch.zeros(*labels.shape[:-1], dense.shape[1], device=labels.device)
        lowest = torch.zeros_like(highest)
        for column, row in enumerate(dense[:-1]):  # one label at a time: no [..., n_labels, width] tensor
            chosen = labels[..., column, None] * row
            highest = torch.maximum(highest, chosen)
            lowest = torch.minimum(lowest, chosen)
        weights = torch.where(highest >= -lowest, highest, lowest)
    return torch.where(labels.any(-1, keepdim=True), weights, dense[-1])


def _off_of_several(labels: Tensor, off: Tensor) -> Tensor:
    """Which units all labels of a set, or of a mixture, have off. Of unlabeled data it is the last row of `off`.

    A weight that is NaN or inf says of no unit that it is on, and may say that it is off: it must open none.
    """
    on = (~off[:-1]).float()
    has = labels if labels.dtype == torch.bool else labels != 0
    unknown = None
    if labels.is_floating_point() and not _can_read(labels):  # checked when the labels came
        unknown = ~torch.isfinite(labels)
        has = has & ~unknown
    found = torch.where(has.any(-1, keepdim=True), (has.float() @ on) == 0, off[-1])
    return found if unknown is None else found | ((unknown.float() @ off[:-1].float()) > 0)


def _can_read(tensor: Tensor) -> bool:
    """Whether a tensor's values can be looked at here without tracing them and without waiting for a device."""
    if torch.compiler.is_compiling():
        return False
    if private.transforms_active():
        tensor = private.unwrapped(tensor)
    return type(tensor) is Tensor and tensor.is_cpu


def _if_divided(held: int, expected: int) -> str:
    """For messages: what to do if a process holds a part only of what it should, as with tensor parallelism."""
    if held >= expected or not private.several_processes():
        return ""
    return (
        " But if tensor parallelism or sequence parallelism has divided the tensor, and this process holds a part of "
        "it: put the site on a layer that parallelize_module was told of, whose output is seen while it is a DTensor, "
        "and make the router after parallelize_module; or keep DTensors between the layers, use_local_output=False."
    )


def unknown_label(label: object, labels: tuple[Hashable, ...]) -> str:
    """The message for a name that is no label of a spec."""
    return f"{label!r} is not a label of this spec. {did_you_mean(label, labels)}"
