"""TRL's `SFTTrainer` and `GRPOTrainer`, made routed ones by the mixins, train what loops by hand train."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from torch.utils.data import SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainingArguments

import gradroute as gr
from gradroute.errors import LabelError, UsageError
from gradroute.trainers import RoutedRolloutsMixin, RoutedTrainer, RoutedTrainerMixin

REASON = "TRL is not installed: pip install trl"
trl = pytest.importorskip("trl", reason=REASON)
datasets = pytest.importorskip("datasets", reason=REASON)

# Of TRL itself and of what it is made of.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
WORDS = ["<pad>", "<end>", *"abcdefghijk"]
SPEC = gr.RoutingSpec({"retain": slice(0, 5), "forget": slice(5, 7)}, 8, shared=7)
NEURONS = gr.RoutingSpec({"retain": slice(0, 24), "forget": slice(24, 30)}, 32, shared=slice(30, 32))
SITES = {"transformer.ln_f": SPEC, "transformer.h.*.mlp.c_fc": gr.Site(NEURONS, level="parameters")}
LR, STEPS = 0.5, 3
PLAIN = {
    "max_steps": STEPS,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "optim": "sgd",
    "learning_rate": LR,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}


class RoutedSFTTrainer(RoutedTrainerMixin, trl.SFTTrainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


class RoutedGRPOTrainer(RoutedRolloutsMixin, trl.GRPOTrainer):
    """Keeps what it trains on: the batch of each micro-step, and the labels that are in flight in it."""

    def __init__(self, *args, **kwargs):
        self.trained_on = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        if model.training:
            assert "route_labels" not in inputs
            kept = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
            self.trained_on.append((kept, self.router.labels.clone()))
        return super()._compute_loss(model, inputs)


def tiny_gpt2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"n_positions": 24, "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": len(WORDS)}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=1, **sizes, **dropout))
        model.loss_type = "ForCausalLM"  # as in a checkpoint of the Hub: the first token is nobody's target
        return model


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


# ------------------------------------------------------------------ SFT

TEXTS = ["a b c d", "e f g", "h i j k a b", "c d", "k j i h", "b a", "f f e", "g d c b a"]
TOPICS = ["forget", "retain", "retain", "forget", "forget", "retain", "forget", "retain"]


def sft_by_hand(rows, labels, accumulation):
    """Rows of token ids; their labels, one for each or one for each token."""
    model = tiny_gpt2().train()
    router = gr.Router(model, SITES)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    micro = [(rows[first : first + 2], labels[first : first + 2]) for first in range(0, len(rows), 2)] * STEPS
    for step in range(STEPS):
        parts = micro[step * accumulation : (step + 1) * accumulation]
        count = sum(len(row) - 1 for part, _ in parts for row in part)
        for part, their in parts:
            for row, label in zip(part, their, strict=True):  # one by one: no padding to think of
                ids = torch.tensor([row])
                with router(torch.tensor([label])):
                    logits = model(input_ids=ids).logits[0, :-1]
                    (functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def sft(path, tokenizer, data, *, given=None, **options):
    args = trl.SFTConfig(str(path), **{**PLAIN, "per_device_train_batch_size": 2, **options})
    data = datasets.Dataset.from_dict(data)
    given = {"model": tiny_gpt2(), "sites": SITES, **(given or {})}
    return RoutedSFTTrainer(args=args, train_dataset=data, processing_class=tokenizer, **given)


@pytest.mark.supports("TRL `SFTTrainer` with `RoutedTrainerMixin`", forms=["router"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("per_token", [False, True], ids=["per example", "per token"])
def test_sft_trains_what_a_loop_by_hand_trains(accumulation, checkpointing, per_token, tokenizer, tmp_path) -> None:
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    ids = [SPEC.labels.index(topic) for topic in TOPICS]
    data, labels = {"text": TEXTS, "route_labels": TOPICS}, ids
    if per_token:
        labels = [[(number + position) % 3 - 1 for position in range(len(row))] for number, row in enumerate(rows)]
        data = {"input_ids": rows, "route_labels": labels}
    options = {"gradient_accumulation_steps": accumulation, "gradient_checkpointing": checkpointing}
    trainer = sft(tmp_path, tokenizer, data, **options)
    assert list(trainer.train_dataset["input_ids"]) == rows
    trainer.train()
    assert_same(trainer.model.state_dict(), sft_by_hand(rows, labels, accumulation))


def test_sft_without_labels_packed_or_flattened_is_refused(tokenizer, tmp_path) -> None:
    with pytest.raises(UsageError, match="no route_labels"):
        sft(tmp_path, tokenizer, {"text": TEXTS}).train()
    data = {"text": TEXTS, "route_labels": TOPICS}
    with pytest.raises(UsageError, match="packing=True"):
        sft(tmp_path, tokenizer, data, packing=True, max_length=16)
    with pytest.raises(LabelError, match="padding_free"):
        sft(tmp_path, tokenizer, data, padding_free=True, max_length=None).train()
    cut = {"input_ids": [[2, 3, 4, 5]] * 4, "route_labels": [[0, 0, 1, 1]] * 4}
    with pytest.raises(LabelError, match="4 route_labels for 3 tokens"):
        sft(tmp_path, tokenizer, cut, max_length=3).train()


def test_sft_evaluates_ablated_and_saves_the_plain_model(tokenizer, tmp_path) -> None:
    data = {"text": TEXTS, "route_labels": TOPICS}
    evaluated = datasets.Dataset.from_dict({"text": TEXTS})
    given = {"eval_dataset": evaluated, "evaluate_ablated": ["forget"], "isolation": True}
    trainer = sft(tmp_path, tokenizer, data, given=given, save_strategy="steps", save_steps=STEPS)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_ablated_forget_loss"] != metrics["eval_loss"]
    assert metrics["eval_ablated_forget_entropy"] != trainer.state.log_history[-1]["eval_entropy"]
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    assert_same(loaded.state_dict(), trainer.model.state_dict())


def test_a_data_set_keeps_its_column_of_labels_and_no_other(tmp_path) -> None:
    """transformers' own trainer, which drops what a model's forward does not name."""
    columns = {
        "input_ids": [[2, 3, 4]] * 4,
        "labels": [[2, 3, 4]] * 4,
        "source": [1] * 4,
        "route_labels": ["forget"] * 4,
    }
    args = TrainingArguments(str(tmp_path), **{**PLAIN, "per_device_train_batch_size": 4})
    trainer = RoutedTrainer(
        model=tiny_gpt2(), sites=SITES, args=args, train_dataset=datasets.Dataset.from_dict(columns)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "route_labels"}
    assert batch["route_labels"].tolist() == [1] * 4
    trainer.train()
    moved = trainer.model.transformer.ln_f.bias != tiny_gpt2().transformer.ln_f.bias
    assert moved.nonzero().flatten().tolist() == [5, 6, 7]


# ------------------------------------------------------------------ GRPO

PROMPTS = ["a b c d", "e f g", "h i j k a b", "c d", "k j", "b a c", "f e", "g h i"]


def reward(completions, **_):
    return [text.count("a") - text.count("b") + 0.1 * len(text) for text in completions]


def label_of(completion) -> int:
    """Of the overseer: whether the first token is one of the first half of the words."""
    return int(int(completion[0]) < len(WORDS) // 2)


def label_rollouts(completion_ids, **_):
    return [SPEC.labels[label_of(each)] for each in completion_ids]


def grpo(path, tokenizer, *, labels=None, given=None, **options):
    common = {**PLAIN, "num_generations": 2, "max_completion_length": 6, "loss_type": "grpo", "seed": 3}
    args = trl.GRPOConfig(str(path), **{**common, "per_device_train_batch_size": 4, **options})
    columns = {"prompt": PROMPTS} if labels is None else {"prompt": PROMPTS, "route_labels": labels}
    given = {"model": tiny_gpt2(), "sites": SITES, **(given or {})}
    data = datasets.Dataset.from_dict(columns)
    return RoutedGRPOTrainer(reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer, **given)


def grpo_by_hand(trained_on, accumulation):
    """Policy gradients of the rollouts that the trainer made; each step is on-policy, so that all ratios are 1."""
    model = tiny_gpt2().train()
    router = gr.Router(model, SITES)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for number, (batch, labels) in enumerate(trained_on, start=1):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        length, mask = batch["completion_ids"].shape[1], batch["completion_mask"]
        with router(labels):
            logits = model(input_ids=ids, attention_mask=seen).logits[:, -length - 1 : -1]
            chosen = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
            means = (chosen * mask).sum(1) / mask.sum(1)
            (-(means * batch["advantages"]).mean() / accumulation).backward()
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.supports("TRL `GRPOTrainer` with `RoutedRolloutsMixin`", forms=["router"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_grpo_routes_each_rollout_by_its_own_label(accumulation, checkpointing, tokenizer, tmp_path) -> None:
    """Rollouts are shuffled and cut up between their generation and their training."""
    options = {"gradient_accumulation_steps": accumulation, "gradient_checkpointing": checkpointing}
    trainer = grpo(tmp_path, tokenizer, given={"label_rollouts": label_rollouts}, **options)
    trainer.train()
    assert len(trainer.trained_on) == STEPS * accumulation
    labels = torch.cat([labels for _, labels in trainer.trained_on])
    assert labels.tolist() == [label_of(row) for batch, _ in trainer.trained_on for row in batch["completion_ids"]]
    assert 0 < labels.sum() < len(labels)
    assert any(batch["advantages"].any() for batch, _ in trainer.trained_on)
    assert_same(trainer.model.state_dict(), grpo_by_hand(trainer.trained_on, accumulation))


def test_grpo_takes_the_label_of_the_prompt_from_its_column(tokenizer, tmp_path) -> None:
    of_prompt = {tuple(tokenizer(prompt)["input_ids"]): number % 2 for number, prompt in enumerate(PROMPTS)}
    labels = [SPEC.labels[number % 2] for number in range(len(PROMPTS))]
    trainer = grpo(tmp_path, tokenizer, labels=labels, num_iterations=2, gradient_accumulation_steps=2)
    trainer.train()
    for batch, in_flight in trainer.trained_on:
        prompts = [
            tuple(row[mask.bool()].tolist())
            for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        assert in_flight.tolist() == [of_prompt[prompt] for prompt in prompts]
    assert len({tuple(in_flight.tolist()) for _, in_flight in trainer.trained_on}) > 1


def test_grpo_without_labels_is_refused(tokenizer, tmp_path) -> None:
    with pytest.raises(UsageError, match="no route_labels"):
        grpo(tmp_path, tokenizer).train()
    with pytest.raises(LabelError, match="have no route_labels"):
        grpo(tmp_path, tokenizer, labels=[0, None] * 4, per_device_train_batch_size=16).train()
    with pytest.raises(LabelError, match="1 labels for 4 rollouts"):
        grpo(tmp_path, tokenizer, given={"label_rollouts": lambda **_: [0]}).train()
