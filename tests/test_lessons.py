"""Headless lessons, on small notebooks made here."""

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

from l2l_kit.errors import UnknownNameError
from l2l_kit.making import lessons as module
from l2l_kit.making.lessons import check_parameters, execute_lessons, find_lessons, read_executed

# A claim needs no l2l_kit here, so that a kernel is ready at once.
CLAIM = """
fields = {"group": "paper", "source": "figure 0", "text": "a < b", "measured": f"{seed}"}
fields["verdict"] = "holds" if holds else "refuted"
display({"text/plain": ""}, raw=True, metadata={"l2l_claim": fields})
"""
PARAMETERS = """
profile: str = "quick"  # "quick" or "full"
seed: int = 0  # of all draws
rate: float = 0.1
device: str = ""  # "cpu" or "cuda"; empty for the best there is
name: str = "any"
holds: bool = True
"""


def write(path: Path, *code: str) -> Path:
    parameters = nbformat.v4.new_code_cell(PARAMETERS)
    parameters.metadata["tags"] = ["parameters"]
    heading = nbformat.v4.new_markdown_cell(f"# {path.stem}, *a lesson*\n\n## A section")
    notebook = nbformat.v4.new_notebook(cells=[heading, parameters, *map(nbformat.v4.new_code_cell, code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "notebooks" / "01_good.ipynb", CLAIM)
    write(tmp_path / "notebooks" / "02_bad.ipynb", CLAIM, "raise RuntimeError('on purpose')")
    (tmp_path / "notebooks" / "diagrams").mkdir()
    (tmp_path / "notebooks" / "diagrams" / "loop.svg").write_text("<svg/>")
    monkeypatch.setattr(module, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path / "notebooks"


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
    monkeypatch.setattr("l2l_kit.making.work.ProcessPoolExecutor", Here)


@pytest.mark.usefixtures("here")
def test_finished_lessons_are_not_executed_again(
    lessons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they or the data have changed, they are to have other parameters, have failed, or were not finished."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("L2L_DATA_DIR", str(cache))

    def run(*names: str, **parameters: str) -> set[str]:
        before, seen = {path.stem: path.stat().st_mtime_ns for path in out.glob("*.ipynb")}, []
        done = execute_lessons(find_lessons(names), out, parameters, on_lesson=seen.append)
        assert sorted(seen, key=lambda lesson: lesson.name) == done, "each lesson is announced once, when it is done"
        for lesson in done:
            assert [claim.measured for claim in lesson.claims] == [parameters.get("seed", "0")]
            assert lesson.claims[0].verdict == ("refuted" if "holds" in parameters else "holds")
            assert lesson.seconds > 0
        return {path.stem for path in out.glob("*.ipynb") if path.stat().st_mtime_ns != before.get(path.stem)}

    assert run() == {"01_good", "02_bad"}
    assert (out / "diagrams" / "loop.svg").is_file(), "executed lessons show the same diagrams"
    assert run() == {"02_bad"}
    good, bad = (read_executed(out / f"{name}.ipynb") for name in ("01_good", "02_bad"))
    assert [good.name, good.title, good.error] == ["01_good", "01_good, *a lesson*", None]
    assert good.machine["torch"]
    assert "on purpose" in bad.error
    cells = nbformat.read(bad.path, as_version=4).cells
    assert any(output.output_type == "error" for cell in cells for output in cell.get("outputs", []))
    assert run("01", seed="3", holds="false") == {"01_good"}
    write(lessons / "01_good.ipynb", CLAIM, "1 + 1")
    assert run("01", seed="3") == {"01_good"}
    assert run("01", seed="3") == set()
    (cache / "mnist.npz").write_bytes(b"all of MNIST")
    assert run("01", seed="3") == {"01_good"}
    assert run("01", seed="3") == set()
    tuning = tmp_path / "results" / "mine" / "tuning.csv"
    monkeypatch.setattr(module, "RESULTS", tuning.parents[1])
    tuning.parent.mkdir(parents=True)
    tuning.write_text("recorded anew")
    assert run("01", seed="3") == {"01_good"}
    assert run("01", seed="3") == set()
    whole = good.path.read_text()
    for killed in (whole[: len(whole) // 2], whole.replace("l2l_made_from", "something")):
        good.path.write_text(killed)
        assert run("01", seed="3") == {"01_good"}


def test_lessons_are_found_by_number_or_name(lessons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [path.stem for path in find_lessons(["1", "02_bad"])] == ["01_good", "02_bad"]
    assert [path.stem for path in find_lessons(["02"])] == ["02_bad"]
    with pytest.raises(UnknownNameError, match="Did you mean '01_good'"):
        find_lessons(["01_goood"])
    monkeypatch.setattr(module, "NOTEBOOKS", tmp_path)
    with pytest.raises(FileNotFoundError, match="there are no lessons"):
        find_lessons()


def test_parameters_get_the_types_that_the_notebook_declares(lessons: Path) -> None:
    given = {"seed": "3", "rate": "1e-2", "holds": "true", "name": "7"}
    path = lessons / "01_good.ipynb"
    assert check_parameters([path], given) == {path: {"seed": 3, "rate": 0.01, "holds": True, "name": "7"}}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sede", "1", "Did you mean 'seed'"),
        ("seed", "x", "seed of 01_good must be of type int"),
        ("holds", "perhaps", "must be of type bool"),
        ("device", "gpu", "gpu"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(
    lessons: Path, tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        execute_lessons(find_lessons(), tmp_path / "out", {name: value})
    assert not (tmp_path / "out").exists()


MEET = """
import os, pathlib, sys, time
pathlib.Path("{mine}").touch()
os.write(2, b"what a kernel itself logs, not a cell")
while not pathlib.Path("{other}").exists(): time.sleep(0.1)
assert 1 <= int(os.environ['L2L_JOBS']) <= os.cpu_count()
seed = f"{pathlib.Path().resolve().name} {sys.executable} {os.environ['OMP_NUM_THREADS']}"
"""


def test_whatever_the_surroundings_lessons_run_together_in_this_interpreter_and_quietly(
    lessons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A kernel of the user's named python3, OpenMP's own list of threads, and a folder with an odd name."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["false"], "display_name": "Python 3", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.delenv("JUPYTER_PREFER_ENV_PATH", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    monkeypatch.delenv("L2L_JOBS", raising=False)
    write(lessons / "01_good.ipynb", MEET.replace("{mine}", "a").replace("{other}", "b"), CLAIM)
    write(lessons / "02_bad.ipynb", MEET.replace("{mine}", "b").replace("{other}", "a"), CLAIM)
    odd = tmp_path / "{an} odd: näme's %d"
    done = execute_lessons(find_lessons(), odd, {"seed": "1"}, jobs=2)
    assert [lesson.error for lesson in done] == [None, None]
    assert {claim.measured for lesson in done for claim in lesson.claims} == {f"{odd.name} {sys.executable} 2,1"}
    assert {lesson.path.parent for lesson in done} == {odd}
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("here")
def test_a_kernel_that_dies_is_a_lesson_that_failed(lessons: Path, tmp_path: Path) -> None:
    write(lessons / "01_good.ipynb", CLAIM, "import os\nos._exit(1)", "'never'")
    first, second = execute_lessons(find_lessons(), tmp_path / "out", {})
    assert "DeadKernelError" in first.error
    assert len(first.claims) == 1, "what was done until then is kept"
    assert "on purpose" in second.error
    cells = nbformat.read(first.path, as_version=4).cells
    marked = [cell for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert [cell.source for cell in marked] == ["import os\nos._exit(1)"]


COMMAND = """
import signal, sys
from pathlib import Path
from l2l_kit.cli import app
from l2l_kit.making import lessons

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
lessons.NOTEBOOKS = Path(sys.argv.pop(1))
app()
"""
SLOW = """
import os, time
open("ticks", "a").write(f"{os.getpid()} {os.getppid()}\\n")
time.sleep(100)
"""


def wait_until(condition) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
def test_after_ctrl_c_all_is_quiet_and_nothing_runs_on(tmp_path: Path) -> None:
    """A terminal sends it to all processes of the group."""
    for number in (1, 2, 3):
        write(tmp_path / "notebooks" / f"{number:02}_slow.ipynb", SLOW)
    ticks, log = tmp_path / "notebooks_out" / "notebooks" / "ticks", tmp_path / "log"
    command = [sys.executable, "-c", COMMAND, tmp_path / "notebooks", "reproduce", "--out", tmp_path / "notebooks_out"]
    with log.open("ab") as file:
        run = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
    wait_until(lambda: ticks.exists() or run.poll() is not None)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    for process in set(map(int, ticks.read_text().split())):
        wait_until(lambda: not runs(process))  # noqa: B023
    told = log.read_text().splitlines()
    assert len(told) == 2, told
    assert told[0].startswith("3 lessons")
    assert told[1] == "stopped. The same command goes on where it was."
