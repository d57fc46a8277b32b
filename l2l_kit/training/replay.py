"""One network over its coordinates, window by window: steps without a graph, then the gradient by its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l2l_kit.optimizers import LSTMOptimizer, LSTMState, LSTMTape, RecurrentRule
from l2l_kit.optimizers.base import map_state
from l2l_kit.optimizers.tape import floats_per_step

_ACTIVATIONS = 10
"""Numbers that autograd keeps of a step for each that the network remembers of it, roughly."""


class Tapes:
    """Tapes of one LSTM, kept from window to window: their buffers are large and slow to make."""

    def __init__(self, lstm: LSTMOptimizer) -> None:
        self.lstm = lstm
        self._tapes: dict[tuple[int, int], LSTMTape] = {}

    def get(self, coordinates: int, steps: int) -> LSTMTape:
        """A tape of that size."""
        key = coordinates, steps
        if key not in self._tapes:
            self._tapes[key] = LSTMTape(self.lstm, coordinates, steps)
        return self._tapes[key]


class Replay:
    """Runs an LSTM on its coordinates of a batch of optimizees and backpropagates through each window.

    Where the activations of a window fit into `tape_bytes` they are recorded on the way. Where not, only the inputs
    are, and the LSTM is replayed over them chunk by chunk: given its inputs a coordinate depends on no other, so memory
    is bounded by the chunk however large the optimizee.

    Usage: `start` a window, call `step` for each gradient, then `backward` once.

    Args:
        tapes: of the LSTM.
        n: number of optimizees.
        sizes: coordinates of each of an optimizee's tensors.
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
        sample: int | None,
        draws: torch.Generator | None,
    ) -> None:
        self._tapes = tapes
        self._lstm = tapes.lstm
        self._n = n
        self._sizes = sizes
        self._tape_bytes = tape_bytes
        self._sample = sample
        self._draws = draws
        self._state = self._lstm.initial_state(n * sum(sizes))

    def start(self, unroll: int) -> None:
        """Begin a window where the last one ended."""
        coordinates = self._n * sum(self._sizes)
        self._chosen, self._weights = self._choose()
        self._replayed = coordinates if self._chosen is None else len(self._chosen)
        per_coordinate = unroll * floats_per_step(self._lstm) * self._weights.element_size()
        self._chunk = min(self._replayed, max(1, self._tape_bytes // per_coordinate))
        self._first_state = self._state
        self._tape = None
        if self._chunk == coordinates:
            self._tape = self._tapes.get(coordinates, unroll)
            self._tape.start(self._state)

    def step(self, gradients: Tensor) -> Tensor:
        """Updates for gradients, both ``(coordinates of all optimizees,)``."""
        if self._tape is not None:
            return self._tape.step(gradients)
        updates, self._state = self._lstm.step(gradients, self._state)
        return updates

    def backward(self, gradients: Tensor) -> dict[str, Tensor]:
        """The window's meta-gradient by the LSTM's weights, by name; ends the window.

        Args:
            gradients: ∇f(θ(t)) that the steps were given, and the one after the last of them, shape
                ``(unroll + 1, coordinates of all optimizees)``.
        """
        if self._chosen is not None:
            gradients = gradients[:, self._chosen]
        upstream = gradients[1:].flip(0).cumsum(0).flip(0).div_(self._n).mul_(self._weights)
        if self._tape is not None:
            self._state = self._tape.state
            return self._tape.backward(upstream)
        start, chosen = self._first_state, self._chosen
        if chosen is not None:
            start = LSTMState(start.hidden[..., chosen], start.cell[..., chosen])
        total = {name: torch.zeros_like(weight) for name, weight in self._lstm.named_parameters()}
        for first in range(0, self._replayed, self._chunk):
            part = slice(first, min(first + self._chunk, self._replayed))
            tape = self._tapes.get(part.stop - part.start, len(upstream))
            tape.start(LSTMState(start.hidden[..., part], start.cell[..., part]))
            for row in gradients[:-1, part]:
                tape.step(row)
            for name, gradient in tape.backward(upstream[:, part]).items():
                total[name] += gradient
        return total

    def _choose(self) -> tuple[Tensor | None, Tensor]:
        """Which coordinates of all optimizees to replay, and what each counts for; None for all of them."""
        like = self._state.cell
        if self._sample is None or max(self._sizes) <= self._sample:
            return None, like.new_ones(())
        row = torch.arange(self._n)[:, None] * sum(self._sizes)
        columns, weights, first = [], [], 0
        for size in self._sizes:
            kept = min(size, self._sample)
            columns.append(row + first + torch.rand(self._n, size, generator=self._draws).topk(kept).indices)
            weights.append(torch.full((self._n, kept), size / kept))
            first += size
        chosen, weight = (torch.cat(parts, dim=1).flatten().to(like.device) for parts in (columns, weights))
        return chosen, weight.to(like.dtype)


class CoupledReplay:
    """As `Replay`, for a network whose coordinates learn of each other.

    One coordinate cannot be replayed without the others of its optimizee, so the chunks are of optimizees, and memory
    is bounded by the larger of `tape_bytes` and one optimizee's window. It is done by autograd: on the way where the
    window of all optimizees fits, and otherwise by replay.

    Args:
        network: what to run.
        n: number of optimizees.
        coordinates: of each of them.
        tape_bytes: memory that recorded activations may take.
    """

    def __init__(self, network: RecurrentRule[Any], n: int, coordinates: int, tape_bytes: int) -> None:
        self._network = network
        self._n = n
        self._tape_bytes = tape_bytes
        self._state = network.initial_state(n, coordinates)

    def start(self, unroll: int) -> None:
        """Begin a window where the last one ended."""
        remembered = sum(part.numel() * part.element_size() for part in self._state) // self._n
        self._chunk = max(1, self._tape_bytes // (_ACTIVATIONS * remembered * unroll))
        self._first_state = self._state
        self._updates: list[Tensor] = []  # with their graph

    def step(self, gradients: Tensor) -> Tensor:
        """Updates for gradients, both ``(coordinates of all optimizees,)``."""
        rows = gradients.view(self._n, -1)
        if self._chunk < self._n:
            updates, self._state = self._network.step(rows, self._state)
            return updates.flatten()
        with torch.enable_grad():
            updates, self._state = self._network(rows, self._state)
        self._updates.append(updates)
        return self._updates[-1].detach().flatten()

    def backward(self, gradients: Tensor) -> dict[str, Tensor]:
        """The window's meta-gradient by the network's weights, by name; ends the window.

        Args:
            gradients: as in `Replay.backward`.
        """
        gradients = gradients.view(len(gradients), self._n, -1)
        upstream = gradients[1:].flip(0).cumsum(0).flip(0).div_(self._n)
        names, weights = zip(*self._network.named_parameters(), strict=True)
        if self._updates:
            self._state = map_state(self._state, Tensor.detach)
            return dict(zip(names, torch.autograd.grad(self._updates, weights, list(upstream)), strict=True))
        total = {name: torch.zeros_like(weight) for name, weight in zip(names, weights, strict=True)}
        for first in range(0, self._n, self._chunk):
            some = slice(first, first + self._chunk)
            updates = self._replayed(gradients[:-1, some], some)
            found = torch.autograd.grad(updates, weights, list(upstream[:, some]))
            for name, gradient in zip(names, found, strict=True):
                total[name] += gradient
        return total

    @torch.enable_grad()
    def _replayed(self, gradients: Tensor, some: slice) -> list[Tensor]:
        """The window's updates of some optimizees, with their graph."""
        state, moved = map_state(self._first_state, lambda part: part[..., some, :]), []
        for row in gradients:
            updates, state = self._network(row, state)
            moved.append(updates)
        return moved


class StepwiseReplay:
    """Runs an LSTM on all of its coordinates, and back through each window one step at a time.

    That is what the dashed edges need: there the upstream of a step depends on what came out of the steps after it.
    Where the activations of a window do not fit into `tape_bytes`, the tape holds some of its steps, and the earlier
    ones are recorded anew on the way back.

    Usage: `start` a window, call `step` for each gradient, `turn_back`, then `step_back` for each step.

    Args:
        tapes: of the LSTM.
        coordinates: how many it looks after.
        tape_bytes: memory that recorded activations may take.

    Attributes:
        weight_gradients: by the LSTM's weights, by name, once the way back is done.
    """

    def __init__(self, tapes: Tapes, coordinates: int, tape_bytes: int) -> None:
        self._tapes = tapes
        self._coordinates = coordinates
        self._state = tapes.lstm.initial_state(coordinates)
        self._chunk = max(
            1, tape_bytes // (coordinates * floats_per_step(tapes.lstm) * self._state.cell.element_size())
        )

    def start(self, unroll: int) -> None:
        """Begin a window where the last one ended."""
        self._length = min(self._chunk, unroll)
        self._tape = self._tapes.get(self._coordinates, self._length)
        self._taken = 0
        self._states: list[LSTMState] = []  # before each chunk

    def step(self, gradients: Tensor) -> Tensor:
        """Updates for gradients, both ``(coordinates,)``."""
        if self._taken % self._length == 0:
            self._states.append(self._tape.state if self._taken else self._state)
            self._tape.start(self._states[-1])
        self._taken += 1
        return self._tape.step(gradients)

    def turn_back(self, gradients: Tensor) -> None:
        """End the window.

        Args:
            gradients: what its steps were given, shape ``(unroll, coordinates)``.
        """
        self._state = self._tape.state
        self._tape.end_window()
        self._seen = gradients
        self._upstream = torch.empty_like(gradients[: self._length])
        self.weight_gradients = {name: torch.zeros_like(weight) for name, weight in self._tapes.lstm.named_parameters()}

    def step_back(self, t: int, upstream: Tensor) -> Tensor:
        """Gradient by the gradients that step t was given, ``(coordinates,)``; the last step comes first.

        Args:
            t: step of the window, from 0.
            upstream: gradient by its updates, shape ``(coordinates,)``.
        """
        chunk, place = divmod(t, self._length)
        seen = self._seen[chunk * self._length : (chunk + 1) * self._length]
        if chunk < len(self._states) - 1 and place == self._length - 1:
            self._tape.start(self._states[chunk])
            for gradients in seen:
                self._tape.step(gradients)
        self._tape.step_back(place, upstream)
        self._upstream[place] = upstream
        by_gradient = self._tape.gradient_by_input(place, seen[place])
        if place == 0:
            for name, gradient in self._tape.weight_gradients(self._upstream[: len(seen)]).items():
                self.weight_gradients[name] += gradient
        return by_gradient
