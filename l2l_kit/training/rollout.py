"""Running a frozen optimizer, learned or not, on a batch of optimizees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2l_kit.optimizers import Optimizer
from l2l_kit.problems import TaskBatch
from l2l_kit.problems.checks import first_evaluation
from l2l_kit.tensors import ravel


class Point(NamedTuple):
    """Where ``n`` optimizees are after t updates.

    Attributes:
        params: θ(t) as flat rows, shape ``(n, coordinates)``.
        losses: f(θ(t)), shape ``(n,)``.
        gradients: ∇f(θ(t)), which the next update follows, shape ``(n, coordinates)``.
    """

    params: Tensor
    losses: Tensor
    gradients: Tensor


def trajectory(optimizer: Optimizer[Any], tasks: TaskBatch, steps: int) -> Iterator[Point]:
    """Follow the optimizees from their starting points: yields the points of t = 0 … `steps`.

    Raises:
        TypeError, ValueError: as `first_evaluation`.
    """
    layout, rows, losses, gradients = first_evaluation(tasks)
    state = optimizer.init(tasks.initial_params)
    yield Point(rows, losses, gradients)
    for step in range(1, steps + 1):
        updates, state = optimizer.update(layout.unravel(gradients), state)
        rows = rows + ravel(updates)
        losses, gradients = tasks.losses_and_gradients(rows, layout, step)
        yield Point(rows, losses, gradients)


def rollout(optimizer: Optimizer[Any], tasks: TaskBatch, steps: int) -> Tensor:
    """Losses f(θ(0)) … f(θ(steps)) of every optimizee, shape ``(n, steps + 1)``."""
    return torch.stack([point.losses for point in trajectory(optimizer, tasks, steps)], dim=1)
