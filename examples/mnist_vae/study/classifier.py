"""A digit classifier that has nothing to do with the VAE: it says what a decoded image shows.

A plain convolutional network, trained on the training set with its labels, once per data set. It is kept under the data
folder and used by the evaluation only; no gradient of it reaches the VAE.

It reads shapes, however strongly they are drawn: each image is brought to mean 0 and variance 1 first, and is a little
blurred, at random, in training. Without that it takes a digit in grey on nearly white paper, which no training image
is, for an 8, whatever is plainly to be seen.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm  # type: ignore[import-untyped]

from common.augment import random_affine
from common.datasets import DatasetName, Split
from common.errors import ExampleError
from common.files import replacing

#: Least accuracy on the test set with which its word is taken, where a data set is known to allow it.
REQUIRED: dict[DatasetName, float] = {"mnist": 0.99}


@dataclass(frozen=True)
class Training:
    """Steps rather than epochs, so that a small data set is trained on just as long."""

    steps: int = 700
    batch_size: int = 256
    learning_rate: float = 5e-3
    seed: int = 0
    version: int = 1  #: Of the network below: raise it with every change, since it is part of the cache's key.


TRAINING = Training()


def load_or_train(train: Split, root: Path | None) -> nn.Module:
    """The classifier of this training set, from ``root/classifier`` if it is there; images [N, 1, 28, 28] to logits.

    Args:
        train: What it is trained on; the file's name is made from its content and from `TRAINING`.
        root: The data folder; without one, it is trained and not kept.
    """
    model = _network(TRAINING.seed)
    if root is None:
        _train(model, train, TRAINING)
        return model.eval()
    path = root.expanduser() / "classifier" / f"{_key(train, TRAINING)}.safetensors"
    if path.is_file():
        try:
            model.load_state_dict(load_file(path))
            return model.eval()
        except (SafetensorError, RuntimeError) as error:
            print(f"classifier: {path} is broken ({type(error).__name__}): training it again")
    _train(model, train, TRAINING)
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))
    print(f"classifier: wrote {path}")
    return model.eval()


def checked_accuracy(classifier: nn.Module, test: Split, dataset: DatasetName) -> float:
    """Its accuracy on the test set.

    Raises:
        ExampleError: It is too low to rely on.
    """
    found = (predict(classifier, test.images) == test.labels).double().mean().item()
    required = REQUIRED.get(dataset, 0.0)
    if found < required:
        raise ExampleError(
            f"the classifier that judges decoded images has {found:.2%} on the test set; at least {required:.0%} is "
            "expected. Delete the folder `classifier` in the data folder and evaluate again."
        )
    return found


@torch.no_grad()
def predict(classifier: nn.Module, images: Tensor) -> Tensor:
    """The most likely class of each image, [N]; uint8 images are scaled to [0, 1] first."""
    batches = [batch if batch.is_floating_point() else batch.float() / 255 for batch in torch.split(images, 1000)]
    return torch.cat([classifier(batch).argmax(dim=1) for batch in batches])


def _blur(images: Tensor, amount: Tensor) -> Tensor:
    """From the images as they are, where the amount is 0, to the means of 3 x 3 pixels, where it is 1."""
    return images + amount * (F.avg_pool2d(images, 3, stride=1, padding=1) - images)


def _key(train: Split, training: Training) -> str:
    digest = hashlib.sha256(repr(sorted(asdict(training).items())).encode())
    for tensor in (train.images, train.labels):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.InstanceNorm2d(1, eps=1e-8),
            *_block(1, 24),
            *_block(24, 48),
            *_block(48, 96),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(96 * 4 * 4, 10),
        ).to(memory_format=torch.channels_last)


def _block(before: int, after: int) -> list[nn.Module]:
    """Half the side, rounded up: 28 pixels to 14, 7 and 4."""
    return [nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def _train(model: nn.Module, train: Split, training: Training) -> None:
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, total_steps=training.steps)
    size = min(training.batch_size, len(train))
    model.train()
    # Dropout draws from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        for _ in tqdm(range(training.steps), desc="classifier", unit="step", disable=None):
            batch = torch.randint(len(train), (size,), generator=generator)
            images = random_affine(train.images[batch].float() / 255, generator)
            images = _blur(images, torch.rand(size, 1, 1, 1, generator=generator))
            images = images.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(images), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
