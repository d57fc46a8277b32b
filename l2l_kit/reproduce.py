"""Reproducing the paper: papermill executes the lessons headless, and what they claim and show is collected."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import Claim, machine
from l2l_kit.making.work import begin_worker, cores
from l2l_kit.paths import NOTEBOOKS
from l2l_kit.storage import write_atomically
from l2l_kit.tensors import pick_device

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

_PARAMETER_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_PLOTLY = "application/vnd.plotly.v1+json"


class Picture(NamedTuple):
    """A static figure of a lesson: what it shows, in words, and the PNG."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Lesson:
    """An executed lesson.

    Attributes:
        path: the executed notebook.
        title: its first heading.
        seconds: how long it took.
        claims: the claims that it measured.
        pictures: its static figures, in order.
        machine: what it was executed on, and `profile`; empty if it was not executed to its end.
        error: what failed, or None; the failing cell is marked in the notebook.
    """

    path: Path
    title: str
    seconds: float
    claims: list[Claim]
    pictures: list[Picture]
    machine: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        """Its file name without the ending, such as ``01_quadratics``."""
        return self.path.stem


def find_lessons(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of these lessons in reading order; all of them if none is named.

    Args:
        names: numbers or names, such as "01" or "01_quadratics".

    Raises:
        UnknownNameError: if there is no such lesson.
        FileNotFoundError: if there are none at all.
    """
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}
    if not known:
        raise FileNotFoundError(
            f"{NOTEBOOKS}: there are no lessons. Install l2l_kit anew, or use it from its repository."
        )
    chosen = set()
    for name in names:
        matching = [stem for stem in known if stem == name or stem.split("_")[0] == name.zfill(2)]
        if not matching:
            raise UnknownNameError("lesson", name, known)
        chosen.update(matching)
    return [path for stem, path in known.items() if stem in chosen or not names]


def check_parameters(lesson: Path, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Parameters for a lesson, checked against what its notebook declares; papermill itself would only warn.

    What a parameter may be stands in the notebook's own comment on it: for words, those in quotation marks (beside the
    default); for numbers, "at least N" and "at most N", where without the former they are not negative.

    Raises:
        UnknownNameError: if the notebook has no such parameter, or a word is none of those that it may be.
        ValueError: if a value is not of the declared type or outside its range, or there is no such device.
    """
    import papermill as pm

    declared = pm.inspect_notebook(_literally(lesson))
    checked: dict[str, Any] = {}
    for name, text in parameters.items():
        if name not in declared:
            raise UnknownNameError(f"parameter of {lesson.stem}", name, declared)
        kind = declared[name]["inferred_type_name"]
        try:
            value: Any = _truth(text) if kind == "bool" else _PARAMETER_TYPES[kind](text)
        except (KeyError, ValueError) as error:
            raise ValueError(f"parameter {name} of {lesson.stem} must be of type {kind}, got {text!r}.") from error
        comment, default = declared[name]["help"], declared[name]["default"]
        if name == "device":
            pick_device(value or None)
        elif kind == "str":
            words = set(re.findall(r'"([^"]*)"', comment))
            if words and value not in words | {default.strip("\"'")}:
                raise UnknownNameError(f"{name} of {lesson.stem}", value, words)
        elif kind in ("int", "float"):
            _check_range(name, lesson.stem, value, comment)
        checked[name] = value
    return checked


def _truth(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _check_range(name: str, lesson: str, value: float, comment: str) -> None:
    low, high = (re.search(rf"at {end} (-?[\d.]*\d)", comment) for end in ("least", "most"))
    lowest = float(low[1]) if low else 0.0
    highest = float(high[1]) if high else float("inf")
    if not lowest <= value <= highest:
        bounds = f"at least {lowest:g}" + (f" and at most {highest:g}" if high else "")
        raise ValueError(f"parameter {name} of {lesson} must be {bounds}, got {value!r}.")


def _literally(path: Path) -> str:
    """A path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _kernel_manager() -> type[KernelManager]:
    """Starts kernels in this very interpreter, whatever the user's Jupyter knows by the name of python3."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        # What a cell prints is in the notebook. A kernel's log only tells of its sockets, and of being shut down.
        kernel_spec = KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]))

    return ThisInterpreter


def run_lesson(lesson: Path, directory: Path, parameters: Mapping[str, Any]) -> Lesson:
    """Execute one lesson into `directory`. A cell that fails ends it; what was done until then is kept.

    Raises:
        OSError: if the notebook cannot be written.
    """
    import nbformat
    import papermill as pm

    path = directory / lesson.name
    directory.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    failure = None
    try:
        # Widget state would store 5 MB of JavaScript for each live figure.
        pm.execute_notebook(
            _literally(lesson),
            _literally(path),
            dict(parameters),
            kernel_name="python3",
            kernel_manager_class=_kernel_manager(),
            start_timeout=300,
            cwd=str(directory),
            progress_bar=False,
            store_widget_state=False,
        )
    except pm.PapermillExecutionError as error:
        failure = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    except OSError as error:
        path.unlink(missing_ok=True)  # half of it may be there
        error.filename = error.filename or str(path)
        raise
    except Exception as error:  # such as a kernel that was killed for its memory: the other lessons go on
        failure = f"{type(error).__name__}: {error}"
        _mark_unfinished(path, failure)
    if failure is None:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        notebook.metadata["l2l_lesson"] = _fingerprint(lesson, parameters)
        where = machine(pick_device(parameters.get("device") or None))
        notebook.metadata["l2l_machine"] = {**where, "profile": parameters.get("profile", "")}
        write_atomically(path, nbformat.writes(notebook).encode())  # type: ignore[no-untyped-call]
    return read_executed(path, failure)


def _mark_unfinished(path: Path, failure: str) -> None:
    """Say in the notebook which cell it was, as papermill does for a cell that raised an exception."""
    import nbformat

    if not path.exists():
        return
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    name, _, value = failure.partition(": ")
    for cell in reversed(notebook.cells):  # the last that was begun; its count may have come before the kernel died
        begun = cell.metadata.get("papermill", {}).get("status", "pending") != "pending"
        if cell.cell_type == "code" and begun:
            error = nbformat.v4.new_output("error", ename=name, evalue=value, traceback=[failure])  # type: ignore[no-untyped-call]
            cell.outputs.append(error)
            break
    write_atomically(path, nbformat.writes(notebook).encode())  # type: ignore[no-untyped-call]


def finished_lesson(lesson: Path, directory: Path, parameters: Mapping[str, Any]) -> Lesson | None:
    """What an earlier execution of this very lesson with these parameters left in `directory`, if it got to its end."""
    import nbformat

    path = directory / lesson.name
    try:
        mark = nbformat.read(path, as_version=4).metadata.get("l2l_lesson")  # type: ignore[no-untyped-call]
    except (OSError, ValueError, nbformat.reader.NotJSONError):  # killed while it was written
        return None
    return read_executed(path) if mark == _fingerprint(lesson, parameters) else None


def _fingerprint(lesson: Path, parameters: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(lesson.read_bytes())
    digest.update(json.dumps(dict(parameters), sort_keys=True).encode())
    return digest.hexdigest()


def read_executed(path: Path, failure: str | None = None) -> Lesson:
    """Claims and static figures among a notebook's outputs."""
    import nbformat

    if not path.exists():
        return Lesson(path, path.stem, 0.0, [], [], error=failure)
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    headings: list[str] = []
    claims, pictures = [], []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings += re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)
        for output in cell.get("outputs", []):
            if claim := output.get("metadata", {}).get("l2l_claim"):
                claims.append(Claim(**claim))
            if png := output.get("data", {}).get("image/png"):
                title = output["data"].get(_PLOTLY, {}).get("layout", {}).get("title", {}).get("text")
                caption = title or (headings[-1] if headings else path.stem)
                pictures.append(Picture(re.sub(r"<[^>]+>|[*`$]", "", caption), base64.b64decode(png)))
    seconds = notebook.metadata.get("papermill", {}).get("duration") or 0.0
    where = dict(notebook.metadata.get("l2l_machine", {}))
    return Lesson(path, headings[0] if headings else path.stem, seconds, claims, pictures, where, failure)


def cells_done(path: Path) -> tuple[int, int]:
    """How many cells of a lesson that is being executed are done, and how many there are; (0, 1) before it begins."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):  # not there yet, or only half written
        return 0, 1
    states = [cell["metadata"].get("papermill", {}).get("status") for cell in cells]
    return sum(state == "completed" for state in states), len(cells)


def reproduce(
    lessons: Sequence[Path],
    directory: Path,
    parameters: Mapping[str, str],
    *,
    jobs: int = 1,
    again: bool = False,
    on_lesson: Callable[[Lesson], None] = lambda _: None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[Lesson]:
    """Execute lessons, each in a process of its own.

    Parameters are checked against every notebook before the first one runs. A lesson that fails does not stop the
    others, and one that was finished before, with the same parameters, is not executed again.

    Args:
        lessons: notebooks, from `find_lessons`.
        directory: where executed notebooks go.
        parameters: values as text, by name; each lesson gets those that it declares.
        jobs: how many to execute at once, the cores shared among them.
        again: execute finished lessons, too.
        on_lesson: called after each lesson.
        on_progress: called every second for each lesson under way, with its name, cells done and cells in all.

    Returns:
        The lessons in the order in which they were given.

    Raises:
        UnknownNameError: if no lesson declares one of the parameters.
        ValueError: if a value is not of the declared type, or outside what it may be.
        OSError: if a notebook cannot be written; lessons that were under way are stopped.
    """
    checked = _checked(lessons, parameters)
    done: dict[Path, Lesson] = {}
    for lesson in lessons:
        if not again and (earlier := finished_lesson(lesson, directory, checked[lesson])):
            done[lesson] = earlier
            on_lesson(earlier)
    left = [lesson for lesson in lessons if lesson not in done]
    if left:
        jobs = min(jobs, len(left))
        for lesson, result in _run_all(left, directory, checked, jobs, on_progress):
            done[lesson] = result
            on_lesson(result)
    return [done[lesson] for lesson in lessons]


def _checked(lessons: Sequence[Path], parameters: Mapping[str, str]) -> dict[Path, dict[str, Any]]:
    """The parameters of each lesson, of the types that it declares."""
    import papermill as pm

    declared = {lesson: set(pm.inspect_notebook(_literally(lesson))) for lesson in lessons}
    everything = {"profile", "device"}.union(*declared.values())  # the command's own, whether a lesson has them or not
    for name in parameters:
        if name not in everything:
            raise UnknownNameError("parameter", name, everything)
    return {
        lesson: check_parameters(lesson, {name: parameters[name] for name in parameters if name in declared[lesson]})
        for lesson in lessons
    }


def _begin(jobs: int) -> None:
    """Share the cores among so many processes.

    Kernels inherit the environment: $OMP_NUM_THREADS, unless the user has said how many, and $L2L_JOBS, how many
    processes a lesson may use where it has several things to do. And they end when their parent does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent ends them
    mine = max(1, cores() // jobs)
    begin_worker(mine)
    for variable in ("OMP_NUM_THREADS", "L2L_JOBS"):
        os.environ[variable] = os.environ.get(variable) or str(mine)


def _run_all(
    lessons: Sequence[Path],
    directory: Path,
    parameters: Mapping[Path, Mapping[str, Any]],
    jobs: int,
    on_progress: Callable[[str, int, int], None],
) -> Iterator[tuple[Path, Lesson]]:
    """Lessons as they are finished."""
    # papermill changes the working directory, so that it needs a process of its own.
    others = set(active_children())
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (jobs,)) as pool:
        try:
            running = {pool.submit(run_lesson, each, directory, parameters[each]): each for each in lessons}
            waiting = set(running)
            while waiting:
                finished, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield running[future], future.result()
                for future in waiting:
                    if future.running():
                        on_progress(running[future].stem, *cells_done(directory / running[future].name))
        except BaseException:  # such as Ctrl-C, or a full disk: a lesson may take hours, and goes on another time
            for worker in set(active_children()) - others:
                worker.kill()  # papermill would catch SIGTERM
            raise
