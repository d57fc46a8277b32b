"""Recorded results: the small tables behind the figures, each beside a note of how it was made."""

from __future__ import annotations

import io
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2l_kit.extras import needs
from l2l_kit.paths import RESULTS
from l2l_kit.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What a result was computed on: device, threads, Python and torch."""
    if device is not None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {"device": name, "python": platform.python_version(), "torch": torch.__version__}


def write_result(name: str, table: pd.DataFrame, about: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Record a table as ``name.csv`` and how it was made as ``name.json``.

    Args:
        name: such as "quadratics/tuning".
        table: written without its index.
        about: problem, seed, number of tasks, command: what is needed to make it again.
        directory: where results live.
    """
    text = io.StringIO()
    table.to_csv(text, index=False, float_format="%.6g")
    path = directory / f"{name}.csv"
    write_atomically(path, text.getvalue().encode())
    write_atomically(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
    return path


def read_result(name: str, directory: Path = RESULTS) -> pd.DataFrame:
    """A recorded table; how it was made is in its `attrs`.

    Raises:
        FileNotFoundError: if there is none of that name; the message lists those that there are.
        ValueError: if its files are damaged.
    """
    with needs("lessons"):
        import pandas as pd

    path = directory / f"{name}.csv"
    if not path.is_file():
        known = sorted(str(other.relative_to(directory).with_suffix("")) for other in directory.rglob("*.csv"))
        raise FileNotFoundError(f"no recorded result {name!r} in {directory}. There is: {', '.join(known) or 'none'}.")
    try:
        table = pd.read_csv(path)
        table.attrs = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"{path}: it, or the .json file beside it, is damaged ({error}).") from error
    return table
