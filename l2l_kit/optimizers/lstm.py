"""The learned optimizer of the paper (section 2.1): one small LSTM, run on every coordinate."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any, ClassVar, Generic, NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from l2l_kit.errors import check_counts, check_positive
from l2l_kit.optimizers.base import Memory, Part, UpdateRule, map_state
from l2l_kit.optimizers.preprocessing import Preprocessing, make_preprocessing
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, Tensors, ravel

BLOCK = 2**14
"""Coordinates that a step works on at a time on a CPU: it bounds the memory, and more at a time is no faster."""


class LSTMState(NamedTuple):
    """What the LSTM remembers of each coordinate.

    Attributes:
        hidden: outputs h of every layer, shape ``(layers, hidden, *shape of the gradients)``.
        cell: cell states c of every layer, same shape.
    """

    hidden: Tensor
    cell: Tensor


class LSTMLayer(nn.Module):
    """Weights of one LSTM layer; the rows of the gates are ordered input, forget, output, candidate.

    (torch.nn.LSTM has the candidate third. Here the three sigmoids lie side by side and are one operation.)
    """

    def __init__(
        self, inputs: int, hidden: int, forget_bias: float | tuple[float, float], draws: torch.Generator
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden)  # torch.nn.LSTM's own initialisation
        self.weight = nn.Parameter(
            torch.empty(4 * hidden, inputs + hidden, device="cpu").uniform_(-bound, bound, generator=draws)
        )
        self.bias = nn.Parameter(torch.empty(4 * hidden, device="cpu").uniform_(-bound, bound, generator=draws))
        with torch.no_grad():
            if isinstance(forget_bias, tuple):
                low, high = forget_bias
                spread = low + (high - low) * torch.rand(hidden, generator=draws)
                self.bias[hidden : 2 * hidden] += spread
                self.bias[:hidden] -= spread / 2  # what is forgotten slowly must be taken in slowly, or cells saturate
            else:
                self.bias[hidden : 2 * hidden] += forget_bias

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """New output and cell state, both ``(hidden, coordinates)``, from inputs ``(inputs, coordinates)``."""
        size = len(hidden)
        gates = torch.addmm(self.bias[:, None], self.weight, torch.cat([inputs, hidden]))
        take, keep, give = gates[: 3 * size].sigmoid().chunk(3)
        cell = keep * cell + take * _tanh(gates[3 * size :])
        return give * _tanh(cell), cell

    def doubled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias ``(4 · hidden, 1)`` for `step_in_place`: the candidate's rows twice as large, detached."""
        factors = self.weight.new_ones(len(self.weight), 1)
        factors[len(factors) * 3 // 4 :] = 2
        return self.weight.detach() * factors, self.bias.detach()[:, None] * factors


def _tanh(values: Tensor) -> Tensor:
    """tanh(x) = 2σ(2x) - 1, since torch's σ is ten times as fast as its tanh on a CPU."""
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
    """What `LSTMLayer.forward` does, without a graph and without new tensors.

    Args:
        weights: from `LSTMLayer.doubled`. By tanh(x) = 2σ(2x) - 1 all four gates are then one σ.
        inputs: [input of the layer; its last output], shape ``(inputs + hidden, coordinates)``.
        gates: overwritten by input, forget, output and candidate, shape ``(4 · hidden, coordinates)``.
        split: views of these four.
        cell: ``(hidden, coordinates)``, as all that follow.
        next_cell: overwritten by the new cell state.
        tanh_cell: overwritten by its tanh; it may be any of the gates except the output gate.
        output: overwritten by the new output; it may be the last one in `inputs`.
    """
    weight, bias = weights
    take, keep, give, candidate = split
    torch.addmm(bias, weight, inputs, out=gates).sigmoid_()
    candidate.mul_(2).sub_(1)
    torch.mul(keep, cell, out=next_cell).addcmul_(take, candidate)
    torch.mul(next_cell, 2, out=tanh_cell).sigmoid_().mul_(2).sub_(1)
    torch.mul(give, tanh_cell, out=output)


class RecurrentRule(UpdateRule, Generic[Memory]):
    """A learned rule that is one network: stacked LSTM layers and a linear layer, run on every coordinate.

    Its state is a named tuple of tensors whose last axes are those of the gradients.

    Args:
        hidden_size: cells per layer; the paper uses 20.
        num_layers: stacked LSTM layers; the paper uses 2.
        preprocessing: "none", "scale" or "log-sign" (appendix A), or a `Preprocessing`.
        output_scale: factor on the proposed update; the paper uses 0.1 on MNIST and none (1.0) on the quadratics.
        forget_bias: added to the initial biases of the forget gates; the paper does not say. With b, an untrained cell
            remembers about 1 + exp(b) steps. Where gradients are noisy, much of what there is to learn is to average
            them, and a long memory is found far sooner from a long memory. Two numbers spread the cells of a layer
            between them, so that some remember a few steps and others hundreds; the biases of their input gates are
            lowered by half of that (compare the chrono initialisation of Tallec and Ollivier, 2018).
        global_averaging_cells: how many cells of each layer talk: at each step their outputs are replaced by their mean
            over all coordinates of the task (appendix of the paper's first version, arXiv:1606.04474v1). One is enough
            to clip the norm of the gradient, for example.
        seed: seed of the initial weights.
        more_inputs: for subclasses: inputs of the first layer beyond the features of a coordinate's gradient.
        outputs: for subclasses: outputs of the linear layer for each coordinate; the first one is the update.

    Raises:
        UnknownNameError: for an unknown preprocessing.
        ValueError: for sizes below 1, an output factor that is not a positive number, a bias that is not finite, or
            more global averaging cells than cells.
    """

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        preprocessing: str | Preprocessing | Mapping[str, Any] = "none",
        output_scale: float = 1.0,
        forget_bias: float | Sequence[float] = 0.0,
        global_averaging_cells: int = 0,
        seed: int = 0,
        *,
        more_inputs: int = 0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        mine = type(self).__name__
        check_counts(mine, hidden_size=hidden_size, num_layers=num_layers)
        check_positive(mine, output_scale=output_scale)
        biases = (forget_bias,) if isinstance(forget_bias, int | float) else tuple(forget_bias)
        if len(biases) not in (1, 2) or not all(math.isfinite(bias) for bias in biases):
            raise ValueError(f"{mine}: forget_bias must be a finite number, or two of them, got {forget_bias!r}.")
        if not isinstance(global_averaging_cells, int) or not 0 <= global_averaging_cells <= hidden_size:
            raise ValueError(
                f"{mine}: global_averaging_cells must be a whole number from 0 to {hidden_size}, the cells of a layer, "
                f"got {global_averaging_cells!r}."
            )
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.preprocessing = make_preprocessing(preprocessing)
        self.output_scale = output_scale
        self.forget_bias = biases[0] if len(biases) == 1 else (biases[0], biases[1])
        self.global_averaging_cells = global_averaging_cells
        self.seed = seed
        draws = generator(seed, "initial weights")
        widths = chain([self.preprocessing.features + more_inputs], repeat(hidden_size, num_layers - 1))
        self.layers = nn.ModuleList(LSTMLayer(width, hidden_size, self.forget_bias, draws) for width in widths)
        bound = 1 / math.sqrt(hidden_size)
        self.output = nn.Linear(hidden_size, outputs, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.output.weight.uniform_(-bound, bound, generator=draws)
            self.output.bias.zero_()

    @abstractmethod
    def initial_state(self, *shape: int) -> Memory:
        """The state h(0) for gradients of that shape: zeros, in the weights' type and on their device."""

    @abstractmethod
    def forward(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """One step; differentiable.

        Args:
            gradients: ∇f(θ(t)), shape ``(coordinates,)`` for one task or ``(n, coordinates)``.
            state: h(t).

        Returns:
            The updates g(t), of the same shape, and h(t+1).
        """

    @torch.no_grad()
    def step(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """`forward` without a graph. Gradients may be of any floating-point type, which the updates have, too."""
        updates, state = self(gradients.to(state[0].dtype), state)
        return updates.to(gradients.dtype), state

    @override
    def network_for(self, kind: str | None) -> RecurrentRule[Memory]:
        return self

    @override
    def parts(self, layout: Layout) -> list[Part]:
        return [Part("", self, slice(None), layout.sizes)]

    @override
    def init(self, params: Tensors) -> Memory:
        return self.initial_state(*ravel(params).shape)

    @override
    @torch.no_grad()
    def update(self, gradients: Tensors, state: Memory, params: Tensors) -> tuple[Tensors, Memory]:
        updates, state = self.step(ravel(gradients), state)
        return Layout.of(gradients).unravel(updates), state

    @override
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "kind": self.kind,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "preprocessing": self.preprocessing.config(),
            "output_scale": self.output_scale,
            "forget_bias": list(self.forget_bias) if isinstance(self.forget_bias, tuple) else self.forget_bias,
            "seed": self.seed,
        }
        if self.global_averaging_cells:  # left out otherwise: saved states say by it to which rule they belong
            config["global_averaging_cells"] = self.global_averaging_cells
        return config

    def _run(self, inputs: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """One step of the LSTM.

        Args:
            inputs: of the first layer, shape ``(inputs, *shape)`` for gradients of that shape.
            state: of the layers.

        Returns:
            Outputs of the linear layer, shape ``(outputs, *shape)``, and the new state.
        """
        shape, signal = inputs.shape[1:], inputs
        hidden, cell = [], []
        for layer, h, c in zip(self.layers, state.hidden, state.cell, strict=True):
            signal, c = layer(signal.flatten(1), h.flatten(1), c.flatten(1))
            signal = self._averaged(signal.view(len(signal), *shape))
            hidden.append(signal)
            cell.append(c.view_as(signal))
        outputs = torch.addmm(self.output.bias[:, None], self.output.weight, signal.flatten(1))
        return outputs.view(len(outputs), *shape), LSTMState(torch.stack(hidden), torch.stack(cell))

    def _averaged(self, outputs: Tensor) -> Tensor:
        """A layer's outputs, those of the global averaging cells replaced by their means over the coordinates."""
        cells = self.global_averaging_cells
        if not cells:
            return outputs
        means = outputs[:cells].mean(dim=-1, keepdim=True).expand_as(outputs[:cells])
        return torch.cat([means, outputs[cells:]])


class LSTMRule(RecurrentRule[LSTMState]):
    """The paper's rule: g(t), h(t+1) = m(∇f(θ(t)), h(t); φ), on every coordinate with shared weights φ (figure 3).

    Arguments as in `RecurrentRule`.
    """

    kind: ClassVar[str] = "lstm"

    @property
    @override
    def coordinatewise(self) -> bool:
        return self.global_averaging_cells == 0

    @override
    def initial_state(self, *shape: int) -> LSTMState:
        zeros = self.output.weight.new_zeros(self.num_layers, self.hidden_size, *shape)
        return LSTMState(zeros, zeros.clone())

    @override
    def forward(self, gradients: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """As in `RecurrentRule`; the reference for the faster `LSTMTape`."""
        outputs, state = self._run(self.preprocessing(gradients), state)
        return self.output_scale * outputs[0], state

    @override
    @torch.no_grad()
    def step(self, gradients: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """`forward` without a graph, in one buffer; on a CPU for one block of coordinates after the other."""
        if not self.coordinatewise:
            return super().step(gradients, state)
        flat = gradients.flatten()
        updates = torch.empty_like(flat)
        before = map_state(state, lambda part: part.flatten(2))
        after = map_state(before, torch.empty_like)
        weights = [cast(LSTMLayer, layer).doubled() for layer in self.layers]
        size, features = self.hidden_size, self.preprocessing.features
        # Rows: features, outputs of every layer, gates. What a layer multiplies lies side by side: what it is given and
        # its last output, which the new one replaces, so that the next layer finds it there.
        block = max(1, min(len(flat), BLOCK) if flat.device.type == "cpu" else len(flat))
        whole = before.cell.new_empty(features + size * (self.num_layers + 4), block)
        for first in range(0, len(flat), block):
            part = slice(first, first + block)
            rows = whole[:, : len(flat) - first]
            outputs, gates = rows[features : -4 * size], rows[-4 * size :]
            split = gates.chunk(4)
            rows[:features] = self.preprocessing(flat[part].to(whole.dtype))
            outputs.copy_(before.hidden[..., part].flatten(0, 1))
            end = features
            for layer, cell, next_cell in zip(weights, before.cell, after.cell, strict=True):
                end += size
                inputs, output = rows[end - layer[0].shape[1] : end], rows[end - size : end]
                step_in_place(layer, inputs, gates, split, cell[:, part], next_cell[:, part], split[3], output)
            updates[part] = torch.addmm(self.output.bias[:, None], self.output.weight, output)[0]
            after.hidden[..., part] = outputs.view(self.num_layers, size, -1)
        updates *= self.output_scale
        return updates.view_as(gradients), map_state(after, lambda part: part.view(*part.shape[:2], *gradients.shape))
