"""Committed notebooks are executed, small and free of what breaks GitHub or makes nbval pass silently."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from l2l_kit.making.lessons import read_executed
from l2l_kit.making.recipes import find_recipe, read_recipes
from l2l_kit.making.report import changes, read_record
from l2l_kit.making.sweeps import read_sweep
from l2l_kit.paths import RESULTS

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_cell_is_executed_in_order_without_errors_and_shows_what_it_prints(notebook: dict) -> None:
    """nbval compares nothing where a cell that prints has lost its output."""
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        source = "".join(cell["source"])
        assert cell["outputs"] or "print(" not in source.split("def ")[0] or "replace None" in source, source
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "".join(output.get("text", []))


def test_every_live_or_plotly_output_has_a_picture_beside_it(notebook: dict) -> None:
    assert "widgets" not in notebook["metadata"], "the state of widgets is not saved"
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            kinds = output.get("data", {})
            live = any("plotly" in kind or "widget-view" in kind for kind in kinds)
            assert not live or {"image/png", "image/jpeg"} & set(kinds)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_name_no_path_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 2_000_000
    assert "/home/" not in path.read_text()
    assert str(Path(__file__).resolve().parents[1]) not in path.read_text()


def test_lessons_claim_what_is_recorded() -> None:
    """Else one of the two is older than the code: `l2l reproduce --record` and an execution of the lesson mend it."""
    found = changes([read_executed(path) for path in NOTEBOOKS], read_record(RESULTS))
    assert found.empty, found.to_string()


def calls(notebook: dict) -> Iterator[tuple[str, ast.Call]]:
    """All calls in a notebook's code, with the last part of what is called."""
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func).rpartition(".")[2], node


def literal(notebook: dict, node: ast.expr) -> object:
    """A constant, or a name that stands for one."""
    if isinstance(node, ast.Name):
        for cell in code_cells(notebook):
            for line in ast.parse("".join(cell["source"])).body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == node.id:
                    return ast.literal_eval(line.value)
    return ast.literal_eval(node)


def pattern(text: ast.expr, escape: Callable[[str], str] = str) -> str:
    """A text, or a formatted one with `.*` for what is filled in; empty for what is neither."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text] if isinstance(text, ast.Constant) else []
    return "".join(escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in parts)


def read_by_name(notebook: dict) -> set[str]:
    """Names of pretrained optimizers and recorded results that the code has as text; other parts of them as `.*`."""
    found = set()
    for function, call in calls(notebook):
        kind = {"tuned_baselines": "tuning/", "read_result": "result/"}.get(function, "")
        readers = ("load", "card", "LearnedOptimizer", "tuned_baselines", "read_result")
        for argument in call.args if function in readers else []:
            if name := pattern(argument, re.escape):
                found.add(kind + name)
    return found


def made_first(notebook: dict) -> set[str]:
    """What the full profile makes, as `build` is asked to, by other recipes that are followed, or by hand."""
    made = set()
    for function, call in calls(notebook):
        if function in ("read_recipes", "find_recipe"):
            made.add(ast.literal_eval(call.args[0]))
        if function == "write_result":
            made.add("result/" + pattern(call.args[0]))
        if function != "build":
            continue
        names = ("recipes", "tunings", "sweeps")
        given = dict(zip(names, call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
        recipes, tunings, sweeps = (literal(notebook, given[name]) if name in given else () for name in names)
        members = [member for name in recipes for member in read_recipes(name)]
        members += [find_recipe(name) for sweep in sweeps for name in read_sweep(sweep).learned.values()]
        while members:
            made |= {members[-1].name, f"result/training/{members[-1].name}"}
            start = members.pop().start
            members += [find_recipe(start)] if start else []
        made |= {f"tuning/{name}" for name in tunings} | {f"result/{name}/tuning" for name in tunings}
        made |= {f"result/sweeps/{name}" for name in sweeps}
    return made


def test_the_full_profile_makes_what_it_reads(notebook: dict) -> None:
    if not any("parameters" in cell["metadata"].get("tags", []) for cell in notebook["cells"]):
        pytest.skip("it has no profiles")
    made = made_first(notebook)
    for name in read_by_name(notebook):
        assert any(re.fullmatch(name, each) for each in made), f"{name} is read but not made"


def test_the_full_profile_reads_from_nowhere_else(notebook: dict) -> None:
    """L2L_HOME is set before the kit is imported, or the names would be found in what comes with it."""
    code = ["".join(cell["source"]) for cell in code_cells(notebook)]
    if any("l2l.build(" in cell for cell in code):
        whole = "\n".join(code)
        assert 0 < whole.index('os.environ["L2L_HOME"] = "full"') < whole.index("import l2l_kit")
