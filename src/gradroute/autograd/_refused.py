"""What compiled code of an old torch cannot do is refused here. Imported only by code that is being compiled there.

An error that is raised in traced code is lost: Dynamo says in its own words that it found one, or goes on without
compiling. Nothing is lost of a function that Dynamo does not look into: it is called, and raises; and where the code
may not be left (``fullgraph=True``), Dynamo says the reason that it was given. To give it one imports Dynamo, as in
`_dynamo`, whose import statement is executed by Dynamo in the same way.
"""

from __future__ import annotations

import torch

from ..errors import UsageError

DTENSORS = (
    f"compiled code of torch {torch.__version__} cannot mask the gradients of DTensors, which tensor parallelism makes "
    "of activations: torch 2.12 and later can. Run the model uncompiled, or compile only modules without sites."
)


@torch.compiler.disable(reason=DTENSORS)  # type: ignore[no-untyped-call, untyped-decorator]
def refuse_dtensors() -> None:
    """Refuse DTensors in compiled code.

    Raises:
        UsageError: In any case.
    """
    raise UsageError(DTENSORS)
