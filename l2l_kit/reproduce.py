"""Reproducing the paper: papermill executes the lessons headless, their claims and figures become a report."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import Claim, machine
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
    import papermill as pm

    path = directory / lesson.name
    directory.mkdir(parents=True, exist_ok=True)
    started, failure = time.monotonic(), None
    try:
        # Widget state would store 5 MB of JavaScript for each live figure.
        pm.execute_notebook(
            str(lesson),
            str(path),
            dict(parameters),
            kernel_name="python3",
            cwd=str(directory),
            store_widget_state=False,
        )
    except pm.PapermillExecutionError as error:
        failure = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    claims, figures = _harvest(path)
    return Lesson(path, time.monotonic() - started, claims, figures, failure)


def _harvest(path: Path) -> tuple[list[Claim], list[bytes]]:
    """Claims and static figures among a notebook's outputs."""
    import nbformat

    claims, figures = [], []
    for cell in nbformat.read(path, as_version=4).cells:  # type: ignore[no-untyped-call]
        for output in cell.get("outputs", []):
            if claim := output.get("metadata", {}).get("l2l_claim"):
                claims.append(Claim(**claim))
            if png := output.get("data", {}).get("image/png"):
                figures.append(base64.b64decode(png))
    return claims, figures


def reproduce(
    lessons: Sequence[Path],
    directory: Path,
    parameters: Mapping[str, str],
    on_lesson: Callable[[Lesson], None] = lambda _: None,
) -> list[Lesson]:
    """Execute lessons in order and write ``report.html`` and ``claims.md`` into `directory`.

    Parameters are checked against every notebook before the first one runs. A lesson that fails does not stop the
    others.

    Args:
        lessons: notebooks, from `find_lessons`.
        directory: where executed notebooks and the report go.
        parameters: values as text, by name; each lesson gets those that it declares.
        on_lesson: called after each lesson.

    Raises:
        UnknownNameError: if no lesson declares one of the parameters.
        ValueError: if a value is not of the declared type.
    """
    import papermill as pm

    declared = {lesson: set(pm.inspect_notebook(str(lesson))) for lesson in lessons}
    everything = set().union(*declared.values())
    for name in parameters:
        if name not in everything:
            raise UnknownNameError("parameter", name, everything)
    checked = {
        lesson: check_parameters(lesson, {name: parameters[name] for name in parameters if name in declared[lesson]})
        for lesson in lessons
    }
    done = []
    for lesson in lessons:
        done.append(run_lesson(lesson, directory / "notebooks", checked[lesson]))
        on_lesson(done[-1])
    (directory / "claims.md").write_text(claims_table(done), encoding="utf-8")
    (directory / "report.html").write_text(report(done, parameters), encoding="utf-8")
    return done


def claims_table(lessons: Sequence[Lesson]) -> str:
    """The claims as a Markdown table."""
    lines = ["| lesson | paper | claim | measured | on | holds |", "|---|---|---|---|---|---|"]
    for lesson in lessons:
        for claim in lesson.claims:
            cells = (lesson.name, claim.source, claim.text, claim.measured, claim.conditions, _verdict(claim))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _verdict(claim: Claim) -> str:
    return "yes" if claim.holds else "**no**"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #ccc; padding: 0.4rem 0.6rem; text-align: left; vertical-align: top; }
img { max-width: 100%; }
.yes { color: #06703c; font-weight: 600; } .no { color: #b00020; font-weight: 600; }
"""


def report(lessons: Sequence[Lesson], parameters: Mapping[str, str]) -> str:
    """A self-contained HTML page: what ran where, each claim with its measurement, each lesson's figures."""
    escape = html.escape
    where = ", ".join(f"{name} {value}" for name, value in machine().items())
    chosen = ", ".join(f"{name}={value}" for name, value in parameters.items()) or "as in the notebooks"
    rows = [
        f"<tr><td>{escape(claim.source)}</td><td>{escape(claim.text)}</td><td>{escape(claim.measured)}<br>"
        f"<small>{escape(claim.conditions)}</small></td>"
        f"<td class={'yes' if claim.holds else 'no'}>{'holds' if claim.holds else 'does not hold'}</td></tr>"
        for lesson in lessons
        for claim in lesson.claims
    ]
    sections = []
    for lesson in lessons:
        state = f'<p class="no">failed: {escape(lesson.error)}</p>' if lesson.error else ""
        figures = "".join(
            f'<p><img alt="figure {number} of {escape(lesson.name)}" '
            f'src="data:image/png;base64,{base64.b64encode(figure).decode()}"></p>'
            for number, figure in enumerate(lesson.figures, start=1)
        )
        link = f'<a href="notebooks/{escape(lesson.path.name)}">{escape(lesson.path.name)}</a>'
        sections.append(f"<h2>{escape(lesson.name)}</h2><p>{link}, {lesson.seconds:.0f} s</p>{state}{figures}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>l2l_kit: reproduction report</title>'
        f"<style>{_STYLE}</style><h1>Learning to learn by gradient descent by gradient descent: reproduction</h1>"
        f"<p>Parameters: {escape(chosen)}. Machine: {escape(where)}.</p>"
        "<table><tr><th>paper</th><th>claim</th><th>measured</th><th>verdict</th></tr>"
        f"{''.join(rows)}</table>{''.join(sections)}</html>\n"
    )
