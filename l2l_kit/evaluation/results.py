"""Recorded results: the small tables behind the figures, each beside a note of how it was made and from what."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from l2l_kit import problems
from l2l_kit.errors import check_names
from l2l_kit.extras import pd
from l2l_kit.optimizers import Baseline, baseline
from l2l_kit.paths import RESULTS
from l2l_kit.storage import write_atomically

ONE_RATE = "one rate"
"""The paper's protocol: a baseline has one learning rate, the one with the best loss at the last of the steps."""
EACH_STEP = "rate for each step"
"""A stricter one: at each number of steps a baseline has the learning rate that is best for that very number."""

AVERAGED = "one rate, averaged over the steps"
"""The paper's protocol, with a single ratio for the whole run: the geometric mean of those at the steps."""
RATIO = ["ratio", "ratio_low", "ratio_high"]  # columns of one optimizer's ratio to others, with its 95% interval


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What a result was computed on: device, threads, Python and torch."""
    if device is not None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {"device": name, "python": platform.python_version(), "torch": torch.__version__}


def provenance(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Which `data` the optimizees of a problem are made of, and from where, and whether those `stand_in` for others.

    Args:
        problem: its configuration.
    """
    if problem.get("name") not in ("mnist", "cifar", "neural_art"):
        return {"data": "", "stand_in": False}
    made = problems.make(problem)
    parts = [getattr(made, part) for part in ("images", "photographs", "feature_weights") if hasattr(made, part)]
    text = " and ".join(f"{part.title} from {part.origin}" for part in parts)
    return {"data": text, "stand_in": any(part.source == "embedded" for part in parts)}


def kept_episodes(card: Mapping[str, Any]) -> int:
    """How many episodes the weights have had that were kept, by a card with a history; all, where it does not say."""
    trained, settings = card["trained"], card["training"]
    kept: int = trained["episodes"]
    if "best_epoch" in trained and "episodes_per_epoch" in settings:
        kept = min(kept, trained["best_epoch"] * settings["episodes_per_epoch"])
    return kept


def training_of(card: Mapping[str, Any]) -> str:
    """How long a learned optimizer was trained, by its card (`zoo.card`): "5,000 episodes of 100 steps".

    Its weights are those with the best validation, which may be from before the end, or from before meta-training.
    """
    if "trained" not in card:
        return "an unknown time"
    episodes, horizon, kept = card["trained"]["episodes"], card["training"]["horizon"], kept_episodes(card)
    before = [f"starting from {card['start']}"] if "start" in card else []
    if "imitation" in card and not kept:
        return ", ".join(["no episode, by imitation alone", *before, f"which {episodes:,} episodes did not improve"])
    before += ["after an imitation"] if "imitation" in card else []
    further = [f"the best of {episodes:,} on validation"] if kept < episodes else []
    return ", ".join([f"{kept:,} episodes of {horizon} steps", *further, *before])


def write_result(name: str, table: pd.DataFrame, about: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Record a table as ``name.csv`` and how it was made as ``name.json``.

    Args:
        name: such as "quadratics/tuning".
        table: written without its index.
        about: problem, seed, number of tasks, command: what is needed to make it again. The provenance of the problem's
            data is added.
        directory: where results live.
    """
    about = about | provenance(about.get("problem", {}))
    path = directory / f"{name}.csv"
    write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())
    write_atomically(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
    return path


_COLUMNS = {"tuning": ("lr", "step", "mean", "median", "baseline"), "sweeps": ("step", "optimizer")}
"""What recorded tables of a kind, the one part of their names, have in each row."""


def with_seed(name: str, seed: int) -> str:
    """The name of a sweep's table that was drawn with another seed than the sweep's own."""
    return f"{name}-seed{seed}"


def read_result(name: str, directory: Path = RESULTS, *, seed: int | None = None) -> pd.DataFrame:
    """A recorded table; how it was made is in its `attrs`, and in words in its attribute `recorded`.

    Args:
        seed: of a sweep, the table that ``l2l sweep NAME --seed`` recorded with this seed. If there is none, or None
            is given, the one with the sweep's own.

    Raises:
        FileNotFoundError: if there is none of that name; the message lists those of its kind, or all.
        ValueError: if its files are damaged, or a tuning or a sweep lacks a column.
    """
    path = directory / f"{name}.csv"
    if seed is not None and (other := directory / f"{with_seed(name, seed)}.csv").is_file():
        path = other
    kind = next((kind for kind in _COLUMNS if kind in path.relative_to(directory).with_suffix("").parts), "")
    if not path.is_file():
        known = sorted(str(other.relative_to(directory).with_suffix("")) for other in directory.rglob("*.csv"))
        listed = ", ".join([other for other in known if kind in other] or known) or "none"
        raise FileNotFoundError(f"no recorded result {name!r} in {directory}. There is: {listed}.")
    try:
        table = pd.read_csv(path)
        if lost := [column for column in _COLUMNS.get(kind, ()) if column not in table or table[column].hasnans]:
            raise ValueError(f"{', '.join(lost)} missing")
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        made = f"by `{about['command']}` on {about['device']}" if {"command", "device"} <= about.keys() else ""
        table.attrs = about | {"recorded": f"From the recorded table {path.stem}, made {made}".removesuffix(", made ")}
    except ImportError:  # pandas is missing
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path}: it, or the .json file beside it, is damaged ({error}).") from error
    return table


def under(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """The rows of a recorded sweep under a protocol: `ONE_RATE`, `EACH_STEP`, `AVERAGED`, or None for its only one.

    Raises:
        UnknownNameError: if it has none under that protocol.
        ValueError: if it has several, and none is named.
    """
    known = table["protocol"].unique().tolist() if "protocol" in table else []
    if protocol is not None:
        check_names("protocol of this table", [protocol], known)
    if protocol is None and len(known) > 1:
        raise ValueError(f"the table has several protocols: choose one of {known} with under(table, protocol).")
    return table if protocol is None else table[table["protocol"] == protocol]


def ratio_columns(learned: str) -> list[str]:
    """Columns of the ratios of another learned optimizer than the first, which has those of `RATIO`."""
    return [f"{name} of {learned}" for name in RATIO]


def ratios_of(table: pd.DataFrame, learned: str | None = None) -> pd.DataFrame:
    """A table with the ratios of one of its learned optimizers, None for the first, and of no other.

    Raises:
        UnknownNameError: if its ratios are not in the table.
    """
    labels = list(table.attrs.get("learned", []))
    chosen = {label: columns for label in labels[1:] if (columns := ratio_columns(label))[0] in table}
    if learned is not None:
        check_names("optimizer with ratios in this table", [learned], [*labels[:1], *chosen])
    found = table
    if learned in chosen:
        found = table.assign(**{name: table[column] for name, column in zip(RATIO, chosen[learned], strict=True)})
        found.attrs = {**table.attrs, "learned": sorted(labels, key=lambda label: label != learned)}
    return found.drop(columns=[column for columns in chosen.values() for column in columns])


def swept_baselines(table: pd.DataFrame, step: int, **setting: Any) -> dict[str, Baseline]:
    """The baselines as a sweep tuned them for one setting and number of steps, by the name that figures show.

    A setting is given as it stands in the table: ``hidden="20-20"`` for two layers of 20 units.

    Raises:
        ValueError: if the sweep has no such setting, or several, or several protocols (see `under`).
    """
    rows = under(table[(table["step"] == step) & table["lr"].notna()])
    check_names("setting of this sweep", setting, map(str, table))
    for name, value in setting.items():
        # Where all networks have one layer, a file's reader takes their units for numbers.
        column = rows[name].astype(str) if isinstance(value, str) else rows[name]
        rows = rows[column == value]
    rates = rows.set_index("optimizer")["lr"]
    if rates.empty or rates.index.has_duplicates:
        many = "nothing" if rates.empty else "more than one setting"
        raise ValueError(f"the sweep has {many} at step {step} for {setting}.")
    rules = {label: table.attrs.get("baselines", {}).get(label, {"name": label}) for label in rates.index}
    return {
        label: baseline(
            lr=float(rates[label]), **{name: value for name, value in rule.items() if name != "learning_rates"}
        )
        for label, rule in rules.items()
    }
