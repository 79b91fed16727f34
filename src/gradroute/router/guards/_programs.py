"""Programs that are recorded once and run often: exported ones, compiled ones, CUDA graphs.

What is no input of such a program, as the labels of a block may be, would be in it for ever as it was then.
"""

from __future__ import annotations

import torch

from ... import _torch_private as private
from ...errors import UsageError
from ...spec._deferred_mask import BatchMask
from .._attachment import AnySite, Hook


def refuse_silence_for_ever(hook: Hook, masks: tuple[BatchMask, ...]) -> None:
    """A program that is exported in a block would have the same places of every batch silent, whatever comes there.

    Raises:
        UsageError: The labels of the block are none of the program's inputs.
    """
    if len(masks) == 0 or not masks[hook.group].silences:
        return
    if torch.compiler.is_compiling():
        for_ever = private.is_exporting() and hook.state.compiled_blocks == 0
    else:
        for_ever = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if for_ever:
        raise UsageError(
            f"site {hook.name!r}: an exported program does not know this block, and would switch off the units that "
            "are silent for its labels in every batch, by the place of an example. Export outside of the block, where "
            "nothing is silent; or give torch.export the labels as an argument: of a RoutedModule, or of gr.route."
        )


def refuse_deferred_labels(hook: AnySite) -> None:
    """Compiled code takes labels in as it takes in tensors, when it runs: those that come later would not be in it."""
    if hook.state.is_deferred and not hook.state.suspended:
        raise UsageError(
            f"site {hook.name!r}: labels come too late: compiled code takes them in as it runs, and in a `with "
            "router.deferred()` block they are set after it. Run the model uncompiled there, under "
            'torch.compiler.set_stance("force_eager"), or in a `with router(labels)` block.'
        )


def refuse_trace() -> None:
    """What records the operations of a pass knows its labels as constants.

    Raises:
        UsageError: A pass that learns is recorded by `torch.jit.trace` or `make_fx`.
    """
    if torch.is_grad_enabled() and (torch.jit.is_tracing() or private.is_recorded_by_make_fx()):  # type: ignore[attr-defined, no-untyped-call]
        raise UsageError(
            "a program that torch.jit.trace or make_fx records does not know this block: each of its runs would go by "
            "the labels that there are now. Record it under torch.no_grad() or outside of the block, where nothing is "
            "routed; torch.compile takes labels as they come."
        )


def refuse_cuda_graph(what: str) -> None:
    """A CUDA graph is replayed without the Python around its operations: the labels of now would be in it for ever.

    Raises:
        UsageError: One is being captured.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        raise UsageError(
            f"{what} cannot be part of a CUDA graph: each replay would go by the labels that there are now. Capture "
            "what comes before or after it; or leave it to torch.compile."
        )
