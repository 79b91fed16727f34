"""What each digit teaches beyond its own units: gradroute's audit of a trained model under its own loss."""

import torch

import gradroute as gr
from common.datasets import Split
from gradroute.diagnostics import AuditReport
from mnist_vae.model import VAE

#: Training images that are looked at.
IMAGES = 100


def audit(model: VAE, train: Split) -> AuditReport:
    """Where the gradient of each digit goes, on the first training images.

    Args:
        model: It routes by `gr.route`, on which no audit can stand; a router at its latent does the same, and does it
            here in its place. The model is left as it was.
        train: Images and their digits.
    """
    images, labels = train.images[:IMAGES].float() / 255, train.labels[:IMAGES]
    nobody = torch.full((len(images),), gr.UNLABELED)  # the loss knows labels by its routing alone, which is off
    routing, model.routing = model.routing, False
    router = gr.Router(model, {"latent": model.spec})
    try:
        # z is drawn by the global generator, which the audit sets back for each of its runs.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return gr.audit(router, lambda some: model.losses(some, nobody[: len(some)]).total, images, labels)
    finally:
        router.remove()
        model.routing = routing


def leaks(report: AuditReport) -> dict[str, float]:
    """Of each kind of bypass, the largest share of a digit's gradient."""
    found: dict[str, float] = {}
    for bypass in report.bypasses:
        found[bypass.kind] = max(bypass.share, found.get(bypass.kind, 0.0))
    return found
