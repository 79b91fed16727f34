"""Small GPT-2s that learn text: how they are made, trained and asked."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import gradroute as gr
from common.resumable import Resumable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

IGNORED = -100  #: In place of a token that is not to be predicted.
_AT_ONCE = 64
_RELEARNING_BATCH, _RELEARNING_RATE = 16, 1e-3
#: What belongs to no neuron and no head, and its width.
_REST = {"transformer.w[tp]e": "n_embd", "transformer.*ln_?": "n_embd", "lm_head": "vocab_size"}


@dataclass(frozen=True)
class TextSettings:
    """Of all conditions alike: the model, and how it is trained."""

    vocabulary: int = 2048
    context: int = 64  #: Tokens in a sequence.
    layers: int = 4
    width: int = 128
    heads: int = 4
    neurons: int = 512
    steps: int = 500
    batch_size: int = 32
    #: With three times as much, and without routing, gradients jumped after the warm-up, and two seeds of one row were
    #: further apart than two rows.
    learning_rate: float = 1e-3
    warm_up: int = 50  #: Steps.
    saved_every: int = 50  #: Steps.


def build(settings: TextSettings, vocabulary: int, seed: int) -> GPT2LMHeadModel:
    """GPT-2, without dropout, and with the biases left out that no unit owns."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        n_inner=settings.neurons,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    # The biases behind neurons and heads add to the residual stream. They stay 0: all data would teach them.
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.bias"):
            parameter.requires_grad_(False)
    return model


def rest_sites(model: GPT2LMHeadModel, teaching: str, others: Iterable[str]) -> dict[str, gr.Site]:
    """Sites on embeddings, norms and the output head: one label teaches them, the others do not."""
    found = {}
    for pattern, n in _REST.items():
        width = getattr(model.config, n)
        spec = gr.RoutingSpec({teaching: slice(width), **{label: [] for label in others}}, width)
        found[pattern] = gr.Site(spec, level="parameters")
    return found


def logits(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    """[B, T, vocabulary] for tokens [B, T]."""
    # By default positions have no batch dimension, and without it no label of an example could route what they teach.
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    out: Tensor = model(input_ids=tokens, position_ids=positions).logits
    return out


def example(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """Two sequences of tokens, by which surgery checks what it did."""
    tokens = torch.arange(2 * model.config.n_positions) % model.config.vocab_size
    return {"input_ids": tokens.view(2, -1)}


@torch.no_grad()
def token_losses(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    """Nats [B, T - 1] for tokens [B, T]: the loss of each but the first."""
    return F.cross_entropy(logits(model, tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")


def loss_per_byte(model: GPT2LMHeadModel, tokens: Tensor, n_bytes: Tensor) -> float:
    """Nats per byte of text, so that texts whose tokens differ in length compare."""
    model.eval()  # type: ignore[no-untyped-call]
    nats = sum(token_losses(model, part).double().sum().item() for part in torch.split(tokens, _AT_ONCE))
    return nats / int(n_bytes[tokens[:, 1:]].sum())


def relearned(model: GPT2LMHeadModel, tokens: Tensor, at: Sequence[int], look: Callable[[], float]) -> list[float]:
    """What is seen of a model while it trains on sequences, after each of some numbers of steps.

    Args:
        model: Is trained.
        tokens: To train on, int64 [N, T + 1], in this order; after the last comes the first again.
        at: Numbers of steps of 16 sequences, Adam's with a rate of 1e-3.
        look: What is seen.
    """
    optimizer = torch.optim.Adam(model.parameters(), _RELEARNING_RATE)
    seen = []
    for step in range(max(at) + 1):
        if step in at:
            seen.append(look())
        batch = tokens[torch.arange(step * _RELEARNING_BATCH, (step + 1) * _RELEARNING_BATCH) % len(tokens)]
        optimizer.zero_grad()
        F.cross_entropy(logits(model, batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return seen


Condition = TypeVar("Condition", bound="DataclassInstance")
Settings = TypeVar("Settings", bound=TextSettings)


class TextTraining(Resumable[Condition, Settings]):
    """A training whose seed gives the weights, and the order of the sequences.

    Args:
        condition: What sets the run apart.
        settings: Of all runs.
        n_sequences: How many there are to train on.
        vocabulary: Number of tokens that there are.
        seed: Of weights and batches.
    """

    #: curve: after how many steps somebody measured what.
    counts = ("steps", "cpu_seconds", "curve")

    def __init__(self, condition: Condition, settings: Settings, n_sequences: int, vocabulary: int, seed: int) -> None:
        self.condition, self.settings, self.seed, self._n = condition, settings, seed, n_sequences
        self.model = build(settings, vocabulary, seed)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, settings.learning_rate, betas=(0.9, 0.98))
        self.steps, self.cpu_seconds = 0, 0.0
        self.curve: list[Any] = []

    @abstractmethod
    def learn(self, rows: Tensor) -> None:
        """Add the gradients of sequences, int64 [B]."""

    @abstractmethod
    def left_out(self, rows: Tensor) -> Tensor:
        """Which sequences the condition leaves out, bool [B]."""

    def train(self, until: int) -> None:
        """Go on until so many steps have been taken in all."""
        started = time.process_time()
        self.model.train()
        while self.steps < until:
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * self.rate(self.steps)
            self.step(self.batch(self.steps))
            self.steps += 1
        self.cpu_seconds += time.process_time() - started

    def step(self, rows: Tensor) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        self.learn(rows)
        self.optimizer.step()

    def rate(self, step: int) -> float:
        """The part of the learning rate: a warm-up, and a cosine down to a tenth."""
        warm_up, done = (step + 1) / self.settings.warm_up, step / self.settings.steps
        return min(1.0, warm_up) * (0.55 + 0.45 * math.cos(math.pi * done))

    def batch(self, step: int) -> Tensor:
        """Which sequences a step sees: one shuffle of all after the other, without what is left out."""
        size = self.settings.batch_size
        epoch, place = divmod(step * size, self._n // size * size)
        rows = self.order(epoch)[place : place + size]
        return rows[~self.left_out(rows)]

    def order(self, epoch: int) -> Tensor:
        """All sequences, shuffled."""
        return torch.randperm(self._n, generator=Generator().manual_seed(1000 * self.seed + epoch))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss of a part of a batch.

        It is divided by the same number in every pass and condition: what a sequence teaches depends on no other.
        """
        found = logits(self.model, tokens).flatten(0, 1)
        total = F.cross_entropy(found, targets.flatten(), reduction="sum", ignore_index=IGNORED)
        return total / (self.settings.batch_size * self.settings.context)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}
