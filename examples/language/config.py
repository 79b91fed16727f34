"""What a run is made of: settings that all runs share, and the condition that sets it apart."""

from dataclasses import dataclass
from typing import Literal

LANGUAGES = ("English", "Spanish")  #: What is to stay, and what is to be taken out.
RETAIN, FORGET = 0, 1  #: The labels' ids, and the languages'.


@dataclass(frozen=True)
class Settings:
    """Of all conditions alike."""

    vocabulary: int = 2048
    context: int = 64  #: Tokens in a sequence.
    layers: int = 4
    width: int = 128
    heads: int = 4
    neurons: int = 512
    block_heads: int = 1  #: Of each layer's heads, those of the block.
    block_neurons: int = 64  #: Of each layer's MLP units.
    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 3e-3
    warm_up: int = 50  #: Steps.
    labeled: float = 0.5  #: Part of the Spanish sequences that is labeled.
    english_labeled: float = 0.25
    held_out: int = 20  #: Every n-th chapter is for testing.
    test_sequences: int = 512  #: Of each language at most.
    saved_every: int = 50  #: Steps.


#: Of a pair of models in some minutes.
QUICK = Settings(steps=300, warm_up=30)


@dataclass(frozen=True)
class Condition:
    """One row of the table."""

    name: str
    what: str
    #: Which of the block's weights learn by route: none; those that write its units, at level "activations"; or those
    #: that write and that read them, at level "parameters".
    level: Literal["none", "activations", "parameters"] = "none"
    #: How English that is labeled meets the model without the block: in a pass of its own, with the block ablated; in
    #: the one pass of the whole batch, in which its units are silent; or not at all.
    passes: Literal["two", "silent", "whole"] = "silent"
    #: Whether embeddings, norms and the output head learn nothing from what is labeled "forget".
    rest: bool = True
    #: What is left out of training: nothing, what is labeled "forget", or all Spanish.
    filtered: Literal["no", "labeled", "all"] = "no"
    #: Labels of the languages, or of as many sequences drawn by lot.
    labels: Literal["true", "random"] = "true"

    @property
    def uses_labels(self) -> bool:
        return self.level != "none" or self.filtered == "labeled"


TWIN = Condition("twin", "all data, no routing: what routed rows are compared with")
ROUTED = Condition("routed", 'level "parameters"; for English that is labeled, the block is silent', level="parameters")
CONDITIONS = (
    TWIN,
    Condition("perfect-filter", "sees no Spanish; its English is that of the twin", filtered="all"),
    Condition("filter-by-labels", "sees all but the Spanish that is labeled", filtered="labeled"),
    ROUTED,
    Condition(
        "two-passes",
        "`routed`, but labeled English in a pass of its own, with the block ablated",
        level="parameters",
        passes="two",
    ),
    Condition("block-on", "`routed`, but labeled English meets the whole model", level="parameters", passes="whole"),
    Condition(
        "embeddings-shared",
        "`routed`, but all data teach embeddings, norms and the output head",
        level="parameters",
        rest=False,
    ),
    Condition("activations", '`routed`, but at level "activations"', level="activations"),
    Condition("placebo", "`routed`, with the labels of sequences drawn by lot", level="parameters", labels="random"),
)
