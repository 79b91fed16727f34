"""`Site`: a place in a model where a spec applies, and how its tensor is found in a module's input or output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from ..errors import SiteError, did_you_mean, preview
from ..spec._spec import RoutingSpec
from ..unit_dims import unit_dims
from ._nested import Key

# Containers of torch that read time before batch unless told batch_first=True.
_SEQUENCE_MODULES = (
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A place in a model where a spec applies.

    Args:
        spec: Which units each label may teach.
        on: ``"output"`` routes the gradient that enters the module from behind (what *writes* the units learns by
            route); ``"input"`` routes the gradient that leaves the module towards what is before it.
        level: ``"activations"`` masks the gradient of the activation, for the module and all upstream of it.
            ``"parameters"`` masks what the module's *own* parameters learn, and upstream sees the whole gradient: of
            the output's units their weight rows and biases, of the input's units the weight columns that read them (a
            bias reads nothing, and learns whole). A spec of one unit routes the module as a whole at this level.
        dim: The dimension that holds the units. None: no dimension does, and the one unit of the spec is the whole
            tensor, whatever its size; labels lead its shape as with ``dim=-1``. At level ``"activations"`` this must be
            said: there a spec of one unit with a number for `dim` expects a tensor of size 1 along it.
        index: Which tensor, where the module returns or takes several: a position in a tuple or list, a key of a
            dict, a field of a dataclass, or a tuple of these to reach into nested ones. For inputs, a position or an
            argument's name, whichever way the caller passes it. None: the output, or the first argument, is a tensor.
        parameters: At level ``"parameters"``, the names of those that are routed, as in the module's
            ``named_parameters()``, such as ``("bias",)`` or ``("0.bias",)``; the module's others learn whole, and by
            them all labels teach all units. So no unit is a label's own there: `Router.ablated` leaves them on, and a
            spec with silent units is refused. None: all are routed.

    Raises:
        SiteError: An argument is none of these.

    Examples:
        >>> Site(RoutingSpec.one_per_label(4), dim=1)
        Site(spec=RoutingSpec.one_per_label(4), on='output', level='activations', dim=1, index=None)
        >>> Site(RoutingSpec.one_per_label(4), level="parameters", parameters=("bias",)).parameters
        ('bias',)
    """

    spec: RoutingSpec
    _: dataclasses.KW_ONLY
    on: Literal["output", "input"] = "output"
    level: Literal["activations", "parameters"] = "activations"
    dim: int | None = -1
    index: Key | tuple[Key, ...] | None = None
    parameters: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.spec, RoutingSpec):
            raise SiteError(f"a site needs a RoutingSpec; got {type(self.spec).__name__}.")
        if self.on not in ("output", "input"):
            raise SiteError(f"on must be 'output' or 'input'; got {self.on!r}.")
        if self.level not in ("activations", "parameters"):
            raise SiteError(f"level must be 'activations' or 'parameters'; got {self.level!r}.")
        if self.dim is None:
            if self.spec.width != 1:
                raise SiteError(
                    f"dim=None takes the whole tensor for one unit, and the spec has {self.spec.width}: say which "
                    "dimension holds them, or give a spec of one unit."
                )
        elif not isinstance(self.dim, int) or isinstance(self.dim, bool):
            several = (
                " A mask over several dimensions, such as heads and their features, is one over the dimension that "
                "they are flattened into: put the site there, as on the input of the output projection."
                if isinstance(self.dim, tuple | list)
                else ""
            )
            raise SiteError(f"dim must be an integer or None; got {self.dim!r}.{several}")
        if not all(isinstance(step, (int, str)) for step in self.path):
            raise SiteError(f"index must be an integer, a string, a tuple of these or None; got {self.index!r}.")
        if self.parameters is not None:
            self._check_parameters()

    def _check_parameters(self) -> None:
        names = self.parameters
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise SiteError(f"parameters must be a tuple of names, such as ('bias',); got {names!r}.")
        names = tuple(names)
        if not names or not all(isinstance(name, str) for name in names):
            raise SiteError(f"parameters must be a tuple of at least one name, such as ('bias',); got {names!r}.")
        if self.level != "parameters":
            raise SiteError(
                f"parameters={names!r} needs level='parameters': at level 'activations' a mask is on all that a module "
                "and everything upstream of it learns."
            )
        if self.on == "input" and all(name.rpartition(".")[2] == "bias" for name in names):
            raise SiteError("a bias reads nothing of a module's input, so there is nothing to route: use on='output'.")
        if self.spec.has_silent:
            raise SiteError(
                f"parameters={names!r} leaves the module's other parameters to every label, so that no unit here is "
                "taught by its own labels alone and none may be silent: give this site a spec without silent=, or "
                "route all parameters."
            )
        object.__setattr__(self, "parameters", tuple(dict.fromkeys(names)))

    def __repr__(self) -> str:
        fields = [field.name for field in dataclasses.fields(self)]
        shown = [name for name in fields if name != "parameters" or self.parameters is not None]
        return f"Site({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def axis(self) -> int:
        """The dimension along which the mask lies, which for a whole tensor stretches along it."""
        return -1 if self.dim is None else self.dim

    @property
    def is_whole(self) -> bool:
        """Whether the spec's one unit is all of the tensor, whatever its size."""
        return self.spec.width == 1 and (self.dim is None or self.level == "parameters")

    @property
    def path(self) -> tuple[Key, ...]:
        """The index as steps from the module's output, or from its arguments, to the tensor."""
        if self.index is None:
            return ()
        return self.index if isinstance(self.index, tuple) else (self.index,)


def match(
    pattern: str, names: Mapping[str, nn.Module], hook_points: Mapping[str, str] = MappingProxyType({})
) -> dict[str, nn.Module]:
    """The modules whose qualified name matches a glob, each once, under the first of its names.

    Args:
        pattern: The glob.
        names: All modules by qualified name, as ``model.named_modules(remove_duplicate=False)`` gives them.
        hook_points: Other names that a pattern may match, as `hook_points_of` gives them.

    ``*`` matches any characters, dots too. The model itself has the empty name, which only the empty pattern matches.

    Raises:
        SiteError: Nothing matches, or a pattern matches a module and one inside it.
    """
    name = pattern if pattern in names else hook_points.get(pattern)
    if name is not None:
        return {name: names[name]}
    found: dict[nn.Module, str] = {}
    for other, name in [*((name, name) for name in names if name), *hook_points.items()]:
        if fnmatchcase(other, pattern):
            found.setdefault(names[name], name)
    if not found:
        model = type(names[""]).__name__
        known = [*names, *hook_points]
        raise SiteError(f"pattern {pattern!r} matches no module of {model}. {did_you_mean(pattern, known)}")
    for name in found.values():
        inside = [other for other in found.values() if other.startswith(f"{name}.")]
        if inside:
            raise SiteError(
                f"pattern {pattern!r} matches {name!r} and also modules inside it ({preview(inside, 3)}), since * "
                "matches dots too: write a pattern for one level only."
            )
    return {name: module for module, name in found.items()}


def hook_points_of(names: Mapping[str, nn.Module]) -> dict[str, str]:
    """The names under which TransformerLens knows modules that stand elsewhere in the model, and where each stands.

    Its bridge is built around another library's model, and keeps the hook points inside of that one's modules: of
    ``blocks.0.mlp.hook_post``, as it is called everywhere else, the qualified name is another. The bridge's property
    ``hook_dict`` has them all.

    Args:
        names: All modules by qualified name, as ``model.named_modules(remove_duplicate=False)`` gives them.
    """
    where: dict[nn.Module, str] = {}
    for name, module in names.items():
        where.setdefault(module, name)
    found: dict[str, str] = {}
    for prefix, module in names.items():
        # Of the class, since a bridge looks up what it lacks in the model that it is built around.
        hook_dict = getattr(type(module), "hook_dict", None)
        if isinstance(hook_dict, property):
            for hook, point in hook_dict.__get__(module).items():
                name = f"{prefix}.{hook}" if prefix else hook
                if isinstance(point, nn.Module) and point in where and name not in names:
                    found[name] = where[point]
    return found


def check_level(name: str, module: nn.Module, site: Site) -> None:
    """Refuse a site of level "parameters" where there are none, or none that read the input's units.

    Raises:
        SiteError: There are none.
    """
    if site.level == "activations":
        return
    if next(module.parameters(), None) is None and next(computed_weights(module), None) is None:
        raise SiteError(
            f"site {name!r}: level='parameters' routes a module's own parameters, and a {type(module).__name__} has "
            "none. Use level='activations', or the layers that write or read its tensor."
        )
    check_names(name, module, site)
    if isinstance(module, nn.Embedding) and site.on == "input":
        raise SiteError(f"site {name!r}: an embedding's input are indices, not units. Use on='output'.")


def check_names(name: str, module: nn.Module, site: Site) -> None:
    """Refuse the name of a parameter that the site's module does not have, or that reads nothing.

    Raises:
        SiteError: There is such a name.
    """
    if site.parameters is None:
        return
    known = [key for key, _ in module.named_parameters(remove_duplicate=False)]
    for key in site.parameters:
        if key not in known:
            raise SiteError(
                f"site {name!r}: {key!r} is no parameter of this {type(module).__name__}. {did_you_mean(key, known)}"
            )
    dims, writers = unit_dims(module, site.on), unit_dims(module, "output") or {}
    # What is not among the writers, such as what a weight is computed of, may do anything.
    if dims is not None and all(key in writers and key not in dims for key in site.parameters):
        raise SiteError(
            f"site {name!r}: {preview(site.parameters)} of a {type(module).__name__} has no entries for the units of "
            f"its {site.on}, so there is nothing to route. Known: {preview(dims)}."
        )


def routed_parameters(module: nn.Module, names: tuple[str, ...] | None) -> dict[str, nn.Parameter]:
    """The parameters of a module that have these names, each once, by the first of all its names; None means all."""
    found = dict(module.named_parameters())
    if names is None:
        return found
    chosen = {parameter for name, parameter in module.named_parameters(remove_duplicate=False) if name in names}
    return {name: parameter for name, parameter in found.items() if parameter in chosen}


def leads_with_time(name: str, model: nn.Module, site: Site) -> bool:
    """Whether the first dimension of the site's tensor is time (or layers) by torch's own convention, not the batch."""
    module = model.get_submodule(name)
    if isinstance(module, nn.RNNBase) and site.path[:1] == (1,):
        return True  # the final states are [layers, batch, features] whatever batch_first says
    parts = name.split(".") if name else []
    for depth in range(len(parts), -1, -1):
        ancestor = model.get_submodule(".".join(parts[:depth]))
        if isinstance(ancestor, _SEQUENCE_MODULES):
            return any(getattr(inner, "batch_first", None) is False for inner in ancestor.modules())
    return False


def has_learning_tensors(module: nn.Module) -> bool:
    """Whether a module has parameters that learn, or weights computed of others that do."""
    return any(p.requires_grad for p in module.parameters()) or any(True for _ in computed_weights(module))


def computed_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Weights that are computed of others, as pruning, the old weight_norm and MAML do: plain attributes of modules."""
    for name, inner in module.named_modules():
        for key, value in list(inner.__dict__.items()):
            if isinstance(value, Tensor) and value.requires_grad:
                yield f"{name}.{key}", inner, key, value
