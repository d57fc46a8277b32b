"""Sweeps: learned against freshly tuned optimizers over a grid of problems, such as the architectures of figure 6."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from l2l_kit import problems
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation.compare import Curves, compare
from l2l_kit.evaluation.tuning import tune
from l2l_kit.optimizers import BASELINES, Baseline, LearnedRule, baseline
from l2l_kit.paths import SWEEPS, toml_file
from l2l_kit.problems import Problem
from l2l_kit.storage import read_tensors, write_tensors
from l2l_kit.tensors import Tensors

if TYPE_CHECKING:
    import pandas as pd

PART_VERSION = 1


@dataclass(frozen=True)
class Sweep:
    """What a file of data/sweeps says.

    Attributes:
        name: of the file.
        problem: configuration that all settings share.
        grid: lists of values of the fields that vary; their product is swept.
        learned: pretrained optimizers by the label that figures show; ratios are those of the first.
        steps: numbers of updates after which the losses are noted; baselines are tuned for each.
        tasks: fresh optimizees per setting.
        tuning_tasks: optimizees to tune the baselines on.
        learning_rates: what is tried for each baseline.
        seed: of all draws.
    """

    name: str
    problem: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    learned: Mapping[str, str]
    steps: list[int]
    tasks: int
    tuning_tasks: int
    learning_rates: Mapping[str, list[float]]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learned or not self.grid or not self.learning_rates:
            raise ValueError("learned, grid and learning_rates must not be empty")
        if taken := set(self.learned) & set(BASELINES.values()):
            raise ValueError(f"a learned optimizer cannot be called {taken.pop()!r}, which is a baseline")
        lists: dict[str, object] = {"steps": self.steps}
        lists |= {f"grid.{name}": values for name, values in self.grid.items()}
        lists |= {f"learning_rates.{name}": rates for name, rates in self.learning_rates.items()}
        for name, values in lists.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{name} must be a list with something in it, got {values!r}")
        for number in (*self.steps, self.tasks, self.tuning_tasks):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"steps, tasks and tuning_tasks must be whole numbers of at least 1, got {number!r}")
        for name, rates in self.learning_rates.items():
            if name not in BASELINES:
                raise UnknownNameError("baseline", name, BASELINES)
            for rate in rates:
                baseline(name, rate)

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The grid's combinations, each as the fields that it sets."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def make_problem(self, setting: Mapping[str, Any]) -> Problem:
        """The problem of one setting."""
        return problems.make({**self.problem, **setting})


def read_sweep(name_or_path: str | Path) -> Sweep:
    """A sweep of data/sweeps by name, or from a path to a TOML file.

    Raises:
        UnknownNameError: if there is no such sweep; the message offers the nearest one.
        ValueError: if the file is no valid sweep; the message says which part is wrong.
    """
    path = toml_file("sweep", name_or_path, SWEEPS)
    try:
        sweep = Sweep(path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
        for setting in sweep.settings:
            sweep.make_problem(setting)
        return sweep
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a valid sweep: {error}") from error


def run_setting(
    sweep: Sweep,
    setting: Mapping[str, Any],
    learned: Mapping[str, LearnedRule],
    parts: Path,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Tune every baseline for one setting, then run all optimizers on the same fresh optimizees.

    Args:
        sweep: what the setting belongs to.
        setting: one of `Sweep.settings`.
        learned: the optimizers that `Sweep.learned` names.
        parts: folder for the losses of each optimizer, so that an interrupted sweep goes on where it was and a newly
            trained optimizer does not make the baselines run again.
        device: None for the best there is.

    Returns:
        A row for each number of steps and optimizer: the setting's fields, `step`, `optimizer`, `lr` (none for a
        learned one), mean loss with its 95% interval `low` to `high`, and `ratio` with `ratio_low` to `ratio_high`: the
        first learned optimizer's mean over this one's, paired.
    """
    import pandas as pd

    problem = sweep.make_problem(setting)
    asked = {"problem": problem.config(), "steps": sweep.steps, "tasks": sweep.tasks, "seed": sweep.seed}
    losses, rates = {}, {}
    for label, optimizer in learned.items():
        weights = {name: tensor.cpu() for name, tensor in optimizer.state_dict().items()}
        part = parts / _part_name({**asked, "optimizer": optimizer.config()}, weights)
        losses[label], _ = _once(part, partial(_run_learned, optimizer, sweep, problem, device))
    for name, grid in sweep.learning_rates.items():
        part = parts / _part_name({**asked, "baseline": name, "grid": grid, "tuning_tasks": sweep.tuning_tasks}, {})
        losses[BASELINES[name]], rates[BASELINES[name]] = _once(
            part, partial(_tune_and_run, name, grid, sweep, problem, device)
        )
    first = next(iter(learned))
    rows = []
    for column, step in enumerate(sweep.steps):
        curves = Curves({label: noted[:, [column]] for label, noted in losses.items()}, problem.config(), sweep.seed)
        for label in losses:
            mean, low, high = (value.item() for value in curves.interval(label))
            ratio, ratio_low, ratio_high = (value.item() for value in curves.interval(first, over=label))
            row = {key: architecture(value) if isinstance(value, list) else value for key, value in setting.items()}
            row |= {"step": step, "optimizer": label, "lr": rates[label][column] if label in rates else None}
            row |= {"mean": mean, "low": low, "high": high}
            row |= {"ratio": ratio, "ratio_low": ratio_low, "ratio_high": ratio_high}
            rows.append(row)
    return pd.DataFrame(rows)


def _run_learned(
    optimizer: LearnedRule, sweep: Sweep, problem: Problem, device: str | torch.device | None
) -> tuple[Tensor, list[float]]:
    """Losses at the sweep's steps, ``(tasks, steps)``, of one run."""
    curves = compare(
        {"": optimizer}, problem, steps=max(sweep.steps), tasks=sweep.tasks, seed=sweep.seed, device=device
    )
    return curves[""][:, sweep.steps], []


def _tune_and_run(
    name: str, grid: list[float], sweep: Sweep, problem: Problem, device: str | torch.device | None
) -> tuple[Tensor, list[float]]:
    """Losses at the sweep's steps, ``(tasks, steps)``, of one run for each, with the learning rate tuned for it."""
    counts = {"tasks": sweep.tuning_tasks, "seed": sweep.seed}
    tuning = tune(name, problem, steps=sweep.steps, learning_rates=grid, device=device, **counts)
    columns, rates = [], []
    for step in sweep.steps:
        tuned = tuning.best(step=step)
        curves = compare({"": tuned}, problem, steps=step, tasks=sweep.tasks, seed=sweep.seed, device=device)
        columns.append(curves[""][:, step])
        rates.append(tuned.lr)
    return torch.stack(columns, dim=1), rates


def _once(part: Path, run: Callable[[], tuple[Tensor, list[float]]]) -> tuple[Tensor, list[float]]:
    """What `run` gives, from a file where it has been run before."""
    if not part.exists():
        losses, rates = run()
        write_tensors(part, {"losses": losses}, {"rates": rates}, PART_VERSION)
    tensors, about = read_tensors(part, PART_VERSION)
    return tensors["losses"], about["rates"]


def _part_name(asked: Mapping[str, Any], weights: Tensors) -> str:
    """A file name for what the losses of one optimizer depend on."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for tensor in weights.values():
        digest.update(tensor.numpy().tobytes())
    return f"{digest.hexdigest()[:16]}.safetensors"


def architecture(hidden: list[int]) -> str:
    """Units of the hidden layers as one word, such as "20-20"."""
    return "-".join(map(str, hidden))


def swept_baselines(table: pd.DataFrame, step: int, **setting: Any) -> dict[str, Baseline]:
    """The baselines as a sweep tuned them for one setting and number of steps, by the name that figures show.

    Raises:
        ValueError: if the sweep has no such setting, or several.
    """
    rows = table[table["step"] == step]
    for name, value in setting.items():
        # Where all networks have one layer, a file's reader takes their units for numbers.
        column = rows[name].astype(str) if isinstance(value, str) else rows[name]
        rows = rows[column == value]
    rates = rows.set_index("optimizer")["lr"]
    if rates.empty or rates.index.has_duplicates:
        many = "nothing" if rates.empty else "more than one setting"
        raise ValueError(f"the sweep has {many} at step {step} for {setting}.")
    return {label: baseline(name, float(rates[label])) for name, label in BASELINES.items() if label in rates}
