"""What a trained model has learned, the same for every recipe: numbers and pictures."""

import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.datasets import Dataset, DatasetName, Split
from common.figures import save
from common.files import read_json, write_json
from gradroute.diagnostics import AuditReport
from mnist_vae.config import Config
from mnist_vae.model import DIGITS, VAE
from mnist_vae.run import Run
from mnist_vae.study import classifier, figures
from mnist_vae.study.leaks import audit, leaks
from mnist_vae.study.linear_probe import best_permutation_accuracy, probe_accuracy
from mnist_vae.study.sliders import STRENGTHS, recognised, slider_accuracy

BATCH = 1000


@dataclass(frozen=True)
class Results:
    """Computed without augmentation; every image once."""

    argmax_accuracy: float
    #: Under the best one-to-one renaming of dimensions, and of a linear probe of the means fitted on the training set.
    best_permutation_accuracy: float
    probe_accuracy: float
    owned_digits: int
    test_sse: float
    test_elbo: float
    #: Mean of each latent mean (or norm of a slice) by digit on the training set, [digit, dimension].
    activations: Tensor


@torch.no_grad()
def measure(model: VAE, data: Dataset) -> Results:
    means, train_means = encode_all(model, data.test), encode_all(model, data.train)
    scores = model.scores(means)
    activations = mean_by_label(model.scores(train_means), data.train.labels)
    return Results(
        argmax_accuracy=(scores.argmax(dim=1) == data.test.labels).double().mean().item(),
        best_permutation_accuracy=best_permutation_accuracy(scores, data.test.labels),
        probe_accuracy=probe_accuracy(train_means, data.train.labels, means, data.test.labels),
        owned_digits=int((activations.argmax(dim=1) == torch.arange(DIGITS.width)).sum()),
        test_sse=squared_error(model, data.test, means),
        test_elbo=elbo(model, data.test),
        activations=activations,
    )


def judge(model: VAE, data: Dataset, dataset: DatasetName) -> dict[str, Any]:
    """What the independent classifier sees in each digit's slider, for ``metrics.json``."""
    reader = classifier.load_or_train(data.train, data.root)
    accuracy = classifier.checked_accuracy(reader, data.test, dataset)
    seen = recognised(model, reader)
    return {
        "slider_accuracy": slider_accuracy(seen),
        "slider_strengths": list(STRENGTHS),
        "slider_seen_as": seen.tolist(),
        "classifier_accuracy": accuracy,
    }


@dataclass(frozen=True)
class Evaluation:
    """All that is said of a run: the content of ``metrics.json``, and what its figures show."""

    metrics: dict[str, Any]
    activations: Tensor
    audit: AuditReport | None


def evaluate(run: Run, data: Dataset) -> dict[str, Any]:
    """Write ``metrics.json`` and the figures into the run's folder."""
    config, model, history = run.load_config(), run.load_model(), read_json(run.history)
    found = examine(model, config, history, data)
    routing = "" if config.routing else " without routing"
    title = f"{config.dataset}, recipe {config.recipe}{routing}, seed {config.seed}"
    pictures = {
        "reconstructions": figures.reconstructions(model, data.test, title),
        "sweeps": figures.sweeps(model, title),
        "activations": figures.activation_matrix(found.activations, title),
        "losses": figures.loss_curves(history, title, nats=model.is_elbo),
    }
    if found.audit is not None:
        pictures["audit"] = figures.audit_heatmaps(found.audit, title)
    for name, picture in pictures.items():
        save(picture, run.figures / f"{name}.png")
    write_json(run.metrics, found.metrics)
    print(f"evaluate: wrote {run.metrics} and {len(pictures)} figures to {run.figures}")
    return found.metrics


def examine(model: VAE, config: Config, history: dict[str, Any], data: Dataset) -> Evaluation:
    """Measure a trained model, without writing anything.

    Args:
        model: In evaluation mode.
        config: What it was trained with.
        history: Of its training, as `mnist_vae.train.train` writes it.
        data: What it is measured on.
    """
    results = measure(model, data)
    settings = config.settings()
    # Without routing, or with the KL routed too, a route at the latent is not what the model was trained with.
    report = audit(model, data.train) if config.routing and not settings.route_kl else None
    metrics = {
        "dataset": config.dataset,
        "recipe": config.recipe,
        "routing": config.routing,
        "seed": config.seed,
        "epochs": config.epochs,
        "label_fraction": config.label_fraction,
        "units": settings.units,
        "shared": settings.shared,
        "kl_weight": settings.kl_weight,
        "train_seconds": round(history["train_seconds"], 1),
        "argmax_accuracy": results.argmax_accuracy,
        "best_permutation_accuracy": results.best_permutation_accuracy,
        "probe_accuracy": results.probe_accuracy,
        "owned_digits": results.owned_digits,
        "test_sse": results.test_sse,
        "test_elbo": results.test_elbo,
        **judge(model, data, config.dataset),
        "leaks": None if report is None else leaks(report),
        "mean_activation": [[round(value, 4) for value in row] for row in results.activations.tolist()],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": history["threads"],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    return Evaluation(metrics, results.activations, report)


@torch.no_grad()
def encode_all(model: VAE, split: Split) -> Tensor:
    """The latent means of all images, [N, units]."""
    return torch.cat([model.encode_mean(batch.float() / 255) for batch in torch.split(split.images, BATCH)])


def mean_by_label(means: Tensor, labels: Tensor) -> Tensor:
    """Row d is the mean of the rows of ``means`` with label d; zero where there is none."""
    members = F.one_hot(labels, DIGITS.width).to(means.dtype)
    return (members.T @ means) / members.sum(dim=0).clamp(min=1).unsqueeze(1)


@torch.no_grad()
def squared_error(model: VAE, split: Split, means: Tensor) -> float:
    """Sum of squared pixel errors, mean over images, of what the means decode to."""
    total = 0.0
    for batch, z in zip(torch.split(split.images, BATCH), torch.split(means, BATCH), strict=True):
        total += (model.decode(z) - batch.float() / 255).square().sum().item()
    return total / len(split)


@torch.no_grad()
def elbo(model: VAE, split: Split, seed: int = 0) -> float:
    """The evidence lower bound in nats per image, from one sample of z each, under the same generative model for all.

    That is Bernoulli pixels and a standard normal prior: what the original's loss is not, so its ELBO is low.
    """
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for batch in torch.split(split.images, BATCH):
        images = batch.float() / 255
        mean, spread = model.encode(images)
        logits = model.decode_logits(model.sample(mean, spread, generator))
        # A spread of exactly zero would make the KL infinite.
        variance = model.std(spread).square().clamp(min=1e-12)
        kl = 0.5 * (mean.square() + variance - 1 - variance.log()).sum()
        total -= (F.binary_cross_entropy_with_logits(logits, images, reduction="sum") + kl).item()
    return total / len(split)
