"""`add_units_` and `remove_units_`: other sizes between two layers, and what an optimizer keeps of them."""

import copy

import pytest
import torch
from torch import nn

from gradroute.errors import SiteError
from gradroute.surgery import add_units_, remove_units_
from surgery_cases import IDS, IMAGES, ODD_IMAGES, ROWS, Gated, Shared, UNet, agree, gpt2, mlp, output, resnet

PAIRS = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 2)), lambda m: (m[0], m[2], [m[1]]), ROWS
    ),
    "convolution": (resnet, lambda m: (m.layer1[0].conv1, m.layer1[0].conv2, [m.layer1[0].bn1, m.layer1[0].relu]), IMAGES),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 196, 2)),
        lambda m: (m[0], m[3], [m[1], m[2]]),
        IMAGES,
    ),
    "gpt2": (gpt2, lambda m: (m.transformer.h[0].mlp.c_fc, m.transformer.h[0].mlp.c_proj, [m.transformer.h[0].mlp.act]), IDS),
    "gated": (Gated, lambda m: ([m.gate, m.up], m.down, []), torch.randn(2, 3, 6)),
    "transposed": (UNet, lambda m: (m.middle[1], m.up, [m.middle[2]]), ODD_IMAGES),
    "transposed, both": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1), nn.Tanh(), nn.ConvTranspose1d(4, 2, 3, bias=False)
        ),
        lambda m: (m[0], m[2], [m[1]]),
        IMAGES[..., 0],
    ),
    "transposed and flattened": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 324, 2)),
        lambda m: (m[0], m[3], [m[1], m[2]]),
        IMAGES,
    ),
    "two readers": (Shared, lambda m: (m.first, [m.a, m.b], [m.act]), ROWS),
}  # fmt: skip


class TestAddUnits:
    @pytest.mark.parametrize("pair", PAIRS)
    def test_the_output_stays_and_removing_is_its_inverse(self, pair):
        build, layers, x = PAIRS[pair]
        model = build().eval()
        producer, consumer, between = layers(model)
        expected = output(model, x)
        before = copy.deepcopy(model.state_dict())
        sizes = repr(model)
        new = add_units_(producer, consumer, 3, between=between)
        assert new.stop - new.start == 3
        agree(output(model, x), expected)
        assert repr(model) != sizes
        remove_units_(producer, consumer, new, between=between)
        assert repr(model) == sizes
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_new_units_learn_and_old_parameters_keep_what_they_were(self):
        model = mlp().train()
        model[0].bias.requires_grad_(False)
        model.double()
        new = add_units_(model[0], model[4], 2, between=model[1:4], generator=torch.Generator().manual_seed(1))
        assert (model[0].weight.dtype, model[0].bias.requires_grad) == (torch.float64, False)
        assert isinstance(model[0].weight, nn.Parameter)
        with torch.no_grad():
            assert not model[4].weight[:, new].any()
            assert 0.5 < (model[0].weight[new].std() / model[0].weight[:8].std()).item() < 2
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = model[0].weight[new].clone()
        for _ in range(2):
            optimizer.zero_grad()
            model(ROWS.double()).square().sum().backward()
            optimizer.step()
        assert model[4].weight[:, new].any()
        assert not torch.equal(model[0].weight[new], rows)

    def test_parameters_stay_the_same_objects_and_older_graphs_do_no_harm(self):
        model = mlp(nn.GELU())
        parameters = list(model.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        loss = model(ROWS).square().sum()
        loss.backward()
        gradient = model[0].weight.grad.clone()
        new = add_units_(model[0], model[4], 2, between=model[1:4])  # and nobody tells the optimizer
        assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
        assert torch.equal(model[0].weight.grad[:8], gradient)
        assert not model[0].weight.grad[new].any()
        for _ in range(2):
            before = model[0].weight.detach().clone()
            optimizer.zero_grad()
            model(ROWS).square().sum().backward()
            optimizer.step()
        assert not torch.equal(model[0].weight[new], before[new])
        assert loss.grad_fn is not None, "its graph was alive all the while"

    def test_a_weight_that_is_shared_is_changed_once_or_not_at_all(self):
        model = Gated()
        model.up.weight = model.gate.weight
        x = torch.randn(2, 3, 6)
        expected = output(model, x)
        add_units_([model.gate, model.up], model.down, 2)
        assert model.up.weight is model.gate.weight
        agree(output(model, x), expected)
        square = nn.Linear(4, 4)
        with pytest.raises(SiteError, match="both makes the units and reads them"):
            add_units_(square, square, 1)

    def test_rows_by_an_init_of_ones_own(self):
        model = mlp()
        new = add_units_(model[0], model[4], 2, between=model[1:4], init=nn.init.ones_)
        assert torch.equal(model[0].weight[new], torch.ones(2, 5))
        assert torch.equal(model[0].bias[new], torch.zeros(2))

    @pytest.mark.parametrize(
        ("operate", "reason"),
        [
            (lambda m: add_units_(m[0], m[6], 0), "extra must be an integer of at least 1; got 0"),
            (lambda m: add_units_(m[0], m[4], 2, between=[nn.LayerNorm(8)]), "LayerNorm lies between, which mixes"),
            (lambda m: add_units_(m[0], m[4], 2, between=[nn.PReLU(8)]), "a PReLU with parameters lies between"),
            (lambda m: add_units_(m[0], m[4], 2, between=[nn.BatchNorm1d(4)]), "a norm between is over 4 units"),
            (lambda m: add_units_(m[0], nn.Linear(9, 2), 2), "makes 8 units, but a consumer reads 9"),
            (lambda m: add_units_(m[0], nn.Linear(16, 2), 2, between=[nn.Flatten()]), r"2 for each: in which order"),
            (lambda m: add_units_(nn.Conv1d(5, 8, 1), nn.Linear(16, 2), 2), r"give nn\.Flatten\(\) for a call"),
            (
                lambda m: add_units_(m[0], m[4], 2, between=[nn.Sequential(nn.LayerNorm(8, elementwise_affine=False))]),
                "LayerNorm lies between",
            ),
            (lambda m: add_units_(m[0], m[4], 2, between=[nn.ChannelShuffle(2)]), "ChannelShuffle lies between"),
            (lambda m: add_units_(nn.LSTM(5, 8), m[4], 2), "of a LSTM it is not known"),
            (lambda m: add_units_(nn.LayerNorm(8), m[4], 2), "LayerNorm is no layer between whose output"),
            (lambda m: add_units_([m[0], nn.Linear(5, 4)], m[4], 2), "different numbers of units: 4, 8"),
            (
                lambda m: add_units_(nn.Conv1d(4, 8, 1), nn.ConvTranspose1d(8, 4, 1, groups=2), 2),
                "the consumer is a grouped convolution, whose groups must stay of one size",
            ),
            (
                lambda m: add_units_(nn.ConvTranspose1d(4, 8, 1, groups=2), m[4], 2),
                r"nn\.ConvTranspose3d \(ungrouped on its",
            ),
            (lambda m: add_units_(nn.Conv1d(4, 8, 1, groups=2), m[4], 2), "the producer is a grouped convolution"),
            (lambda m: add_units_([], m[4], 2), "expected a module or several; got none"),
            (lambda m: remove_units_(m[0], m[4], [8]), "no unit 8: they are numbered 0 to 7"),
            (lambda m: remove_units_(m[0], m[4], slice(None)), "all 8 units would go"),
        ],
    )
    def test_refuses_with_the_reason_and_changes_nothing(self, operate, reason):
        model = mlp()
        before = repr(model)
        with pytest.raises(SiteError, match=reason):
            operate(model)
        assert repr(model) == before
