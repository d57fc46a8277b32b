"""The checks of the lessons' exercises accept the solutions that the lessons give, and nothing else."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
ASKED = re.compile(r"^(\w+) = None .*replace None$", re.MULTILINE)
BEFORE = {
    "01_from_scratch": "{functions}\nphi = new_phi()",
    "02_quadratics": "lstm = l2l.load('quadratics')",
    "03_mnist": "lstm = l2l.load('mnist')",
    "07_inside": "",
    "08_information_sharing": "rules = {'NTM-BFGS': l2l.load('quadratics-ntm')}",
    "10_after_2016": "",
}
"""What the exercises use of their lessons, besides parameters and imports; `{functions}` are those of the lesson."""


def exercises() -> Iterator[Any]:
    """Every cell that checks an answer, with the solution that is folded below it."""
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        for number, source in enumerate(sources):
            if cells[number]["cell_type"] == "code" and ASKED.search(source):
                (solution, *_) = re.findall(r"```python\n(.*?)```", sources[number + 1], re.DOTALL)
                yield pytest.param(path.stem, sources, source, solution, id=f"{path.stem}-{number}")


def own_functions(lesson: str) -> str:
    cells = json.loads(next(path for path in NOTEBOOKS if path.stem == lesson).read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return "\n".join(ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))


def wrong_answers(right: Any) -> list[Any]:
    """Close to the right answer, and not it."""
    if not callable(right):
        right = torch.as_tensor(right)
        return [0, torch.zeros_like(right), right + 0.01, -right, right.flip(-1)]

    def scaled(factor: float) -> Any:
        def answer(*args: Any, **options: Any) -> Any:
            result = right(*args, **options)
            return (factor * result[0], *result[1:]) if isinstance(result, tuple) else factor * result

        return answer

    return [scaled(factor) for factor in (0.0, -1.0, 0.5, 2.0, 1.01)]


@matplotlib.rc_context()
@pytest.mark.parametrize(("lesson", "sources", "check", "solution"), list(exercises()))
def test_the_right_answer_is_right_and_others_are_not(
    lesson: str, sources: list[str], check: str, solution: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for code in (*sources[1:3], BEFORE[lesson].replace("{functions}", own_functions(lesson)), check):
        exec(code, names)
    assert capsys.readouterr().out == ""  # nothing is said before there is an answer
    exec(solution, names)
    ((answer,), after) = ASKED.findall(check), ASKED.sub("", check)
    right = names[answer]

    def said(given: Any) -> str:
        names[answer] = given
        exec(after, names)
        return capsys.readouterr().out.strip()

    capsys.readouterr()  # what the solution prints
    assert said(right) == "right"
    if not callable(right):
        assert said(torch.as_tensor(right).tolist()) == "right"
    for wrong in wrong_answers(right):
        assert said(wrong) == "not yet"


def test_every_lesson_with_a_check_is_known() -> None:
    assert {exercise.values[0] for exercise in exercises()} == set(BEFORE)
