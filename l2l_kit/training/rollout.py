"""The forward loop: running an optimizer, learned or not, on a batch of tasks (equations 1 and 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2l_kit.optimizers.base import Optimizer, State
from l2l_kit.problems import TaskBatch
from l2l_kit.problems.base import first_evaluation
from l2l_kit.tensors import Tensors, described, ravel


class Point(NamedTuple):
    """A batch of tasks after t updates: θ(t) ``(n, coordinates)``, f(θ(t)) ``(n,)`` and ∇f(θ(t)) like θ(t)."""

    params: Tensor
    losses: Tensor
    gradients: Tensor


def trajectory(optimizer: Optimizer[State], tasks: TaskBatch, steps: int | None = None) -> Iterator[Point]:
    """Run an optimizer on tasks; yields points t = 0 … `steps`, without end for None.

    Raises as `first_evaluation`, and a ValueError for updates that are not what `Optimizer.update` must give.
    """
    layout, params, losses, gradients = first_evaluation(tasks)
    state = optimizer.init(tasks.initial_params)
    yield Point(params, losses, gradients)
    for step in count(1) if steps is None else range(1, steps + 1):
        named, version = layout.unravel(params), params._version
        updates, state = _checked(optimizer, optimizer.update(layout.unravel(gradients), state, named), named)
        if params._version != version:
            raise ValueError(f"{_update(optimizer)} to leave `params` as they are, but changed them in place.")
        params = params + ravel(updates)
        losses, gradients = tasks.losses_and_gradients(params, layout, step)
        yield Point(params, losses, gradients)


def rollout(optimizer: Optimizer[State], tasks: TaskBatch, steps: int) -> Tensor:
    """Losses f(θ(0)) … f(θ(steps)) of every task, shape ``(n, steps + 1)``."""
    return torch.stack([point.losses for point in trajectory(optimizer, tasks, steps)], dim=1)


def _checked(optimizer: object, given: object, params: Tensors) -> tuple[Tensors, Any]:
    """What `Optimizer.update` gave, updates in the order of the parameters; a ValueError if it is something else."""
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], Mapping):
        raise ValueError(f"{_update(optimizer)} a dict of named updates and the new state, got {given!r}.")
    updates, state = given
    if len(updates) != len(params) or not all(_is_like(updates.get(name), tensor) for name, tensor in params.items()):
        raise ValueError(
            f"{_update(optimizer)} updates of the names, shapes and type of the parameters, {described(params)}; got "
            f"{described(updates)}."
        )
    return {name: updates[name] for name in params}, state


def _is_like(update: object, param: Tensor) -> bool:
    if not isinstance(update, Tensor):
        return False
    return update.shape == param.shape and update.dtype == param.dtype and update.device == param.device


def _update(optimizer: object) -> str:
    """How messages begin."""
    return f"{type(optimizer).__name__}.update: expected"
