import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from fake_text import modules
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

import gradroute as gr
from common.gpt2 import IGNORED, logits, token_losses
from common.verses import load
from language.config import CONDITIONS, FORGET, PERFECT, RETAIN, ROUTED, TWIN, Condition, Settings
from language.detect import token_odds
from language.measure import bypasses, measured, probe
from language.model import forget, sites, smaller
from language.runs import errs_in
from language.tokens import Corpus, Sequences, corpus
from language.train import Trainer

TINY = Settings(
    vocabulary=300,
    context=8,
    layers=2,
    width=8,
    heads=2,
    neurons=16,
    block_heads=1,
    block_neurons=4,
    steps=6,
    batch_size=8,
    warm_up=2,
    held_out=3,
    test_sequences=16,
    saved_every=2,
)
ALL_LABELED = replace(TINY, labeled=1.0, english_labeled=1.0)
BY_NAME = {each.name: each for each in CONDITIONS}
TWO = BY_NAME["two-passes"]


@cache
def texts() -> Corpus:
    with TemporaryDirectory() as folder:
        return corpus(load(Path(folder), modules(Path(folder))), TINY)


def trainer(condition: Condition, settings: Settings = TINY) -> Trainer:
    return Trainer(condition, settings, texts().train, texts().tokenizer.get_vocab_size(), seed=0)


def trained(condition: Condition, settings: Settings = TINY) -> Trainer:
    found = trainer(condition, settings)
    found.train(settings.steps)
    return found


def in_block(found: Trainer) -> dict[str, Tensor]:
    """For each parameter, which entries belong to the block: written by hand, from the shapes of GPT-2."""
    settings, masks = found.settings, {}
    trunk = settings.neurons - settings.block_neurons
    head = settings.width // settings.heads
    kept = settings.width - settings.block_heads * head
    for name, parameter in found.model.named_parameters():
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        if "c_fc" in name:
            mask[..., trunk:] = True
        elif "mlp.c_proj.weight" in name:
            mask[trunk:] = True
        elif "c_attn" in name:
            mask.unflatten(-1, (3, settings.width))[..., kept:] = True
        elif "attn.c_proj.weight" in name:
            mask[kept:] = True
        masks[name] = mask
    return masks


def changed(one: Trainer, other: Trainer) -> Mapping[str, Tensor]:
    others = dict(other.model.named_parameters())
    return {name: parameter != others[name] for name, parameter in one.model.named_parameters()}


def test_with_all_labeled_the_trunk_is_bit_for_bit_one_that_never_saw_spanish() -> None:
    routed, filtered = trained(TWO, ALL_LABELED), trained(replace(TWO, filtered="all"), ALL_LABELED)
    fresh = trainer(TWO, ALL_LABELED)
    different, moved = changed(routed, filtered), changed(routed, fresh)
    taught = 0
    for name, block in in_block(routed).items():
        assert not (different[name] & ~block).any(), name
        taught += int((different[name] & block).sum())
        assert moved[name].any() or not routed.model.get_parameter(name).requires_grad, name
    assert taught > 0


def test_in_one_pass_with_a_silent_block_the_same_holds_up_to_rounding() -> None:
    routed, filtered = trained(ROUTED, ALL_LABELED), trained(replace(ROUTED, filtered="all"), ALL_LABELED)
    others = dict(filtered.model.named_parameters())
    for name, block in in_block(routed).items():
        torch.testing.assert_close(routed.model.get_parameter(name)[~block], others[name][~block], rtol=1e-3, atol=1e-4)
    taught = [(changed(routed, filtered)[name] & block).any() for name, block in in_block(routed).items()]
    assert any(taught)


@pytest.mark.parametrize("name", ["embeddings-shared", "block-on", "activations"])
def test_rows_that_leave_something_out_do_not_have_that_trunk(name: str) -> None:
    condition = BY_NAME[name]
    routed, filtered = trained(condition, ALL_LABELED), trained(replace(condition, filtered="all"), ALL_LABELED)
    different = changed(routed, filtered)
    assert any((different[name] & ~block).any() for name, block in in_block(routed).items())


def test_a_model_without_a_block_is_the_trunk_of_the_routed_one_with_all_labeled() -> None:
    """What the block's units would cost is told from what routing costs by such a model."""
    routed, small = trained(TWO, ALL_LABELED), trained(BY_NAME["trunk-filter"], ALL_LABELED)
    different, moved = changed(routed, small), changed(small, trainer(TWO, ALL_LABELED))
    for name, block in in_block(routed).items():
        assert not (different[name] & ~block).any(), name
        assert not (moved[name] & block).any(), name
    everything = trained(BY_NAME["trunk-twin"])
    moved = changed(everything, trainer(BY_NAME["trunk-twin"]))
    assert not any((moved[name] & block).any() for name, block in in_block(everything).items())
    results = measured(everything, texts())
    # With the block as it was drawn, which it has never met, it is no better.
    assert results["en_loss_after"] != results["en_loss_before"]


def test_one_pass_with_a_silent_block_learns_what_two_passes_do() -> None:
    steps = {}
    for condition in (ROUTED, TWO):
        found = trainer(condition)
        found.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        found.step(found.batch(0))
        steps[condition.name] = [p.grad for p in found.model.parameters() if p.requires_grad]
    for one, two in zip(*steps.values(), strict=True):
        assert one is not None
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
        assert two.any()


def test_spanish_that_is_labeled_teaches_the_block_alone_and_english_all_but_the_block() -> None:
    for condition in (ROUTED, TWO):
        found = trainer(condition, ALL_LABELED)
        for label in (RETAIN, FORGET):
            rows = (found.known == label).nonzero().flatten()[:4]
            found.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
            found.step(rows)
            for name, block in in_block(found).items():
                gradient = found.model.get_parameter(name).grad
                closed = block if label == RETAIN else ~block
                assert gradient is None or not gradient[closed].any(), name
            assert sum(int(p.grad.count_nonzero()) for p in found.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("condition", [TWIN, ROUTED, TWO], ids=lambda each: each.name)
def test_what_a_sequence_teaches_depends_on_no_other(condition: Condition) -> None:
    found = trainer(condition)
    found.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    learning = [parameter for parameter in found.model.parameters() if parameter.requires_grad]

    def gradients(rows: Tensor) -> list[Tensor]:
        found.step(rows)
        return [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in learning]

    rows = found.batch(0)
    parts = (gradients(part) for part in rows.split([3, len(rows) - 3]))
    for whole, one, other in zip(gradients(rows), *parts, strict=True):
        torch.testing.assert_close(whole, one + other, rtol=1e-4, atol=1e-6)


def test_a_filtered_model_sees_the_english_that_the_twin_does() -> None:
    twin, perfect, by_labels = (trainer(BY_NAME[name]) for name in ("twin", "perfect-filter", "filter-by-labels"))
    for step in range(2 * TINY.steps):
        rows = twin.batch(step)
        assert len(rows) == TINY.batch_size
        assert perfect.batch(step).tolist() == [row for row in rows.tolist() if twin.data.language[row] == RETAIN]
        assert by_labels.batch(step).tolist() == [row for row in rows.tolist() if twin.known[row] != FORGET]


def test_a_detector_is_told_by_labels_alone_and_leaves_out_what_they_are_like() -> None:
    found = trainer(BY_NAME["detector-filter"])
    known = trainer(ROUTED).known
    labeled = known != gr.UNLABELED
    assert torch.equal(found.known[labeled], known[labeled])
    assert set(found.known[~labeled].tolist()) == {FORGET, gr.UNLABELED}
    # The languages of these texts share no word, so that not one sequence is hard to tell.
    assert errs_in(found) == (0, 0)
    assert errs_in(trainer(BY_NAME["filter-by-labels"])) == (int((texts().train.language == FORGET)[~labeled].sum()), 0)
    perfect = trainer(PERFECT)
    for step in range(TINY.steps):
        assert torch.equal(found.batch(step), perfect.batch(step))


@given(st.integers(0, 99))
def test_what_speaks_for_spanish_is_the_ratio_of_frequencies(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, (6, 4), generator=generator)
    known = torch.tensor([RETAIN, FORGET, gr.UNLABELED] * 2)
    odds = token_odds(Sequences(tokens, known), known)
    for token in range(int(tokens.max()) + 1):
        shares = [
            (sum(row.count(token) for row in tokens[known == label].tolist()) + 1) / (8 + int(tokens.max()) + 1)
            for label in (RETAIN, FORGET)
        ]
        assert float(odds[token]) == pytest.approx(math.log(shares[1] / shares[0]), abs=1e-5)
    swapped = token_odds(Sequences(tokens, known), torch.where(known == gr.UNLABELED, known, 1 - known))
    torch.testing.assert_close(swapped, -odds)


def test_tokens_that_are_filtered_are_read_and_not_predicted() -> None:
    found = trainer(BY_NAME["token-filter"])
    rows = torch.cat([found.batch(step) for step in range(4)])
    assert not (found.known[rows] == FORGET).any()
    targets, tokens = found.targets(rows), found.data.tokens[rows, 1:]
    kept = targets == tokens
    assert (kept | (targets == IGNORED)).all()
    assert torch.equal(kept, (found.odds[tokens] <= 0) | (found.known[rows] == RETAIN)[:, None])
    assert 0 < kept[found.known[rows] == gr.UNLABELED].double().mean() < 1

    found.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
    found.step(rows)
    gradient = found.model.transformer.wte.weight.grad.clone()
    found.model.zero_grad()
    likely = logits(found.model, found.data.tokens[rows, :-1]).log_softmax(-1)
    losses = -likely.gather(-1, tokens[..., None])[..., 0]
    (losses[kept].sum() / (TINY.batch_size * TINY.context)).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.model.transformer.wte.weight.grad, gradient)


def test_every_sequence_comes_once_in_a_round() -> None:
    found = trainer(TWIN)
    a_round = len(found.known) // TINY.batch_size
    rows = torch.cat([found.batch(step) for step in range(a_round)])
    assert len(rows.unique()) == len(rows) == a_round * TINY.batch_size
    assert not torch.equal(found.batch(0), found.batch(a_round))


@pytest.mark.parametrize("condition", [TWIN, ROUTED, TWO], ids=lambda each: each.name)
def test_interrupted_and_resumed_is_bit_identical_to_uninterrupted(condition: Condition, tmp_path: Path) -> None:
    whole, first, second = (trainer(condition) for _ in range(3))
    whole.train(6)
    first.train(3)
    torch.save(first.state(), tmp_path / "state.pt")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.steps == 3
    second.train(6)
    assert not any(different.any() for different in changed(whole, second).values())


def test_a_state_of_another_run_is_not_taken_up() -> None:
    first = trained(ROUTED)
    for other in (trainer(TWO), trainer(ROUTED, replace(TINY, labeled=0.25))):
        other.restore(first.state())
        assert other.steps == 0


def test_what_is_left_is_a_smaller_plain_checkpoint_that_computes_what_the_ablated_model_does(tmp_path: Path) -> None:
    found = trained(ROUTED)
    tokens = texts().test.of(RETAIN)[:, :-1]
    found.model.eval()  # type: ignore[no-untyped-call]
    assert found.router is not None
    with torch.no_grad():
        whole = logits(found.model, tokens)
        with found.router.ablated("forget"):
            expected = logits(found.model, tokens)
    assert not torch.allclose(whole, expected, atol=1e-4)
    found.router.remove()
    forget(found.model, TINY)
    left = smaller(found.model, TINY)
    left.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, expected, rtol=1e-4, atol=1e-5)
    for block in loaded.transformer.h:
        assert block.mlp.c_fc.weight.shape == (TINY.width, TINY.neurons - TINY.block_neurons)
    fewer = sum(p.numel() for p in found.model.parameters()) - sum(p.numel() for p in loaded.parameters())
    assert fewer == TINY.layers * TINY.block_neurons * (2 * TINY.width + 1)


def test_measures_are_of_the_ablated_model_and_relearning_teaches() -> None:
    found = trained(ROUTED)
    assert found.router is not None
    es = texts().test.of(FORGET)
    with found.router.ablated("forget"), torch.no_grad():
        nats = token_losses(found.model, es).sum() / texts().n_bytes[es[:, 1:]].sum()
    results = measured(found, texts())
    assert results["es_loss_after"] == pytest.approx(float(nats), rel=1e-4)
    assert results["es_loss_before"] != results["es_loss_after"]
    assert results["relearning"][-1] < results["relearning"][0]


def test_an_audit_names_what_the_block_reads_of_the_trunk_and_no_more() -> None:
    found = {(each["label"], each["target"], each["kind"]) for each in bypasses(trained(ROUTED))}
    readers = [f"transformer.h.{i}.{name}.weight" for i in range(TINY.layers) for name in ("attn.c_attn", "mlp.c_fc")]
    assert found == {("forget", name, "reader") for name in readers}
    shared = bypasses(trained(BY_NAME["embeddings-shared"]))
    assert shared == []
    late = {each["target"] for each in bypasses(trained(BY_NAME["activations"]))}
    assert any("c_proj" in name for name in late)


def test_a_probe_tells_languages_by_what_is_said_of_them() -> None:
    found = trained(TWIN)
    before = found.model.state_dict()
    assert 0.4 < probe(found.model, texts()) <= 1
    with torch.no_grad():  # all tokens alike
        found.model.transformer.wte.weight.zero_()
    assert probe(found.model, texts()) == pytest.approx(0.5, abs=0.02)
    with torch.no_grad():  # one direction says it
        language = torch.zeros(len(before["transformer.wte.weight"]))
        spanish = texts().train.of(FORGET).flatten()
        language[spanish] = 1.0
        language[texts().train.of(RETAIN).flatten()] = -1.0
        found.model.transformer.wte.weight[:, 0] = 100 * language
    assert probe(found.model, texts()) > 0.7


def test_a_model_without_routing_is_measured_as_it_is() -> None:
    results = measured(trained(TWIN), texts())
    assert results["es_loss_before"] == results["es_loss_after"]
    assert results["en_loss_before"] == results["en_loss_after"]


def test_every_parameter_that_learns_is_routed() -> None:
    found = trainer(ROUTED)
    routed = {name for site in gr.Router(found.model, sites(found.model, TINY, ROUTED)).sites for name in [site]}
    for name, parameter in found.model.named_parameters():
        assert name.rpartition(".")[0] in routed or not parameter.requires_grad, name
