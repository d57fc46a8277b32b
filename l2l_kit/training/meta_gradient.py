"""The meta-gradient: truncated backpropagation through time, one window of the trajectory after the other.

A rule is trained on L(φ) = E[Σ_t f(θ(t))], with all weights w(t) = 1 (equation 3). A trajectory is cut into windows of
`unroll` steps. θ and the LSTM's state are carried over from window to window; gradients are not.

First order. The paper drops the gradients along the dashed edges of figure 2: ∇f(θ(t)) counts as independent of φ.
Then θ depends on φ only through the sum of the updates g, and the meta-gradient of a window is

    dL/dφ = Σ_t G(t) · ∂g(t)/∂φ,    G(t) = Σ_{s>t} ∇f(θ(s)).

Each ∇f(θ(s)) is known already, as the rule's next input. So `FirstOrderEstimator` needs no graph through the task: it
runs forward, forms G by a reversed cumulative sum and backpropagates through the LSTM alone (see replay.py). The sum
over t is also one over coordinates, which share φ, so a sample of them gives an unbiased estimate: a thousand of the
15,680 first-layer weights of an MNIST network are enough, and make an episode twice as fast.

Second order. With the dashed edges, G(t), the gradient with respect to θ(t+1), has a second term: a change of θ(s)
changes the gradient there and all later updates with it. Backward through the window,

    G(s-1) = G(s) + ∇f(θ(s)) + H(θ(s)) d(s),    d(s) = dL/d∇f(θ(s)),

where backpropagation through the LSTM gives d(s). `SecondOrderEstimator` computes one Hessian-vector product per step
and keeps no graph for longer than that.

`AutogradEstimator` gives either by ordinary autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.optimizers import LSTMRule, UpdateRule
from l2l_kit.optimizers.base import Part, map_state
from l2l_kit.problems import TaskBatch
from l2l_kit.problems.checks import first_evaluation
from l2l_kit.tensors import Layout, Tensors, ravel
from l2l_kit.training.replay import CoordinateReplay, Replay, StepReplay, Tapes
from l2l_kit.training.rollout import Point, trajectory

TAPE_BYTES = 400 * 2**20
"""Memory for the recorded activations of a window; longer or wider windows are replayed in parts."""

SomeReplay = TypeVar("SomeReplay", bound=Replay)


class UnrollResult(NamedTuple):
    """Losses and meta-gradient of one window of a trajectory.

    Attributes:
        losses: f(θ(t)) after each of the window's updates, shape ``(unroll, n)``.
        meta_gradient: gradient of Σ_t mean_n f(θ(t)) with respect to the rule's weights, by name.
    """

    losses: Tensor
    meta_gradient: dict[str, Tensor]


class GradientEstimator(ABC):
    """Runs a rule on a batch of tasks, window by window: `reset` to a batch, then `unroll` again and again."""

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule

    @abstractmethod
    def reset(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        """Go to the initial parameters of these tasks, with the rule's initial state.

        Args:
            tasks: the tasks.
            draws: a CPU generator for the estimator's own draws; None for torch's own.

        Raises:
            TypeError, ValueError: as `first_evaluation`.
            MetaTrainingDivergedError: if a loss is NaN or infinite before the first step.
        """

    @abstractmethod
    def unroll(self, steps: int) -> UnrollResult:
        """Take so many steps.

        Raises:
            MetaTrainingDivergedError: if a loss is NaN or infinite; the message says at which step.
        """

    def _check(self, losses: Tensor, first_step: int) -> None:
        finite = losses.isfinite()
        if not finite.all():
            step, task = finite.logical_not().nonzero()[0].tolist()
            raise MetaTrainingDivergedError(f"a loss became {losses[step, task].item()} at step {first_step + step}")


class _ReplayEstimator(GradientEstimator, Generic[SomeReplay]):
    """What first and second order share: the forward loop. The estimator is the `Optimizer` in it; replays record."""

    def __init__(self, rule: UpdateRule, tape_bytes: int = TAPE_BYTES) -> None:
        super().__init__(rule)
        self._tape_bytes = tape_bytes

    @override
    def reset(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        self._tasks, self._draws, self._step = tasks, draws, 0
        self._dtype = next(self.rule.parameters()).dtype  # that of the tasks may differ
        self._trajectory = trajectory(self, tasks)
        self._point = next(self._trajectory)
        self._check(self._point.losses[None], 0)

    @abstractmethod
    def _replay(self, part: Part, n: int, tape_bytes: int) -> SomeReplay: ...

    def init(self, params: Tensors) -> None:
        """As in `Optimizer`."""
        self._layout, n = Layout.of(params), len(next(iter(params.values())))
        parts = self.rule.parts(self._layout)
        self._replays = [(part, self._replay(part, n, self._tape_bytes // len(parts))) for part in parts]

    def update(self, gradients: Tensors, state: None, params: Tensors) -> tuple[Tensors, None]:
        """As in `Optimizer`."""
        rows = ravel(gradients)
        updates = torch.empty_like(rows)
        for part, replay in self._replays:
            updates[:, part.columns] = replay.step(rows[:, part.columns].to(self._dtype)).to(rows.dtype)
        return self._layout.unravel(updates), None

    def _window(self, steps: int) -> Iterator[Point]:
        """The points of the next window, without the one where it begins."""
        for _, replay in self._replays:
            replay.start(steps)
        for point in islice(self._trajectory, steps):
            self._point = point
            yield point
        self._step += steps


class FirstOrderEstimator(_ReplayEstimator[Replay]):
    """Without the dashed edges of figure 2, as in the paper. It needs only the gradients of the tasks.

    Args:
        rule, tape_bytes: as in `SecondOrderEstimator`.
        sample: number of coordinates from which the meta-gradient is estimated, of each parameter tensor with more.
            They are drawn anew for each window and weighted so that the estimate is unbiased. None for all, which is
            exact.

    Raises:
        ValueError: for a sample if the rule is not coordinatewise.
    """

    def __init__(self, rule: UpdateRule, tape_bytes: int = TAPE_BYTES, *, sample: int | None = None) -> None:
        super().__init__(rule, tape_bytes)
        if sample is not None and not rule.coordinatewise:
            raise ValueError("coordinates that depend on each other can only be replayed together; leave sample None.")
        self._sample = sample
        self._tapes: dict[str, Tapes] = {}

    @override
    def _replay(self, part: Part, n: int, tape_bytes: int) -> Replay:
        if not part.network.coordinatewise:
            return StepReplay(part.network, n, sum(part.sizes), tape_bytes)
        tapes = self._tapes.setdefault(part.prefix, Tapes(cast(LSTMRule, part.network)))
        return CoordinateReplay(tapes, n, part.sizes, tape_bytes, self._sample, self._draws)

    @override
    def unroll(self, steps: int) -> UnrollResult:
        like = self._point.gradients
        gradients = like.new_empty(steps + 1, *like.shape, dtype=self._dtype)
        losses = self._point.losses.new_empty(steps, len(like))
        gradients[0] = like
        for t, point in enumerate(self._window(steps)):
            losses[t], gradients[t + 1] = point.losses, point.gradients
        self._check(losses, self._step - steps + 1)
        meta_gradient: dict[str, Tensor] = {}
        for part, replay in self._replays:
            found = replay.backward(gradients[..., part.columns])
            meta_gradient |= {part.prefix + name: gradient for name, gradient in found.items()}
        return UnrollResult(losses, meta_gradient)


class SecondOrderEstimator(_ReplayEstimator[StepReplay]):
    """With the dashed edges of figure 2, by Hessian-vector products, with no graph through the tasks.

    Args:
        rule: the rule.
        tape_bytes: memory for recorded activations; longer or wider windows are replayed in parts.
    """

    @override
    def _replay(self, part: Part, n: int, tape_bytes: int) -> StepReplay:
        return StepReplay(part.network, n, sum(part.sizes), tape_bytes)

    @override
    def unroll(self, steps: int) -> UnrollResult:
        first, dtype, replays = self._step, self._dtype, self._replays
        points = [self._point, *self._window(steps)]
        losses = torch.stack([point.losses for point in points[1:]])
        self._check(losses, first + 1)
        for _, replay in replays:
            replay.turn_back()
        n = losses.shape[1]
        upstream = points[-1].gradients.to(dtype) / n  # G
        by_gradient = torch.empty_like(upstream)  # d
        for t in reversed(range(steps)):
            params, _, gradients = points[t]
            seen = gradients.to(dtype)
            for part, replay in replays:
                columns = part.columns
                by_gradient[:, columns] = replay.step_back(t, seen[:, columns], upstream[:, columns])
            if t > 0:
                vectors = by_gradient.to(params.dtype)
                curved = self._tasks.hessian_products(params, self._layout, first + t, vectors)
                upstream = upstream + seen / n + curved.to(dtype)
        meta_gradient = {part.prefix + name: g for part, replay in replays for name, g in replay.meta_gradient.items()}
        return UnrollResult(losses, meta_gradient)


class AutogradEstimator(GradientEstimator):
    """By autograd through rule and task: the readable reference.

    Args:
        rule: the rule.
        second_order: keep the dashed edges of figure 2, that is, backpropagate through ∇f(θ(t)) as well. The tasks'
            losses must then be twice differentiable by autograd.
    """

    def __init__(self, rule: UpdateRule, *, second_order: bool) -> None:
        super().__init__(rule)
        self._second_order = second_order

    @override
    def reset(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        self._tasks, self._step = tasks, 0
        self._layout, self._params, losses, _ = first_evaluation(tasks)
        self._check(losses[None], 0)
        self._states = self.rule.init(tasks.initial_params)

    @override
    def unroll(self, steps: int) -> UnrollResult:
        dtype = next(self.rule.parameters()).dtype  # that of the tasks may differ
        params, states, losses = self._params.detach().requires_grad_(), self._states, []
        loss = self._tasks.losses(self._layout.unravel(params), self._step)
        for _ in range(steps):
            (gradients,) = torch.autograd.grad(loss.sum(), params, create_graph=self._second_order, retain_graph=True)
            updates = torch.zeros_like(params)
            for index, part in enumerate(self.rule.parts(self._layout)):
                update, states[index] = part.network(gradients[:, part.columns].to(dtype), states[index])
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
        self._states = [map_state(state, Tensor.detach) for state in states]
        return UnrollResult(stacked.detach(), dict(zip(names, meta_gradient, strict=True)))
