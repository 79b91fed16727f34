"""What a run is made of: settings that all runs share, and the condition that sets it apart."""

from dataclasses import dataclass
from typing import Literal

from common.gpt2 import TextSettings

#: Of WordNet, lexicographer files by their numbers: animals and plants; and bodies, food and substances.
FILES = {"living": (5, 20), "matter": (8, 13, 27)}
LANGUAGES = ("English", "Spanish")  #: Of verses.
CORE = "core"  #: What stays: the other glosses.
MODULES = (*FILES, *LANGUAGES)  #: What can be taken out, each by itself.
TOPICS = (CORE, *MODULES)  #: A topic's place is its label's id.


@dataclass(frozen=True)
class Settings(TextSettings):
    """Of all conditions alike."""

    heads: int = 8
    steps: int = 1200
    #: As many tokens in batches of 32 leave all losses higher: much of a training this short is a matter of its steps.
    batch_size: int = 16
    module_heads: int = 1  #: Of each layer's heads, those of each module.
    module_neurons: int = 64  #: Of each layer's MLP units, those of each module.
    labeled: float = 0.5  #: Part of the sequences of each topic that is labeled.
    per_topic: int = 3800  #: Sequences to train on, of each topic at most.
    held_out: int = 20  #: Every n-th chapter, or gloss, is for testing.
    test_sequences: int = 160  #: Of each topic at most.


#: Minutes for the routed model and its twin; each sequence is seen about once.
QUICK = Settings(steps=600, per_topic=1900)


@dataclass(frozen=True)
class Condition:
    """One row of the table, or one of the models of a row."""

    name: str
    what: str
    routed: bool = False
    #: Whether embeddings, norms and the output head learn nothing from what is labeled as another topic than the core.
    rest: bool = False
    #: What is left out of the training: topics, as far as is said by whom.
    without: tuple[str, ...] = ()
    #: Who says of a sequence which topic it has: somebody who knows all; the labels; or these, and of the others a
    #: detector that was trained on them.
    told_by: Literal["truth", "labels", "detector"] = "truth"


TWIN = Condition("twin", "all data, no routing: one training, from which nothing can be taken out")
ROUTED = Condition("routed", "a module for each topic: one training, from which each can be taken out", routed=True)
REST = Condition(
    "embeddings-routed",
    "`routed`, and embeddings, norms and the output head do not learn from what is labeled as a topic either",
    routed=True,
    rest=True,
)
_FILTERS = {
    "perfect-filter": ("truth", "never saw the topic: a training for each"),
    "filter-by-labels": ("labels", "never saw what is labeled as the topic: a training for each"),
    "detector-filter": ("detector", "`filter-by-labels`, without what a detector trained on the labels takes for it"),
}
#: What filters leave out: each topic by itself, and all of them.
SUBSETS = (*((module,) for module in MODULES), MODULES)


def filters(name: str) -> tuple[Condition, ...]:
    """A condition for each subset of topics that is left out."""
    told_by, what = _FILTERS[name]
    return tuple(Condition(name, what, without=subset, told_by=told_by) for subset in SUBSETS)  # type: ignore[arg-type]


#: The models of each row.
ROWS: dict[str, tuple[Condition, ...]] = {
    TWIN.name: (TWIN,),
    ROUTED.name: (ROUTED,),
    REST.name: (REST,),
    **{name: filters(name) for name in _FILTERS},
}
