"""Backpropagation through time: a tape records the steps of a network, and goes back through them.

`LSTMTape`, written by hand, is for LSTMs that are coordinatewise; `AutogradTape` is for any network, and slower.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from l2l_kit.optimizers.base import Memory
from l2l_kit.optimizers.lstm import LSTMLayer, LSTMRule, step_in_place
from l2l_kit.tensors import Tensors

ACTIVATIONS = 10
"""Numbers that autograd keeps of a step for each number in the network's state, roughly."""


def bytes_per_step(rule: LSTMRule) -> int:
    """Memory that a tape takes per coordinate and step."""
    inputs = rule.preprocessing.features + rule.hidden_size * (rule.num_layers - 1)
    numbers = inputs + 7 * rule.hidden_size * rule.num_layers  # per layer: last output, four gates, cell, tanh(cell)
    return numbers * rule.sides * rule.output.weight.element_size()


class _LayerTape:
    """Buffers of one layer, and views of them for each step t.

    Attributes:
        inputs: the layer's input at t and its output at t - 1, ``(steps + 1, inputs + hidden, coordinates)``. The
            output of step t is written straight into the entry of step t + 1.
        gates: input, forget, output and candidate, ``(steps, 4 · hidden, coordinates)``; on the way back the gradients
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

        `scratch` is overwritten, ``(4 · hidden, coordinates)``.
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

    Usage: `start` a window, call `step` for each gradient and then `backward` once; or, in its place, `step_back` for
    each step, the last one first, and `weight_gradients`. The state in which the window began counts as constant: this
    is truncated backpropagation through time.

    It is the fast twin of autograd through `LSTMRule.forward`. Every step is the same recurrence, so the backward pass
    fits on a page. The coordinates are the last axis, so that each gate is one contiguous block. All work is in place,
    in buffers that every window reuses. The gradients with respect to the gates overwrite the gates, so that a batched
    product over all steps gives the gradient of each weight at the end.
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
            tape.weights = tape.layer.doubled()
            tape.output_at[0].copy_(hidden.flatten(1))
            tape.cell_at[0].copy_(cell.flatten(1))
            tape.d_hidden.zero_()
            tape.d_cell.zero_()

    @property
    def state(self) -> Memory:
        """The state after the last step, in new tensors."""
        t, first = len(self._seen), self._state
        hidden = torch.stack([tape.output_at[t] for tape in self._layers])
        cell = torch.stack([tape.cell_at[t] for tape in self._layers])
        return type(first)(*(part.view(first[0].shape) for part in (hidden, cell)))

    @torch.no_grad()
    def step(self, gradients: Tensor) -> Tensor:
        """Updates for gradients, both of one shape and detached. The gradients are kept, not copied."""
        rule, t = self._rule, len(self._seen)
        seen = rule.both_sides(gradients)
        signal = rule.preprocessing(seen.flatten())
        for tape in self._layers:
            tape.signal_at[t].copy_(signal)
            signal = tape.step(t)
        self._seen.append(gradients)
        update = torch.addmm(rule.output.bias[:, None], rule.output.weight, signal)[0]
        update = rule.one_side(update.view_as(seen))
        return update if rule.output_scale == 1.0 else update.mul_(rule.output_scale)

    def backward(self, upstream: Tensor) -> Tensors:
        """Gradients of Σ_t upstream(t) · g(t) with respect to the rule's weights, by their names."""
        for each in reversed(upstream.unbind()):
            self.step_back(each)
        return self.weight_gradients()

    @torch.no_grad()
    def step_back(self, upstream: Tensor) -> None:
        """Go back through a step; `upstream` is the gradient with respect to its updates."""
        self._back += 1
        rule, last, t = self._rule, self._layers[-1], len(self._seen) - self._back
        by_output = self._upstream[t]
        torch.div(rule.both_sides(upstream * rule.output_scale).flatten(), rule.sides, out=by_output)
        last.d_hidden.addcmul_(rule.output.weight.T, by_output[None])
        for index in reversed(range(len(self._layers))):
            tape = self._layers[index]
            tape.step_back(t, self._scratch)
            weight = tape.layer.weight.T
            torch.mm(weight[tape.width :], tape.gates_at[t], out=tape.d_hidden)
            if index > 0:
                self._layers[index - 1].d_hidden.addmm_(weight[: tape.width], tape.gates_at[t])

    def by_gradients(self) -> Tensor:
        """The gradient with respect to the gradients that this step was given."""
        first, t = self._layers[0], len(self._seen) - self._back
        by_signal = first.layer.weight.detach().T[: first.width] @ first.gates_at[t]
        with torch.enable_grad():
            gradients = self._seen[t].detach().requires_grad_()
            signal = self._rule.preprocessing(self._rule.both_sides(gradients).flatten())
        return torch.autograd.grad(signal, gradients, by_signal)[0]

    @torch.no_grad()
    def weight_gradients(self) -> Tensors:
        """What `backward` gives, after all steps."""
        steps, last = len(self._seen), self._layers[-1]
        upstream, outputs = self._upstream[:steps], last.inputs[1 : steps + 1, last.width :]
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


class AutogradTape:
    """The same for a window of any network, which begins at `state`: by autograd, one step at a time.

    The graphs of the first steps are kept, as many as fit into `tape_bytes`. The other steps are taken again on the way
    back, each from the state in which it began.
    """

    def __init__(self, network: LSTMRule, state: Memory, tape_bytes: int) -> None:
        self._network, self.state = network, state
        self._room = tape_bytes // (ACTIVATIONS * sum(part.numel() * part.element_size() for part in state))
        self._inputs: list[tuple[Tensor, Memory]] = []
        self._graphs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._by_state: Memory = ()  # no gradient comes from beyond the window
        self._weight_gradients = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}

    def step(self, gradients: Tensor) -> Tensor:
        """As in `LSTMTape`."""
        self._inputs.append((gradients, self.state))
        if len(self._graphs) < self._room:
            self._graphs.append(self._graph(gradients, self.state))
            updates, *after = map(Tensor.detach, self._graphs[-1][1])
            self.state = type(self.state)(*after)
        else:
            updates, self.state = self._network.step(gradients, self.state)
        return updates

    @torch.enable_grad()
    def _graph(self, gradients: Tensor, state: Memory) -> tuple[list[Tensor], list[Tensor]]:
        """One step with its graph: the inputs (gradients and state) and the outputs (updates and new state)."""
        inputs = [part.detach().requires_grad_() for part in (gradients, *state)]
        updates, after = self._network(inputs[0], type(state)(*inputs[1:]))
        return inputs, [updates, *after]

    def backward(self, upstream: Tensor) -> Tensors:
        """As in `LSTMTape`."""
        for each in reversed(upstream.unbind()):
            self.step_back(each)
        return self.weight_gradients()

    def step_back(self, upstream: Tensor) -> None:
        """As in `LSTMTape`."""
        before = self._inputs.pop()
        inputs, outputs = self._graphs.pop() if len(self._inputs) < len(self._graphs) else self._graph(*before)
        names, weights = zip(*self._network.named_parameters(), strict=True)
        by_outputs = upstream, *(self._by_state or map(torch.zeros_like, self.state))
        found = torch.autograd.grad(outputs, (*inputs, *weights), by_outputs, materialize_grads=True)
        for name, gradient in zip(names, found[len(inputs) :], strict=True):
            self._weight_gradients[name] += gradient
        self._by_gradients, *by_state = found[: len(inputs)]
        self._by_state = tuple(by_state)

    def by_gradients(self) -> Tensor:
        """As in `LSTMTape`."""
        return self._by_gradients

    def weight_gradients(self) -> Tensors:
        """As in `LSTMTape`."""
        return self._weight_gradients
