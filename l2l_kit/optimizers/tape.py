"""Backpropagation through an `LSTMRule`, written by hand: `LSTMTape` records the steps and goes back through them.

It is the fast twin of autograd through `LSTMRule.forward`. Every step is the same recurrence, so the backward pass fits
on a page. The coordinates are the last axis, so that each gate is one contiguous block, and all work is done in place
in buffers that every window reuses. The gradients with respect to the gates overwrite the gates, so that one batched
product over all steps gives the gradient of each weight at the end.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from l2l_kit.optimizers.lstm import LSTMLayer, LSTMRule, LSTMState, step_in_place


def floats_per_step(rule: LSTMRule) -> int:
    """Numbers that a tape keeps per coordinate and step."""
    inputs = rule.preprocessing.features + rule.hidden_size * (rule.num_layers - 1)
    numbers = inputs + 7 * rule.hidden_size * rule.num_layers  # per layer: last output, four gates, cell, tanh(cell)
    return numbers * 2 if rule.odd else numbers


class _LayerTape:
    """Buffers of one layer, and views of them for each step t.

    Attributes:
        inputs: the layer's input at t and its output at t - 1, ``(steps + 1, inputs + hidden, coordinates)``. The
            output of step t is written straight into the entry of step t + 1.
        gates: input, forget, output and candidate, ``(steps, 4 · hidden, coordinates)``; after `backward` the gradients
            with respect to their pre-activations.
        cell: ``(steps + 1, hidden, coordinates)``.
        tanh_cell: ``(steps, hidden, coordinates)``.
    """

    def __init__(self, layer: LSTMLayer, hidden: int, coordinates: int, steps: int) -> None:
        new = layer.weight.detach().new_empty
        width = layer.weight.shape[1]
        self.layer = layer
        self.weights = layer.doubled()
        self.width = width - hidden
        self.inputs = new(steps + 1, width, coordinates)
        self.gates = new(steps, 4 * hidden, coordinates)
        self.cell = new(steps + 1, hidden, coordinates)
        self.tanh_cell = new(steps, hidden, coordinates)
        self.d_hidden = new(hidden, coordinates)
        self.d_cell = new(hidden, coordinates)
        self.at = self.inputs.unbind()
        self.signal_at = self.inputs[:, : self.width].unbind()
        self.output_at = self.inputs[:, self.width :].unbind()
        self.gates_at = self.gates.unbind()
        self.sigmoids_at = self.gates[:, : 3 * hidden].unbind()
        self.split_at = [gates.chunk(4) for gates in self.gates_at]
        self.cell_at = self.cell.unbind()
        self.tanh_cell_at = self.tanh_cell.unbind()

    def step(self, t: int) -> Tensor:
        """The layer's output at step t, ``(hidden, coordinates)``, from its input there."""
        output = self.output_at[t + 1]
        gates, split, cell, next_cell = self.gates_at[t], self.split_at[t], self.cell_at[t], self.cell_at[t + 1]
        step_in_place(self.weights, self.at[t], gates, split, cell, next_cell, self.tanh_cell_at[t], output)
        return output

    def step_back(self, t: int, scratch: Tensor) -> None:
        """Turn the gradients with respect to output and cell at t into those for the gates at t and the cell at t - 1.

        Args:
            t: the step.
            scratch: ``(4 · hidden, coordinates)``, overwritten.
        """
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward.grad_input
        take, keep, give, candidate = self.split_at[t]
        d_take, d_keep, d_give, d_candidate = scratch.chunk(4)
        tanh_cell, d_hidden, d_cell = self.tanh_cell_at[t], self.d_hidden, self.d_cell
        torch.mul(d_hidden, give, out=d_give)
        d_cell.add_(tanh_backward(d_give, tanh_cell, grad_input=d_give))
        torch.mul(d_hidden, tanh_cell, out=d_give)
        torch.mul(d_cell, candidate, out=d_take)
        torch.mul(d_cell, self.cell_at[t], out=d_keep)
        torch.mul(d_cell, take, out=d_candidate)
        d_cell.mul_(keep)
        sigmoids = self.sigmoids_at[t]
        sigmoid_backward(scratch[: len(sigmoids)], sigmoids, grad_input=sigmoids)
        tanh_backward(d_candidate, candidate, grad_input=candidate)


class LSTMTape:
    """Records up to `steps` steps of an `LSTMRule` on `coordinates` coordinates and backpropagates through them.

    Usage: `start` a window, call `step` for each gradient, then `backward` once. The next window starts from `state`.
    The rule's weights are read at `start`, so a meta-update between two windows takes effect.
    """

    def __init__(self, rule: LSTMRule, coordinates: int, steps: int) -> None:
        hidden = rule.hidden_size
        self._rule = rule
        self._shape = rule.initial_state(coordinates).cell.shape
        coordinates = self._shape[2:].numel()  # an odd rule runs on both sides of each
        self._layers = [_LayerTape(cast(LSTMLayer, layer), hidden, coordinates, steps) for layer in rule.layers]
        self._scratch = rule.output.weight.detach().new_empty(4 * hidden, coordinates)
        self._length = 0

    @torch.no_grad()
    def start(self, state: LSTMState) -> None:
        """Begin a window at `state`."""
        self._length = 0
        for tape, hidden, cell in zip(self._layers, state.hidden, state.cell, strict=True):
            tape.weights = tape.layer.doubled()
            tape.output_at[0].copy_(hidden.flatten(1))
            tape.cell_at[0].copy_(cell.flatten(1))

    @property
    def state(self) -> LSTMState:
        """The state after the last step, in new tensors."""
        t = self._length
        hidden = torch.stack([tape.output_at[t] for tape in self._layers])
        cell = torch.stack([tape.cell_at[t] for tape in self._layers])
        return LSTMState(hidden.view(self._shape), cell.view(self._shape))

    @torch.no_grad()
    def step(self, gradients: Tensor) -> Tensor:
        """Updates for gradients, both ``(coordinates,)``."""
        rule, t = self._rule, self._length
        seen = rule.both_sides(gradients)
        signal = rule.preprocessing(seen.flatten())
        for tape in self._layers:
            tape.signal_at[t].copy_(signal)
            signal = tape.step(t)
        self._length += 1
        update = torch.addmm(rule.output.bias[:, None], rule.output.weight, signal)[0]
        update = rule.one_side(update.view_as(seen))
        return update if rule.output_scale == 1.0 else update.mul_(rule.output_scale)

    @torch.no_grad()
    def backward(self, upstream: Tensor) -> dict[str, Tensor]:
        """Gradients of Σ_t upstream(t) · g(t) with respect to the rule's weights, by their names in its `state_dict`.

        The state in which the window began counts as constant: this is truncated backpropagation through time. It can
        be called once per window, because it overwrites the record.

        Args:
            upstream: shape ``(steps taken, coordinates)``.
        """
        output, last = self._rule.output, self._layers[-1]
        upstream = upstream * self._rule.output_scale
        if self._rule.odd:
            upstream = torch.cat([upstream, -upstream], dim=1) / 2
        for tape in self._layers:
            tape.d_hidden.zero_()
            tape.d_cell.zero_()
        for t in reversed(range(self._length)):
            last.d_hidden.addcmul_(output.weight.T, upstream[t][None])
            for index in reversed(range(len(self._layers))):
                tape = self._layers[index]
                tape.step_back(t, self._scratch)
                weight = tape.layer.weight.T
                torch.mm(weight[tape.width :], tape.gates_at[t], out=tape.d_hidden)
                if index > 0:
                    self._layers[index - 1].d_hidden.addmm_(weight[: tape.width], tape.gates_at[t])
        outputs = last.inputs[1 : self._length + 1, last.width :]
        result = {
            "output.weight": torch.bmm(upstream[:, None], outputs.transpose(1, 2)).sum(0),
            "output.bias": upstream.sum().view(1),
        }
        for index, tape in enumerate(self._layers):
            d_gates = tape.gates[: self._length]
            # In this order the product is up to twice as fast as its transpose.
            result[f"layers.{index}.weight"] = torch.bmm(tape.inputs[: self._length], d_gates.transpose(1, 2)).sum(0).T
            result[f"layers.{index}.bias"] = d_gates.sum((0, 2))
        return result
