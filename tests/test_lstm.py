"""The LSTM optimizer against torch.nn.LSTM, and its two fast twins, `step` and the tape, against its `forward`."""

import pytest
import torch

from l2l_kit.optimizers import LSTMRule, LSTMState, LSTMTape, lstm

SHAPES = {
    "two layers": {},
    "three layers": {"num_layers": 3},
    "log-sign, one layer": {"preprocessing": "log-sign", "num_layers": 1},
    "log-sign, scaled output": {"preprocessing": "log-sign", "output_scale": 0.1},
    "one cell": {"hidden_size": 1},
}
every_shape = pytest.mark.parametrize("arguments", SHAPES.values(), ids=SHAPES)
COORDINATES = 9
BLOCK = 4


def make_optimizer(**arguments):
    optimizer = LSTMRule(**{"hidden_size": 5, **arguments}).double()
    with torch.no_grad():
        optimizer.output.bias.fill_(0.03)
    return optimizer


def gradients(steps, seed=0, coordinates=COORDINATES):
    """Of very different sizes."""
    draws = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.linspace(-6, 2, max(coordinates, COORDINATES), dtype=torch.float64)[:coordinates]
    return torch.randn(steps, coordinates, generator=draws, dtype=torch.float64) * sizes


def forward(optimizer, sequence, state=None):
    state = optimizer.initial_state(sequence.shape[1]) if state is None else state
    updates = []
    for gradient in sequence:
        update, state = optimizer(gradient, state)
        updates.append(update)
    return torch.stack(updates), state


def assert_same(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@every_shape
def test_forward_equals_torch_nn_lstm(arguments):
    """torch orders the gates input, forget, candidate, output; the kit input, forget, output, candidate."""
    optimizer, sequence = make_optimizer(**arguments), gradients(7)
    features, hidden = optimizer.preprocessing.features, optimizer.hidden_size
    reference = torch.nn.LSTM(features, hidden, optimizer.num_layers).double()
    with torch.no_grad():
        for index, layer in enumerate(optimizer.layers):
            weight, bias = (
                torch.cat([take, keep, candidate, give])
                for take, keep, give, candidate in (layer.weight.chunk(4), layer.bias.chunk(4))
            )
            getattr(reference, f"weight_ih_l{index}").copy_(weight[:, :-hidden])
            getattr(reference, f"weight_hh_l{index}").copy_(weight[:, -hidden:])
            getattr(reference, f"bias_ih_l{index}").copy_(bias)
            getattr(reference, f"bias_hh_l{index}").zero_()
    inputs = torch.stack([optimizer.preprocessing(gradient).T for gradient in sequence])
    outputs, (last_hidden, last_cell) = reference(inputs)
    expected = optimizer.output_scale * (outputs @ optimizer.output.weight[0] + optimizer.output.bias)
    updates, state = forward(optimizer, sequence)
    assert_same(updates, expected)
    assert_same(state.hidden, last_hidden.mT)
    assert_same(state.cell, last_cell.mT)


@every_shape
class TestTape:
    def test_equals_forward_and_autograd_window_after_window(self, arguments):
        """With room for more steps than are taken, and weights that move between windows."""
        optimizer = make_optimizer(**arguments)
        tape, kept = LSTMTape(optimizer, COORDINATES, steps=6), []
        state = expected_state = optimizer.initial_state(COORDINATES)
        for seed, steps in enumerate([6, 1, 2]):
            sequence, upstream = gradients(steps, seed), gradients(steps, seed + 10)
            tape.start(state)
            updates = [tape.step(gradient) for gradient in sequence]
            state, found = tape.state, tape.backward(upstream)
            expected, expected_state = forward(optimizer, sequence, LSTMState(*(p.detach() for p in expected_state)))
            optimizer.zero_grad()
            (expected * upstream).sum().backward()
            assert_same(torch.stack(updates), expected.detach())
            for part, wanted in zip(state, expected_state, strict=True):
                assert_same(part, wanted.detach())
            assert found.keys() == dict(optimizer.named_parameters()).keys()
            for name, weight in optimizer.named_parameters():
                assert (found[name] - weight.grad).norm() <= 1e-12 * weight.grad.norm(), name
            given = [*updates, *state, *found.values()]
            kept.append((given, [tensor.clone() for tensor in given]))
            with torch.no_grad():
                for weight in optimizer.parameters():
                    weight *= 0.9
        for given, copies in kept:  # no later window has overwritten what an earlier one gave
            assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies, strict=True))


@every_shape
@pytest.mark.parametrize("coordinates", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_step_in_blocks_equals_forward(monkeypatch, arguments, coordinates, dtype, tolerance):
    monkeypatch.setattr("l2l_kit.optimizers.lstm.BLOCK", BLOCK)
    optimizer = make_optimizer(**arguments).to(dtype)
    state = expected_state = optimizer.initial_state(coordinates)
    for gradient in gradients(3, coordinates=coordinates).to(dtype):
        before = [part.clone() for part in state]
        updates, after = optimizer.step(gradient, state)
        assert all(torch.equal(part, copy) for part, copy in zip(state, before, strict=True))
        with torch.no_grad():
            expected, expected_state = optimizer(gradient, expected_state)
        state = after
        for found, wanted in zip((updates, *state), (expected, *expected_state), strict=True):
            assert not found.requires_grad
            assert_same(found, wanted, tolerance)


def test_an_update_of_many_named_coordinates_equals_forward_on_the_row():
    """More than the kit's own block, in single precision, as a task of the lessons has."""
    optimizer = LSTMRule(hidden_size=3)
    draws = torch.Generator().manual_seed(0)
    gradients = {"weight": torch.randn(2, 4, lstm.BLOCK // 4, generator=draws), "bias": torch.ones(2)}
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
    found, row = (torch.cat([t["weight"].flatten(1), t["bias"][:, None]], dim=1) for t in (updates, gradients))
    expected, _ = optimizer(row.flatten(), optimizer.initial_state(row.numel()))
    assert_same(found, expected.detach().view_as(row), 1e-6)
