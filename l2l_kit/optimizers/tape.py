"""Backpropagation through time: a tape records the steps of a network in a window, and goes back through them.

`LSTMTape`, written by hand, is for the LSTMs that `has_tape` names; `AutogradTape` is for any network, and slower. The
state in which the window began counts as constant: this is truncated backpropagation through time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from l2l_kit.optimizers.base import Memory
from l2l_kit.optimizers.lstm import LayerStep, LSTMLayer, LSTMRule
from l2l_kit.processes import in_threads
from l2l_kit.tensors import Tensors

_Graph = tuple[list[Tensor], list[Tensor]]
BLOCK = 2**11
"""Coordinates that an `LSTMTape` works on at a time on a CPU: one step's buffers of so many fit into its cache."""

ACTIVATIONS = 10  # numbers that autograd keeps of a step for each number in the network's state, roughly


def bytes_per_step(rule: LSTMRule) -> int:
    """Memory that an `LSTMTape` takes per coordinate and step."""
    per_layer = 7 * rule.hidden_size  # last output, four gates, cell, tanh(cell)
    numbers = rule.preprocessing.features + per_layer * rule.num_layers
    return numbers * rule.sides * rule.output.weight.element_size()


def has_tape(rule: LSTMRule) -> bool:
    """Whether an `LSTMTape` does what a rule does: it is coordinatewise, and its steps are those of `LSTMRule`."""
    own = ("forward", "step", "_run", "initial_state", "both_sides", "one_side")
    return rule.coordinatewise and all(getattr(type(rule), name) is getattr(LSTMRule, name) for name in own)


class Tape(ABC):
    """Call `step` for each gradient of a window, and then `backward` once.

    Or call `step_back` once for each step, the last one first, and then `weight_gradients`; `by_gradients` may be asked
    after each `step_back`.
    """

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


class _Block:
    """Some of an `LSTMTape`'s coordinates: buffers for all steps, and the views that each step of each layer needs.

    A slot of `rows` holds the features of step t, the first layer's output at t - 1, the second one's at t - 2 and so
    on. So each layer's input and its last output lie side by side, and an output is written where it is needed next.
    """

    def __init__(self, rule: LSTMRule, coordinates: int, steps: int) -> None:
        hidden, layers, features = rule.hidden_size, rule.num_layers, rule.preprocessing.features
        new = rule.output.weight.detach().new_empty
        rows = new(steps + layers, features + hidden * layers, coordinates)
        gates, tanh_cells = new(layers, steps, 4 * hidden, coordinates), new(layers, steps, hidden, coordinates)
        self.rule, self.features, self.minus_one = rule, rows[:, :features].unbind(), -new(1).fill_(1)[0]
        self.cells = [each.unbind() for each in new(layers, steps + 1, hidden, coordinates)]
        self.outputs, by_layer = [], []
        for i, layer in enumerate(cast(LSTMLayer, each) for each in rule.layers):
            slots, end = rows[i : i + steps + 1], features + hidden * (i + 1)
            inputs, outputs = slots[:, end - layer.weight.shape[1] : end], slots[:, end - hidden : end].unbind()
            cells = self.cells[i]
            places = zip(inputs, gates[i], cells, cells[1:], tanh_cells[i], outputs[1:], strict=False)
            by_layer.append([LayerStep.of(*each) for each in places])
            self.outputs.append(outputs)
        self.steps = list(zip(*by_layer, strict=True))
        self.d_gates = new(4 * hidden, coordinates)
        self.d_each, self.d_sigmoids = self.d_gates.chunk(4), self.d_gates[: 3 * hidden]
        self.d_hidden, self.d_cell = (part.unbind() for part in new(2, layers, hidden, coordinates))

    def start(self, hidden: Tensor, cell: Tensor) -> None:
        """Begin at a state, ``(layers, hidden, coordinates)``, and with the weights that the rule has now."""
        layers = [cast(LSTMLayer, layer) for layer in self.rule.layers]
        self.doubled = [layer.doubled() for layer in layers]
        self.by_input = [layer.weight.detach().T.tensor_split([-len(hidden[0])]) for layer in layers]
        # Those of the layers' weights are kept transposed: in that order their product is up to twice as fast.
        self.gradients = {n: w.new_zeros(w.shape[::-1]).t() for n, w in self.rule.named_parameters()}
        for places, values in zip(self.outputs + self.cells, (*hidden, *cell), strict=True):
            places[0].copy_(values)
        for gradients in (*self.d_hidden, *self.d_cell):
            gradients.zero_()

    @torch.no_grad()
    def step(self, t: int, features: Tensor, updates: Tensor) -> None:
        """Fill in updates ``(1, coordinates)`` from the preprocessed gradients."""
        self.features[t].copy_(features)
        for step, weights in zip(self.steps[t], self.doubled, strict=True):
            step.run(*weights, self.minus_one)
        torch.addmm(self.rule.output.bias[:, None], self.rule.output.weight, step.output, out=updates)

    @torch.no_grad()
    def step_back(self, t: int, upstream: Tensor) -> None:
        """As `Tape.step_back`, with the gradient with respect to what `step` filled in."""
        self.gradients["output.weight"][0].addmv_(self.steps[t][-1].output, upstream)
        self.d_hidden[-1].addcmul_(self.rule.output.weight.T, upstream)
        for i in reversed(range(len(self.doubled))):
            step, (weight, last_weight) = self.steps[t][i], self.by_input[i]
            self._gates_back(step, self.d_hidden[i], self.d_cell[i])
            self.gradients[f"layers.{i}.weight"].T.addmm_(step.inputs, self.d_gates.T)
            self.gradients[f"layers.{i}.bias"] += self.d_gates.sum(1)
            torch.mm(last_weight, self.d_gates, out=self.d_hidden[i])
            if i > 0:
                self.d_hidden[i - 1].addmm_(weight, self.d_gates)

    def _gates_back(self, step: LayerStep, d_hidden: Tensor, d_cell: Tensor) -> None:
        """From the gradients with respect to a layer's output and cell to those for its gates and its last cell."""
        sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
        tanh_backward = torch.ops.aten.tanh_backward.grad_input
        d_take, d_keep, d_give, d_candidate = self.d_each
        torch.mul(d_hidden, step.give, out=d_give)
        d_cell.add_(tanh_backward(d_give, step.tanh_cell, grad_input=d_give))
        torch.mul(d_hidden, step.tanh_cell, out=d_give)
        torch.mul(d_cell, step.candidate, out=d_take)
        torch.mul(d_cell, step.cell, out=d_keep)
        torch.mul(d_cell, step.take, out=d_candidate)
        d_cell.mul_(step.keep)
        sigmoid_backward(self.d_sigmoids, step.sigmoids, grad_input=self.d_sigmoids)
        tanh_backward(d_candidate, step.candidate, grad_input=d_candidate)


class LSTMTape(Tape):
    """The fast twin of autograd through `LSTMRule.forward`, for up to `steps` steps; `start` each window.

    The coordinates are the last axis, so that each gate is contiguous, and all work is in place, in buffers that every
    window reuses. On a CPU the coordinates are cut into blocks that its cache holds, and each thread has its own.
    A rule for which it would not be that twin (see `has_tape`) is refused by a ValueError.
    """

    def __init__(self, rule: LSTMRule, coordinates: int, steps: int) -> None:
        if not has_tape(rule):
            raise ValueError(f"LSTMTape: a {type(rule).__name__} does not move each coordinate as LSTMRule does.")
        self._rule, columns = rule, coordinates * rule.sides
        self._size = BLOCK if rule.output.weight.device.type == "cpu" else max(1, columns)
        self._blocks = [_Block(rule, len(some), steps) for some in torch.split(torch.arange(columns), self._size)]

    @torch.no_grad()
    def start(self, state: Memory) -> None:
        """Begin a window at a state of the rule, and with the weights that it has now."""
        self._state, self._seen, self._upstream = state, list[Tensor](), list[Tensor]()
        parts = (torch.split(part.flatten(2), self._size, dim=2) for part in state)
        for block, hidden, cell in zip(self._blocks, *parts, strict=True):
            block.start(hidden, cell)

    @property
    def state(self) -> Memory:
        """The state after the last step, in new tensors."""
        t, first = len(self._seen), self._state
        hidden = torch.cat([torch.stack([each[t] for each in block.outputs]) for block in self._blocks], dim=2)
        cell = torch.cat([torch.stack([each[t] for each in block.cells]) for block in self._blocks], dim=2)
        return type(first)(*(part.view(first[0].shape) for part in (hidden, cell)))

    @torch.no_grad()
    def step(self, gradients: Tensor) -> Tensor:
        rule, seen, t = self._rule, self._rule.both_sides(gradients), len(self._seen)
        self._seen.append(gradients)
        features, updates = rule.preprocessing(seen.flatten()), seen.new_empty(1, seen.numel())
        parts = (torch.split(each, self._size, dim=1) for each in (features, updates))
        in_threads(lambda block, some, update: block.step(t, some, update), self._blocks, *parts)
        update = rule.one_side(updates.view_as(seen))
        return update if rule.output_scale == 1.0 else update.mul_(rule.output_scale)

    @torch.no_grad()
    def step_back(self, upstream: Tensor) -> None:
        self._go_back([upstream])

    @torch.no_grad()
    def backward(self, upstream: Tensor) -> Tensors:
        self._go_back(upstream.flip(0).unbind())
        return self.weight_gradients()

    def _go_back(self, upstream: Sequence[Tensor]) -> None:
        """`step_back` for each of these, block by block, so that what a step leaves behind stays in the cache."""
        rule, t = self._rule, len(self._seen) - len(self._upstream)
        by_outputs = [rule.both_sides(each * (rule.output_scale / rule.sides)).flatten() for each in upstream]
        self._upstream += by_outputs

        def go_back(block: _Block, *parts: Tensor) -> None:
            for step, part in enumerate(parts, 1):
                block.step_back(t - step, part)

        in_threads(go_back, self._blocks, *(torch.split(each, self._size) for each in by_outputs))

    def by_gradients(self) -> Tensor:
        weight, t = self._blocks[0].by_input[0][0], len(self._seen) - len(self._upstream)
        by_features = torch.cat([weight @ block.d_gates for block in self._blocks], dim=1)
        with torch.enable_grad():
            gradients = self._seen[t].detach().requires_grad_()
            features = self._rule.preprocessing(self._rule.both_sides(gradients).flatten())
        return torch.autograd.grad(features, gradients, by_features)[0]

    @torch.no_grad()
    def weight_gradients(self) -> Tensors:
        gradients = [block.gradients for block in self._blocks]
        result = {name: torch.stack([each[name] for each in gradients]).sum(0) for name in gradients[0]}
        return result | {"output.bias": torch.stack(self._upstream).sum().view(1)}


class AutogradTape(Tape):
    """A window of any network, which begins at `state`: by autograd, one step at a time.

    The graphs of the first steps are kept, as many as fit into `tape_bytes`. The other steps are taken again on the way
    back, each from the state in which it began.
    """

    def __init__(self, network: LSTMRule, state: Memory, tape_bytes: int) -> None:
        self._network, self.state = network, state
        self._room = tape_bytes // (ACTIVATIONS * sum(part.numel() * part.element_size() for part in state))
        self._steps: list[tuple[tuple[Tensor, Memory], _Graph | None]] = []
        self._by_state: list[Tensor] = []  # no gradient comes from beyond the window
        self._names, self._weights = zip(*network.named_parameters(), strict=True)
        self._weight_gradients = [torch.zeros_like(weight) for weight in self._weights]

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
        by_outputs = upstream, *(self._by_state or map(torch.zeros_like, self.state))
        found = torch.autograd.grad(outputs, (*inputs, *self._weights), by_outputs, materialize_grads=True)
        self._by_gradients, *self._by_state = found[: len(inputs)]
        for total, gradient in zip(self._weight_gradients, found[len(inputs) :], strict=True):
            total += gradient

    def by_gradients(self) -> Tensor:
        return self._by_gradients

    def weight_gradients(self) -> Tensors:
        return dict(zip(self._names, self._weight_gradients, strict=True))
