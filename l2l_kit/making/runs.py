"""Runs: what sweeps and tunings consist of, and what takes their time. The losses of each are kept in a small file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2l_kit.evaluation import LBFGS, Tuning, lbfgs, learning_rates, losses_at, read_result, write_result
from l2l_kit.evaluation.tuning import ascending
from l2l_kit.extras import pd
from l2l_kit.making.work import check_same, digest, kept, parallel_map
from l2l_kit.optimizers import BASELINES, Baseline, GroupedBaselines, UpdateRule, baseline
from l2l_kit.paths import HOME
from l2l_kit.problems import Problem, TaskBatch
from l2l_kit.problems.base import draw as draw_tasks
from l2l_kit.randomness import generator
from l2l_kit.tensors import Device, Tensors, pick_device

Runnable = UpdateRule | Baseline | GroupedBaselines
FOLDER = Path("cache", "runs", "sweeps")  # where the files are, in the folder of all data


@dataclass(frozen=True)
class Run:
    """One optimizer, run once on one draw of optimizees.

    Attributes:
        folder: where its file is.
        optimizer: a learned one, or a baseline with its learning rate, or one for each kind of parameter; None for
            L-BFGS.
        draw: "tuning" or "test".
        num_tasks, steps, on_test_set, seed: as in `Sweep`.
        words: printed when the run is done; nothing if empty.
    """

    folder: Path
    problem: Problem
    optimizer: Runnable | None
    draw: str
    num_tasks: int
    steps: list[int]
    on_test_set: bool = False
    seed: int = 0
    device: Device = None
    words: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """All that the losses depend on, but for a learned optimizer's weights."""
        return {
            "problem": self.problem.config(),
            "optimizer": LBFGS if self.optimizer is None else self.optimizer.config(),
            **{name: getattr(self, name) for name in ("draw", "num_tasks", "steps", "on_test_set", "seed")},
        }

    def losses(self) -> Tensor:
        """The losses after each of the steps, shape ``(num_tasks, len(steps))``; the optimizer is run if need be."""
        return self._kept()[0]["losses"]

    def machine(self) -> dict[str, Any]:
        """What the losses were computed on (see `kept`)."""
        return self._kept()[1]

    def _kept(self) -> tuple[Tensors, dict[str, Any]]:
        found = kept(self.folder, self.about, self._run, weights=self._weights(), device=self.device)
        shutil.rmtree(self._parts_folder(), ignore_errors=True)
        return found

    def _weights(self) -> list[Tensor]:
        return list(self.optimizer.state_dict().values()) if isinstance(self.optimizer, UpdateRule) else []

    def _parts_folder(self) -> Path:
        """Where the losses of the first tasks are while the others are still to come."""
        return self.folder / f"{digest(self.about, self._weights())}-parts"

    def _run(self) -> Tensors:
        device = pick_device(self.device)
        if isinstance(self.optimizer, UpdateRule):
            self.optimizer.to(device)
        parts = draw_tasks(self.problem, self.num_tasks, generator(self.seed, self.draw), device).parts()
        if len(parts) == 1:
            losses = self._run_part(parts[0])
        else:  # each of them takes long enough to be kept
            found = []
            for number, part in enumerate(parts, start=1):
                make = partial(self._run_part, part)
                found.append(kept(self._parts_folder(), {"part": number}, make, device=self.device)[0]["losses"])
                if self.words and number * 10 // len(parts) > (number - 1) * 10 // len(parts):
                    print(f"{self.words}: part {number} of {len(parts)}", flush=True)
            losses = {"losses": torch.cat(found)}
        if self.words:
            print(self.words, flush=True)
        return losses

    def _run_part(self, tasks: TaskBatch) -> Tensors:
        if self.optimizer is not None:
            return {"losses": losses_at(self.optimizer, tasks, self.steps, on_test_set=self.on_test_set)}
        number = len(next(iter(tasks.initial_params.values())))
        runs = [lbfgs(tasks.select(index), self.steps[-1]) for index in range(number)]
        return {"losses": torch.stack([torch.cat([point.losses for point in run])[self.steps] for run in runs])}


def machines(runs: Iterable[Run]) -> dict[str, str]:
    """On which machines runs were made: the different devices, and versions of Python and torch, as `machine` says."""
    made_on = [run.machine() for run in {id(run): run for run in runs}.values()]  # a run may be there for many steps
    names = ("device", "python", "torch")
    return {name: "; ".join(sorted({each.get(name, "not recorded") for each in made_on})) for name in names}


def record_tuning(
    problem: Problem,
    data: Path = HOME,
    *,
    steps: Sequence[int] = (100,),
    num_tasks: int = 1000,
    rates: int = 8,
    seed: int = 0,
    jobs: int = 1,
    device: Device = None,
) -> tuple[list[Tuning], Path]:
    """Tune every baseline for a problem as `tune` does, and record the table as `tuned_baselines` reads it.

    Args:
        problem: it is recorded under its name.
        data: where ``results/`` and ``cache/`` are.
        steps, num_tasks, seed, device: as in `tune`.
        rates: learning rates per decade.
        jobs: runs at once.

    Returns:
        The tunings, and where they are recorded.

    Raises:
        ValueError: as `tune`, and if a tuning with other settings is recorded there.
    """
    noted, grid = ascending(steps, num_tasks), learning_rates(rates)
    about = {"problem": problem.config(), "steps": noted, "num_tasks": num_tasks, "rates": rates, "seed": int(seed)}
    place = data / "results" / problem.name / "tuning.csv"
    if place.is_file():
        recorded = read_result(f"{problem.name}/tuning", data / "results")
        recorded.attrs["steps"] = sorted(recorded.attrs["steps"])  # older files have the order in which they were given
        recorded.attrs.setdefault("rates", (recorded["lr"].nunique() - 1) // 5)  # older files do not say
        check_same(place, recorded.attrs, about, "Choose another folder with --data, or delete the file.")
    rules = [baseline(name, lr) for name in BASELINES for lr in grid]
    runs = [Run(data / FOLDER, problem, rule, "tuning", num_tasks, noted, False, seed, device) for rule in rules]
    losses = iter(parallel_map(Run.losses, [(run,) for run in runs], jobs, shared=True))
    tunings = [Tuning.of(name, noted, {lr: next(losses) for lr in grid}) for name in BASELINES]
    table = pd.concat([tuning.table for tuning in tunings], ignore_index=True)
    about |= machines(runs)
    return tunings, write_result(f"{problem.name}/tuning", table, about, data / "results")
