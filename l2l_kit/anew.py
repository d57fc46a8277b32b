"""Making what is recorded: sweeps, and all that lessons read.

The full profile begins with an empty $L2L_HOME, so that nothing is read that was not made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from l2l_kit import problems, zoo
from l2l_kit.evaluation import Sweep, machine, read_sweep, record_tuning, run_part, run_setting, write_result
from l2l_kit.parallel import in_order, share
from l2l_kit.paths import DATA, HOME
from l2l_kit.tensors import pick_device
from l2l_kit.training import find_recipe, read_recipes


def remake(
    recipes: Sequence[str] = (),
    tunings: Mapping[str, Mapping[str, Any]] | None = None,
    sweeps: Sequence[str] = (),
    *,
    device: str | torch.device | None = None,
) -> None:
    """Make pretrained optimizers and recorded results in $L2L_HOME, where the kit then reads them and no others.

    Several are made at once, $L2L_JOBS of them or one for each core. What is there already is not made again.

    Args:
        recipes: of data/recipes.
        tunings: problems for which the baselines are tuned, by name, with arguments of `record_tuning`.
        sweeps: of data/sweeps; the optimizers that they compare are made first.
        device: None for the best there is.

    Raises:
        ValueError: if $L2L_HOME is not set: what comes with the kit is not overwritten.
        UnknownNameError: for an unknown recipe, problem or sweep.
    """
    if HOME == DATA:
        raise ValueError(
            "remake: set L2L_HOME to a folder before l2l_kit is imported; what comes with the kit is not overwritten."
        )
    plans = [read_sweep(name) for name in sweeps]
    members = [member for name in recipes for member in read_recipes(name)]
    there = {member.name for member in members}
    compared = {name for plan in plans for name in plan.learned.values()} - there
    members += [find_recipe(name) for name in sorted(compared)]
    for path in zoo.follow_recipes(members, jobs=share(), device=device):
        print(f"made {path.stem}")
    for problem, arguments in (tunings or {}).items():
        if not (HOME / "results" / problem / "tuning.csv").is_file():
            record_tuning(problems.make({"name": problem}), **arguments, device=device)
    for plan in plans:
        run_sweep(plan, jobs=share(), device=device)


def run_sweep(
    plan: Sweep,
    data: Path = HOME,
    *,
    only: Sequence[str] | None = None,
    jobs: int = 1,
    device: str | torch.device | None = None,
    on_part: Callable[[dict[str, Any], str], None] = lambda *_: None,
) -> Path | None:
    """Run a sweep and record its table. Goes on where it was interrupted.

    Args:
        plan: from `read_sweep`.
        data: where ``results/`` and ``cache/`` are.
        only: optimizers to run, without a table of them yet; None for all.
        jobs: optimizers to run at once.
        device: None for the best there is.
        on_part: called with setting and optimizer for each that is done.

    Returns:
        Path of the table; None where there is none yet.
    """
    import pandas as pd

    labels = only or plan.labels
    learned = {label: zoo.load(optimizer) for label, optimizer in plan.learned.items() if label in labels}
    parts = data / "cache" / "runs" / "sweeps"
    work = [(plan, setting, label, learned, parts, device) for setting in plan.settings for label in labels]
    for (_, setting, label, *_), _ in zip(work, in_order(run_part, work, jobs), strict=True):
        on_part(setting, label)
    if only:
        return None
    tables = [run_setting(plan, setting, learned, parts, device) for setting in plan.settings]
    about = {**asdict(plan), "command": f"l2l sweep {plan.name}", **machine(pick_device(device))}
    return write_result(f"sweeps/{plan.name}", pd.concat(tables, ignore_index=True), about, data / "results")
