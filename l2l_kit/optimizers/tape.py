"""The fast twin of `LSTMOptimizer.forward`: a forward pass that records, and its backward pass written by hand.

Since every step runs the same recurrence, backpropagation through it fits on a page and needs no autograd graph.
Everything is kept "coordinates last", so each gate is one contiguous block, and works in place in buffers that are
allocated once and used for every window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from l2l_kit.optimizers.lstm import LSTMOptimizer, LSTMState


def floats_per_step(optimizer: LSTMOptimizer) -> int:
    """Numbers that a tape keeps per coordinate and step."""
    hidden, layers = optimizer.hidden_size, optimizer.num_layers
    inputs = optimizer.preprocessing.features + hidden * (layers - 1)
    return inputs + 7 * hidden * layers  # and per layer: its old output, four gates, cell, tanh(cell)


class LSTMTape:
    """Records up to `steps` steps of an `LSTMOptimizer` on `coordinates` coordinates and backpropagates through them.

    Usage: `start` a window from a state, call `step` for each gradient, then `backward` once; `state` is where the
    next window begins. The optimizer's weights are read at each call, so a meta-update between windows takes effect.
    """

    def __init__(self, optimizer: LSTMOptimizer, coordinates: int, steps: int) -> None:
        hidden, layers = optimizer.hidden_size, optimizer.num_layers
        new = optimizer.output.weight.detach().new_empty
        self._optimizer = optimizer
        self._features = optimizer.preprocessing.features
        # inputs[l][t] is [input of layer l at step t; its output at step t-1]: what the layer's weight multiplies.
        widths = [self._features] + [hidden] * (layers - 1)
        self._inputs = [new(steps + 1, width + hidden, coordinates) for width in widths]
        self._gates = new(layers, steps, 4 * hidden, coordinates)
        self._cell = new(layers, steps + 1, hidden, coordinates)
        self._tanh_cell = new(layers, steps, hidden, coordinates)
        self._d_gates = new(4 * hidden, coordinates)
        self._d_cell = new(layers, hidden, coordinates)
        self._d_hidden = new(layers, hidden, coordinates)
        self._scratch = new(hidden, coordinates)
        self._length = 0

    def _outputs(self, layer: int, t: int) -> Tensor:
        """Where the output of `layer` before step `t` lives: the recurrent half of that layer's input."""
        return self._inputs[layer][t, -self._optimizer.hidden_size :]

    def start(self, state: LSTMState) -> None:
        """Begin a window at `state`."""
        self._length = 0
        self._cell[:, 0].copy_(state.cell)
        for layer in range(self._optimizer.num_layers):
            self._outputs(layer, 0).copy_(state.hidden[layer])

    @property
    def state(self) -> LSTMState:
        """The state after the last step, as tensors of its own."""
        t = self._length
        hidden = torch.stack([self._outputs(layer, t) for layer in range(self._optimizer.num_layers)])
        return LSTMState(hidden, self._cell[:, t].clone())

    @torch.no_grad()
    def step(self, gradients: Tensor) -> Tensor:
        """Updates ``(coordinates,)`` for gradients ``(coordinates,)``, recording what `backward` needs."""
        optimizer, t, size = self._optimizer, self._length, self._optimizer.hidden_size
        self._inputs[0][t, : self._features] = optimizer.preprocessing(gradients)
        for index, layer in enumerate(optimizer.layers):
            gates = torch.addmm(
                layer.bias[:, None], layer.weight, self._inputs[index][t], out=self._gates[index, t]
            )
            gates[: 3 * size].sigmoid_()
            take, keep, give, candidate = gates.split(size)
            candidate.tanh_()
            cell = torch.mul(keep, self._cell[index, t], out=self._cell[index, t + 1]).addcmul_(take, candidate)
            tanh_cell = torch.tanh(cell, out=self._tanh_cell[index, t])
            output = torch.mul(give, tanh_cell, out=self._outputs(index, t + 1))
            if index + 1 < optimizer.num_layers:
                self._inputs[index + 1][t, :size] = output
        self._length += 1
        update = torch.addmm(optimizer.output.bias[:, None], optimizer.output.weight, output)[0]
        return update if optimizer.output_scale == 1.0 else update.mul_(optimizer.output_scale)

    @torch.no_grad()
    def backward(self, upstream: Tensor) -> dict[str, Tensor]:
        """Gradients of Σ_t upstream(t) · g(t) by the optimizer's weights, under their names in its `state_dict`.

        The state in which the window began counts as a constant: this is truncated backpropagation through time.

        Args:
            upstream: shape ``(steps taken, coordinates)``.
        """
        optimizer, size = self._optimizer, self._optimizer.hidden_size
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward.grad_input
        result = {name: torch.zeros_like(weight) for name, weight in optimizer.named_parameters()}
        d_gates, scratch = self._d_gates, self._scratch
        d_take, d_keep, d_give, d_candidate = d_gates.split(size)
        upstream = upstream * optimizer.output_scale
        self._d_cell.zero_()
        self._d_hidden.zero_()
        result["output.bias"] += upstream.sum()
        for t in reversed(range(self._length)):
            result["output.weight"].addmm_(upstream[t, None], self._outputs(-1, t + 1).T)
            self._d_hidden[-1].addmm_(optimizer.output.weight.T, upstream[t, None])
            for index in reversed(range(optimizer.num_layers)):
                gates, tanh_cell = self._gates[index, t], self._tanh_cell[index, t]
                take, keep, give, candidate = gates.split(size)
                d_cell, d_hidden = self._d_cell[index], self._d_hidden[index]
                torch.mul(d_hidden, give, out=scratch)
                d_cell.add_(tanh_backward(scratch, tanh_cell, grad_input=scratch))
                torch.mul(d_cell, candidate, out=d_take)
                torch.mul(d_cell, self._cell[index, t], out=d_keep)
                torch.mul(d_hidden, tanh_cell, out=d_give)
                torch.mul(d_cell, take, out=d_candidate)
                sigmoid_backward(d_gates[: 3 * size], gates[: 3 * size], grad_input=d_gates[: 3 * size])
                tanh_backward(d_candidate, candidate, grad_input=d_candidate)
                d_cell.mul_(keep)
                result[f"layers.{index}.weight"].addmm_(d_gates, self._inputs[index][t].T)
                result[f"layers.{index}.bias"] += d_gates.sum(dim=1)
                weight = optimizer.layers[index].weight
                torch.mm(weight[:, -size:].T, d_gates, out=d_hidden)
                if index > 0:
                    self._d_hidden[index - 1].addmm_(weight[:, :size].T, d_gates)
        return result
