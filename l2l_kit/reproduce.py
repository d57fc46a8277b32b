"""Reproducing the paper: papermill executes the lessons headless, and what they claim and show is collected."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import Claim
from l2l_kit.paths import NOTEBOOKS

_PARAMETER_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Lesson:
    """An executed lesson.

    Attributes:
        path: the executed notebook.
        seconds: how long it took.
        claims: the claims that it measured.
        figures: its static figures, PNG, in order.
        error: what failed, or None; the failing cell is marked in the notebook.
    """

    path: Path
    seconds: float
    claims: list[Claim]
    figures: list[bytes]
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
    """
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}
    chosen = set()
    for name in names:
        matching = [stem for stem in known if stem == name or stem.split("_")[0] == name.zfill(2)]
        if not matching:
            raise UnknownNameError("lesson", name, known)
        chosen.update(matching)
    return [path for stem, path in known.items() if stem in chosen or not names]


def check_parameters(lesson: Path, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Parameters for a lesson, of the types that its notebook declares; papermill itself would only warn.

    Raises:
        UnknownNameError: if the notebook has no such parameter.
        ValueError: if a value is not of the declared type.
    """
    import papermill as pm

    declared = pm.inspect_notebook(str(lesson))
    checked: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in declared:
            raise UnknownNameError(f"parameter of {lesson.stem}", name, declared)
        kind = declared[name]["inferred_type_name"]
        try:
            checked[name] = value.lower() in ("true", "1") if kind == "bool" else _PARAMETER_TYPES[kind](value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"parameter {name} of {lesson.stem} must be of type {kind}, got {value!r}.") from error
    return checked


def run_lesson(lesson: Path, directory: Path, parameters: Mapping[str, Any]) -> Lesson:
    """Execute one lesson into `directory`. A cell that fails ends it; what was done until then is kept."""
    import nbformat
    import papermill as pm

    path = directory / lesson.name
    directory.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    failure = None
    try:
        # Widget state would store 5 MB of JavaScript for each live figure.
        pm.execute_notebook(
            str(lesson),
            str(path),
            dict(parameters),
            kernel_name="python3",
            cwd=str(directory),
            progress_bar=False,
            store_widget_state=False,
        )
    except pm.PapermillExecutionError as error:
        failure = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    except Exception as error:  # such as a kernel that was killed for its memory: the other lessons go on
        failure = f"{type(error).__name__}: {error}"
    if failure is None:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        notebook.metadata["l2l_lesson"] = _fingerprint(lesson, parameters)
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
    return _harvest(path, failure)


def finished_lesson(lesson: Path, directory: Path, parameters: Mapping[str, Any]) -> Lesson | None:
    """What an earlier execution of this very lesson with these parameters left in `directory`, if it got to its end."""
    import nbformat

    path = directory / lesson.name
    try:
        mark = nbformat.read(path, as_version=4).metadata.get("l2l_lesson")  # type: ignore[no-untyped-call]
    except (OSError, ValueError, nbformat.reader.NotJSONError):  # killed while it was written
        return None
    return _harvest(path, None) if mark == _fingerprint(lesson, parameters) else None


def _fingerprint(lesson: Path, parameters: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(lesson.read_bytes())
    digest.update(json.dumps(dict(parameters), sort_keys=True).encode())
    return digest.hexdigest()


def _harvest(path: Path, failure: str | None) -> Lesson:
    """Claims and static figures among a notebook's outputs."""
    import nbformat

    claims, figures, seconds = [], [], 0.0
    if path.exists():
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        seconds = notebook.metadata.get("papermill", {}).get("duration") or 0.0
        for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
            if claim := output.get("metadata", {}).get("l2l_claim"):
                claims.append(Claim(**claim))
            if png := output.get("data", {}).get("image/png"):
                figures.append(base64.b64decode(png))
    return Lesson(path, seconds, claims, figures, failure)


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
        ValueError: if a value is not of the declared type.
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

    declared = {lesson: set(pm.inspect_notebook(str(lesson))) for lesson in lessons}
    everything = set().union(*declared.values())
    for name in parameters:
        if name not in everything:
            raise UnknownNameError("parameter", name, everything)
    return {
        lesson: check_parameters(lesson, {name: parameters[name] for name in parameters if name in declared[lesson]})
        for lesson in lessons
    }


def _use_threads(threads: str) -> None:
    """Let the kernels that this process starts have so many, unless the user has said how many."""
    os.environ.setdefault("OMP_NUM_THREADS", threads)


def _run_all(
    lessons: Sequence[Path],
    directory: Path,
    parameters: Mapping[Path, Mapping[str, Any]],
    jobs: int,
    on_progress: Callable[[str, int, int], None],
) -> Iterator[tuple[Path, Lesson]]:
    """Lessons as they are finished."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    # papermill changes the working directory, so that it needs a process of its own.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _use_threads, (threads,)) as pool:
        running = {pool.submit(run_lesson, each, directory, parameters[each]): each for each in lessons}
        waiting = set(running)
        while waiting:
            finished, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running[future], future.result()
            for future in waiting:
                if future.running():
                    on_progress(running[future].stem, *cells_done(directory / running[future].name))
