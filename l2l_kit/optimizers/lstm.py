"""The learned optimizer of the paper (section 2.1): one small LSTM, run on every coordinate separately."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from l2l_kit.optimizers.base import LearnedRule, Part
from l2l_kit.optimizers.preprocessing import Preprocessing, make_preprocessing
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, Tensors, ravel

BLOCK = 4096
"""Coordinates at a time on a CPU: their gates fit into its cache."""


class LSTMState(NamedTuple):
    """What the LSTM remembers of each coordinate.

    Attributes:
        hidden: outputs h of every layer, shape ``(layers, hidden, coordinates)``.
        cell: cell states c of every layer, same shape.
    """

    hidden: Tensor
    cell: Tensor


class LSTMLayer(nn.Module):
    """Weights of one LSTM layer; the rows of the gates are ordered input, forget, output, candidate.

    (torch.nn.LSTM has the candidate third. Here the three sigmoids lie side by side and are one operation.)
    """

    def __init__(self, inputs: int, hidden: int, forget_bias: float, draws: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden)  # torch.nn.LSTM's own initialisation
        self.weight = nn.Parameter(torch.empty(4 * hidden, inputs + hidden).uniform_(-bound, bound, generator=draws))
        self.bias = nn.Parameter(torch.empty(4 * hidden).uniform_(-bound, bound, generator=draws))
        with torch.no_grad():
            self.bias[hidden : 2 * hidden] += forget_bias

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """New output and cell state, both ``(hidden, coordinates)``, from inputs ``(inputs, coordinates)``."""
        size = len(hidden)
        gates = torch.addmm(self.bias[:, None], self.weight, torch.cat([inputs, hidden]))
        take, keep, give = gates[: 3 * size].sigmoid().chunk(3)
        cell = keep * cell + take * _tanh(gates[3 * size :])
        return give * _tanh(cell), cell


def _tanh(values: Tensor) -> Tensor:
    """tanh(x) = 2σ(2x) - 1, since torch's σ is ten times as fast as its tanh on a CPU."""
    return 2 * (2 * values).sigmoid() - 1


class LSTMOptimizer(LearnedRule):
    """A learned optimizer: g(t), h(t+1) = m(∇f(θ(t)), h(t); φ), on every coordinate with shared weights φ (figure 3).

    Args:
        hidden_size: cells per layer; the paper uses 20.
        num_layers: stacked LSTM layers; the paper uses 2.
        preprocessing: "none", "scale" or "log-sign" (appendix A), or a `Preprocessing`.
        output_scale: factor on the proposed update; the paper uses 0.1 on MNIST and none (1.0) on the quadratics.
        forget_bias: added to the initial biases of the forget gates; the paper does not say. With b, an untrained cell
            remembers about 1 + exp(b) steps. Where gradients are noisy, much of what there is to learn is to average
            them, and a long memory is found far sooner from a long memory.
        seed: seed of the initial weights.

    Raises:
        UnknownNameError: for an unknown preprocessing.
        ValueError: for sizes below 1, an output factor that is not a positive number or a bias that is not finite.
    """

    kind: ClassVar[str] = "lstm"

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        preprocessing: str | Preprocessing | Mapping[str, Any] = "none",
        output_scale: float = 1.0,
        forget_bias: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("num_layers", num_layers)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"LSTMOptimizer: {name} must be a whole number of at least 1, got {size!r}.")
        if not (math.isfinite(output_scale) and output_scale > 0):
            raise ValueError(f"LSTMOptimizer: output_scale must be a positive number, got {output_scale!r}.")
        if not math.isfinite(forget_bias):
            raise ValueError(f"LSTMOptimizer: forget_bias must be a finite number, got {forget_bias!r}.")
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.preprocessing = make_preprocessing(preprocessing)
        self.output_scale = output_scale
        self.forget_bias = forget_bias
        self.seed = seed
        draws = generator(seed, "initial weights")
        widths = [self.preprocessing.features] + [hidden_size] * (num_layers - 1)
        self.layers = nn.ModuleList(LSTMLayer(width, hidden_size, forget_bias, draws) for width in widths)
        bound = 1 / math.sqrt(hidden_size)
        self.output = nn.Linear(hidden_size, 1, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.output.weight.uniform_(-bound, bound, generator=draws)
            self.output.bias.zero_()

    @override
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "preprocessing": self.preprocessing.config(),
            "output_scale": self.output_scale,
            "forget_bias": self.forget_bias,
            "seed": self.seed,
        }

    @override
    def lstm_for(self, kind: str | None) -> LSTMOptimizer:
        return self

    @override
    def parts(self, layout: Layout) -> list[Part]:
        return [Part("", self, slice(None), layout.sizes)]

    def initial_state(self, coordinates: int) -> LSTMState:
        """State h(0) = 0 for that many coordinates."""
        zeros = self.output.weight.new_zeros(self.num_layers, self.hidden_size, coordinates)
        return LSTMState(zeros, zeros.clone())

    def forward(self, gradients: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """One step on a flat row of coordinates; differentiable, and the reference for the faster `LSTMTape`.

        Args:
            gradients: ∇f(θ(t)), shape ``(coordinates,)``.
            state: h(t).

        Returns:
            The updates g(t), shape ``(coordinates,)``, and h(t+1).
        """
        signal = self.preprocessing(gradients)
        hidden, cell = [], []
        for layer, h, c in zip(self.layers, state.hidden, state.cell, strict=True):
            signal, c = layer(signal, h, c)
            hidden.append(signal)
            cell.append(c)
        update = torch.addmm(self.output.bias[:, None], self.output.weight, signal)
        return self.output_scale * update[0], LSTMState(torch.stack(hidden), torch.stack(cell))

    @override
    def init(self, params: Tensors) -> LSTMState:
        return self.initial_state(sum(tensor.numel() for tensor in params.values()))

    @torch.no_grad()
    def step(self, gradients: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """`forward` without a graph, in blocks of coordinates that stay in the CPU's cache."""
        block = max(1, len(gradients)) if gradients.is_cuda else BLOCK
        updates = torch.empty_like(gradients)
        after = LSTMState(torch.empty_like(state.hidden), torch.empty_like(state.cell))
        for first in range(0, len(gradients), block):
            part = slice(first, first + block)
            updates[part], new = self(gradients[part], LSTMState(state.hidden[..., part], state.cell[..., part]))
            after.hidden[..., part], after.cell[..., part] = new
        return updates, after

    @override
    @torch.no_grad()
    def update(self, gradients: Tensors, state: LSTMState) -> tuple[Tensors, LSTMState]:
        rows = ravel(gradients)
        updates, state = self.step(rows.flatten(), state)
        return Layout.of(gradients).unravel(updates.view_as(rows)), state
