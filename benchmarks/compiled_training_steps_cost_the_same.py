"""Under torch.compile, what routing adds to a whole training step is lost in the spread.

The models are those of `a_training_step_costs_the_same`. Lost in the spread means that in at least one round of ten the
routed step is the faster one of the two: the 10th percentile of their ratio is at most 1.
"""

from claims import Outcome, main, not_measurable
from costs import step_ratios
from settings import Settings


def measure(settings: Settings) -> Outcome:
    if settings.quick:
        return Outcome(not_run="a quick run compiles nothing")
    ratios = step_ratios(settings, compiled=True)
    return Outcome([not_measurable(what, ratio) for what, ratio in ratios.items()])


if __name__ == "__main__":
    main(__doc__, measure)
