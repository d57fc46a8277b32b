"""What came out of executed lessons: a page and a table of the paper's claims, and what differs from the record."""

from __future__ import annotations

import base64
import io
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from l2l_kit import __version__
from l2l_kit.evaluation import Claim
from l2l_kit.reproduce import Lesson, Picture

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "numpy", "pandas", "optuna", "plotly", "matplotlib", "papermill", "jupyterlab", "ipywidgets")
STYLE = Path(__file__).with_name("report.css")
PICTURE_BYTES = 50_000
"""What a figure may weigh on the page, which is to stay below 10 MB."""
AXIS = 4.0
"""Effects are drawn on a logarithmic axis from one over this to this."""
MEANING = (
    "A claim <b>holds</b> if the measurement supports it, where it is a ratio with the whole 95% confidence interval; "
    "it <b>does not hold</b> if the measurement refutes it or cannot decide. Ratios are drawn on a logarithmic axis "
    f"from 1/{AXIS:g} to {AXIS:g}, their intervals as bars; the dotted line is 1, and an arrow points at what is "
    "beyond the axis."
)


def recorded_table(lessons: Sequence[Lesson]) -> pd.DataFrame:
    """The claims as a table, a row for each with the fields of `Claim`, to be recorded and compared with later."""
    import pandas as pd

    rows = [
        {"lesson": lesson.name, **asdict(claim), "seconds": round(lesson.seconds), **lesson.machine}
        for lesson in lessons
        for claim in lesson.claims
    ]
    return pd.DataFrame(rows).replace({None: math.nan})


class Change(NamedTuple):
    """A claim that is not as it was recorded, and in which way."""

    lesson: str
    source: str
    text: str
    what: str


def changes(lessons: Sequence[Lesson], recorded: pd.DataFrame) -> list[Change]:
    """Where these lessons differ from the recorded claims: verdicts, and effects outside their recorded interval.

    With another seed, one effect in six or so is outside by chance: two measurements differ by more than one of them
    is uncertain.

    Args:
        lessons: executed to their end; claims of others are not looked for.
        recorded: a table like that of `recorded_table`.
    """
    found = []
    for lesson in lessons:
        rows = recorded[recorded["lesson"] == lesson.name].set_index(["source", "text"])
        rows = rows[~rows.index.duplicated()]
        for claim in lesson.claims:
            key = (claim.source, claim.text)
            what = _change(claim, rows.loc[key]) if key in rows.index else "not recorded before"
            if what:
                found.append(Change(lesson.name, claim.source, claim.text, what))
        made = {(claim.source, claim.text) for claim in lesson.claims}
        gone = [(source, text) for source, text in rows.index if (source, text) not in made]
        found += [Change(lesson.name, source, text, "recorded, but not made any more") for source, text in gone]
    return found


def _change(claim: Claim, before: Any) -> str:
    """How a claim differs from its recorded row, in words; empty if it does not."""
    parts = []
    if bool(before["holds"]) != claim.holds:
        parts.append("holds now, did not before" if claim.holds else "does not hold any more")
    if claim.effect is not None and not math.isnan(before["effect"]):
        low, high = before["low"], before["high"]
        if claim.effect < low or claim.effect > high:
            parts.append(f"effect {claim.effect:.3g}, recorded {before['effect']:.3g} (95% CI {low:.3g} to {high:.3g})")
    return "; ".join(parts)


def claims_table(lessons: Sequence[Lesson]) -> str:
    """The claims as a Markdown table."""
    head = ("lesson", "paper", "claim", "effect (95% CI)", "problems", "seed", "device", "seconds", "holds")
    rows = [head, ["---"] * len(head)]
    for lesson in lessons:
        for claim in lesson.claims:
            effect = _effect(claim) or claim.measured
            verdict = "yes" if claim.holds else "**no**"
            counts = ("" if number is None else str(number) for number in (claim.problems, claim.seed))
            device, seconds = lesson.machine.get("device", ""), f"{lesson.seconds:.0f}"
            rows.append([lesson.name, claim.source, claim.text, effect, *counts, device, seconds, verdict])
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def _effect(claim: Claim) -> str:
    """The measured effect with its interval; empty where a claim is not about one number."""
    if claim.effect is None:
        return ""
    low, high = ("?" if bound is None else f"{bound:.3g}" for bound in (claim.low, claim.high))
    return f"{claim.effect:.3g} ({low} to {high})"


def environment(data: Mapping[str, str]) -> dict[str, str]:
    """How things are here: versions, machine, and of each data set what was there to be used."""
    about = {"l2l_kit": __version__, "Python": platform.python_version(), "system": platform.platform(terse=True)}
    about |= {"processor": f"{platform.machine()}, {os.cpu_count()} cores"}
    return {**about, **{name: version(name) for name in PACKAGES}, **{f"data: {name}": it for name, it in data.items()}}


def report(
    lessons: Sequence[Lesson],
    parameters: Mapping[str, str],
    about: Mapping[str, str],
    recorded: pd.DataFrame | None = None,
) -> str:
    """A self-contained HTML page: the verdicts, each lesson's claims and figures, what changed, and the environment.

    Args:
        lessons: executed.
        parameters: that they were executed with.
        about: what `environment` gives.
        recorded: claims to compare with; None if there are none.
    """
    claims = [claim for lesson in lessons for claim in lesson.claims]
    holding, failed = sum(claim.holds for claim in claims), sum(bool(lesson.error) for lesson in lessons)
    changed = None if recorded is None else changes([lesson for lesson in lessons if not lesson.error], recorded)
    chosen = ", ".join(f"{name} = {value}" for name, value in parameters.items()) or "as in the notebooks"
    tiles = [
        (f"{holding} of {len(claims)}", "claims hold"),
        (f"{len(lessons) - failed} of {len(lessons)}", "lessons ran to their end"),
        (_minutes(sum(lesson.seconds for lesson in lessons)), "of computing, all lessons together"),
        ("–" if changed is None else str(len(changed)), "claims differ from the record"),
    ]
    body = [
        "<header><h1>Learning to learn by gradient descent by gradient descent</h1>",
        '<p class="soft">What the paper claims, and what the lessons of l2l_kit measured. '
        f'{escape(chosen)}.</p><p class="soft">{MEANING}</p></header>',
        _tiles(tiles),
        _navigation(lessons),
        *(_section(lesson) for lesson in lessons),
        _changes(changed),
        f'<section id="environment"><h2>Environment</h2>{_pairs(about)}</section>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>l2l_kit: {holding} of {len(claims)} claims hold</title>"
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
        f"</head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _tiles(tiles: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f'<div class="tile"><b>{escape(number)}</b>{escape(what)}</div>' for number, what in tiles)
    return f'<div class="tiles">{inner}</div>'


def _navigation(lessons: Sequence[Lesson]) -> str:
    links = [(lesson.name, lesson.title.partition(":")[0]) for lesson in lessons]
    links += [("changes", "Against the record"), ("environment", "Environment")]
    return "<nav>" + "".join(f'<a href="#{escape(to)}">{escape(name)}</a>' for to, name in links) + "</nav>"


def _section(lesson: Lesson) -> str:
    about = ((name, value) for name, value in lesson.machine.items() if value)
    where = ", ".join(str(value) if name == "device" else f"{name} {value}" for name, value in about)
    link = f'<a href="notebooks/{escape(lesson.path.name)}">{escape(lesson.path.name)}</a>'
    parts = [
        f'<section id="{escape(lesson.name)}"><h2>{escape(lesson.title)}</h2>',
        f'<p class="soft">{link}, {_minutes(lesson.seconds)}{escape(f" on {where}" if where else "")}</p>',
        f'<p class="failed"><b>Failed.</b> {escape(lesson.error)}</p>' if lesson.error else "",
    ]
    if lesson.claims:
        head = '<tr><th>paper</th><th>claim</th><th>measured</th><th class="number">problems</th>'
        head += '<th class="number">seed</th><th>verdict</th></tr>'
        rows = "".join(map(_claim_row, lesson.claims))
        parts.append(f'<div class="scroll"><table>{head}{rows}</table></div>')
    if lesson.pictures:
        parts.append(f'<h3>Figures</h3><div class="figures">{"".join(map(_figure, lesson.pictures))}</div>')
    return "".join(parts) + "</section>"


def _claim_row(claim: Claim) -> str:
    effect = (
        f'<span class="effect"><b>{_effect(claim)}</b></span>{_interval(claim)}' if claim.effect is not None else ""
    )
    verdict = '<span class="yes">holds</span>' if claim.holds else '<span class="no">does not hold</span>'
    counts = "".join(
        f'<td class="number">{"" if number is None else number}</td>' for number in (claim.problems, claim.seed)
    )
    return (
        f"<tr><td>{escape(claim.source)}</td><td>{escape(claim.text)}</td>"
        f"<td>{effect}<small>{escape(claim.measured)}<br>On {escape(claim.conditions)}.</small></td>"
        f"{counts}<td>{verdict}</td></tr>"
    )


def _interval(claim: Claim) -> str:
    """The effect, a ratio, as a dot, its interval as a bar, and a line at 1; arrows for what is beyond the axis."""
    if not (claim.effect and claim.low and claim.high and claim.low > 0):
        return ""
    ends = "".join(
        f'<path class="beyond" d="{arrow}"/>'
        for arrow, beyond in (("M0 8l6-4v8z", claim.low < 1 / AXIS), ("M180 8l-6-4v8z", claim.high > AXIS))
        if beyond
    )
    bar = f'x1="{_across(claim.low):.1f}" x2="{_across(claim.high):.1f}"'
    inside = 1 / AXIS <= claim.effect <= AXIS
    dot = f'<circle cx="{_across(claim.effect):.1f}" cy="8" r="3.5"/>' if inside else ""
    return (
        f'<svg class="interval" viewBox="0 0 180 16" role="img" aria-label="{_effect(claim)}, on an axis around 1">'
        f'<line class="axis" x1="{_across(1):.1f}" x2="{_across(1):.1f}" y1="0" y2="16"/>'
        f'<line class="bar" {bar} y1="8" y2="8"/>{dot}{ends}</svg>'
    )


def _across(ratio: float) -> float:
    """Where a ratio is on the axis, in units of the picture, which is 180 wide; at its end if it is beyond."""
    return 90 + 84 * min(max(math.log(ratio) / math.log(AXIS), -1), 1)


def _figure(picture: Picture) -> str:
    caption, content = escape(picture.caption), base64.b64encode(smaller(picture.png, PICTURE_BYTES)).decode()
    image = f'<img alt="{caption}" loading="lazy" src="data:image/png;base64,{content}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def smaller(png: bytes, limit: int) -> bytes:
    """The same picture in at most so many bytes: with fewer colours, and as far as that does not do, fewer pixels."""
    import PIL.Image

    picture = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    scale = 1.0
    while len(png) > limit:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        buffer = io.BytesIO()
        picture.resize(size, PIL.Image.Resampling.LANCZOS).quantize(256).save(buffer, "png", optimize=True)
        png, scale = buffer.getvalue(), 0.85 * scale
    return png


def _changes(changed: list[Change] | None) -> str:
    if changed is None:
        inner = "<p>Nothing is recorded to compare with: <code>l2l reproduce --record</code> records a run.</p>"
    elif not changed:
        inner = "<p>Every verdict is as recorded, and every effect within its recorded 95% interval.</p>"
    else:
        rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in change) + "</tr>" for change in changed)
        head = "<tr><th>lesson</th><th>paper</th><th>claim</th><th>what changed</th></tr>"
        inner = (
            '<p class="soft">Verdicts that are not as recorded, and effects outside their recorded 95% interval. With '
            "another seed about one effect in six is outside by chance.</p>"
            f'<div class="scroll"><table>{head}{rows}</table></div>'
        )
    return f'<section id="changes"><h2>Against the record</h2>{inner}</section>'


def _pairs(about: Mapping[str, str]) -> str:
    rows: Iterator[str] = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in about.items())
    return f"<table>{''.join(rows)}</table>"
