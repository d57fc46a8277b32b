"""Building all that lessons read. The full profile begins with an empty $L2L_HOME, so that nothing else is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from l2l_kit import problems
from l2l_kit.making.recipes import find_recipe, read_recipes
from l2l_kit.making.runs import record_tuning
from l2l_kit.making.sweeps import read_sweep, run_sweep
from l2l_kit.making.train import train_recipe
from l2l_kit.making.work import default_jobs, parallel_map
from l2l_kit.paths import DATA, HOME
from l2l_kit.tensors import Device


def build(
    recipes: Sequence[str] = (),
    tunings: Mapping[str, Mapping[str, Any]] | None = None,
    sweeps: Sequence[str] = (),
    *,
    device: Device = None,
) -> None:
    """Make pretrained optimizers and recorded results in $L2L_HOME, where the kit then reads them and no others.

    Several are made at once, $L2L_JOBS of them or one for each core. What exists already is not made again.

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
            "build: set L2L_HOME to a folder before l2l_kit is imported; what comes with the kit is not overwritten."
        )
    jobs, plans = default_jobs(), [read_sweep(name) for name in sweeps]
    members = {member.name: member for name in recipes for member in read_recipes(name)}
    compared = {name for plan in plans for name in plan.learned.values()}
    members |= {name: find_recipe(name) for name in sorted(compared - members.keys())}
    to_tune = [(problems.make({"name": name}), arguments) for name, arguments in (tunings or {}).items()]
    calls = [(recipe, HOME, device) for recipe in members.values()]
    parallel_map(train_recipe, calls, jobs, lambda path: print(f"made {path.stem}"))
    for problem, arguments in to_tune:
        record_tuning(problem, **arguments, jobs=jobs, device=device)
    for plan in plans:
        run_sweep(plan, jobs=jobs, device=device)
