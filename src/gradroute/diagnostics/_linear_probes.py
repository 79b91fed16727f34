"""Certificates: what a linear probe or decoder finds in some units, on examples that it was not fitted on."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import missing_package

if TYPE_CHECKING:  # torch does not import it, and it takes time
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval.

    Attributes:
        value: The number.
        low: Where the interval begins.
        high: Where it ends.

    Examples:
        >>> print(Estimate(0.93, 0.91, 0.95))
        0.930 (0.910 to 0.950)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def sklearn(module: str) -> Any:
    """A module of scikit-learn.

    Raises:
        ImportError: It is missing.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")  # optional, and slow to import
    except ImportError as error:
        raise ImportError(missing_package("the probes of specialization", "scikit-learn", "probe")) from error


@dataclass(frozen=True)
class Procedure:
    """Cross-validation and bootstrap, drawing from one generator."""

    folds: int
    draws: int
    generator: np.random.Generator

    def seed(self) -> int:
        """A seed for what draws by a generator of its own."""
        return int(self.generator.integers(2**31))


def probe(x: Array, wanted: NDArray[np.bool_], how: Procedure) -> Estimate:
    """The balanced accuracy of a logistic regression, on examples that it was not fitted on."""
    if x.shape[1] == 0:
        return Estimate(0.5, 0.5, 0.5)
    selection = sklearn("model_selection")
    classifier = sklearn("linear_model").LogisticRegression(class_weight="balanced", max_iter=1000)
    model = sklearn("pipeline").make_pipeline(sklearn("preprocessing").StandardScaler(), classifier)
    split = selection.StratifiedKFold(how.folds, shuffle=True, random_state=how.seed())
    guess = selection.cross_val_predict(model, x, wanted, cv=split)
    value = float(sklearn("metrics").balanced_accuracy_score(wanted, guess))
    # The bootstrap keeps how many examples each side has.
    right, sides = guess == wanted, (wanted, ~wanted)
    means = [np.mean([how.generator.choice(right[s], s.sum()).mean() for s in sides]) for _ in range(how.draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def decode(x: Array, y: Array, how: Procedure) -> Estimate:
    """How much of the variance of y a ridge regression explains, on examples that it was not fitted on."""
    if x.shape[1] == 0:
        return Estimate(0.0, 0.0, 0.0)
    selection = sklearn("model_selection")
    split = selection.KFold(how.folds, shuffle=True, random_state=how.seed())
    scaler, ridge = sklearn("preprocessing").StandardScaler(), sklearn("linear_model").Ridge()
    model = sklearn("pipeline").make_pipeline(scaler, ridge)
    # Of one target scikit-learn makes a vector.
    guess = selection.cross_val_predict(model, x, y, cv=split).reshape(y.shape)
    errors = np.square(y - guess).sum(1)
    spread = np.square(y - y.mean(0)).sum(1)

    def explained(chosen: Any) -> float:
        total = float(spread[chosen].sum())
        return 1 - float(errors[chosen].sum()) / total if total > 0 else 0.0

    drawn = [explained(how.generator.integers(len(y), size=len(y))) for _ in range(how.draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(explained(slice(None)), float(low), float(high))


def interval(values: Array, how: Procedure) -> Estimate:
    """The mean, with an interval by bootstrap over examples."""
    means = how.generator.choice(values, (how.draws, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))
