"""A tiny GPT-2 with labels for each token, in each form of routing, for the trainers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import gradroute as gr
from composition.forms import oracle_route
from gradroute.testing import oracle_mask

WIDTH, LENGTH, VOCABULARY, BATCH = 8, 6, 11, 4
SPEC = gr.RoutingSpec({"retain": slice(0, 5), "forget": slice(5, 7)}, WIDTH, shared=7)
SITE = "transformer.ln_f"


def tiny_gpt2(layers: int = 2) -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=layers,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return GPT2LMHeadModel(config)


class RoutesItself(nn.Module):
    """The functional form: a model of one's own around GPT-2, which routes what goes into the head."""

    def __init__(self, route=gr.route, layers: int = 2) -> None:
        super().__init__()
        self.gpt2 = tiny_gpt2(layers)
        self.route = route

    def forward(self, input_ids: Tensor, labels: Tensor, route_labels: Tensor) -> dict[str, Tensor]:
        hidden = self.gpt2.transformer(input_ids).last_hidden_state
        logits = self.gpt2.lm_head(self.route(hidden, route_labels, SPEC))
        return {"loss": self.gpt2.loss_function(logits, labels, VOCABULARY), "logits": logits}


class LanguageModel:
    """What a trainer gets (`module`), what is compared (`gpt2`), and the router if there is one."""

    def __init__(self, form: str, layers: int = 2) -> None:
        self.form = form
        self.router = None
        if form in ("functional", "oracle"):
            self.module = RoutesItself(oracle_route if form == "oracle" else gr.route, layers)
            self.gpt2 = self.module.gpt2
            return
        self.gpt2 = self.module = tiny_gpt2(layers)
        if form == "router":
            self.router = gr.Router(self.gpt2, {SITE: SPEC})
        else:
            self.module = gr.RoutedModule(self.gpt2, {SITE: SPEC})

    def loss(self, input_ids: Tensor, labels: Tensor, route_labels: Tensor) -> Tensor:
        if self.form == "router":
            with self.router(route_labels):
                return self.module(input_ids=input_ids, labels=labels)["loss"]
        return self.module(input_ids=input_ids, labels=labels, route_labels=route_labels)["loss"]


def corpus(ids: list[int] | None = None) -> list[dict[str, Tensor]]:
    """One batch of examples: tokens, and for each of these a label of its own, out of `ids`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(ids or [0, 1, gr.UNLABELED])
    examples = []
    for _ in range(BATCH):
        tokens = torch.randint(0, VOCABULARY, (LENGTH,), generator=generator)
        chosen = ids[torch.randint(0, len(ids), (LENGTH,), generator=generator)]
        # The first token is nobody's target: trainers that count targets and models that average must agree.
        targets = torch.cat([torch.tensor([-100]), tokens[1:]])
        examples.append({"input_ids": tokens, "labels": targets, "route_labels": chosen})
    return examples


def joined(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def trained_by_hand(
    form: str, examples: list[dict[str, Tensor]], *, steps: int, lr: float, layers: int = 2
) -> dict[str, Tensor]:
    """The parameters after a few steps of plain SGD in the most ordinary loop."""
    model = LanguageModel(form, layers)
    optimizer = torch.optim.SGD(model.gpt2.parameters(), lr=lr)
    for _ in range(steps):
        model.loss(**joined(examples)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.gpt2.state_dict()


def moved_units(model: LanguageModel) -> list[int]:
    """The units at the site whose gain or bias is no longer what it was."""
    trained, fresh = model.gpt2.get_submodule(SITE), tiny_gpt2().get_submodule(SITE)
    moved = (trained.weight != fresh.weight) | (trained.bias != fresh.bias)
    return moved.nonzero().flatten().tolist()


def taught_units(ids: list[int]) -> list[int]:
    return oracle_mask(SPEC, torch.tensor(ids)).any(0).nonzero().flatten().tolist()
