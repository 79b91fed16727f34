"""`RoutedTrainerMixin`: for `transformers.Trainer` and its subclasses."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..optim import Isolation
from ..router import RoutedModule, Router
from ..router._attachment import Labels, attachment_of
from ..router._router import Sites
from ..spec import UNLABELED
from ._label_collator import COLUMN, LabelCollator

__all__ = ["RoutedTrainerMixin"]


class RoutedTrainerMixin:
    """Makes a trainer out of `transformers.Trainer`, or of a subclass of it, that trains inside of the router's block.

    Write it first among the bases: ``class RoutedSFTTrainer(RoutedTrainerMixin, SFTTrainer): ...``.

    Data have a column ``route_labels``: for each example one label, or one label for each token (see `LabelCollator`).
    Each micro-batch is routed by its own, forward and backward pass and what activation checkpointing recomputes. The
    model never gets them. A batch without them raises. Evaluation is not routed.

    The trainer's model is the plain one. So checkpoints, `save_model` and what is pushed are those of the plain model,
    and resuming needs nothing.

    Args:
        *args: The trainer's own.
        router: A router of the model.
        sites: In place of `router`: the sites of one that is made when the trainer has its model, as for `Router`. With
            `model_init`, each new model gets a router of its own.
        missing_labels: What a training batch without ``route_labels`` does: "raise", or count as "unlabeled".
        isolation: Whether units that a step does not teach are held by a `gradroute.optim.Isolation` of the trainer's
            optimizer; or the names of the sites whose units are.
        evaluate_ablated: Labels that `evaluate` switches off, one after the other, for a second run over its data. Its
            metrics are called ``eval_ablated_forget_loss`` and so on. A tuple stands for several labels at once.
        **kwargs: The trainer's own.

    Attributes:
        router: The router.
        isolation: The isolation of the optimizer; None before there is one.

    Raises:
        UsageError: Neither a router nor sites are given, or both; the router is attached to another model; the model is
            a `RoutedModule`; or the trainer would use `nn.DataParallel`, cut sequences up for several devices, or pack
            them.
        SiteError: As `Router`.
        SpecError: No site knows one of the labels to ablate.

    Examples:
        >>> import gradroute as gr
        >>> from transformers import Seq2SeqTrainer
        >>> class RoutedSeq2SeqTrainer(gr.trainers.RoutedTrainerMixin, Seq2SeqTrainer):
        ...     pass
    """

    def __init__(
        self,
        *args: Any,
        router: Router | None = None,
        sites: Sites | None = None,
        missing_labels: Literal["raise", "unlabeled"] = "raise",
        isolation: bool | Collection[str] = False,
        evaluate_ablated: Collection[Hashable] = (),
        **kwargs: Any,
    ) -> None:
        if (router is None) == (sites is None):
            raise UsageError("give either router=gr.Router(model, ...) or sites={...}, and not both.")
        if router is not None and kwargs.get("model_init") is not None:
            raise UsageError("model_init makes new models, which a router knows nothing of: give sites= in its place.")
        if missing_labels not in ("raise", "unlabeled"):
            raise UsageError(f"missing_labels must be 'raise' or 'unlabeled'; got {missing_labels!r}.")
        if isinstance(evaluate_ablated, str):
            raise UsageError(f"evaluate_ablated must be a sequence of labels; write [{evaluate_ablated!r}].")
        model = kwargs.get("model", args[0] if args else None)
        if isinstance(model, RoutedModule):
            raise UsageError(
                "model must be the plain one: for a RoutedModule, model=routed.module, router=routed.router."
            )
        self.router: Router = router  # type: ignore[assignment]  # with sites, not before there is a model
        self.isolation: Isolation | None = None
        self._sites = sites
        self._missing_labels = missing_labels
        self._isolates = isolation
        self._evaluate_ablated = tuple(evaluate_ablated)
        self._evaluates = False
        self._open_block: contextlib.ExitStack | None = None  # of the training step that is on
        self._is_routed = False
        self._trained: nn.Module | None = None  # the wrapped model of which it is known that the router is in it
        self._parent.__init__(*args, **kwargs)
        self._refuse_what_is_cut_up()
        if self.router is None:
            self.router = Router(self._trainer.model, sites)
        self._check_router_of(self._trainer.model)
        for labels in self._evaluate_ablated:
            self._without(labels)  # they are labels
        self._wrap_collator()

    # ------------------------------------------------------------------ labels

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The trainer's own step, forward and backward, in the block of the batch's labels.

        Raises:
            UsageError: The batch has no labels, or the router is attached to another model.
        """
        if model is not self._trained:
            self._check_router_of(model)
            self._trained = model
        with contextlib.ExitStack() as block:
            self._open_block, self._is_routed = block, False
            try:
                loss: Tensor = self._parent.training_step(model, inputs, *args, **kwargs)
            finally:
                self._open_block = None
        if not self._is_routed:
            raise UsageError(
                f"the training_step of {type(self).__name__} did not call _prepare_inputs, in which its labels are "
                "found: the step was not routed. Call it, or open `with self.router(labels):` in a trainer of your own."
            )
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The batch without its labels. In a training step these are put in flight until the step is over.

        Here, because it is where every trainer ends up with what the model sees: on its device, and for trainers that
        make their own examples with these made.
        """
        prepared = self._parent._prepare_inputs(inputs)
        if self._open_block is not None and not self._is_routed:
            self._open_block.enter_context(self.router(self._labels_of(prepared)))
            self._is_routed = True
        # A new one: trainers may keep theirs, to train on it once more.
        return {key: prepared[key] for key in prepared if key != COLUMN}

    def _labels_of(self, batch: Mapping[str, Any]) -> Labels:
        labels: Labels | None = batch.get(COLUMN)
        if labels is not None:
            return labels
        if self._missing_labels == "raise":
            raise UsageError(
                f"a training batch has no {COLUMN}: nothing would be routed. Give the training data a column "
                f"{COLUMN!r}, with one label for each example or for each token; or pass missing_labels='unlabeled'. "
                f"The batch has {sorted(batch)}."
            )
        first = next(value for value in batch.values() if isinstance(value, Tensor) and value.ndim)
        unlabeled = torch.full((len(first),), UNLABELED, device=first.device)
        attachment = attachment_of(self.router)
        return {group.pattern: unlabeled for group in attachment.groups} if attachment.disagreeing else unlabeled

    def _wrap_collator(self) -> None:
        self._trainer.data_collator = LabelCollator(self._trainer.data_collator, self._ids)

    @property
    def _ids(self) -> dict[str, int]:
        """The ids of labels by their names; none where one name may mean different ids at different sites."""
        specs = {group.spec.labels: group.spec for group in attachment_of(self.router).groups}
        spec = next(iter(specs.values()))
        names = [label for label in spec.labels if isinstance(label, str)]
        return dict(zip(names, spec.encode(names).tolist(), strict=True)) if len(specs) == 1 and names else {}

    def _set_signature_columns_if_needed(self) -> None:
        self._parent._set_signature_columns_if_needed()
        if COLUMN not in self._trainer._signature_columns:
            self._trainer._signature_columns = [*self._trainer._signature_columns, COLUMN]

    # ------------------------------------------------------------------ the model and its optimizer

    def call_model_init(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The trainer's own: a new model; it gets a router of its own.

        Raises:
            SiteError: As `Router`.
        """
        model: nn.Module = self._parent.call_model_init(*args, **kwargs)
        self.router, self.isolation = Router(model, self._sites), None  # type: ignore[arg-type]
        return model

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The trainer's own, isolated where that was asked for.

        Raises:
            SiteError: As `gradroute.optim.Isolation`.
            UsageError: As `gradroute.optim.Isolation`.
        """
        optimizer: torch.optim.Optimizer = self._parent.create_optimizer(*args, **kwargs)
        if self._isolates is not False and self.isolation is None:
            # A later call of train() finds it wrapped.
            sites = None if self._isolates is True else self._isolates
            self.isolation = Isolation(self.router, getattr(optimizer, "optimizer", optimizer), sites=sites)
        return optimizer

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The trainer's own, not routed; with metrics of the ablated model where these were asked for."""
        self._evaluates = True
        try:
            metrics: dict[str, float] = self._parent.evaluate(*args, **kwargs)
        finally:
            self._evaluates = False
        return metrics

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The trainer's own; in `evaluate` once more for what is to be ablated."""
        output = self._parent.evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        for labels in self._evaluate_ablated if self._evaluates else ():
            prefix = "_".join([metric_key_prefix, "ablated", *map(str, _several(labels))])
            with self._without(labels), self._metrics_of_its_own(prefix) as metrics:
                again = self._parent.evaluation_loop(dataloader, *args, metric_key_prefix=prefix, **kwargs)
            output.metrics.update(again.metrics, **metrics)
        return output

    @contextlib.contextmanager
    def _metrics_of_its_own(self, prefix: str) -> Iterator[dict[str, float]]:
        """TRL's trainers collect metrics on the side: those of the block are apart from those before it."""
        collected: dict[str, list[float]] = getattr(self, "_metrics", {}).get("eval", {})
        before, found = dict(collected), dict[str, float]()
        collected.clear()
        try:
            yield found
            found.update({f"{prefix}_{key}": sum(each) / len(each) for key, each in collected.items() if each})
        finally:
            collected.clear()
            collected.update(before)

    def _without(self, labels: Hashable) -> contextlib.AbstractContextManager[Any]:
        return self.router.ablated(*_several(labels))

    # ------------------------------------------------------------------ what would not be routed

    def _check_router_of(self, model: nn.Module) -> None:
        if all(module is not self.router.model for module in model.modules()):
            raise UsageError(
                f"the router is attached to another model than the {type(model).__name__} that is trained: it would "
                "not be routed. Make the router of this model, or give sites= in place of router=."
            )

    def _refuse_what_is_cut_up(self) -> None:
        args = self._trainer.args
        if args.n_gpu > 1:
            raise UsageError(
                f"the trainer found {args.n_gpu} GPUs and would use nn.DataParallel, whose threads share one router. "
                "Start one process for each by torchrun or `accelerate launch`, or show it one by CUDA_VISIBLE_DEVICES."
            )
        if getattr(args, "packing", False):
            raise UsageError("packing=True joins examples without their labels: nothing would be routed. Turn it off.")
        config = getattr(self._trainer.accelerator, "parallelism_config", None)
        sizes = [getattr(config, f"{kind}_size", 1) or 1 for kind in ("cp", "sp")]
        if max(sizes) > 1:
            raise UsageError(
                "the trainer would cut sequences up for several devices (context or sequence parallelism), but not "
                "their labels. Use data parallelism."
            )

    @property
    def _parent(self) -> Any:
        return super()

    @property
    def _trainer(self) -> Any:
        return self


def _several(labels: Hashable) -> tuple[Hashable, ...]:
    return labels if isinstance(labels, tuple) else (labels,)
