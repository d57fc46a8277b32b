"""Meta-gradients of truncated backpropagation through time, one window of the trajectory after the other.

The learned optimizer is trained on L(φ) = E[Σ_t f(θ(t))], all weights w(t) = 1 (equation 3). A trajectory is cut into
windows of `unroll` steps; θ and the LSTM's state are carried over from window to window, gradients are not.

The paper drops the gradients along the dashed edges of figure 2: ∇f(θ(t)) counts as independent of φ. Then θ depends on
φ only through the sum of the updates g, and the meta-gradient of a window is

    dL/dφ = Σ_t G(t) · ∂g(t)/∂φ,    G(t) = Σ_{s>t} ∇f(θ(s)),

where every ∇f(θ(s)) was computed anyway, as the optimizer's next input. So no graph through the optimizee is needed:
`ReplayUnroller` runs forward, forms G by one reversed cumulative sum and backpropagates through the LSTM alone.

With the dashed edges G(t), the gradient by θ(t+1), has a second term: a change of θ(s) changes the gradient there, and
so all that the optimizer does from then on. Backwards through the window,

    G(s-1) = G(s) + ∇f(θ(s)) + H(θ(s)) d(s),    d(s) = dL/d∇f(θ(s)),

where d(s) is what the LSTM's own backpropagation gives. So it takes a product of the Hessian with a vector at each
step, but still no graph that outlives a step: `ExactUnroller`. `AutogradUnroller` is either by ordinary autograd.

Without the dashed edges, the sum over t is one over coordinates, too, and they share φ. So a sample of the coordinates
gives an unbiased estimate of the meta-gradient: of the 15,680 first-layer weights of an MNIST network a thousand do,
and replaying no others makes an episode more than twice as fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.optimizers import LearnedRule, LSTMOptimizer
from l2l_kit.optimizers.base import Part, map_state
from l2l_kit.problems import TaskBatch
from l2l_kit.problems.checks import first_evaluation
from l2l_kit.training.replay import CoupledReplay, Replay, StepwiseReplay, Tapes

TAPE_BYTES = 400 * 2**20
"""Memory that the recorded activations of a window may take; longer or wider windows are replayed in chunks."""


@dataclass(frozen=True)
class Window:
    """What one window of a trajectory gave.

    Attributes:
        losses: f(θ(t)) after each of the window's updates, shape ``(unroll, n)``.
        meta_gradient: gradient of Σ_t mean_n f(θ(t)) by the optimizer's weights, by name.
    """

    losses: Tensor
    meta_gradient: dict[str, Tensor]


class Unroller(ABC):
    """Runs a learned optimizer on a batch of optimizees, window by window.

    `begin` a batch, then `advance` as often as wanted.
    """

    def __init__(self, optimizer: LearnedRule) -> None:
        self.optimizer = optimizer

    def begin(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        """Go to the starting points of these optimizees, with the optimizer's initial state.

        Args:
            tasks: what to run on.
            draws: a CPU generator for what the unroller itself draws; None for torch's own.

        Raises:
            TypeError, ValueError: as `first_evaluation`.
            MetaTrainingDivergedError: if a loss is NaN or infinite before the first step.
        """
        self._optimizees = tasks
        self._draws = draws
        self._layout, self._rows, losses, self._gradients = first_evaluation(tasks)
        self._dtype = next(self.optimizer.parameters()).dtype  # the optimizees may be of another
        self._parts = [
            part if isinstance(part.columns, slice) else part._replace(columns=part.columns.to(self._rows.device))
            for part in self.optimizer.parts(self._layout)
        ]
        self._step = 0
        self._check(losses[None], 0)

    @abstractmethod
    def advance(self, unroll: int) -> Window:
        """Take `unroll` steps and give their losses and meta-gradient.

        Raises:
            MetaTrainingDivergedError: if a loss is NaN or infinite; the message says at which step.
        """

    def _check(self, losses: Tensor, first_step: int) -> None:
        finite = losses.isfinite().all(dim=1)
        if not finite.all():
            step = first_step + int(finite.logical_not().nonzero()[0])
            bad = losses[step - first_step]
            value = bad[~bad.isfinite()][0].item()
            raise MetaTrainingDivergedError(f"the optimizee's loss became {value} at step {step}")


class ReplayUnroller(Unroller):
    """First-order meta-gradients with no graph through the optimizee; needs nothing of it but gradients.

    Args:
        optimizer: what to train.
        tape_bytes: memory that recorded activations may take; longer or wider windows are replayed in chunks.
        sample: coordinates of each parameter tensor that are replayed for the meta-gradient, where it has more: drawn
            anew for each window and weighted so that the estimate is unbiased. None for all, which is exact.

    Raises:
        ValueError: for a sample where coordinates learn of each other.
    """

    def __init__(self, optimizer: LearnedRule, tape_bytes: int = TAPE_BYTES, *, sample: int | None = None) -> None:
        super().__init__(optimizer)
        if sample is not None and optimizer.coupled:
            raise ValueError("coordinates that learn of each other can only be replayed together; leave sample None.")
        self._sample = sample
        self._tape_bytes = tape_bytes
        self._tapes: dict[str, Tapes] = {}

    @override
    def begin(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        super().begin(tasks, draws)
        share = self._tape_bytes // len(self._parts)
        self._replays = [self._replay(part, len(self._rows), share) for part in self._parts]

    def _replay(self, part: Part, n: int, tape_bytes: int) -> Replay | CoupledReplay:
        if part.network.coupled:
            return CoupledReplay(part.network, n, sum(part.sizes), tape_bytes)
        tapes = self._tapes.setdefault(part.prefix, Tapes(cast(LSTMOptimizer, part.network)))
        return Replay(tapes, n, part.sizes, tape_bytes, self._sample, self._draws)

    @override
    def advance(self, unroll: int) -> Window:
        n = len(self._rows)
        losses = self._rows.new_empty(unroll, n)
        gradients = self._rows.new_empty(unroll + 1, *self._rows.shape, dtype=self._dtype)
        gradients[0] = self._gradients
        for replay in self._replays:
            replay.start(unroll)
        for t in range(unroll):
            updates = torch.empty_like(gradients[t])
            for part, replay in zip(self._parts, self._replays, strict=True):
                updates[:, part.columns] = replay.step(gradients[t][:, part.columns].flatten()).view(n, -1)
            self._rows = self._rows + updates.to(self._rows.dtype)
            self._step += 1
            losses[t], self._gradients = self._optimizees.losses_and_gradients(self._rows, self._layout, self._step)
            gradients[t + 1] = self._gradients
        self._check(losses, self._step - unroll + 1)
        meta_gradient: dict[str, Tensor] = {}
        for part, replay in zip(self._parts, self._replays, strict=True):
            found = replay.backward(gradients[:, :, part.columns].flatten(1))
            meta_gradient |= {part.prefix + name: gradient for name, gradient in found.items()}
        return Window(losses, meta_gradient)


class ExactUnroller(Unroller):
    """Meta-gradients along the dashed edges of figure 2, too, at the memory of the LSTM's activations alone.

    Where those do not fit into `tape_bytes` they are recorded anew, some steps at a time, on the way back.

    Args:
        optimizer: what to train.
        tape_bytes: memory that recorded activations may take.

    Raises:
        ValueError: for an optimizer whose coordinates learn of each other.
    """

    def __init__(self, optimizer: LearnedRule, tape_bytes: int = TAPE_BYTES) -> None:
        super().__init__(optimizer)
        if optimizer.coupled:
            raise ValueError("where coordinates learn of each other, use AutogradUnroller for the dashed edges.")
        self._tape_bytes = tape_bytes
        self._tapes: dict[str, Tapes] = {}

    @override
    def begin(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        super().begin(tasks, draws)
        n, share = len(self._rows), self._tape_bytes // len(self._parts)
        self._replays = [
            StepwiseReplay(
                self._tapes.setdefault(part.prefix, Tapes(cast(LSTMOptimizer, part.network))),
                n * sum(part.sizes),
                share,
            )
            for part in self._parts
        ]

    @override
    def advance(self, unroll: int) -> Window:
        n, first = len(self._rows), self._step
        losses = self._rows.new_empty(unroll, n)
        points = self._rows.new_empty(unroll + 1, *self._rows.shape)
        gradients = torch.empty_like(points, dtype=self._dtype)
        points[0], gradients[0] = self._rows, self._gradients
        parts = list(zip(self._parts, self._replays, strict=True))
        for _, replay in parts:
            replay.start(unroll)
        for t in range(unroll):
            for part, replay in parts:
                updates = replay.step(gradients[t][:, part.columns].flatten())
                points[t + 1][:, part.columns] = points[t][:, part.columns] + updates.view(n, -1).to(points.dtype)
            losses[t], gradients[t + 1] = self._optimizees.losses_and_gradients(
                points[t + 1], self._layout, first + t + 1
            )
        self._step += unroll
        self._check(losses, first + 1)
        self._rows, self._gradients = points[-1].clone(), gradients[-1].clone()
        for part, replay in parts:
            replay.turn_back(gradients[:-1, :, part.columns].flatten(1))
        by_point = gradients[-1] / n  # G
        by_gradient = torch.empty_like(by_point)  # d
        for t in reversed(range(unroll)):
            for part, replay in parts:
                by_gradient[:, part.columns] = replay.step_back(t, by_point[:, part.columns].flatten()).view(n, -1)
            if t > 0:
                vectors = by_gradient.to(points.dtype)
                curved = self._optimizees.hessian_products(points[t], self._layout, first + t, vectors)
                by_point = by_point + gradients[t] / n + curved.to(self._dtype)
        meta_gradient = {part.prefix + name: g for part, replay in parts for name, g in replay.weight_gradients.items()}
        return Window(losses, meta_gradient)


class AutogradUnroller(Unroller):
    """Meta-gradients by autograd through optimizer and optimizee: the readable reference.

    Args:
        second_derivatives: keep the dashed edges of figure 2, i.e. backpropagate through ∇f(θ(t)) as well. The
            optimizee's losses must then be twice differentiable by autograd.
    """

    def __init__(self, optimizer: LearnedRule, *, second_derivatives: bool) -> None:
        super().__init__(optimizer)
        self._second_derivatives = second_derivatives

    @override
    def begin(self, tasks: TaskBatch, draws: torch.Generator | None = None) -> None:
        super().begin(tasks, draws)
        self._states = [part.network.initial_state(len(self._rows), sum(part.sizes)) for part in self._parts]

    @override
    def advance(self, unroll: int) -> Window:
        rows = self._rows.detach().requires_grad_()
        states = self._states
        losses: list[Tensor] = []
        loss = self._optimizees.losses(self._layout.unravel(rows), self._step)
        for _ in range(unroll):
            (gradients,) = torch.autograd.grad(
                loss.sum(), rows, create_graph=self._second_derivatives, retain_graph=True
            )
            updates = torch.zeros_like(rows)
            for index, part in enumerate(self._parts):
                update, states[index] = part.network(gradients[:, part.columns].to(self._dtype), states[index])
                updates[:, part.columns] = update.to(rows.dtype)
            rows = rows + updates
            self._step += 1
            loss = self._optimizees.losses(self._layout.unravel(rows), self._step)
            losses.append(loss)
        stacked = torch.stack(losses)
        self._check(stacked.detach(), self._step - unroll + 1)
        names, weights = zip(*self.optimizer.named_parameters(), strict=True)
        meta_gradient = torch.autograd.grad(stacked.mean(dim=1).sum(), weights)
        self._rows = rows.detach()
        self._states = [map_state(state, Tensor.detach) for state in states]
        return Window(stacked.detach(), dict(zip(names, meta_gradient, strict=True)))
