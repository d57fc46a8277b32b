"""What came out of executed lessons: the paper's claims as a table, and a page with all figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from l2l_kit.evaluation import Claim, machine
from l2l_kit.reproduce import Lesson


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
