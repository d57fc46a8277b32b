"""The paper's update rule (section 2.1): one small LSTM, applied to every coordinate with shared weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from l2l_kit.errors import check_counts, check_positive
from l2l_kit.optimizers.base import Memory, Part, UpdateRule, map_state
from l2l_kit.optimizers.preprocessing import Preprocessing, make_preprocessing
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout

BLOCK = 2**14
"""Coordinates that `LSTMRule.step` works on at a time on a CPU. It bounds the memory, and more would be no faster."""


class LSTMState(NamedTuple):
    """The LSTM's memory of each coordinate: outputs and cell states, ``(layers, hidden, *shape of the gradients)``."""

    hidden: Tensor
    cell: Tensor


class LSTMLayer(nn.Module):
    """One LSTM layer. The rows of its weight are the input, forget and output gates and then the candidate.

    (In torch.nn.LSTM the candidate is third. Here the three sigmoids lie side by side and are one operation.)
    """

    def __init__(self, inputs: int, hidden: int, forget_bias: Sequence[float], draws: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden)  # as torch.nn.LSTM is initialized
        shapes = (4 * hidden, inputs + hidden), (4 * hidden,)
        self.weight, self.bias = (
            nn.Parameter(torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=draws)) for shape in shapes
        )
        with torch.no_grad():
            low, high = forget_bias[0], forget_bias[-1]
            if len(forget_bias) == 1:
                self.bias[hidden : 2 * hidden] += low
            else:
                spread = low + (high - low) * torch.rand(hidden, generator=draws)
                self.bias[hidden : 2 * hidden] += spread
                self.bias[:hidden] -= spread / 2  # a cell that forgets slowly must fill slowly, or it saturates

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """New output and cell state, both ``(hidden, coordinates)``, from inputs ``(inputs, coordinates)``."""
        size = len(hidden)
        gates = torch.addmm(self.bias[:, None], self.weight, torch.cat([inputs, hidden]))
        take, keep, give = gates[: 3 * size].sigmoid().chunk(3)
        cell = keep * cell + take * _tanh(gates[3 * size :])
        return give * _tanh(cell), cell

    def doubled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias ``(4 · hidden, 1)`` for `step_in_place`, detached, with the candidate's rows doubled."""
        factors = self.weight.new_ones(len(self.weight), 1)
        factors[len(factors) * 3 // 4 :] = 2
        return self.weight.detach() * factors, self.bias.detach()[:, None] * factors


def _tanh(values: Tensor) -> Tensor:
    """tanh(x) = 2σ(2x) - 1, because torch's σ is ten times as fast as its tanh on a CPU."""
    return 2 * (2 * values).sigmoid() - 1


def step_in_place(
    weights: tuple[Tensor, Tensor],
    inputs: Tensor,
    gates: Tensor,
    split: Sequence[Tensor],
    cell: Tensor,
    next_cell: Tensor,
    tanh_cell: Tensor,
    output: Tensor,
) -> None:
    """`LSTMLayer.forward` without a graph and without new tensors, which are all ``(…, coordinates)``.

    Args:
        weights: from `LSTMLayer.doubled`. By tanh(x) = 2σ(2x) - 1 one σ then gives all four gates.
        inputs: the layer's input and its last output, as one tensor.
        gates: overwritten by the input, forget and output gates and the candidate; `split` has views of these four.
        cell: the cell state.
        next_cell: overwritten by the new cell state.
        tanh_cell: overwritten by its tanh; may share memory with any gate but the output gate.
        output: overwritten by the new output; may share memory with the last one in `inputs`.
    """
    weight, bias = weights
    take, keep, give, candidate = split
    torch.addmm(bias, weight, inputs, out=gates).sigmoid_()
    candidate.mul_(2).sub_(1)
    torch.mul(keep, cell, out=next_cell).addcmul_(take, candidate)
    torch.mul(next_cell, 2, out=tanh_cell).sigmoid_().mul_(2).sub_(1)
    torch.mul(give, tanh_cell, out=output)


class LSTMRule(UpdateRule):
    """The paper's rule: g(t), h(t+1) = m(∇f(θ(t)), h(t); φ), with the same weights φ for each coordinate (figure 3).

    It is one network: stacked LSTM layers and a linear layer. Its state is a named tuple of tensors whose last axes are
    those of the gradients.

    Args:
        hidden_size, num_layers: cells of each LSTM layer, and layers; the paper uses two layers of 20.
        preprocessing: "none", "scale" or "log-sign" (appendix A), or a `Preprocessing`.
        output_scale: factor on the proposed update; the paper uses 0.1 on MNIST and none (1.0) on the quadratics.
        forget_bias: added to the initial biases of the forget gates; the paper does not mention one. With a bias b an
            untrained cell remembers about 1 + exp(b) steps, and a long memory averages noisy gradients. A pair spreads
            the cells of a layer between two biases, so that some remember a few steps and others hundreds, and lowers
            the biases of their input gates by half as much (compare Tallec and Ollivier, 2018).
        global_averaging_cells: cells in each layer whose outputs are replaced, at each step, by their mean over all
            coordinates of the task (appendix of the paper's first version, arXiv:1606.04474v1).
        seed: seed of the initial weights.
        odd: make the update an odd function of the gradients, (m(∇) - m(-∇)) / 2, at twice the cost. The paper's rule
            is not: it may drift, the same way for all coordinates, which adds up over a thousand steps.
        more_inputs, outputs: for subclasses: inputs of the first layer besides the preprocessed gradient, and outputs
            of the linear layer, of which the first is the update.

    Raises:
        ValueError: for an unknown preprocessing (`UnknownNameError`), or a number that makes no sense.
    """

    kind = "lstm"

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        preprocessing: str | Preprocessing | Mapping[str, object] = "none",
        output_scale: float = 1.0,
        forget_bias: float | Sequence[float] = 0.0,
        global_averaging_cells: int = 0,
        seed: int = 0,
        odd: bool = False,
        *,
        more_inputs: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        mine = type(self).__name__
        check_counts(mine, hidden_size=hidden_size, num_layers=num_layers)
        check_positive(mine, output_scale=output_scale)
        biases = (forget_bias,) if isinstance(forget_bias, int | float) else tuple(forget_bias)
        if len(biases) not in (1, 2) or not all(map(math.isfinite, biases)):
            raise ValueError(f"{mine}: forget_bias must be a finite number, or two of them, got {forget_bias!r}.")
        if not isinstance(global_averaging_cells, int) or not 0 <= global_averaging_cells <= hidden_size:
            wanted = f"a whole number from 0 to {hidden_size}, the cells of a layer"
            raise ValueError(f"{mine}: global_averaging_cells must be {wanted}, got {global_averaging_cells!r}.")
        self.hidden_size, self.num_layers, self.output_scale = hidden_size, num_layers, output_scale
        self.preprocessing = make_preprocessing(preprocessing)
        self.forget_bias = biases[0] if len(biases) == 1 else list(biases)
        self.global_averaging_cells, self.odd, self.seed = global_averaging_cells, odd, seed
        draws = generator(seed, "initial weights")
        widths = [self.preprocessing.features + more_inputs] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(LSTMLayer(width, hidden_size, biases, draws) for width in widths)
        bound = 1 / math.sqrt(hidden_size)
        self.output = nn.Linear(hidden_size, outputs, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.output.weight.uniform_(-bound, bound, generator=draws)
            self.output.bias.zero_()

    @property
    @override
    def coordinatewise(self) -> bool:
        return self.global_averaging_cells == 0

    @override
    def network_for(self, kind: str | None) -> LSTMRule:
        return self

    @override
    def parts(self, layout: Layout) -> list[Part]:
        return [Part("", self, slice(None), layout.sizes)]

    @override
    def config(self) -> dict[str, object]:
        # The order is part of the fingerprints in saved states. The last two are left out if not used, for the same
        # reason: those states date from before them.
        names = ("kind", "hidden_size", "num_layers", "preprocessing", "output_scale", "forget_bias", "seed")
        config = {name: getattr(self, name) for name in names} | {"preprocessing": self.preprocessing.config()}
        later = {"global_averaging_cells": self.global_averaging_cells, "odd": self.odd}
        return config | {name: value for name, value in later.items() if value}

    def initial_state(self, *shape: int) -> Memory:
        """The network's state h(0) for gradients of that shape: zeros, with the weights' type and device."""
        sides = (2,) if self.odd else ()
        zeros = self.output.weight.new_zeros(self.num_layers, self.hidden_size, *sides, *shape)
        return LSTMState(zeros, zeros.clone())

    def forward(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """Updates g(t) and state h(t+1) from gradients ∇f(θ(t)) and state h(t); the reference for `step` and tapes.

        Gradients and updates are of any one shape whose last axis is the coordinates of a task.
        """
        outputs, after = self._run(self.preprocessing(self.both_sides(gradients)), *state)
        return self.output_scale * self.one_side(outputs[0]), after

    def _run(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, LSTMState]:
        """Outputs of the linear layer, ``(outputs, *shape)``, and the new state, from ``(inputs, *shape)``."""
        shape, signal, cells = inputs.shape[1:], inputs, self.global_averaging_cells
        new_hidden, new_cell = [], []
        for layer, h, c in zip(self.layers, hidden, cell, strict=True):
            signal, c = layer(signal.flatten(1), h.flatten(1), c.flatten(1))
            signal = signal.view(len(signal), *shape)
            if cells:
                means = signal[:cells].mean(dim=-1, keepdim=True).expand_as(signal[:cells])
                signal = torch.cat([means, signal[cells:]])
            new_hidden.append(signal)
            new_cell.append(c.view_as(signal))
        outputs = torch.addmm(self.output.bias[:, None], self.output.weight, signal.flatten(1))
        return outputs.view(len(outputs), *shape), LSTMState(torch.stack(new_hidden), torch.stack(new_cell))

    @property
    def sides(self) -> int:
        """How many times the LSTM runs: an odd rule's also on the negative gradients."""
        return 2 if self.odd else 1

    def both_sides(self, gradients: Tensor) -> Tensor:
        """What the LSTM runs on: the gradients and, if the rule is odd, their negatives, ``(2, *shape)``."""
        return torch.stack([gradients, -gradients]) if self.odd else gradients

    def one_side(self, outputs: Tensor) -> Tensor:
        """The updates from the LSTM's outputs for `both_sides`."""
        return (outputs[0] - outputs[1]) / 2 if self.odd else outputs

    @torch.no_grad()
    def step(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """`forward` without a graph; if coordinatewise, in one buffer, and on a CPU block by block.

        The updates have the floating-point type of the gradients, whichever it is.
        """
        if not self.coordinatewise:
            updates, after = self(gradients.to(state[0].dtype), state)
            return updates.to(gradients.dtype), after
        seen = self.both_sides(gradients)
        flat = seen.flatten()
        updates = torch.empty_like(flat)
        hidden, cell = (part.flatten(2) for part in state)
        after = map_state(state, lambda part: torch.empty_like(part, memory_format=torch.contiguous_format))
        new_hidden, new_cell = (part.flatten(2) for part in after)  # views
        weights = [cast(LSTMLayer, layer).doubled() for layer in self.layers]
        size, features = self.hidden_size, self.preprocessing.features
        # The rows are the features, the outputs of every layer and the gates. So a layer's input and its last output
        # lie side by side, and its new output takes the place of the last one, where the next layer finds it.
        block = max(1, min(len(flat), BLOCK) if flat.device.type == "cpu" else len(flat))
        whole = cell.new_empty(features + size * (self.num_layers + 4), block)
        for first in range(0, len(flat), block):
            part = slice(first, first + block)
            rows = whole[:, : len(flat) - first]
            outputs, gates = rows[features : -4 * size], rows[-4 * size :]
            split = gates.chunk(4)
            rows[:features] = self.preprocessing(flat[part].to(whole.dtype))
            outputs.copy_(hidden[..., part].flatten(0, 1))
            end = features
            for layer, c, new_c in zip(weights, cell[..., part], new_cell[..., part], strict=True):
                end += size
                inputs, output = rows[end - layer[0].shape[1] : end], rows[end - size : end]
                step_in_place(layer, inputs, gates, split, c, new_c, split[3], output)
            updates[part] = torch.addmm(self.output.bias[:, None], self.output.weight, output)[0]
            new_hidden[..., part] = outputs.view(self.num_layers, size, -1)
        updates *= self.output_scale
        return self.one_side(updates.view_as(seen)), after
