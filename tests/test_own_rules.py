"""A learned optimizer of one's own, whose network is no LSTM (lesson 10): it is trained and compared like the kit's."""

from typing import NamedTuple

import pytest
import torch
from small import Network, quadratics
from torch import Tensor, nn

from l2l_kit import LearnedOptimizer
from l2l_kit.evaluation import compare
from l2l_kit.making.imitation import imitate
from l2l_kit.optimizers import LSTMRule, UpdateRule, baseline
from l2l_kit.optimizers.base import Memory, Part
from l2l_kit.problems import Quadratics
from l2l_kit.training import (
    AutogradEstimator,
    FirstOrderEstimator,
    MetaTraining,
    SecondOrderEstimator,
    meta_train,
    rollout,
    trajectory,
)


class Mean(NamedTuple):
    mean: Tensor


class HeavyBall(UpdateRule):
    """Its state has no axis but the coordinates', and its first part may be zero while the second is not."""

    kind = "heavy-ball"
    coordinatewise = True

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.1))

    config, network_for, parts = (lambda self: {}), (lambda self, kind: self), (lambda self, layout: [])

    def initial_state(self, *shape: int) -> "Ball":
        return Ball(torch.zeros(shape), torch.zeros(shape))

    def forward(self, gradients, state):
        momentum = 0.9 * state.momentum + gradients
        return -0.1 * momentum - self.bias, Ball(gradients, momentum)

    step = torch.no_grad()(forward)


class Ball(NamedTuple):
    last: Tensor
    momentum: Tensor


def test_its_memory_is_kept_and_coordinates_without_a_gradient_stay():
    param = nn.Parameter(torch.zeros(3))
    optimizer, rule = LearnedOptimizer([param], HeavyBall()), HeavyBall()
    state, expected = rule.initial_state(3), torch.zeros(3)
    for gradient in ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]):
        param.grad = torch.tensor(gradient)
        update, state = rule.step(param.grad, state)
        expected += update
        optimizer.step()
    assert param[0].item() == pytest.approx(expected[0].item())
    assert param[1].item() == 0.0
    assert param[2].item() == pytest.approx(2 * (-0.2 - 0.1) + 0.02)  # its first two updates did not happen


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"initial_state": lambda self, *shape: (torch.zeros(shape),)}, "expected a named tuple of floating-point"),
        ({"initial_state": lambda self, *shape: ()}, "expected a named tuple of floating-point"),
        ({"initial_state": lambda self, *shape: Ball(torch.zeros(()), torch.zeros(shape))}, "whose last axes are"),
        ({"initial_state": lambda self, *shape: Ball(*torch.zeros(2, *shape).int())}, "floating-point tensors"),
        ({"step": lambda self, gradients, state: (gradients[..., :1], state)}, r"expected updates of shape \("),
        ({"step": lambda self, gradients, state: (gradients, tuple(state))}, "and a Ball with these last axes, got"),
        ({"step": lambda self, gradients, state: gradients}, "expected updates and the state after them"),
        ({"step": lambda self, gradients, state: (gradients, Ball(state.last[..., :1], state.momentum))}, "these last"),
        ({"initial_state": lambda self, *shape: Ball(0, torch.zeros(shape))}, "floating-point tensors"),
    ],
)
def test_a_network_that_cannot_be_run_is_refused_at_once(broken, message):
    rule = type(
        "Broken", (HeavyBall,), {**broken, "parts": lambda self, layout: [Part("", self, slice(None), layout.sizes)]}
    )()
    with pytest.raises(TypeError, match=f"Broken.*{message}"):
        LearnedOptimizer([nn.Parameter(torch.zeros(3))], rule)
    with pytest.raises(TypeError, match=f"Broken.*{message}"):
        meta_train(
            rule,
            Quadratics(dim=3),
            MetaTraining(horizon=2, unroll=2, epochs=1, episodes_per_epoch=1, batch_size=2, validation_tasks=2),
        )


def test_a_state_that_does_not_begin_with_zeros_is_not_for_learned_optimizer():
    rule = type("Ones", (HeavyBall,), {"initial_state": lambda self, *shape: Ball(*torch.ones(2, *shape))})()
    with pytest.raises(TypeError, match=r"Ones.initial_state: expected zeros, with which LearnedOptimizer begins"):
        LearnedOptimizer([nn.Parameter(torch.zeros(3))], rule)


def test_a_rule_may_have_a_weight_for_each_coordinate():
    class Rates(HeavyBall):
        def __init__(self) -> None:
            super().__init__()
            self.rates = nn.Parameter(torch.full((3,), 0.01))

        def parts(self, layout):
            return [Part("", self, slice(None), layout.sizes)]

        def forward(self, gradients, state):
            return -self.rates * gradients, state

        step = torch.no_grad()(forward)

    assert compare({"Rates": Rates()}, Quadratics(dim=3), steps=2, num_tasks=2)["Rates"].isfinite().all()


class MomentumMLP(UpdateRule):
    """An update from a gradient and a running mean of gradients."""

    kind = "momentum-mlp"
    coordinatewise = False  # so that the tape written for LSTMs is not used

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def config(self) -> dict[str, object]:
        return {"kind": self.kind}

    def network_for(self, kind):
        return self

    def parts(self, layout) -> list[Part]:
        return [Part("", self, slice(None), layout.sizes)]

    def initial_state(self, *shape: int) -> Mean:
        return Mean(self.layers[0].weight.new_zeros(shape))

    def forward(self, gradients: Tensor, state: Mean) -> tuple[Tensor, Mean]:
        mean = 0.9 * state.mean + 0.1 * gradients
        return 0.01 * self.layers(torch.stack([gradients, mean], dim=-1))[..., 0], Mean(mean)

    @torch.no_grad()
    def step(self, gradients: Tensor, state: Mean) -> tuple[Tensor, Mean]:
        return self(gradients, state)


@pytest.mark.parametrize("second_order", [False, True], ids=["first order", "second order"])
def test_its_meta_gradient_is_that_of_autograd(second_order: bool) -> None:
    rule = MomentumMLP().double()
    estimators = (
        (SecondOrderEstimator if second_order else FirstOrderEstimator)(rule),
        AutogradEstimator(rule, second_order=second_order),
    )
    for estimator in estimators:
        estimator.reset(quadratics())
    for steps in (4, 3):
        found, expected = (estimator.unroll(steps) for estimator in estimators)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.meta_gradient, expected.meta_gradient, rtol=1e-9, atol=1e-12)


class Clipped(LSTMRule):
    """The kit's LSTM with another output: as independent of other coordinates as the original."""

    def forward(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        updates, after = super().forward(gradients, state)
        return 0.01 * updates.tanh(), after

    def step(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        updates, after = super().step(gradients, state)
        return 0.01 * updates.tanh(), after


def test_the_tape_of_the_kits_lstm_is_not_taken_for_one_that_does_something_else() -> None:
    rule = Clipped(4, 1).double()
    assert rule.coordinatewise
    estimators = FirstOrderEstimator(rule), AutogradEstimator(rule, second_order=False)
    for estimator in estimators:
        estimator.reset(quadratics())
    found, expected = (estimator.unroll(3) for estimator in estimators)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.meta_gradient, expected.meta_gradient, rtol=1e-9, atol=1e-12)


def test_its_coordinates_are_not_sampled_in_silence() -> None:
    with pytest.raises(ValueError, match="a network of one's own can't be sampled"):
        FirstOrderEstimator(Clipped(4, 1), sample=3)


def test_it_is_not_imitated_with_the_tape_of_another() -> None:
    with pytest.raises(ValueError, match="a Clipped does not move each coordinate as LSTMRule does"):
        list(imitate(Clipped(4, 1), baseline("adam", 0.05), Quadratics(), device="cpu"))


def test_training_makes_it_better() -> None:
    trained, problem = MomentumMLP(), Quadratics(dim=3)
    settings = MetaTraining(horizon=20, unroll=10, epochs=2, episodes_per_epoch=10, batch_size=16, meta_lr=0.03)
    meta_train(trained, problem, settings, device="cpu", progress=False)
    losses = compare({"before": MomentumMLP(), "after": trained}, problem, steps=20, num_tasks=64, device="cpu").losses
    assert losses["after"][:, -1].mean() < 0.5 * losses["before"][:, -1].mean()


class Step:
    """Gradient descent whose answer is changed; `Optimizer` asks for no base class."""

    def __init__(self, change=lambda updates, state, params: (updates, state)):
        self.change = change

    def init(self, params):
        return None

    def update(self, gradients, state, params):
        return self.change({name: -0.1 * gradient for name, gradient in gradients.items()}, state, params)


def test_updates_are_matched_by_name() -> None:
    swapped = Step(lambda updates, state, params: (dict(reversed(updates.items())), state))
    found, expected = (list(trajectory(rule, Network(), 3))[-1] for rule in (swapped, Step()))
    assert torch.equal(found.params, expected.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda updates, state, params: updates, "a dict of named updates and the new state, got {"),
        (lambda updates, state, params: ([*updates.values()], state), "a dict of named updates"),
        (lambda updates, state, params: ({}, state), "updates of the names, .*; got none"),
        (lambda updates, state, params: (updates | {"more": updates["fc.bias"]}, state), "updates of the names"),
        (lambda updates, state, params: ({f"{n}s": u for n, u in updates.items()}, state), "got 'conv.weights'"),
        (lambda updates, state, params: ({n: u[:1] for n, u in updates.items()}, state), r"got .* \(1, 2, 4\)"),
        (lambda updates, state, params: ({n: u.mean() for n, u in updates.items()}, state), r"got .* \(\) torch"),
        (lambda updates, state, params: ({n: u.float() for n, u in updates.items()}, state), "got .* torch.float32"),
        (lambda updates, state, params: (dict.fromkeys(updates, 0.1), state), "got 'conv.weight' 0.1"),
        (lambda updates, state, params: ({n: params[n].add_(u) for n, u in updates.items()}, state), "leave `params`"),
    ],
)
def test_another_answer_is_refused_by_the_rule_s_name(change, message) -> None:
    with pytest.raises(ValueError, match=rf"^Step\.update: expected .*{message}"):
        rollout(Step(change), Network(), 2)


def test_a_class_in_place_of_an_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="'mine': expected an optimizer of the kit"):
        compare({"mine": Step}, Quadratics(), steps=1, num_tasks=1, device="cpu")
