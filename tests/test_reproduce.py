"""Headless lessons, on small notebooks made here."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import nbformat
import psutil
import pytest

from l2l_kit import reproduce as module
from l2l_kit.errors import UnknownNameError
from l2l_kit.reproduce import cells_done, check_parameters, find_lessons, finished_lesson, reproduce, run_lesson

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


class Here:
    """A pool of no processes: a process of its own needs seconds to start, and what it runs is the same."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function, *arguments) -> Future:
        future = Future()
        try:
            future.set_result(function(*arguments))
        except OSError as error:
            future.set_exception(error)
        return future


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProcessPoolExecutor", Here)


@pytest.mark.usefixtures("here")
def test_claims_and_failures_reach_the_report(lessons: Path, tmp_path: Path) -> None:
    seen = []
    done = reproduce(find_lessons(), tmp_path / "out", {"seed": "7", "holds": "false"}, on_lesson=seen.append)
    assert sorted(seen, key=lambda lesson: lesson.name) == done, "each lesson is announced once, when it is done"
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


@pytest.mark.usefixtures("here")
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


@pytest.mark.usefixtures("here")
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


@pytest.mark.usefixtures("here")
def test_a_kernel_that_dies_is_a_lesson_that_failed(lessons: Path, tmp_path: Path) -> None:
    write(lessons / "01_good.ipynb", "import os\nos._exit(1)")
    first, second = reproduce(find_lessons(), tmp_path / "out", {})
    assert "DeadKernelError" in first.error
    assert "on purpose" in second.error
    cells = nbformat.read(first.path, as_version=4).cells
    marked = [cell for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert [cell.source for cell in marked] == ["import os\nos._exit(1)"]


@pytest.mark.usefixtures("here")
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


@pytest.mark.usefixtures("here")
def test_figures_are_called_by_their_title_or_the_heading_above_them(lessons: Path, tmp_path: Path) -> None:
    write(lessons / "01_good.ipynb", DRAWN)
    (lesson,) = reproduce(find_lessons(["01"]), tmp_path / "out", {})
    assert [picture.caption for picture in lesson.pictures] == ["A title of its own", "A section"]
    assert all(picture.png == b"a picture" for picture in lesson.pictures)


COMMAND = """
import signal, sys
from pathlib import Path
from l2l_kit import reproduce
from l2l_kit.cli import app

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

reproduce.NOTEBOOKS = Path(sys.argv.pop(1))
app()
"""
# A claim needs no l2l_kit here, so that a kernel is ready at once.
SLOW = """
import os, time
from pathlib import Path

def claim(number):
    fields = {"source": f"figure {number}", "text": f"claim of {name}", "measured": str(seed + number)}
    fields |= {"conditions": "nothing", "holds": number % 2 == 0, "effect": number / 3}
    display({"text/plain": ""}, raw=True, metadata={"l2l_claim": fields})

def tick():
    with Path("ticks").open("a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\\n")
    time.sleep(0.2)

tick()
# %%
tick(); claim(1)
# %%
tick(); claim(2)
# %%
tick(); claim(3)
""".strip()


def start(lessons: Path, out: Path, **how: bool) -> subprocess.Popen[bytes]:
    arguments = ["reproduce", "--out", str(out), "--data", str(out), "-p", "seed=5"]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(lessons), *arguments], stdout=log, stderr=log, **how
        )


def ticks(out: Path) -> list[str]:
    path = out / "notebooks" / "ticks"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_until(condition, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


ELSEWHERE = '{"argv": ["false"], "display_name": "Python 3", "language": "python"}'
SETTING = """
import os, sys
from pathlib import Path

found = f"{sys.executable} {os.environ['OMP_NUM_THREADS']}"
fields = {"source": "", "text": Path().resolve().name, "measured": found, "conditions": "", "holds": True, "effect": 0}
display({"text/plain": ""}, raw=True, metadata={"l2l_claim": fields})
"""


def test_whatever_the_surroundings_a_lesson_runs_in_this_interpreter_and_quietly(
    lessons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A kernel of the user's named python3, OpenMP's own list of threads, and a folder with an odd name."""
    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(ELSEWHERE)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    monkeypatch.delenv("L2L_JOBS", raising=False)
    write(lessons / "01_good.ipynb", SETTING)
    odd = tmp_path / "{an} odd: näme's %d"
    (lesson,) = reproduce(find_lessons(["01"]), odd, {"seed": "1"})
    assert lesson.error is None
    assert [(claim.text, claim.measured) for claim in lesson.claims] == [(odd.name, f"{sys.executable} 2,1")]
    assert lesson.path.parent == odd
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_leaves_no_half_of_a_notebook(
    lessons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, content: str, path: str) -> None:
        Path(path).write_text(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.iorw.LocalHandler.write", full)
    with pytest.raises(OSError, match="01_good") as caught:
        run_lesson(lessons / "01_good.ipynb", tmp_path / "out", {})
    assert caught.value.errno == errno.ENOSPC
    assert list((tmp_path / "out").iterdir()) == []


def test_where_notebooks_cannot_be_written_everything_stops_and_the_path_is_named(
    lessons: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        reproduce(find_lessons(), tmp_path / "file" / "out", {})


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
def test_after_ctrl_c_all_is_quiet_and_nothing_runs_on(tmp_path: Path) -> None:
    """A terminal sends it to all processes of the group."""
    lessons = tmp_path / "notebooks"
    lessons.mkdir()
    for number in (1, 2, 3):
        write(lessons / f"{number:02}_slow.ipynb", SLOW.replace("{name}", str(number)).replace("0.2", "100"))
    out = tmp_path / "out"
    run = start(lessons, out, start_new_session=True)
    wait_until(lambda: ticks(out) or run.poll() is not None)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    for process in {int(each) for tick in ticks(out) for each in tick.split()}:
        wait_until(lambda: not runs(process))  # noqa: B023
    told = (tmp_path / "out.log").read_text().splitlines()
    assert len(told) == 2, told
    assert told[0].startswith("3 lessons")
    assert told[1].startswith("stopped.")


def test_without_lessons_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOTEBOOKS", tmp_path)
    with pytest.raises(FileNotFoundError, match="there are no lessons"):
        find_lessons()


def test_kernels_are_told_how_many_processes_they_may_use(lessons: Path, tmp_path: Path) -> None:
    write(lessons / "01_good.ipynb", "import os\nassert 1 <= int(os.environ['L2L_JOBS']) <= os.cpu_count()")
    (lesson,) = reproduce(find_lessons(["01"]), tmp_path / "out", {})
    assert lesson.error is None
