"""Where `ablate_` writes zeros for a module as a whole: only where its own program shows that they make zeros."""

import copy

import pytest
import torch
from torch import nn

import gradroute as gr
from gradroute.errors import SiteError
from gradroute.surgery import ablate_, contract
from surgery_cases import CELLS, IDS, ONE, ROWS, TOKENS, Residual, agree, expert, output, whole


class TestZeros:
    @pytest.mark.parametrize(
        "module",
        [
            nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)),
            nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6), nn.Tanh()),
            nn.Sequential(nn.Linear(6, 6), nn.Unflatten(-1, (2, 3)), nn.GroupNorm(1, 5), nn.Flatten(-2)),
            nn.Sequential(nn.Unflatten(1, (5, 1)), nn.ConvTranspose2d(5, 5, 1), nn.BatchNorm2d(5), nn.Flatten(2)),
            nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Conv2d(5, 4, 1, groups=1), nn.MaxPool2d(1), nn.ZeroPad2d(1)),
            Residual(expert()).after[3:],
        ],
    )
    def test_of_whatever_is_before_them(self, module):
        model = nn.Sequential(nn.Identity(), module).eval()
        x = torch.randn(3, 5, 8) if isinstance(module[1], nn.Linear) else TOKENS
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        router = gr.Router(model, {"1": whole()})
        assert output(model, x).any()
        ablate_(router, "forget", example=x)
        assert not output(model, x + 1).any()
        assert not any(parameter.any() for parameter in model[1].parameters())

    @pytest.mark.parametrize(
        ("add", "reason"),
        [
            (Residual(expert()), "Residual"),
            (nn.Sequential(nn.Linear(6, 6), nn.Sigmoid()), "Sequential"),
            (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), "ParametrizedLinear"),
        ],
        ids=["a residual connection", "a sigmoid", "a weight that is computed"],
    )
    def test_are_not_written_where_they_do_not_make_zeros(self, add, reason):
        if isinstance(add, Residual):
            add.after = nn.Identity()
        model = nn.Sequential(Residual(copy.deepcopy(add)), nn.LayerNorm(2)).eval()
        before = copy.deepcopy(model.state_dict())
        router = gr.Router(model, {"0.add": whole()})
        message = rf"site '0\.add': zeros in all parameters of this {reason} are not known.*Or take the module out, as contract"
        with pytest.raises(SiteError, match=message):
            ablate_(router, "forget", example=TOKENS)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        with router.ablated("forget"):
            expected = output(model, TOKENS)
        agree(output(contract(router, "forget", example=TOKENS).model, TOKENS), expected)

    def test_a_layer_alone_needs_no_example(self):
        model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        router = gr.Router(model, {"0": whole(), "3": whole(on="input")})
        with router.ablated("forget"):
            expected = output(model, IDS)
        bias = model[3].bias.detach().clone()
        ablate_(router, "forget")
        assert torch.equal(output(model, IDS), expected)
        assert not model[0].weight.any()
        assert not model[3].weight.any()
        assert torch.equal(model[3].bias, bias), "a bias reads nothing"
        with pytest.raises(SiteError, match=r"site '': of a Sequential no weights are known.*example=\.\.\."):
            ablate_(gr.Router(expert(), {"": whole()}), "forget")

    def test_the_model_itself_may_be_of_zeros_alone(self):
        model = expert()
        ablate_(gr.Router(model, {"": whole()}), "forget", example=CELLS)
        assert not any(parameter.any() for parameter in model.parameters())

    def test_weights_that_other_code_reads_stay(self):
        class Read(Residual):
            def forward(self, x):
                return super().forward(x) + self.add[2].bias.sum()

        model = Read(expert())
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(SiteError, match="are read by other code"):
            ablate_(gr.Router(model, {"add": whole()}), "forget", example=TOKENS)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_fresh_entries_for_relearning_are_of_the_scale_that_was_there(self):
        model = Residual(nn.Sequential(nn.Linear(6, 400), nn.Linear(400, 6)))
        model.add.scale = nn.Parameter(torch.tensor(3.0))  # of no dimension
        nn.init.normal_(model.add[0].weight, 2.0, 0.1)
        generator = torch.Generator().manual_seed(0)
        old = model.add[0].weight.detach().clone()
        ablate_(gr.Router(model, {"add": whole()}), "forget", example=TOKENS, reinit=True, generator=generator)
        assert not torch.equal(model.add[0].weight, old)
        assert abs(model.add[0].weight.mean().item() - 2.0) < 0.05
        assert 0.08 < model.add[0].weight.std().item() < 0.12
        assert model.add.scale.item() == 3.0

    def test_behind_a_module_without_parameters_they_are_those_of_the_layer_before(self):
        model = nn.Sequential(nn.Linear(5, 8), nn.Identity(), nn.ReLU(), nn.Linear(8, 2))
        router = gr.Router(model, {"1": gr.Site(ONE, dim=None)})
        with router.ablated("forget"):
            expected = output(model, ROWS)
        ablate_(router, "forget", example=ROWS)
        agree(output(model, ROWS), expected)
        assert not model[0].weight.any()
