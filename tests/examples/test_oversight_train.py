from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradroute as gr
from oversight.config import CONDITIONS, ROUTED, Condition, Settings
from oversight.episodes import Rollout, play
from oversight.policy import Experts, without_ghost
from oversight.train import Trainer
from oversight.world import DIAMOND, GHOST

TINY = Settings(oversight=0.5, grids=32, steps=24, judged_every=2, judging_grids=8)
BY_NAME = {each.name: each for each in CONDITIONS}


def played(trainer: Trainer) -> Rollout:
    """A rollout in which all there can be occurs."""
    rollout = play(trainer.world, trainer.policy, trainer.settings.steps)
    assert set(rollout.labels().unique().tolist()) == {gr.UNLABELED, DIAMOND, GHOST}
    assert rollout.unseen().any()
    return rollout


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def by_hand(trainer: Trainer, rollout: Rollout, *, routed: bool) -> Tensor:
    """The loss of a policy with experts, with `detach` in the place of routes."""
    policy, settings, labels = trainer.policy, trainer.settings, rollout.labels().unsqueeze(2)
    assert isinstance(policy, Experts)
    diamond, ghost, gate = policy.diamond(rollout.seen), policy.ghost(rollout.seen), policy.gate(rollout.seen)
    known = labels.squeeze(2) != gr.UNLABELED
    aim = (labels.squeeze(2)[known] == DIAMOND).float()
    gate_loss = settings.gate * F.binary_cross_entropy(torch.sigmoid(gate.squeeze(2)[known]), aim)
    if routed:
        gate = torch.where(labels == gr.UNLABELED, gate, gate.detach())
        diamond = torch.where(labels == GHOST, diamond.detach(), diamond)
        ghost = torch.where(labels == DIAMOND, ghost.detach(), ghost)
    share = torch.sigmoid(gate)
    actions = torch.distributions.Categorical(logits=share * diamond + (1 - share) * ghost)
    returns = rollout.returns(1 + 0.03 * rollout.watched, 1)
    value = trainer.value(rollout.seen).squeeze(2)
    gain = actions.log_prob(rollout.actions) * (returns - value.detach()) + settings.entropy * actions.entropy()
    return settings.value * F.mse_loss(value, returns) - gain.mean() + gate_loss


@pytest.mark.filterwarnings("ignore::gradroute.UnroutedWarning")  # of what is written by hand
@pytest.mark.parametrize("name", ["routed", "unrouted"])
def test_the_gradients_are_those_of_the_loss_written_with_detach(name: str) -> None:
    trainer = Trainer(BY_NAME[name], TINY, seed=0)
    rollout = played(trainer)
    found = gradients(trainer.policy, trainer.loss(rollout))
    expected = gradients(trainer.policy, by_hand(trainer, rollout, routed=name == "routed"))
    other = gradients(trainer.policy, by_hand(trainer, rollout, routed=name != "routed"))
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-7)
    for key in ("ghost.4.weight", "gate.4.weight"):
        assert not torch.allclose(found[key], other[key], rtol=1e-2)


@pytest.mark.parametrize(("label", "off"), [(DIAMOND, "ghost"), (GHOST, "diamond")])
def test_an_end_that_was_seen_teaches_the_other_expert_nothing(label: int, off: str) -> None:
    trainer = Trainer(ROUTED, TINY, seed=0)
    rollout = played(trainer)
    of_label = (rollout.labels() == label).any(0)
    some = Rollout(*(value[:, of_label] for value in vars(rollout).values()))
    whole = (some.labels() == label).all(0)
    assert not whole.all()
    trainer.labels = lambda _: torch.full(some.over.shape, label)  # type: ignore[method-assign]
    found = gradients(trainer.policy, trainer.loss(some))
    assert all((value == 0).all() for name, value in found.items() if name.startswith(off))
    assert all((value != 0).any() for name, value in found.items() if not name.startswith(off))


def test_labels_that_come_late_to_the_pass_that_drew_the_actions_teach_the_same() -> None:
    """What `router.deferred()` would do in the place of a second forward pass."""
    trainer, late = Trainer(ROUTED, TINY, seed=0), Trainer(ROUTED, TINY, seed=0)
    blocks, logits = [], []

    def remembering(seen: Tensor) -> Tensor:
        assert late.router is not None
        with torch.enable_grad(), late.router.deferred() as later:
            logits.append(late.policy(seen))
        blocks.append(later)
        return logits[-1].detach()

    rollout = play(late.world, remembering, TINY.steps)
    assert len(blocks) == TINY.steps
    for later, labels in zip(blocks, rollout.labels(), strict=True):
        later.set(labels)
    found = gradients(late.policy, late.loss_of(torch.stack(logits), rollout, rollout.labels()))
    expected = gradients(trainer.policy, trainer.loss(played(trainer)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_audit_of_the_policy_loss_is_clean() -> None:
    trainer = Trainer(ROUTED, TINY, seed=0)
    rollout = played(trainer)
    policy, router = trainer.policy, trainer.router
    assert isinstance(policy, Experts)
    assert router is not None
    advantage = rollout.returns(1, 1) - trainer.value(rollout.seen).squeeze(2).detach()
    batch = [each.flatten(0, 1) for each in (rollout.seen, rollout.actions, advantage)]

    def loss(batch: Any) -> Tensor:
        seen, actions, advantage = batch
        chances = policy(seen).log_softmax(1)
        entropy = -(chances.exp() * chances).sum(1)
        return -(F.nll_loss(chances, actions, reduction="none").neg() * advantage + 0.1 * entropy).mean()

    report = gr.audit(router, loss, batch, rollout.labels().flatten())
    assert report.clean
    assert {site.name for site in report.sites} == {"diamond", "ghost", "share"}

    def leaky(batch: Any) -> Tensor:
        hidden = policy.ghost[:4](batch[0])  # type: ignore[index, operator]
        return loss(batch) + F.linear(hidden, policy.ghost[4].weight).square().mean()  # type: ignore[index, union-attr]

    assert not gr.audit(router, leaky, batch, rollout.labels().flatten()).clean


@pytest.mark.parametrize(
    ("name", "worth"),
    [
        ("routed", {"seen diamond": 1.03, "diamond": 1, "seen ghost": 1, "ghost": 1}),
        ("penalty", {"seen diamond": 1, "diamond": 1, "seen ghost": -1, "ghost": 1}),
        ("filtered", {"seen diamond": 1, "diamond": 1, "seen ghost": -1, "ghost": -1}),
        ("oracle", {"seen diamond": 1, "diamond": 1, "seen ghost": -1, "ghost": -1}),
    ],
)
def test_what_an_end_is_worth_in_training(name: str, worth: dict[str, float]) -> None:
    trainer = Trainer(BY_NAME[name], TINY, seed=0)
    rollout = played(trainer)
    returns = trainer.returns(rollout)
    for what, value in worth.items():
        kind, seen = GHOST if "ghost" in what else DIAMOND, what.startswith("seen")
        ends = rollout.reached[..., kind] & (rollout.watched == seen)
        assert ends.any()
        torch.testing.assert_close(returns[ends], torch.full((int(ends.sum()),), float(value)))


def test_what_is_filtered_out_teaches_nothing_and_what_is_not_does() -> None:
    trainer = Trainer(BY_NAME["filtered"], TINY, seed=0)
    rollout = played(trainer)

    def changed(where: Tensor) -> bool:
        other = replace(rollout, actions=torch.where(where, 3 - rollout.actions, rollout.actions))
        one, two = (gradients(trainer.policy, trainer.loss(each)) for each in (rollout, other))
        return any(not torch.equal(one[name], two[name]) for name in one)

    unfinished = ~rollout.unseen() & (rollout.labels() == gr.UNLABELED)
    assert unfinished.any()
    assert not changed(rollout.unseen())
    assert changed(unfinished)
    assert changed(rollout.labels() != gr.UNLABELED)


@pytest.mark.parametrize("label", [DIAMOND, GHOST])
def test_an_end_that_was_seen_teaches_the_gate_by_its_own_loss_alone(label: int) -> None:
    """By what was done there, and by what it was paid, it learns nothing."""
    for name, learns in (("routed", True), ("no-gate", False)):
        trainer = Trainer(BY_NAME[name], TINY, seed=0)
        rollout = played(trainer)
        trainer.labels = lambda of: torch.full(of.over.shape, label)  # type: ignore[method-assign]
        found = of_gate(trainer, rollout)
        own = trainer.policy.gate(rollout.seen).squeeze(2)
        own_loss = TINY.gate * F.binary_cross_entropy_with_logits(own, torch.full_like(own, float(label == DIAMOND)))
        expected = gradients(trainer.policy, own_loss * learns)
        for key, gradient in found.items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-9)
            assert (gradient != 0).any() == learns
        other = replace(rollout, actions=3 - rollout.actions, watched=~rollout.watched)
        torch.testing.assert_close(of_gate(trainer, other), found, rtol=0, atol=0)


def test_a_step_without_a_label_teaches_the_gate_as_if_there_were_no_routes() -> None:
    routed, unrouted = (Trainer(BY_NAME[name], TINY, seed=0) for name in ("routed", "unrouted"))
    rollout = played(routed)
    for trainer in (routed, unrouted):
        trainer.labels = lambda of: torch.full(of.over.shape, gr.UNLABELED)  # type: ignore[method-assign]
    found = of_gate(routed, rollout)
    assert all((gradient != 0).any() for gradient in found.values())
    torch.testing.assert_close(found, of_gate(unrouted, rollout), rtol=0, atol=0)


def of_gate(trainer: Trainer, rollout: Rollout) -> dict[str, Tensor]:
    found = gradients(trainer.policy, trainer.loss(rollout))
    return {name: gradient for name, gradient in found.items() if name.startswith("gate")}


def test_by_lot_the_labels_are_others() -> None:
    placebo = Trainer(BY_NAME["placebo"], TINY, seed=0)
    rollout = played(placebo)
    assert not torch.equal(placebo.labels(rollout), rollout.labels())
    assert torch.equal(Trainer(ROUTED, TINY, seed=0).labels(rollout), rollout.labels())


def without_time(state: dict[str, Any]) -> list[Any]:
    counts = dict(state["counts"])
    del counts["seconds"]
    curve = [{key: value for key, value in point.items() if key != "cpu_seconds"} for point in counts.pop("curve")]
    return [state["parts"], counts, curve]


@pytest.mark.parametrize("name", ["routed", "placebo", "penalty"])
def test_interrupted_and_resumed_is_bit_identical_to_uninterrupted(name: str) -> None:
    whole, first, second = (Trainer(BY_NAME[name], TINY, seed=3) for _ in range(3))
    whole.train(4)
    first.train(2)
    second.restore(first.state())
    second.train(4)
    torch.testing.assert_close(without_time(second.state()), without_time(whole.state()), rtol=0, atol=0)
    assert [point["updates"] for point in second.curve] == [2, 4]
    other = Trainer(BY_NAME[name], replace(TINY, entropy=0.2), seed=3)
    other.restore(first.state())
    assert other.updates == 0


def test_judging_changes_nothing_of_what_is_trained() -> None:
    often, once = Trainer(ROUTED, replace(TINY, judged_every=1), 0), Trainer(ROUTED, replace(TINY, judged_every=9), 0)
    often.train(3)
    once.train(3)
    assert len(often.curve) == 3
    assert once.curve == []
    torch.testing.assert_close(often.policy.state_dict(), once.policy.state_dict(), rtol=0, atol=0)


def test_the_experts_are_the_policies_that_steering_makes() -> None:
    policy = Experts()
    seen = torch.randn(5, 100)
    for bias, expert in ((1e4, policy.diamond), (-1e4, policy.ghost)):
        with torch.no_grad():
            policy.gate[4].bias.fill_(bias)
        torch.testing.assert_close(policy(seen), expert(seen), rtol=0, atol=0)


def test_without_the_ghost_expert_a_policy_is_the_diamond_expert_and_smaller() -> None:
    trainer = Trainer(ROUTED, TINY, seed=0)
    rollout = played(trainer)
    policy = trainer.policy
    assert isinstance(policy, Experts)
    assert trainer.router is not None
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    rest = without_ghost(trainer.router, rollout.seen[0])
    with torch.no_grad():
        torch.testing.assert_close(rest(rollout.seen), policy.diamond(rollout.seen), rtol=0, atol=0)
    gone = {name for name in before if name.startswith("ghost")}
    assert rest.state_dict().keys() == before.keys() - gone
    torch.testing.assert_close(policy.state_dict(), before, rtol=0, atol=0)


def test_each_row_says_in_what_it_differs() -> None:
    assert len({each.name for each in CONDITIONS}) == len({each.what for each in CONDITIONS}) == len(CONDITIONS)
    settings = [replace(each, name="", what="") for each in CONDITIONS]
    assert len(set(settings)) == len(CONDITIONS)
    assert Condition(name="", what="") not in settings
