"""Looking into an optimizer: against the optimizers themselves, driven by hand."""

import pytest
import torch

from l2l_kit import baseline
from l2l_kit.evaluation import (
    TensorMemory,
    hidden_units,
    meta_gradient_bias,
    proposals,
    proposed_steps,
    recorded_gradients,
    responses,
)
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import MNIST, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import AutogradEstimator, rollout

OPTIMIZERS = {
    "LSTM": LSTMRule(hidden_size=4, preprocessing="log-sign"),
    "SGD": baseline("sgd", 0.1),
    "NAG": baseline("nag", 0.1),
    "RMSprop": baseline("rmsprop", 0.1),
    "Adam": baseline("adam", 0.1),
}
HISTORY = torch.tensor([0.5, -1.0, 2.0, 0.0, -0.3])
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def driven(optimizer, gradients):
    """Updates of a single coordinate."""
    state = optimizer.init({"x": torch.zeros(1, 1)})
    updates = []
    for gradient in gradients:
        update, state = optimizer.update({"x": torch.tensor([[gradient]])}, state, {"x": torch.zeros(1, 1)})
        updates.append(update["x"].item())
    return updates


@pytest.mark.filterwarnings("error")  # a reader of lesson 7 would see it
@each_optimizer
@pytest.mark.parametrize("history", [HISTORY, HISTORY[:0]], ids=["history", "first step"])
def test_proposals_are_what_comes_after_the_history(name, history):
    probes = torch.linspace(-2, 2, 5)
    found = proposals({name: OPTIMIZERS[name]}, history, probes)[name]
    assert found.shape == (len(history) + 1, len(probes))
    for steps in range(len(history) + 1):
        for place, probe in enumerate(probes.tolist()):
            expected = driven(OPTIMIZERS[name], [*history[:steps].tolist(), probe])[-1]
            assert found[steps, place].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@each_optimizer
def test_responses_are_the_updates(name):
    found = responses({name: OPTIMIZERS[name]}, torch.stack([HISTORY, -2 * HISTORY], dim=1))[name]
    for column, history in zip(found.T, (HISTORY, -2 * HISTORY), strict=True):
        assert column.tolist() == pytest.approx(driven(OPTIMIZERS[name], history.tolist()), rel=1e-5, abs=1e-7)


@each_optimizer
def test_recorded_gradients_lead_along_the_trajectory(name):
    gradients = recorded_gradients(OPTIMIZERS[name], Quadratics(dim=3), steps=6, seed=5, device="cpu")["theta"]
    assert gradients.shape == (7, 3)
    updates = responses({name: OPTIMIZERS[name]}, gradients[:-1])[name]
    tasks = Quadratics(dim=3).sample(1, generator(5, "test"))
    loss = tasks.losses({"theta": tasks.theta + updates.sum(dim=0)})
    torch.testing.assert_close(loss, rollout(OPTIMIZERS[name], tasks, 6)[:, -1], rtol=1e-4, atol=0)


def test_hidden_units_are_those_of_the_state():
    """The update is the output layer of the upper cells' outputs."""
    lstm, gradients = LSTMRule(hidden_size=4), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    held = hidden_units(lstm, gradients)
    assert held.shape == (5, 8, 3)
    state = lstm.initial_state(3)
    for row, units in zip(gradients, held, strict=True):
        updates, state = lstm.step(row, state)
        torch.testing.assert_close(units, state.hidden.flatten(0, 1))
        torch.testing.assert_close((lstm.output.weight @ units[4:] + lstm.output.bias)[0], updates)
    lstm.odd, lstm.sides = True, 2
    torch.testing.assert_close(hidden_units(lstm, gradients), held)  # those for ∇


class TestProposedSteps:
    def test_gradient_descent_goes_against_the_gradient_as_far_as_its_rate(self):
        """Its `size` at every step is lr times the root mean square of that step's gradient."""
        table = proposed_steps({"SGD": baseline("sgd", 0.01)}, Quadratics(5), steps=4, num_tasks=3, device="cpu")
        assert list(table.columns) == ["optimizer", "step", "parameter", "size", "descent"]
        assert table["step"].tolist() == [1, 2, 3, 4]
        assert set(table["parameter"]) == {"theta"}
        assert table["descent"].tolist() == pytest.approx([1] * 4, abs=1e-3)
        tasks = Quadratics(5).sample(3, generator(0, "test"))
        theta = tasks.theta
        for size in table["size"]:
            residual = (tasks.W @ theta[:, :, None])[:, :, 0] - tasks.y
            gradient = 2 * (tasks.W.mT @ residual[:, :, None])[:, :, 0]
            assert size == pytest.approx(0.01 * gradient.square().mean(dim=1).sqrt().mean().item(), rel=1e-3)
            theta = theta - 0.01 * gradient

    def test_it_meets_the_minibatch_of_each_step_and_tells_parameters_apart(self):
        """Gradient descent goes against the gradient of the minibatch that it was given: no other one's."""
        digits = MNIST(source="embedded", hidden=(3,), batch_size=16)
        table = proposed_steps({"SGD": baseline("sgd", 0.1)}, digits, steps=3, num_tasks=2, device="cpu")
        assert table["parameter"].tolist() == ["weight0", "bias0", "weight1", "bias1"] * 3
        assert table["descent"].tolist() == pytest.approx([1] * 12, abs=1e-3)
        assert table["size"].nunique() == 12


class TestBiasOfTheMetaGradient:
    @pytest.mark.parametrize("averaging", [0, 2])
    def test_it_is_that_of_autograd(self, averaging):
        rule = LSTMRule(hidden_size=4, global_averaging_cells=averaging, output_scale=0.1)
        table = meta_gradient_bias(rule, Quadratics(dim=3), unrolls=[2, 4], horizon=8, num_tasks=5, device="cpu")
        table = table.set_index(["unroll", "second order"])
        gradients = {}
        for dashed in (False, True):
            for unroll in (2, 4, 8):
                unroller = AutogradEstimator(rule, second_order=dashed)
                for batch in range(2):
                    unroller.reset(Quadratics(dim=3).sample(5, generator(0, "test", batch)))
                    windows = [unroller.unroll(unroll).meta_gradient for _ in range(8 // unroll)]
                    gradients.setdefault((unroll, dashed), []).append(
                        torch.cat([sum(w[name] for w in windows).flatten() for name in sorted(windows[0])])
                    )
        whole = sum(gradients[8, True])
        assert set(table.index) == set(gradients)
        for key, (one, other) in gradients.items():
            cosine, agreement = (torch.cosine_similarity(*pair, dim=0) for pair in ((one + other, whole), (one, other)))
            expected = cosine.item(), ((one + other).norm() / whole.norm()).item(), agreement.item()
            assert table.loc[key].tolist() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("unroll", [3, 0])
    def test_an_unroll_that_does_not_divide_the_horizon_is_refused(self, unroll):
        with pytest.raises(ValueError, match=f"must divide the horizon 8, got {unroll}"):
            meta_gradient_bias(LSTMRule(), Quadratics(), unrolls=[unroll], horizon=8)


class TestTensorMemory:
    def test_what_is_alive_at_once(self):
        before = torch.zeros(1000)
        with TensorMemory() as memory:
            kept = torch.ones(100)  # 400 bytes
            for _ in range(3):
                torch.ones(50)  # 200 bytes, one after the other
            kept.view(10, 10).add_(before[:100].view(10, 10))  # views, and what was there before, in place
        assert memory.peak == 4 * (100 + 50)
