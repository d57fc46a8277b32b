"""Sweeps: learned against freshly tuned optimizers over a grid of problems, such as the architectures of figure 6."""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2l_kit import problems
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation.compare import Curves, compare
from l2l_kit.evaluation.tuning import tune
from l2l_kit.optimizers import BASELINES, Baseline, LSTMOptimizer, baseline
from l2l_kit.paths import SWEEPS, toml_file
from l2l_kit.problems import Problem
from l2l_kit.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd


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
    learned: Mapping[str, LSTMOptimizer],
    parts: Path,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Tune every baseline for one setting, then run all optimizers on the same fresh optimizees.

    Args:
        sweep: what the setting belongs to.
        setting: one of `Sweep.settings`.
        learned: the optimizers that `Sweep.learned` names.
        parts: folder for finished settings, so that an interrupted sweep goes on where it was.
        device: None for the best there is.

    Returns:
        A row for each number of steps and optimizer: the setting's fields, `step`, `optimizer`, `lr` (none for a
        learned one), mean loss with its 95% interval `low` to `high`, and `ratio` with `ratio_low` to `ratio_high`: the
        first learned optimizer's mean over this one's, paired.
    """
    import pandas as pd

    part = parts / f"{_fingerprint(sweep, setting, learned)}.csv"
    if part.exists():
        return pd.read_csv(part, dtype={name: str for name in setting if isinstance(setting[name], list)})
    problem = sweep.make_problem(setting)
    longest = max(sweep.steps)
    mine = compare(learned, problem, steps=longest, tasks=sweep.tasks, seed=sweep.seed, device=device)
    tunings = {
        BASELINES[name]: tune(
            name,
            problem,
            steps=sweep.steps,
            tasks=sweep.tuning_tasks,
            learning_rates=rates,
            seed=sweep.seed,
            device=device,
        )
        for name, rates in sweep.learning_rates.items()
    }
    rows = []
    for step in sweep.steps:
        tuned = {label: tuning.best(step=step) for label, tuning in tunings.items()}
        others = compare(tuned, problem, steps=step, tasks=sweep.tasks, seed=sweep.seed, device=device)
        at_step = {name: losses[:, [step]] for name, losses in (mine.losses | others.losses).items()}
        curves = Curves(at_step, mine.problem, sweep.seed)
        first = next(iter(learned))
        for name in at_step:
            mean, low, high = (value.item() for value in curves.interval(name))
            ratio, ratio_low, ratio_high = (value.item() for value in curves.interval(first, over=name))
            row = {key: architecture(value) if isinstance(value, list) else value for key, value in setting.items()}
            row |= {"step": step, "optimizer": name, "lr": tuned[name].lr if name in tuned else None}
            row |= {"mean": mean, "low": low, "high": high}
            row |= {"ratio": ratio, "ratio_low": ratio_low, "ratio_high": ratio_high}
            rows.append(row)
    table = pd.DataFrame(rows)
    write_atomically(part, table.to_csv(index=False).encode())
    return table


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


def _fingerprint(sweep: Sweep, setting: Mapping[str, Any], learned: Mapping[str, LSTMOptimizer]) -> str:
    """A name for what a setting's rows depend on: its problem, how it is measured, and the learned weights."""
    asked = {**asdict(sweep), "grid": None, "problem": sweep.make_problem(setting).config(), "setting": setting}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for name, optimizer in learned.items():
        digest.update(json.dumps([name, optimizer.config()], sort_keys=True).encode())
        for tensor in optimizer.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
