"""Learning rates for the baselines: each is tuned for the problem at hand, on other draws than the test's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation.compare import Curves, Statistic, measured
from l2l_kit.evaluation.results import read_result
from l2l_kit.optimizers import BASELINES, Baseline, baseline
from l2l_kit.problems import Problem
from l2l_kit.randomness import generator
from l2l_kit.tensors import pick_device

if TYPE_CHECKING:
    import pandas as pd

LEARNING_RATES: tuple[float, ...] = tuple(float(f"{10 ** (k / 8):.2g}") for k in range(-32, 9))
"""The default grid: eight per decade from 1e-4 to 10."""


@dataclass(frozen=True)
class Tuning:
    """Final losses of one baseline over learning rates.

    Attributes:
        name: the baseline.
        table: indexed by learning rate; mean and median final loss over the optimizees, infinite where it diverged.
    """

    name: str
    table: pd.DataFrame

    def best_lr(self, statistic: Statistic = "mean") -> float:
        """The learning rate with the best final error."""
        return float(self.table.index[int(self.table[statistic].argmin())])

    def best(self, statistic: Statistic = "mean") -> Baseline:
        """The baseline with that learning rate."""
        return baseline(self.name, self.best_lr(statistic))


def tune(
    name: str,
    problem: Problem,
    *,
    steps: int = 100,
    tasks: int = 1000,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Tuning:
    """Run a baseline with each learning rate on the same optimizees and note the loss after `steps` steps.

    Args:
        name: "sgd", "nag", "rmsprop" or "adam".
        problem: where the optimizees come from; the draws are other ones than those of `compare`.
        steps: updates per run.
        tasks: number of optimizees.
        learning_rates: the grid.
        seed: of the optimizees.
        device: None for the best there is.

    Raises:
        UnknownNameError: for an unknown baseline.
        ValueError: if the grid is empty, a learning rate is not a positive number, or `steps` or `tasks` is below 1.
    """
    import pandas as pd

    if not learning_rates:
        raise ValueError("tune: the grid of learning rates is empty.")
    if steps < 1 or tasks < 1:
        raise ValueError(f"tune: steps and tasks must be at least 1, got steps={steps!r}, tasks={tasks!r}.")
    optimizees = problem.sample(tasks, generator(seed, "tuning"), pick_device(device))
    rows = []
    for optimizer in [baseline(name, lr) for lr in learning_rates]:
        final = measured(optimizer, optimizees, steps)[:, -1:]
        curves = Curves({name: final}, problem.config(), seed)
        rows.append({"lr": optimizer.lr, **{kind: curves.statistic(name, kind).item() for kind in ("mean", "median")}})
    return Tuning(name.lower(), pd.DataFrame(rows).set_index("lr"))


def tuning_table(tunings: Iterable[Tuning]) -> pd.DataFrame:
    """Several tunings as one tidy table with a column `baseline`, as recorded in data/results."""
    import pandas as pd

    return pd.concat([tuning.table.reset_index().assign(baseline=tuning.name) for tuning in tunings], ignore_index=True)


def tuned_baselines(problem: str, statistic: Statistic = "mean") -> dict[str, Baseline]:
    """The baselines with the learning rates recorded in data/results, by the name that figures show.

    Args:
        problem: name of the recorded tuning, such as "quadratics".
        statistic: which final error the learning rate is best for.

    Raises:
        FileNotFoundError: if no tuning of that problem is recorded; `l2l tune` makes it.
        UnknownNameError: for an unknown statistic.
    """
    if statistic not in ("mean", "median"):
        raise UnknownNameError("statistic", statistic, ("mean", "median"))
    table = read_result(f"{problem}/tuning")
    return {
        label: Tuning(name, table[table["baseline"] == name].set_index("lr")).best(statistic)
        for name, label in BASELINES.items()
    }
