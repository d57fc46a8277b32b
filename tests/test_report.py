"""The report: what holds and what does not, in words and pictures, without a network, and against the record."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from bs4 import BeautifulSoup

from l2l_kit import load
from l2l_kit.evaluation import Claim, Curves, beats_baselines, compare, tuned_baselines
from l2l_kit.making.lessons import Lesson, Picture
from l2l_kit.making.report import changes, claims_table, html_page, read_record, record_claims, smaller, write_report
from l2l_kit.problems import Quadratics

CLAIM = Claim("figure 0", "a < b & c | d", "ratio 0.4", "7 functions", True, 0.4, 0.3, 0.5, 7, 3)
LOOSE = Claim("section 1", "something", "it is so", "nothing", False)
WHERE = {"device": "a machine", "python": "3", "torch": "2", "profile": "quick"}


def png(width: int = 300, height: int = 200) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def lesson(*claims: Claim, name: str = "01_one", error: str | None = None) -> Lesson:
    picture = Picture("Loss & <time>", png(20, 10))
    return Lesson(Path(f"{name}.ipynb"), f"{name}: a lesson", 12.3, list(claims), [picture], WHERE, error)


def made(*lessons: Lesson, recorded=None) -> BeautifulSoup:
    return BeautifulSoup(html_page(lessons, {"seed": "3"}, {"mnist": "stand-in"}, recorded), "html.parser")


def text(page: BeautifulSoup) -> str:
    return " ".join(page.get_text().split())


def test_the_page_counts_what_holds_and_gives_every_number() -> None:
    page = made(lesson(CLAIM, LOOSE), lesson(CLAIM, name="02_two", error="cell 3: Error: no"))
    assert page.title.text == "l2l_kit: 2 of 3 claims hold"
    for said in (
        *("2 of 3 claims hold", "1 of 2 lessons ran to their end", "Failed. cell 3: Error: no", "cannot decide"),
        *("a < b & c | d", "0.4 (0.3 to 0.5)", "ratio 0.4", "On 7 functions", "seed = 3.", "mniststand-in"),
        "12 s on a machine, python 3, torch 2, profile quick",
    ):
        assert said in text(page)
    assert [each["class"] for each in page.select(".yes, .no")] == [["yes"], ["no"], ["yes"]]
    assert page.img["alt"] == "Loss & <time>"


def drawn(effect: float, low: float, high: float) -> dict[str, list[float]]:
    """Where a claim's line at 1, bar, dot and arrows are, across the page."""
    page = made(lesson(replace(CLAIM, effect=effect, low=low, high=high)))
    (axis,), (bar,) = page.select("line.axis"), page.select("line.bar")
    return {
        "axis": [float(axis["x1"]), float(axis["x2"])],
        "bar": [float(bar["x1"]), float(bar["x2"])],
        "dot": [float(dot["cx"]) for dot in page.select("circle")],
        "beyond": [float(re.findall(r"-?[\d.]+", arrow["d"])[0]) for arrow in page.select("path.beyond")],
    }


def test_an_effect_of_one_is_on_the_line_and_half_as_far_from_it_as_double() -> None:
    one = drawn(1.0, 0.5, 2.0)
    (line, same), (low, high) = one["axis"], one["bar"]
    assert line == same
    assert one["dot"] == [line]
    assert line - low == pytest.approx(high - line)
    assert low < line
    assert drawn(0.5, 0.4, 0.6)["dot"] == [low]
    assert drawn(2.0, 1.9, 2.1)["dot"] == [high]
    assert not one["beyond"]


def test_what_is_beyond_the_axis_is_marked_where_the_axis_ends() -> None:
    below, above = drawn(0.5, 1e-3, 0.6), drawn(50.0, 40.0, 60.0)
    (end,), (other,), (line, _) = below["beyond"], above["beyond"], below["axis"]
    assert line - end == pytest.approx(other - line)
    assert end < min(below["bar"]) < line
    assert above["dot"] == []  # the arrow alone, not a dot at another number
    assert drawn(1.0, 1e-3, 1e3)["beyond"] == [end, other]


@pytest.mark.parametrize("numbers", [(None, None, None), (0.4, None, 0.5), (0.4, 0.0, 0.5), (0.4, 0.3, None)])
def test_what_has_no_place_on_a_logarithmic_axis_is_not_drawn(numbers: tuple[float | None, ...]) -> None:
    page = made(lesson(replace(CLAIM, **dict(zip(("effect", "low", "high"), numbers, strict=True)))))
    assert not page.select("svg")


def test_every_link_of_the_page_leads_somewhere_and_nothing_is_loaded() -> None:
    page = made(lesson(CLAIM), lesson(name="02_two"))
    ids = {each["id"] for each in page.select("[id]")}
    for link in page.select("a"):
        assert link["href"][1:] in ids or link["href"].startswith("notebooks/0")
    for loaded in page.select("img, head link"):
        assert (loaded.get("src") or loaded["href"]).startswith("data:")
    assert not page.select("script, iframe")
    assert not re.search(r"https?://|@import|url\(", str(page))


def test_the_page_is_light_even_with_heavy_figures() -> None:
    heavy = Picture("noise", png(700, 500))
    page = html_page([replace(lesson(CLAIM), pictures=[heavy])], {}, {})
    assert len(heavy.png) > 1_000_000
    assert len(page) < 4 / 3 * 50_000 + 30_000
    assert smaller(png(20, 10), 10_000) == png(20, 10)
    small = smaller(png(300, 200), 30_000)
    width, height = PIL.Image.open(io.BytesIO(small)).size
    assert width / height == pytest.approx(1.5, rel=0.02)


def test_the_table_has_a_row_for_each_claim() -> None:
    head, _, first, second = claims_table([lesson(CLAIM, LOOSE)]).splitlines()
    assert head.count("|") == 10
    assert first == "| 01_one | figure 0 | a < b & c \\| d | 0.4 (0.3 to 0.5) | 7 | 3 | a machine | 12 | yes |"
    assert second == "| 01_one | section 1 | something | it is so |  |  | a machine | 12 | **no** |"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([CLAIM, LOOSE], []),
        ([replace(CLAIM, effect=0.31), LOOSE], []),
        ([replace(CLAIM, effect=0.29), LOOSE], ["effect 0.29, recorded 0.4 (95% CI 0.3 to 0.5)"]),
        ([replace(CLAIM, holds=False), LOOSE], ["does not hold any more"]),
        ([replace(CLAIM, effect=0.6, holds=False), LOOSE], ["does not hold any more; effect 0.6, recorded 0.4"]),
        ([CLAIM, replace(LOOSE, holds=True, effect=1.0)], ["holds now, did not before"]),
        ([CLAIM], ["recorded, but not made any more"]),
        ([CLAIM, LOOSE, replace(CLAIM, text="another")], ["not recorded before"]),
        ([], ["recorded, but not made any more"] * 2),
    ],
)
def test_what_differs_from_the_record_is_said(tmp_path: Path, now: list[Claim], said: list[str]) -> None:
    record_claims([lesson(CLAIM, LOOSE), lesson(CLAIM, name="02_two")], tmp_path)
    recorded = read_record(tmp_path)
    found = changes([lesson(*now)], recorded)["what"]
    assert [what.startswith(start) for what, start in zip(found, said, strict=True)] == [True] * len(said)
    page = text(made(lesson(*now), recorded=recorded))
    assert all(what in page for what in (found if said else ["Every verdict is as recorded"]))


def test_a_run_is_compared_with_what_was_recorded_of_its_lessons(tmp_path: Path) -> None:
    first, second = lesson(CLAIM), lesson(replace(CLAIM, seed=None), name="00_zero")
    assert "Nothing is recorded" in write_report([first], {}, tmp_path, tmp_path).read_text()
    record_claims([first], tmp_path)
    for _ in range(2):
        record_claims([second], tmp_path)
    recorded = read_record(tmp_path)
    assert list(recorded["lesson"]) == ["00_zero", "01_one"]
    assert list(recorded["effect"]) == [0.4, 0.4]
    page = write_report([lesson(replace(CLAIM, effect=0.6))], {}, tmp_path, tmp_path).read_text()
    assert "effect 0.6, recorded 0.4" in page
    assert "torch" in page
    assert "0.6 (0.3 to 0.5)" in (tmp_path / "claims.md").read_text()
    with pytest.raises(ValueError, match="01_one failed"):
        record_claims([lesson(error="cell 1")], tmp_path)
    assert list(read_record(tmp_path)["lesson"]) == ["00_zero", "01_one"]


class Uphill:
    """An optimizer broken on purpose: it takes every step of another one in the opposite direction."""

    def __init__(self, rule):
        self.init, self.rule = rule.init, rule

    def update(self, gradients, state, params):
        updates, state = self.rule.update(gradients, state, params)
        return {name: -update for name, update in updates.items()}, state


@pytest.mark.parametrize("broken", [False, True])
def test_a_broken_optimizer_is_seen_to_fail(broken: bool) -> None:
    rule = load("quadratics")
    contenders = {"LSTM": Uphill(rule) if broken else rule, **tuned_baselines("quadratics")}
    curves = compare(contenders, Quadratics(dim=10), steps=100, num_tasks=256, device="cpu")
    page = made(lesson(beats_baselines(curves, "figure 4", "it is ahead", from_step=100)))
    assert ("0 of 1 claims hold" if broken else "1 of 1 claims hold") in text(page)


def test_an_infinite_effect_is_left_out() -> None:
    losses = {"LSTM": torch.full((5, 30), torch.inf), "Adam": torch.ones(5, 30)}
    claim = beats_baselines(Curves(losses, {"name": "synthetic"}, 0), "figure 0", "it wins")
    assert (claim.holds, claim.effect, claim.problems) == (False, None, 5)
