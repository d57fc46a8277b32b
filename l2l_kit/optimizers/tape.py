"""Backpropagation through time: a tape records the steps of a network in a window, and goes back through them.

`LSTMTape`, written by hand, is for LSTMs that are coordinatewise; `AutogradTape` is for any network, and slower. The
state in which the window began counts as constant: this is truncated backpropagation through time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor

from l2l_kit.optimizers.base import Memory
from l2l_kit.optimizers.lstm import LSTMLayer, LSTMRule, step_in_place
from l2l_kit.tensors import Tensors

_Graph = tuple[list[Tensor], list[Tensor]]
ACTIVATIONS = 10
"""Numbers that autograd keeps of a step for each number in the network's state, roughly."""


def bytes_per_step(rule: LSTMRule) -> int:
    """Memory that an `LSTMTape` takes per coordinate and step."""
    inputs = rule.preprocessing.features + rule.hidden_size * (rule.num_layers - 1)
    numbers = inputs + 7 * rule.hidden_size * rule.num_layers  # per layer: last output, four gates, cell, tanh(cell)
    return numbers * rule.sides * rule.output.weight.element_size()


class Tape(ABC):
    """Usage: `step` for each gradient of a window, then `backward` once, or `step_back` for each and what it gives."""

    @abstractmethod
    def step(self, gradients: Tensor) -> Tensor:
        """Updates for gradients, both of one shape and detached. The gradients are kept, not copied."""

    def backward(self, upstream: Tensor) -> Tensors:
        """Gradients of Σ_t upstream(t) · g(t) with respect to the network's weights, by their names."""
        for each in reversed(upstream.unbind()):
            self.step_back(each)
        return self.weight_gradients()

    @abstractmethod
    def step_back(self, upstream: Tensor) -> None:
        """Go back through a step, the last one first; `upstream` is the gradient with respect to its updates."""

    @abstractmethod
    def by_gradients(self) -> Tensor:
        """After `step_back`, the gradient with respect to the gradients that this step was given."""

    @abstractmethod
    def weight_gradients(self) -> Tensors:
        """What `backward` gives, after all steps."""


class _LayerTape:
    """Buffers of one layer for all steps, ``(steps, …, coordinates)``.

    A step writes its output straight into the next one's input. On the way back, the gradients with respect to the
    pre-activations of the gates take the place of the gates.
    """

    def __init__(self, layer: LSTMLayer, hidden: int, coordinates: int, steps: int) -> None:
        new, rows = layer.weight.detach().new_empty, layer.weight.shape[1]
        self.layer, self.width = layer, rows - hidden
        self.inputs = new(steps + 1, rows, coordinates)  # the layer's input at t and its output at t - 1
        self.outputs = self.inputs[:, self.width :]
        self.gates = new(steps, 4 * hidden, coordinates)  # input, forget, output and candidate
        self.cell = new(steps + 1, hidden, coordinates)
        self.tanh_cell = new(steps, hidden, coordinates)
        self.d_hidden, self.d_cell = new(2, hidden, coordinates)

    def start(self, hidden: Tensor, cell: Tensor) -> None:
        """Begin at a state, and with the weights that the layer has now."""
        self.weights = self.layer.doubled()
        self.outputs[0].copy_(hidden.flatten(1))
        self.cell[0].copy_(cell.flatten(1))
        self.d_hidden.zero_()
        self.d_cell.zero_()

    def step(self, t: int, signal: Tensor) -> Tensor:
        """The layer's output at step t, ``(hidden, coordinates)``, from its input."""
        inputs, output = self.inputs[t], self.outputs[t + 1]
        inputs[: self.width].copy_(signal)
        step_in_place(self.weights, inputs, self.gates[t], self.cell[t], self.cell[t + 1], self.tanh_cell[t], output)
        return output

    def step_back(self, t: int, scratch: Tensor) -> None:
        """Turn the gradients with respect to output and cell at t into those for the gates at t and the cell at t - 1.

        `scratch` is overwritten, ``(4 · hidden, coordinates)``.
        """
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward.grad_input
        take, keep, give, candidate = self.gates[t].chunk(4)
        d_take, d_keep, d_give, d_candidate = scratch.chunk(4)
        tanh_cell, d_hidden, d_cell = self.tanh_cell[t], self.d_hidden, self.d_cell
        torch.mul(d_hidden, give, out=d_give)
        d_cell.add_(tanh_backward(d_give, tanh_cell, grad_input=d_give))
        torch.mul(d_hidden, tanh_cell, out=d_give)
        torch.mul(d_cell, candidate, out=d_take)
        torch.mul(d_cell, self.cell[t], out=d_keep)
        torch.mul(d_cell, take, out=d_candidate)
        d_cell.mul_(keep)
        sigmoids = self.gates[t, : -len(candidate)]
        sigmoid_backward(scratch[: len(sigmoids)], sigmoids, grad_input=sigmoids)
        tanh_backward(d_candidate, candidate, grad_input=candidate)


class LSTMTape(Tape):
    """The fast twin of autograd through `LSTMRule.forward`, for up to `steps` steps; `start` each window.

    The coordinates are the last axis, so that each gate is one contiguous block. All work is in place, in buffers that
    every window reuses. The gradients with respect to the gates overwrite the gates, so that a batched product over all
    steps gives the gradient of each weight at the end.
    """

    def __init__(self, rule: LSTMRule, coordinates: int, steps: int) -> None:
        hidden, columns, new = rule.hidden_size, coordinates * rule.sides, rule.output.weight.detach().new_empty
        self._rule = rule
        self._layers = [_LayerTape(cast(LSTMLayer, layer), hidden, columns, steps) for layer in rule.layers]
        self._scratch = new(4 * hidden, columns)
        self._upstream = new(steps, columns)

    @torch.no_grad()
    def start(self, state: Memory) -> None:
        """Begin a window at a state of the rule, and with the weights that it has now."""
        self._seen: list[Tensor] = []
        self._back = 0  # steps that `step_back` has gone
        self._state = state
        for tape, hidden, cell in zip(self._layers, *state, strict=True):
            tape.start(hidden, cell)

    @property
    def state(self) -> Memory:
        """The state after the last step, in new tensors."""
        t, first = len(self._seen), self._state
        hidden = torch.stack([tape.outputs[t] for tape in self._layers])
        cell = torch.stack([tape.cell[t] for tape in self._layers])
        return type(first)(*(part.view(first[0].shape) for part in (hidden, cell)))

    @torch.no_grad()
    def step(self, gradients: Tensor) -> Tensor:
        rule, seen = self._rule, self._rule.both_sides(gradients)
        signal = rule.preprocessing(seen.flatten())
        for tape in self._layers:
            signal = tape.step(len(self._seen), signal)
        self._seen.append(gradients)
        update = torch.addmm(rule.output.bias[:, None], rule.output.weight, signal)[0]
        update = rule.one_side(update.view_as(seen))
        return update if rule.output_scale == 1.0 else update.mul_(rule.output_scale)

    @torch.no_grad()
    def step_back(self, upstream: Tensor) -> None:
        self._back += 1
        rule, t = self._rule, len(self._seen) - self._back
        by_output = self._upstream[t]
        torch.div(rule.both_sides(upstream * rule.output_scale).flatten(), rule.sides, out=by_output)
        self._layers[-1].d_hidden.addcmul_(rule.output.weight.T, by_output[None])
        for index in reversed(range(len(self._layers))):
            tape = self._layers[index]
            tape.step_back(t, self._scratch)
            weight = tape.layer.weight.T
            torch.mm(weight[tape.width :], tape.gates[t], out=tape.d_hidden)
            if index > 0:
                self._layers[index - 1].d_hidden.addmm_(weight[: tape.width], tape.gates[t])

    def by_gradients(self) -> Tensor:
        first, t = self._layers[0], len(self._seen) - self._back
        by_signal = first.layer.weight.detach().T[: first.width] @ first.gates[t]
        with torch.enable_grad():
            gradients = self._seen[t].detach().requires_grad_()
            signal = self._rule.preprocessing(self._rule.both_sides(gradients).flatten())
        return torch.autograd.grad(signal, gradients, by_signal)[0]

    @torch.no_grad()
    def weight_gradients(self) -> Tensors:
        steps = len(self._seen)
        upstream, outputs = self._upstream[:steps], self._layers[-1].outputs[1 : steps + 1]
        result = {
            "output.weight": torch.bmm(upstream[:, None], outputs.transpose(1, 2)).sum(0),
            "output.bias": upstream.sum().view(1),
        }
        for index, tape in enumerate(self._layers):
            d_gates = tape.gates[:steps]
            # In this order the product is up to twice as fast as its transpose.
            result[f"layers.{index}.weight"] = torch.bmm(tape.inputs[:steps], d_gates.transpose(1, 2)).sum(0).T
            result[f"layers.{index}.bias"] = d_gates.sum((0, 2))
        return result


class AutogradTape(Tape):
    """A window of any network, which begins at `state`: by autograd, one step at a time.

    The graphs of the first steps are kept, as many as fit into `tape_bytes`. The other steps are taken again on the way
    back, each from the state in which it began.
    """

    def __init__(self, network: LSTMRule, state: Memory, tape_bytes: int) -> None:
        self._network, self.state = network, state
        self._room = tape_bytes // (ACTIVATIONS * sum(part.numel() * part.element_size() for part in state))
        self._steps: list[tuple[tuple[Tensor, Memory], _Graph | None]] = []
        self._by_state: Memory = ()  # no gradient comes from beyond the window
        self._weight_gradients = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}

    def step(self, gradients: Tensor) -> Tensor:
        before = gradients, self.state
        graph = self._graph(*before) if len(self._steps) < self._room else None
        self._steps.append((before, graph))
        if graph is None:
            updates, self.state = self._network.step(*before)
        else:
            updates, *after = map(Tensor.detach, graph[1])
            self.state = type(self.state)(*after)
        return updates

    @torch.enable_grad()
    def _graph(self, gradients: Tensor, state: Memory) -> _Graph:
        """One step with its graph: the inputs (gradients and state) and the outputs (updates and new state)."""
        inputs = [part.detach().requires_grad_() for part in (gradients, *state)]
        updates, after = self._network(inputs[0], type(state)(*inputs[1:]))
        return inputs, [updates, *after]

    def step_back(self, upstream: Tensor) -> None:
        before, graph = self._steps.pop()
        inputs, outputs = graph or self._graph(*before)
        names, weights = zip(*self._network.named_parameters(), strict=True)
        by_outputs = upstream, *(self._by_state or map(torch.zeros_like, self.state))
        found = torch.autograd.grad(outputs, (*inputs, *weights), by_outputs, materialize_grads=True)
        for name, gradient in zip(names, found[len(inputs) :], strict=True):
            self._weight_gradients[name] += gradient
        self._by_gradients, *by_state = found[: len(inputs)]
        self._by_state = tuple(by_state)

    def by_gradients(self) -> Tensor:
        return self._by_gradients

    def weight_gradients(self) -> Tensors:
        return self._weight_gradients
