"""Headless lessons and their report, on small notebooks made here."""

from pathlib import Path

import nbformat
import pytest

from l2l_kit import reproduce as module
from l2l_kit.errors import UnknownNameError
from l2l_kit.reproduce import check_parameters, find_lessons, reproduce

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
    done = reproduce(find_lessons(), tmp_path / "out", {"seed": "7", "holds": "false"}, seen.append)
    assert done == seen
    assert [lesson.name for lesson in done] == ["01_good", "02_bad"]
    assert done[0].error is None
    assert "on purpose" in done[1].error
    assert [claim.holds for lesson in done for claim in lesson.claims] == [False, False]
    assert done[0].claims[0].conditions == "seed 7"
    report = (tmp_path / "out" / "report.html").read_text()
    assert "a &lt; b &amp; c | d" in report
    assert "does not hold" in report
    assert "on purpose" in report
    assert "http" not in report  # self-contained
    assert "a < b & c \\| d" in (tmp_path / "out" / "claims.md").read_text()
    kept = nbformat.read(tmp_path / "out" / "notebooks" / "02_bad.ipynb", as_version=4)
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
