"""The report: what holds and what does not, in words and pictures, without a network, and against the record."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from l2l_kit import cli, load
from l2l_kit.evaluation import Claim, beats_baselines, compare, read_result, tuned_baselines, write_result
from l2l_kit.problems import Quadratics
from l2l_kit.report import changes, claims_table, environment, recorded_table, report, smaller
from l2l_kit.reproduce import Lesson, Picture

CLAIM = Claim("figure 0", "a < b & c | d", "ratio 0.4", "7 functions", True, 0.4, 0.3, 0.5, 7, 3)
WHERE = {"device": "a machine", "python": "3", "torch": "2", "profile": "quick"}


def png(width: int = 300, height: int = 200) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def lesson(*claims: Claim, name: str = "01_one", error: str | None = None) -> Lesson:
    picture = Picture("Loss & <time>", png(20, 10))
    return Lesson(Path(f"{name}.ipynb"), f"{name}: a lesson", 12.3, list(claims), [picture], WHERE, error)


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def made(*lessons: Lesson, recorded=None) -> Page:
    return Page(report(lessons, {"seed": "3"}, environment({"mnist": "stand-in"}), recorded))


def test_the_summary_counts_what_holds() -> None:
    page = made(lesson(CLAIM, replace(CLAIM, holds=False)), lesson(CLAIM, name="02_two", error="cell 3: Error: no"))
    assert "2 of 3claims hold" in page.text
    assert "1 of 2lessons ran to their end" in page.text
    assert "Failed. cell 3: Error: no" in page.text
    assert [kind for _, each in page.tags if (kind := each.get("class")) in ("yes", "no")] == ["yes", "no", "yes"]


def test_a_claim_has_its_numbers_and_the_lesson_its_machine() -> None:
    page = made(lesson(CLAIM))
    for said in (
        "a < b & c | d",
        "0.4 (0.3 to 0.5)",
        "ratio 0.4",
        "On 7 functions",
        "on a machine, python 3",
        "seed = 3",
    ):
        assert said in page.text
    assert "torch" in page.text
    assert "stand-in" in page.text


def drawn(effect: float, low: float, high: float) -> dict[str, list[float]]:
    """Where a claim's line at 1, bar, dot and arrows are, across the page."""
    parts: dict[str, list[float]] = {"axis": [], "bar": [], "dot": [], "beyond": []}
    for tag, attributes in made(lesson(replace(CLAIM, effect=effect, low=low, high=high))).tags:
        kind = attributes.get("class") or ""
        if tag == "line":
            parts[kind] += [float(attributes["x1"] or ""), float(attributes["x2"] or "")]
        elif tag == "circle":
            parts["dot"].append(float(attributes["cx"] or ""))
        elif tag == "path":
            parts["beyond"].append(float(re.findall(r"-?[\d.]+", attributes["d"] or "")[0]))
    return parts


def test_an_effect_of_one_is_on_the_line_and_half_as_far_from_it_as_double() -> None:
    one = drawn(1.0, 0.5, 2.0)
    (line, same), (low, high) = one["axis"], one["bar"]
    assert line == same
    assert one["dot"] == [line]
    assert line - low == pytest.approx(high - line)
    assert low < line
    assert drawn(0.5, 0.4, 0.6)["dot"] == [low]
    assert drawn(2.0, 1.9, 2.1)["dot"] == [high]
    assert drawn(1.1, 1.05, 1.2)["dot"][0] > line  # behind, and not on the better side
    assert drawn(0.9, 0.8, 0.95)["dot"][0] < line
    assert not one["beyond"]


def test_what_is_beyond_the_axis_is_marked_where_the_axis_ends() -> None:
    (end,) = drawn(0.5, 1e-3, 0.6)["beyond"]
    (other,) = drawn(2.0, 1.5, 1e3)["beyond"]
    line = drawn(0.5, 1e-3, 0.6)["axis"][0]
    assert line - end == pytest.approx(other - line)
    assert end < min(drawn(0.5, 1e-3, 0.6)["bar"]) < line
    assert drawn(50.0, 40.0, 60.0)["dot"] == []  # the arrow alone, not a dot at another number
    assert drawn(50.0, 40.0, 60.0)["beyond"] == [other]
    assert drawn(1.0, 1e-3, 1e3)["beyond"] == [end, other]


def test_the_page_says_what_a_verdict_means() -> None:
    assert "cannot decide" in made(lesson(CLAIM)).text


def test_every_link_of_the_page_leads_somewhere_and_nothing_is_loaded() -> None:
    page = made(lesson(CLAIM), lesson(name="02_two"))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            target = attributes.get(name)
            if target is not None and tag != "a":
                assert target.startswith("data:")
            elif target is not None:
                assert target[1:] in ids if target.startswith("#") else target.startswith("notebooks/")
        assert tag not in ("script", "iframe")
    assert not re.search(r"https?://|@import|url\(", report([lesson(CLAIM)], {}, {}))


def test_figures_have_their_caption_in_words() -> None:
    (image,) = [attributes for tag, attributes in made(lesson(CLAIM)).tags if tag == "img"]
    assert image["alt"] == "Loss & <time>"


def test_the_page_is_light_even_with_heavy_figures() -> None:
    heavy = Picture("noise", png(1200, 900))
    page = report([replace(lesson(CLAIM), pictures=[heavy])], {}, {})
    assert len(heavy.png) > 2_000_000
    assert len(page) < 4 / 3 * 50_000 + 30_000


def test_a_picture_keeps_its_shape_when_it_is_made_smaller() -> None:
    assert smaller(png(20, 10), 10_000) == png(20, 10)
    small = smaller(png(900, 600), 50_000)
    assert len(small) <= 50_000
    width, height = PIL.Image.open(io.BytesIO(small)).size
    assert width / height == pytest.approx(1.5, rel=0.02)


def test_the_table_has_a_row_for_each_claim() -> None:
    loose = Claim("section 1", "something", "it is so", "nothing", False)
    head, _, first, second = claims_table([lesson(CLAIM, loose)]).splitlines()
    assert head.count("|") == 10
    assert first == "| 01_one | figure 0 | a < b & c \\| d | 0.4 (0.3 to 0.5) | 7 | 3 | a machine | 12 | yes |"
    assert second == "| 01_one | section 1 | something | it is so |  |  | a machine | 12 | **no** |"


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (CLAIM, None),
        (replace(CLAIM, effect=0.31), None),
        (replace(CLAIM, effect=0.29), "effect 0.29, recorded 0.4 (95% CI 0.3 to 0.5)"),
        (replace(CLAIM, holds=False), "does not hold any more"),
        (replace(CLAIM, effect=0.6, holds=False), "does not hold any more; effect 0.6"),
        (replace(CLAIM, text="another"), "not recorded before"),
    ],
)
def test_what_differs_from_the_record_is_said(tmp_path: Path, now: Claim, said: str | None) -> None:
    loose = Claim("section 1", "something", "it is so", "nothing", False)
    write_result("claims", recorded_table([lesson(CLAIM, loose), lesson(CLAIM, name="02_two")]), {}, tmp_path)
    recorded = read_result("claims", tmp_path)
    found = [change.what for change in changes([lesson(now, loose)], recorded)]
    if said is None:
        assert found == []
        assert "Every verdict is as recorded" in made(lesson(now, loose), recorded=recorded).text
    else:
        assert said in found[0]
        assert said in made(lesson(now, loose), recorded=recorded).text
    gone = [what for what in found if "not made any more" in what]
    assert len(gone) == (now.text == "another")


class Uphill:
    """An optimizer broken on purpose: it takes every step of another one in the opposite direction."""

    def __init__(self, rule):
        self.rule = rule

    def init(self, params):
        return self.rule.init(params)

    def update(self, gradients, state, params):
        updates, state = self.rule.update(gradients, state, params)
        return {name: -update for name, update in updates.items()}, state


@pytest.mark.parametrize("broken", [False, True])
def test_a_broken_optimizer_is_seen_to_fail(broken: bool) -> None:
    rule = load("quadratics")
    contenders = {"LSTM": Uphill(rule) if broken else rule, **tuned_baselines("quadratics")}
    curves = compare(contenders, Quadratics(dim=10), steps=100, num_tasks=256, device="cpu")
    claim = beats_baselines(curves, "figure 4", "it is ahead", from_step=100)
    assert json.loads(json.dumps(claim.__dict__, allow_nan=False))["problems"] == 256
    page = made(lesson(claim))
    assert ("0 of 1claims hold" if broken else "1 of 1claims hold") in page.text
    assert any(each.get("class") == "no" for _, each in page.tags) == broken
    assert ("**no**" in claims_table([lesson(claim)])) == broken


class TestRecord:
    @pytest.fixture(autouse=True)
    def _executed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lessons are executed elsewhere; here they come out as they are put in."""
        self.out = [lesson(CLAIM)]
        monkeypatch.setattr(cli, "find_lessons", lambda _: [])
        monkeypatch.setattr(cli, "run_lessons", lambda *_, **__: self.out)

    def run(self, folder: Path, *arguments: str) -> str:
        options = ["--data", str(folder), "--out", str(folder / "out")]
        result = CliRunner().invoke(cli.app, ["reproduce", *options, *arguments])
        assert result.exit_code == (2 if "error:" in result.output else 0), result.output
        return result.output

    def test_a_run_is_compared_with_what_was_recorded(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        assert "Nothing is recorded" in (tmp_path / "out" / "report.html").read_text()
        self.run(tmp_path, "--record")
        self.out = [lesson(replace(CLAIM, effect=0.6))]
        self.run(tmp_path)
        assert "effect 0.6, recorded 0.4" in (tmp_path / "out" / "report.html").read_text()

    def test_other_lessons_stay_as_they_were_recorded(self, tmp_path: Path) -> None:
        self.run(tmp_path, "--record")
        self.out = [lesson(replace(CLAIM, seed=None), name="00_zero")]
        self.run(tmp_path, "--record")
        self.run(tmp_path, "--record")
        recorded = read_result(cli.RECORD, tmp_path / "results")
        assert list(recorded["lesson"]) == ["00_zero", "01_one"]
        assert list(recorded["effect"]) == [0.4, 0.4]

    def test_a_failed_run_is_not_recorded(self, tmp_path: Path) -> None:
        self.out = [lesson(CLAIM, error="cell 1")]
        assert "01_one failed" in self.run(tmp_path, "--record")
        assert not (tmp_path / "results").exists()


def test_an_infinite_effect_is_left_out() -> None:
    from l2l_kit.evaluation import Curves

    losses = {"LSTM": torch.full((5, 30), torch.inf), "Adam": torch.ones(5, 30)}
    claim = beats_baselines(Curves(losses, {"name": "synthetic"}, 0), "figure 0", "it wins")
    assert (claim.holds, claim.effect, claim.problems) == (False, None, 5)
