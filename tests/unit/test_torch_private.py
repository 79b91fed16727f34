"""What is expected of torch's private names: where a torch holds it no longer, the function that reads them is named."""

import contextlib
import gc
import inspect
import subprocess
import sys
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad
from torch.distributed.fsdp import fully_shard
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

from gradroute import _torch_private as private

# Forward mode and inductor script helpers of torch's own.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script(_method)?` is deprecated")


@pytest.fixture(autouse=True)
def _named(request):
    """Whatever goes wrong in a test is told of the function that it is named after."""
    name = request.node.originalname.removeprefix("test_")
    if hasattr(private, name):
        request.node.obj = told(name, request.node.obj)


def told(name, test):
    def run(*args, **kwargs):
        try:
            test(*args, **kwargs)
        except Exception as error:
            raise AssertionError(
                f"gradroute._torch_private.{name} no longer holds for torch {torch.__version__}: "
                f"{type(error).__name__}: {error}"
            ) from error

    return run


def seen_in_backward(look):
    """What a look finds in the middle of a backward pass."""
    found = []
    x = torch.ones(2, requires_grad=True)
    (x * 2).register_hook(lambda gradient: found.append(look()))
    y = x * 2
    y.register_hook(lambda gradient: found.append(look()))
    y.sum().backward()
    return found[0]


def test_every_function_has_a_test_here_and_a_failure_names_it():
    functions = {
        name
        for name, value in vars(private).items()
        if inspect.isroutine(value) and value.__module__ == private.__name__ and not name.startswith("_")
    }
    assert {f"test_{name}" for name in functions} <= set(globals())

    def fails():
        raise KeyError("gone")

    with pytest.raises(AssertionError, match=r"_torch_private\.version no longer holds for torch \d.*KeyError: 'gone'"):
        told("version", fails)()


def test_transforms_active():
    found = []
    torch.func.vmap(lambda x: found.append(private.transforms_active()) or x)(torch.ones(2))
    torch.func.grad(lambda x: found.append(private.transforms_active()) or x)(torch.ones(()))
    assert found == [True, True]
    assert not private.transforms_active()


def test_is_wrapped():
    found = []
    torch.func.vmap(lambda x: found.append(private.is_wrapped(x)) or x)(torch.ones(2))
    torch.func.grad(lambda x: found.append(private.is_wrapped(x)) or x)(torch.ones(()))
    assert found == [True, True]
    assert not private.is_wrapped(torch.ones(2))


def test_is_batch_of_gradients():
    found = []
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: found.append(private.is_batch_of_gradients(gradient)))
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True, retain_graph=True)
    y.sum().backward()
    assert found == [True, False]


def test_unwrapped():
    x = torch.arange(6.0).view(2, 3)
    found = []
    torch.func.vmap(lambda row: found.append(private.unwrapped(row)) or row, in_dims=1)(x)
    torch.func.grad(lambda row: (found.append(private.unwrapped(row)), row.sum())[1])(x)
    assert torch.equal(found[0], x.T), "the batch comes first"
    assert torch.equal(found[1], x)
    assert private.unwrapped(x) is x


def test_outside_of_transforms():
    kept = torch.zeros(())

    def keeps(x):
        with private.outside_of_transforms():
            kept.add_(1)
            inside = private.is_wrapped(torch.ones(2) + 1)
        assert not inside
        return x

    torch.func.vmap(keeps)(torch.ones(2))
    assert isinstance(private.outside_of_transforms(), contextlib.nullcontext)
    assert kept == 1


def test_forward_mode():
    assert not private.forward_mode()
    with forward_ad.dual_level():
        assert private.forward_mode()
    assert not private.forward_mode()


def test_is_eager():
    found = []
    torch.func.vmap(lambda x: found.append(private.is_eager()) or x)(torch.ones(2))
    with forward_ad.dual_level():
        found.append(private.is_eager())
    compiled = torch.compile(lambda x: x * (2 if private.is_eager() else 3), backend="eager", fullgraph=True)
    assert compiled(torch.ones(1)) == 3
    assert found == [False, False]
    assert private.is_eager()


def test_is_recorded_once():
    found = []

    def looks(x):
        found.append(private.is_recorded_once())
        return (x * 2).sin()

    x = torch.ones(2, requires_grad=True)
    checkpoint(looks, x, use_reentrant=False).sum().backward()
    assert found == [False, False], "the first pass, and the one in backward"
    with torch.autograd.graph.save_on_cpu():
        assert not private.is_recorded_once()
    assert private.is_recorded_once()
    assert not seen_in_backward(private.is_recorded_once)


def test_is_last_before_steps():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    first, last = (optimizer.register_step_pre_hook(lambda *_: None) for _ in range(2))
    assert private.is_last_before_steps(optimizer, last)
    assert not private.is_last_before_steps(optimizer, first)
    last.remove()
    assert private.is_last_before_steps(optimizer, first)
    for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
        of_all = register(lambda *_: None)
        assert not private.is_last_before_steps(optimizer, first)
        of_all.remove()


def test_in_backward():
    assert not private.in_backward()
    assert seen_in_backward(private.in_backward)
    assert not private.in_backward()


def test_backward_number():
    assert private.backward_number() == -1
    one, other = seen_in_backward(private.backward_number), seen_in_backward(private.backward_number)
    assert -1 < one < other


def test_at_the_end_of_backward():
    order = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    x.register_hook(lambda _: order.append("the last gradient"))

    def at_first(_):
        private.at_the_end_of_backward(lambda: order.append("the end"))
        order.append("the first gradient")

    y.register_hook(at_first)
    for run in (lambda: y.sum().backward(retain_graph=True), lambda: torch.autograd.grad(y.sum(), x)):
        order.clear()
        run()
        assert order == ["the first gradient", "the last gradient", "the end"]


def test_is_reached_in_backward():
    one, other, unused = (nn.Parameter(torch.ones(2)) for _ in range(3))
    found = []
    y = one * other
    y.register_hook(lambda _: found.append([private.is_reached_in_backward(p) for p in (one, other, unused)]))
    y.sum().backward(retain_graph=True)
    torch.autograd.grad(y.sum(), one, retain_graph=True)
    torch.autograd.grad(y.sum(), y)
    assert found == [[True, True, False], [True, False, False], [False, False, False]]


def test_node_in_backward():
    assert private.node_in_backward() is None
    node = seen_in_backward(private.node_in_backward)
    assert isinstance(node, torch.autograd.graph.Node)


def test_checkpoint_regions():
    assert private.checkpoint_regions() == ([], [])
    found = []
    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        y = checkpoint(lambda x: found.append(private.checkpoint_regions()) or x.exp(), x, use_reentrant=False)
        y.sum().backward()
    assert [(len(again), len(first)) for again, first in found] == [(0, 1), (1, 0)] * 2
    regions = [region for each in found for kind in each for region in kind]
    assert regions[0] is regions[1] is not None, "a region is known again when it is recomputed"
    assert regions[2] is regions[3] is not regions[0]
    gone = weakref.ref(regions[0])
    found.clear()
    regions.clear()
    del y
    gc.collect()
    assert gone() is None, "a region lives no longer than its graph"


def test_checkpoint_regions_in_one_another():
    found = []
    x = torch.ones(2, requires_grad=True)

    def inner(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            found.append(private.checkpoint_regions())
            return x.exp()

    def outer(x):
        return checkpoint(inner, x.exp(), use_reentrant=False).exp()

    checkpoint(outer, x, use_reentrant=False).sum().backward()
    (none, (of_inner, of_outer)), (again, _), *_ = found
    assert none == []
    assert of_inner is not of_outer
    assert again == [of_outer], "inside of what is recomputed regions are others"
    assert private.checkpoint_regions() == ([], [])
    assert x.grad.isfinite().all(), "what is done with saved tensors stays as it was"


def test_functions_in_forward():
    assert private.functions_in_forward() == []
    found = []
    x = torch.ones(2, requires_grad=True)
    y = checkpoint(lambda x: found.append(private.functions_in_forward()) or x.exp(), x, use_reentrant=True)
    assert found == [[y.grad_fn]]
    y.sum().backward()
    assert found[1] == [], "in the recomputation no forward of a Function runs"


def test_is_exporting():
    found = []

    class Asks(nn.Module):
        def forward(self, x):
            found.append(private.is_exporting())
            return x + 1

    torch._dynamo.reset()
    x = torch.ones(2)
    torch.compile(lambda x: x + 1 if private.is_exporting() else x, backend="eager", fullgraph=True)(x)
    assert torch.equal(torch.compile(lambda x: x + private.is_exporting(), backend="eager")(x), x)
    torch.export.export(Asks(), (x,), strict=False)
    assert found
    assert all(found)
    assert not private.is_exporting()


def test_is_compiled_node():
    """The compiler's Function is passed over by `functions_in_forward`: what it is in is what counts."""
    torch._dynamo.reset()
    x = torch.ones(2, requires_grad=True)
    y = torch.compile(torch.exp, backend="aot_eager")(x)
    assert private.is_compiled_node(y.grad_fn)
    assert not private.is_compiled_node(x.exp().grad_fn)


def test_writes():
    x = torch.zeros(2)
    before = private.writes(x)
    x.add_(1)
    assert private.writes(x) == before + 1 == private.version(x)


def test_version():
    x = torch.ones(2)
    before = private.version(x)
    x.add_(1)
    assert private.version(x) == before + 1
    with torch.inference_mode():
        x = torch.ones(2)
        x.add_(1)
    assert private.version(x) == 0


def test_is_sharded_by_fsdp():
    layer = nn.Linear(2, 2)
    assert not private.is_sharded_by_fsdp(layer)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        fully_shard(layer)
        assert private.is_sharded_by_fsdp(layer)
    finally:
        dist.destroy_process_group()


def test_dynamo_is_loaded():
    """In a process of its own: here some other test has long since imported Dynamo."""
    code = (
        "import torch; from gradroute import _torch_private as private; before = private.dynamo_is_loaded();"
        "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)); print(before, private.dynamo_is_loaded())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True"]


def test_make_compiled_code_look_at_hooks():
    layer = nn.Linear(2, 2)
    private.make_compiled_code_look_at_hooks()
    compiled = torch.compile(layer, backend="eager")
    x = torch.ones(1, 2)
    plain = compiled(x)
    handle = layer.register_forward_hook(lambda module, args, output: output * 0)
    assert not compiled(x).any()
    handle.remove()
    assert torch.equal(compiled(x), plain)


def test_leave_to_python(monkeypatch):
    """As a hook of the whole model it runs, and is no graph of its own; with what is traced around it, it is traced."""
    monkeypatch.setattr(private, "EXPORTS_HOOKS_OF_MODELS", False)
    traced = []

    def hook(module, args):
        traced.append(torch.compiler.is_compiling())

    private.leave_to_python(hook)
    model = nn.Sequential(nn.Linear(2, 2))
    torch.compiler.reset()
    torch.compile(hook, backend="eager")(model, ())
    torch.compile(lambda: hook(model, ()), backend="eager")()
    assert traced == [False, True]
    model[0].register_forward_pre_hook(hook)
    torch.compile(model, backend="eager", fullgraph=True)(torch.ones(1, 2))
    assert traced == [False, True, True]


def test_untraced():
    """Where eager code calls it, Dynamo does not trace it; what is compiled around it goes on."""
    traced = []

    def inner(x):
        traced.append(torch.compiler.is_compiling())
        return x + 1

    def outer(x):
        return private.untraced(inner)(x) * 2

    assert private.untraced(inner) is private.untraced(inner)
    torch._dynamo.reset()
    assert torch.compile(outer, backend="eager")(torch.ones(1)) == 4
    assert traced == [False]


def test_before_compiling():
    def function(x):
        return x + 1

    assert private.before_compiling(torch.compile(function, backend="eager")) is function
    assert private.before_compiling(function) is None

    class Callable:
        def __call__(self, x):
            return x + 1

    callable_object = Callable()
    before = private.before_compiling(torch.compile(callable_object, backend="eager"))
    assert callable_object in (before, getattr(before, "__self__", None))


def test_drop_forward_hooks():
    module = nn.Linear(2, 2)
    calls = []
    for number in range(4):
        module.register_forward_hook(lambda *_, number=number: calls.append(number), with_kwargs=bool(number % 2))
        module.register_forward_pre_hook(lambda *_, number=number: calls.append(-1 - number), with_kwargs=number > 1)
    dropped = {id(hook) for end in ("input", "output") for hook in private.forward_hooks(module, end)[1:3]}
    private.drop_forward_hooks(module, lambda hook: id(hook) in dropped)
    module(torch.ones(1, 2))
    assert calls == [-1, -4, 0, 3]


def test_forward_hooks():
    module = nn.Linear(2, 2)
    first, second = (lambda *_: None), (lambda *_: None)
    module.register_forward_hook(first)
    module.register_forward_hook(second, prepend=True)
    module.register_forward_pre_hook(first)
    assert private.forward_hooks(module, "output") == [second, first]
    assert private.forward_hooks(module, "input") == [first]


def test_forward_hook_table():
    module = nn.Linear(2, 2)
    table = private.forward_hook_table(module)
    handle = module.register_forward_hook(lambda *_: None)
    assert list(table) == [handle.id]
    first = module.register_forward_hook(lambda *_: None, prepend=True)
    assert next(iter(table)) == first.id


def test_forward_hooks_of_all_modules():
    table, calls = private.forward_hooks_of_all_modules(), []
    assert not table
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: calls.append("own"), prepend=True)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append("of all"))
    assert list(table) == [handle.id]
    module(torch.ones(1, 2))
    handle.remove()
    assert not table
    assert calls == ["of all", "own"]


def test_gradient_hook_tables():
    model = nn.Sequential(nn.Linear(2, 2))
    assert not any(private.gradient_hook_tables(model))
    everywhere = nn.modules.module.register_module_full_backward_hook
    registers = [
        model[0].weight.register_hook,
        model[0].register_full_backward_hook,
        model[0].register_full_backward_pre_hook,
        everywhere,
    ]
    for register in registers:
        calls = []
        handle = register(lambda *_, calls=calls: calls.append(1))
        [table] = [table for table in private.gradient_hook_tables(model) if table]
        kept = dict(table)
        table.clear()  # the very table that torch reads
        model(torch.ones(1, 2, requires_grad=True)).sum().backward()
        assert calls == []
        table.update(kept)
        model(torch.ones(1, 2, requires_grad=True)).sum().backward()
        assert calls, "as often as modules have it"
        handle.remove()
        assert not any(private.gradient_hook_tables(model))


def test_hooks_after_accumulation():
    parameter = nn.Parameter(torch.ones(2))

    def hook(_):
        return None

    assert private.hooks_after_accumulation(parameter) == []
    handle = parameter.register_post_accumulate_grad_hook(hook)
    assert private.hooks_after_accumulation(parameter) == [hook]
    handle.remove()
    assert private.hooks_after_accumulation(parameter) == []


def test_first_before_steps():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("there already"))
    handle = private.first_before_steps(optimizer, lambda *_: called.append("first"))
    optimizer.register_step_pre_hook(lambda *_: called.append("later"))
    optimizer.step()
    assert called == ["first", "there already", "later"]
    handle.remove()
    optimizer.step()
    assert called[3:] == ["there already", "later"]


def test_buffers_of():
    module = nn.BatchNorm1d(2)
    another = torch.ones(2)
    private.buffers_of(module)["running_mean"] = another
    assert module.running_mean is another


def test_is_batch_norm():
    norms = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.LazyBatchNorm1d()]
    assert all(map(private.is_batch_norm, norms))
    assert not any(map(private.is_batch_norm, [nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2)]))


def test_gradients_under_modes():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    x, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with Mode():
        y = checkpoint(torch.sin, x, use_reentrant=False) * 2
        assert seen.count("sin") == 1
        found, nothing = private.gradients_under_modes([y], [x, unused], [torch.ones(2)])
        assert seen.count("sin") == 2, "the checkpoint ran it again, and the mode saw it"
    assert torch.equal(found, 2 * torch.cos(x))
    assert nothing is None
    assert x.grad is None


def test_unseen_by_modes():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Mode():
        with private.unseen_by_modes():
            assert (x + x).shape == (2,)
        assert not seen
        assert (x + x).shape == (2,)
        assert seen


def test_shape_of_node():
    x = torch.ones(2, 3, requires_grad=True)
    assert private.shape_of_node((x * 2).sum(0).grad_fn) == (3,)
    assert private.shape_of_node(object()) is None


def test_base():
    x = torch.ones(2, 3)
    assert private.base(x) is None
    assert private.base(x.view(3, 2)) is x
    assert private.base(x[0][1:]) is x


def test_is_of():
    x = torch.ones(2, 3)
    assert private.is_of(x, x)
    assert private.is_of(x[0], x)
    assert not private.is_of(x.clone(), x)
    assert not private.is_of(None, x)


def test_mark_gradients():
    written, untouched, none = (nn.Parameter(torch.ones(2)) for _ in range(3))
    for parameter in (written, untouched):
        parameter.sum().backward()
    private.mark_gradients([written, untouched, none])
    written.sum().backward()
    assert private.has_learned(written)
    assert not private.has_learned(untouched)
    assert not private.has_learned(none)


def test_has_learned():
    """Also by a gradient that is another tensor than the one that was marked."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.sum().backward()
    private.mark_gradients([parameter])
    parameter.grad = None
    assert not private.has_learned(parameter)
    parameter.sum().backward()
    assert private.has_learned(parameter)


def test_parameters_of():
    layer = nn.Linear(2, 3)
    parameters = private.parameters_of(layer)
    assert dict.get(parameters, "weight") is layer.weight
    layer.weight = nn.Parameter(torch.ones(3, 2))
    assert dict.get(parameters, "weight") is layer.weight
    layer.register_parameter("bias", None)
    assert dict.get(parameters, "bias") is None


def test_children_of():
    model = nn.Sequential(nn.Linear(2, 2))
    children = private.children_of(model)
    assert children == {"0": model[0]}
    model.append(nn.ReLU())
    assert len(children) == 2, "the very dict"


def test_has_hook():
    parameter, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    handle = parameter.register_hook(lambda gradient: gradient)
    assert private.has_hook(parameter, handle)
    assert not private.has_hook(other, handle)
    handle.remove()
    assert not private.has_hook(parameter, handle)


def test_is_recorded_by_make_fx():
    found = []
    make_fx(lambda x: found.append(private.is_recorded_by_make_fx()) or x * 2)(torch.ones(2))
    assert found == [True]
    assert not private.is_recorded_by_make_fx()


def test_parametrizations_computed_anew():
    layer, runs = nn.Linear(2, 2), []

    class Noted(nn.Module):
        def forward(self, weight):
            runs.append(None)
            return weight * 2

    nn.utils.parametrize.register_parametrization(layer, "weight", Noted())
    runs.clear()
    with nn.utils.parametrize.cached():
        first = layer.weight
        with private.parametrizations_computed_anew():
            assert layer.weight is not first
            assert layer.weight is layer.weight
        assert layer.weight is first
    assert len(runs) == 2


def test_places_of_hooks():
    layer = nn.Linear(2, 2)
    handles = [layer.register_forward_hook(lambda *_: None), layer.register_forward_pre_hook(lambda *_: None)]
    places = private.places_of_hooks([nn.ReLU(), layer])
    for handle in handles:
        held, key = places[id(handle.hooks_dict_ref())]
        assert held is vars(layer)
        assert handle.id in held[key]


def test_is_distributed():
    assert not private.is_distributed(torch.ones(1))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        assert private.is_distributed(dist.tensor.distribute_tensor(torch.ones(2), mesh))
    finally:
        dist.destroy_process_group()


def test_several_processes():
    assert not private.several_processes()
    for n, expected in ((1, False), (2, True)):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n)
        try:
            assert private.several_processes() == expected
        finally:
            dist.destroy_process_group()


def test_own_tensors():
    norm = nn.BatchNorm1d(2)
    assert set(private.own_tensors(norm)) == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert private.own_tensors(norm)["weight"] is norm.weight
    assert set(private.own_tensors(nn.Linear(1, 1, bias=False))) == {"weight"}
    assert private.own_tensors(nn.Sequential(norm)) == {}


def test_tensors_in():
    one, other = torch.ones(1), torch.ones(2)
    found = private.tensors_in({"a": (one, [other, "text"]), "b": None})
    assert [tensor is wanted for tensor, wanted in zip(found, (one, other), strict=True)] == [True, True]


def test_lets_hooks_see_steps():
    assert private.lets_hooks_see_steps(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer  # and nothing of the base class is set up

    assert not private.lets_hooks_see_steps(Wrapper(None))


def test_schema():
    schema = private.schema(torch.ops.aten.linear.default)
    assert schema.name == "aten::linear"
    assert [argument.name for argument in schema.arguments] == ["input", "weight", "bias"]
    assert private.schema("output") is None


def test_leaves_of():
    one = torch.ones(1)
    cache = object()
    assert private.leaves_of(({"a": one, "b": [None, 2]}, cache))[0] is one
    assert private.leaves_of(({"a": one, "b": [None, 2]}, cache))[-2:] == [2, cache]


def test_stand_in():
    parameter, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts a step of its own on the instance
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    another = private.stand_in(optimizer, [{**optimizer.param_groups[0], "params": [other]}], {})
    assert type(another) is torch.optim.AdamW
    assert "step" not in vars(another)
    other.grad = torch.ones(3)
    another.step()
    assert called == []
    assert other.max() < 1, "with the rate of the other one"
    assert torch.equal(parameter, torch.ones(2))
    assert optimizer.param_groups[0]["params"] == [parameter]
