"""`RoutedTrainerMixin`: nothing is trained unrouted, nothing reaches the model, and evaluation can be ablated."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)
from transformers.trainer_utils import EvalPrediction

import gradroute as gr
from composition.forms import WARNINGS_OF_TORCH
from composition.language import SITE, SPEC, joined, tiny_gpt2
from gradroute.diagnostics import PeriodicAudit, transformers_callback
from gradroute.errors import LabelError, SiteError, SpecError, UsageError
from gradroute.trainers import LabelCollator, RoutedTrainer, RoutedTrainerMixin
from unit.trainers.by_hand import (
    SITES,
    STEPS,
    InOrder,
    arguments,
    assert_same,
    examples,
    loss_of,
    trained_by_hand,
    trainer_of,
)

pytestmark = WARNINGS_OF_TORCH
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def without_labels(data):
    return [{key: value for key, value in example.items() if key != "route_labels"} for example in data]


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# ------------------------------------------------------------------ labels


def test_a_batch_without_labels_is_refused_before_anything_is_trained(tmp_path):
    trainer = trainer_of(tmp_path, without_labels(examples()))
    before = state_of(trainer.model)
    with pytest.raises(UsageError, match=r"no route_labels.*missing_labels='unlabeled'.*'input_ids', 'labels'"):
        trainer.train()
    assert_same(trainer.model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.router.labels is None


def test_a_batch_that_loses_its_labels_later_is_refused_too(tmp_path):
    data = examples()
    trainer = trainer_of(tmp_path, data[:4] + without_labels(data[4:]))
    with pytest.raises(UsageError, match="no route_labels"):
        trainer.train()
    trainer = trainer_of(tmp_path, data[:3] + without_labels(data[3:]))
    with pytest.raises(LabelError, match="1 of the 2 examples"):
        trainer.train()


def test_data_without_labels_count_as_unlabeled_only_where_that_is_said(tmp_path):
    trainer = trainer_of(tmp_path, without_labels(examples()), trainer={"missing_labels": "unlabeled"})
    trainer.train()
    assert_same(trainer.model.state_dict(), trained_by_hand(examples(), routed=False), **CLOSE)
    assert not trainer.isolation


def test_unlabeled_data_of_sites_with_different_labels(tmp_path):
    sites = {
        SITE: SPEC,
        "transformer.h.1.mlp": gr.RoutingSpec({"x": slice(0, 4), "y": slice(4, 8)}, 8, unlabeled="none"),
    }
    trainer = trainer_of(tmp_path, without_labels(examples()), trainer={"missing_labels": "unlabeled", "sites": sites})
    before = state_of(trainer.model)
    trainer.train()
    # The second site lets nothing through to the layers in it.
    stopped = "transformer.h.1.mlp.c_fc.weight"
    assert torch.equal(trainer.model.state_dict()[stopped], before[stopped])
    assert not torch.equal(trainer.model.state_dict()["transformer.ln_f.bias"], before["transformer.ln_f.bias"])


def test_a_mapping_of_labels_for_sites_with_different_labels(tmp_path):
    other = gr.RoutingSpec({"x": slice(0, 4), "y": slice(4, 8)}, 8)
    data = [
        {**example, "route_labels": {SITE: example["route_labels"], "transformer.h.1.mlp": 1}} for example in examples()
    ]
    trainer = trainer_of(tmp_path, data, trainer={"sites": {SITE: SPEC, "transformer.h.1.mlp": other}})
    in_flight = []
    trainer.model.register_forward_pre_hook(lambda *_: in_flight.append(trainer.router.labels))
    trainer.train()
    assert [labels["transformer.h.1.mlp"].tolist() for labels in in_flight] == [[1, 1]] * STEPS
    first = torch.stack([example["route_labels"] for example in examples()[:2]])
    assert torch.equal(in_flight[0][SITE], first)


def test_the_model_never_gets_the_labels_and_the_block_ends_after_backward(tmp_path):
    seen = []
    trainer = trainer_of(tmp_path, examples(), trainer={"eval_dataset": examples()})
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((set(kwargs), trainer.router.labels is not None)), with_kwargs=True
    )
    in_backward = []
    trainer.model.transformer.wpe.weight.register_hook(
        lambda grad: in_backward.append(trainer.router.labels is not None)
    )
    trainer.train()
    assert in_backward == [True] * STEPS
    assert [routed for _, routed in seen] == [True] * STEPS
    trainer.evaluate()
    assert not any(routed for _, routed in seen[STEPS:])
    assert not any("route_labels" in names for names, _ in seen)
    assert trainer.router.labels is None


def test_unused_columns_still_go_and_labels_stay(tmp_path):
    data = [{**example, "source": torch.tensor(3)} for example in examples()]
    trainer = trainer_of(tmp_path, data)
    assert trainer.args.remove_unused_columns
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "route_labels"}
    assert torch.equal(batch["route_labels"], joined(data[:2])["route_labels"])


class Padding:
    """A tokenizer's part in `DataCollatorWithPadding`: it fails at columns of which it does not know the padding."""

    padding_side = "right"
    model_input_names = ("input_ids", "attention_mask")

    def pad(self, features, **_):
        assert "route_labels" not in features[0]
        return features


def test_labels_go_past_a_collator_of_ones_own(tmp_path):
    def collator(features):
        assert "route_labels" not in features[0]
        return joined(features)

    trainer = trainer_of(tmp_path, examples(), trainer={"data_collator": collator})
    trainer.train()
    assert_same(trainer.model.state_dict(), trained_by_hand(examples()), **CLOSE)
    padding = DataCollatorWithPadding(Padding())
    assert LabelCollator(padding).tokenizer is padding.tokenizer


def test_a_trainer_that_passes_the_labels_by_is_refused(tmp_path):
    class PassesThemBy(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            inputs.pop("route_labels")
            loss = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    class Routed(RoutedTrainerMixin, PassesThemBy):
        pass

    trainer = Routed(model=tiny_gpt2(), sites=SITES, args=arguments(tmp_path), train_dataset=examples())
    with pytest.warns(gr.UnroutedWarning), pytest.raises(UsageError, match="Routed did not call _prepare_inputs"):
        trainer.train()


# ------------------------------------------------------------------ the model


def test_either_a_router_or_sites(tmp_path):
    model = tiny_gpt2()
    router = gr.Router(model, SITES)
    args = arguments(tmp_path)
    for given in ({}, {"router": router, "sites": SITES}):
        with pytest.raises(UsageError, match="either router=.* or sites="):
            RoutedTrainer(model=model, args=args, **given)
    with pytest.raises(UsageError, match="give sites= in its place"):
        RoutedTrainer(model_init=tiny_gpt2, args=args, router=router)
    with pytest.raises(UsageError, match="attached to another model than the GPT2LMHeadModel"):
        RoutedTrainer(model=tiny_gpt2(), args=args, router=router)
    with pytest.raises(UsageError, match=r"model=routed.module, router=routed.router"):
        RoutedTrainer(gr.RoutedModule(tiny_gpt2(), SITES), args, sites=SITES)
    with pytest.raises(UsageError, match="'raise' or 'unlabeled'; got 'ignore'"):
        RoutedTrainer(model=model, args=args, router=router, missing_labels="ignore")
    with pytest.raises(SiteError, match="no module"):
        RoutedTrainer(model=model, args=args, sites={"transformer.ln_g": SPEC})


def test_a_model_that_is_replaced_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, examples())
    trainer.model = trainer.model_wrapped = tiny_gpt2()
    with pytest.raises(UsageError, match="attached to another model"):
        trainer.train()


def test_each_model_of_model_init_gets_a_router(tmp_path):
    given = {"model": None, "model_init": partial(tiny_gpt2, 2), "isolation": True}
    trainer = trainer_of(tmp_path, examples(), trainer=given)
    first = trainer.router
    trainer.train()
    assert trainer.router is not first
    assert trainer.router.model is trainer.model
    assert_same(trainer.model.state_dict(), trained_by_hand(examples()), **CLOSE)


def test_replicas_and_cut_up_sequences_are_refused(tmp_path):
    args = arguments(tmp_path)
    assert args.n_gpu <= 1
    args._n_gpu = 2
    with pytest.raises(UsageError, match="2 GPUs and would use nn.DataParallel.*torchrun"):
        RoutedTrainer(model=tiny_gpt2(), args=args, sites=SITES)
    args._n_gpu = 1
    args.packing = True
    with pytest.raises(UsageError, match="packing=True"):
        RoutedTrainer(model=tiny_gpt2(), args=args, sites=SITES)
    args.packing = False

    class Cut(Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.accelerator.state.parallelism_config = type(
                "Config", (), {"cp_size": 2, "sp_size": 1, "sp_backend": None}
            )

    class Routed(RoutedTrainerMixin, Cut):
        pass

    with pytest.raises(UsageError, match="context or sequence parallelism"):
        Routed(model=tiny_gpt2(), args=args, sites=SITES)


def tiny_t5():
    torch.manual_seed(0)
    sizes = {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 11,
        "dropout_rate": 0.0,
    }
    return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **sizes))


def test_another_trainer_is_routed_by_the_mixin(tmp_path):
    class Routed(RoutedTrainerMixin, Seq2SeqTrainer):
        def _get_train_sampler(self, *args):
            return SequentialSampler(self.train_dataset)

    data, site = examples(per_example=True), "encoder.final_layer_norm"
    options = {"max_steps": 1, "per_device_train_batch_size": len(data), "optim": "sgd", "learning_rate": 0.5}
    args = Seq2SeqTrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", max_grad_norm=0.0, **options
    )
    trainer = Routed(model=tiny_t5(), sites={site: SPEC}, args=args, train_dataset=data)
    trainer.train()

    model, batch = tiny_t5(), joined(data)
    with gr.Router(model, {site: SPEC})(batch.pop("route_labels")):
        model(**batch).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert_same(trainer.model.state_dict(), model.state_dict(), **CLOSE)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")  # old peft, of models without a hub
def test_an_adapter_of_peft_is_routed_and_saved_as_such(tmp_path):
    def adapted():
        model = tiny_gpt2()
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(target_modules=["c_fc"], r=4, lora_dropout=0.0))

    sites = {
        "*.lora_A.default": gr.Site(
            gr.RoutingSpec({"retain": slice(0, 2), "forget": slice(2, 4)}, 4), level="parameters"
        )
    }
    trainer = trainer_of(tmp_path, examples([1]), trainer={"model": adapted(), "sites": sites})
    torch.nn.init.normal_(trainer.model.base_model.model.transformer.h[0].mlp.c_fc.lora_B["default"].weight)
    before = state_of(trainer.model)
    trainer.train()
    name = "base_model.model.transformer.h.0.mlp.c_fc.lora_A.default.weight"
    moved = (trainer.model.state_dict()[name] != before[name]).any(1)
    assert moved.tolist() == [False, False, True, True]
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "adapter")
    assert torch.equal(again.state_dict()[name], trainer.model.state_dict()[name])


# ------------------------------------------------------------------ evaluation


def mean_loss(model, data):
    batch = joined(data)
    with torch.no_grad():
        return (loss_of(model, batch) / batch["labels"][:, 1:].ne(-100).sum()).item()


def test_evaluation_is_unrouted_and_once_more_ablated(tmp_path):
    given = {"eval_dataset": without_labels(examples()), "evaluate_ablated": ["forget", ("forget", "retain")]}
    trainer = trainer_of(tmp_path, examples(), trainer=given, per_device_eval_batch_size=8)
    trainer.train()
    trainer.model.eval()
    plain = mean_loss(trainer.model, examples())
    with trainer.router.ablated("forget"):
        ablated = mean_loss(trainer.model, examples())
    with trainer.router.ablated("forget", "retain"):
        both = mean_loss(trainer.model, examples())
    metrics = trainer.evaluate()
    found = [metrics[f"eval_{name}loss"] for name in ("", "ablated_forget_", "ablated_forget_retain_")]
    assert found == pytest.approx([plain, ablated, both])
    assert len(set(found)) == 3
    assert trainer.state.log_history[-1]["eval_ablated_forget_loss"] == pytest.approx(ablated)
    predicted = trainer.predict(examples())
    assert not any("ablated" in key for key in predicted.metrics)


def test_metrics_of_ones_own_are_computed_ablated_too(tmp_path):
    def compute_metrics(predicted: EvalPrediction) -> dict[str, float]:
        return {"largest": float(predicted.predictions.max())}

    given = {"eval_dataset": examples(), "evaluate_ablated": ["forget"], "compute_metrics": compute_metrics}
    metrics = trainer_of(tmp_path, examples(), trainer=given).evaluate()
    assert metrics["eval_largest"] != metrics["eval_ablated_forget_largest"]


def test_each_of_several_data_sets_is_evaluated_ablated(tmp_path):
    sets = {"one": examples()[:4], "two": examples()[4:]}
    trainer = trainer_of(tmp_path, examples(), trainer={"eval_dataset": sets, "evaluate_ablated": ["forget"]})
    metrics = trainer.evaluate()
    for name in sets:
        assert metrics[f"eval_{name}_loss"] != metrics[f"eval_{name}_ablated_forget_loss"]
    assert not any("ablated_forget_ablated" in key for key in metrics)


def test_what_cannot_be_ablated_is_refused_at_once(tmp_path):
    with pytest.raises(SpecError, match="'forgot' is not a label"):
        trainer_of(tmp_path, examples(), trainer={"evaluate_ablated": ["forgot"]})
    with pytest.raises(UsageError, match=r"write \['forget'\]"):
        trainer_of(tmp_path, examples(), trainer={"evaluate_ablated": "forget"})


def test_an_audit_as_callback_sees_the_routed_model_and_changes_nothing(tmp_path):
    model = tiny_gpt2()
    router = gr.Router(model, SITES)
    batch = joined(examples([0, 1]))
    labels = batch.pop("route_labels")
    check = PeriodicAudit(
        router, lambda part: loss_of(model, part), every=1, overhead=1.0, allow=["reader", "upstream"]
    )
    given = {
        "model": model,
        "sites": None,
        "router": router,
        "callbacks": [transformers_callback(check, batch, labels)],
    }
    trainer = trainer_of(tmp_path, examples(), trainer=given)
    with pytest.warns(gr.diagnostics.BypassWarning):
        trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "audit/leak" in entry] == [1, 2, 3]
    assert_same(model.state_dict(), trained_by_hand(examples()), **CLOSE)


def test_what_a_trainer_collects_on_the_side_is_apart_for_the_ablated_model(tmp_path):
    """As TRL's do."""

    class Collects(InOrder):
        def __init__(self, *args, **kwargs):
            self._metrics = {"train": {}, "eval": {}}
            super().__init__(*args, **kwargs)

        def prediction_step(self, *args, **kwargs):
            found = super().prediction_step(*args, **kwargs)
            self._metrics["eval"].setdefault("seen", []).append(found[0].item())
            return found

    trainer = Collects(
        model=tiny_gpt2(),
        sites=SITES,
        args=arguments(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=examples(),
        evaluate_ablated=["forget"],
    )
    metrics = trainer.evaluate()
    assert metrics["eval_ablated_forget_seen"] == pytest.approx(metrics["eval_ablated_forget_loss"])
    assert sum(trainer._metrics["eval"]["seen"]) / 2 == pytest.approx(metrics["eval_loss"])
