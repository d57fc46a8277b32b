"""Learning rates for the baselines: each is tuned for the problem at hand, on other draws than the test's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation.comparison import losses_at
from l2l_kit.evaluation.curves import Curves, Statistic
from l2l_kit.evaluation.results import machine, read_result, write_result
from l2l_kit.optimizers import BASELINES, Baseline, baseline
from l2l_kit.paths import RESULTS
from l2l_kit.problems import Problem
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import pick_device

if TYPE_CHECKING:
    import pandas as pd


def learning_rates(per_decade: int) -> tuple[float, ...]:
    """A logarithmic grid from 1e-4 to 10."""
    return tuple(float(f"{10 ** (k / per_decade):.2g}") for k in range(-4 * per_decade, per_decade + 1))


LEARNING_RATES = learning_rates(per_decade=8)
"""The default grid."""
ROUND = [float(f"{digit}e{power}") for power in range(-9, 7) for digit in (1, 2, 5)]
"""Where a grid of learning rates goes on: in steps of √10 at most."""
FLAT = 1e-4
"""Share of a loss that makes no difference: a grid does not go on into nothingness, where all losses are the same."""


def further_rates(rates: Sequence[float], means: Tensor) -> list[float]:
    """What a grid of learning rates lacks: one more beyond each end where a best one is, which might be better still.

    Args:
        rates: what was tried, in ascending order.
        means: the losses, shape ``(learning rates, steps)``, infinite where a run diverged.

    Returns:
        The nearest of 1, 2, 5, 10, 20, ... that differs by a quarter or more; nothing if at each of the steps the best
        is inside.

    Raises:
        ValueError: if there is none from 1e-9 to 5e6, as where every run diverges.
    """
    larger = [lr for lr in ROUND if lr >= 1.25 * rates[-1]]
    smaller = [lr for lr in reversed(ROUND) if 1.25 * lr <= rates[0]]
    last, further = len(rates) - 1, []
    for end, beside, beyond in ((0, min(1, last), smaller), (last, max(last - 1, 0), larger)):
        plateau = (means[beside] - means[end] <= FLAT * means[end].abs()) & (end != beside)
        if ((means.argmin(dim=0) == end) & ~plateau).any():
            if not beyond:
                raise ValueError(f"the best learning rate is {rates[end]:g} or beyond, and none is tried there.")
            further.append(beyond[0])
    return further


@dataclass(frozen=True)
class Tuning:
    """Losses of one baseline over learning rates.

    Attributes:
        name: the baseline.
        table: a row for each learning rate `lr` and number of updates `step`: mean and median loss over the optimizees
            there, infinite where it diverged.
    """

    name: str
    table: pd.DataFrame

    def final(self, statistic: Statistic = "mean", step: int | None = None) -> pd.Series[float]:
        """Loss by learning rate after that many updates; None for the most that were recorded.

        Raises:
            UnknownNameError: if nothing was recorded at that step.
        """
        recorded = sorted(set(self.table["step"]))
        step = recorded[-1] if step is None else step
        if step not in recorded:
            raise UnknownNameError("step of this tuning", step, map(str, recorded))
        return self.table[self.table["step"] == step].set_index("lr")[statistic]

    def best(self, statistic: Statistic = "mean", step: int | None = None) -> Baseline:
        """The baseline with the learning rate that has the best loss then; arguments as in `final`."""
        final = self.final(statistic, step)
        return baseline(self.name, float(final.index[int(final.argmin())]))


def tune(
    name: str,
    problem: Problem,
    *,
    steps: int | Sequence[int] = 100,
    num_tasks: int = 1000,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Tuning:
    """Run a baseline with each learning rate on the same optimizees and note its loss after `steps` steps.

    Args:
        name: "sgd", "nag", "rmsprop" or "adam".
        problem: where the optimizees come from; the draws are other ones than those of `compare`.
        steps: updates per run; several numbers note the loss at each of them.
        num_tasks: number of optimizees.
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
    noted = [steps] if isinstance(steps, int) else sorted(set(steps))
    if not noted or noted[0] < 1 or num_tasks < 1:
        raise ValueError(f"tune: steps and tasks must be at least 1, got steps={steps!r}, tasks={num_tasks!r}.")
    tasks = draw(problem, num_tasks, generator(seed, "tuning"), pick_device(device))
    rows = []
    for optimizer in [baseline(name, lr) for lr in learning_rates]:
        losses = losses_at(optimizer, tasks, noted)
        curves = Curves({name: losses}, problem.config(), seed)
        mean, median = (curves.statistic(name, kind).tolist() for kind in ("mean", "median"))
        rows += [(optimizer.lr, *row) for row in zip(noted, mean, median, strict=True)]
    return Tuning(name.lower(), pd.DataFrame(rows, columns=["lr", "step", "mean", "median"]))


def tuning_table(tunings: Iterable[Tuning]) -> pd.DataFrame:
    """Several tunings as one tidy table with a column `baseline`, as recorded in data/results."""
    import pandas as pd

    return pd.concat([tuning.table.assign(baseline=tuning.name) for tuning in tunings], ignore_index=True)


def record_tuning(
    problem: Problem,
    *,
    steps: Sequence[int] = (100,),
    num_tasks: int = 1000,
    rates: int = 8,
    seed: int = 0,
    directory: Path = RESULTS,
    device: str | torch.device | None = None,
) -> tuple[list[Tuning], Path]:
    """Tune every baseline for a problem, and record the table as `tuned_baselines` reads it.

    Args:
        problem: it is recorded under its name.
        steps, tasks, seed, device: as in `tune`.
        rates: learning rates per decade.
        directory: where results live.

    Returns:
        The tunings, and where they are recorded.
    """
    grid = learning_rates(rates)
    tunings = [
        tune(name, problem, steps=steps, num_tasks=num_tasks, learning_rates=grid, seed=seed, device=device)
        for name in BASELINES
    ]
    about = {"problem": problem.config(), "steps": list(steps), "num_tasks": num_tasks, "rates": rates, "seed": seed}
    about |= machine(pick_device(device))
    return tunings, write_result(f"{problem.name}/tuning", tuning_table(tunings), about, directory)


def tuned_baselines(problem: str, statistic: Statistic = "mean", step: int | None = None) -> dict[str, Baseline]:
    """The baselines with the learning rates recorded in data/results, by the name that figures show.

    Args:
        problem: name of the recorded tuning, such as "quadratics".
        statistic: which final error the learning rate is best for.
        step: the number of updates that it is best for; None for the most that were recorded.

    Raises:
        FileNotFoundError: if no tuning of that problem is recorded; `l2l tune` makes it.
        UnknownNameError: for an unknown statistic, or if nothing was recorded at that step.
    """
    if statistic not in ("mean", "median"):
        raise UnknownNameError("statistic", statistic, ("mean", "median"))
    table = read_result(f"{problem}/tuning")
    return {
        label: Tuning(name, table[table["baseline"] == name]).best(statistic, step) for name, label in BASELINES.items()
    }
