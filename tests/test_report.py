"""The report: what holds and what does not, in words and pictures, without a network, and against the record."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from bs4 import BeautifulSoup

from l2l_kit import load
from l2l_kit.evaluation import VERDICTS, Claim, claim, compare, ratio_table, tuned_baselines
from l2l_kit.making.lessons import Lesson, Picture
from l2l_kit.making.report import changes, read_record, record_claims, repeats, smaller, write_report
from l2l_kit.problems import Quadratics

CLAIM = Claim(
    *("paper", "figure 0", "a < b & c | d", "holds", "LSTM / Adam: 0.6", "Holds if below 0.9", "7 functions"),
    *(0.6, 0.55, 0.7, 0.9, 7, 3, "real data"),
)
LOOSE = Claim("ours", "section 1", "something", "undecided", "it is so")
WHERE = {"device": "a machine", "python": "3", "torch": "2", "profile": "quick"}


def png(width: int = 300, height: int = 200) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def lesson(*claims: Claim, name: str = "01_one", error: str | None = None) -> Lesson:
    picture = Picture("Loss & <time>", png(20, 10))
    return Lesson(Path(f"{name}.ipynb"), f"{name}: a lesson", 12.3, list(claims), [picture], WHERE, error)


@pytest.fixture(autouse=True)
def no_data_sets(tmp_path, monkeypatch):
    """A report tells which data sets are whole, and their checksums take a while."""
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def made(tmp_path):
    """Makes the page of lessons."""
    return lambda *lessons: BeautifulSoup(
        write_report(lessons, {"seed": "3"}, tmp_path, tmp_path).read_text(), "html.parser"
    )


def text(page: BeautifulSoup) -> str:
    return " ".join(page.get_text().split())


def test_the_page_says_what_was_measured_in_this_run_and_what_was_read(made, tmp_path: Path) -> None:
    read = replace(CLAIM, text="f", recorded="From the recorded table x, made by `l2l sweep x` on a machine")
    page = made(lesson(CLAIM, read))
    assert "1 of these claims measured in this run 1 from tables that were recorded before" in text(page)
    assert text(page).count(read.recorded) == 1
    assert f"| {read.recorded} |" in (tmp_path / "claims.md").read_text()


def test_the_page_leads_with_the_papers_claims_and_gives_every_number(made) -> None:
    refuted, stand_in = replace(CLAIM, verdict="refuted", text="e"), replace(CLAIM, group="stand-in")
    page = made(lesson(LOOSE, CLAIM), lesson(refuted, stand_in, name="02_two", error="cell 3: no"))
    assert page.title.text == "l2l_kit, the paper's claims: 1 hold, 1 refuted, 0 undecided"
    for said in (
        *("1 of the paper's 2 claims: holds", "1 of 2 lessons ran to their end", "Failed. cell 3: no"),
        *("a < b & c | d", "LSTM / Adam: 0.6", "Holds if below 0.9.", "7 functions.", "seed = 3.", "data: mnist"),
        *("12 s on a machine, python 3, torch 2, profile quick", *VERDICTS.values()),
    ):
        assert said in text(page)
    found = {
        part["id"]: [tag.text for tag in part.select("td span") if tag.text in VERDICTS] for part in page("section")
    }
    assert list(found)[:3] == ["paper", "ours", "stand-in"]
    assert list(found.values())[:3] == [["holds", "refuted"], ["undecided"], ["holds"]]
    assert page.img["alt"] == "Loss & <time>"


@pytest.fixture
def drawn(made):
    """Where a claim's line at 1, margin, bar, dots and arrows are, across the page."""

    def places(effect: float, low: float, high: float) -> list[list[float]]:
        page = made(lesson(replace(CLAIM, effect=effect, low=low, high=high)))
        found = [[float(each[at]) for each in page.select(f"line.{name}") for at in ("x1", "x2")] for name in LINES]
        arrows = [float(re.findall(r"-?[\d.]+", arrow["d"])[0]) for arrow in page.select("path.beyond")]
        return [*found, [float(dot["cx"]) for dot in page.select("circle")], arrows]

    return places


LINES = ("axis", "margin", "bar")


def test_ratios_are_drawn_on_a_logarithmic_axis_and_arrows_are_where_it_ends(drawn) -> None:
    (line, same), margin, (low, high), dot, arrows = drawn(1.0, 1 / 1.5, 1.5)
    assert (line, dot, arrows) == (same, [line], [])
    assert line - low == pytest.approx(high - line)
    assert [drawn(ratio, 0.6, 1.6)[3] for ratio in (1 / 1.5, 1.5, 0.9)] == [[low], [high], margin[:1]]
    *_, below = drawn(0.55, 1e-3, 0.6)
    *_, dots, above = drawn(50.0, 40.0, 60.0)
    assert below < [low] < [high] < above
    assert dots == []  # the arrow alone, not a dot at another number
    assert drawn(1.0, 1e-3, 1e3)[4] == [*below, *above]


@pytest.mark.parametrize("numbers", [(None, None, None), (0.4, None, 0.5), (0.4, 0.0, 0.5), (0.4, 0.3, None)])
def test_what_has_no_place_on_a_logarithmic_axis_is_not_drawn(made, numbers: tuple[float | None, ...]) -> None:
    page = made(lesson(replace(CLAIM, **dict(zip(("effect", "low", "high"), numbers, strict=True)))))
    assert not page.select("svg")


def test_every_link_of_the_page_leads_somewhere_and_nothing_is_loaded(made) -> None:
    page = made(lesson(CLAIM), lesson(name="02_two"))
    ids = {each["id"] for each in page.select("[id]")}
    for link in page.select("a"):
        assert link["href"][1:] in ids or link["href"].startswith("notebooks/0")
    for loaded in page.select("img, head link"):
        assert (loaded.get("src") or loaded["href"]).startswith("data:")
    assert not page.select("script, iframe")
    assert not re.search(r"https?://|@import|url\(", str(page))


def test_the_page_is_light_even_with_heavy_figures(made) -> None:
    heavy = Picture("noise", png(700, 500))
    assert len(heavy.png) > 1_000_000
    assert len(str(made(replace(lesson(CLAIM), pictures=[heavy])))) < 4 / 3 * 50_000 + 30_000
    assert smaller(png(20, 10), 10_000) == png(20, 10)
    small = smaller(png(300, 200), 30_000)
    width, height = PIL.Image.open(io.BytesIO(small)).size
    assert width / height == pytest.approx(1.5, rel=0.02)


def test_the_table_has_a_row_for_each_claim(made, tmp_path: Path) -> None:
    made(lesson(CLAIM, LOOSE))
    table = (tmp_path / "claims.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| 01")]
    assert rows[0] == "| 01_one | figure 0 | a < b & c \\| d | 0.6 (0.55 to 0.7) | 0.9 | 7 | 3 | holds | in this run |"
    assert rows[1] == "| 01_one | section 1 | something | it is so |  |  |  | undecided | in this run |"
    assert "1 hold, 0 refuted, 0 undecided" in table


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([CLAIM, LOOSE], []),
        ([replace(CLAIM, effect=0.56, data="other data"), LOOSE], []),
        ([replace(CLAIM, effect=0.54), LOOSE], ["ratio 0.54, recorded 0.6 (95% CI 0.55 to 0.7)"]),
        ([replace(CLAIM, verdict="undecided"), LOOSE], ["undecided, was holds"]),
        (
            [replace(CLAIM, effect=0.8, verdict="refuted", data="other data"), LOOSE],
            ["refuted, was holds; ratio 0.8, recorded 0.6 (95% CI 0.55 to 0.7); measured on other data"],
        ),
        ([CLAIM, replace(LOOSE, verdict="holds", effect=1.0)], ["holds, was undecided"]),
        ([CLAIM], ["recorded, but not made any more"]),
        ([CLAIM, LOOSE, replace(CLAIM, text="another")], ["not recorded before"]),
        ([], ["recorded, but not made any more"] * 2),
    ],
)
def test_what_differs_from_the_record_is_said(made, tmp_path: Path, now: list[Claim], said: list[str]) -> None:
    record_claims([lesson(CLAIM, LOOSE), lesson(CLAIM, name="02_two")], tmp_path)
    recorded = read_record(tmp_path)
    found = changes([lesson(*now)], recorded)["what"]
    assert [what.startswith(start) for what, start in zip(found, said, strict=True)] == [True] * len(said)
    page = text(made(lesson(*now)))
    assert all(what in page for what in (found if said else ["Every verdict is as recorded"]))


def test_a_run_is_compared_with_what_was_recorded_of_its_lessons(tmp_path: Path) -> None:
    first, second = lesson(CLAIM), lesson(replace(CLAIM, seed=None), name="00_zero")
    assert "Nothing is recorded" in write_report([first], {}, tmp_path, tmp_path).read_text()
    record_claims([first], tmp_path)
    for _ in range(2):
        record_claims([second], tmp_path)
    recorded = read_record(tmp_path)
    assert list(recorded["lesson"]) == ["00_zero", "01_one"]
    assert list(recorded["effect"]) == [0.6, 0.6]
    page = write_report([lesson(replace(CLAIM, effect=0.8))], {}, tmp_path, tmp_path).read_text()
    assert "ratio 0.8, recorded 0.6" in page
    assert "torch" in page
    assert "0.8 (0.55 to 0.7)" in (tmp_path / "claims.md").read_text()
    with pytest.raises(ValueError, match="01_one failed"):
        record_claims([lesson(error="cell 1")], tmp_path)
    assert list(read_record(tmp_path)["lesson"]) == ["00_zero", "01_one"]


def test_claims_that_were_measured_with_another_seed_too_are_compared(made, tmp_path: Path) -> None:
    other, swept = replace(CLAIM, text="b"), replace(CLAIM, text="from one table", recorded="made by `l2l sweep a`")
    trainings = replace(swept, text="of trainings", seed=None)
    record_claims([lesson(CLAIM, other, swept, trainings, LOOSE)], tmp_path)
    again = [replace(CLAIM, effect=0.8, seed=4), replace(other, verdict="refuted", measured="0.97", seed=4)]
    again.append(replace(trainings, recorded="made by `l2l sweep a --seed 4`"))
    assert record_claims([lesson(*again, swept, LOOSE)], tmp_path, seed=4).stem == "claims-seed4"
    assert set(read_record(tmp_path)["effect"].dropna()) == {0.6}
    (seed, rows), *others = repeats(tmp_path).items()
    assert (seed, list(rows["effect"]), list(rows["effect_again"]), others) == (4, [0.6] * 3, [0.8, 0.6, 0.6], [])
    page = made(lesson(CLAIM, other, swept, trainings, LOOSE))
    assert "3 claims were measured again with seed 4, on other tasks. 2 of them have the same verdict." in text(page)
    cells = [cell.text for cell in page.select("#changes td")]
    assert cells == ["01_one", "figure 0", "b", "holds, LSTM / Adam: 0.6", "refuted, 0.97"]


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
    found = claim(ratio_table(curves), "paper", "figure 4", "it is ahead", because="any lower loss counts")
    assert found.verdict == ("refuted" if broken else "holds")
