"""Lessons: papermill executes them headless, and what they claim and show is read from the executed notebooks."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import l2l_kit
from l2l_kit.data import DATA_SETS
from l2l_kit.errors import UnknownNameError, check_names
from l2l_kit.evaluation import Claim, machine
from l2l_kit.extras import needs
from l2l_kit.making.work import parallel_map
from l2l_kit.paths import NOTEBOOKS, PRETRAINED, RESULTS
from l2l_kit.storage import write_atomically
from l2l_kit.tensors import pick_device

_PLOTLY = "application/vnd.plotly.v1+json"
_TYPES: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}


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
        machine: what it was executed on, and its `profile`; empty if it was not executed to its end.
        error: what failed, or None; the failing cell is marked in the notebook.
        made_from: checksum of all that it was made from (see `_digest`); empty if it was not executed to its end.
    """

    path: Path
    title: str
    seconds: float = 0.0
    claims: Sequence[Claim] = ()
    pictures: Sequence[Picture] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    made_from: str = ""

    @property
    def name(self) -> str:
        """Its file name without the ending, such as ``02_quadratics``."""
        return self.path.stem


def find_lessons(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of these lessons, by number or name, in reading order; all of them if none is named.

    Raises:
        UnknownNameError: if there is no such lesson.
        FileNotFoundError: if there are none at all.
    """
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))}
    if not known:
        raise FileNotFoundError(
            f"{NOTEBOOKS}: there are no lessons. Install l2l_kit again, or use it from its repository."
        )
    chosen = set()
    for name in names:
        matching = [stem for stem in known if stem == name or stem.split("_")[0] == name.zfill(2)]
        if not matching:
            raise UnknownNameError("lesson", name, known)
        chosen.update(matching)
    return [path for stem, path in known.items() if stem in chosen or not names]


def check_parameters(lessons: Sequence[Path], given: Mapping[str, str]) -> dict[Path, dict[str, Any]]:
    """The parameters that each lesson declares, from text to the type that its notebook gives them.

    Raises:
        UnknownNameError: if no lesson declares a parameter of that name.
        ValueError: if a value is not of the declared type, or there is no such device.
    """
    with needs("reproduce"):
        from papermill import inspect_notebook

    pick_device(given.get("device") or None)
    declared = {lesson: inspect_notebook(_literally(lesson)) for lesson in lessons}
    known = {"profile", "device"}.union(*declared.values())  # the command has these two, whatever the lessons declare
    check_names("parameter", given, known)
    checked: dict[Path, dict[str, Any]] = {lesson: {} for lesson in lessons}
    for lesson, about in declared.items():
        for name in given.keys() & about.keys():
            kind = about[name]["inferred_type_name"]
            try:
                checked[lesson][name] = _TYPES[kind](given[name])
            except (KeyError, ValueError) as error:
                message = f"parameter {name} of {lesson.stem} must be of type {kind}, got {given[name]!r}."
                raise ValueError(message) from error
    if any(each.get("seed", 0) < 0 for each in checked.values()):
        raise ValueError(f"parameter seed must be at least 0, got {given['seed']}.")
    return checked


def _literally(path: Path) -> str:
    """A path for papermill, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def execute_lessons(
    lessons: Sequence[Path],
    directory: Path,
    parameters: Mapping[str, str],
    *,
    jobs: int = 1,
    on_lesson: Callable[[Lesson], object] = lambda _: None,
) -> list[Lesson]:
    """Execute lessons into a directory, `jobs` at once, each in a process of its own; `on_lesson` is told of each.

    Parameters are checked against every notebook before the first one runs. A lesson that fails does not stop the
    others. One that was finished before is not executed again, unless what it was made from has changed: its notebook
    or parameters, a data set, an optimizer, a recorded result or the kit's version.

    Raises:
        ValueError: as `check_parameters`, `UnknownNameError` included.
        OSError: if a notebook cannot be written; lessons under way are stopped.
    """
    checked = check_parameters(lessons, parameters)
    done = {lesson: read_executed(directory / lesson.name) for lesson in lessons}
    done = {lesson: old for lesson, old in done.items() if old.made_from == _digest(lesson, checked[lesson])}
    for earlier in done.values():
        on_lesson(earlier)
    left = [lesson for lesson in lessons if lesson not in done]
    calls = [(lesson, directory, checked[lesson]) for lesson in left]
    # papermill changes the working directory and handles Ctrl-C itself, so it is never run in this process.
    done |= zip(left, parallel_map(execute_lesson, calls, jobs, on_lesson, apart=True), strict=True)
    return [done[lesson] for lesson in lessons]


def execute_lesson(lesson: Path, directory: Path, parameters: Mapping[str, Any]) -> Lesson:
    """Execute one lesson into `directory`. A cell that fails ends it; what was done until then is kept.

    Raises:
        OSError: if the notebook cannot be written.
    """
    import nbformat
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    class QuietKernelManager(AsyncKernelManager):
        """Of kernels that write nothing to the terminal: they only log what happens to their sockets when they end."""

        async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
            await super()._async_launch_kernel(kernel_cmd, **options, stderr=subprocess.DEVNULL)

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this environment, whatever else the user has
    if parameters.get("device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for what is not given the device, such as widgets
    path, failure, marked = directory / lesson.name, None, False
    directory.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    for diagram in (lesson.parent / "diagrams").glob("*.svg"):  # which lessons show
        write_atomically(directory / "diagrams" / diagram.name, diagram.read_bytes())
    try:
        papermill.execute_notebook(
            _literally(lesson),
            _literally(path),
            dict(parameters),
            kernel_name="python3",
            kernel_manager_class=QuietKernelManager,
            start_timeout=300,
            cwd=str(directory),
            progress_bar=False,
            store_widget_state=False,  # 5 MB of JavaScript for each live figure
        )
    except papermill.PapermillExecutionError as error:
        failure, marked = f"cell {error.exec_count}: {error.ename}: {error.evalue}", True
    except OSError as error:
        path.unlink(missing_ok=True)  # half of it may be there
        error.filename = error.filename or str(path)
        raise
    except Exception as error:  # such as a kernel that was killed for its memory: the other lessons go on
        failure = f"{type(error).__name__}: {error}"
        if not path.exists():
            return Lesson(path, path.stem, error=failure)
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    if failure is None:
        where = machine(pick_device(parameters.get("device") or None))
        notebook.metadata["l2l_machine"] = {**where, "profile": parameters.get("profile", "")}
        notebook.metadata["l2l_made_from"] = _digest(lesson, parameters)
    else:
        notebook.metadata["l2l_error"] = failure
    if failure and not marked:  # mark the last cell that was begun, as papermill does for a cell that raised
        name, _, value = failure.partition(": ")
        for begun in [cell for cell in notebook.cells if cell.metadata.papermill.start_time][-1:]:
            begun.outputs.append(nbformat.v4.new_output("error", ename=name, evalue=value, traceback=[failure]))  # type: ignore[no-untyped-call]
    write_atomically(path, nbformat.writes(notebook).encode())  # type: ignore[no-untyped-call]
    return read_executed(path)


def _digest(lesson: Path, parameters: Mapping[str, Any]) -> str:
    """Of what a lesson was made from: itself, its parameters, the kit's version, data sets, optimizers and results."""
    recorded = [path for path in sorted(RESULTS.rglob("*.csv")) if path.parent.name != "reproduce"]
    files = [*(each.path for each in DATA_SETS.values()), *sorted(PRETRAINED.glob("*.safetensors")), *recorded]
    states = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files if each.is_file()]
    about = json.dumps([dict(parameters), l2l_kit.__version__, states], sort_keys=True)
    return hashlib.sha256(lesson.read_bytes() + about.encode()).hexdigest()


def read_executed(path: Path) -> Lesson:
    """What an executed notebook claims and shows: nothing if it is not there, or was only half written."""
    with needs("reproduce"):
        import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except (OSError, ValueError):
        return Lesson(path, path.stem)
    headings: list[str] = []
    claims, pictures = [], []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings += re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)
        for output in cell.get("outputs", []):
            claim = output.get("metadata", {}).get("l2l_claim", {})
            if "verdict" in claim:  # not one of an older version of the kit, which knew only what holds
                claims.append(Claim(**claim))
            data = output.get("data", {})
            if encoded := data.get("image/png") or (_PLOTLY in data and data.get("image/jpeg")):
                title = output["data"].get(_PLOTLY, {}).get("layout", {}).get("title", {}).get("text")
                caption = title or (headings[-1] if headings else path.stem)
                pictures.append(Picture(re.sub(r"<[^>]+>|[*`$]", "", caption), base64.b64decode(encoded)))
    about = notebook.metadata
    return Lesson(
        path,
        headings[0] if headings else path.stem,
        about.get("papermill", {}).get("duration") or 0.0,
        claims,
        pictures,
        dict(about.get("l2l_machine", {})),
        about.get("l2l_error"),
        about.get("l2l_made_from", ""),
    )
