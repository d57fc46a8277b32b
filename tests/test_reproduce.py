"""Headless lessons and their report, on small notebooks made here."""

from pathlib import Path

import nbformat
import pytest

from l2l_kit import reproduce as module
from l2l_kit.errors import UnknownNameError
from l2l_kit.report import claims_table, report
from l2l_kit.reproduce import cells_done, check_parameters, find_lessons, finished_lesson, reproduce

GOOD = """
from l2l_kit.evaluation import Claim
display(Claim("figure 0", "a < b & c | d", "ratio 0.4", f"seed {seed}", holds))
"""


def write(path: Path, code: str) -> Path:
    parameters = nbformat.v4.new_code_cell("seed: int = 0  # of all draws\nholds: bool = True\nrate: float = 0.1")
    parameters.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
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
    page = report(done, {"seed": "7"})
    assert "a &lt; b &amp; c | d" in page
    assert "does not hold" in page
    assert "on purpose" in page
    assert "http" not in page  # self-contained
    assert "a < b & c \\| d" in claims_table(done)
    kept = nbformat.read(tmp_path / "out" / "02_bad.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))


def test_lessons_are_found_by_number_or_name(lessons: Path) -> None:
    assert [path.stem for path in find_lessons(["1", "02_bad"])] == ["01_good", "02_bad"]
    assert [path.stem for path in find_lessons(["02"])] == ["02_bad"]
    with pytest.raises(UnknownNameError, match="Did you mean '01_good'"):
        find_lessons(["01_goood"])


def test_parameters_are_typed_before_anything_runs(lessons: Path, tmp_path: Path) -> None:
    good = lessons / "01_good.ipynb"
    given = {"seed": "3", "rate": "1e-2", "holds": "true"}
    assert check_parameters(good, given) == {"seed": 3, "rate": 0.01, "holds": True}
    for parameters, error in (({"seed": "x"}, ValueError), ({"sede": "1"}, UnknownNameError)):
        with pytest.raises(error):
            reproduce([good], tmp_path / "out", parameters)
    assert not (tmp_path / "out").exists()


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


def test_progress_is_read_from_the_notebook(lessons: Path, tmp_path: Path) -> None:
    (lesson,) = reproduce(find_lessons(["01"]), tmp_path / "out", {})
    assert cells_done(lesson.path) == (2, 2)
    assert cells_done(tmp_path / "nothing.ipynb") == (0, 1)
    lesson.path.write_text(lesson.path.read_text()[:100])
    assert cells_done(lesson.path) == (0, 1)
