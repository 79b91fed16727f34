"""`RoutedCallback`: Lightning trains what a loop by hand trains, with checkpointing of either kind."""

import inspect
import os
import subprocess
import sys

import lightning
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import gradroute as gr
from gradroute.errors import LabelError, UsageError
from gradroute.trainers import RoutedCallback

pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
SPEC = gr.RoutingSpec.split({"retain": 10, "forget": 4}, shared=2)
REENTRANT = pytest.mark.parametrize("reentrant", [None, False, True], ids=["stored", "recomputed", "reentrant"])
LEVEL = pytest.mark.parametrize("level", ["activations", "parameters"])


class Net(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
            self.head = nn.Linear(8, 2)
        self.reentrant = reentrant

    def forward(self, x):
        if self.reentrant is not None and torch.is_grad_enabled():
            x = x.requires_grad_() if self.reentrant else x
            return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant))
        return self.head(self.inner(x))


def loss_of(net, x, y):
    return nn.functional.cross_entropy(net(x), y)


class Task(lightning.LightningModule):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.model = Net(reentrant)

    def training_step(self, batch, batch_idx):
        return loss_of(self.model, batch["x"].clone(), batch["y"])

    def validation_step(self, batch, batch_idx):
        return loss_of(self.model, batch["x"], batch["y"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


class Rows(torch.utils.data.Dataset):
    def __init__(self, labels=True):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(12, 8, generator=generator)
        self.y = torch.randint(0, 2, (12,), generator=generator)
        self.route_labels = torch.tensor([0, 1, 1, -1]).repeat(3)
        self.names = ("x", "y", "route_labels") if labels else ("x", "y")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {name: getattr(self, name)[index] for name in self.names}


def fit(task, callback, path, data=None, *, resume=None, **options):
    trainer = lightning.Trainer(
        **{
            "default_root_dir": path,
            "max_epochs": 2,
            "accelerator": "cpu",
            "callbacks": [callback],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )
    validation = DataLoader(Rows(labels=False), batch_size=4)
    how = {"ckpt_path": resume} if resume else {}
    if resume and "weights_only" in inspect.signature(trainer.fit).parameters:  # not before Lightning 2.6
        how["weights_only"] = False
    trainer.fit(task, data or DataLoader(Rows(), batch_size=4), validation, **how)
    return trainer


def by_hand(level, *, accumulation=1, routed=True):
    net = Net()
    router = gr.Router(net, {"inner.0": gr.Site(SPEC, level=level)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    for _ in range(2):
        for number, batch in enumerate(DataLoader(Rows(), batch_size=4), start=1):
            labels = batch["route_labels"] if routed else torch.full_like(batch["route_labels"], gr.UNLABELED)
            with router(labels):
                (loss_of(net, batch["x"], batch["y"]) / accumulation).backward()
            if number % accumulation == 0 or number == 3:  # Lightning steps at an epoch's end, too
                optimizer.step()
                optimizer.zero_grad()
    return net.state_dict()


def assert_same(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@LEVEL
@REENTRANT
@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_trains_what_a_loop_by_hand_trains(level, reentrant, accumulation, tmp_path):
    task = Task(reentrant)
    router = gr.Router(task.model, {"inner.0": gr.Site(SPEC, level=level)})
    fit(task, RoutedCallback(router), tmp_path, accumulate_grad_batches=accumulation)
    expected = by_hand(level, accumulation=accumulation)
    assert_same(task.model.state_dict(), expected)
    unrouted = by_hand(level, accumulation=accumulation, routed=False)
    assert (unrouted["inner.0.weight"] - expected["inner.0.weight"]).abs().max() > 1e-2
    assert router.labels is None


def test_batches_without_names_say_where_their_labels_are(tmp_path):
    class Tuples(Task):
        def training_step(self, batch, batch_idx):
            return loss_of(self.model, batch[0], batch[1])

        def validation_step(self, batch, batch_idx):
            pass

    task, rows = Tuples(), Rows()
    router = gr.Router(task.model, {"inner.0": SPEC})
    data = DataLoader(TensorDataset(rows.x, rows.y, rows.route_labels), batch_size=4)
    fit(task, RoutedCallback(router, labels_of=lambda batch: batch[2]), tmp_path, data)
    assert_same(task.model.state_dict(), by_hand("activations"))


def test_a_batch_without_labels_is_refused_and_the_block_closed(tmp_path):
    task = Task()
    router = gr.Router(task.model, {"inner.0": SPEC})
    with pytest.raises(UsageError, match=r"no route_labels.*labels_of.*\['x', 'y'\]"):
        fit(task, RoutedCallback(router), tmp_path, DataLoader(Rows(labels=False), batch_size=4))
    with pytest.raises(LabelError):
        fit(task, RoutedCallback(router, labels_of=lambda batch: batch["y"] + 7), tmp_path)
    assert router.labels is None


def test_a_step_that_fails_leaves_no_block_open(tmp_path):
    class Fails(Task):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("as a test")

    task = Fails()
    router = gr.Router(task.model, {"inner.0": SPEC})
    with pytest.raises(RuntimeError, match="as a test"):
        fit(task, RoutedCallback(router), tmp_path, num_sanity_val_steps=0)
    assert router.labels is None


def test_an_epoch_that_is_left_early_leaves_no_block_open(tmp_path):
    class Leaves(Task):
        def on_train_batch_start(self, batch, batch_idx):
            return -1

    task = Leaves()
    router = gr.Router(task.model, {"inner.0": SPEC})
    fit(task, RoutedCallback(router), tmp_path)
    assert router.labels is None


def test_a_router_of_another_model_is_refused(tmp_path):
    router = gr.Router(Net(), {"inner.0": SPEC})
    with pytest.raises(UsageError, match="another model than those in this Task"):
        fit(Task(), RoutedCallback(router), tmp_path)


LOAD = """
import sys
sys.modules["gradroute"] = None
import torch
saved = torch.load(sys.argv[1], weights_only=False)
torch.save(saved["state_dict"], sys.argv[2])
"""


def test_checkpoints_are_the_plain_modules_and_training_resumes_from_them(tmp_path):
    def routed():
        task = Task()
        return task, RoutedCallback(gr.Router(task.model, {"inner.0": SPEC}))

    task, callback = routed()
    trainer = fit(task, callback, tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "one.ckpt"), str(tmp_path / "state.pt")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "state.pt")
    assert state.keys() == Task().state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in task.state_dict().items())

    task, callback = routed()
    fit(task, callback, tmp_path, resume=tmp_path / "one.ckpt")
    assert_same(task.model.state_dict(), by_hand("activations"))
