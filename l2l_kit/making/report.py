"""What came out of executed lessons: a page and a table of the paper's claims, and what differs from the record."""

from __future__ import annotations

import base64
import io
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from l2l_kit import __version__, data
from l2l_kit.evaluation import GROUPS, VERDICTS, Claim, read_result, tally, with_seed, write_result
from l2l_kit.extras import needs, pd
from l2l_kit.making.lessons import Lesson
from l2l_kit.storage import write_atomically

RECORD, COMMAND = "reproduce/claims", "l2l reproduce --record"
CLAIM = ["lesson", "source", "text"]  # columns that say which claim a row is about
PACKAGES = ("torch", "numpy", "pandas", "optuna", "plotly", "matplotlib", "papermill", "jupyterlab", "ipywidgets")
PICTURE_BYTES = 50_000  # what a figure may weigh on the page, which is to stay below 10 MB
AXIS = 2.0  # effects are drawn on a logarithmic axis from one over this to this


def write_report(lessons: Sequence[Lesson], parameters: Mapping[str, str], folder: Path, results: Path) -> Path:
    """Write ``claims.md``, the claims as a table, and ``report.html``, a page that needs no other file.

    The page has the claims and verdicts, the paper's first, the lessons' figures, and what changed.

    Args:
        lessons: executed.
        parameters: that they were executed with.
        folder: where both files go.
        results: where claims are recorded to compare with.

    Returns:
        Path of the page.
    """
    recorded, finished = read_record(results), [lesson for lesson in lessons if not lesson.error]
    changed = None if recorded is None else changes(finished, recorded)
    values = {"parameters": parameters, "environment": environment(), "axis": AXIS, "changes": changed}
    values |= {"repeats": repeats(results)}
    write_atomically(folder / "claims.md", _rendered("claims.md.jinja", lessons).encode())
    write_atomically(folder / "report.html", _rendered("report.html.jinja", lessons, **values).encode())
    return folder / "report.html"


def read_record(results: Path, seed: int = 0) -> pd.DataFrame | None:
    """The claims recorded with a seed; None if there are none, or only an older version's, which have no verdicts."""
    name = with_seed(RECORD, seed) if seed else RECORD
    if not (results / f"{name}.csv").exists():
        return None
    table = read_result(name, results)
    return table.fillna({"data": ""}) if "verdict" in table else None


def record_claims(lessons: Sequence[Lesson], results: Path, seed: int = 0) -> Path:
    """Record the claims of these lessons; those of other lessons, and of other seeds, stay as they were recorded.

    Raises:
        ValueError: if a lesson failed.
    """
    if failed := [lesson.name for lesson in lessons if lesson.error]:
        raise ValueError(f"{', '.join(failed)} failed; only lessons that ran to their end can be recorded.")
    table, before = claims_frame(lessons), read_record(results, seed)
    if before is not None:
        others = before[~before["lesson"].isin([lesson.name for lesson in lessons])]
        table = pd.concat([others, table]).sort_values("lesson", kind="stable") if len(others) else table
    name, command = (with_seed(RECORD, seed), f"{COMMAND} -p seed={seed}") if seed else (RECORD, COMMAND)
    return write_result(name, table, {"command": command, **environment()}, results)


def repeats(results: Path) -> dict[int, pd.DataFrame]:
    """By seed, the recorded claims that were measured again with it, on other tasks than those of the record.

    Columns are those of a record, and `verdict_again`, `effect_again` and so on. A claim from a sweep that was drawn
    with one seed only is not among them.
    """
    first, found = read_record(results), {}
    for path in sorted(results.glob(f"{RECORD}-seed*.csv")):
        seed = int(path.stem.rpartition("seed")[2])
        again = read_record(results, seed)
        if first is not None and again is not None:
            both = first.merge(again, on=CLAIM, suffixes=("", "_again"))
            # A claim about trainings has no seed of tasks. That they met other tasks is seen from the table's command.
            swept = both["recorded_again"].fillna("").str.contains(f"--seed {seed}`", regex=False)
            found[seed] = both[swept | (both["seed_again"].notna() & (both["seed_again"] != both["seed"]))]
    return found


def claims_frame(lessons: Sequence[Lesson]) -> pd.DataFrame:
    """The claims as a table: a row for each, with the fields of `Claim`, its lesson and the machine."""
    rows = [
        {"lesson": lesson.name, **asdict(claim), "seconds": round(lesson.seconds), **lesson.machine}
        for lesson in lessons
        for claim in lesson.claims
    ]
    names = list(rows[0]) if rows else ["lesson", *(field.name for field in fields(Claim))]
    return pd.DataFrame(rows, columns=names).replace({None: math.nan})


def changes(lessons: Sequence[Lesson], recorded: pd.DataFrame) -> pd.DataFrame:
    """Where lessons differ from the recorded claims: verdicts, and ratios outside their recorded interval.

    With another seed, one ratio in six or so is outside by chance: two measurements differ by more than one of them
    is uncertain.

    Args:
        lessons: executed to their end; claims of others are not looked for.
        recorded: a table like that of `claims_frame`.

    Returns:
        A row for each claim that differs, with the columns lesson, source, text and what.
    """
    recorded = recorded[recorded["lesson"].isin([lesson.name for lesson in lessons])].drop_duplicates(CLAIM)
    both = claims_frame(lessons).merge(recorded, "outer", CLAIM, suffixes=("", "_before"), indicator="which")
    both["what"] = [_change(row) for row in both.to_dict("records")]
    return both.loc[both["what"] != "", [*CLAIM, "what"]]


def _change(row: Mapping[Any, Any]) -> str:
    """How a claim differs from its recorded row, in words; empty if it does not."""
    if row["which"] != "both":
        return "not recorded before" if row["which"] == "left_only" else "recorded, but not made any more"
    parts = []
    if row["verdict"] != row["verdict_before"]:
        parts.append(f"{row['verdict']}, was {row['verdict_before']}")
    if row["effect"] < row["low_before"] or row["effect"] > row["high_before"]:  # neither where one is missing
        before = f"{row['effect_before']:.3g} (95% CI {row['low_before']:.3g} to {row['high_before']:.3g})"
        parts.append(f"ratio {row['effect']:.3g}, recorded {before}")
    if parts and row["data"] != row["data_before"]:
        parts.append(f"measured on other data: {row['data']}, not {row['data_before']}")
    return "; ".join(parts)


def environment() -> dict[str, str]:
    """How things are here: versions, machine, and which of the data sets are in the cache."""
    about = {"l2l_kit": __version__, "Python": platform.python_version(), "system": platform.platform(terse=True)}
    about |= {"processor": f"{platform.machine()}, {os.cpu_count()} cores"}
    about |= {name: version(name) for name in PACKAGES}
    for name, data_set in data.DATA_SETS.items():
        whole, remark = data.status(name)
        copy = f"whole, in the cache{f' ({remark})' if remark else ''}"
        about[f"data: {name}"] = copy if whole else f"stand-in: {data_set.stand_in}"
    return about


def _rendered(template: str, lessons: Sequence[Lesson], **values: Any) -> str:
    """A template with the lessons and their claims by group: (group, title, meaning, claims with their lessons)."""
    with needs("reproduce"):
        import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    templates.filters |= {"across": across, "effect": effect, "minutes": minutes, "embedded": embedded, "tally": tally}
    pairs = [(claim, lesson) for lesson in lessons for claim in lesson.claims]
    groups = [
        (group, title, meaning, [pair for pair in pairs if pair[0].group == group])
        for group, (title, meaning) in GROUPS.items()
    ]
    return templates.get_template(template).render(lessons=lessons, groups=groups, verdicts=VERDICTS, **values)


def effect(claim: Claim) -> str:
    """The measured ratio with its interval; empty where it is not finite."""
    if claim.effect is None:
        return ""
    low, high = ("?" if bound is None else f"{bound:.3g}" for bound in (claim.low, claim.high))
    return f"{claim.effect:.3g} ({low} to {high})"


def across(ratio: float) -> str:
    """Where a ratio is on the axis, in units of the picture, which is 180 wide; at its end if it is beyond."""
    return f"{90 + 84 * min(max(math.log(ratio) / math.log(AXIS), -1), 1):.1f}"


def minutes(seconds: float) -> str:
    """A duration in the unit that fits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def embedded(png: bytes) -> str:
    """A picture as an address that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(smaller(png, PICTURE_BYTES)).decode()}"


def smaller(png: bytes, limit: int) -> bytes:
    """The same picture as a PNG of at most so many bytes: with fewer colours or, if need be, fewer pixels."""
    with needs("lessons"):
        import PIL.Image

    picture = PIL.Image.open(io.BytesIO(png)).convert("RGBA")
    picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    scale = 1.0
    while len(png) > limit or not png.startswith(b"\x89PNG"):
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        buffer = io.BytesIO()
        picture.resize(size, PIL.Image.Resampling.LANCZOS).quantize(256).save(buffer, "png", optimize=True)
        png, scale = buffer.getvalue(), 0.85 * scale
    return png
