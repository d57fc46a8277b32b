"""The exercises of the lessons: enough of them, in one form, with checks that tell right from wrong and leak nothing.

An exercise is a markdown cell (title, difficulty, minutes, hints), a code cell (a stub and its check), and a markdown
cell with the solution.
"""

import ast
import builtins
import json
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
STUB = re.compile(r"^(\w+) = None  # .*: replace None$", re.MULTILINE)
TITLE = re.compile(r"^\*\*Exercise (\d+) \((?:easy|medium|hard), \d+ minutes\)\. [^*]+\*\* ", re.MULTILINE)
HINT = re.compile(r"<details><summary>Hint (\d)</summary>\n\n.+?\n</details>", re.DOTALL)
SOLUTION = re.compile(r"<details><summary><b>Solution</b></summary>\n\n```python\n(.+?)```(.*?)</details>", re.DOTALL)
INSTEAD = {
    "01_from_scratch": {"phi": "phi = new_phi()"},
    "06_neural_art": {"learned": "learned = l2l.load('neural-art-small')"},
    "07_inside": {"typical": "typical = 0.0025"},
    "08_information_sharing": {"rules": "rules = {'NTM-BFGS': l2l.load('quadratics-ntm')}"},
}
"""Names that take long to make as the lesson does, with something as good for an exercise."""
SHARED = 9
"""So many nodes of syntax in common make an expression of a check and one of its solution the same idea."""


@dataclass(frozen=True)
class Exercise:
    lesson: str
    before: list[str]  # code cells
    text: str
    check: str
    after: str

    @property
    def name(self) -> str:
        """Of the answer."""
        return STUB.findall(self.check)[0]

    @property
    def solution(self) -> str:
        return SOLUTION.search(self.after)[1]


def read(path: Path) -> list[tuple[str, str]]:
    """Kind and source of each cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]


def exercises(path: Path) -> list[Exercise]:
    cells = read(path)
    return [
        Exercise(
            path.stem,
            [code for kind, code in cells[:number] if kind == "code"],
            cells[number - 1][1],
            source,
            cells[number + 1][1],
        )
        for number, (kind, source) in enumerate(cells)
        if kind == "code" and STUB.search(source)
    ]


EXERCISES = [
    pytest.param(exercise, id=f"{path.stem}-{number}")
    for path in NOTEBOOKS
    for number, exercise in enumerate(exercises(path), start=1)
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_has_exercises_and_each_has_a_check(path: Path) -> None:
    numbers = [int(number) for kind, text in read(path) if kind == "markdown" for number in TITLE.findall(text)]
    assert numbers == list(range(1, len(exercises(path)) + 1))
    assert len(numbers) >= (1 if path.stem.startswith("00") else 3)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_exercise_has_difficulty_minutes_hints_and_a_solution(exercise: Exercise) -> None:
    assert len(TITLE.findall(exercise.text)) == 1
    hints = [int(number) for number in HINT.findall(exercise.text)]
    assert hints == list(range(1, exercise.text.count("<summary>") + 1)) != []
    assert SOLUTION.match(exercise.after)[2].strip(), "a solution says what one learns from it"


def given_to(code: ast.AST) -> set[str]:
    """Names that some code gives to something, in any scope."""
    found = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
    return found


def needed(code: ast.AST) -> set[str]:
    """Names that some code takes from outside."""

    def loaded(*nodes: ast.AST) -> set[str]:
        names = [node for root in nodes for node in ast.walk(root) if isinstance(node, ast.Name)]
        return {node.id for node in names if isinstance(node.ctx, ast.Load)}

    # `f(x=x)`: a default is not what it is given to
    defaults = [default for node in ast.walk(code) if isinstance(node, ast.arguments) for default in node.defaults]
    return (loaded(code) - given_to(code) | loaded(*defaults)) - set(dir(builtins))


def prepared(exercise: Exercise) -> dict[str, Any]:
    """What an exercise and its solution use of the lesson above them, made by those statements alone that it takes."""
    kinds = (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    above = [node for code in exercise.before for node in ast.parse(code).body if isinstance(node, kinds)]
    instead = {name: ast.parse(code) for name, code in INSTEAD.get(exercise.lesson, {}).items()}
    wanted, done, chosen = [*needed(ast.parse(exercise.check + "\n" + exercise.solution))], set[str](), set[int]()
    for name in wanted:
        if name not in done:
            done.add(name)
            makers = [number for number, node in enumerate(above) if name in given_to(node)]
            assert makers, f"{exercise.lesson}: an exercise uses {name}, which is not defined above it"
            chosen.update([] if name in instead else makers)
            for maker in [instead[name]] if name in instead else [above[number] for number in makers]:
                wanted.extend(needed(maker))
    names: dict[str, Any] = {}
    for node in [*(above[number] for number in sorted(chosen)), *(instead[name] for name in done & set(instead))]:
        exec(ast.unparse(node), names)
    return names


def wrong_answers(right: Any) -> list[Any]:
    """Some of them close to the right answer."""
    if isinstance(right, dict):
        name = next(iter(right))
        wrong = [{**right, name: factor * right[name]} for factor in (0, 0.98, 1.02)]
        return [*wrong, {name: right[name]}]
    if not callable(right):
        right = torch.as_tensor(right)
        if right.dim() == 0:
            return [0, 10 * right.item()]
        return [torch.zeros_like(right), right + 0.01, -right, right.flip(-1), right[:-1]]

    def scaled(result: Any, factor: float) -> Any:
        if isinstance(result, tuple):
            return scaled(result[0], factor), *result[1:]
        if isinstance(result, dict):
            return {name: factor * value for name, value in result.items()}
        return None if result is None else factor * result

    def changed(factor: float) -> Any:
        if isinstance(right, type):
            return type("Wrong", (right,), {"update": lambda self, *given: scaled(right.update(self, *given), factor)})
        return lambda *given, **options: scaled(right(*given, **options), factor)

    return [changed(factor) for factor in (0.0, -1.0, 0.5, 2.0, 1.01)]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_right_answer_is_right_and_others_are_not(exercise: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    names = prepared(exercise)
    torch.manual_seed(0)
    capsys.readouterr()
    exec(exercise.check, names)
    assert capsys.readouterr().out == ""  # nothing is said before there is an answer
    exec(exercise.solution, names)
    right, checking = names[exercise.name], STUB.sub("", exercise.check)

    def said(given: Any) -> str:
        names[exercise.name] = given
        capsys.readouterr()
        exec(checking, names)
        return capsys.readouterr().out.strip()

    assert said(right) == "right"
    if isinstance(right, torch.Tensor):
        assert said(right.tolist()) == "right"
    if not callable(right):
        answers = torch.as_tensor([*right.values()] if isinstance(right, dict) else right).flatten().tolist()
        constants = [node.value for node in ast.walk(ast.parse(exercise.check)) if isinstance(node, ast.Constant)]
        numbers = [each for each in constants if isinstance(each, int | float) and each not in (0, 1)]
        assert not [each for each in numbers for answer in answers if each == pytest.approx(answer, rel=0.01)]
    returns = "return " in exercise.solution
    for wrong in wrong_answers(right) if returns or not callable(right) else [lambda *_: None]:
        answer = said(wrong)
        assert re.match(r"not yet: .{20}", answer), "it helps whoever is wrong"


def ideas(code: str, least: int = SHARED) -> set[str]:
    """Expressions of some size, whatever its own names are."""
    tree = ast.parse(code)
    own = given_to(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in own:
            node.id = "_"
    expressions = [node for node in ast.walk(tree) if isinstance(node, ast.expr)]
    return {ast.unparse(node) for node in expressions if sum(isinstance(n, ast.expr) for n in ast.walk(node)) >= least}


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_check_does_not_contain_its_solution(exercise: Exercise) -> None:
    assert not ideas(exercise.check) & ideas(exercise.solution)


def test_a_check_that_contains_its_solution_is_seen() -> None:
    """Those of an older version of lesson 2 did."""
    check = "expected, _ = lstm.cpu()(probe, lstm.initial_state(6))\nprint(close(answer, expected.detach()))"
    assert ideas(check) & ideas("answer, _ = lstm.cpu()(probe, lstm.initial_state(6))")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_predictions_come_before_what_they_predict(path: Path) -> None:
    """JupyterLab hides what shows the answer until its cell runs, but for the first line of each cell's output."""
    cells = json.loads(path.read_text())["cells"]
    for number, cell in enumerate(cells):
        text = "".join(cell["source"])
        if "> **Predict first" in text:
            assert text.count("<details>") >= 2  # answers to open
        elif not re.search(r"^Predict first:|widgets\.Prediction\(", text, re.MULTILINE):
            continue  # a `Prediction` without a kernel is a picture of the whole figure
        answers = list(
            takewhile(lambda cell: cell["cell_type"] == "code", cells[number + (cell["cell_type"] == "markdown") :])
        )
        assert answers
        for answer in answers:
            assert answer["metadata"]["jupyter"]["outputs_hidden"]
            if answer["outputs"] and "text/markdown" in answer["outputs"][0].get("data", ()):
                assert "l2l_claim" in answer["outputs"][0]["metadata"]  # whose verdict is in the second line
