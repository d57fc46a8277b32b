"""The checks of the lessons' exercises accept the solutions that the lessons give, and nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
ASKED = re.compile(r"^(\w+) = None .*replace None$", re.MULTILINE)
BEFORE = {
    "01_quadratics": "lstm = l2l.load('quadratics')",
    "02_mnist": "lstm = l2l.load('mnist')",
    "06_inside": "",
    "07_information_sharing": "rules = {'NTM-BFGS': l2l.load('quadratics-ntm')}",
}
"""What the exercises use of their lessons, besides the parameters and the imports."""


def exercises() -> Iterator[Any]:
    """Every cell that checks an answer, with the solution that is folded below it."""
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        for number, source in enumerate(sources):
            if cells[number]["cell_type"] == "code" and ASKED.search(source):
                (solution, *_) = re.findall(r"```python\n(.*?)```", sources[number + 1], re.DOTALL)
                yield pytest.param(path.stem, sources, source, solution, id=f"{path.stem}-{number}")


@pytest.mark.parametrize(("lesson", "sources", "check", "solution"), list(exercises()))
def test_the_right_answer_is_right_and_others_are_not(
    lesson: str, sources: list[str], check: str, solution: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for code in (*sources[1:3], BEFORE[lesson], check):
        exec(code, names)
    assert capsys.readouterr().out == ""  # nothing is said before there is an answer
    exec(solution, names)
    ((answer,), after) = ASKED.findall(check), ASKED.sub("", check)
    right = torch.as_tensor(names[answer])

    def said(given: Any) -> str:
        names[answer] = given
        exec(after, names)
        return capsys.readouterr().out.strip()

    capsys.readouterr()  # what the solution prints
    assert said(right) == "right"
    assert said(right.tolist()) == "right"
    for wrong in (0, torch.zeros_like(right), right + 0.01, -right, right.flip(-1)):
        assert said(wrong) == "not yet"


def test_every_lesson_with_a_check_is_known() -> None:
    assert {exercise.values[0] for exercise in exercises()} == set(BEFORE)
