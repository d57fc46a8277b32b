"""The paper's update rule (section 2.1): one small LSTM, applied to every coordinate with shared weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from l2l_kit.errors import AtLeast, Count, Positive, check_fields
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

    factors: Tensor

    def __init__(self, inputs: int, hidden: int, forget_bias: Sequence[float], draws: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(_uniform(hidden, draws, 4 * hidden, inputs + hidden))
        self.bias = nn.Parameter(_uniform(hidden, draws, 4 * hidden))
        factors = torch.tensor([1.0, 1.0, 1.0, 2.0], device="cpu").repeat_interleave(hidden)[:, None]
        self.register_buffer("factors", factors, persistent=False)
        with torch.no_grad():
            low, high = forget_bias[0], forget_bias[-1]
            if len(forget_bias) == 1:
                self.bias[hidden : 2 * hidden] += low
            else:
                spread = low + (high - low) * torch.rand(hidden, generator=draws)
                self.bias[hidden : 2 * hidden] += spread
                self.bias[:hidden] -= spread  # a cell that forgets slowly must fill slowly, or it saturates

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """New output and cell state, both ``(hidden, coordinates)``, from inputs ``(inputs, coordinates)``."""
        weight, bias = self.doubled()
        take, keep, give, candidate = torch.addmm(bias, weight, torch.cat([inputs, hidden])).sigmoid_().chunk(4)
        cell = keep * cell + take * (2 * candidate).sub_(1)
        return give * (2 * (2 * cell).sigmoid_()).sub_(1), cell

    def doubled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias ``(4 · hidden, 1)`` with the candidate's rows doubled, so that one σ gives all four gates.

        That is because tanh(x) = 2σ(2x) - 1, and torch's σ is ten times as fast as its tanh on a CPU.
        """
        return self.weight * self.factors, self.bias[:, None] * self.factors


def _uniform(hidden: int, draws: torch.Generator, *shape: int) -> Tensor:
    """Initial weights as those of torch.nn.LSTM."""
    bound = 1 / math.sqrt(hidden)
    return torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=draws)


class LayerStep(NamedTuple):
    """Where one step of a layer finds and leaves its numbers: views of larger buffers, ``(…, coordinates)``."""

    inputs: Tensor  # the layer's input and, below it, its last output
    gates: Tensor  # all four
    sigmoids: Tensor  # the first three
    take: Tensor
    keep: Tensor
    give: Tensor
    candidate: Tensor
    cell: Tensor
    next_cell: Tensor
    tanh_cell: Tensor  # may be the place of a gate other than `give`
    output: Tensor  # may be the place of the last output

    @classmethod
    def of(cls, inputs: Tensor, gates: Tensor, cell: Tensor, next_cell: Tensor, tanh: Tensor, output: Tensor) -> Self:
        take, keep, give, candidate = gates.chunk(4)
        return cls(inputs, gates, gates[: -len(cell)], take, keep, give, candidate, cell, next_cell, tanh, output)

    def run(self, weight: Tensor, bias: Tensor, minus_one: Tensor) -> None:
        """`LSTMLayer.forward` without a graph and without new tensors, which overwrites all but `inputs` and `cell`.

        Takes what `LSTMLayer.doubled` gives, and -1 as a tensor, with which 2σ - 1 is one operation.
        """
        torch.addmm(bias, weight, self.inputs, out=self.gates).sigmoid_()
        torch.add(minus_one, self.candidate, alpha=2, out=self.candidate)
        torch.mul(self.keep, self.cell, out=self.next_cell).addcmul_(self.take, self.candidate)
        tanh = torch.mul(self.next_cell, 2, out=self.tanh_cell).sigmoid_()
        torch.add(minus_one, tanh, alpha=2, out=tanh)
        torch.mul(self.give, tanh, out=self.output)


class LSTMRule(UpdateRule):
    """The paper's rule: g(t), h(t+1) = m(∇f(θ(t)), h(t); φ), with the same weights φ for each coordinate (figure 3).

    It is one network: stacked LSTM layers and a linear layer.

    Args:
        hidden_size, num_layers: cells of each LSTM layer, and layers; the paper uses two layers of 20.
        preprocessing: "none", "scale" or "log-sign" (appendix A), or a `Preprocessing`.
        output_scale: factor on the proposed update; the paper uses 0.1 on MNIST and none (1.0) on the quadratics.
        forget_bias: added to the initial biases of the forget gates; the paper does not mention one. With a bias b an
            untrained cell remembers about 1 + exp(b) steps, and a long memory averages noisy gradients. A pair spreads
            the cells of a layer between two biases, and lowers those of their input gates as much (Tallec and Ollivier,
            2018), so that a cell with a long memory fills slowly and can tell how long a run is under way.
        global_averaging_cells: cells in each layer whose outputs are replaced, at each step, by their mean over all
            coordinates of the task (the paper's first version, arXiv:1606.04474v1).
        seed: seed of the initial weights.
        odd: make the update an odd function of the gradients, (m(∇) - m(-∇)) / 2, at twice the cost. The paper's rule
            may drift, the same way for all coordinates, which adds up over a thousand steps.
        more_inputs, outputs: for subclasses: inputs of the first layer besides the preprocessed gradient, and outputs
            of the linear layer, of which the first is the update.

    Raises:
        ValueError: for an unknown preprocessing (`UnknownNameError`), or a number that makes no sense.
    """

    kind = "lstm"

    hidden_size: Count
    num_layers: Count
    output_scale: Positive
    global_averaging_cells: Annotated[int, AtLeast(0)]
    seed: int
    odd: bool

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
        self.hidden_size, self.num_layers, self.output_scale = hidden_size, num_layers, output_scale
        self.preprocessing = make_preprocessing(preprocessing)
        self.global_averaging_cells, self.odd, self.seed = global_averaging_cells, odd, seed
        self.sides = 2 if odd else 1  # how many times the LSTM runs, see `both_sides`
        check_fields(self)
        if global_averaging_cells > hidden_size:
            raise ValueError(f"global_averaging_cells must be at most {hidden_size}, got {global_averaging_cells!r}.")
        forget_bias = forget_bias.tolist() if isinstance(forget_bias, np.generic | np.ndarray) else forget_bias
        biases = tuple(forget_bias) if isinstance(forget_bias, Sequence) else (forget_bias,)
        if len(biases) not in (1, 2) or not all(isinstance(b, int | float) and math.isfinite(b) for b in biases):
            raise ValueError(f"forget_bias must be a finite number, or two of them, got {forget_bias!r}.")
        # One rule has one fingerprint, however its numbers were written.
        self.output_scale, biases = float(output_scale), tuple(map(float, biases))
        self.forget_bias = biases[0] if len(biases) == 1 else list(biases)
        draws = generator(seed, "initial weights")
        widths = [self.preprocessing.features + more_inputs] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(LSTMLayer(width, hidden_size, biases, draws) for width in widths)
        self.output = nn.Linear(hidden_size, outputs, device="meta")
        self.output.weight = nn.Parameter(_uniform(hidden_size, draws, outputs, hidden_size))
        self.output.bias = nn.Parameter(torch.zeros(outputs, device="cpu"))

    @property
    def coordinatewise(self) -> bool:
        return self.global_averaging_cells == 0

    def network_for(self, kind: str | None) -> LSTMRule:
        return self

    def parts(self, layout: Layout) -> list[Part]:
        return [Part("", self, slice(None), layout.sizes)]

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
                averaged, rest = signal.tensor_split([cells])
                signal = torch.cat([averaged.mean(dim=-1, keepdim=True).expand_as(averaged), rest])
            new_hidden.append(signal)
            new_cell.append(c.view_as(signal))
        outputs = torch.addmm(self.output.bias[:, None], self.output.weight, signal.flatten(1))
        return outputs.view(len(outputs), *shape), LSTMState(torch.stack(new_hidden), torch.stack(new_cell))

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
        minus_one = cell.new_tensor(-1.0)
        size, features = self.hidden_size, self.preprocessing.features
        # The rows are the features, the outputs of every layer and the gates. So a layer's input and its last output
        # lie side by side, and its new output takes the place of the last one, where the next layer finds it.
        block = max(1, min(len(flat), BLOCK) if flat.device.type == "cpu" else len(flat))
        whole = cell.new_empty(features + size * (self.num_layers + 4), block)
        for first in range(0, len(flat), block):
            part = slice(first, first + block)
            rows = whole[:, : len(flat) - first]
            outputs, gates = rows[features : -4 * size], rows[-4 * size :]
            rows[:features] = self.preprocessing(flat[part].to(whole.dtype))
            outputs.copy_(hidden[..., part].flatten(0, 1))
            end = features
            for layer, c, new_c in zip(weights, cell[..., part], new_cell[..., part], strict=True):
                end += size
                inputs, output = rows[end - layer[0].shape[1] : end], rows[end - size : end]
                LayerStep.of(inputs, gates, c, new_c, gates[-size:], output).run(*layer, minus_one)
            updates[part] = torch.addmm(self.output.bias[:, None], self.output.weight, output)[0]
            new_hidden[..., part] = outputs.view(self.num_layers, size, -1)
        updates *= self.output_scale
        return self.one_side(updates.view_as(seen)), after
