"""Running a frozen optimizer, learned or not, on a batch of optimizees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from l2l_kit.optimizers import Optimizer
from l2l_kit.problems import TaskBatch
from l2l_kit.problems.checks import first_evaluation
from l2l_kit.tensors import ravel


def trajectory(optimizer: Optimizer[Any], tasks: TaskBatch, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Follow the optimizees from their starting points: yields θ(t) and f(θ(t)) for t = 0 … `steps`.

    Yields:
        Parameters ``(n, coordinates)`` and losses ``(n,)``.

    Raises:
        TypeError, ValueError: as `first_evaluation`.
    """
    layout, rows, losses, gradients = first_evaluation(tasks)
    state = optimizer.init(tasks.initial_params)
    yield rows, losses
    for step in range(1, steps + 1):
        updates, state = optimizer.update(layout.unravel(gradients), state)
        rows = rows + ravel(updates)
        losses, gradients = tasks.losses_and_gradients(rows, layout, step)
        yield rows, losses


def rollout(optimizer: Optimizer[Any], tasks: TaskBatch, steps: int) -> Tensor:
    """Losses f(θ(0)) … f(θ(steps)) of every optimizee, shape ``(n, steps + 1)``."""
    return torch.stack([losses for _, losses in trajectory(optimizer, tasks, steps)], dim=1)
