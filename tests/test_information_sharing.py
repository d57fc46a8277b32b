"""Coordinates that learn of each other: global averaging cells and NTM-BFGS, against loops written out here."""

import copy

import pytest
import torch
from test_meta_gradient import Network, assert_equal_windows, quadratics, run

from l2l_kit import LearnedOptimizer, optimizers, zoo
from l2l_kit.evaluation import bfgs_losses, memories
from l2l_kit.optimizers import NTMBFGS, GroupedRule, LSTMRule
from l2l_kit.optimizers.base import map_state
from l2l_kit.optimizers.ntm_bfgs import _multiplied
from l2l_kit.problems import ConditionedQuadratics, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import AutogradEstimator, FirstOrderEstimator, MetaTraining, SecondOrderEstimator, meta_train

SMALL = {"hidden_size": 5}
RULES = {
    "averaging": lambda **more: LSTMRule(**SMALL, global_averaging_cells=2, **more).double(),
    "averaging, log-sign": lambda **more: LSTMRule(
        **SMALL, preprocessing="log-sign", output_scale=0.3, global_averaging_cells=5, **more
    ).double(),
    "memory": lambda **more: NTMBFGS(**SMALL, **more).double(),
    "memory, many heads": lambda **more: NTMBFGS(
        **SMALL, global_averaging_cells=0, read_heads=2, write_heads=1, history=3, preprocessing="log-sign", **more
    ).double(),
}
WITH_MEMORY = {name: make for name, make in RULES.items() if name.startswith("memory")}
each_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)


def gradients(steps=6, n=3, coordinates=4, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(steps, n, coordinates, generator=draws, dtype=torch.float64)


def updates(rule, sequence):
    """What the rule makes of gradients ``(steps, ..., coordinates)``, and the state after them."""
    state, moved = rule.initial_state(*sequence.shape[1:]), []
    for row in sequence:
        update, state = rule.step(row, state)
        moved.append(update)
    return torch.stack(moved), state


def written_out(rule, sequence):
    """The same for one optimizee, coordinate by coordinate, with the memory as a matrix."""
    steps, coordinates = sequence.shape
    layers = [(layer.weight, layer.bias) for layer in rule.layers]
    hidden, cell = ([[torch.zeros(5).double() for _ in layers] for _ in range(coordinates)] for _ in range(2))
    heads = getattr(rule, "read_heads", 0)
    read = torch.zeros(heads, coordinates).double()
    written, moved = [], []
    for t in range(steps):
        signals = [
            torch.cat([rule.preprocessing(sequence[t, i : i + 1])[:, 0], read[:, i]]) for i in range(coordinates)
        ]
        for index, (weight, bias) in enumerate(layers):
            for i in range(coordinates):
                take, keep, give, candidate = (weight @ torch.cat([signals[i], hidden[i][index]]) + bias).chunk(4)
                cell[i][index] = keep.sigmoid() * cell[i][index] + take.sigmoid() * candidate.tanh()
                signals[i] = give.sigmoid() * cell[i][index].tanh()
            mean = sum(signals) / coordinates
            for i in range(coordinates):
                signals[i] = torch.cat([mean[: rule.global_averaging_cells], signals[i][rule.global_averaging_cells :]])
                hidden[i][index] = signals[i]
        out = torch.stack([rule.output.weight @ signal + rule.output.bias for signal in signals], dim=1)
        moved.append(rule.output_scale * out[0])
        if heads:
            memory = torch.eye(coordinates).double()
            for left, right in written[-rule.history * rule.write_heads :]:
                memory += torch.outer(left, right) / coordinates
            read = out[1 : 1 + heads] @ memory.T
            first = 1 + heads
            written += list(zip(out[first : first + rule.write_heads], out[first + rule.write_heads :], strict=True))
    return torch.stack(moved)


@each_rule
def test_steps_are_those_written_out(make):
    rule = make()
    sequence = gradients()
    with torch.no_grad():
        expected = torch.stack([written_out(rule, one) for one in sequence.unbind(1)], dim=1)
    torch.testing.assert_close(updates(rule, sequence)[0], expected, rtol=1e-12, atol=1e-14)


@each_rule
def test_the_order_of_coordinates_does_not_matter(make):
    rule, sequence, order = make(), gradients(coordinates=7), torch.randperm(7, generator=torch.Generator())
    torch.testing.assert_close(updates(rule, sequence[..., order])[0], updates(rule, sequence)[0][..., order])


@each_rule
def test_coordinates_of_an_optimizee_learn_of_each_other_and_of_no_other_optimizee(make):
    rule, sequence = make(), gradients()
    changed_one = sequence.clone()
    changed_one[0, 1, 2] += 1
    before, after = updates(rule, sequence)[0], updates(rule, changed_one)[0]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert (before[-1, 1] != after[-1, 1]).all()


def test_without_averaging_cells_coordinates_are_alone():
    rule = LSTMRule(**SMALL).double()
    sequence = gradients()
    torch.testing.assert_close(updates(rule, sequence)[0][:, 1, 2], updates(rule, sequence[:, 1, 2:3])[0][:, 0])


def test_a_memory_forgets_what_is_older_than_its_history():
    rule = NTMBFGS(**SMALL, write_heads=2, history=3).double()
    _, state = updates(rule, gradients(steps=5))
    _, whole = updates(NTMBFGS(**SMALL, write_heads=2).double(), gradients(steps=3))
    assert state.left.shape == state.right.shape == (6, 3, 4)
    assert torch.equal(whole.left, updates(rule, gradients(steps=3))[1].left)


@pytest.mark.parametrize("make", WITH_MEMORY.values(), ids=WITH_MEMORY)
def test_the_memory_as_a_matrix_is_what_vectors_are_multiplied_by(make):
    rule = make()
    _, state = updates(rule, gradients())
    vectors = gradients(steps=2, seed=1)
    product = torch.einsum("nij,rnj->rni", state.memory, vectors)
    torch.testing.assert_close(_multiplied(state.left, state.right, vectors), product)


def test_memories_along_the_way():
    rule = NTMBFGS(**SMALL)
    functions = ConditionedQuadratics(dim=4, condition=10.0).sample(3, generator(0, "test"))
    found = memories(rule, functions, 2)
    rows, state = functions.theta, rule.initial_state(3, 4)
    for step in range(3):
        torch.testing.assert_close(found[:, step], state.memory)
        residual = torch.einsum("nij,nj->ni", functions.W, rows) - functions.y
        update, state = rule.step(2 * torch.einsum("nij,ni->nj", functions.W, residual), state)
        rows = rows + update
    assert torch.equal(found[:, 0], torch.eye(4).expand(3, 4, 4))


def test_bfgs_solves_quadratics():
    functions = ConditionedQuadratics(dim=5, condition=100.0).sample(20, generator(0, "test"))
    losses = bfgs_losses(functions, 60)
    assert losses.shape == (20, 61)
    torch.testing.assert_close(losses[:, 0].float(), functions.losses(functions.initial_params, 0))
    assert (losses.diff(dim=1) <= 0).all()
    assert (losses[:, 5] > 1e-3).all()
    assert (losses[:, -1] < 1e-12).all()
    assert torch.equal(bfgs_losses(functions, 5), losses[:, :6])


@each_rule
@pytest.mark.parametrize("windows", [[5], [3, 3, 1]], ids=["one window", "windows"])
@pytest.mark.parametrize("tasks", [quadratics(), Network()], ids=["quadratics", "network"])
@pytest.mark.parametrize("second_order", [False, True])
def test_replay_equals_autograd(make, windows, tasks, second_order):
    rule = make()
    replayed = run((SecondOrderEstimator if second_order else FirstOrderEstimator)(rule), tasks, windows)
    assert_equal_windows(replayed, run(AutogradEstimator(rule, second_order=second_order), tasks, windows))


def test_groups_of_which_one_averages():
    groups = {"conv": {**SMALL, "global_averaging_cells": 1}, "fc": {**SMALL, "seed": 1}}
    rule = GroupedRule(groups).double()
    tasks = Network()
    named = {"weight": "conv.weight", "bias": "fc.bias", "offset": "conv.offset"}

    class Layers(Network):
        @property
        def initial_params(self):
            return {named[name]: tensor for name, tensor in tasks.initial_params.items()}

        def losses(self, params, step):
            return super().losses({name: params[full] for name, full in named.items()}, step)

    assert not rule.coordinatewise
    replayed = run(FirstOrderEstimator(rule), Layers(), [3, 2])
    assert_equal_windows(replayed, run(AutogradEstimator(rule, second_order=False), Layers(), [3, 2]))


@each_rule
def test_what_cannot_be_done_with_coordinates_that_learn_of_each_other(make):
    with pytest.raises(ValueError, match="leave sample None"):
        FirstOrderEstimator(make(), sample=3)


@each_rule
@pytest.mark.parametrize("settings", [{}, {"second_derivatives": True}], ids=str)
def test_is_meta_trained(make, settings):
    short = {"horizon": 8, "unroll": 4, "epochs": 2, "episodes_per_epoch": 40, "batch_size": 16, "meta_lr": 0.03}
    history = meta_train(
        make().float(), Quadratics(dim=2), MetaTraining(**short, **settings), device="cpu", progress=False
    )
    assert history.records[-1].validation_loss < 0.9 * history.records[0].validation_loss


@each_rule
def test_comes_back_from_a_file(make, tmp_path):
    rule = make(seed=3).float()
    loaded = zoo.load(zoo.save(rule, tmp_path / "rule"))
    assert loaded.config() == rule.config()
    sequence = gradients().float()
    assert torch.equal(updates(loaded, sequence)[0], updates(rule, sequence)[0])


def test_a_plain_lstm_says_nothing_of_averaging():
    """States that were saved before there were global averaging cells still belong to the same rule."""
    assert "global_averaging_cells" not in LSTMRule().config()
    assert optimizers.make(LSTMRule(global_averaging_cells=3).config()).global_averaging_cells == 3


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (LSTMRule, {"global_averaging_cells": 21}, "LSTMRule: global_averaging_cells must be .* 0 to 20"),
        (LSTMRule, {"global_averaging_cells": -1}, "LSTMRule: global_averaging_cells must be .* got -1"),
        (NTMBFGS, {"global_averaging_cells": 1.5}, "NTMBFGS: global_averaging_cells must be .* got 1.5"),
        (NTMBFGS, {"hidden_size": 0}, "NTMBFGS: hidden_size must be a whole number of at least 1, got 0"),
        (NTMBFGS, {"read_heads": 0}, "NTMBFGS: read_heads must be a whole number of at least 1, got 0"),
        (NTMBFGS, {"write_heads": -1}, "NTMBFGS: write_heads must be a whole number of at least 1, got -1"),
        (NTMBFGS, {"history": None}, "NTMBFGS: history must be a whole number of at least 1, got None"),
    ],
)
def test_arguments_that_make_no_sense(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(**arguments)


class TestOnOnesOwnModel:
    """Parameters of 3, 1 and 4 coordinates."""

    def params(self):
        return [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3,), (), (2, 2))]

    def drive(self, params, optimizer, sequence):
        for row in sequence:
            for param, gradient in zip(params, row.split([3, 1, 4]), strict=True):
                param.grad = gradient.view_as(param).clone()
            optimizer.step()
        return torch.cat([param.detach().flatten() for param in params])

    @each_rule
    def test_moves_all_parameters_as_one_optimizee(self, make):
        rule, sequence, params = make().float(), gradients(n=1, coordinates=8)[:, 0].float(), self.params()
        moved = self.drive(params, LearnedOptimizer(params, rule), sequence)
        torch.testing.assert_close(moved, updates(rule, sequence)[0].sum(dim=0))

    @each_rule
    def test_over_groups_with_learning_rates_of_their_own(self, make):
        rule, sequence, params = make().float(), gradients(n=1, coordinates=8)[:, 0].float(), self.params()
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]
        moved = self.drive(params, LearnedOptimizer(groups, rule), sequence)
        expected = updates(rule, sequence)[0].sum(dim=0)
        expected[3:] *= 0.5
        torch.testing.assert_close(moved, expected)

    @each_rule
    def test_a_saved_state_continues_bit_for_bit(self, make):
        rule, sequence, params = make().float(), gradients(n=1, coordinates=8)[:, 0].float(), self.params()
        optimizer = LearnedOptimizer(params, rule)
        self.drive(params, optimizer, sequence[:3])
        state, there = copy.deepcopy(optimizer.state_dict()), [param.detach().clone() for param in params]
        expected = self.drive(params, optimizer, sequence[3:])
        again = [torch.nn.Parameter(tensor) for tensor in there]
        other = LearnedOptimizer(again, rule)
        other.load_state_dict(state)
        assert torch.equal(self.drive(again, other, sequence[3:]), expected)

    @each_rule
    def test_a_parameter_without_a_gradient(self, make):
        params = self.params()
        optimizer = LearnedOptimizer(params, make().float())
        optimizer.step()
        assert not optimizer.state
        params[0].grad = torch.ones(3)
        with pytest.raises(RuntimeError, match="2 of 3 parameters have no gradient"):
            optimizer.step()


def test_a_state_is_changed_field_by_field():
    state = NTMBFGS(**SMALL).initial_state(2, 3)
    assert [part.shape[-2:] for part in map_state(state, lambda part: part[..., :1, :])] == [(1, 3)] * 5
