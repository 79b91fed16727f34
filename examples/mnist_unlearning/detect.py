"""The filter that a practitioner would build: find what is not labeled by what is."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import gradroute as gr
from common.datasets import Split
from mnist_unlearning.config import Settings
from mnist_unlearning.images import pixels
from mnist_unlearning.labels import FORGET
from mnist_unlearning.model import PIXELS

#: Added to the run's seed.
DETECTOR = 3_000_000_019
#: An unlabeled image is left out where the detector gives the digit more than this probability. The lower, the fewer
#: are missed, and the more of other digits go, too. Chosen on held-out images out of 1e-3 to 1e-7, at 10 % labels: of
#: those with at most 5 % accuracy on the digit, the one that keeps most on the others.
SUSPICION = 1e-6
_STEPS = 300


def detected(split: Split, known: Tensor, settings: Settings, seed: int) -> Tensor:
    """The labels, with `FORGET` for unlabeled images, too, that a detector trained on the labeled ones suspects.

    The detector has the size of the classifier, and two outputs.
    """
    labeled, unlabeled = ((known != gr.UNLABELED).nonzero().flatten(), (known == gr.UNLABELED).nonzero().flatten())
    detector = _trained(split, known, labeled, settings, seed)
    with torch.no_grad():
        suspect = [
            detector(pixels(split.images[batch])).softmax(1)[:, FORGET] > SUSPICION
            for batch in torch.split(unlabeled, 2000)
        ]
    return known.index_fill(0, unlabeled[torch.cat(suspect)], FORGET) if suspect else known


def _trained(split: Split, known: Tensor, labeled: Tensor, settings: Settings, seed: int) -> nn.Module:
    generator = Generator().manual_seed(DETECTOR + seed)
    width = settings.hidden + settings.reserved
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DETECTOR + seed)
        detector = nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, 2))
    optimizer = torch.optim.Adam(detector.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=_STEPS)
    for _ in range(_STEPS):
        batch = labeled[torch.randint(len(labeled), (settings.batch_size,), generator=generator)]
        optimizer.zero_grad()
        F.cross_entropy(detector(pixels(split.images[batch])), known[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return detector
