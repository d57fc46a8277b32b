"""What an explorer shows for chosen values of its controls, as data for a page that has no kernel."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from l2l_kit.widgets.explorer import Control, Explorer, Values


def record(explorer: Explorer) -> bytes:
    """All views of an explorer for the values that it names in `recorded`, as JSON in gzip.

    The JSON has the `values` of each control, where they `start`, the `views` of all combinations (the last control
    changes fastest), and the `pool`: each list or object that occurs is there once, and elsewhere as ``{"$": place}``.
    """
    grid = {name: list(values) for name, values in explorer.recorded.items()}
    start = {name: explorer.values.get(name, values[-1]) for name, values in grid.items()}  # a player shows the end
    explorer.compares, views, pool = False, [], dict[str, int]()
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        explorer.replay(chosen)
        layout = (explorer.shown["figure"] or {"layout": {}})["layout"]
        if layout.pop("meta", None):  # it can be dragged, which its title says, but not in a recording
            del layout["title"]
        view = {"values": {**explorer.values, **chosen}, "groups": _groups(explorer, explorer.values)}
        views.append(_pooled({**view, "shown": explorer.shown, "state": explorer.state}, pool)["$"])
    about = {"values": grid, "start": start, "views": views}
    return gzip.compress(f'{json.dumps(about)[:-1]}, "pool": [{",".join(pool)}]}}'.encode(), mtime=0)


def _groups(explorer: Explorer, values: Values) -> list[dict[str, Any]]:
    """The controls that have recorded values, as a page gets them; others with values, such as a step, are players."""
    left, groups = dict(explorer.recorded), list[dict[str, Any]]()
    for title, rows in explorer.controls(values).items():
        each = (control for row in rows for control in (row if isinstance(row, tuple) else (row,)))
        kept = [_narrowed(control, left.pop(control.name)) for control in each if control.name in left]
        if kept:
            groups.append({"title": title, "rows": [[vars(control)] for control in kept]})
    players = [Control(name, "player", name.capitalize(), list(values)) for name, values in left.items()]
    return groups + [{"title": "Recorded", "rows": [[vars(control)] for control in players]}] * bool(players)


def _narrowed(control: Control, recorded: Any) -> Control:
    """A control that offers only what was recorded."""
    values = [value for value in recorded if control.kind == "number" or value in control.values]
    if control.kind == "number":
        return replace(control, values=(min(values), max(values)))
    if control.kind == "check":
        return replace(control, values=values)
    helps = control.help
    if not isinstance(helps, str):
        helps = [text for text, value in zip(helps, control.values, strict=False) if value in values]
    return replace(control, values=values, help=helps, marks=[mark for mark in control.marks if mark in values])


def _pooled(node: Any, pool: dict[str, int]) -> Any:
    """JSON for any part of a view; five digits are more than a figure shows."""
    if isinstance(node, np.generic | np.ndarray):
        node = node.tolist()
    if isinstance(node, float):
        return float(f"{node:.5g}") if math.isfinite(node) else None
    if isinstance(node, bytes):
        node = {"png": base64.b64encode(node).decode()}
    if isinstance(node, Mapping):
        node = {name: _pooled(value, pool) for name, value in node.items()}
    elif isinstance(node, list | tuple | range):
        node = [_pooled(value, pool) for value in node]
    else:
        return node
    return {"$": pool.setdefault(json.dumps(node), len(pool))}
