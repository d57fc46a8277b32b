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
from l2l_kit.evaluation import (
    EACH_STEP,
    ONE_RATE,
    Piece,
    Sweep,
    look,
    machine,
    read_sweep,
    record_tuning,
    tabulate,
    write_result,
)
from l2l_kit.parallel import default_jobs, workers
from l2l_kit.paths import DATA, HOME
from l2l_kit.tensors import pick_device
from l2l_kit.training import find_recipe, read_recipes


def build(
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
    for path in zoo.follow_recipes(members, jobs=default_jobs(), device=device):
        print(f"made {path.stem}")
    for problem, arguments in (tunings or {}).items():
        if not (HOME / "results" / problem / "tuning.csv").is_file():
            record_tuning(problems.make({"name": problem}), **arguments, device=device)
    for plan in plans:
        run_sweep(plan, jobs=default_jobs(), device=device)


def run_sweep(
    plan: Sweep,
    data: Path = HOME,
    *,
    only: Sequence[str] | None = None,
    pieces: Path | None = None,
    jobs: int = 1,
    device: str | torch.device | None = None,
    on_piece: Callable[[Piece], None] = lambda _: None,
) -> Path | None:
    """Run the pieces of a sweep that are not there yet, and record its table under both protocols.

    Args:
        plan: from `read_sweep`.
        data: where ``results/`` and ``cache/`` are.
        only: optimizers to run, without a table of them yet; None for all.
        pieces: folder of finished pieces; None for the one in the cache.
        jobs: pieces to run at once.
        device: None for the best there is.
        on_piece: called with each piece that is done.

    Returns:
        Path of the table, whose attributes say, by baseline, which learning rates were `tried` in each setting; None
        where there is none yet.

    Raises:
        ValueError: if a baseline diverges with every learning rate, or is the better the longer its steps are.
    """
    import pandas as pd

    labels = only or plan.labels
    learned = {label: zoo.load(optimizer) for label, optimizer in plan.learned.items() if label in labels}
    folder = pieces or data / "cache" / "runs" / "sweeps"
    with workers(jobs) as results:
        while True:
            ran = [
                {label: look(plan, setting, label, learned.get(label), folder) for label in labels}
                for setting in plan.settings
            ]
            missing = [piece for of_setting in ran for one in of_setting.values() for piece in one.missing]
            if not missing:
                break
            work = [(piece, folder, device) for piece in missing]
            for piece, _ in zip(missing, results(Piece.run, work), strict=True):
                on_piece(piece)
    if only:
        return None
    tables = [
        tabulate(plan, setting, protocol, found, folder)
        for setting, found in zip(plan.settings, ran, strict=True)
        for protocol in (ONE_RATE, EACH_STEP)[: len(plan.steps)]  # which are the same for one number of steps
    ]
    tried = {label: [found[label].tried for found in ran] for label in plan.baselines}
    about = {**asdict(plan), "tried": tried, "command": f"l2l sweep {plan.name}", **machine(pick_device(device))}
    return write_result(f"sweeps/{plan.name}", pd.concat(tables, ignore_index=True), about, data / "results")
