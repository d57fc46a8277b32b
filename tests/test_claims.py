"""Verdicts on synthetic curves and sweeps where the right answer is known."""

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

SAID = "figure 0", "what it says"
SWEPT = (0.8, 0.7, 0.9), (0.5, 0.4, 0.6), (0.95, 0.9, 1.01), (1.02, 0.98, 1.1)


def curves(learned_final, crossing=False):
    noise = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    steps = torch.linspace(0, 1, 41)
    other = noise * (10 - 9 * steps)
    learned = noise * (10 - (10 - learned_final) * steps)
    if crossing:
        learned[:, 25] = 100.0
    return Curves({"LSTM": learned, "Adam": other, "SGD": 2 * other}, {"name": "synthetic", "dim": 3}, 0)


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize(
    ("made", "from_step", "holds"),
    [
        (curves(0.5), 20, True),
        (curves(2.0), 20, False),
        (curves(0.5, crossing=True), 20, False),
        (curves(0.5, crossing=True), 40, True),
    ],
)
def test_it_must_be_below_all_baselines_from_a_step_on(made, from_step, holds, statistic):
    claim = beats_baselines(made, *SAID, statistic=statistic, from_step=from_step)
    assert claim.holds is holds
    assert "best baseline Adam" in claim.measured
    assert claim.conditions == "200 fresh optimizees of synthetic(dim=3), seed 0"
    assert ("claim holds" in str(claim)) is holds


@pytest.mark.parametrize(("final", "holds"), [(2.0, True), (1.0, False), (0.5, False)])
def test_it_falls_behind_only_where_another_is_clearly_better(final, holds):
    claim = falls_behind(curves(final), *SAID)
    assert claim.holds is holds
    assert claim.effect == pytest.approx(final, rel=1e-5)
    assert claim.low <= claim.effect <= claim.high
    assert (claim.problems, claim.seed) == (200, 0)
    assert (claim.low > 1) is holds


def test_a_difference_within_the_noise_does_not_count():
    torch.manual_seed(0)
    made = Curves({"LSTM": torch.rand(30, 22), "Adam": torch.rand(30, 22) + 0.02}, {}, 0)
    assert not beats_baselines(made, *SAID, from_step=21).holds


def swept(*ratios):
    """A sweep over as many settings; in each the LSTM meets Adam, with that ratio, and SGD, which is hopeless.

    A second LSTM is always better than the first; a claim about baselines does not look at it.
    """
    rows = []
    for scale, adam in enumerate(ratios):
        others = {"LSTM": (1, 1, 1), "another LSTM": (2, 1.9, 2.1), "Adam": adam, "SGD": (0.1, 0.05, 0.2)}
        for name, (ratio, low, high) in others.items():
            measures = {"ratio": ratio, "ratio_low": low, "ratio_high": high, "mean": 1 / ratio, "low": 0, "high": 2}
            lr = None if "LSTM" in name else 0.1
            rows.append({"scale": scale, "step": 100, "optimizer": name, "lr": lr, **measures})
    table = pd.DataFrame(rows)
    table.attrs = {"num_tasks": 50, "seed": 7}  # as `read_result` gives them
    return table


@pytest.mark.parametrize(
    ("ratios", "holds", "said"),
    [
        (SWEPT[:2], True, "in 2 of 2 settings, clearly in 2, clearly not in 0"),
        (SWEPT[::2], False, "in 2 of 2 settings, clearly in 1, clearly not in 0"),
        ([SWEPT[0], (1.2, 1.1, 1.3)], False, "in 1 of 2 settings, clearly in 1, clearly not in 1"),
        ([SWEPT[0], (1e-9, 0.0, 1e-9)], True, "in 2 of 2 settings, clearly in 2, clearly not in 0"),
    ],
)
def test_a_sweep_is_won_only_if_every_setting_is(ratios, holds, said):
    claim = wins_sweep(swept(*ratios), *SAID)
    assert claim.holds is holds
    assert said in claim.measured
    assert "over scale," in claim.conditions
    assert (claim.problems, claim.seed) == (50, 7)
    assert (claim.high < 1) is holds, "the setting that decides"
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
def test_most_settings_may_be_enough(wanted, holds):
    claim = wins_sweep(swept(*SWEPT), *SAID, **wanted)
    assert claim.holds is holds
    assert "in 3 of 4 settings, clearly in 2, clearly not in 0" in claim.measured
    assert "ratio between 0.5 and 1.02 (95% CI 0.98 to 1.1; Adam, scale 3)" in claim.measured
    assert (claim.effect, claim.low, claim.high) == (1.02, 0.98, 1.1)


def test_a_sweep_is_judged_under_one_protocol():
    one, each = (swept(ratio).assign(protocol=name) for ratio, name in ((SWEPT[0], ONE_RATE), (SWEPT[3], EACH_STEP)))
    both = pd.concat([one, each], ignore_index=True)
    for protocol, holds, said in ((ONE_RATE, True, "the last number"), (EACH_STEP, False, "each number")):
        table = under(both, protocol)
        for claim in (wins_sweep(table, *SAID), ratio_to(table, "Adam", *SAID, below=1)):
            assert claim.holds is holds
            assert said in claim.conditions
            assert "1 settings" in claim.measured, "a protocol is no setting"
    for judged in (lambda: wins_sweep(both, *SAID), lambda: ratio_to(both, "Adam", *SAID, below=1)):
        with pytest.raises(ValueError, match="several protocols"):
            judged()


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
def test_a_ratio_must_lie_within_its_bounds_with_all_of_its_interval(bounds, holds, said):
    claim = ratio_to(swept((0.7, 0.67, 0.74), (0.8, 0.74, 0.88)), "Adam", *SAID, **bounds)
    assert claim.holds is holds
    assert said in claim.measured
    assert "over scale," in claim.conditions
    assert (bounds.get("above", 0) < claim.low and claim.high < bounds.get("below", 9)) is holds, "it decides"


@pytest.mark.parametrize(
    ("judged", "error", "match"),
    [
        (lambda: beats_baselines(Curves({"LSTM": torch.rand(3, 30)}, {}, 0), *SAID), ValueError, "needs baselines"),
        (lambda: beats_baselines(curves(0.5), *SAID, from_step=41), ValueError, "at least 41 steps, got 40"),
        (lambda: wins_sweep(swept(SWEPT[0]).query("lr.isna()"), *SAID), ValueError, "needs baselines"),
        (lambda: ratio_to(swept(SWEPT[0]), "sub", *SAID), UnknownNameError, "unknown optimizer in this sweep"),
    ],
)
def test_there_must_be_something_to_compare(judged, error, match):
    with pytest.raises(error, match=match):
        judged()
