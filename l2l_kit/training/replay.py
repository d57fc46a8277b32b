"""Backpropagation through a window of a rule's steps, by replaying them from a record.

`CoordinateReplay` replays a coordinatewise LSTM on the tapes of optimizers/tape.py; `StepReplay` replays any other
network by autograd, one step at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.optimizers import LSTMRule, LSTMState, LSTMTape, RecurrentRule
from l2l_kit.optimizers.base import Memory, map_state
from l2l_kit.optimizers.tape import floats_per_step

ACTIVATIONS = 10
"""Numbers that autograd keeps of a step for each number in the network's state, roughly."""


class Tapes(dict[tuple[int, int], LSTMTape]):
    """The tapes of one LSTM by coordinates and steps. Every window reuses them, because they are slow to allocate."""

    def __init__(self, lstm: LSTMRule) -> None:
        self.lstm = lstm

    def __missing__(self, size: tuple[int, int]) -> LSTMTape:
        """A new tape of that size."""
        tape = self[size] = LSTMTape(self.lstm, *size)
        return tape


class Replay(ABC):
    """Runs one network of a rule on its coordinates of all tasks, and then backward through each window.

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


def sums_ahead(gradients: Tensor) -> Tensor:
    """G(t) = Σ_{s>t} ∇f(θ(s)) for every step of a window, from gradients ``(steps + 1, ...)``."""
    return gradients[1:].flip(0).cumsum(0).flip(0)


class CoordinateReplay(Replay):
    """First order, for a coordinatewise LSTM, by its tapes.

    If the activations of a window fit into `tape_bytes`, they are recorded during the forward pass. Otherwise the LSTM
    is replayed chunk by chunk, which bounds the memory: given the gradients, the coordinates are independent.

    Args:
        tapes: the tapes of the LSTM.
        n: number of tasks.
        sizes: number of coordinates of each of a task's tensors.
        tape_bytes: memory for recorded activations.
        sample: number of coordinates that are replayed of each tensor with more; None for all.
        draws: generator of the sample; None for torch's own.
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
        step_bytes = floats_per_step(self._tapes.lstm) * self._state.cell.element_size()
        self._chunk = max(1, self._tape_bytes // (steps * step_bytes))
        coordinates = self._n * sum(self._sizes)
        if self._chosen is None and self._chunk >= coordinates:
            self._tape = self._tapes[coordinates, steps]
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
            tape = self._tapes[some.stop - first, len(upstream)]
            tape.start(LSTMState(state.hidden[..., some], state.cell[..., some]))
            for row in seen[:-1, some]:
                tape.step(row)
            for name, gradient in tape.backward(upstream[:, some]).items():
                total[name] += gradient
        return total

    def _choose(self) -> tuple[Tensor | None, Tensor]:
        """Which coordinates of all tasks are replayed (None for all), and how much each counts."""
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
    """For any network: backward through a window one step at a time, by autograd.

    The forward pass keeps the graphs of the first steps, as many as fit into `tape_bytes`. The other steps are taken
    again during the backward pass, each from the state in which it began.

    Args:
        network: the network.
        n: number of tasks.
        coordinates: coordinates of each task.
        tape_bytes: memory for graphs.

    Attributes:
        meta_gradient: with respect to the network's weights, by name; complete after the backward pass.
    """

    def __init__(self, network: RecurrentRule, n: int, coordinates: int, tape_bytes: int) -> None:
        self._network = network
        self._state = network.initial_state(n, coordinates)
        state_bytes = sum(part.numel() * part.element_size() for part in self._state)
        self._room = tape_bytes // (ACTIVATIONS * state_bytes)

    @override
    def start(self, steps: int) -> None:
        self._states, self._graphs = list[Memory](), list[tuple[list[Tensor], list[Tensor]]]()

    @override
    def step(self, gradients: Tensor) -> Tensor:
        self._states.append(self._state)
        if len(self._graphs) < self._room:
            self._graphs.append(self._graph(gradients, self._state))
            updates, *after = map(Tensor.detach, self._graphs[-1][1])
            self._state = type(self._state)(*after)
        else:
            updates, self._state = self._network.step(gradients, self._state)
        return updates

    @torch.enable_grad()
    def _graph(self, gradients: Tensor, state: Memory) -> tuple[list[Tensor], list[Tensor]]:
        """One step with its graph: the inputs (gradients and state) and the outputs (updates and new state)."""
        inputs = [part.detach().requires_grad_() for part in (gradients, *state)]
        updates, after = self._network(inputs[0], type(state)(*inputs[1:]))
        return inputs, [updates, *after]

    @override
    def backward(self, gradients: Tensor) -> dict[str, Tensor]:
        self.turn_back()
        upstream = sums_ahead(gradients).div_(gradients.shape[1])
        for t in reversed(range(len(upstream))):
            self.step_back(t, gradients[t], upstream[t])
        return self.meta_gradient

    def turn_back(self) -> None:
        """Begin the backward pass: no gradient comes from beyond the window."""
        self._by_state = [torch.zeros_like(part) for part in self._state]
        self.meta_gradient = {name: torch.zeros_like(weight) for name, weight in self._network.named_parameters()}

    def step_back(self, t: int, gradients: Tensor, upstream: Tensor) -> Tensor:
        """Go back through step t; called for the last step first.

        Args:
            t: step of the window, from 0.
            gradients: ∇f(θ(t)), shape ``(n, coordinates)``.
            upstream: gradient with respect to the step's updates, same shape.

        Returns:
            The gradient with respect to ∇f(θ(t)), same shape.
        """
        inputs, outputs = self._graphs.pop() if t < len(self._graphs) else self._graph(gradients, self._states[t])
        names, weights = zip(*self._network.named_parameters(), strict=True)
        found = torch.autograd.grad(outputs, (*inputs, *weights), (upstream, *self._by_state), materialize_grads=True)
        for name, gradient in zip(names, found[len(inputs) :], strict=True):
            self.meta_gradient[name] += gradient
        by_gradients, *self._by_state = found[: len(inputs)]
        return by_gradients
