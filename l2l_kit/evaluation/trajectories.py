"""Paths of several optimizers over one function, from the same starting point: what the figures of landscapes show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l2l_kit.optimizers import Optimizer
from l2l_kit.problems import Problem, TaskBatch
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout
from l2l_kit.training.rollout import trajectory


@dataclass(frozen=True)
class Trajectories:
    """Where each optimizer went.

    Attributes:
        positions: by optimizer, θ(0) … θ(steps), shape ``(steps + 1, coordinates)``.
        losses: by optimizer, f there, shape ``(steps + 1,)``.
        optimizee: the function, a batch of one.
    """

    positions: dict[str, Tensor]
    losses: dict[str, Tensor]
    optimizee: TaskBatch

    @property
    def steps(self) -> int:
        """Number of updates that each optimizer made."""
        return len(next(iter(self.losses.values()))) - 1

    @property
    def best(self) -> Tensor:
        """The position of the lowest loss that any of them met, shape ``(coordinates,)``."""
        losses = torch.cat(list(self.losses.values())).nan_to_num(nan=torch.inf)
        return torch.cat(list(self.positions.values()))[losses.argmin()]

    def losses_at(self, points: Tensor) -> Tensor:
        """The function at other points, ``(points, coordinates)``; returns shape ``(points,)``."""
        layout = Layout.of(self.optimizee.initial_params)

        def loss(point: Tensor) -> Tensor:
            return self.optimizee.losses(layout.unravel(point[None]), 0)[0]

        return torch.vmap(loss)(points)


def trajectories(
    optimizers: Mapping[str, Optimizer[Any]], problem: Problem, *, steps: int = 60, seed: int = 0
) -> Trajectories:
    """Follow optimizers, learned or not, over one freshly drawn function. Runs on the CPU.

    Args:
        optimizers: by the name under which figures show them.
        problem: where the function comes from.
        steps: updates per optimizer.
        seed: of the function and its starting point.

    Raises:
        ValueError: if there are no optimizers, or `steps` is below 1.
    """
    if not optimizers:
        raise ValueError("trajectories: no optimizers given.")
    if steps < 1:
        raise ValueError(f"trajectories: steps must be at least 1, got {steps!r}.")
    positions, losses = {}, {}
    for name, optimizer in optimizers.items():
        if isinstance(optimizer, torch.nn.Module):
            optimizer.cpu()
        # Drawn anew for each: optimizees on minibatches must give every optimizer the same ones.
        optimizee = draw(problem, 1, generator(seed, "trajectories"))
        run = list(trajectory(optimizer, optimizee, steps))
        positions[name] = torch.cat([point.params for point in run])
        losses[name] = torch.cat([point.losses for point in run])
    return Trajectories(positions, losses, optimizee)
