"""What a run is made of: settings that all runs share, and the condition that sets it apart."""

from dataclasses import dataclass
from typing import Literal

from common.errors import ExampleError

#: Steps of fine-tuning after which accuracy is measured.
CHECKPOINTS = (0, 5, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320)


@dataclass(frozen=True)
class Settings:
    """Of all conditions alike."""

    digit: int = 4  #: The one to forget.
    hidden: int = 192  #: Hidden units before expansion: the base.
    reserved: int = 64  #: Units that expansion adds: the block.
    train_images: int | None = None  #: Of those for training; None for all 50,000.
    epochs: int = 4
    batch_size: int = 256
    learning_rate: float = 1e-2
    base_share: float = 0.5  #: Of the images labeled "retain", how many teach the base where not all teach all.
    labeled_first: int = 300  #: Steps at the start on labeled images alone, where a condition asks for it.
    relearn_images: int = 64  #: Of each digit, held out from training.
    relearn_batch_size: int = 64
    relearn_rate: float = 5e-4
    checkpoints: tuple[int, ...] = CHECKPOINTS

    def __post_init__(self) -> None:
        if not 0 <= self.digit <= 9:
            raise ExampleError(f"--digit must be in 0 to 9; got {self.digit}.")
        if self.epochs < 1:
            raise ExampleError(f"--epochs must be at least 1; got {self.epochs}.")


@dataclass(frozen=True)
class Condition:
    """One row of the table."""

    name: str
    what: str
    #: Part of the images, of the digit and of the others, that somebody has labeled "forget" or "retain".
    fraction: float = 1.0
    #: Which weights learn by route: none; the hidden layer's (a site on its output, level "activations"); or also the
    #: output layer's columns that read it (sites on both ends, level "parameters").
    level: Literal["none", "activations", "parameters"] = "none"
    #: Labels of the digit, or of as many images drawn by lot.
    labels: Literal["true", "random"] = "true"
    #: What is left out of training: nothing, what is labeled "forget", also what a detector trained on the labels takes
    #: for that, or all that is not labeled "retain".
    filtered: Literal["no", "labeled", "detected", "unverified"] = "no"
    #: What images labeled "retain" teach: all of them base and block ("together"); or a part of them the base, in a
    #: forward pass with the block ("whole") or without it ("ablated"), and the rest the block.
    retain: Literal["together", "whole", "ablated"] = "together"
    #: Whether training begins on labeled images alone.
    labeled_first: bool = False
    #: Whether what teaches the base and what teaches the block make one step of the optimizer, or one each; and each
    #: under isolation.
    optimizer: Literal["joint", "separate", "isolated"] = "joint"
    #: What is done to forget: ablate the block, set the output layer's row of the digit to zero, or nothing.
    forgets_by: Literal["block", "row", "nothing"] = "block"
