"""Learning rates for the baselines: each is tuned for the problem at hand, on other draws than the test's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from torch import Tensor

from l2l_kit.errors import UnknownNameError, check_names, check_number
from l2l_kit.evaluation.comparison import losses_at
from l2l_kit.evaluation.curves import Curves, Statistic
from l2l_kit.evaluation.results import read_result
from l2l_kit.extras import pd
from l2l_kit.optimizers import BASELINES, Baseline, baseline
from l2l_kit.problems import Problem
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Device, pick_device


def learning_rates(per_decade: int) -> tuple[float, ...]:
    """A logarithmic grid from 1e-4 to 10."""
    return tuple(float(f"{10 ** (k / per_decade):.2g}") for k in range(-4 * per_decade, per_decade + 1))


LEARNING_RATES = learning_rates(per_decade=8)  # the default grid


def ascending(steps: Iterable[int], num_tasks: int) -> list[int]:
    """The steps in ascending order, each once.

    Raises:
        ValueError: if there is none, or one or `num_tasks` is no whole number of at least 1.
    """
    noted = list(steps)
    if not noted:
        raise ValueError("tune: steps must have at least one number of updates in it.")
    check_number("tune", "num_tasks", num_tasks)
    for each in noted:
        check_number("tune", "steps", each)
    return sorted(set(noted))


@dataclass(frozen=True)
class Tuning:
    """Losses of one baseline over learning rates.

    Attributes:
        name: of the baseline, such as "adam".
        table: a row for each learning rate `lr` and number of updates `step`: the `mean` and `median` loss over the
            optimizees there, infinite where it diverged, and the `baseline`.
    """

    name: str
    table: pd.DataFrame

    @staticmethod
    def of(name: str, steps: Sequence[int], losses: Mapping[float, Tensor]) -> Tuning:
        """From losses by learning rate, each of shape ``(num_tasks, len(steps))``."""
        curves, rows = Curves({str(lr): after for lr, after in losses.items()}, {}, seed=0), []
        for lr in losses:
            mean, median = (curves.statistic(str(lr), kind).tolist() for kind in ("mean", "median"))
            rows += [(lr, *row, name) for row in zip(steps, mean, median, strict=True)]
        return Tuning(name, pd.DataFrame(rows, columns=["lr", "step", "mean", "median", "baseline"]))

    def final(self, statistic: Statistic = "mean", step: int | None = None) -> pd.Series[float]:
        """Loss by learning rate after that many updates; None for the most that were recorded.

        Raises:
            UnknownNameError: if nothing was recorded at that step, or for an unknown statistic.
        """
        check_names("statistic", [statistic], get_args(Statistic))
        recorded = sorted(set(self.table["step"]))
        step = recorded[-1] if step is None else step
        if step not in recorded:
            raise UnknownNameError("step of this tuning", step, map(str, recorded))
        return self.table[self.table["step"] == step].set_index("lr")[statistic]

    def best(self, statistic: Statistic = "mean", step: int | None = None) -> Baseline:
        """The baseline with the learning rate that has the best loss then; arguments as in `final`.

        Warns if it is the first or the last that was tried: another one beyond it may be better.

        Raises:
            UnknownNameError: as `final`.
            ValueError: if all learning rates diverged.
        """
        final = self.final(statistic, step)
        if np.isinf(final).all():
            raise ValueError(f"{self.name}: all rates from {final.index[0]:g} to {final.index[-1]:g} diverged.")
        best = int(final.argmin())
        rate = float(final.index[best])
        if len(final) > 1 and best in (0, len(final) - 1):
            warnings.warn(f"{self.name}: the best learning rate, {rate:g}, is at the end of those tried.", stacklevel=2)
        return baseline(self.name, rate)


def tune(
    name: str,
    problem: Problem,
    *,
    steps: int | Sequence[int] = 100,
    num_tasks: int = 1000,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    device: Device = None,
) -> Tuning:
    """Run a baseline with each learning rate on the same optimizees, which are other ones than those of `compare`.

    Args:
        name: of the baseline, such as "adam".
        problem, num_tasks, seed, device: as in `compare`.
        steps: updates per run; several numbers note the loss at each of them.
        learning_rates: the grid.

    Raises:
        TypeError: if `name` is no text, or `learning_rates` no list of numbers.
        UnknownNameError: for an unknown baseline.
        ValueError: if the grid is empty, a learning rate is not a positive number, or as `ascending`.
    """
    if not isinstance(name, str):
        raise TypeError(f"tune: expected the name of a baseline, such as 'adam', got {name!r}.")
    if isinstance(learning_rates, str) or not isinstance(learning_rates, Iterable):
        raise TypeError(f"tune: learning_rates must be a list of numbers, got {learning_rates!r}.")
    try:
        rates = sorted(map(float, learning_rates))
    except (TypeError, ValueError) as error:
        raise TypeError(f"tune: learning_rates must be numbers, got {learning_rates!r}.") from error
    if not rates:
        raise ValueError("tune: the grid of learning rates is empty.")
    noted = ascending(steps if isinstance(steps, Iterable) else [steps], num_tasks)
    rules = [baseline(name, lr) for lr in rates]
    tasks = draw(problem, num_tasks, generator(seed, "tuning"), pick_device(device))
    return Tuning.of(rules[0].name, noted, {rule.lr: losses_at(rule, tasks, noted) for rule in rules})


def tuned_baselines(problem: str, statistic: Statistic = "mean", step: int | None = None) -> dict[str, Baseline]:
    """The baselines with the learning rates that are recorded as best for a problem, by the name that figures show.

    Arguments are those of `Tuning.best`.

    Raises:
        FileNotFoundError: if no tuning of that problem is recorded; `l2l tune` makes it.
        UnknownNameError: for an unknown statistic, or if nothing was recorded at that step.
        TypeError: for a problem instead of its name.
    """
    if not isinstance(problem, str):
        raise TypeError(f"tuned_baselines: expected the name of a problem, such as 'quadratics', got {problem!r}.")
    try:
        table = read_result(f"{problem}/tuning")
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error} Make it by `l2l tune`, or choose a rate: baseline("adam", 0.1).') from error
    return {
        label: Tuning(name, table[table["baseline"] == name]).best(statistic, step) for name, label in BASELINES.items()
    }
