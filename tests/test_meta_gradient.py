"""Meta-gradients: replay against autograd, autograd against a loop written out here, and both against differences."""

import pytest
import torch
from small import COORDINATEWISE, COUPLED, NETWORKS, PROBLEMS, RULES, Network, quadratics

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.optimizers import LSTMRule
from l2l_kit.optimizers.tape import LSTMTape, bytes_per_step
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout
from l2l_kit.training import (
    AutogradEstimator,
    FirstOrderEstimator,
    SecondOrderEstimator,
    meta_gradient,
    rollout,
    trajectory,
)

WINDOWS = {"a shorter last window": [4, 4, 1], "single steps": [1, 1, 1]}
ESTIMATORS = {
    "first order": FirstOrderEstimator,
    "first order, in chunks": lambda rule: FirstOrderEstimator(rule, tape_bytes=1),
    "second order": SecondOrderEstimator,
    "second order, no graph kept": lambda rule: SecondOrderEstimator(rule, tape_bytes=1),
    "autograd, first order": lambda rule: AutogradEstimator(rule, second_order=False),
    "autograd, second order": lambda rule: AutogradEstimator(rule, second_order=True),
}
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)
every_estimator = pytest.mark.parametrize("kind", ESTIMATORS.values(), ids=ESTIMATORS)
both_orders = pytest.mark.parametrize("second_order", [False, True], ids=["first order", "second order"])


def run(estimator, tasks, windows):
    estimator.reset(tasks, torch.Generator().manual_seed(0))
    return [estimator.unroll(steps) for steps in windows]


def estimator_of(rule, second_order, *tape_bytes):
    return (SecondOrderEstimator if second_order else FirstOrderEstimator)(rule, *tape_bytes)


def assert_equal_windows(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.losses, other.losses, rtol=tolerance, atol=0)
        assert one.meta_gradient.keys() == other.meta_gradient.keys()
        largest = max(gradient.norm() for gradient in other.meta_gradient.values())
        for name, gradient in other.meta_gradient.items():
            difference = (one.meta_gradient[name] - gradient).norm()
            scale = max(gradient.norm(), 0.1 * largest)  # an odd rule's output bias has none
            assert difference <= tolerance * scale, f"{name}: {difference:.1e}"


@both_orders
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("tape_bytes", [110_000, 1], ids=["some kept", "nothing kept"])
@every_rule
def test_replay_equals_autograd(make, tape_bytes, windows, second_order):
    """Where there is room for what is recorded of some steps, or of none; below there is room for all."""
    rule = make().double()
    found = run(estimator_of(rule, second_order, tape_bytes), Network(), windows)
    assert_equal_windows(found, run(AutogradEstimator(rule, second_order=second_order), Network(), windows))
    assert found[0].meta_gradient.keys() == dict(rule.named_parameters()).keys()


@both_orders
@pytest.mark.parametrize("problem", PROBLEMS)
def test_replay_equals_autograd_on_every_problem(problem, second_order):
    """In single precision, which the tasks are of; the rule is of double."""
    rule = NETWORKS["log-sign"]().double()
    tasks = PROBLEMS[problem].sample(2, generator(0, "tasks"))
    found = run(estimator_of(rule, second_order), tasks, [2, 2])
    assert_equal_windows(found, run(AutogradEstimator(rule, second_order=second_order), tasks, [2, 2]), 1e-3)
    torch.testing.assert_close(torch.cat([window.losses for window in found]).T, rollout(rule, tasks, 4)[:, 1:])


@both_orders
@every_rule
def test_is_the_slope_of_the_meta_loss(make, second_order):
    """Central differences of Σ_t mean f(θ(t)) along random directions of φ; to first order with ∇f(θ(t)) held fixed."""
    rule, tasks, steps = make().double(), Network(), 6
    points = list(trajectory(rule, tasks, steps))
    layout = Layout.of(tasks.initial_params)

    def meta_loss():
        if second_order:
            return rollout(rule, tasks, steps)[:, 1:].mean(dim=0).sum()
        state, params, total = rule.init(tasks.initial_params), points[0].params, 0.0
        for step, point in enumerate(points[:-1], 1):
            updates, state = rule.update(layout.unravel(point.gradients), state, layout.unravel(params))
            params = params + torch.cat([tensor.reshape(len(params), -1) for tensor in updates.values()], dim=1)
            total += tasks.losses(layout.unravel(params), step).mean()
        return total

    (window,) = run(estimator_of(rule, second_order), tasks, [steps])
    weights = {name: weight.detach().clone() for name, weight in rule.named_parameters()}
    draws, meta_losses = torch.Generator().manual_seed(1), []
    for _ in range(2):
        direction = {
            name: torch.randn(weight.shape, generator=draws, dtype=torch.float64) for name, weight in weights.items()
        }
        for shift in (-1e-6, 1e-6):
            rule.load_state_dict({name: weight + shift * direction[name] for name, weight in weights.items()})
            meta_losses.append(meta_loss())
        slope = (meta_losses[-1] - meta_losses[-2]) / 2e-6
        expected = sum((window.meta_gradient[name] * direction[name]).sum() for name in weights)
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", COORDINATEWISE.values(), ids=COORDINATEWISE)
@pytest.mark.parametrize("chunk", [0, 4, 32])
def test_replay_in_chunks_equals_replay_at_once(monkeypatch, make, chunk):
    """33 coordinates, in chunks that do not divide them; no longer tape is made, but for room for a single one."""
    taped = set()

    class Tape(LSTMTape):
        def __init__(self, network, coordinates, steps):
            taped.add(coordinates * steps * bytes_per_step(network))
            super().__init__(network, coordinates, steps)

    rule, windows = make().double(), [4, 4, 2]
    parts = rule.parts(Layout.of(Network().initial_params))
    one = max(4 * bytes_per_step(part.network) for part in parts)
    whole = run(FirstOrderEstimator(rule), Network(), windows)
    monkeypatch.setattr(meta_gradient, "LSTMTape", Tape)
    chunked = run(FirstOrderEstimator(rule, chunk * one * len(parts)), Network(), windows)
    assert_equal_windows(chunked, whole)
    assert max(taped) <= max(chunk, 1) * one


@both_orders
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", COORDINATEWISE.values(), ids=COORDINATEWISE)
def test_blocks_of_coordinates_that_threads_share_equal_one_block(monkeypatch, make, threads, second_order):
    """To rounding, as if a single thread had all of them; afterwards torch has as many threads as before."""
    rule, before = make().double(), torch.get_num_threads()
    whole = run(estimator_of(rule, second_order), Network(), [4, 2])
    monkeypatch.setattr("l2l_kit.optimizers.tape.BLOCK", 4)
    torch.set_num_threads(threads)
    try:
        shared, again = (run(estimator_of(rule, second_order), Network(), [4, 2]) for _ in range(2))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_equal_windows(shared, whole)
    assert_equal_windows(again, shared, 0)


@both_orders
def test_replay_equals_autograd_while_the_rule_learns(second_order):
    """Weights that move between windows, as in meta-training, must not leave anything stale behind."""
    found = []
    for kind in (estimator_of, lambda rule, order: AutogradEstimator(rule, second_order=order)):
        rule = RULES["groups"]().double()
        estimator, windows = kind(rule, second_order), []
        for seed in range(2):
            estimator.reset(Network(seed=seed))
            for _ in range(3):
                windows.append(estimator.unroll(4))
                with torch.no_grad():
                    for name, weight in rule.named_parameters():
                        gradient = windows[-1].meta_gradient[name]
                        weight -= 0.01 * gradient / gradient.norm()
        found.append(windows)
    assert_equal_windows(*found)


def test_a_tape_keeps_of_a_step_what_going_back_needs():
    """The input and, of each layer, its last output, four gates, the cell and its tanh; twice that for both sides."""
    assert bytes_per_step(LSTMRule().double()) == 8 * (1 + 2 * 7 * 20)
    assert bytes_per_step(LSTMRule(odd=True)) == 4 * 2 * (1 + 2 * 7 * 20)


@every_estimator
class TestEveryEstimator:
    def test_losses_are_those_of_a_rollout_and_nothing_else_is_touched(self, kind):
        rule, tasks = RULES["groups"]().double(), Network()
        windows = run(kind(rule), tasks, [4, 4, 1])
        losses = torch.cat([window.losses for window in windows]).T
        torch.testing.assert_close(losses, rollout(rule, Network(), 9)[:, 1:], rtol=1e-12, atol=0)
        for name, tensor in tasks.initial_params.items():
            assert torch.equal(tensor, Network().initial_params[name])
            assert not tensor.requires_grad
        assert all(weight.grad is None for weight in rule.parameters())

    def test_reset_forgets_what_was_before(self, kind):
        rule = RULES["groups"]().double()
        estimator = kind(rule)
        run(estimator, Network(seed=1), [4, 4])
        assert_equal_windows(run(estimator, Network(seed=2), [4, 2]), run(kind(rule), Network(seed=2), [4, 2]), 0)

    @pytest.mark.parametrize(("step", "value"), [(0, torch.nan), (1, torch.inf), (4, torch.nan), (5, torch.inf)])
    def test_a_loss_that_is_not_finite_is_named_with_its_step(self, kind, step, value):
        class Broken(Network):
            def losses(self, params, at):
                losses = super().losses(params, at)
                return torch.cat([losses[:1], losses[1:2] * value, losses[2:]]) if at == step else losses

        with pytest.raises(MetaTrainingDivergedError, match=rf"became {value} at step {step}$"):
            run(kind(RULES["log-sign"]().double()), Broken(), [4, 4, 1])


def test_tapes_of_another_architecture_do_not_stay():
    estimator = FirstOrderEstimator(LSTMRule(4))
    for dim in (3, 4, 5, 5):
        run(estimator, quadratics(2, dim=dim), [4, 4, 1])
    assert estimator._lstm_tape.cache_info().currsize == 2  # of windows of 4 and of 1


class TestSampledCoordinates:
    @pytest.mark.parametrize("tape_bytes", [1, 10**9], ids=["chunks", "at once"])
    @pytest.mark.parametrize(
        ("name", "tasks", "sample", "samples"),
        [("groups", Network(1), 7, 8), ("groups", Network(1), 1, 16), ("log-sign", quadratics(2, dim=2), 1, 4)],
    )
    def test_the_estimate_is_unbiased(self, tape_bytes, name, tasks, sample, samples):
        """So many samples there are of coordinates of each tensor of each task: all come, and their mean is exact."""
        rule = RULES[name]().double()
        (exact,) = run(FirstOrderEstimator(rule), tasks, [2])
        estimator, found = FirstOrderEstimator(rule, tape_bytes, sample=sample), {}
        for seed in range(8 * samples):
            estimator.reset(tasks, generator(seed, "sample"))
            window = estimator.unroll(2)
            torch.testing.assert_close(window.losses, exact.losses, rtol=1e-12, atol=0)
            flat = torch.cat([window.meta_gradient[name].flatten() for name in exact.meta_gradient])
            found.setdefault(f"{flat.norm():.9g}", flat)
        expected = torch.cat([gradient.flatten() for gradient in exact.meta_gradient.values()])
        assert len(found) == samples
        assert (torch.stack([*found.values()]).mean(dim=0) - expected).norm() <= 1e-9 * expected.norm()

    def test_the_draws_are_those_of_the_generator_and_new_in_each_window(self):
        def windows(seed):
            estimator = FirstOrderEstimator(RULES["log-sign"]().double(), sample=2)
            estimator.reset(Network(), generator(seed, "sample"))
            return [estimator.unroll(4).meta_gradient["output.weight"] for _ in range(2)]

        assert all(torch.equal(one, other) for one, other in zip(windows(0), windows(0), strict=True))
        assert not any(torch.equal(one, other) for one, other in zip(windows(0), windows(1), strict=True))

    @pytest.mark.parametrize("make", COUPLED.values(), ids=COUPLED)
    def test_coordinates_that_learn_of_each_other_cannot_be_sampled(self, make):
        with pytest.raises(ValueError, match="leave sample None"):
            FirstOrderEstimator(make(), sample=3)
