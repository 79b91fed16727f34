"""A user's module, type-checked with ``mypy --strict``: it uses every public name, and asserts the types that it gets.

It runs too (the last lines), so that what type checks is what works.
"""

import tempfile
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, assert_type

import torch
from hypothesis.strategies import SearchStrategy
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import TrainingArguments

import gradroute as gr
from gradroute.blocks import block_sites
from gradroute.diagnostics import (
    AuditReport,
    Bypass,
    BypassWarning,
    Estimate,
    Move,
    ParameterGradients,
    PeriodicAudit,
    SiteGradients,
    Slice,
    SpecializationReport,
    Watch,
    WatchReport,
    lightning_callback,
    transformers_callback,
)
from gradroute.errors import (
    LabelError,
    LabelWarning,
    LeakError,
    NotRoutedError,
    RoutingError,
    SiteError,
    SpecError,
    UnroutedWarning,
    UsageError,
)
from gradroute.optim import Isolation, clip_grad_norm_per_route_
from gradroute.surgery import Contracted, ablate_, add_units_, contract, remove_units_
from gradroute.testing import assert_routed, indices, label_tensors, oracle, oracle_mask, routes, specs, tensors
from gradroute.trainers import (
    LabelCollator,
    RoutedCallback,
    RoutedRolloutsMixin,
    RoutedTrainer,
    RoutedTrainerMixin,
)


def some_spec() -> gr.RoutingSpec:
    route = gr.Route([0, 1], weight=0.5, elsewhere=-0.1)
    assert_type(route.units(4), tuple[int, ...])
    assert_type(route.resolved(4), gr.Route)
    assert_type(route.repeat(2, width=4), gr.Route)
    assert_type((route.weight, route.elsewhere), tuple[float, float])
    assert_type(route.index, int | slice | Sequence[int] | Sequence[bool] | Tensor)
    gr.Route(3), gr.Route(slice(0, 2)), gr.Route(range(2)), gr.Route(torch.tensor([0, 1])), gr.Route([True, False])

    assert_type(gr.RoutingSpec.one_per_label(3, unlabeled="none"), gr.RoutingSpec)
    assert_type(gr.RoutingSpec.split({"retain": 2, "forget": 1}, shared=1, unlabeled="shared"), gr.RoutingSpec)
    spec = gr.RoutingSpec({"retain": route, "forget": 2}, 4, shared=3, unlabeled=gr.Route(0))
    assert_type(spec, gr.RoutingSpec)
    assert_type(spec.labels, tuple[Hashable, ...])
    assert_type(spec.routes, Mapping[Hashable, gr.Route])
    assert_type(spec.width, int)
    assert_type(spec.shared, tuple[int, ...])
    assert_type(spec.indices("forget"), tuple[int, ...])
    assert_type(spec.exclusive("forget"), tuple[int, ...])
    assert_type(spec.exclusive(gr.UNTAUGHT, "forget"), tuple[int, ...])
    silent = gr.RoutingSpec.split({"retain": 2, "forget": 1}, silent={"retain": "forget", gr.UNLABELED: ["forget"]})
    assert_type(silent.silent, Mapping[Hashable, tuple[Hashable, ...] | Literal["others"]])
    assert_type(silent.silent_mask(torch.tensor([0, 1])), Tensor)
    assert_type(silent.has_silent, bool)
    gr.RoutingSpec(silent.routes, 3, silent=silent.silent_argument)
    assert_type(gr.RoutingSpec.one_per_label(3, silent="others"), gr.RoutingSpec)
    assert_type(spec.encode(["forget", gr.UNLABELED, ["retain"]][:2]), Tensor)
    assert_type(spec.table, Tensor)
    assert_type(spec.mask(torch.tensor([0, 1])), Tensor)
    assert_type(spec.repeat(2), gr.RoutingSpec)
    assert_type(gr.RoutingSpec.from_dict(spec.to_dict()), gr.RoutingSpec)
    assert_type(spec.integer_keys, bool)
    assert_type(spec.unlabeled == "all", bool)
    return spec


def functional_form(spec: gr.RoutingSpec) -> Tensor:
    x, labels = torch.randn(2, 4, requires_grad=True), torch.tensor([0, gr.UNLABELED])
    assert_type(gr.route(x, labels, spec, dim=-1), Tensor)
    layer: nn.Module = gr.RouteGradient(spec, dim=-1)
    assert isinstance(layer, gr.RouteGradient)
    assert_type(layer.forward(x, labels), Tensor)
    assert_type(layer.spec, gr.RoutingSpec)
    assert_type(layer.dim, int)
    assert_type(layer.extra_repr(), str)
    masked: Tensor = gr.RouteMask.apply(x, spec.mask(labels))
    return masked


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def attached(spec: gr.RoutingSpec) -> None:
    site = gr.Site(spec, on="output", level="parameters", dim=-1, index=None)
    assert_type(site.path, tuple[int | str, ...])
    assert_type(site.spec, gr.RoutingSpec)
    assert_type(site.on, Literal["output", "input"])
    assert_type(site.level, Literal["activations", "parameters"])
    assert_type(site.dim, int)
    assert_type(site.index, int | str | tuple[int | str, ...] | None)
    plain = model()
    router = gr.Router(plain, {"0": [site, gr.Site(spec)], "2": gr.Site(spec, on="input")})
    assert_type(router.sites, Mapping[str, tuple[gr.Site, ...]])
    assert_type(router.labels, Tensor | Mapping[str, Tensor] | None)
    assert_type(router.model, nn.Module)
    labels = torch.tensor([0, 1])
    with router(labels) as entered:
        assert_type(entered, gr.Router)
        plain(torch.randn(2, 3)).sum().backward()
    with router({"0": labels, "2": labels}), router.ablated("forget", "retain"), torch.no_grad():
        plain(torch.randn(2, 3))
    assert_type(router.remove(), None)

    routed = gr.RoutedModule(plain, {"0": spec})
    routed.forward(torch.randn(2, 3), route_labels=labels).sum().backward()
    assert_type(routed.router, gr.Router)
    assert_type(routed.module, nn.Module)


def optimizers(spec: gr.RoutingSpec) -> None:
    plain = model()
    router = gr.Router(plain, {"0": spec})
    optimizer = torch.optim.AdamW(plain.parameters())
    with Isolation(router, optimizer, sites=["0"]) as isolation:
        assert_type(isolation, Isolation)
        with router(torch.tensor([0, 1])):
            plain(torch.randn(2, 3)).sum().backward()
        norms = clip_grad_norm_per_route_(router, max_norm=1.0, norm_type=2.0, error_if_nonfinite=True, sites=["0"])
        assert_type(norms, dict[tuple[Hashable, ...], Tensor])
        optimizer.step()
        assert_type(isolation.discard(), None)
    assert_type(isolation.remove(), None)


def surgery(spec: gr.RoutingSpec) -> None:
    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters())
    added = add_units_(plain[0], plain[2], 2, between=[plain[1]], optimizer=optimizer)
    assert_type(added, slice)
    remove_units_(plain[0], plain[2], added, between=[plain[1]], optimizer=optimizer)
    router = gr.Router(plain, {"0": spec})
    ablate_(router, "forget", example=torch.randn(1, 3), reinit=nn.init.zeros_, generator=torch.Generator())
    smaller = contract(router, "forget", example=(torch.randn(64, 3),), optimizer=optimizer)
    assert_type(smaller, Contracted)
    assert_type(smaller.model, nn.Module)
    assert_type(smaller.optimizer, torch.optim.Optimizer | None)
    assert_type(smaller.kept, Mapping[str, Mapping[int, tuple[int, ...]]])


def transformers(model: nn.Module, spec: gr.RoutingSpec) -> gr.Router:
    sites = block_sites(model, mlp=spec, heads=None)
    assert_type(sites, dict[str, gr.Site])
    return gr.Router(model, sites)


def trainers(spec: gr.RoutingSpec) -> None:
    plain = model()
    router = gr.Router(plain, {"0": spec})
    collator = LabelCollator(lambda examples: {"x": torch.tensor([example["x"] for example in examples])}, {"a": 0})
    collator([{"x": 1.0, "route_labels": "a"}])
    with tempfile.TemporaryDirectory() as folder:
        trainer = RoutedTrainer(plain, TrainingArguments(folder, use_cpu=True), router=router, isolation=["0"])
    assert_type(trainer.router, gr.Router)
    assert_type(trainer.isolation, Isolation | None)
    mixin: RoutedTrainerMixin = trainer
    assert_type(mixin.create_optimizer(), torch.optim.Optimizer)
    # What the trainer itself calls:
    assert callable(mixin.training_step)
    assert callable(mixin.call_model_init)
    assert callable(mixin.evaluate)
    assert callable(mixin.evaluation_loop)
    assert issubclass(RoutedRolloutsMixin, RoutedTrainerMixin)
    callback = RoutedCallback(router, labels_of=lambda batch: batch["labels"])
    assert_type(callback.router, gr.Router)
    callback.on_train_start(None, nn.Sequential(plain))
    callback.on_train_batch_start(None, None, {"labels": torch.tensor([0])}, 0)
    callback.on_train_batch_end(None, None, None, None, 0)
    callback.on_train_epoch_end(None, None)
    callback.on_exception(None, None, RuntimeError())


def audits(spec: gr.RoutingSpec) -> None:
    plain = model()
    router = gr.Router(plain, {"0": spec})
    batch, labels = torch.randn(20, 3), torch.tensor([0, 1]).repeat(10)

    def step(x: Tensor) -> Tensor:
        loss: Tensor = plain(x).square().mean()
        return loss

    report = gr.audit(router, step, batch, labels, allow=["2.weight"])
    assert_type(report, AuditReport)
    report.assert_clean(tolerance=1.0)
    assert_type(report.clean, bool)
    assert_type(report.labels, tuple[Hashable, ...])
    assert_type(report.examples, tuple[int, ...])
    assert_type(report.norms, tuple[float, ...])
    assert_type(report.sites, tuple[SiteGradients, ...])
    assert_type(report.parameters, Mapping[str, ParameterGradients])
    assert_type(report.bypasses, tuple[Bypass, ...])
    assert_type(report.allowed, tuple[Bypass, ...])
    assert_type(report.notes, tuple[str, ...])
    assert_type(report.to_dict(), dict[str, Any])
    assert_type(report.to_markdown(), str)
    assert_type(report.plot(), Figure)
    for found in (*report.bypasses, *report.allowed):
        assert_type((found.label, found.target, found.site, found.advice), tuple[Hashable, str, str, str])
        assert_type(found.share, float)
        assert_type(str(found.kind), str)
    for site in report.sites:
        assert_type((site.name, site.on, site.level), tuple[str, str, str])
        assert_type(site.taught, tuple[tuple[bool, ...], ...])
        assert_type(site.routed, tuple[tuple[float, ...], ...])
        assert_type(site.unrouted, tuple[tuple[float, ...], ...])
    assert_type(report.parameters["0.bias"].routed, tuple[float, ...])
    assert_type(report.parameters["0.bias"].unrouted, tuple[float, ...])

    periodic = PeriodicAudit(router, step, every=10, examples=2, overhead=0.1, tolerance=1.0)
    assert_type(periodic(batch, labels), AuditReport | None)
    assert_type(periodic.report, AuditReport | None)
    lightning_callback(periodic, lambda batch: (batch["x"], batch["label"]))
    transformers_callback(periodic, batch, labels)


def watched(spec: gr.RoutingSpec) -> None:
    plain = model()
    router = gr.Router(plain, {"0": spec})
    optimizer = torch.optim.AdamW(plain.parameters())
    with gr.watch(plain, optimizer, router) as watcher:
        assert_type(watcher, Watch)
        with router(torch.tensor([0, 0])):
            plain(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    assert_type(watcher.close(), None)
    report = watcher.report
    assert_type(report, WatchReport)
    report.assert_clean(tolerance=1e6)
    assert_type(report.clean, bool)
    assert_type(report.step, int)
    assert_type(report.moves, tuple[Move, ...])
    assert_type((report.held, report.notes), tuple[tuple[str, ...], tuple[str, ...]])
    assert_type(report.to_dict(), dict[str, Any])
    assert_type(report.to_markdown(), str)
    for move in report.moves:
        assert_type((move.target, move.advice), tuple[str, str])
        assert_type(move.units, tuple[int, ...])
        assert_type((move.moved, move.relative), tuple[float, float])
        causes: Sequence[str] = move.causes
        assert causes


def specialized() -> None:
    plain = nn.Linear(3, 2)
    router = gr.Router(plain, {"": gr.RoutingSpec.one_per_label(2)})
    batch, labels = torch.randn(20, 3), torch.tensor([0, 1]).repeat(10)
    report = gr.specialization(
        router, lambda x: plain(x).square().mean(), batch, labels, site="", targets=batch, folds=3, draws=10, seed=1
    )
    assert_type(report, SpecializationReport)
    assert_type(report.site, str)
    assert_type(report.labels, tuple[Hashable, ...])
    assert_type(report.examples, tuple[int, ...])
    assert_type(report.activation, tuple[tuple[float, ...], ...])
    assert_type((report.accuracy, report.placebo_accuracy), tuple[Estimate, Estimate])
    assert_type((report.accuracy.value, report.accuracy.low, report.accuracy.high), tuple[float, float, float])
    assert_type(report.loss, tuple[float, ...])
    assert_type(report.ablated_loss, tuple[tuple[float, ...] | None, ...])
    assert_type(report.to_dict(), dict[str, Any])
    assert_type(report.to_markdown(), str)
    assert_type(report.plot(), Figure)
    assert_type(report.slices, tuple[Slice, ...])
    part = report.slices[0]
    assert_type((part.label, part.units), tuple[Hashable, tuple[int, ...]])
    assert_type((part.probe, part.probe_without, part.placebo), tuple[Estimate, Estimate, Estimate])
    assert_type((part.decoder, part.decoder_without), tuple[Estimate | None, Estimate | None])


def tests_of_users(spec: gr.RoutingSpec) -> None:
    x, labels = torch.randn(2, 4), torch.tensor([0, gr.UNLABELED])
    assert_type(oracle(x, labels, spec, dim=-1), Tensor)
    assert_type(oracle_mask(spec, labels), Tensor)
    assert_routed(model(), {"0": spec}, torch.randn(2, 3), labels, rtol=1e-3, atol=1e-4)
    assert_type(indices(4), SearchStrategy[Any])
    assert_type(routes(4, hard=True), SearchStrategy[gr.Route])
    assert_type(specs(width=4, hard=True, max_labels=3), SearchStrategy[gr.RoutingSpec])
    assert_type(label_tensors(spec, (8, 5), kind="integer"), SearchStrategy[Tensor])
    assert_type(tensors((2, 3), dtype=torch.float64), SearchStrategy[Tensor])


def errors() -> None:
    kinds: list[type[gr.RoutingError]] = [
        LabelError,
        RoutingError,
        SiteError,
        SpecError,
        UsageError,
        LeakError,
        NotRoutedError,
    ]
    value_errors: list[type[ValueError]] = [*kinds]
    failed_tests: list[type[AssertionError]] = [LeakError, NotRoutedError]
    warnings: list[type[UserWarning]] = [
        UnroutedWarning,
        gr.UnroutedWarning,
        BypassWarning,
        gr.LabelWarning,
        LabelWarning,
    ]
    assert len(value_errors) == 7
    assert len(failed_tests) == 2
    assert len(warnings) == 3


def main() -> None:
    spec = some_spec()
    functional_form(spec)
    attached(spec)
    optimizers(spec)
    surgery(spec)
    trainers(spec)
    audits(spec)
    watched(spec)
    specialized()
    tests_of_users(spec)
    errors()


if __name__ == "__main__":
    main()
