"""Models that nobody here wrote, and where one might route them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTH = 16
BATCH = 4
TIME = 3


@dataclass(frozen=True)
class Architecture:
    """A model, an input for it, and one site that exists in it.

    `pattern` matches `modules`, whose tensor at `index` has the batch first and `width` units along `dim`.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    loss: Callable[[nn.Module, Tensor], Tensor]
    pattern: str
    modules: tuple[str, ...]
    width: int = WIDTH
    dim: int = -1
    index: int | None = None
    tokens: bool = False  # whether labels per token fit
    inputs_too: bool = True  # whether on="input" has the same width and dim


def _square(model, x):
    return model(x).square().sum()


def _first_square(model, x):
    return model(x)[0].square().sum()


def _images():
    return torch.randn(BATCH, 3, 8, 8)


def _sequences():
    return torch.randn(BATCH, TIME, WIDTH)


def _resnet():
    """The stem and the first two stages of a ResNet: all kinds of its blocks, and a thirtieth of ResNet-18's weights."""
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [2, 1, 1, 1])
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, 5)
    return model


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=WIDTH, vocab_size=11, n_positions=TIME, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, loss_type="ForCausalLM",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _encoder():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class _AttentionAndMore(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0])


class _RecurrentAndMore(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


ARCHITECTURES = {
    "mlp": Architecture(
        lambda: nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, 2)),
        lambda: torch.randn(BATCH, 5),
        _square,
        "0",
        ("0",),
        inputs_too=False,
    ),
    "relu of mlp": Architecture(
        lambda: nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)),
        lambda: torch.randn(BATCH, 5),
        _square,
        "1",
        ("1",),
    ),
    "resnet conv": Architecture(_resnet, _images, _square, "layer1.0.conv1", ("layer1.0.conv1",), width=64, dim=1),
    "resnet batch norm before an in-place relu": Architecture(
        _resnet, _images, _square, "layer1.0.bn1", ("layer1.0.bn1",), width=64, dim=1
    ),
    "lstm": Architecture(
        lambda: _RecurrentAndMore(nn.LSTM), _sequences, _square, "rnn", ("rnn",), index=0, tokens=True
    ),
    "gru": Architecture(lambda: _RecurrentAndMore(nn.GRU), _sequences, _square, "rnn", ("rnn",), index=0, tokens=True),
    "the model itself": Architecture(
        lambda: nn.GRU(WIDTH, WIDTH, batch_first=True), _sequences, _first_square, "", ("",), index=0, tokens=True
    ),
    "multi-head attention": Architecture(
        _AttentionAndMore, _sequences, _square, "attention", ("attention",), index=0, tokens=True
    ),
    "transformer encoder": Architecture(
        _encoder, _sequences, _square, "layers.[0-9]", ("layers.0", "layers.1"), tokens=True
    ),
    "gpt2 mlp": Architecture(
        _gpt2,
        lambda: torch.randint(0, 11, (BATCH, TIME)),
        lambda model, ids: model(ids, labels=ids).loss,
        "transformer.h.*.mlp",
        ("transformer.h.0.mlp", "transformer.h.1.mlp"),
        tokens=True,
    ),
}
