"""Paired comparison of optimizers: every one meets the same optimizees, starting points and minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import Optimizer
from l2l_kit.problems import ClassifierTasks, Problem, TaskBatch
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, pick_device
from l2l_kit.training.rollout import trajectory

if TYPE_CHECKING:
    import pandas as pd

Statistic = Literal["mean", "median"]
QUANTILES = (0.1, 0.25, 0.75, 0.9)


class Interval(NamedTuple):
    """An estimate with its bootstrap confidence interval; scalars or one entry per step."""

    value: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Curves:
    """Losses of several optimizers on the same optimizees.

    Attributes:
        losses: by optimizer, f(θ(0)) … f(θ(steps)) of every optimizee, shape ``(tasks, steps + 1)``, on the CPU.
            A run that diverged counts as infinite from there on.
        problem: configuration of the problem.
        seed: of the optimizees.
    """

    losses: dict[str, Tensor]
    problem: dict[str, Any]
    seed: int

    @property
    def steps(self) -> int:
        """Number of updates that each run took."""
        return next(iter(self.losses.values())).shape[1] - 1

    @property
    def num_tasks(self) -> int:
        """Number of optimizees."""
        return len(next(iter(self.losses.values())))

    def __getitem__(self, name: str) -> Tensor:
        """Losses of one optimizer, ``(tasks, steps + 1)``."""
        if name not in self.losses:
            raise UnknownNameError("optimizer in these curves", name, self.losses)
        return self.losses[name]

    def statistic(self, name: str, statistic: Statistic = "mean") -> Tensor:
        """Mean or median over the optimizees at each step, shape ``(steps + 1,)``."""
        return _over_tasks(self[name], statistic)

    def quantiles(self, name: str, at: tuple[float, ...] = QUANTILES) -> Tensor:
        """Quantiles over the optimizees at each step, shape ``(len(at), steps + 1)``."""
        return _quantiles(self[name], at)

    def interval(
        self,
        name: str,
        statistic: Statistic = "mean",
        *,
        over: str | None = None,
        level: float = 0.95,
        resamples: int = 1000,
    ) -> Interval:
        """A statistic at each step with its confidence interval, by bootstrap over the optimizees.

        Args:
            name: the optimizer.
            statistic: "mean" or "median".
            over: divide by the same statistic of this optimizer, on the same resampled optimizees (a paired ratio).
            level: coverage of the interval.
            resamples: number of bootstrap samples.

        Returns:
            Value, lower and upper bound, each of shape ``(steps + 1,)``.
        """
        draws = torch.randint(self.num_tasks, (resamples, self.num_tasks), generator=generator(self.seed, "bootstrap"))
        value = self.statistic(name, statistic)
        samples = _resampled(self[name], statistic, draws)
        if over is not None:
            value = value / self.statistic(over, statistic)
            samples = samples / _resampled(self[over], statistic, draws)
        tail = (1 - level) / 2
        low, high = _quantiles(samples, (tail, 1 - tail))
        return Interval(value, low, high)

    def to_frame(self) -> pd.DataFrame:
        """A tidy table, one row per optimizer and step: mean, median and quantiles over the optimizees."""
        import pandas as pd

        frames = []
        for name in self.losses:
            columns: dict[str, Any] = {"optimizer": name, "step": range(self.steps + 1)}
            columns |= {kind: self.statistic(name, kind).numpy() for kind in ("mean", "median")}
            rows = self.quantiles(name).numpy()
            columns |= {f"q{round(100 * at)}": row for at, row in zip(QUANTILES, rows, strict=True)}
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def at_step(self, step: int) -> pd.DataFrame:
        """The rows of `to_frame` at one step, indexed by optimizer.

        Raises:
            ValueError: if the runs did not go that far.
        """
        if not 0 <= step <= self.steps:
            raise ValueError(f"step {step} is outside these curves, which go from 0 to {self.steps}.")
        frame = self.to_frame()
        return frame[frame["step"] == step].drop(columns="step").set_index("optimizer")


def _quantiles(values: Tensor, at: tuple[float, ...]) -> Tensor:
    """Quantiles over the first axis. Values may be infinite: torch.quantile would interpolate ∞ - ∞ to NaN."""
    ordered = values.sort(dim=0).values
    position = torch.tensor(at, dtype=torch.float64) * (len(values) - 1)
    below, above = ordered[position.floor().long()], ordered[position.ceil().long()]
    weight = position.frac().to(values.dtype)[:, None]
    return torch.where(below == above, below, below + weight * (above - below))


def _over_tasks(losses: Tensor, statistic: Statistic) -> Tensor:
    if statistic == "mean":
        return losses.mean(dim=0)
    if statistic == "median":
        return _quantiles(losses, (0.5,))[0]
    raise UnknownNameError("statistic", statistic, ("mean", "median"))


def _resampled(losses: Tensor, statistic: Statistic, draws: Tensor) -> Tensor:
    """The statistic of each resample, ``(resamples, steps + 1)``; draws are task indices ``(resamples, tasks)``."""
    if statistic == "mean":
        weights = torch.zeros(draws.shape, dtype=losses.dtype)
        weights.scatter_add_(1, draws, torch.ones_like(weights))
        diverged = losses.isinf()
        means = weights @ losses.masked_fill(diverged, 0) / len(losses)
        return means.masked_fill(weights @ diverged.to(losses.dtype) > 0, torch.inf)
    # A median of a resample is that of its ranks, which are small integers and sorted once.
    ordered, order = losses.sort(dim=0)
    ranks = order.argsort(dim=0)
    middle = (len(losses) - 1) // 2, len(losses) // 2
    columns = []
    for step in range(losses.shape[1]):
        drawn = ranks[draws, step].sort(dim=1).values
        columns.append(ordered[drawn[:, middle], step].mean(dim=1))
    return torch.stack(columns, dim=1)


def paired_tasks(
    optimizers: Mapping[str, Optimizer[Any]],
    problem: Problem,
    num_tasks: int,
    seed: int,
    device: str | torch.device | None,
) -> Iterator[tuple[str, Optimizer[Any], TaskBatch]]:
    """Every optimizer by its name, each with a copy of the same fresh optimizees, all on one device."""
    chosen = pick_device(device)
    for name, optimizer in optimizers.items():
        if isinstance(optimizer, torch.nn.Module):
            optimizer.to(chosen)
        yield name, optimizer, draw(problem, num_tasks, generator(seed, "test"), chosen)


def losses_at(optimizer: Optimizer[Any], tasks: TaskBatch, at: Sequence[int], *, on_test_set: bool = False) -> Tensor:
    """Losses after chosen numbers of steps as statistics want them: on the CPU, infinite where a run diverged.

    Args:
        optimizer: learned or not.
        tasks: what it is run on.
        at: after how many steps, in ascending order.
        held_out: the loss on the test images, as `tested` gives it, instead of the one whose gradient a step follows.

    Returns:
        Shape ``(n, len(at))``.
    """
    if on_test_set:
        losses, _ = scores_at(optimizer, tasks, at)
    else:
        losses = torch.stack([losses for _, losses in _points(optimizer, tasks, at)], dim=1).cpu()
    return losses.nan_to_num(nan=torch.inf, posinf=torch.inf)


def scores_at(optimizer: Optimizer[Any], tasks: TaskBatch, at: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Loss on the test images, and the share of right answers, after chosen numbers of steps.

    Args:
        optimizer: learned or not.
        tasks: what it is run on.
        at: after how many steps, in ascending order.

    Returns:
        Two tensors of shape ``(n, len(at))``, on the CPU.

    Raises:
        TypeError: if the optimizees are no classifiers.
    """
    if not isinstance(tasks, ClassifierTasks):
        raise TypeError(f"{type(tasks).__name__} have no test images.")
    layout = Layout.of(tasks.initial_params)
    scores = [tasks.test(layout.unravel(rows)) for rows, _ in _points(optimizer, tasks, at)]
    losses, accuracies = (torch.stack(columns, dim=1).cpu() for columns in zip(*scores, strict=True))
    return losses, accuracies


def _points(optimizer: Optimizer[Any], tasks: TaskBatch, at: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters and losses after chosen numbers of steps."""
    noted = set(at)
    return (point for step, point in enumerate(trajectory(optimizer, tasks, max(at))) if step in noted)


def compare(
    optimizers: Mapping[str, Optimizer[Any]],
    problem: Problem,
    *,
    steps: int = 100,
    num_tasks: int = 256,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Curves:
    """Run optimizers, learned or not, on the same freshly drawn optimizees.

    Args:
        optimizers: by the name under which figures and tables show them.
        problem: where the optimizees come from; the draws are other ones than in meta-training and tuning.
        steps: updates per run.
        num_tasks: number of optimizees.
        seed: of the optimizees.
        device: None for the best there is.

    Raises:
        ValueError: if there is nothing to compare, or `steps` or `tasks` is below 1.
    """
    if not optimizers:
        raise ValueError("compare: no optimizers given.")
    if steps < 1 or num_tasks < 1:
        raise ValueError(f"compare: steps and tasks must be at least 1, got steps={steps!r}, tasks={num_tasks!r}.")
    runs = paired_tasks(optimizers, problem, num_tasks, seed, device)
    losses = {name: losses_at(optimizer, tasks, range(steps + 1)) for name, optimizer, tasks in runs}
    return Curves(losses, problem.config(), seed)
