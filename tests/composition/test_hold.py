"""`Hold` with what else drives an optimizer: other processes, compiled code."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from composition.scripts.held import MASK, ROWS, train
from composition.two_processes import run_in_two_processes
from gradroute.optim import Hold

SCRIPT = Path(__file__).parent / "scripts" / "held.py"
HELD = {"rows": torch.zeros(5, 3, dtype=torch.bool), "mask": MASK}
HELD["rows"][ROWS] = True


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, torch.Tensor]]]:
    """What each step leaves: both strategies in one start of two processes."""
    return run_in_two_processes(SCRIPT, tmp_path_factory.mktemp("held") / "steps.pt")


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp", marks=pytest.mark.supports("`optim.Hold`: DDP")),
        pytest.param("fsdp2", marks=pytest.mark.supports("`optim.Hold`: FSDP2")),
    ],
)
def test_rows_and_masks_of_the_whole_parameter_are_held_and_the_rest_trains_as_in_one_process(
    in_two_processes, strategy: str
) -> None:
    """Clipping included: the norms of all processes are those of one, without what is held."""
    steps, alone = in_two_processes[strategy], train("one process")
    for before, after in itertools.pairwise(steps):
        for name, mask in HELD.items():
            for key in (name, f"{name}: exp_avg"):
                assert torch.equal(after[key] == before[key], mask), key
    for mine, its in zip(steps, alone, strict=True):
        for key in its:
            torch.testing.assert_close(mine[key], its[key], rtol=1e-3, atol=1e-5)


@pytest.mark.supports("`optim.Hold`: `torch.compile`")
@pytest.mark.parametrize("what", ["model", "step", "training step"])
def test_compiled_code_holds_what_is_held(what: str) -> None:
    torch.compiler.reset()
    layer = nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1, foreach=True)
    Hold(optimizer, {layer.weight: MASK, layer.bias: [1]})

    def backward(x: torch.Tensor) -> None:
        layer(x).square().sum().backward()

    def step() -> None:
        optimizer.step()

    def train(x: torch.Tensor) -> None:
        backward(x)
        optimizer.step()

    compiled = {"model": backward, "step": step, "training step": train}[what]
    compiled = torch.compile(compiled, backend="aot_eager")
    for number in range(3):
        before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        optimizer.zero_grad()
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        if what == "training step":
            compiled(x)
        else:
            (compiled if what == "model" else backward)(x)
            (compiled if what == "step" else step)()
        assert torch.equal(layer.weight == before, MASK)
        assert (layer.bias == bias).tolist() == [False, True, False, False, False]
