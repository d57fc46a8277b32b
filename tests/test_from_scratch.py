"""The lesson from scratch: short, on its own feet, and with a learned optimizer that beats a well-tuned Adam."""

import ast
import itertools
import json
import operator
import re
import sys
from pathlib import Path

import pytest
import torch

import l2l_kit

(LESSON,) = (Path(__file__).resolve().parents[1] / "notebooks").glob("*_from_scratch.ipynb")
ALL_CELLS = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
CELLS = [cell for cell in ALL_CELLS if cell["cell_type"] == "code"]
CODE = ["".join(cell["source"]) for cell in CELLS]
NUMBER = r"(-?\d+\.\d+(?:e[+-]?\d+)?)"


def printed(pattern: str) -> list[float]:
    """The numbers that the one match of a pattern in the committed output has."""
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    text = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    (found,) = re.findall(pattern.replace("NUMBER", NUMBER), text)
    return [float(number) for number in ((found,) if isinstance(found, str) else found)]


def test_all_of_its_code_is_at_most_150_lines():
    """Counted are the lines of all code cells, exercises and drawing included, but for empty lines and comments."""
    lines = [line.strip() for cell in CODE for line in cell.splitlines()]
    assert sum(bool(line) and not line.startswith("#") for line in lines) <= 150


def test_no_cell_is_longer_than_a_screen():
    assert max(len(cell.splitlines()) for cell in CODE) <= 25


def test_it_needs_no_line_of_the_package():
    nodes = [node for cell in CODE for node in ast.walk(ast.parse(cell))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= {"torch", "numpy", "matplotlib"} | sys.stdlib_module_names


@pytest.mark.parametrize("rule", ["gradient descent", "momentum", "Adam"])
def test_the_best_learning_rate_is_inside_a_fine_grid(rule):
    (grid,) = re.findall(r"rates = .*(10 \*\* torch\.arange\(.+?\))", "\n".join(CODE))
    rates = eval(grid, {"torch": torch}).tolist()
    (best,) = printed(f"{rule}: best learning rate NUMBER")
    assert all(later / earlier < 10**0.5 for earlier, later in itertools.pairwise(rates))
    assert round(rates[1], 3) <= best <= round(rates[-2], 3)


def test_on_functions_that_it_has_not_seen_it_beats_adam():
    gain, interval = printed("lower than Adam's mean by NUMBER ± NUMBER")
    assert gain > interval
    adam, lstm = printed("mean f at step 100: {.*'Adam': NUMBER, 'LSTM': NUMBER}")
    assert lstm < adam


def test_it_overtakes_adam_within_a_minute():
    assert printed("below tuned Adam after NUMBER seconds")[0] < 60


def test_replay_gives_the_same_meta_gradient():
    assert printed("relative difference NUMBER")[0] < 1e-12


def test_its_table_of_the_package_names_what_is_there():
    table = "".join(ALL_CELLS[-1]["source"])
    names = re.findall(r"`l2l(?:_kit)?\.([\w.]+)", table)
    assert len(names) > 5
    for name in names:
        operator.attrgetter(name)(l2l_kit)
