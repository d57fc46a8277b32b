"""Headless lessons, on small notebooks made here."""

from pathlib import Path

import nbformat
import pytest

from l2l_kit import reproduce as module
from l2l_kit.errors import UnknownNameError
from l2l_kit.reproduce import cells_done, check_parameters, find_lessons, finished_lesson, reproduce

GOOD = """
from l2l_kit.evaluation import Claim
display(Claim("figure 0", "a < b & c | d", "ratio 0.4", f"seed {seed}", holds))
"""


PARAMETERS = """
profile: str = "quick"  # "quick" or "full"
seed: int = 0  # of all draws
steps: int = 5  # at least 1, at most 100
rate: float = 0.1  # at least -1
device: str = ""  # "cpu" or "cuda"; empty for the best there is
name: str = "any"
holds: bool = True
"""
CELL = "# %%\n"


def write(path: Path, code: str) -> Path:
    parameters = nbformat.v4.new_code_cell(PARAMETERS)
    parameters.metadata["tags"] = ["parameters"]
    heading = nbformat.v4.new_markdown_cell(f"# {path.stem}, *a lesson*\n\n## A section")
    notebook = nbformat.v4.new_notebook(cells=[heading, parameters, *map(nbformat.v4.new_code_cell, code.split(CELL))])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "notebooks"
    directory.mkdir()
    write(directory / "01_good.ipynb", GOOD)
    write(directory / "02_bad.ipynb", GOOD + "raise RuntimeError('on purpose')")
    monkeypatch.setattr(module, "NOTEBOOKS", directory)
    return directory


def test_claims_and_failures_reach_the_report(lessons: Path, tmp_path: Path) -> None:
    seen = []
    done = reproduce(find_lessons(), tmp_path / "out", {"seed": "7", "holds": "false"}, on_lesson=seen.append)
    assert done == seen
    assert [lesson.name for lesson in done] == ["01_good", "02_bad"]
    assert done[0].error is None
    assert "on purpose" in done[1].error
    assert [claim.holds for lesson in done for claim in lesson.claims] == [False, False]
    assert done[0].claims[0].conditions == "seed 7"
    assert done[0].title == "01_good, *a lesson*"
    assert done[0].machine["profile"] == ""
    assert done[0].machine["torch"]
    kept = nbformat.read(tmp_path / "out" / "02_bad.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))


def test_lessons_are_found_by_number_or_name(lessons: Path) -> None:
    assert [path.stem for path in find_lessons(["1", "02_bad"])] == ["01_good", "02_bad"]
    assert [path.stem for path in find_lessons(["02"])] == ["02_bad"]
    with pytest.raises(UnknownNameError, match="Did you mean '01_good'"):
        find_lessons(["01_goood"])


def test_parameters_are_checked_before_anything_runs(lessons: Path, tmp_path: Path) -> None:
    given = {"seed": "3", "rate": "1e-2", "holds": "true", "profile": "full", "device": "cpu", "name": "some"}
    expected = {"seed": 3, "rate": 0.01, "holds": True, "profile": "full", "device": "cpu", "name": "some"}
    assert check_parameters(lessons / "01_good.ipynb", given) == expected
    with pytest.raises(UnknownNameError, match="Did you mean 'seed'"):
        reproduce(find_lessons(), tmp_path / "out", {"sede": "1"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", "x", "seed of 01_good must be of type int"),
        ("seed", "1.5", "must be of type int"),
        ("holds", "perhaps", "must be of type bool"),
        ("seed", "-1", "must be at least 0, got -1"),
        ("steps", "0", "must be at least 1 and at most 100, got 0"),
        ("steps", "101", "must be at least 1 and at most 100, got 101"),
        ("rate", "-2", "must be at least -1, got -2"),
        ("rate", "nan", "must be at least -1, got nan"),
        ("profile", "ful", "Did you mean 'full'"),
        ("device", "gpu", "gpu"),
    ],
)
def test_what_a_parameter_may_be_stands_in_the_notebook(
    lessons: Path, tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reproduce(find_lessons(), tmp_path / "out", {name: value})
    assert not (tmp_path / "out").exists()


def test_the_numbers_at_the_bounds_are_allowed(lessons: Path) -> None:
    for steps in (1, 100):
        assert check_parameters(lessons / "01_good.ipynb", {"steps": str(steps)}) == {"steps": steps}


def test_finished_lessons_are_not_executed_again(lessons: Path, tmp_path: Path) -> None:
    """Unless they are asked for, have changed, are to have other parameters, or have failed."""
    out = tmp_path / "out"

    def run(parameters: dict[str, str] | None = None, **more: bool) -> set[str]:
        before = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.ipynb")}
        done = reproduce(find_lessons(), out, parameters or {}, **more)
        assert [lesson.name for lesson in done] == ["01_good", "02_bad"]
        assert [bool(lesson.error) for lesson in done] == [False, True]
        assert all(len(lesson.claims) == 1 and lesson.seconds > 0 for lesson in done)
        return {path.stem for path in out.glob("*.ipynb") if path.stat().st_mtime_ns != before.get(path.stem)}

    both = {"01_good", "02_bad"}
    assert run() == both
    assert run() == {"02_bad"}
    assert run(again=True) == both
    assert run({"seed": "3"}) == both
    write(lessons / "01_good.ipynb", GOOD + "1 + 1")
    assert run({"seed": "3"}) == both


def test_one_that_was_killed_half_way_is_executed_again(lessons: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (first,) = reproduce(find_lessons(["01"]), out, {})
    whole = first.path.read_text()
    for left in (whole[: len(whole) // 2], whole.replace("l2l_lesson", "something")):
        first.path.write_text(left)
        assert finished_lesson(lessons / "01_good.ipynb", out, {}) is None
    (again,) = reproduce(find_lessons(["01"]), out, {})
    assert again.claims == first.claims


def test_several_at_once(lessons: Path, tmp_path: Path) -> None:
    meet = (
        "import pathlib, time\npathlib.Path('{mine}').touch()\n"
        "while not pathlib.Path('{other}').exists(): time.sleep(0.1)"
    )
    write(lessons / "01_good.ipynb", meet.format(mine="a", other="b"))
    write(lessons / "02_bad.ipynb", meet.format(mine="b", other="a"))
    moved = []
    done = reproduce(find_lessons(), tmp_path / "out", {}, jobs=2, on_progress=lambda *told: moved.append(told))
    assert [lesson.error for lesson in done] == [None, None]
    assert {name for name, _, _ in moved} <= {"01_good", "02_bad"}


def test_a_kernel_that_dies_is_a_lesson_that_failed(lessons: Path, tmp_path: Path) -> None:
    write(lessons / "01_good.ipynb", "import os\nos._exit(1)")
    first, second = reproduce(find_lessons(), tmp_path / "out", {})
    assert "DeadKernelError" in first.error
    assert "on purpose" in second.error
    cells = nbformat.read(first.path, as_version=4).cells
    marked = [cell for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert [cell.source for cell in marked] == ["import os\nos._exit(1)"]


def test_progress_is_read_from_the_notebook(lessons: Path, tmp_path: Path) -> None:
    (lesson,) = reproduce(find_lessons(["01"]), tmp_path / "out", {})
    assert cells_done(lesson.path) == (3, 3)
    assert cells_done(tmp_path / "nothing.ipynb") == (0, 1)
    lesson.path.write_text(lesson.path.read_text()[:100])
    assert cells_done(lesson.path) == (0, 1)


DRAWN = """
from base64 import b64encode
png = b64encode(b"a picture").decode()
plotly = {"data": [], "layout": {"title": {"text": "A <b>title</b> of its own"}}}
display({"image/png": png, "application/vnd.plotly.v1+json": plotly}, raw=True)
display({"image/png": png}, raw=True)
"""


def test_figures_are_called_by_their_title_or_the_heading_above_them(lessons: Path, tmp_path: Path) -> None:
    write(lessons / "01_good.ipynb", DRAWN)
    (lesson,) = reproduce(find_lessons(["01"]), tmp_path / "out", {})
    assert [picture.caption for picture in lesson.pictures] == ["A title of its own", "A section"]
    assert all(picture.png == b"a picture" for picture in lesson.pictures)


def test_kernels_are_told_how_many_processes_they_may_use(lessons: Path, tmp_path: Path) -> None:
    write(lessons / "01_good.ipynb", "import os\nassert 1 <= int(os.environ['L2L_JOBS']) <= os.cpu_count()")
    (lesson,) = reproduce(find_lessons(["01"]), tmp_path / "out", {})
    assert lesson.error is None
