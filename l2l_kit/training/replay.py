"""Backpropagation through a window of a rule's steps, by replaying them from what was recorded on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.optimizers import LSTMRule, LSTMState, LSTMTape, RecurrentRule, UpdateRule
from l2l_kit.optimizers.base import Part, map_state
from l2l_kit.optimizers.tape import floats_per_step
from l2l_kit.tensors import Layout, Tensors, ravel

ACTIVATIONS = 10
"""Numbers that autograd keeps of a step for each that the network remembers of it, roughly."""


class Tapes:
    """Tapes of one LSTM by size, kept from window to window, since their buffers are large and slow to make."""

    def __init__(self, lstm: LSTMRule) -> None:
        self.lstm = lstm
        self._tapes: dict[tuple[int, int], LSTMTape] = {}

    def get(self, coordinates: int, steps: int) -> LSTMTape:
        """A tape of that size."""
        key = coordinates, steps
        if key not in self._tapes:
            self._tapes[key] = LSTMTape(self.lstm, coordinates, steps)
        return self._tapes[key]

    def at_once(self, length: int, tape_bytes: int) -> int:
        """How many coordinates fit into that memory for so many steps, or how many steps for so many coordinates."""
        size = self.lstm.output.weight.element_size()
        return max(1, tape_bytes // (length * floats_per_step(self.lstm) * size))


class Replay(ABC):
    """Runs one network of a rule on its coordinates of all tasks, and then back through each window.

    Usage: `start` a window, call `step` for each gradient, then `backward` once.
    """

    @abstractmethod
    def start(self, steps: int) -> None:
        """Begin a window of so many steps where the last one ended."""

    @abstractmethod
    def step(self, gradients: Tensor) -> Tensor:
        """Updates for gradients, both ``(n, coordinates)`` and detached."""

    @abstractmethod
    def backward(self, gradients: Tensor) -> dict[str, Tensor]:
        """The window's first-order meta-gradient with respect to the network's weights, by name.

        Args:
            gradients: ∇f(θ(t)) at each step and after the last one, shape ``(steps + 1, n, coordinates)``.
        """


SomeReplay = TypeVar("SomeReplay", bound=Replay)


class Recorder(Generic[SomeReplay]):
    """A rule as an `Optimizer` whose steps are recorded by replays, one for each of its networks.

    Args:
        rule: what to run.
        make_replay: from a part of the rule, the number of tasks and the memory that its activations may take.
        tape_bytes: that memory for all parts together.
    """

    def __init__(self, rule: UpdateRule, make_replay: Callable[[Part, int, int], SomeReplay], tape_bytes: int) -> None:
        self._rule, self._make_replay, self._tape_bytes = rule, make_replay, tape_bytes
        self.dtype = next(rule.parameters()).dtype  # the tasks may be of another

    def init(self, params: Tensors) -> None:
        """As in `Optimizer`."""
        self.layout = Layout.of(params)
        n, parts = len(next(iter(params.values()))), self._rule.parts(self.layout)
        self.replays = [(part, self._make_replay(part, n, self._tape_bytes // len(parts))) for part in parts]

    def update(self, gradients: Tensors, state: None, params: Tensors) -> tuple[Tensors, None]:
        """As in `Optimizer`."""
        rows = ravel(gradients)
        updates = torch.empty_like(rows)
        for part, replay in self.replays:
            updates[:, part.columns] = replay.step(rows[:, part.columns].to(self.dtype)).to(rows.dtype)
        return self.layout.unravel(updates), None


def sums_ahead(gradients: Tensor) -> Tensor:
    """G(t) = Σ_{s>t} ∇f(θ(s)) for every step of a window.

    Args:
        gradients: ∇f(θ(t)) at each step and after the last one, shape ``(steps + 1, ...)``.
    """
    return gradients[1:].flip(0).cumsum(0).flip(0)


class CoordinateReplay(Replay):
    """First order, for an LSTM that moves each coordinate by itself, by its tape.

    Where the activations of a window fit into `tape_bytes` they are recorded on the way. Otherwise the LSTM is replayed
    chunk by chunk: given its inputs, a coordinate depends on no other, so the chunk bounds the memory.

    Args:
        tapes: of the LSTM.
        n: number of tasks.
        sizes: coordinates of each of a task's tensors.
        tape_bytes: memory that recorded activations may take.
        sample: coordinates of each tensor that are replayed, where it has more; None for all.
        draws: of the sample; None for torch's own generator.
    """

    def __init__(
        self,
        tapes: Tapes,
        n: int,
        sizes: list[int],
        tape_bytes: int,
        sample: int | None = None,
        draws: torch.Generator | None = None,
    ) -> None:
        self._tapes, self._n, self._sizes, self._tape_bytes = tapes, n, sizes, tape_bytes
        self._sample, self._draws = sample, draws
        self._state = tapes.lstm.initial_state(n * sum(sizes))

    @override
    def start(self, steps: int) -> None:
        self._chosen, self._weights = self._choose()
        self._first_state, self._tape = self._state, None
        self._chunk = self._tapes.at_once(steps, self._tape_bytes)
        coordinates = self._n * sum(self._sizes)
        if self._chosen is None and self._chunk >= coordinates:
            self._tape = self._tapes.get(coordinates, steps)
            self._tape.start(self._state)

    @override
    def step(self, gradients: Tensor) -> Tensor:
        flat = gradients.flatten()
        if self._tape is not None:
            return self._tape.step(flat).view_as(gradients)
        updates, self._state = self._tapes.lstm.step(flat, self._state)
        return updates.view_as(gradients)

    @override
    def backward(self, gradients: Tensor) -> dict[str, Tensor]:
        state, seen, chosen = self._first_state, gradients.flatten(1), self._chosen
        if chosen is not None:
            seen, state = seen[:, chosen], map_state(state, lambda values: values[..., chosen])
        upstream = sums_ahead(seen).div_(self._n).mul_(self._weights)
        if self._tape is not None:
            self._state = self._tape.state
            return self._tape.backward(upstream)
        total = {name: torch.zeros_like(weight) for name, weight in self._tapes.lstm.named_parameters()}
        for first in range(0, seen.shape[1], self._chunk):
            some = slice(first, min(first + self._chunk, seen.shape[1]))
            tape = self._tapes.get(some.stop - first, len(upstream))
            tape.start(LSTMState(state.hidden[..., some], state.cell[..., some]))
            for row in seen[:-1, some]:
                tape.step(row)
            for name, gradient in tape.backward(upstream[:, some]).items():
                total[name] += gradient
        return total

    def _choose(self) -> tuple[Tensor | None, Tensor]:
        """Which coordinates of all tasks to replay, and what each counts for; None for all of them."""
        like = self._state.cell
        if self._sample is None or max(self._sizes) <= self._sample:
            return None, like.new_ones(())
        row = torch.arange(self._n)[:, None] * sum(self._sizes)
        columns, weights, first = [], [], 0
        for size in self._sizes:
            kept = min(size, self._sample)
            columns.append(row + first + torch.rand(self._n, size, generator=self._draws).topk(kept).indices)
            weights.append(torch.full((self._n, kept), size / kept, dtype=like.dtype))
            first += size
        chosen, weight = (torch.cat(parts, dim=1).flatten().to(like.device) for parts in (columns, weights))
        return chosen, weight


class StepReplay(Replay):
    """For any network: back through a window one step at a time, by autograd.

    A step's graph is kept from the way there as long as there is room in `tape_bytes`; the other steps are taken again,
    each from the state that it began in.

    Args:
        network: what to run.
        n: number of tasks.
        coordinates: of each task.
        tape_bytes: memory that graphs may take.

    Attributes:
        meta_gradient: with respect to the network's weights, by name, once the way back is done.
    """

    def __init__(self, network: RecurrentRule[Any], n: int, coordinates: int, tape_bytes: int) -> None:
        self._network = network
        self._state = network.initial_state(n, coordinates)
        remembered = sum(part.numel() * part.element_size() for part in self._state)
        self._room = tape_bytes // (ACTIVATIONS * remembered)

    @override
    def start(self, steps: int) -> None:
        self._states, self._graphs = list[Any](), list[_StepGraph]()

    @override
    def step(self, gradients: Tensor) -> Tensor:
        self._states.append(self._state)
        if len(self._graphs) < self._room:
            self._graphs.append(self._graph(gradients, self._state))
            updates, *after = map(Tensor.detach, self._graphs[-1].outputs)
            self._state = type(self._state)(*after)
        else:
            updates, self._state = self._network.step(gradients, self._state)
        return updates

    @torch.enable_grad()
    def _graph(self, gradients: Tensor, state: Any) -> _StepGraph:
        inputs = [part.detach().requires_grad_() for part in (gradients, *state)]
        updates, after = self._network(inputs[0], type(state)(*inputs[1:]))
        return _StepGraph(inputs, [updates, *after])

    @override
    def backward(self, gradients: Tensor) -> dict[str, Tensor]:
        self.turn_back()
        upstream = sums_ahead(gradients).div_(gradients.shape[1])
        for t in reversed(range(len(upstream))):
            self.step_back(t, gradients[t], upstream[t])
        return self.meta_gradient

    def turn_back(self) -> None:
        """End the window: nothing comes after its last step."""
        self._by_state = [torch.zeros_like(part) for part in self._state]
        self.meta_gradient = {name: torch.zeros_like(weight) for name, weight in self._network.named_parameters()}

    def step_back(self, t: int, gradients: Tensor, upstream: Tensor) -> Tensor:
        """The gradient with respect to ∇f(θ(t)), shape ``(n, coordinates)``; later steps come first.

        Args:
            t: step of the window, from 0.
            gradients: ∇f(θ(t)), same shape.
            upstream: gradient with respect to the step's updates, same shape.
        """
        inputs, outputs = self._graphs.pop() if t < len(self._graphs) else self._graph(gradients, self._states[t])
        names, weights = zip(*self._network.named_parameters(), strict=True)
        found = torch.autograd.grad(outputs, (*inputs, *weights), (upstream, *self._by_state), materialize_grads=True)
        for name, gradient in zip(names, found[len(inputs) :], strict=True):
            self.meta_gradient[name] += gradient
        by_gradients, *self._by_state = found[: len(inputs)]
        return by_gradients


class _StepGraph(NamedTuple):
    """One step with its graph: gradients and state, then updates and the state after it."""

    inputs: list[Tensor]
    outputs: list[Tensor]
