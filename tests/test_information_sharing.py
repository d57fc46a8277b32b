"""Every network against a loop written out here, and what coordinates that depend on each other can do."""

import pytest
import torch
from small import COORDINATEWISE, NETWORKS, RULES

from l2l_kit.evaluation import bfgs_losses, memories
from l2l_kit.optimizers import NTMBFGS
from l2l_kit.problems import ConditionedQuadratics
from l2l_kit.randomness import generator


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
    """The same for one task, coordinate by coordinate, with the memory as a matrix; of an odd rule, one side."""
    steps, coordinates = sequence.shape
    layers = [(layer.weight, layer.bias) for layer in rule.layers]
    zeros = torch.zeros(rule.hidden_size).double()
    hidden, cell = ([[zeros for _ in layers] for _ in range(coordinates)] for _ in range(2))
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


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_steps_are_those_written_out(make):
    rule, sequence = make().double(), gradients()
    with torch.no_grad():
        expected = torch.stack([written_out(rule, one) for one in sequence.unbind(1)], dim=1)
        if rule.odd:
            expected = (expected - torch.stack([written_out(rule, -one) for one in sequence.unbind(1)], dim=1)) / 2
    torch.testing.assert_close(updates(rule, sequence)[0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("coordinates", [0, 3, 4, 11])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name in COORDINATEWISE])
def test_a_step_in_blocks_equals_forward(monkeypatch, name, coordinates, dtype, tolerance):
    """`forward` is the one that can be differentiated. States are not changed in place."""
    monkeypatch.setattr("l2l_kit.optimizers.lstm.BLOCK", 4)
    rule = RULES[name]().to(dtype)
    state = expected_state = rule.initial_state(coordinates)
    for gradient in gradients(3, 1, coordinates)[:, 0].to(dtype):
        before = [part.clone() for part in state]
        updates, after = rule.step(gradient, state)
        assert all(torch.equal(part, copy) for part, copy in zip(state, before, strict=True))
        with torch.no_grad():
            expected, expected_state = rule(gradient, expected_state)
        state = after
        for found, wanted in zip((updates, *state), (expected, *expected_state), strict=True):
            assert not found.requires_grad
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_a_memory_forgets_what_is_older_than_its_history_and_is_a_sum_of_outer_products():
    rule, whole = (NTMBFGS(5, write_heads=2, **more).double() for more in ({"history": 3}, {}))
    _, state = updates(rule, gradients(steps=5))
    _, everything = updates(whole, gradients(steps=5))
    assert (len(state.left), len(everything.left)) == (6, 10)
    for task in range(3):
        written = zip(state.left[:, task], state.right[:, task], strict=True)
        expected = torch.eye(4).double() + sum(torch.outer(left, right) for left, right in written) / 4
        torch.testing.assert_close(state.memory[task], expected)


def test_memories_along_the_way():
    rule = NTMBFGS(5)
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
    torch.testing.assert_close(losses[:, 0].float(), functions.losses(functions.initial_params, 0))
    assert (losses.diff(dim=1) <= 0).all()
    assert (losses[:, 5] > 1e-3).all()
    assert (losses[:, -1] < 1e-12).all()
    assert torch.equal(bfgs_losses(functions, 5), losses[:, :6])
