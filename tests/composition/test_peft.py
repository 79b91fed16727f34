"""peft: two LoRA adapters are active at once, and each example of a mixed batch teaches the one of its label."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import gradroute as gr
from composition.forms import Expected, assert_same, oracle_route
from composition.language import corpus, joined, tiny_gpt2
from gradroute.testing._oracle import closed_entries

# peft reads a property of transformers by the name that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ADAPTERS = ("retain", "forget")
LINEAR_WIDTH = 24  # GPT-2's attention projects to queries, keys and values at once: three times the embedding
LABELS = torch.tensor([1, 0, 0, 1])


def only(adapter: str) -> gr.RoutingSpec:
    """The spec of one adapter's output: all of it for its own label, nothing of it for the other."""
    return gr.RoutingSpec({name: slice(None) if name == adapter else [] for name in ADAPTERS}, LINEAR_WIDTH)


SITES = {f"*.c_attn.lora_B.{adapter}": only(adapter) for adapter in ADAPTERS}


def two_adapters() -> torch.nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = get_peft_model(tiny_gpt2(), config, adapter_name=ADAPTERS[0])
    model.add_adapter(ADAPTERS[1], config)
    model.base_model.set_adapter(list(ADAPTERS))
    return model


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def one_batch() -> dict[str, torch.Tensor]:
    tokens = joined(corpus())
    return {"input_ids": tokens["input_ids"], "labels": tokens["labels"]}


def oracle_gradients(labels: torch.Tensor) -> Expected:
    model = two_adapters()
    for name, module in model.named_modules():
        for adapter in ADAPTERS:
            if name.endswith(f"c_attn.lora_B.{adapter}"):
                spec = only(adapter)
                module.register_forward_hook(lambda _, __, z, spec=spec: oracle_route(z, labels, spec))
    loss = model(**one_batch()).loss
    loss.backward(retain_graph=True)
    gradients = {name: parameter.grad for name, parameter in trainable(model).items()}
    return Expected(gradients, closed_entries(loss, model))


def loss(form: str, model: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
    if form == "routed_module":
        return gr.RoutedModule(model, SITES)(**one_batch(), route_labels=labels).loss
    with gr.Router(model, SITES)(labels):
        return model(**one_batch()).loss


FORMS = pytest.mark.parametrize("form", ["router", "routed_module"])


@FORMS
@pytest.mark.supports("peft LoRA: an adapter per label in one mixed batch")
def test_each_adapter_learns_from_its_own_examples_of_a_mixed_batch(form: str) -> None:
    model = two_adapters()
    loss(form, model, LABELS).backward()
    assert_same({name: parameter.grad for name, parameter in trainable(model).items()}, oracle_gradients(LABELS))


@FORMS
@pytest.mark.parametrize("label", [0, 1], ids=ADAPTERS)
def test_a_batch_of_one_label_moves_only_its_adapter(form: str, label: int) -> None:
    model = two_adapters()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    loss(form, model, torch.full((len(LABELS),), label)).backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in trainable(model) if f".{ADAPTERS[label]}." in name}
