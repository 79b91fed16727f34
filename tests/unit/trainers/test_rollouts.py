"""`RoutedRolloutsMixin`: a label goes with its rollout through shuffling, cutting up and training on it twice.

On a stand-in with the steps of TRL's `GRPOTrainer`, which `composition/test_trl.py` tries itself.
"""

import pytest
import torch
from transformers import Trainer

from composition.forms import WARNINGS_OF_TORCH
from composition.language import LENGTH, SPEC, VOCABULARY, tiny_gpt2
from gradroute.errors import LabelError, UsageError
from gradroute.trainers import RoutedRolloutsMixin
from unit.trainers.by_hand import SITES, arguments, assert_same

pytestmark = WARNINGS_OF_TORCH
PROMPTS = [[number] for number in range(8)]


class MakesItsOwnExamples(Trainer):
    """Makes a rollout of each prompt, shuffles them, and trains on each half of them, twice."""

    def __init__(self, *args, **kwargs):
        self.made, self.steps, self.trained_on = [], 0, []
        super().__init__(*args, **kwargs)
        self.data_collator = list

    def _prepare_inputs(self, examples):
        if not self.model.training:
            return self._generate_and_score_completions(examples)
        if self.steps % 4 == 0:
            made = self._generate_and_score_completions(examples)
            order = torch.randperm(len(examples))
            half = len(examples) // 2
            self.made = [
                {key: value[order][part] for key, value in made.items()} for part in (slice(half), slice(half, None))
            ]
        self.steps += 1
        return self.made[(self.steps - 1) % 2]

    def _generate_and_score_completions(self, examples):
        assert self.router.labels is None  # nothing is in flight while it generates
        prompts = [example["prompt"] for example in examples]
        ids = torch.randint(0, VOCABULARY, (len(prompts), LENGTH - 1))
        scores = self._calculate_rewards(examples, prompts, ids.tolist(), ids.tolist())
        return {"prompt_ids": torch.tensor(prompts), "completion_ids": ids, "scores": scores}

    def _calculate_rewards(self, examples, prompts, completions, completion_ids):
        return torch.ones(len(prompts))

    def compute_loss(self, model, inputs, *args, **kwargs):
        assert inputs.keys() == {"prompt_ids", "completion_ids", "scores"}
        self.trained_on.append((inputs["prompt_ids"][:, 0], inputs["completion_ids"], self.router.labels))
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        return model(input_ids=ids, labels=ids).loss

    def prediction_step(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None


class Routed(RoutedRolloutsMixin, MakesItsOwnExamples):
    pass


def trainer_of(path, columns, **given):
    data = [
        {"prompt": prompt, **{key: value[row] for key, value in columns.items()}} for row, prompt in enumerate(PROMPTS)
    ]
    args = arguments(path, per_device_train_batch_size=len(PROMPTS), max_steps=4, remove_unused_columns=False)
    return Routed(model=tiny_gpt2(), sites=SITES, args=args, train_dataset=data, eval_dataset=data, **given)


def test_a_column_labels_the_rollouts_of_its_prompt(tmp_path):
    column = [SPEC.labels[number % 2] for number in range(len(PROMPTS))]
    trainer = trainer_of(tmp_path, {"route_labels": column})
    trainer.train()
    assert len(trainer.trained_on) == 4
    for prompts, _, labels in trainer.trained_on:
        assert labels.tolist() == [int(prompt) % 2 for prompt in prompts]
    assert len({tuple(labels.tolist()) for _, _, labels in trainer.trained_on}) > 1


def test_a_function_labels_each_rollout(tmp_path):
    def label_rollouts(prompts, completions, completion_ids, source):
        assert source == ["web"] * len(prompts)
        return [SPEC.labels[sum(ids) % 2] for ids in completion_ids]

    columns = {"source": ["web"] * len(PROMPTS), "route_labels": [0] * len(PROMPTS)}
    trainer = trainer_of(tmp_path, columns, label_rollouts=label_rollouts)
    trainer.train()
    for _, ids, labels in trainer.trained_on:
        assert labels.tolist() == [int(row.sum()) % 2 for row in ids]
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.evaluate()  # makes rollouts too, and routes none
    assert trainer.trained_on[-1][2] is None
    assert_same(trainer.model.state_dict(), trained, rtol=0, atol=0)


def test_rollouts_without_a_label_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no route_labels"):
        trainer_of(tmp_path, {}).train()
    with pytest.raises(LabelError, match="4 of the 8 examples"):
        trainer_of(tmp_path, {"route_labels": [0, None] * 4}, missing_labels="unlabeled").train()
    with pytest.raises(LabelError, match="2 labels for 8 rollouts"):
        trainer_of(tmp_path, {}, label_rollouts=lambda **_: [0, 1]).train()
    with pytest.raises(LabelError, match="'x' is no label"):
        trainer_of(tmp_path, {}, label_rollouts=lambda **_: ["x"] * 8).train()
    with pytest.raises(LabelError, match="different shapes"):
        trainer_of(tmp_path, {}, label_rollouts=lambda **_: [0] * 7 + [[0, 1]]).train()
