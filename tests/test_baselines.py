"""The baselines against torch.optim itself, and the laws that every optimizer keeps, learned or not."""

import math

import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import BASELINES, LSTMRule, baseline
from l2l_kit.problems import QuadraticTasks
from l2l_kit.training import trajectory

# Torch7's defaults, section 3 of the paper, and a learning rate at which the quadratics below do not diverge.
TORCH = {
    "sgd": (torch.optim.SGD, {"lr": 0.004}),
    "nag": (torch.optim.SGD, {"lr": 0.002, "momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.03, "alpha": 0.99, "eps": 1e-8}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}),
}


def test_these_are_all():
    assert TORCH.keys() == BASELINES.keys()


@pytest.mark.parametrize("name", TORCH)
def test_on_a_batch_equals_torch_optim_on_each_problem(name):
    """Here θ itself is the parameter, one problem at a time, and the gradient is the closed form."""
    draws = torch.Generator().manual_seed(0)
    W, y, theta = (torch.randn(shape, generator=draws, dtype=torch.float64) for shape in [(4, 6, 6), (4, 6), (4, 6)])
    kind, arguments = TORCH[name]
    found = [point.params for point in trajectory(baseline(name, arguments["lr"]), QuadraticTasks(W, y, theta), 40)]
    for n in range(4):
        parameter = torch.nn.Parameter(theta[n].clone())
        optimizer = kind([parameter], **arguments)
        for step in range(41):
            torch.testing.assert_close(found[step][n], parameter.detach(), rtol=1e-12, atol=1e-12)
            parameter.grad = 2 * W[n].T @ (W[n] @ parameter.detach() - y[n])
            optimizer.step()
        assert not torch.allclose(found[40][n], theta[n], atol=0.05)  # it went somewhere


OPTIMIZERS = {
    **{name: baseline(name, 0.1) for name in BASELINES},
    "lstm": LSTMRule(hidden_size=4).double(),
    "lstm, log-sign": LSTMRule(hidden_size=4, preprocessing="log-sign", output_scale=0.1).double(),
}


def batches(steps=4, seed=0):
    """Gradients of three optimizees with a matrix and a number each."""
    draws = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in
         {"matrix": (3, 2, 4), "number": (3,)}.items()}
        for _ in range(steps)
    ]  # fmt: skip


def updates(optimizer, sequence):
    state, found = optimizer.init(sequence[0]), []
    for gradients in sequence:
        update, state = optimizer.update(gradients, state)
        found.append(update)
    return found


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for name, tensor in other.items():
            torch.testing.assert_close(one[name], tensor, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestEveryOptimizer:
    def test_gives_an_update_for_each_gradient(self, optimizer):
        sequence = batches()
        for update in updates(optimizer, sequence):
            assert {name: tensor.shape for name, tensor in update.items()} == {"matrix": (3, 2, 4), "number": (3,)}
            assert all(tensor.dtype == torch.float64 and not tensor.requires_grad for tensor in update.values())
            assert all(tensor.isfinite().all() and tensor.count_nonzero() for tensor in update.values())

    def test_does_not_mind_the_order_of_coordinates(self, optimizer):
        shuffle = torch.randperm(8, generator=torch.Generator().manual_seed(1))

        def shuffled(tensors):
            return {**tensors, "matrix": tensors["matrix"].reshape(3, 8)[:, shuffle].reshape(3, 2, 4)}

        found = updates(optimizer, [shuffled(gradients) for gradients in batches()])
        assert_same(found, [shuffled(update) for update in updates(optimizer, batches())])

    def test_does_not_mind_the_order_of_optimizees(self, optimizer):
        def turned(tensors):
            return {name: tensor[[2, 0, 1]] for name, tensor in tensors.items()}

        found = updates(optimizer, [turned(gradients) for gradients in batches()])
        assert_same(found, [turned(update) for update in updates(optimizer, batches())])

    def test_an_optimizee_does_not_feel_the_others(self, optimizer):
        def only(n):
            return [{name: tensor[n : n + 1] for name, tensor in gradients.items()} for gradients in batches()]

        together = updates(optimizer, batches())
        for n in range(3):
            alone = [{name: tensor[n : n + 1] for name, tensor in update.items()} for update in together]
            assert_same(updates(optimizer, only(n)), alone)

    def test_leaves_the_gradients_alone(self, optimizer):
        sequence = batches()
        updates(optimizer, sequence)
        assert_same(sequence, batches())

    def test_its_updates_are_not_overwritten_by_the_next(self, optimizer):
        sequence = batches(2)
        state = optimizer.init(sequence[0])
        first, state = optimizer.update(sequence[0], state)
        kept = {name: tensor.clone() for name, tensor in first.items()}
        optimizer.update(sequence[1], state)
        assert_same([first], [kept])

    def test_a_gradient_buffer_may_be_used_again(self, optimizer):
        """Baselines keep momenta: none may be the gradient tensor itself."""
        buffer = {name: torch.empty_like(tensor) for name, tensor in batches()[0].items()}

        def reused():
            for gradients in batches():
                for name, tensor in gradients.items():
                    buffer[name].copy_(tensor)
                yield buffer

        state, found = optimizer.init(buffer), []
        for gradients in reused():
            update, state = optimizer.update(gradients, state)
            found.append(update)
        assert_same(found, updates(optimizer, batches()))

    def test_begins_afresh_each_time(self, optimizer):
        first = updates(optimizer, batches())
        assert_same(updates(optimizer, batches()), first)


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "SGD", "NAG"])
def test_the_case_of_a_name_does_not_matter(name):
    assert baseline(name, 0.1) == baseline(name.lower(), 0.1)


@pytest.mark.parametrize(("name", "near"), [("adan", "adam"), ("rms-prop", "rmsprop"), ("nga", "nag"), ("Adm", "adam")])
def test_an_unknown_baseline_gives_the_near_match(name, near):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        baseline(name, 0.1)


@pytest.mark.parametrize("lr", [0, -0.1, math.nan, math.inf])
def test_a_learning_rate_that_makes_no_sense_is_refused(lr):
    with pytest.raises(ValueError, match=f"lr must be a positive number, got {lr!r}"):
        baseline("adam", lr)
