"""How to measure: where, and whether only to see that everything works."""

from dataclasses import dataclass

import torch

#: The machine that the margins were set for has two cores.
THREADS = 2


@dataclass(frozen=True)
class Settings:
    """What the command line of a benchmark says.

    Attributes:
        device: Where the tensors live.
        quick: Whether to measure just once, and compile nothing: then no claim is judged.
    """

    device: torch.device
    quick: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        return ("eager",) if self.quick else ("eager", "compiled")
