"""The forward loop: running an optimizer, learned or not, on a batch of tasks (equations 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from l2l_kit.optimizers.base import Optimizer, State
from l2l_kit.problems import TaskBatch
from l2l_kit.problems.base import first_evaluation
from l2l_kit.tensors import ravel


class Point(NamedTuple):
    """A batch of tasks after t updates: θ(t) ``(n, coordinates)``, f(θ(t)) ``(n,)`` and ∇f(θ(t)) like θ(t)."""

    params: Tensor
    losses: Tensor
    gradients: Tensor


def trajectory(optimizer: Optimizer[State], tasks: TaskBatch, steps: int | None = None) -> Iterator[Point]:
    """Run an optimizer on tasks; yields points t = 0 … `steps`, without end for None. Raises as `first_evaluation`."""
    layout, params, losses, gradients = first_evaluation(tasks)
    state = optimizer.init(tasks.initial_params)
    yield Point(params, losses, gradients)
    for step in count(1) if steps is None else range(1, steps + 1):
        updates, state = optimizer.update(layout.unravel(gradients), state, layout.unravel(params))
        params = params + ravel(updates)
        losses, gradients = tasks.losses_and_gradients(params, layout, step)
        yield Point(params, losses, gradients)


def rollout(optimizer: Optimizer[State], tasks: TaskBatch, steps: int) -> Tensor:
    """Losses f(θ(0)) … f(θ(steps)) of every task, shape ``(n, steps + 1)``."""
    return torch.stack([point.losses for point in trajectory(optimizer, tasks, steps)], dim=1)
