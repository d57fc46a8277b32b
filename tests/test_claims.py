"""Verdicts on synthetic curves where the right answer is known."""

import pandas as pd
import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import (
    EACH_STEP,
    ONE_RATE,
    Curves,
    beats_baselines,
    falls_behind,
    ratio_to,
    under,
    wins_sweep,
)


def curves(learned_final: float, crossing: bool = False) -> Curves:
    noise = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    steps = torch.linspace(0, 1, 41)
    baseline = noise * (10 - 9 * steps)
    learned = noise * (10 - (10 - learned_final) * steps)
    if crossing:
        learned[:, 25] = 100.0
    return Curves({"LSTM": learned, "Adam": baseline, "SGD": 2 * baseline}, {"name": "synthetic"}, 0)


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize(
    ("made", "holds"), [(curves(0.5), True), (curves(2.0), False), (curves(0.5, crossing=True), False)]
)
def test_verdict(made: Curves, holds: bool, statistic: str) -> None:
    claim = beats_baselines(made, "figure 0", "it wins", statistic=statistic, from_step=20)
    assert claim.holds is holds
    assert "Adam" in claim.measured
    assert ("claim holds" in str(claim)) is holds


def test_a_claim_has_its_effect_interval_problems_and_seed_as_numbers() -> None:
    claim = beats_baselines(curves(0.5), "figure 0", "it wins")
    assert claim.effect == pytest.approx(0.5, rel=1e-5)
    assert claim.low <= claim.effect <= claim.high < 1
    assert (claim.problems, claim.seed) == (200, 0)
    behind = falls_behind(curves(2.0), "figure 0", "it fails")
    assert behind.effect == pytest.approx(2.0, rel=1e-5)
    assert 1 < behind.low <= behind.high


def test_a_difference_within_the_noise_does_not_count() -> None:
    torch.manual_seed(0)
    made = Curves({"LSTM": torch.rand(30, 22), "Adam": torch.rand(30, 22) + 0.02}, {}, 0)
    assert not beats_baselines(made, "figure 0", "it wins").holds


def test_there_must_be_something_to_compare() -> None:
    with pytest.raises(ValueError, match="needs baselines"):
        beats_baselines(Curves({"LSTM": torch.rand(3, 30)}, {}, 0), "figure 0", "it wins")


@pytest.mark.parametrize(("made", "holds"), [(curves(2.0), True), (curves(1.0), False), (curves(0.5), False)])
def test_falls_behind_only_where_another_is_clearly_better(made: Curves, holds: bool) -> None:
    claim = falls_behind(made, "figure 0", "it fails")
    assert claim.holds is holds
    assert "Adam" in claim.measured


def swept(*ratios: tuple[float, float, float]) -> pd.DataFrame:
    """A sweep over as many settings; in each the LSTM meets Adam, with that ratio, and SGD, which is hopeless.

    A second LSTM is always better than the first; a claim about baselines does not look at it.
    """
    rows = []
    for scale, (ratio, low, high) in enumerate(ratios):
        for name, values in (
            ("LSTM", (1, 1, 1)),
            ("another LSTM", (2, 1.9, 2.1)),
            ("Adam", (ratio, low, high)),
            ("SGD", (0.1, 0.05, 0.2)),
        ):
            measures = dict(zip(("ratio", "ratio_low", "ratio_high"), values, strict=True))
            lr = None if "LSTM" in name else 0.1
            rows.append({"scale": scale, "step": 100, "optimizer": name, "lr": lr, "mean": 1 / values[0], **measures})
    table = pd.DataFrame(rows).assign(low=0.0, high=2.0)
    table.attrs = {"num_tasks": 50, "seed": 7}  # as `read_result` gives them
    return table


@pytest.mark.parametrize(
    ("table", "holds", "said"),
    [
        (swept((0.8, 0.7, 0.9), (0.5, 0.4, 0.6)), True, "in 2 of 2 settings, clearly in 2, clearly not in 0"),
        (swept((0.8, 0.7, 0.9), (0.95, 0.9, 1.01)), False, "in 2 of 2 settings, clearly in 1, clearly not in 0"),
        (swept((0.8, 0.7, 0.9), (1.2, 1.1, 1.3)), False, "in 1 of 2 settings, clearly in 1, clearly not in 1"),
    ],
)
def test_a_sweep_is_won_only_if_every_setting_is(table: pd.DataFrame, holds: bool, said: str) -> None:
    claim = wins_sweep(table, "figure 0", "it always wins")
    assert claim.holds is holds
    assert said in claim.measured
    assert "over scale," in claim.conditions
    assert (claim.problems, claim.seed) == (50, 7)
    assert (claim.high < 1) == holds, "the setting that decides"
    assert claim.low <= claim.effect <= claim.high


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({}, False),
        ({"clearly": 2}, False),
        ({"ahead": 3}, False),
        ({"ahead": 3, "clearly": 2}, True),
        ({"ahead": 3, "clearly": 3}, False),
        ({"ahead": 4, "clearly": 0}, False),
    ],
    ids=str,
)
def test_most_settings_may_be_enough(wanted: dict[str, int], holds: bool) -> None:
    table = swept((0.8, 0.7, 0.9), (0.5, 0.4, 0.6), (0.95, 0.9, 1.01), (1.02, 0.98, 1.1))
    claim = wins_sweep(table, "figure 0", "it wins almost always", **wanted)
    assert claim.holds is holds
    assert "in 3 of 4 settings, clearly in 2, clearly not in 0" in claim.measured
    assert "ratio between 0.5 and 1.02 (95% CI 0.98 to 1.1; Adam, scale 3)" in claim.measured
    assert (claim.effect, claim.low, claim.high) == (1.02, 0.98, 1.1)


def test_a_sweep_is_judged_under_one_protocol() -> None:
    one, each = swept((0.8, 0.7, 0.9)), swept((1.2, 1.1, 1.3))
    one.insert(0, "protocol", ONE_RATE)
    each.insert(0, "protocol", EACH_STEP)
    both = pd.concat([one, each], ignore_index=True)
    for protocol, holds, said in ((ONE_RATE, True, "the last number"), (EACH_STEP, False, "each number")):
        claim = wins_sweep(under(both, protocol), "figure 0", "it always wins")
        assert claim.holds is holds
        assert said in claim.conditions
        assert "1 settings" in claim.measured, "a protocol is no setting"
        assert ratio_to(under(both, protocol), "Adam", "figure 0", "it is below", below=1).holds is holds
    with pytest.raises(ValueError, match="several protocols"):
        wins_sweep(both, "figure 0", "it always wins")
    with pytest.raises(ValueError, match="several protocols"):
        ratio_to(both, "Adam", "figure 0", "it is below", below=1)


def test_a_sweep_needs_something_to_compare() -> None:
    table = swept((0.8, 0.7, 0.9))
    with pytest.raises(ValueError, match="needs baselines"):
        wins_sweep(table[table["lr"].isna()], "figure 0", "it always wins")


@pytest.mark.parametrize(
    ("bounds", "holds", "said"),
    [
        ({"above": 0.65}, True, "between 0.7 and 0.8; clearly above 0.65 in 2 of 2 settings"),
        ({"above": 0.75}, False, "clearly above 0.75 in 0 of 2 settings"),
        ({"below": 0.85}, False, "clearly below 0.85 in 1 of 2 settings"),
        ({"above": 0.5, "below": 1.0}, True, "clearly above 0.5 and below 1 in 2 of 2 settings"),
    ],
    ids=str,
)
def test_a_ratio_must_lie_within_its_bounds_with_all_of_its_interval(
    bounds: dict[str, float], holds: bool, said: str
) -> None:
    rows = [(1, 0.7, 0.67, 0.74), (2, 0.8, 0.74, 0.88)]
    table = pd.DataFrame(rows, columns=["step", "ratio", "ratio_low", "ratio_high"]).assign(optimizer="other", lr=None)
    claim = ratio_to(table, "other", "figure 0", "not far from the other", **bounds)
    assert claim.holds is holds
    assert said in claim.measured
    assert "over step," in claim.conditions
    assert (bounds.get("above", 0) < claim.low and claim.high < bounds.get("below", 9)) == holds


def test_a_ratio_to_an_optimizer_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown optimizer in this sweep"):
        ratio_to(swept((0.8, 0.7, 0.9)), "LSTM-sub", "figure 0", "not far from the other", above=0.9)
