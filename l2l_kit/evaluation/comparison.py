"""Paired comparison of optimizers: all of them meet the same optimizees, starting points and minibatches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l2l_kit.errors import check_number
from l2l_kit.evaluation.curves import Curves
from l2l_kit.extras import pd
from l2l_kit.optimizers import Optimizer
from l2l_kit.problems import ClassifierTasks, Problem, TaskBatch
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Device, Layout, pick_device
from l2l_kit.training.rollout import Point, trajectory

Optimizers = Mapping[str, Optimizer[Any]]
"""Optimizers, learned or not, by the name that figures and tables show. Each has a state of its own type."""


def compare(
    optimizers: Optimizers,
    problem: Problem,
    *,
    steps: int = 100,
    num_tasks: int = 256,
    seed: int = 0,
    device: Device = None,
) -> Curves:
    """Run optimizers on the same `num_tasks` optimizees, which are other ones than in meta-training and tuning.

    A learned rule also moves coordinates that never have a gradient, which `LearnedOptimizer` leaves where they are.

    Args:
        optimizers: by name. Modules are copied, and the caller's stay on the device where they are.
        steps: updates per run.
        seed: of the optimizees.
        device: None for the best there is.

    Raises:
        TypeError: if `optimizers` is no mapping, or has something else in it than optimizers.
        ValueError: if there are no optimizers, `steps` or `num_tasks` is no whole number of at least 1, or not all
            optimizers met the same optimizees, because the problem drew from another generator than it was given.
    """
    runs = paired_trajectories(optimizers, problem, steps, num_tasks, seed, device)
    losses = {name: _in_columns(point.losses for point in points) for name, _, points in runs}
    first, *others = (each[:, 0] for each in losses.values())
    if not all(torch.allclose(first, other, rtol=1e-3) for other in others):  # a GPU does not always give the same bits
        raise ValueError(
            f"{problem.name}: not all optimizers met the same optimizees, as their losses before the first step show. "
            "Whatever draws optimizees or minibatches must use the generator that it is given, and no other."
        )
    return Curves(losses, problem.config(), int(seed))


def paired_trajectories(
    optimizers: Optimizers, problem: Problem, steps: int, num_tasks: int, seed: int, device: Device
) -> Iterator[tuple[str, TaskBatch, Iterator[Point]]]:
    """Every optimizer's name, the optimizees and its trajectory; arguments and errors are those of `compare`."""
    if not isinstance(optimizers, Mapping):
        raise TypeError(f"expected optimizers by name, such as {{'Adam': baseline('adam', 0.1)}}, got {optimizers!r}.")
    if not optimizers:
        raise ValueError("no optimizers given.")
    if unnamed := [name for name in optimizers if not isinstance(name, str)]:
        raise TypeError(f"expected optimizers by name, such as {str(unnamed[0])!r}, got {unnamed[0]!r} as a name.")
    check_number("compare", "steps", steps)
    check_number("compare", "num_tasks", num_tasks)
    chosen = pick_device(device)
    for name, optimizer in optimizers.items():
        methods = (callable(getattr(optimizer, method, None)) for method in ("init", "update"))
        if isinstance(optimizer, type) or not all(methods):
            raise TypeError(
                f"{name!r}: expected an optimizer of the kit, such as baseline('adam', 0.1) or load('mnist'), got "
                f"{optimizer!r}."
            )
        if isinstance(optimizer, torch.nn.Module):
            optimizer = copy.deepcopy(optimizer).to(chosen)
        tasks = draw(problem, num_tasks, generator(seed, "test"), chosen)
        yield name, tasks, trajectory(optimizer, tasks, steps)


def metrics_on_test_set(
    optimizers: Optimizers,
    problem: Problem,
    *,
    at: Sequence[int],
    num_tasks: int = 16,
    seed: int = 0,
    device: Device = None,
) -> pd.DataFrame:
    """Loss and accuracy on the test images, which no optimizee is trained on, after so many steps.

    The optimizees are those of `compare`. The columns are `optimizer`, `step`, `loss` and `accuracy`, both means.

    Args:
        at: numbers of updates, of which 0 is one; the other arguments are those of `compare`.

    Raises:
        ValueError: if the problem's optimizees are not classifiers, `at` is empty or has a negative number in it, and
            as `compare`.
    """
    rows, steps = [], sorted(set(at))
    if not steps or steps[0] < 0:
        raise ValueError(f"metrics_on_test_set: at must have some numbers of updates, from 0 on, got {at!r}.")
    for name, tasks, points in paired_trajectories(optimizers, problem, max(1, *steps), num_tasks, seed, device):
        for step, (losses, accuracies) in zip(steps, _test(tasks, points, steps), strict=True):
            rows.append((name, step, losses.mean().item(), accuracies.mean().item()))
    return pd.DataFrame(rows, columns=["optimizer", "step", "loss", "accuracy"])


def losses_at(optimizer: Optimizer[Any], tasks: TaskBatch, at: Sequence[int], *, on_test_set: bool = False) -> Tensor:
    """Losses after chosen numbers of steps, ascending, on the CPU: ``(n, len(at))``, infinite where a run diverged.

    Args:
        on_test_set: whether to take the loss on the test images instead of the one whose gradient a step follows.

    Raises:
        ValueError: for the loss on the test images of optimizees that are not classifiers.
    """
    points = trajectory(optimizer, tasks, max(at))
    if on_test_set:
        return _in_columns(losses for losses, _ in _test(tasks, points, at))
    return _in_columns(point.losses for step, point in enumerate(points) if step in at)


def _test(tasks: TaskBatch, points: Iterable[Point], at: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each optimizee's loss and accuracy on the test images after chosen numbers of steps."""
    if not isinstance(tasks, ClassifierTasks):
        raise ValueError(f"{type(tasks).__name__} have no test images.")
    layout = Layout.of(tasks.initial_params)
    return (tasks.test(layout.unravel(point.params)) for step, point in enumerate(points) if step in at)


def _in_columns(losses: Iterable[Tensor]) -> Tensor:
    """Losses ``(n,)`` at some steps as statistics want them, ``(n, steps)``."""
    return torch.stack(list(losses), dim=1).cpu().nan_to_num(torch.inf, torch.inf, -torch.inf)
