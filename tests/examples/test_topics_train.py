from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from fake_text import modules
from fake_wordnet import wordnet
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gradroute as gr
from common.gpt2 import loss_per_byte
from common.verses import load
from common.wordnet import read_glosses
from topics.config import CORE, MODULES, REST, ROUTED, ROWS, TOPICS, TWIN, Condition, Settings
from topics.measure import errors, key, measured, subsets
from topics.text import Corpus, Sequences, corpus, detected, known_topics
from topics.train import Trainer

TINY = Settings(
    vocabulary=300,
    context=8,
    layers=2,
    width=16,
    heads=8,
    neurons=24,
    module_neurons=4,
    steps=6,
    batch_size=16,
    warm_up=2,
    held_out=3,
    per_topic=60,
    test_sequences=12,
    saved_every=2,
)
ALL_LABELED = replace(TINY, labeled=1.0)


@cache
def texts() -> Corpus:
    with TemporaryDirectory() as name:
        folder = Path(name)
        glosses = list(read_glosses(folder / wordnet(folder).folder))
        return corpus(glosses, load(folder, modules(folder)), TINY)


def trainer(condition: Condition, settings: Settings = TINY) -> Trainer:
    return Trainer(condition, settings, texts().train, texts().tokenizer.get_vocab_size(), seed=0)


EVERYBODY = -1  #: In place of a topic, where all of them teach.


def owners(found: Trainer) -> dict[str, Tensor]:
    """For each parameter the topic whose data teach each entry, if they are labeled: from the shapes of GPT-2."""
    settings, own = found.settings, {}
    neurons, heads = torch.zeros(settings.neurons).long(), torch.zeros(settings.heads).long()
    for place, number in enumerate(range(len(TOPICS) - 1, 0, -1)):  # the last topic's units are the last
        stop = settings.neurons - place * settings.module_neurons
        neurons[stop - settings.module_neurons : stop] = number
        heads[settings.heads - 1 - place] = number
    channels = heads.repeat_interleave(settings.width // settings.heads)
    for name, parameter in found.model.named_parameters():
        own[name] = torch.zeros_like(parameter, dtype=torch.long)
        if not found.condition.rest and not ("attn." in name or "mlp." in name):
            own[name][...] = EVERYBODY
        if "c_fc" in name:
            own[name][...] = neurons
        elif "mlp.c_proj.weight" in name:
            own[name][...] = neurons[:, None]
        elif "c_attn" in name:
            own[name][...] = channels.repeat(3)
        elif "attn.c_proj.weight" in name:
            own[name][...] = channels[:, None]
    return own


def gradients(found: Trainer, rows: Tensor) -> dict[str, Tensor]:
    found.model.zero_grad()
    found.learn(rows)
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in found.model.named_parameters()
    }


@pytest.mark.parametrize("condition", [ROUTED, REST], ids=lambda each: each.name)
@pytest.mark.parametrize("topic", TOPICS)
def test_what_is_labeled_teaches_no_module_but_its_own(topic: str, condition: Condition) -> None:
    found, number = trainer(condition, ALL_LABELED), TOPICS.index(topic)
    rows = (found.known == number).nonzero().flatten()[:4]
    assert len(rows) == 4
    learned = gradients(found, rows)
    for name, owner in owners(found).items():
        own = (owner == number) | (owner == EVERYBODY)
        assert not learned[name][~own].any(), name
        if own.any() and found.model.get_parameter(name).requires_grad:
            assert learned[name][own].any(), name


@pytest.mark.parametrize("topic", TOPICS)
def test_a_labeled_topic_is_learned_as_if_there_were_no_other_module(topic: str) -> None:
    """Others are silent for it: whatever their weights, its gradients are the same."""
    found, number = trainer(ROUTED, ALL_LABELED), TOPICS.index(topic)
    rows = (found.known == number).nonzero().flatten()[:4]
    before = gradients(found, rows)
    with torch.no_grad():
        for name, owner in owners(found).items():
            others = (owner > 0) & (owner != number)
            found.model.get_parameter(name)[others] += 0.1
    after = gradients(found, rows)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-5)


def test_what_nobody_labeled_teaches_all_modules() -> None:
    found = trainer(ROUTED)
    rows = (found.known == gr.UNLABELED).nonzero().flatten()[:8]
    learned = gradients(found, rows)
    for name, owner in owners(found).items():
        for number in owner.unique():
            assert learned[name][owner == number].any() or not found.model.get_parameter(name).requires_grad, name


def test_filters_leave_out_what_they_are_told_and_nothing_else() -> None:
    twin = trainer(TWIN)
    for row in ("perfect-filter", "filter-by-labels", "detector-filter"):
        for condition in ROWS[row]:
            found = trainer(condition)
            out = {TOPICS.index(topic) for topic in condition.without}
            for step in range(4):
                rows = twin.batch(step)
                assert len(rows) == TINY.batch_size
                if row == "perfect-filter":
                    expected = [i for i in rows.tolist() if int(twin.data.topic[i]) not in out]
                    assert found.batch(step).tolist() == expected
                elif row == "filter-by-labels":
                    expected = [i for i in rows.tolist() if int(twin.known[i]) not in out]
                    assert found.batch(step).tolist() == expected
                else:  # at least what is labeled, and no more than the detector says
                    said = detected(twin.data, twin.known)
                    kept = set(found.batch(step).tolist())
                    for i in rows.tolist():
                        label = int(twin.known[i])
                        assert (i not in kept) == ((int(said[i]) if label == gr.UNLABELED else label) in out)


def test_rows_are_whole() -> None:
    single = {row for row, models in ROWS.items() if len(models) == 1}
    assert single == {TWIN.name, ROUTED.name, REST.name}
    assert all(len(models) == len(MODULES) + 1 for row, models in ROWS.items() if row not in single)
    for models in ROWS.values():
        assert len({each.without for each in models}) == len(models)


def test_training_on_nothing_teaches_nothing() -> None:
    found = trainer(replace(TWIN, name="none", without=TOPICS))
    before = {name: p.detach().clone() for name, p in found.model.named_parameters()}
    found.train(3)
    assert all(torch.equal(before[name], p) for name, p in found.model.named_parameters())


@pytest.mark.parametrize("condition", [TWIN, ROUTED, REST], ids=lambda each: each.name)
def test_interrupted_and_resumed_is_bit_identical_to_uninterrupted(condition: Condition, tmp_path: Path) -> None:
    whole, first, second = (trainer(condition) for _ in range(3))
    whole.train(6)
    first.train(3)
    torch.save(first.state(), tmp_path / "state.pt")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.steps == 3
    second.train(6)
    for (name, one), other in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_each_set_of_modules_is_measured_as_a_model_whose_weights_are_zero_there() -> None:
    found = trainer(ROUTED)
    found.train(TINY.steps)
    own, state = owners(found), {name: p.detach().clone() for name, p in found.model.named_parameters()}
    results = measured(found, texts())
    assert list(results["losses"]) == [key(subset) for subset in subsets()]
    assert len(results["losses"]) == 2 ** len(MODULES)
    for subset in (("matter",), ("living", "Spanish"), MODULES):
        numbers = torch.tensor([TOPICS.index(topic) for topic in subset])
        with torch.no_grad():
            for name, p in found.model.named_parameters():
                p.copy_(torch.where(torch.isin(own[name], numbers), 0, state[name]))
        for topic in (CORE, "Spanish"):
            expected = loss_per_byte(found.model, texts().test.of(topic), texts().n_bytes)
            assert results["losses"][key(subset)][topic] == pytest.approx(expected, rel=1e-4)
    assert set(results["relearning"]) == set(MODULES)
    for curve in results["relearning"].values():
        assert curve[-1] < curve[0]


def test_filters_are_measured_without_what_they_left_out_and_relearn_that() -> None:
    single, everything = ROWS["perfect-filter"][0], ROWS["perfect-filter"][-1]
    results = measured(trainer(single), texts())
    assert list(results["losses"]) == [single.without[0]]
    assert list(results["losses"][single.without[0]]) == list(TOPICS)
    assert list(results["relearning"]) == list(single.without)
    assert measured(trainer(everything), texts())["relearning"] == {}
    assert set(measured(trainer(TWIN), texts())["relearning"]) == set(MODULES)


def test_as_many_sequences_of_each_topic_and_none_of_them_held_out() -> None:
    train, test = texts().train, texts().test
    for topic in TOPICS:
        assert 0 < len(train.of(topic)) <= TINY.per_topic
        assert 0 < len(test.of(topic)) <= TINY.test_sequences
    assert len(train.of("English")) == len(train.of("Spanish")) == TINY.per_topic
    words = {"core": "somebody", "living": "beast", "matter": "bread", "English": "king", "Spanish": "señor"}
    for data in (train, test):
        decoded = {topic: texts().tokenizer.decode(data.of(topic).flatten().tolist()) for topic in TOPICS}
        for topic, word in words.items():
            assert [other for other, text in decoded.items() if word in text] == [topic]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 9))
def test_labels_are_true_and_as_many_of_each_topic_as_asked_for(topics: list[int], labeled: float, seed: int) -> None:
    topic = torch.tensor(topics)
    known = known_topics(topic, Settings(labeled=labeled), seed)
    assert torch.equal(known[known != gr.UNLABELED], topic[known != gr.UNLABELED])
    for number in range(len(TOPICS)):
        assert int((known == number).sum()) == round(labeled * topics.count(number))


@given(st.integers(0, 99))
def test_a_detector_takes_a_sequence_for_the_topic_that_makes_it_most_likely(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, known = torch.randint(6, (12, 4), generator=generator), torch.tensor([0, 1, 2, 3, 4, gr.UNLABELED] * 2)
    found, n = detected(Sequences(tokens, known), known), int(tokens.max()) + 1
    for row, taken in zip(tokens.tolist(), found.tolist(), strict=True):
        likely = []
        for number in range(len(TOPICS)):
            seen = tokens[known == number].flatten().tolist()
            product = 1.0
            for token in row:
                product *= (seen.count(token) + 1) / (len(seen) + n)
            likely.append(product)
        assert likely[taken] == pytest.approx(max(likely))


def test_errors_of_the_detector_are_those_on_what_nobody_labeled() -> None:
    found = trainer(ROUTED)
    said, true = detected(found.data, found.known), found.data.topic
    wrong = [(int(t), int(d)) for t, d, k in zip(true, said, found.known, strict=True) if k == gr.UNLABELED and t != d]
    for number, (topic, counts) in enumerate(errors(found).items()):
        assert counts == {
            "sequences": len(found.data.of(topic)),
            "missed": sum(t == number for t, _ in wrong),
            "wrong": sum(d == number for _, d in wrong),
        }
    assert len(wrong) < len(true) / 20  # these texts share no word
    for counts in errors(trainer(ROUTED, ALL_LABELED)).values():
        assert (counts["missed"], counts["wrong"]) == (0, 0)
