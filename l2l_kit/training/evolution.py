"""Meta-gradients by evolution strategies: from losses alone, where backpropagation through the run tells nothing.

A network of ReLUs that is trained is a chaotic system: the loss after many steps is so jagged a function of the
optimizer's weights φ that its slope says nothing of where it is lower a little further on, with the dashed edges or
without (Metz et al., 2019). What can be followed is the slope of the loss smoothed over a neighbourhood of φ,

    d/dφ E[L(φ + σε)] = E[(L(φ + σε) - L(φ - σε)) ε] / 2σ,    ε standard Gaussian

(Salimans et al., 2017). Both runs of a pair meet the same optimizees and minibatches. The variance of the estimate
grows with the number of weights, so only those of the output layers are moved, 21 for an LSTM of 20 units: what an
LSTM remembers of its gradients stays what it was, and what it makes of that is learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.optimizers import LearnedRule
from l2l_kit.problems import Optimizees
from l2l_kit.training.unroll import Unroller, Window

SPREAD = 0.005
"""Of perturbations: some 3% of the output weights of a trained optimizer, and enough to be told from chance."""


class _Run(NamedTuple):
    """A window: its losses, and where it ended."""

    losses: Tensor
    rows: Tensor
    gradients: Tensor
    states: list[Any]


class EvolutionUnroller(Unroller):
    """Estimates the meta-gradient of a window by running it with perturbed output layers. Of the others it is zero.

    Args:
        optimizer: what to train.
        pairs: of opposite perturbations; each costs two runs of the window.
        spread: standard deviation of a perturbation, σ.
    """

    def __init__(self, optimizer: LearnedRule, pairs: int, spread: float = SPREAD) -> None:
        super().__init__(optimizer)
        self._pairs = pairs
        self._spread = spread

    @override
    def begin(self, optimizees: Optimizees, draws: torch.Generator | None = None) -> None:
        super().begin(optimizees, draws)
        self._states = [part.network.initial_state(len(self._rows), sum(part.sizes)) for part in self._parts]

    @override
    def advance(self, unroll: int) -> Window:
        gradient = {name: torch.zeros_like(weight) for name, weight in self.optimizer.named_parameters()}
        moved = {name: w for name, w in self.optimizer.named_parameters() if name.split(".")[-2] == "output"}
        centre = {name: weight.detach().clone() for name, weight in moved.items()}
        for _ in range(self._pairs):
            noise = {name: self._gaussian(weight) for name, weight in moved.items()}
            sums = []
            for spread in (self._spread, -self._spread):
                _set(moved, {name: centre[name] + spread * noise[name] for name in moved})
                sums.append(self._run(unroll).losses.mean(dim=1).sum())
            for name in moved:
                gradient[name] += (sums[0] - sums[1]) / (2 * self._spread * self._pairs) * noise[name]
        _set(moved, centre)
        run = self._run(unroll)
        self._rows, self._gradients, self._states = run.rows, run.gradients, run.states
        self._step += unroll
        return Window(run.losses, gradient)

    def _gaussian(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._draws, dtype=like.dtype).to(like.device)

    def _run(self, unroll: int) -> _Run:
        """The window with the weights as they are now."""
        rows, gradients, states = self._rows, self._gradients, list(self._states)
        losses = rows.new_empty(unroll, len(rows))
        for t in range(unroll):
            updates = torch.empty_like(rows)
            for index, part in enumerate(self._parts):
                update, states[index] = part.network.step(gradients[:, part.columns], states[index])
                updates[:, part.columns] = update
            rows = rows + updates
            losses[t], gradients = self._optimizees.losses_and_gradients(rows, self._layout, self._step + t + 1)
        self._check(losses, self._step + 1)
        return _Run(losses, rows, gradients, states)


@torch.no_grad()
def _set(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])
