"""What a run is made of: settings that all runs share, and the condition that sets it apart."""

from dataclasses import dataclass
from typing import Literal

from common.gpt2 import TextSettings

LANGUAGES = ("English", "Spanish")  #: What is to stay, and what is to be taken out.
RETAIN, FORGET = 0, 1  #: The labels' ids, and the languages'.


@dataclass(frozen=True)
class Settings(TextSettings):
    """Of all conditions alike."""

    block_heads: int = 1  #: Of each layer's heads, those of the block.
    block_neurons: int = 64  #: Of each layer's MLP units.
    labeled: float = 0.5  #: Part of the Spanish sequences that is labeled.
    english_labeled: float = 0.25
    held_out: int = 20  #: Every n-th chapter is for testing.
    test_sequences: int = 512  #: Of each language at most.


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
    #: the one pass of the whole batch, in which its units are silent; or not at all. "trunk": nothing meets the block,
    #: as if there were none.
    passes: Literal["two", "silent", "whole", "trunk"] = "silent"
    #: Whether embeddings, norms and the output head learn nothing from what is labeled "forget".
    rest: bool = True
    #: What is left out of training: nothing; what is labeled "forget"; that, and what a detector takes for Spanish, as
    #: whole sequences or as single tokens, which are read and not predicted; or all Spanish.
    filtered: Literal["no", "labeled", "detected", "tokens", "all"] = "no"
    #: Labels of the languages, or of as many sequences drawn by lot.
    labels: Literal["true", "random"] = "true"

    @property
    def uses_labels(self) -> bool:
        return self.level != "none" or self.filtered in ("labeled", "detected", "tokens")


TWIN = Condition("twin", "all data, no routing: what routed rows are compared with")
ROUTED = Condition("routed", 'level "parameters"; for English that is labeled, the block is silent', level="parameters")
PERFECT = Condition("perfect-filter", "sees no Spanish; its English is that of the twin", filtered="all")
BY_LABELS = Condition("filter-by-labels", "sees all but the Spanish that is labeled", filtered="labeled")
_DETECTS = "`filter-by-labels`, and what a detector trained on the labels takes for Spanish goes, too"
DETECTOR = Condition("detector-filter", _DETECTS, filtered="detected")
TOKENS = Condition(
    "token-filter",
    "`filter-by-labels`; elsewhere, tokens that are more frequent in labeled Spanish are read, but not predicted",
    filtered="tokens",
)
ACTIVATIONS = Condition("activations", '`routed`, but at level "activations"', level="activations")
CONDITIONS = (
    TWIN,
    PERFECT,
    BY_LABELS,
    DETECTOR,
    ROUTED,
    TOKENS,
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
    ACTIVATIONS,
    Condition("placebo", "`routed`, with the labels of sequences drawn by lot", level="parameters", labels="random"),
    Condition("trunk-twin", "`twin`, without the block's units from the beginning", passes="trunk"),
    Condition(
        "trunk-filter", "`perfect-filter`, without the block's units from the beginning", passes="trunk", filtered="all"
    ),
    Condition(
        "placebo-filter", "`filter-by-labels`, with the labels of `placebo`", filtered="labeled", labels="random"
    ),
)
#: Those that are run at each labeled share; the others at the first one.
AT_EACH_SHARE = (BY_LABELS, DETECTOR, ROUTED, TOKENS, ACTIVATIONS)
#: Labeled parts at which `BY_LABELS` sees little Spanish: how much of it teaches how much, which is what leakage is
#: measured by.
LITTLE = (0.99, 0.95)
