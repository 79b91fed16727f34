"""The sites of a transformer's blocks: MLP neurons and attention heads, what writes them and what reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .errors import SiteError, SpecError, preview
from .router._site import Site
from .spec._route import Route
from .spec._spec import RoutingSpec
from .unit_dims import is_conv1d_of_transformers, kind_of, n_units

__all__ = ["block_sites"]

Fused = Literal["projections", "heads"]


@dataclass(frozen=True)
class _Projections:
    """The linear layers of one block by name, found by their shapes.

    Attributes:
        up: From the residual stream to the MLP's neurons: one, or two where one gates the other.
        down: From the neurons back.
        heads: From the residual stream to queries, keys and values, in one layer or in three.
        out: From the heads back.
    """

    up: tuple[str, ...]
    down: str
    heads: tuple[str, ...]
    out: str


def block_sites(
    model: nn.Module,
    *,
    mlp: RoutingSpec | None = None,
    heads: RoutingSpec | None = None,
    fused: Fused | None = None,
) -> dict[str, Site]:
    """Sites for all transformer blocks of a model, to give to a `Router`: what writes and reads neurons and heads.

    Of each neuron: the weight rows and the bias that write it (in gated MLPs, of both layers that do) and the weight
    columns that read it. Of each head: its rows in the projections to queries, keys and values, with their biases, and
    its columns in the output projection. All at level "parameters": what is upstream learns from every example.

    What all labels share, and every example teaches: the biases of the two layers that read (they add to the residual
    stream, and belong to no neuron or head), LayerNorms and RMSNorms, embeddings, and the output head. Route those that
    should not learn so by sites of their own. Where several query heads share one key and value head, these may be
    taught by every label that may teach one of the query heads, and are never silent: of a silent head, its queries and
    what the output projection reads are.

    Blocks are found by structure, not by name: modules of one class in a `ModuleList` or `Sequential`, with linear
    layers from the residual width to another one and back (the MLP), and to as many features as heads have and back
    (attention, whose output projection is the last of its linear layers). Tested with GPT-2, GPT-Neo, Llama and ViT of
    transformers.

    Args:
        model: A transformer.
        mlp: The spec over a block's MLP neurons; None leaves MLPs alone.
        heads: The spec over a block's attention heads, whose width is the number of heads; None leaves attention alone.
        fused: The order of features where one linear layer writes queries, keys and values, which no shape tells:
            ``"projections"`` for the queries of all heads, then all keys, then all values (nanoGPT, MPT, timm's ViT);
            ``"heads"`` for all three of one head, then of the next (GPT-NeoX, BLOOM, Persimmon). GPT-2's is known.
            Other orders, such as CodeGen's, need sites of their own.

    Returns:
        A site for each layer, by its qualified name.

    Raises:
        SiteError: No spec was given, no block was found, or a block is built in another way, such as on
            `nn.MultiheadAttention`, whose weights are no modules; or `fused` is needed.
        SpecError: A spec's width is not the number of neurons or heads.

    Examples:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16))
        >>> sites = block_sites(model, heads=RoutingSpec({"retain": 0, "forget": 1}, 2))
        >>> list(sites)
        ['h.0.attn.c_attn', 'h.0.attn.c_proj', 'h.1.attn.c_attn', 'h.1.attn.c_proj']
        >>> sites["h.1.attn.c_proj"].on, sites["h.1.attn.c_proj"].spec.indices("forget")
        ('input', (4, 5, 6, 7))

    References:
        Shilov et al., 2025, SGTM (arXiv:2512.05648), which routes these parameters for whole batches.
    """
    if mlp is None and heads is None:
        raise SiteError("block_sites needs a spec: mlp= over a block's neurons, or heads= over its attention heads.")
    sites: dict[str, Site] = {}
    for block, projections in _blocks(model).items():
        layers = {name: model.get_submodule(name) for name in (*projections.up, *projections.heads)}
        if mlp is not None:
            for name in projections.up:
                _check_width(mlp, n_units(layers[name], "output"), f"MLP neurons in block {block!r}")
                sites[name] = Site(mlp, level="parameters")
            sites[projections.down] = Site(mlp, on="input", level="parameters")
        if heads is not None:
            width = n_units(model.get_submodule(projections.out), "input")
            if width % heads.width:
                raise SpecError(
                    f"block {block!r} has {width} features in its attention, which {heads.width} heads do not divide: "
                    "the spec's width must be the number of heads."
                )
            of_features = heads.repeat(width // heads.width)
            for name in projections.heads:
                order: Fused | None = "projections" if is_conv1d_of_transformers(layers[name]) else fused
                spec = _of_projection(heads, width, n_units(layers[name], "output"), name, order)
                sites[name] = Site(spec, level="parameters")
            sites[projections.out] = Site(of_features, on="input", level="parameters")
    return sites


def _check_width(spec: RoutingSpec, n: int, what: str) -> None:
    if spec.width != n:
        raise SpecError(f"the spec has {spec.width} units, but there are {n} {what}: build it with width={n}.")


def _of_projection(heads: RoutingSpec, width: int, features: int, name: str, fused: Fused | None) -> RoutingSpec:
    """The spec over the features of a projection to queries, keys or values, or to all three."""
    head_dim = width // heads.width
    if features == width:
        return heads.repeat(head_dim)
    if features == 3 * width:
        if fused not in ("projections", "heads"):
            raise SiteError(
                f"{name!r} writes queries, keys and values at once, and its shape does not tell in which order: say "
                'fused="projections" for all queries, then all keys, then all values, or fused="heads" for all three '
                f"of one head, then of the next; got fused={fused!r}."
            )
        return heads.repeat(3 * head_dim) if fused == "heads" else _tiled(heads.repeat(head_dim), 3)
    if features % head_dim == 0 and heads.width % (features // head_dim) == 0:
        return _grouped(heads, heads.width * head_dim // features).repeat(head_dim)
    raise SiteError(f"{name!r} writes {features} features, which are not those of {heads.width} heads of {head_dim}.")


def _tiled(spec: RoutingSpec, times: int) -> RoutingSpec:
    """The spec over `times` copies of its units, one after the other."""

    def moved(units: Any) -> list[int]:
        return [unit + copy * spec.width for copy in range(times) for unit in units]

    routes = {label: Route(moved(route.index), route.weight, route.elsewhere) for label, route in spec.routes.items()}
    unlabeled = spec.unlabeled
    if isinstance(unlabeled, Route):
        unlabeled = Route(moved(unlabeled.index), unlabeled.weight, unlabeled.elsewhere)
    return RoutingSpec(
        routes, spec.width * times, shared=moved(spec.shared), unlabeled=unlabeled, silent=spec.silent_argument
    )


def _grouped(spec: RoutingSpec, size: int) -> RoutingSpec:
    """The spec over groups of `size` consecutive units: a label may teach a group if it may teach a unit in it.

    None of them is silent, since a unit of the group may be one that is on. Those that are off are so where they are
    read, at the input of the output projection.
    """
    rules = [*spec.routes.values(), *([spec.unlabeled] if isinstance(spec.unlabeled, Route) else [])]
    if any(rule.weight != 1 or rule.elsewhere != 0 for rule in rules):
        raise SpecError("heads that share keys and values can be routed by weights 1 and 0 only.")

    def groups(units: Any) -> list[int]:
        return sorted({unit // size for unit in units})

    unlabeled = spec.unlabeled
    if isinstance(unlabeled, Route):
        unlabeled = Route(groups(unlabeled.index))
    routes = {label: Route(groups(route.index)) for label, route in spec.routes.items()}
    return RoutingSpec(routes, spec.width // size, shared=groups(spec.shared), unlabeled=unlabeled)


# ------------------------------------------------------------------ finding the blocks


def _blocks(model: nn.Module) -> dict[str, _Projections]:
    found: dict[str, _Projections] = {}
    reasons: list[str] = []
    for prefix, module in model.named_modules():
        children = dict(module.named_children())
        repeated = isinstance(module, nn.ModuleList | nn.Sequential) and len({*map(kind_of, children.values())}) == 1
        if not repeated or any(prefix == block or prefix.startswith(f"{block}.") for block in found):
            continue
        for child, block in children.items():
            name = f"{prefix}.{child}" if prefix else child
            projections = _projections(name, block)
            if isinstance(projections, str):
                reasons.append(projections)
            else:
                found[name] = projections
    if found:
        return found
    why = f" Looked at: {preview(reasons, 2)}." if reasons else ""
    raise SiteError(
        f"no transformer block was found in {type(model).__name__}: modules of one class in a ModuleList, each with an "
        f"MLP and an attention of linear layers.{why} Give a Router the names of the layers instead."
    )


def _projections(name: str, block: nn.Module) -> _Projections | str:
    """The projections of a block, or what is not as expected."""
    linear = {inner: layer for inner, layer in block.named_modules() if _is_linear(layer)}
    if any(isinstance(inner, nn.MultiheadAttention) for inner in block.modules()):
        return f"{name} uses nn.MultiheadAttention, whose projections are weights without a module"
    if len(linear) < 4:
        return f"{name} has {len(linear)} linear layers"
    shapes = {inner: (n_units(layer, "input"), n_units(layer, "output")) for inner, layer in linear.items()}
    residual = _residual_width(shapes)
    down = [inner for inner, (before, after) in shapes.items() if after == residual and before != residual]
    for candidate in down:
        neurons = shapes[candidate][0]
        # A projection to queries, keys and values at once may look like one to neurons; but it has its own way back.
        elsewhere = {_parent(inner) for inner, (_, after) in shapes.items() if after == residual and inner != candidate}
        beside = {inner for inner in shapes if _parent(inner) in elsewhere - {_parent(candidate)}}
        up = [inner for inner, shape in shapes.items() if shape == (residual, neurons) and inner not in beside]
        rest = [inner for inner in shapes if inner not in (*up, candidate)]
        if len(up) in (1, 2) and len(rest) in (2, 4) and shapes[rest[-1]][1] == residual:
            full = [f"{name}.{inner}" for inner in rest]
            return _Projections(
                tuple(f"{name}.{inner}" for inner in up), f"{name}.{candidate}", tuple(full[:-1]), full[-1]
            )
    return f"{name} has linear layers of the shapes {preview(shapes.values())}"


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _residual_width(shapes: Mapping[str, tuple[int, int]]) -> int:
    """The width that most of the layers read or write: all of them do so at one end."""
    return Counter(width for shape in shapes.values() for width in {*shape}).most_common(1)[0][0]


def _is_linear(module: nn.Module) -> bool:
    return kind_of(module) is nn.Linear or is_conv1d_of_transformers(module)
