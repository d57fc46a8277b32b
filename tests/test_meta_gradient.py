"""Meta-gradients: replay against autograd, autograd against a loop written out here, and that against differences."""

import pytest
import torch

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.optimizers import GroupedRule, LSTMRule
from l2l_kit.optimizers.tape import floats_per_step
from l2l_kit.problems import QuadraticTasks, TaskBatch
from l2l_kit.training import AutogradEstimator, FirstOrderEstimator, SecondOrderEstimator, replay, rollout
from l2l_kit.training import meta_gradient as module

OPTIMIZERS = {
    "one layer": {"num_layers": 1},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3},
    "scaled output": {"output_scale": 0.1},
    "scale": {"preprocessing": {"name": "scale", "factor": 0.3}},
    "log-sign": {"preprocessing": "log-sign"},
    "log-sign, one layer, scaled output": {"preprocessing": "log-sign", "num_layers": 1, "output_scale": 0.1},
}
KINDS = {"weight": "conv.weight", "bias": "fc.bias", "offset": "conv.offset"}
WINDOWS = {"one window": [5], "windows": [4, 4, 4], "a shorter last window": [4, 4, 1], "single steps": [1, 1, 1]}


def make_optimizer(**arguments):
    return LSTMRule(hidden_size=6, **arguments).double()


def make_groups():
    """Two LSTMs that differ in everything; of `Layers` each looks after parameters that do not lie side by side."""
    one = {"hidden_size": 5, "preprocessing": "log-sign", "seed": 1}
    other = {"hidden_size": 3, "num_layers": 1, "output_scale": 0.3, "seed": 2}
    return GroupedRule({"conv": one, "fc": other}).double()


def quadratics(n=3, dim=5, seed=0):
    draws = torch.Generator().manual_seed(seed)
    shapes = {"W": (n, dim, dim), "y": (n, dim), "theta": (n, dim)}
    return QuadraticTasks(
        **{name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in shapes.items()}
    )


class Network(TaskBatch):
    """Tiny tanh networks with a matrix, a vector and a single number each, and other data at each step."""

    def __init__(self, n=3, seed=0):
        draws = torch.Generator().manual_seed(seed)

        def gaussian(*shape):
            return torch.randn(*shape, generator=draws, dtype=torch.float64)

        self.data = gaussian(20, n, 4)
        self._start = {"weight": gaussian(n, 2, 4), "bias": gaussian(n, 2), "offset": gaussian(n)}

    @property
    def initial_params(self):
        return self._start

    def losses(self, params, step):
        hidden = torch.einsum("noi,ni->no", params["weight"], self.data[step]) + params["bias"]
        return (hidden.tanh().sum(dim=1) + params["offset"] - 1).square()


class Layers(Network):
    """`Network` with kinds of parameters."""

    @property
    def initial_params(self):
        return {KINDS[name]: tensor for name, tensor in self._start.items()}

    def losses(self, params, step):
        return super().losses({name: params[full] for name, full in KINDS.items()}, step)


def run(unroller, tasks, windows):
    unroller.reset(tasks, torch.Generator().manual_seed(0))
    return [unroller.unroll(steps) for steps in windows]


def assert_equal_windows(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.losses, other.losses, rtol=tolerance, atol=0)
        assert one.meta_gradient.keys() == other.meta_gradient.keys()
        for name, gradient in other.meta_gradient.items():
            difference = (one.meta_gradient[name] - gradient).norm()
            assert difference <= tolerance * gradient.norm(), f"{name}: {difference:.1e}"


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("tasks", [quadratics(), Network()], ids=["quadratics", "network"])
def test_replay_equals_autograd(tasks, arguments, windows):
    optimizer = make_optimizer(**arguments)
    replay = run(FirstOrderEstimator(optimizer), tasks, windows)
    autograd = run(AutogradEstimator(optimizer, second_order=False), tasks, windows)
    assert_equal_windows(replay, autograd)


@pytest.mark.parametrize("arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(("chunk", "sizes"), [(1, {1}), (4, {4, 3}), (7, {7, 1}), (14, {14, 1})])
def test_replay_in_chunks_equals_replay_at_once(monkeypatch, arguments, chunk, sizes):
    """15 coordinates, in chunks that do not divide them."""
    taped = set()

    class Tape(replay.LSTMTape):
        def __init__(self, optimizer, coordinates, steps):
            taped.add(coordinates)
            super().__init__(optimizer, coordinates, steps)

    optimizer, windows = make_optimizer(**arguments), [4, 4, 2]
    whole = run(FirstOrderEstimator(optimizer), quadratics(), windows)
    monkeypatch.setattr(replay, "LSTMTape", Tape)
    tape_bytes = chunk * 4 * floats_per_step(optimizer) * 8
    unroller = FirstOrderEstimator(optimizer, tape_bytes)
    unroller.reset(quadratics())
    chunked = [unroller.unroll(steps) for steps in windows[:2]]
    assert taped == sizes
    chunked.append(unroller.unroll(windows[2]))
    assert_equal_windows(chunked, whole)


def test_a_tape_that_holds_not_even_one_coordinate_still_replays():
    optimizer = make_optimizer()
    assert_equal_windows(
        run(FirstOrderEstimator(optimizer, tape_bytes=1), quadratics(), [4]),
        run(FirstOrderEstimator(optimizer), quadratics(), [4]),
    )


def test_replay_equals_autograd_while_the_optimizer_learns():
    """Weights that move between windows, as in meta-training, must not leave anything stale behind."""
    found = []
    for kind in (FirstOrderEstimator, lambda optimizer: AutogradEstimator(optimizer, second_order=False)):
        optimizer = make_optimizer(preprocessing="log-sign")
        unroller = kind(optimizer)
        windows = []
        for seed in range(2):
            unroller.reset(quadratics(seed=seed))
            for _ in range(3):
                windows.append(unroller.unroll(4))
                with torch.no_grad():
                    for name, weight in optimizer.named_parameters():
                        gradient = windows[-1].meta_gradient[name]
                        weight -= 0.01 * gradient / gradient.norm()
        found.append(windows)
    assert_equal_windows(*found)


def written_out(optimizer, tasks, windows, *, second_derivatives):
    """Windows on quadratics by plain autograd, where 2 Wᵀ(Wθ − y) is written out as a function of θ."""
    W, y, theta = tasks.W, tasks.y, tasks.theta
    state = optimizer.initial_state(theta.numel())
    result = []
    for steps in windows:
        theta, state = theta.detach(), type(state)(*(part.detach() for part in state))
        losses = []
        for _ in range(steps):
            gradient = 2 * (W.mT @ (W @ theta[:, :, None] - y[:, :, None]))[:, :, 0]
            if not second_derivatives:
                gradient = gradient.detach()
            update, state = optimizer(gradient.flatten(), state)
            theta = theta + update.view_as(theta)
            losses.append(((W @ theta[:, :, None])[:, :, 0] - y).square().sum(dim=1))
        losses = torch.stack(losses)
        optimizer.zero_grad()
        losses.mean(dim=1).sum().backward()
        gradients = {name: weight.grad.clone() for name, weight in optimizer.named_parameters()}
        result.append(module.UnrollResult(losses.detach(), gradients))
    optimizer.zero_grad()
    return result


@pytest.mark.parametrize("second_derivatives", [False, True])
@pytest.mark.parametrize("arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_autograd_equals_the_loop_written_out(arguments, second_derivatives):
    optimizer, tasks, windows = make_optimizer(**arguments), quadratics(), [4, 4, 1]
    found = run(AutogradEstimator(optimizer, second_order=second_derivatives), tasks, windows)
    expected = written_out(optimizer, tasks, windows, second_derivatives=second_derivatives)
    assert_equal_windows(found, expected)


def create_graph_loop(optimizer, tasks, steps):
    """One window on any optimizees, through `create_graph`, one loss.backward() at the end."""
    params = {name: tensor.clone().requires_grad_() for name, tensor in tasks.initial_params.items()}
    state = optimizer.initial_state(sum(tensor.numel() for tensor in params.values()))
    total, losses = 0.0, []
    for step in range(steps):
        gradients = torch.autograd.grad(tasks.losses(params, step).sum(), list(params.values()), create_graph=True)
        rows = torch.cat(
            [gradient.flatten(1) if gradient.dim() > 1 else gradient[:, None] for gradient in gradients], 1
        )
        update, state = optimizer(rows.flatten(), state)
        first, moved = 0, {}
        for name, tensor in params.items():
            size = tensor[0].numel()
            moved[name] = tensor + update.view_as(rows)[:, first : first + size].reshape(tensor.shape)
            first += size
        params = moved
        losses.append(tasks.losses(params, step + 1))
        total = total + losses[-1].mean()
    names, weights = zip(*optimizer.named_parameters(), strict=True)
    return module.UnrollResult(
        torch.stack(losses).detach(), dict(zip(names, torch.autograd.grad(total, weights), strict=True))
    )


@pytest.mark.parametrize("arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_second_derivatives_equal_create_graph(arguments):
    optimizer, tasks = make_optimizer(**arguments), Network()
    found = run(AutogradEstimator(optimizer, second_order=True), tasks, [6])
    assert_equal_windows(found, [create_graph_loop(optimizer, tasks, 6)])


@pytest.mark.parametrize("steps_taped", [None, 1, 2, 3])
@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("tasks", [quadratics(), Network()], ids=["quadratics", "network"])
@pytest.mark.parametrize("arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_exact_replay_equals_autograd_through_everything(arguments, tasks, windows, steps_taped):
    optimizer = make_optimizer(**arguments)
    coordinates = sum(tensor.numel() for tensor in tasks.initial_params.values())
    room = module.TAPE_BYTES if steps_taped is None else steps_taped * coordinates * floats_per_step(optimizer) * 8
    found = run(SecondOrderEstimator(optimizer), tasks, windows)
    expected = run(AutogradEstimator(optimizer, second_order=True), tasks, windows)
    assert_equal_windows(found, expected)


@pytest.mark.parametrize("tape_bytes", [module.TAPE_BYTES, 1])
def test_exact_replay_equals_autograd_with_several_lstms(tape_bytes):
    optimizer = make_groups()
    found = run(SecondOrderEstimator(optimizer), Layers(), [4, 4, 1])
    assert_equal_windows(found, run(AutogradEstimator(optimizer, second_order=True), Layers(), [4, 4, 1]))


@pytest.mark.parametrize("arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_second_derivatives_make_a_difference(arguments):
    optimizer = make_optimizer(**arguments)
    (first,), (second,) = (
        run(AutogradEstimator(optimizer, second_order=flag), quadratics(), [5]) for flag in (False, True)
    )
    torch.testing.assert_close(first.losses, second.losses, rtol=1e-12, atol=0)
    gap = (first.meta_gradient["output.weight"] - second.meta_gradient["output.weight"]).norm()
    assert gap > 1e-6 * second.meta_gradient["output.weight"].norm()


@pytest.mark.parametrize("arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("tasks", [quadratics(), Network()], ids=["quadratics", "network"])
def test_second_derivatives_give_the_slope_of_the_meta_loss(tasks, arguments):
    """Nothing but losses on both sides: central differences of Σ_t mean f(θ(t)) along random directions of φ."""
    optimizer = make_optimizer(**arguments)
    (window,) = run(AutogradEstimator(optimizer, second_order=True), tasks, [6])
    weights = {name: weight.detach().clone() for name, weight in optimizer.named_parameters()}
    draws = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = {
            name: torch.randn(weight.shape, generator=draws, dtype=torch.float64) for name, weight in weights.items()
        }
        meta_loss = {}
        for shift in (-1e-6, 1e-6):
            optimizer.load_state_dict({name: weight + shift * direction[name] for name, weight in weights.items()})
            meta_loss[shift] = rollout(optimizer, tasks, 6)[:, 1:].mean(dim=0).sum()
        slope = (meta_loss[1e-6] - meta_loss[-1e-6]) / 2e-6
        expected = sum((window.meta_gradient[name] * direction[name]).sum() for name in weights)
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-7)


UNROLLERS = {
    "replay": FirstOrderEstimator,
    "replay in chunks": lambda optimizer: FirstOrderEstimator(optimizer, tape_bytes=1),
    "autograd": lambda optimizer: AutogradEstimator(optimizer, second_order=False),
    "second derivatives": lambda optimizer: AutogradEstimator(optimizer, second_order=True),
    "exact replay": SecondOrderEstimator,
    "exact replay in chunks": lambda optimizer: SecondOrderEstimator(optimizer),
}


@pytest.mark.parametrize("kind", UNROLLERS.values(), ids=UNROLLERS)
class TestEveryUnroller:
    def test_losses_are_those_of_a_rollout(self, kind):
        optimizer = make_optimizer()
        windows = run(kind(optimizer), Network(), [4, 4, 1])
        losses = torch.cat([window.losses for window in windows]).T
        torch.testing.assert_close(losses, rollout(optimizer, Network(), 9)[:, 1:], rtol=1e-12, atol=0)

    def test_begin_forgets_what_was_before(self, kind):
        optimizer = make_optimizer(preprocessing="log-sign")
        unroller = kind(optimizer)
        run(unroller, Network(seed=1), [4, 4])
        assert_equal_windows(run(unroller, Network(seed=2), [4, 2]), run(kind(optimizer), Network(seed=2), [4, 2]))

    def test_leaves_the_optimizees_as_they_were(self, kind):
        tasks = quadratics()
        theta = tasks.theta.clone()
        run(kind(make_optimizer()), tasks, [4, 4])
        assert torch.equal(tasks.theta, theta)
        assert not tasks.theta.requires_grad

    def test_leaves_no_gradients_on_the_optimizer(self, kind):
        optimizer = make_optimizer()
        run(kind(optimizer), quadratics(), [4, 4])
        assert all(weight.grad is None for weight in optimizer.parameters())

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 9])
    def test_a_loss_that_is_not_finite_is_named_with_its_step(self, kind, step, value):
        class Broken(Network):
            def losses(self, params, at):
                losses = super().losses(params, at)
                return torch.cat([losses[:1], losses[1:2] * value, losses[2:]]) if at == step else losses

        with pytest.raises(MetaTrainingDivergedError, match=rf"became {value} at step {step}$"):
            run(kind(make_optimizer()), Broken(), [4, 4, 1])


class TestSampledCoordinates:
    """The meta-gradient from a sample of the coordinates."""

    def unroller(self, sample, dim=6, n=3):
        unroller = FirstOrderEstimator(make_optimizer(), sample=sample)
        unroller.reset(quadratics(n, dim), torch.Generator().manual_seed(0))
        return unroller

    def test_a_sample_of_all_is_exact(self):
        optimizer = make_optimizer()
        exact = run(FirstOrderEstimator(optimizer), Network(), [4, 4])
        assert_equal_windows(run(FirstOrderEstimator(optimizer, sample=8), Network(), [4, 4]), exact)

    @pytest.mark.parametrize("tape_bytes", [1, 10**9], ids=["chunks", "at once"])
    def test_two_complementary_halves_average_to_the_exact_one(self, monkeypatch, tape_bytes):
        optimizer = make_optimizer()
        halves = torch.randperm(18, generator=torch.Generator().manual_seed(0)).view(2, 9)
        weights = torch.full((9,), 2.0, dtype=torch.float64)
        windows = []
        for half in halves:
            monkeypatch.setattr(replay.CoordinateReplay, "_choose", lambda _, half=half: (half, weights))
            windows.append(run(FirstOrderEstimator(optimizer, tape_bytes, sample=1), quadratics(3, 6), [4, 4]))
        monkeypatch.undo()
        for one, other, exact in zip(
            *windows, run(FirstOrderEstimator(optimizer), quadratics(3, 6), [4, 4]), strict=True
        ):
            torch.testing.assert_close(one.losses, exact.losses)
            for name, gradient in exact.meta_gradient.items():
                mean = (one.meta_gradient[name] + other.meta_gradient[name]) / 2
                assert (mean - gradient).norm() <= 1e-12 * gradient.norm()

    def test_the_sample_is_drawn_from_each_tensor_of_each_optimizee(self):
        draws = torch.Generator().manual_seed(0)
        chosen, weights = replay.CoordinateReplay(
            replay.Tapes(make_optimizer()), 2, [8, 2, 1], 10**9, 3, draws
        )._choose()
        chosen, weights = chosen.view(2, -1), weights.view(2, -1)
        assert chosen.shape == (2, 3 + 2 + 1)  # of 8, 2 and 1
        for row in range(2):
            local = (chosen[row] - 11 * row).tolist()
            assert len(set(local)) == 6
            assert sum(place < 8 for place in local) == 3
            assert set(local) >= {8, 9, 10}
            assert weights[row].tolist() == pytest.approx([8 / 3] * 3 + [1, 1, 1])

    def test_every_coordinate_has_the_same_chance(self):
        drawing = replay.CoordinateReplay(
            replay.Tapes(make_optimizer()), 3, [6], 10**9, 2, torch.Generator().manual_seed(0)
        )
        counts = torch.stack([torch.bincount(drawing._choose()[0], minlength=18) for _ in range(3000)]).sum(0)
        assert (counts - 1000).abs().max() < 5 * (3000 * (1 / 3) * (2 / 3)) ** 0.5

    def test_the_draws_are_those_of_the_generator(self):
        one, same, other = self.unroller(2), self.unroller(2), self.unroller(2)
        other._draws.manual_seed(1)
        first, second, third = (made.unroll(4).meta_gradient["output.weight"] for made in (one, same, other))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


class TestGroups:
    @pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
    @pytest.mark.parametrize("tape_bytes", [1, 10**9], ids=["chunks", "at once"])
    def test_replay_equals_autograd(self, windows, tape_bytes):
        optimizer = make_groups()
        found = run(FirstOrderEstimator(optimizer, tape_bytes), Layers(), windows)
        expected = run(AutogradEstimator(optimizer, second_order=False), Layers(), windows)
        assert_equal_windows(found, expected)
        assert found[0].meta_gradient.keys() == dict(optimizer.named_parameters()).keys()

    @pytest.mark.parametrize("kind", UNROLLERS.values(), ids=UNROLLERS)
    def test_losses_are_those_of_a_rollout(self, kind):
        optimizer = make_groups()
        windows = run(kind(optimizer), Layers(), [4, 4, 1])
        losses = torch.cat([window.losses for window in windows]).T
        torch.testing.assert_close(losses, rollout(optimizer, Layers(), 9)[:, 1:], rtol=1e-12, atol=0)

    @pytest.mark.parametrize("kind", [UNROLLERS["replay"], UNROLLERS["second derivatives"]])
    def test_groups_of_one_rule_are_that_rule(self, kind):
        """The same LSTM for both kinds: the meta-gradients add up to the one that it has alone."""
        alone = make_optimizer(preprocessing="log-sign")
        groups = GroupedRule({"conv": alone.config(), "fc": alone.config()}).double()
        for found, expected in zip(
            run(kind(groups), Layers(), [4, 4]), run(kind(alone), Network(), [4, 4]), strict=True
        ):
            torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)
            for name, gradient in expected.meta_gradient.items():
                total = sum(found.meta_gradient[f"groups.{kind}.{name}"] for kind in ("conv", "fc"))
                assert (total - gradient).norm() <= 1e-12 * gradient.norm()

    def test_a_sample_of_all_is_exact(self):
        optimizer = make_groups()
        exact = run(FirstOrderEstimator(optimizer), Layers(), [4, 4])
        assert_equal_windows(run(FirstOrderEstimator(optimizer, sample=8), Layers(), [4, 4]), exact)
