"""The LSTM optimizer against torch.nn.LSTM, and its tape against itself under autograd."""

import pytest
import torch

from l2l_kit import optimizers
from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import LSTMRule, LSTMState, LSTMTape, lstm
from l2l_kit.optimizers.preprocessing import Identity

SHAPES = {
    "one layer": {"num_layers": 1},
    "two layers": {},
    "three layers": {"num_layers": 3},
    "log-sign": {"preprocessing": "log-sign"},
    "log-sign, one layer": {"preprocessing": "log-sign", "num_layers": 1},
    "scaled output": {"output_scale": 0.1},
    "one cell": {"hidden_size": 1, "num_layers": 2},
}
every_shape = pytest.mark.parametrize("arguments", SHAPES.values(), ids=SHAPES)
COORDINATES = 9


def make_optimizer(**arguments):
    optimizer = LSTMRule(**{"hidden_size": 5, **arguments}).double()
    with torch.no_grad():
        optimizer.output.bias.fill_(0.03)
    return optimizer


def gradients(steps, seed=0):
    draws = torch.Generator().manual_seed(seed)
    sizes = 10 ** torch.linspace(-6, 2, COORDINATES, dtype=torch.float64)
    return torch.randn(steps, COORDINATES, generator=draws, dtype=torch.float64) * sizes


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
    def test_step_equals_forward(self, arguments):
        optimizer, sequence = make_optimizer(**arguments), gradients(6)
        tape = LSTMTape(optimizer, COORDINATES, steps=6)
        tape.start(optimizer.initial_state(COORDINATES))
        updates = torch.stack([tape.step(gradient) for gradient in sequence])
        expected, state = forward(optimizer, sequence)
        assert_same(updates, expected)
        assert_same(tape.state.hidden, state.hidden)
        assert_same(tape.state.cell, state.cell)

    def test_step_is_as_exact_as_forward_in_single_precision(self, arguments):
        """Both against double precision: the tape may round elsewhere, but not much worse."""
        exact, single = make_optimizer(**arguments), make_optimizer(**arguments).float()
        sequence = gradients(20)
        expected, _ = forward(exact, sequence)
        reference, _ = forward(single, sequence.float())
        tape = LSTMTape(single, COORDINATES, steps=20)
        tape.start(single.initial_state(COORDINATES))
        updates = torch.stack([tape.step(gradient) for gradient in sequence.float()])
        error, error_of_forward = ((found - expected).abs().max() for found in (updates, reference))
        assert error <= 10 * error_of_forward

    @pytest.mark.parametrize("steps", [1, 2, 6])
    def test_backward_equals_autograd(self, arguments, steps):
        """From a state that is not zero, on a tape with room for more steps than are taken."""
        optimizer, sequence, upstream = make_optimizer(**arguments), gradients(steps), gradients(steps, seed=1)
        _, state = forward(optimizer, gradients(4, seed=2))
        state = LSTMState(*(part.detach() for part in state))
        tape = LSTMTape(optimizer, COORDINATES, steps=6)
        tape.start(state)
        for gradient in sequence:
            tape.step(gradient)
        found = tape.backward(upstream)
        updates, _ = forward(optimizer, sequence, state)
        (updates * upstream).sum().backward()
        assert found.keys() == dict(optimizer.named_parameters()).keys()
        for name, weight in optimizer.named_parameters():
            difference = (found[name] - weight.grad).norm() / weight.grad.norm()
            assert difference <= 1e-12, f"{name}: {difference:.1e}"

    def test_state_carries_over_windows(self, arguments):
        optimizer, sequence = make_optimizer(**arguments), gradients(7)
        tape = LSTMTape(optimizer, COORDINATES, steps=4)
        state, updates = optimizer.initial_state(COORDINATES), []
        for window in (sequence[:4], sequence[4:]):
            tape.start(state)
            updates += [tape.step(gradient) for gradient in window]
            state = tape.state
        expected, last = forward(optimizer, sequence)
        assert_same(torch.stack(updates), expected)
        assert_same(state.cell, last.cell)

    def test_what_it_gave_is_not_overwritten_by_the_next_window(self, arguments):
        optimizer, sequence = make_optimizer(**arguments), gradients(4)
        tape = LSTMTape(optimizer, COORDINATES, steps=4)

        def window(state):
            tape.start(state)
            updates = [tape.step(gradient) for gradient in sequence]
            return [*updates, *tape.state, *tape.backward(gradients(4, seed=1)).values()]

        first = window(optimizer.initial_state(COORDINATES))
        kept = [tensor.clone() for tensor in first]
        window(tape.state)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(first, kept, strict=True))

    def test_reads_the_weights_anew_in_each_window(self, arguments):
        optimizer, sequence = make_optimizer(**arguments), gradients(3)
        tape = LSTMTape(optimizer, COORDINATES, steps=3)
        for factor in (1.0, 0.5):
            with torch.no_grad():
                for weight in optimizer.parameters():
                    weight *= factor
            tape.start(optimizer.initial_state(COORDINATES))
            assert_same(torch.stack([tape.step(gradient) for gradient in sequence]), forward(optimizer, sequence)[0])


BLOCK = 4
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}


@every_shape
@pytest.mark.parametrize("coordinates", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_step_in_blocks_equals_forward(monkeypatch, arguments, coordinates):
    """From a state that differs from coordinate to coordinate."""
    monkeypatch.setattr("l2l_kit.optimizers.lstm.BLOCK", BLOCK)
    sizes = 10 ** torch.linspace(-6, 2, 2 * BLOCK + 3, dtype=torch.float64)[:coordinates]
    draws = torch.Generator().manual_seed(0)
    for dtype, tolerance in TOLERANCES.items():
        optimizer = make_optimizer(**arguments).to(dtype)
        gradients = [(torch.randn(coordinates, generator=draws) * sizes).to(dtype) for _ in range(3)]
        state = expected_state = optimizer.initial_state(coordinates)
        for gradient in gradients:
            before = [part.clone() for part in state]
            updates, after = optimizer.step(gradient, state)
            assert all(torch.equal(part, copy) for part, copy in zip(state, before, strict=True))
            with torch.no_grad():
                expected, expected_state = optimizer(gradient, expected_state)
            state = after
            for found, wanted in zip((updates, *state), (expected, *expected_state), strict=True):
                assert found.dtype == dtype
                assert not found.requires_grad
                assert_same(found, wanted, tolerance)


def test_step_never_runs_more_than_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr("l2l_kit.optimizers.lstm.BLOCK", BLOCK)
    optimizer, seen = make_optimizer(), []

    def spy(self, gradients, original=Identity.__call__):
        seen.append(len(gradients))
        return original(self, gradients)

    monkeypatch.setattr(Identity, "__call__", spy)
    optimizer.step(torch.zeros(2 * BLOCK + 3, dtype=torch.float64), optimizer.initial_state(2 * BLOCK + 3))
    assert seen == [BLOCK, BLOCK, 3]


def test_an_update_of_many_coordinates_equals_forward():
    """More than the kit's own block, in single precision, as an optimizee of the lessons has."""
    optimizer = LSTMRule(hidden_size=3)
    params = {
        "weight": torch.randn(2, lstm.BLOCK, generator=torch.Generator().manual_seed(0)),
        "bias": torch.ones(2, 5),
    }
    assert sum(tensor.numel() for tensor in params.values()) > lstm.BLOCK
    updates, _ = optimizer.update(params, optimizer.init(params))
    row = torch.cat([params["weight"], params["bias"]], dim=1)
    expected, _ = optimizer(row.flatten(), optimizer.initial_state(row.numel()))
    found = torch.cat([updates["weight"], updates["bias"]], dim=1)
    assert_same(found, expected.detach().view_as(row), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_tanh_is_tanh(dtype):
    """To a few units of the last place of 1, which it is computed beside."""
    values = torch.cat([torch.linspace(-12, 12, 1001), torch.tensor([-torch.inf, 0.0, torch.inf])]).to(dtype)
    error = (lstm._tanh(values) - values.tanh()).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps


@every_shape
def test_update_on_named_tensors_equals_forward_on_the_row(arguments):
    optimizer, sequence = make_optimizer(**arguments), gradients(3).view(3, 3, 3)
    named = [{"matrix": step[:, :2].reshape(3, 2, 1), "number": step[:, 2]} for step in sequence]
    state, found = optimizer.init(named[0]), []
    for step in named:
        updates, state = optimizer.update(step, state)
        found.append(torch.cat([updates["matrix"].flatten(1), updates["number"][:, None]], dim=1).flatten())
    assert_same(torch.stack(found), forward(optimizer, sequence.flatten(1))[0])


@every_shape
def test_is_made_again_from_its_configuration(arguments):
    optimizer = LSTMRule(**arguments, seed=3)
    again = optimizers.make(optimizer.config())
    assert again.config() == optimizer.config()
    for name, weight in optimizer.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_initial_weights_follow_the_seed_and_nothing_else():
    torch.manual_seed(1)
    one = LSTMRule(seed=0).state_dict()
    before = torch.manual_seed(2).get_state()
    same, other = LSTMRule(seed=0).state_dict(), LSTMRule(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in one.items():
        assert torch.equal(weight, same[name])
        assert weight.isfinite().all()
        assert name == "output.bias" or not torch.equal(weight, other[name])


def test_has_the_size_of_the_paper():
    """Two layers of 20: 4·20·(1+20) + 4·20 and 4·20·(20+20) + 4·20 weights, and 20 + 1 of the output."""
    optimizer = LSTMRule()
    assert sum(weight.numel() for weight in optimizer.parameters()) == 1760 + 3280 + 21
    assert optimizer.initial_state(7).cell.shape == (2, 20, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"hidden_size": 2.5}, "hidden_size must be a whole number of at least 1, got 2.5"),
        ({"num_layers": -1}, "num_layers must be a whole number of at least 1, got -1"),
        ({"num_layers": None}, "num_layers must be a whole number of at least 1, got None"),
        ({"output_scale": 0}, "output_scale must be a positive number, got 0"),
        ({"output_scale": -0.1}, "output_scale must be a positive number, got -0.1"),
        ({"output_scale": float("nan")}, "output_scale must be a positive number, got nan"),
    ],
)
def test_refuses_sizes_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSTMRule(**arguments)


def test_an_unknown_kind_gives_the_near_match():
    with pytest.raises(UnknownNameError, match="Did you mean 'lstm'"):
        optimizers.make({"kind": "LSTM2"})


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="hiden_size"):
        optimizers.make({"hiden_size": 20})
