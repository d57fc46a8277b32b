"""Looking into an optimizer: against the optimizers themselves, driven by hand."""

import pytest
import torch

from l2l_kit import baseline
from l2l_kit.evaluation import (
    TensorMemory,
    compare,
    hidden_units,
    meta_gradient_bias,
    proposals,
    recorded_gradients,
    responses,
)
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import AutogradEstimator

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
    state = optimizer.init(nowhere := {"x": torch.zeros(1, 1)})
    updates = []
    for gradient in gradients:
        update, state = optimizer.update({"x": torch.tensor([[gradient]])}, state, nowhere)
        updates.append(update["x"].item())
    return updates


@each_optimizer
def test_proposals_are_what_comes_after_the_history(name):
    probes = torch.linspace(-2, 2, 5)
    found = proposals({name: OPTIMIZERS[name]}, HISTORY, probes)[name]
    assert found.shape == (len(HISTORY) + 1, len(probes))
    for steps in range(len(HISTORY) + 1):
        for place, probe in enumerate(probes.tolist()):
            expected = driven(OPTIMIZERS[name], [*HISTORY[:steps].tolist(), probe])[-1]
            assert found[steps, place].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@each_optimizer
def test_responses_are_the_updates(name):
    found = responses({name: OPTIMIZERS[name]}, torch.stack([HISTORY, -2 * HISTORY], dim=1))[name]
    assert found.shape == (5, 2)
    for column, history in enumerate((HISTORY, -2 * HISTORY)):
        expected = driven(OPTIMIZERS[name], history.tolist())
        assert found[:, column].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@each_optimizer
def test_recorded_gradients_lead_along_the_trajectory(name):
    problem, optimizer = Quadratics(dim=3), OPTIMIZERS[name]
    gradients = recorded_gradients(optimizer, problem, steps=6, seed=5, device="cpu")["theta"]
    assert gradients.shape == (7, 3)
    tasks = problem.sample(1, generator(5, "test"))
    params, state = tasks.initial_params, optimizer.init(tasks.initial_params)
    for gradient in gradients[:-1]:
        updates, state = optimizer.update({"theta": gradient[None]}, state, params)
        params = {"theta": params["theta"] + updates["theta"]}
    curves = compare({name: optimizer}, problem, steps=6, num_tasks=1, seed=5, device="cpu")
    assert tasks.losses(params).item() == pytest.approx(curves[name][0, -1].item(), rel=1e-4)


def test_hidden_units_are_those_of_the_state():
    lstm, gradients = LSTMRule(hidden_size=4), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    held = hidden_units(lstm, gradients)
    assert held.shape == (5, 8, 3)
    state = lstm.initial_state(3)
    for row in gradients:
        _, state = lstm.step(row, state)
    assert torch.equal(held[-1, :4], state.hidden[0])
    assert torch.equal(held[-1, 4:], state.hidden[1])
    update = lstm.output.weight @ held[-1, 4:] + lstm.output.bias
    torch.testing.assert_close(update[0], lstm.step(gradients[-1], _before(lstm, gradients))[0])


def _before(lstm, gradients):
    state = lstm.initial_state(gradients.shape[1])
    for row in gradients[:-1]:
        _, state = lstm.step(row, state)
    return state


@pytest.mark.parametrize("averaging", [0, 2])
def test_bias_of_the_meta_gradient(averaging):
    rule = LSTMRule(hidden_size=4, global_averaging_cells=averaging, output_scale=0.1)
    table = meta_gradient_bias(rule, Quadratics(dim=3), unrolls=[2, 4], horizon=8, num_tasks=5, device="cpu")
    table = table.set_index(["unroll", "dashed edges"])
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


def test_memory_of_what_is_alive_at_once():
    before = torch.zeros(1000)
    with TensorMemory() as memory:
        kept = torch.ones(100)  # 400 bytes
        for _ in range(3):
            torch.ones(50)  # 200 bytes, one after the other
        kept.view(10, 10).add_(before[:100].view(10, 10))  # views, and what was there before, in place
    assert memory.peak == 4 * (100 + 50)


def test_memory_of_a_graph_grows_with_it():
    def peak(layers):
        x = torch.ones(1000, requires_grad=True)
        with TensorMemory() as memory:
            y = x
            for _ in range(layers):
                y = y.exp()  # each output is kept for the way back
            y.sum().backward()
        return memory.peak

    assert peak(20) - peak(10) == 10 * 4000


@pytest.mark.parametrize("unroll", [3, 0])
def test_an_unroll_that_does_not_divide_the_horizon(unroll):
    with pytest.raises(ValueError, match=f"must divide the horizon 8, got {unroll}"):
        meta_gradient_bias(LSTMRule(), Quadratics(), unrolls=[unroll], horizon=8)
