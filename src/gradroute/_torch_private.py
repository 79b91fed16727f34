"""The only file that reads torch's private names.

Each function says what it is for. `tests/unit/test_torch_private.py` says what is expected of it: a torch in which it
changed fails there, with a message that names the function.
"""

from __future__ import annotations

import collections
import contextlib
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.weak import TensorWeakRef

FUNCTIONS_COMPILE = torch.__version__ >= "2.12"
"""Whether Dynamo keeps an `autograd.Function` whole that it is told to, inside of `torch.func` transforms too."""

EXPORTS_HOOKS_OF_MODELS = torch.__version__ >= "2.10"
"""Whether a strict `torch.export` takes a model that has a hook of its own."""

# ---------------------------------------------------------------------- torch.func


def transforms_active() -> bool:
    """Whether a `torch.func` transform is running (true also while Dynamo traces one)."""
    return torch._C._are_functorch_transforms_active()


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a `torch.func` transform."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_batch_of_gradients(tensor: Tensor) -> bool:
    """Whether a tensor is a batch of gradients: ``is_grads_batched=True``, or a vectorized Hessian."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor under the wrappers of `torch.func` transforms, its batch dimensions first."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        batch_dim = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
        if batch_dim > 0:
            tensor = tensor.movedim(batch_dim, 0)
    return tensor


def outside_of_transforms() -> contextlib.AbstractContextManager[object]:
    """For a write that is no part of what a `torch.func` transform runs through."""
    if torch.compiler.is_compiling() or not transforms_active():
        return contextlib.nullcontext()
    return torch._C._DisableFuncTorch()


def forward_mode() -> bool:
    """Whether forward-mode differentiation is on, outside of `torch.func`."""
    return torch.autograd.forward_ad._current_level >= 0


def is_eager() -> bool:
    """Whether no compiler, no `torch.func` transform and no forward-mode differentiation has a part in what runs."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


# ---------------------------------------------------------------------- backward, and activation checkpointing


def in_backward() -> bool:
    """Whether a backward pass is running in this thread."""
    return torch._C._current_graph_task_id() != -1


backward_number = torch._C._current_graph_task_id
"""The number of the backward pass that is running in this thread, each of which has another; -1 outside of one."""


def at_the_end_of_backward(function: Callable[[], None]) -> None:
    """Call a function as soon as the backward pass that is running has come to its end."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def is_reached_in_backward(parameter: nn.Parameter) -> bool:
    """Whether the running backward pass finds a gradient for a parameter."""
    node = torch.autograd.graph.get_gradient_edge(parameter).node
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # says so of a parameter that `torch.autograd.grad` was asked for, and of no other
        return True


def node_in_backward() -> Any:
    """The node of the graph that the running backward pass is at; None outside of one."""
    return torch._C._current_autograd_node() if in_backward() else None


def checkpoint_regions() -> tuple[list[Any], list[Any]]:
    """The regions of non-reentrant checkpointing that what runs is in, innermost first: recomputed ones, and others.

    A region is an object that lives as long as it may be recomputed; None where it does not any more.
    """
    again, first = [], []
    for pack in _pack_hooks():
        name = getattr(pack, "__qualname__", "")
        if name.startswith("_checkpoint_hook"):
            first.append(_closed_over(pack, "frame"))
        elif name.startswith("_recomputation_hook"):
            reference = _closed_over(_closed_over(pack, "fn") or pack, "target_frame_ref")
            again.append(reference() if callable(reference) else None)
    return again, first


def _pack_hooks() -> list[Any]:
    """What is done with tensors that are saved now, innermost first: only the uppermost of a stack is to be had."""
    stack, found = torch._C._autograd, []
    try:
        while (hooks := stack._top_saved_tensors_default_hooks(False)) is not None:
            found.append(hooks)
            stack._pop_saved_tensors_default_hooks()
    finally:
        for hooks in reversed(found):
            stack._push_saved_tensors_default_hooks(*hooks)
    return [pack for pack, _ in found]


def _closed_over(function: Any, name: str) -> Any:
    code = getattr(function, "__code__", None)
    if code is None or name not in code.co_freevars:
        return None
    return function.__closure__[code.co_freevars.index(name)].cell_contents


def is_recorded_once() -> bool:
    """Whether a pass with gradients is neither one that runs in backward, nor one that may be run again in it.

    Then no hooks are on, as of checkpointing, that make anew what is saved for backward.
    """
    return (
        torch._C._autograd._top_saved_tensors_default_hooks(False) is None and torch._C._current_graph_task_id() == -1
    )


def functions_in_forward() -> list[Any]:
    """The `torch.autograd.Function`s whose forward is running, innermost first: their nodes in the graph to be.

    Only those whose forward takes `ctx`, as that of reentrant checkpointing does, and none of the compiler's.
    """
    found: list[Any] = []
    walker: Any = sys._getframe(1)
    while walker is not None:
        code = walker.f_code
        if code.co_name == "forward" and code.co_argcount and code.co_varnames[0] != "self":
            node = walker.f_locals.get(code.co_varnames[0])
            if isinstance(node, torch.autograd.function.BackwardCFunction) and not is_compiled_node(node):
                found.append(node)
        walker = walker.f_back
    return found


def is_compiled_node(node: Any) -> bool:
    """Whether a node of the graph is the backward pass of code that `torch.compile` made."""
    return type(node).__name__ == "CompiledFunctionBackward"


# ---------------------------------------------------------------------- tensors and modules


def version(tensor: Tensor) -> int:
    """How often a tensor was written in place; 0 for those of which nobody counts it."""
    return 0 if tensor.is_inference() else tensor._version


writes = operator.attrgetter("_version")
"""The same of a tensor of which it is counted, in one step."""


weak_reference = TensorWeakRef
"""A weak reference to a tensor, which may be one that only torch's C++ code still holds."""


def base(tensor: Tensor) -> Tensor | None:
    """The tensor of which this is a view, as far as autograd knows; None if it is none."""
    return tensor._base


def is_of(value: Any, base: Tensor) -> bool:
    """Whether a value is this tensor, or a view of it."""
    return isinstance(value, Tensor) and (value is base or value._base is base)


def mark_gradients(parameters: list[nn.Parameter]) -> None:
    """Leave on each ``.grad`` how often it was written so far, to see later whether it was written, or is another."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            gradient._gradroute_mark = gradient._version  # type: ignore[attr-defined]


def has_learned(parameter: nn.Parameter) -> bool:
    """Whether something was added to a parameter's ``.grad`` since it was marked."""
    gradient = parameter.grad
    return gradient is not None and getattr(gradient, "_gradroute_mark", None) != gradient._version


def has_hook(tensor: Tensor, handle: torch.utils.hooks.RemovableHandle) -> bool:
    """Whether the hook that this is the handle of is on a tensor."""
    return handle.id in (tensor._backward_hooks or ())


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process may hold a part only."""
    return type(tensor).__name__ == "DTensor"


def several_processes() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The very dict in which a module keeps its children."""
    return module._modules


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The very dict in which a module keeps its own parameters."""
    return module._parameters


def is_sharded_by_fsdp(module: nn.Module) -> bool:
    """Whether FSDP2 has given a module a class of its own."""
    return type(module).__bases__[0].__name__ == "FSDPModule"


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that a module holds itself under their names, those that it shares included."""
    held = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors in nested containers of all kinds that are registered with torch's pytrees, as outputs of models."""
    return [leaf for leaf in leaves_of(nested) if isinstance(leaf, Tensor)]


def leaves_of(nested: Any) -> list[Any]:
    """All that nested containers of the kinds that are registered with torch's pytrees hold."""
    return list(torch.utils._pytree.tree_leaves(nested))


def lets_hooks_see_steps(optimizer: Any) -> bool:
    """Whether an optimizer calls hooks before and after its steps; a wrapper that skips the base class does not."""
    return hasattr(optimizer, "_optimizer_step_pre_hooks")


def first_before_steps(optimizer: torch.optim.Optimizer, hook: Any) -> Any:
    """Register a hook that runs before a step, and before the hooks that are there already; returns its handle."""
    handle = optimizer.register_step_pre_hook(hook)
    optimizer._optimizer_step_pre_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]
    return handle


def is_last_before_steps(optimizer: Any, handle: Any) -> bool:
    """Whether no hook runs after this one before a step; and none runs around the steps of all optimizers."""
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return False
    return bool(next(reversed(optimizer._optimizer_step_pre_hooks), None) == handle.id)


@contextlib.contextmanager
def parametrizations_computed_anew() -> Iterator[None]:
    """For the length of the block `parametrize.cached()` holds nothing that was computed outside, and keeps nothing."""
    parametrize = nn.utils.parametrize
    outside, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = outside


def stand_in(optimizer: torch.optim.Optimizer, groups: list[Any], state: dict[Any, Any]) -> torch.optim.Optimizer:
    """An optimizer as another is at this moment, for other parameters: of its class, with its attributes, and no hooks.

    Its constructor is not called, which may want other arguments. Others may have put a step of their own on the
    instance, as schedules of learning rates do: the stand-in has that of the class.
    """
    other: torch.optim.Optimizer = object.__new__(type(optimizer))
    other.__dict__.update(vars(optimizer))
    other.__dict__.pop("step", None)
    other.__dict__["param_groups"] = groups
    other.__dict__["state"] = collections.defaultdict(dict, state)
    other.__dict__["_optimizer_step_pre_hooks"] = collections.OrderedDict()
    other.__dict__["_optimizer_step_post_hooks"] = collections.OrderedDict()
    return other


def schema(operation: Any) -> Any:
    """The schema of an operation in an exported program: its name and its arguments; None for what is no operation."""
    return getattr(operation, "_schema", None)


def is_recorded_by_make_fx() -> bool:
    """Whether operations are recorded by `make_fx`, as for an ahead-of-time compiler without Dynamo."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


# ---------------------------------------------------------------------- Dynamo


def dynamo_is_loaded() -> bool:
    """Whether anything may have been compiled: without Dynamo nothing is, and it takes seconds to import."""
    return "torch._dynamo" in sys.modules


_EXPORTING = "_is_exporting_flag" if hasattr(torch.compiler, "_is_exporting_flag") else "_is_compiling_flag"


def is_exporting() -> bool:
    """Whether `torch.export` is at work; before torch 2.12 Dynamo takes the public function for true in any case."""
    return bool(getattr(torch.compiler, _EXPORTING))


def make_compiled_code_look_at_hooks() -> None:
    """Have code that Dynamo compiles notice when hooks come or go, and forget what it compiled so far.

    By default Dynamo sets no guards on a module's hooks (`skip_nnmodule_hook_guards`), so code that was compiled for a
    model without a router, or for an unrouted twin of the same class, would serve a routed one too: unrouted, without a
    word. The import costs a training program nothing, since optimizers import Dynamo as well.
    """
    if torch.compiler.is_compiling():
        return
    from torch._dynamo import config  # noqa: PLC0415  # not when gradroute is imported: it takes as long as importing torch

    config.skip_nnmodule_hook_guards = False
    # That is a setting of this thread (or asyncio task) alone; the default is that of all which have none of their own.
    entry = getattr(config, "_config", {}).get("skip_nnmodule_hook_guards")
    if entry is not None:
        entry.default = False
    torch.compiler.reset()


def leave_to_python(hook: Any) -> None:
    """Have Dynamo trace a hook of a whole model with what it traces around it, and never alone.

    A strict `torch.export`, which `torch.distributed.pipelining.pipeline` begins with, calls the hooks of the model and
    traces its forward method. Before torch 2.10 it takes the hook's code for a second graph, and refuses the model.
    """
    if EXPORTS_HOOKS_OF_MODELS or torch.compiler.is_compiling():
        return
    from torch._dynamo import eval_frame  # noqa: PLC0415  # as above

    eval_frame.skip_code(hook.__code__)


_UNTRACED: dict[Any, Any] = {}


def untraced(function: Any) -> Any:
    """A function that Dynamo runs as it is, where eager code calls it; without Dynamo nothing traces it anyway."""
    if not dynamo_is_loaded():
        return function
    if function not in _UNTRACED:  # no `functools.cache`, of which Dynamo warns
        _UNTRACED[function] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return _UNTRACED[function]


def before_compiling(function: Any) -> Any:
    """What `torch.compile` was given, of what it returned; None for anything else."""
    original = getattr(function, "_torchdynamo_orig_callable", None)
    if getattr(original, "__qualname__", "").startswith("wrap_inline"):  # of what is callable and no function
        return _closed_over(original, "fn")
    return original


# ---------------------------------------------------------------------- hooks of modules and tensors


def forward_hooks(module: nn.Module, end: Literal["input", "output"]) -> list[Any]:
    """The hooks that see what a module is given ("input") or returns ("output"), in the order in which they run."""
    return list((module._forward_pre_hooks if end == "input" else module._forward_hooks).values())


def forward_hook_table(module: nn.Module) -> dict[int, Any]:
    """The very dict in which a module keeps the hooks that see what it returns."""
    return module._forward_hooks


def places_of_hooks(modules: Iterable[nn.Module]) -> dict[int, tuple[dict[str, Any], str]]:
    """By the id of each table of forward hooks and pre-hooks of modules: which dict holds it, and under which key."""
    places = [(vars(module), key) for module in modules for key in ("_forward_hooks", "_forward_pre_hooks")]
    return {id(held[key]): (held, key) for held, key in places}


def forward_hooks_of_all_modules() -> dict[int, Any]:
    """The very dict of the hooks that see what any module returns, before the module's own."""
    return torch.nn.modules.module._global_forward_hooks


def drop_forward_hooks(module: nn.Module, condition: Callable[[Any], bool]) -> None:
    """Take off those of a module's forward hooks and pre-hooks for which the condition holds.

    For hooks that a copied module carries, whose handles stayed with the module that it was copied from.
    """
    for hooks, *flags in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if condition(hook)]:
            del hooks[key]
            for each in flags:
                each.pop(key, None)


def gradient_hook_tables(model: nn.Module) -> list[dict[Any, Any]]:
    """The tables, not copied, of the hooks that may change gradients: of parameters, of modules, and of all modules."""
    tables = [torch.nn.modules.module._global_backward_hooks, torch.nn.modules.module._global_backward_pre_hooks]
    for module in model.modules():
        tables += [module._backward_hooks, module._backward_pre_hooks]
    tables += [p._backward_hooks for p in model.parameters() if p._backward_hooks is not None]
    return tables


def hooks_after_accumulation(parameter: Tensor) -> list[Any]:
    """The hooks that run after a gradient was added to ``parameter.grad``, which `torch.autograd.grad` never does."""
    hooks = parameter._post_accumulate_grad_hooks
    return list(hooks.values()) if hooks else []


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The table, not copied, of a module's own buffers: a forward pass may put another tensor in the place of one."""
    return module._buffers


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module normalizes by the statistics of its batch, in any number of dimensions."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


# ---------------------------------------------------------------------- modes


def unseen_by_modes() -> contextlib.AbstractContextManager[object]:
    """For looks at tensors that no `TorchFunctionMode` is to see, nor a tensor of a class of its own."""
    return torch._C.DisableTorchFunction()


# ---------------------------------------------------------------------- the graph of a loss


def gradients_under_modes(outputs: Sequence[Any], inputs: Sequence[Any], gradients: Sequence[Tensor]) -> Any:
    """`torch.autograd.grad`, with modes still on where checkpoints run modules again: that function suspends them.

    Keeps the graph, and gives None for inputs that nothing reaches.
    """
    run = torch.autograd.graph._engine_run_backward
    return run(tuple(outputs), tuple(gradients), True, False, tuple(inputs), True, accumulate_grad=False)


def shape_of_node(node: Any) -> tuple[int, ...] | None:
    """The shape of the first tensor that an operation in the graph returned; None where the graph does not say."""
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else None
