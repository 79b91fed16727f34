"""A whole training step costs at most 2 % more with routing, in eager mode.

Of the MNIST VAE, and of a stack of GPT-2-small's blocks with routing on every MLP. The step is forward, backward and
an AdamW update of the same weights on both sides; the median of many alternating pairs of steps counts.
"""

from claims import Outcome, at_most, main
from costs import step_ratios
from settings import Settings

LIMIT = 1.02


def measure(settings: Settings) -> Outcome:
    ratios = step_ratios(settings, compiled=False)
    return Outcome([at_most(what, ratio, LIMIT) for what, ratio in ratios.items()])


if __name__ == "__main__":
    main(__doc__, measure)
