"""The meta-gradient: truncated backpropagation through time, one window of the trajectory after the other.

A rule is trained on L(φ) = E[Σ_t f(θ(t))], with all weights w(t) = 1 (equation 3). A trajectory is cut into windows.
θ and the LSTM's state are carried over from window to window; gradients are not.

First order. The paper drops the gradients along the dashed edges of figure 2: ∇f(θ(t)) counts as independent of φ.
Then θ depends on φ only through the sum of the updates g, and the meta-gradient of a window is

    dL/dφ = Σ_t G(t) · ∂g(t)/∂φ,    G(t) = Σ_{s>t} ∇f(θ(s)).

Each ∇f(θ(s)) is known already, as the rule's next input. So `FirstOrderEstimator` needs no graph through the task: it
runs forward, forms G by a reversed cumulative sum and backpropagates through the LSTM alone (optimizers/tape.py).

Second order. With the dashed edges, G(t), the gradient with respect to θ(t+1), has a second term: a change of θ(s)
changes the gradient there and all later updates with it. Backward through the window,

    G(s-1) = G(s) + ∇f(θ(s)) + H(θ(s)) d(s),    d(s) = dL/d∇f(θ(s)),

where backpropagation through the LSTM gives d(s). `SecondOrderEstimator` computes one Hessian-vector product per step
and keeps no graph for longer than that. `AutogradEstimator` gives either order by ordinary autograd.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.optimizers import LSTMRule, UpdateRule
from l2l_kit.optimizers.base import Memory, Part, map_state
from l2l_kit.optimizers.tape import AutogradTape, LSTMTape, bytes_per_step, has_tape
from l2l_kit.problems import TaskBatch
from l2l_kit.problems.base import first_evaluation
from l2l_kit.tensors import Layout, Tensors, ravel
from l2l_kit.training.rollout import Point, trajectory


def tape_memory(device: torch.device) -> int:
    """Bytes that one tape may take; longer or wider windows are replayed in parts.

    An estimator keeps a tape for each size of window that it meets on networks of one architecture.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 5  # so that three trainings have room
    return 400 * 2**20


class UnrollResult(NamedTuple):
    """One window: the losses f(θ(t)) after each of its updates, ``(unroll, n)``, and the meta-gradient by weight."""

    losses: Tensor
    meta_gradient: Tensors


class GradientEstimator(ABC):
    """Runs a rule on a batch of tasks, window by window: `reset` to a batch, then `unroll` again and again."""

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule

    @abstractmethod
    def reset(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        """Go to the start of these tasks; `draws` are for the estimator's own draws. Raises as `first_evaluation`."""

    @abstractmethod
    def unroll(self, steps: int) -> UnrollResult:
        """Take so many steps; a MetaTrainingDivergedError says at which one a loss is NaN or infinite."""

    def _check(self, losses: Tensor, first_step: int) -> None:
        finite = losses.isfinite()
        if not finite.all():
            step, task = finite.logical_not().nonzero()[0].tolist()
            raise MetaTrainingDivergedError(f"a loss became {losses[step, task].item()} at step {first_step + step}")


class _TapeEstimator(GradientEstimator):
    """What first and second order share: the forward loop. The estimator is the `Optimizer` in it; its tapes record."""

    def __init__(self, rule: UpdateRule, tape_bytes: int | None = None) -> None:
        super().__init__(rule)
        self._tape_bytes = tape_memory(next(rule.parameters()).device) if tape_bytes is None else tape_bytes
        self._lstm_tape = cache(LSTMTape)  # one of each size for all windows, because they are slow to allocate
        self._layout = Layout.of({})

    def reset(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        self._tasks, self._draws, self._step = tasks, draws, 0
        self._dtype = next(self.rule.parameters()).dtype  # that of the tasks may differ
        self._trajectory = trajectory(self, tasks)
        self._point = next(self._trajectory)
        self._check(self._point.losses[None], 0)

    def init(self, params: Tensors) -> None:
        layout = Layout.of(params)
        if layout != self._layout:  # tapes of the size of another network would only take memory
            self._tapes: Sequence[LSTMTape | AutogradTape | None] = ()
            self._lstm_tape.cache_clear()
        self._layout = layout
        self._parts, self._states = self.rule.parts(self._layout), self.rule.init(params)
        moved, wanted = sum(sum(part.sizes) for part in self._parts), sum(layout.sizes)
        if moved != wanted:
            raise ValueError(f"{type(self.rule).__name__}.parts: must have all {wanted} coordinates, has {moved}.")

    def update(self, gradients: Tensors, state: None, params: Tensors) -> tuple[Tensors, None]:
        rows = ravel(gradients)
        updates = torch.empty_like(rows)
        for index, (part, tape) in enumerate(zip(self._parts, self._tapes, strict=True)):
            seen = rows[:, part.columns].to(self._dtype)
            if tape is not None:
                update = tape.step(seen)
            else:
                update, self._states[index] = part.network.step(seen, self._states[index])
            updates[:, part.columns] = update.to(rows.dtype)
        return self._layout.unravel(updates), None

    def _window(self, steps: int, tapes: Sequence[LSTMTape | AutogradTape | None]) -> tuple[list[Point], Tensor]:
        """Go through a window; returns its points, from where it begins, and the losses after each update."""
        self._tapes = tapes
        points = [self._point, *islice(self._trajectory, steps)]
        self._point, self._step = points[-1], self._step + steps
        self._states = [state if tape is None else tape.state for tape, state in zip(tapes, self._states, strict=True)]
        losses = torch.stack([point.losses for point in points[1:]])
        self._check(losses, self._step - steps + 1)
        return points, losses

    def _room(self, part: Part, steps: int) -> int:
        """How many coordinates an `LSTMTape` of so many steps has room for; none without such a tape."""
        tape_bytes = self._tape_bytes // len(self._parts)
        return tape_bytes // (steps * bytes_per_step(part.network)) if has_tape(part.network) else 0

    def _tape(self, part: Part, state: Memory, steps: int) -> LSTMTape | AutogradTape:
        """A tape of all coordinates that a network moves."""
        if (coordinates := state[0].shape[-2:].numel()) > self._room(part, steps):
            return AutogradTape(part.network, state, self._tape_bytes // len(self._parts))
        tape = self._lstm_tape(part.network, coordinates, steps)
        tape.start(state)
        return tape


class FirstOrderEstimator(_TapeEstimator):
    """Without the dashed edges of figure 2, as in the paper. It needs only the gradients of the tasks.

    If recorded activations do not fit into `tape_bytes`, coordinates are replayed after the window, in chunks.

    The meta-gradient is a sum over coordinates, which share φ, so a `sample` of them gives an unbiased estimate: so
    many of each parameter tensor with more, drawn anew for each window. A thousand of the 15,680 first-layer weights of
    an MNIST network make an episode twice as fast. None takes all coordinates.

    Raises:
        ValueError: for a sample if the rule is not coordinatewise, or if a network's steps are not those of `LSTMRule`:
            only an `LSTMTape` can take a sample of them again (see `has_tape`).
    """

    def __init__(self, rule: UpdateRule, tape_bytes: int | None = None, *, sample: int | None = None) -> None:
        super().__init__(rule, tape_bytes)
        if sample is not None and not rule.coordinatewise:
            raise ValueError("coordinates that depend on each other can only be replayed together; leave sample None.")
        networks = [module for module in rule.modules() if isinstance(module, LSTMRule)]
        if sample is not None and not all(map(has_tape, networks)):
            raise ValueError("coordinates of a network of one's own can't be sampled, see has_tape; leave sample None.")
        self._sample = sys.maxsize if sample is None else sample

    def unroll(self, steps: int) -> UnrollResult:
        parts = list(zip(self._parts, self._states, strict=True))
        tapes = [None if self._is_replayed(part, steps) else self._tape(part, state, steps) for part, state in parts]
        points, losses = self._window(steps, tapes)
        gradients = torch.stack([point.gradients for point in points]).to(self._dtype)
        upstream = gradients[1:].flip(0).cumsum(0).flip(0).div_(losses.shape[1])  # G
        meta_gradient: Tensors = {}
        for (part, state), tape in zip(parts, tapes, strict=True):
            mine, seen = upstream[..., part.columns], gradients[:-1, :, part.columns]
            found = self._replayed(part, state, seen, mine) if tape is None else tape.backward(mine)
            meta_gradient |= {part.prefix + name: gradient for name, gradient in found.items()}
        return UnrollResult(losses, meta_gradient)

    def _is_replayed(self, part: Part, steps: int) -> bool:
        """Whether a part is replayed after the window, since a tape has no room for it, or for a sample of it."""
        fits = len(self._point.losses) * sum(part.sizes) <= self._room(part, steps)
        return has_tape(part.network) and (not fits or max(part.sizes) > self._sample)

    def _replayed(self, part: Part, state: Memory, seen: Tensor, upstream: Tensor) -> Tensors:
        """The meta-gradient of a part that was not recorded: chunk by chunk, since coordinates are independent."""
        seen, upstream = seen.flatten(1), upstream.flatten(1)
        state = map_state(state, lambda values: values.flatten(-2))
        if max(part.sizes) > self._sample:
            chosen, weights = self._sampled_coordinates(part.sizes)
            seen, upstream = seen[:, chosen], upstream[:, chosen] * weights
            state = map_state(state, lambda values: values[..., chosen])
        total = {name: torch.zeros_like(weight) for name, weight in part.network.named_parameters()}
        for first in range(0, seen.shape[1], room := max(1, self._room(part, len(seen)))):
            some = slice(first, min(first + room, seen.shape[1]))
            tape = self._lstm_tape(part.network, some.stop - first, len(seen))
            tape.start(map_state(state, lambda values: values[..., some]))  # noqa: B023  (called at once)
            for gradients in seen[:, some]:
                tape.step(gradients)
            for name, gradient in tape.backward(upstream[:, some]).items():
                total[name] += gradient
        return total

    def _sampled_coordinates(self, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Some coordinates of all tasks, of each tensor at most as many as the sample, and how much each counts."""
        n, device, first = len(self._point.losses), self._point.losses.device, 0
        row = torch.arange(n)[:, None] * sum(sizes)
        columns, weights = [], []
        for size in sizes:
            kept = min(size, self._sample)
            columns.append(row + first + torch.rand(n, size, generator=self._draws).topk(kept).indices)
            weights.append(torch.full((n, kept), size / kept, dtype=self._dtype))
            first += size
        chosen, weight = (torch.cat(parts, dim=1).flatten().to(device) for parts in (columns, weights))
        return chosen, weight


class SecondOrderEstimator(_TapeEstimator):
    """With the dashed edges of figure 2, by Hessian-vector products, with no graph through the tasks.

    If recorded activations do not fit into `tape_bytes`, steps are taken again on the way back.
    """

    def unroll(self, steps: int) -> UnrollResult:
        first, dtype = self._step, self._dtype
        tapes = [self._tape(*each, steps) for each in zip(self._parts, self._states, strict=True)]
        points, losses = self._window(steps, tapes)
        parts, n = list(zip(self._parts, tapes, strict=True)), losses.shape[1]
        upstream = points[-1].gradients.to(dtype) / n  # G
        by_gradients = torch.empty_like(upstream)  # d
        for t in reversed(range(steps)):
            for part, tape in parts:
                tape.step_back(upstream[:, part.columns])
            if t > 0:
                for part, tape in parts:
                    by_gradients[:, part.columns] = tape.by_gradients()
                params, _, gradients = points[t]
                vectors = by_gradients.to(params.dtype)
                curved = self._tasks.hessian_products(params, self._layout, first + t, vectors)
                upstream = upstream + gradients.to(dtype) / n + curved.to(dtype)
        meta_gradient = {part.prefix + name: g for part, tape in parts for name, g in tape.weight_gradients().items()}
        return UnrollResult(losses, meta_gradient)


class AutogradEstimator(GradientEstimator):
    """By autograd through rule and task: the readable reference.

    `second_order` keeps the dashed edges of figure 2: it backpropagates through ∇f(θ(t)) as well.
    """

    def __init__(self, rule: UpdateRule, *, second_order: bool) -> None:
        super().__init__(rule)
        self._second_order = second_order

    def reset(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        self._tasks, self._step = tasks, 0
        self._layout, self._params, losses, _ = first_evaluation(tasks)
        self._check(losses[None], 0)
        self._states = self.rule.init(tasks.initial_params)

    def unroll(self, steps: int) -> UnrollResult:
        dtype = next(self.rule.parameters()).dtype  # that of the tasks may differ
        params, losses = self._params.detach().requires_grad_(), []
        loss = self._tasks.losses(self._layout.unravel(params), self._step)
        for _ in range(steps):
            (gradients,) = torch.autograd.grad(loss.sum(), params, create_graph=self._second_order, retain_graph=True)
            updates = torch.zeros_like(params)
            for index, part in enumerate(self.rule.parts(self._layout)):
                update, self._states[index] = part.network(gradients[:, part.columns].to(dtype), self._states[index])
                updates[:, part.columns] = update.to(params.dtype)
            params = params + updates
            self._step += 1
            loss = self._tasks.losses(self._layout.unravel(params), self._step)
            losses.append(loss)
        stacked = torch.stack(losses)
        self._check(stacked.detach(), self._step - steps + 1)
        names, weights = zip(*self.rule.named_parameters(), strict=True)
        meta_gradient = torch.autograd.grad(stacked.mean(dim=1).sum(), weights)
        self._params = params.detach()
        self._states = [map_state(state, Tensor.detach) for state in self._states]
        return UnrollResult(stacked.detach(), dict(zip(names, meta_gradient, strict=True)))
