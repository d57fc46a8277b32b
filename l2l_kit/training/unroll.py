"""Meta-gradients of truncated backpropagation through time, one window of the trajectory after the other.

The learned optimizer is trained on L(φ) = E[Σ_t f(θ(t))], all weights w(t) = 1 (equation 3). A trajectory is cut into
windows of `unroll` steps; θ and the LSTM's state are carried over from window to window, gradients are not.

The paper drops the gradients along the dashed edges of figure 2: ∇f(θ(t)) counts as independent of φ. Then θ depends on
φ only through the sum of the updates g, and the meta-gradient of a window is

    dL/dφ = Σ_t G(t) · ∂g(t)/∂φ,    G(t) = Σ_{s>t} ∇f(θ(s)),

where every ∇f(θ(s)) was computed anyway, as the optimizer's next input. So no graph through the optimizee is needed:
`ReplayUnroller` runs forward, forms G by one reversed cumulative sum and backpropagates through the LSTM alone.
`AutogradUnroller` is the same by ordinary autograd, and the only way to keep the dashed edges.

The sum over t is one over coordinates, too, and they share φ. So a sample of the coordinates gives an unbiased estimate
of the meta-gradient: of the 15,680 first-layer weights of an MNIST network a thousand do, and replaying no others makes
an episode more than twice as fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.optimizers import LSTMOptimizer, LSTMTape
from l2l_kit.optimizers.lstm import LSTMState
from l2l_kit.optimizers.tape import floats_per_step
from l2l_kit.problems import Optimizees
from l2l_kit.tensors import Layout, ravel

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

    def __init__(self, optimizer: LSTMOptimizer) -> None:
        self.optimizer = optimizer

    def begin(self, optimizees: Optimizees, draws: torch.Generator | None = None) -> None:
        """Go to the starting points of these optimizees, with the optimizer's initial state.

        Args:
            optimizees: what to run on.
            draws: a CPU generator for what the unroller itself draws; None for torch's own.
        """
        start = optimizees.start
        self._optimizees = optimizees
        self._draws = draws
        self._layout = Layout.of(start)
        self._rows = ravel(start)
        self._state = self.optimizer.initial_state(self._rows.numel())
        self._step = 0

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

    Where the activations of a window fit into `tape_bytes` they are recorded on the way. Where not, only the inputs
    are, and the LSTM is replayed over them chunk by chunk: given its inputs a coordinate depends on no other, so memory
    is bounded by the chunk however large the optimizee.

    Args:
        optimizer: what to train.
        tape_bytes: memory that recorded activations may take.
        sample: coordinates of each parameter tensor that are replayed for the meta-gradient, where it has more: drawn
            anew for each window and weighted so that the estimate is unbiased. None for all, which is exact.
    """

    def __init__(self, optimizer: LSTMOptimizer, tape_bytes: int = TAPE_BYTES, *, sample: int | None = None) -> None:
        super().__init__(optimizer)
        self._sample = sample
        self._tape_bytes = tape_bytes
        self._tapes: dict[tuple[int, int], LSTMTape] = {}  # by coordinates and steps; kept from batch to batch

    @override
    def begin(self, optimizees: Optimizees, draws: torch.Generator | None = None) -> None:
        super().begin(optimizees, draws)
        losses, self._gradients = optimizees.losses_and_gradients(self._rows, self._layout, 0)
        self._check(losses[None], 0)

    @override
    def advance(self, unroll: int) -> Window:
        coordinates = self._rows.numel()
        chosen, weights = self._chosen()
        replayed = coordinates if chosen is None else len(chosen)
        per_coordinate = unroll * floats_per_step(self.optimizer) * self._rows.element_size()
        chunk = min(replayed, max(1, self._tape_bytes // per_coordinate))
        start, tape = self._state, None
        if chunk == coordinates:
            tape = self._tape(coordinates, unroll)
            tape.start(start)
        losses = self._rows.new_empty(unroll, len(self._rows))
        gradients = self._rows.new_empty(unroll + 1, coordinates)
        gradients[0] = self._gradients.flatten()
        for t in range(unroll):
            if tape is not None:
                updates = tape.step(gradients[t])
            else:
                updates, self._state = self.optimizer.step(gradients[t], self._state)
            self._rows = self._rows + updates.view_as(self._rows)
            self._step += 1
            losses[t], self._gradients = self._optimizees.losses_and_gradients(self._rows, self._layout, self._step)
            gradients[t + 1] = self._gradients.flatten()
        self._check(losses, self._step - unroll + 1)

        if chosen is not None:
            gradients = gradients[:, chosen]
            start = LSTMState(start.hidden[..., chosen], start.cell[..., chosen])
        upstream = gradients[1:].flip(0).cumsum(0).flip(0).div_(len(self._rows)).mul_(weights)
        if tape is not None:
            self._state = tape.state
            return Window(losses, tape.backward(upstream))
        total = {name: torch.zeros_like(weight) for name, weight in self.optimizer.named_parameters()}
        for first in range(0, replayed, chunk):
            part = slice(first, min(first + chunk, replayed))
            tape = self._tape(part.stop - part.start, unroll)
            tape.start(LSTMState(start.hidden[..., part], start.cell[..., part]))
            for t in range(unroll):
                tape.step(gradients[t, part])
            for name, gradient in tape.backward(upstream[:, part]).items():
                total[name] += gradient
        return Window(losses, total)

    def _chosen(self) -> tuple[Tensor | None, Tensor]:
        """Which coordinates of all optimizees to replay, and what each counts for; None for all of them."""
        n, sizes = len(self._rows), self._layout.sizes
        if self._sample is None or max(sizes) <= self._sample:
            return None, self._rows.new_ones(())
        row = torch.arange(n)[:, None] * sum(sizes)
        columns, weights, first = [], [], 0
        for size in sizes:
            kept = min(size, self._sample)
            columns.append(row + first + torch.rand(n, size, generator=self._draws).topk(kept).indices)
            weights.append(torch.full((n, kept), size / kept))
            first += size
        chosen, weight = (torch.cat(parts, dim=1).flatten().to(self._rows.device) for parts in (columns, weights))
        return chosen, weight.to(self._rows.dtype)

    def _tape(self, coordinates: int, steps: int) -> LSTMTape:
        key = coordinates, steps
        if key not in self._tapes:
            self._tapes[key] = LSTMTape(self.optimizer, coordinates, steps)
        return self._tapes[key]


class AutogradUnroller(Unroller):
    """Meta-gradients by autograd through optimizer and optimizee: the readable reference, and the dashed edges.

    Args:
        second_derivatives: keep the dashed edges of figure 2, i.e. backpropagate through ∇f(θ(t)) as well. The
            optimizee's losses must then be twice differentiable by autograd.
    """

    def __init__(self, optimizer: LSTMOptimizer, *, second_derivatives: bool) -> None:
        super().__init__(optimizer)
        self._second_derivatives = second_derivatives

    @override
    def advance(self, unroll: int) -> Window:
        rows = self._rows.detach().requires_grad_()
        state = self._state
        losses: list[Tensor] = []
        loss = self._optimizees.losses(self._layout.unravel(rows), self._step)
        self._check(loss.detach()[None], self._step)
        for _ in range(unroll):
            (gradients,) = torch.autograd.grad(
                loss.sum(), rows, create_graph=self._second_derivatives, retain_graph=True
            )
            updates, state = self.optimizer(gradients.flatten(), state)
            rows = rows + updates.view_as(rows)
            self._step += 1
            loss = self._optimizees.losses(self._layout.unravel(rows), self._step)
            losses.append(loss)
        stacked = torch.stack(losses)
        self._check(stacked.detach(), self._step - unroll + 1)
        names, weights = zip(*self.optimizer.named_parameters(), strict=True)
        meta_gradient = torch.autograd.grad(stacked.mean(dim=1).sum(), weights)
        self._rows = rows.detach()
        self._state = LSTMState(state.hidden.detach(), state.cell.detach())
        return Window(stacked.detach(), dict(zip(names, meta_gradient, strict=True)))
