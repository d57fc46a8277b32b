"""Committed notebooks are executed, small and free of what breaks GitHub or makes nbval pass silently."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_lesson_has_a_number_of_its_own() -> None:
    numbers = [path.stem.split("_")[0] for path in NOTEBOOKS]
    assert numbers[0] == "00"
    assert sorted({f"{int(number):02}" for number in numbers}) == numbers


def test_every_cell_is_executed_in_order(notebook: dict) -> None:
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_output_is_an_error_or_a_warning(notebook: dict) -> None:
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "".join(output.get("text", []))


def test_no_widget_state_is_saved(notebook: dict) -> None:
    assert "widgets" not in notebook["metadata"]


def test_every_live_or_plotly_output_has_a_picture_beside_it(notebook: dict) -> None:
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            kinds = output.get("data", {})
            if any("plotly" in kind or "widget-view" in kind for kind in kinds):
                assert "image/png" in kinds


def test_checked_cells_show_something(notebook: dict) -> None:
    """nbval compares nothing where a cell that prints has lost its output."""
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        if "print(" in source.split("def ")[0] and "answer" not in source:
            assert cell["outputs"], source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small(path: Path) -> None:
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text()
    assert "/home/" not in text
    assert str(Path(__file__).resolve().parents[1]) not in text
