"""Sweeps: learned against freshly tuned optimizers over a grid of problems, such as the architectures of figure 6."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from l2l_kit import problems
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation.compare import Curves, matched, measured
from l2l_kit.evaluation.lbfgs import LBFGS, lbfgs
from l2l_kit.evaluation.tuning import tune
from l2l_kit.optimizers import BASELINES, Baseline, LearnedRule, Optimizer, baseline
from l2l_kit.paths import SWEEPS, toml_file
from l2l_kit.problems import Problem
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.storage import read_tensors, write_tensors
from l2l_kit.tensors import Tensors, pick_device

if TYPE_CHECKING:
    import pandas as pd

PART_VERSION = 1
MOST_SETTINGS = 10_000
"""In a grid: more would not be run in a lifetime."""


@dataclass(frozen=True)
class Sweep:
    """What a file of data/sweeps says.

    Attributes:
        name: of the file.
        problem: configuration that all settings share.
        grid: lists of values of the fields that vary; their product is swept.
        learned: pretrained optimizers by the label that figures show; ratios are those of the first.
        steps: numbers of updates after which the losses are noted, in ascending order.
        tasks: fresh optimizees per setting.
        tuning_tasks: optimizees to tune the baselines on.
        learning_rates: what is tried for each baseline.
        one_rate: whether a baseline has one learning rate, which is best for the last of the steps, as in the paper,
            instead of the best one for each of them.
        tuned_on: fields of the problem that are others in tuning, such as the part of the pictures.
        lbfgs: whether L-BFGS is run as well, which is not tuned: the lowest loss after as many evaluations.
        held_out: whether the losses are those on the test images, in tuning as in comparison (which is to the
            advantage of the baselines, the only ones that are tuned).
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
    one_rate: bool = False
    tuned_on: Mapping[str, Any] = field(default_factory=dict)
    lbfgs: bool = False
    held_out: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learned or not self.grid or not self.learning_rates:
            raise ValueError("learned, grid and learning_rates must not be empty")
        if taken := set(self.learned) & {*BASELINES.values(), LBFGS}:
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
        if self.steps != sorted(set(self.steps)):
            raise ValueError(f"steps must ascend, got {self.steps!r}")
        for name, rates in self.learning_rates.items():
            if name not in BASELINES:
                raise UnknownNameError("baseline", name, BASELINES)
            for rate in rates:
                baseline(name, rate)

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The grid's combinations, each as the fields that it sets."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    @property
    def labels(self) -> list[str]:
        """All optimizers, as figures show them: the learned ones, the baselines, L-BFGS."""
        return [*self.learned, *(BASELINES[name] for name in self.learning_rates), *[LBFGS] * self.lbfgs]

    def make_problem(self, setting: Mapping[str, Any]) -> Problem:
        """The problem of one setting."""
        return problems.make({**self.problem, **setting})

    def make_tuning_problem(self, setting: Mapping[str, Any]) -> Problem:
        """What the baselines are tuned on for it."""
        return problems.make({**self.problem, **setting, **self.tuned_on})


def read_sweep(name_or_path: str | Path) -> Sweep:
    """A sweep of data/sweeps by name, or from a path to a TOML file.

    Raises:
        UnknownNameError: if there is no such sweep; the message offers the nearest one.
        ValueError: if the file is no valid sweep; the message says which part is wrong.
    """
    path = toml_file("sweep", name_or_path, SWEEPS)
    try:
        sweep = Sweep(path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
        if (settings := math.prod(map(len, sweep.grid.values()))) > MOST_SETTINGS:
            raise ValueError(f"its grid has {settings} settings; at most {MOST_SETTINGS} are possible")
        for setting in sweep.settings:
            sweep.make_problem(setting)
            sweep.make_tuning_problem(setting)
        return sweep
    except Exception as error:  # a file can be wrong in any way
        raise ValueError(f"{path}: not a valid sweep: {error}") from error


class Part(NamedTuple):
    """What one optimizer did in one setting.

    Attributes:
        losses: at the sweep's steps, shape ``(tasks, steps)``.
        rates: the learning rates that were tuned for those steps; none where there is nothing to tune.
    """

    losses: Tensor
    rates: list[float]


def run_part(
    sweep: Sweep,
    setting: Mapping[str, Any],
    label: str,
    learned: Mapping[str, LearnedRule],
    parts: Path,
    device: str | torch.device | None = None,
) -> Part:
    """Run one optimizer on the fresh optimizees of a setting; a baseline is tuned for it first.

    Args:
        sweep: what the setting belongs to.
        setting: one of `Sweep.settings`.
        label: one of `Sweep.labels`.
        learned: the optimizers that `Sweep.learned` names.
        parts: folder for what was run, so that an interrupted sweep goes on where it was and a newly trained optimizer
            does not make the baselines run again.
        device: None for the best there is.
    """
    problem = sweep.make_problem(setting)
    asked = {"problem": problem.config(), "steps": sweep.steps, "tasks": sweep.tasks, "seed": sweep.seed}
    if sweep.held_out:
        asked["held_out"] = True
    if label in learned:
        optimizer = learned[label]
        weights = {name: tensor.cpu() for name, tensor in optimizer.state_dict().items()}
        path = parts / _part_name({**asked, "optimizer": optimizer.config()}, weights)
        if not path.exists():
            _write(path, Part(_losses(optimizer, sweep, problem, sweep.steps, device), []))
    elif label == LBFGS:
        path = parts / _part_name({**asked, "optimizer": LBFGS}, {})
        if not path.exists():
            _write(path, Part(_losses_of_lbfgs(sweep, problem, device), []))
    else:
        name = next(name for name in sweep.learning_rates if BASELINES[name] == label)
        grid = sweep.learning_rates[name]
        asked |= {"baseline": name, "grid": grid, "tuning_tasks": sweep.tuning_tasks}
        if sweep.one_rate:
            asked["one_rate"] = True
        if sweep.tuned_on:
            asked["tuned_on"] = dict(sweep.tuned_on)
        path = parts / _part_name(asked, {})
        if not path.exists():
            _write(path, _tune_and_run(name, sweep, setting, device))
    tensors, about = read_tensors(path, PART_VERSION)
    losses, rates = tensors.get("losses", torch.empty(0)), about.get("rates")
    if losses.shape != (sweep.tasks, len(sweep.steps)) or not isinstance(rates, list):
        raise WeightsFileError(f"{path}: not what this part of a sweep writes. Delete it, and it is run again.")
    return Part(losses, rates)


def run_setting(
    sweep: Sweep,
    setting: Mapping[str, Any],
    learned: Mapping[str, LearnedRule],
    parts: Path,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Tune every baseline for one setting, then run all optimizers on the same fresh optimizees.

    Args:
        sweep, setting, learned, parts, device: as in `run_part`, which is called for each optimizer.

    Returns:
        A row for each number of steps and optimizer: the setting's fields, `step`, `optimizer`, `lr` (of baselines
        only), mean loss with its 95% interval `low` to `high`, and `ratio` with `ratio_low` to `ratio_high`: the
        first learned optimizer's mean over this one's, paired.
    """
    import pandas as pd

    ran = {label: run_part(sweep, setting, label, learned, parts, device) for label in sweep.labels}
    problem = sweep.make_problem(setting).config()
    first = next(iter(learned))
    rows = []
    for column, step in enumerate(sweep.steps):
        curves = Curves({label: part.losses[:, [column]] for label, part in ran.items()}, problem, sweep.seed)
        for label, part in ran.items():
            mean, low, high = (value.item() for value in curves.interval(label))
            ratio, ratio_low, ratio_high = (value.item() for value in curves.interval(first, over=label))
            row = {key: as_word(value) if isinstance(value, list) else value for key, value in setting.items()}
            row |= {"step": step, "optimizer": label, "lr": part.rates[column] if part.rates else None}
            row |= {"mean": mean, "low": low, "high": high}
            row |= {"ratio": ratio, "ratio_low": ratio_low, "ratio_high": ratio_high}
            rows.append(row)
    return pd.DataFrame(rows)


def _write(path: Path, part: Part) -> None:
    write_tensors(path, {"losses": part.losses}, {"rates": part.rates}, PART_VERSION)


def _tune_and_run(name: str, sweep: Sweep, setting: Mapping[str, Any], device: str | torch.device | None) -> Part:
    """Each of the losses is from a run with the learning rate that is tuned for it."""
    aims = {step: sweep.steps[-1] if sweep.one_rate else step for step in sweep.steps}
    tuning = tune(
        name,
        sweep.make_tuning_problem(setting),
        steps=list(aims.values()),
        tasks=sweep.tuning_tasks,
        learning_rates=sweep.learning_rates[name],
        held_out=sweep.held_out,
        seed=sweep.seed,
        device=device,
    )
    best = {step: tuning.best(step=aim) for step, aim in aims.items()}
    problem = sweep.make_problem(setting)
    columns: dict[int, Tensor] = {}
    for tuned in dict.fromkeys(best.values()):
        at = [step for step in sweep.steps if best[step] == tuned]
        columns |= zip(at, _losses(tuned, sweep, problem, at, device).unbind(dim=1), strict=True)
    return Part(torch.stack([columns[step] for step in sweep.steps], dim=1), [tuned.lr for tuned in best.values()])


def _losses(
    optimizer: Optimizer[Any], sweep: Sweep, problem: Problem, at: list[int], device: str | torch.device | None
) -> Tensor:
    ((_, rule, optimizees),) = matched({"": optimizer}, problem, sweep.tasks, sweep.seed, device)
    return measured(rule, optimizees, at, held_out=sweep.held_out)


def _losses_of_lbfgs(sweep: Sweep, problem: Problem, device: str | torch.device | None) -> Tensor:
    """On the same optimizees as all the others."""
    optimizees = draw(problem, sweep.tasks, generator(sweep.seed, "test"), pick_device(device))
    curves = []
    for index in range(sweep.tasks):
        losses = [loss for _, loss in lbfgs(optimizees.alone(index), sweep.steps[-1])]
        curves.append(torch.cat(losses)[sweep.steps].cpu())
    return torch.stack(curves)


def _part_name(asked: Mapping[str, Any], weights: Tensors) -> str:
    """A file name for what the losses of one optimizer depend on."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for tensor in weights.values():
        digest.update(tensor.numpy().tobytes())
    return f"{digest.hexdigest()[:16]}.safetensors"


def as_word(numbers: list[int]) -> str:
    """Units of hidden layers, or labels, as tables have them: "20-20"."""
    return "-".join(map(str, numbers))


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
