"""What makes evaluations of the synthetic dataset cost little."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common import figures
from mnist_vae.study import classifier, leaks


@contextmanager
def quick_evaluation() -> Iterator[None]:
    """Evaluations within the block cost little."""
    with pytest.MonkeyPatch.context() as patch:
        # Of the synthetic dataset, a few steps are enough, and what is asked of the real one is too much.
        patch.setattr(classifier, "TRAINING", classifier.Training(steps=3, batch_size=40))
        patch.setattr(classifier, "REQUIRED", {})
        # An audit costs some passes for each label that it finds.
        patch.setattr(leaks, "IMAGES", 3)
        patch.setattr(figures, "DPI", 20)
        yield


@contextmanager
def without_pictures() -> Iterator[None]:
    """Of runs whose pictures nobody looks at: they are tested with `evaluate`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_vae.evaluate.save", lambda figure, path: None)
        yield
