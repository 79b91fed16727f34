"""What a classifier can do: with the digit to forget, and with the nine others."""

import torch
from torch import Tensor, nn

from common.datasets import Split
from mnist_unlearning.images import Parts, pixels, take
from mnist_unlearning.model import DIGITS, OUTPUT

#: Of the probe: the penalty on squared weights, as a part of the mean squared feature times the number of images.
RIDGE = 0.01


@torch.no_grad()
def measures(model: nn.Module, split: Split, digit: int) -> dict[str, float]:
    """Four numbers in [0, 1].

    - ``forgotten``: how often an image of the digit is named right, among all ten.
    - ``kept``: how often an image of another digit is named right, among all ten.
    - ``kept_of_nine``: the same where the digit to forget is not among the answers. A model that never answers it has
      an easier task, so quality is compared on this one.
    - ``separation``: how often the digit's margin, its logit less the largest other one, is larger for an image of the
      digit than for one of another (the area under the ROC curve). No constant added to the logit changes it, so it
      shows an ability that is only held down.
    """
    logits = torch.cat([model(pixels(batch)) for batch in torch.split(split.images, 2000)])
    others = logits.clone()
    others[:, digit] = -torch.inf
    right, right_of_nine = logits.argmax(1) == split.labels, others.argmax(1) == split.labels
    own, margin = split.labels == digit, logits[:, digit] - others.amax(1)
    return {
        "forgotten": _share(right[own]),
        "kept": _share(right[~own]),
        "kept_of_nine": _share(right_of_nine[~own]),
        "separation": ranked_above(margin[own], margin[~own]),
    }


def ranked_above(these: Tensor, those: Tensor) -> float:
    """How often one of these is larger than one of those; ties count half."""
    ordered = those.sort().values
    below, not_above = (torch.searchsorted(ordered, these, right=right) for right in (False, True))
    return ((below + not_above).double().mean() / 2 / len(those)).item()


@torch.no_grad()
def probe(model: nn.Sequential | None, data: Parts, digit: int, count: int) -> float:
    """How often a linear classifier of hidden activations names the digit right, among all ten.

    Ridge regression on one-hot digits, in closed form, fitted to the images that relearning uses.

    Args:
        model: Its layers before the last make the features; None for the pixels themselves.
        data: Images to fit to, and to judge on.
        digit: The one to forget.
        count: Images of each digit to fit to.
    """
    few, own = data.few_of_each(count), take(data.judge, (data.judge.labels == digit).nonzero().flatten())
    features = nn.Identity() if model is None else model[: int(OUTPUT)]
    known, unknown = (_with_constant(features(pixels(split.images)).double()) for split in (few, own))
    gram = known.T @ known
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, known.T @ nn.functional.one_hot(few.labels, DIGITS).double())
    return _share((unknown @ weights).argmax(1) == digit)


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)


def _share(which: Tensor) -> float:
    return which.double().mean().item()
