"""Verdicts and intervals on synthetic losses whose true ratio is known."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import (
    AVERAGED,
    EACH_STEP,
    ONE_RATE,
    VERDICTS,
    Curves,
    claim,
    paired_ratio,
    ratio_table,
    read_result,
    summary,
    training_of,
    under,
    write_result,
)
from l2l_kit.problems import MNIST
from l2l_kit.randomness import generator

MADE_UP = {"name": "synthetic", "dim": 3}


def normal(*shape):
    return torch.randn(*shape, generator=generator(0, "synthetic", *shape), dtype=torch.float64)


def judged(table, group="paper", because="it was set beforehand", **how):
    return claim(table, group, "figure 0", "what it says", because=because, **how)


# Losses of others and of the learned optimizer with a true ratio of 0.8, from two independent normal draws.
LOSSES = {
    "normal, mean": (False, lambda x, y: (1 + 0.25 * x, 0.8 + 0.1 * x + 0.15 * y)),
    "a little skewed, mean": (False, lambda x, y: ((0.3 * x).exp(), 0.8 * (0.24 * x + 0.18 * y).exp())),
    "normal, typical": (True, lambda x, y: (1 + 0.1 * x, 0.8 * (1 + 0.1 * y))),
    "very skewed, typical": (True, lambda x, y: ((2 * x).exp(), 0.8 * (2 * x + y).exp())),
}


@pytest.mark.parametrize("number", [8, 12, 25, 100])
@pytest.mark.parametrize("kind", LOSSES)
def test_95_percent_of_the_intervals_cover_the_true_ratio(kind, number):
    """95% ± 2% of 1,000, each a column."""
    typical, make = LOSSES[kind]
    others, losses = make(*normal(2, number, 1000))
    value, low, high = paired_ratio(losses, others, typical=typical)
    assert ((low <= 0.8) & (high >= 0.8)).double().mean() == pytest.approx(0.95, abs=0.02)
    assert value.log().mean().exp() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("shared", [0.0, 0.3])
def test_95_percent_of_the_intervals_of_an_average_cover_its_true_value(shared):
    """Ratios of .8 and 1.25 at ten steps; a run's losses have by chance something in common, or nothing."""
    runs, steps = normal(2, 1000, 25, 1), normal(2, 1000, 25, 10)
    losses, others = (shared * runs + 0.2 * steps).exp()
    losses[..., ::2] *= 0.8
    losses[..., 1::2] *= 1.25
    found = [paired_ratio(*pair, average=True) for pair in zip(losses, others, strict=True)]
    value, low, high = (torch.cat(part) for part in zip(*found, strict=True))
    assert ((low <= 1) & (high >= 1)).double().mean() == pytest.approx(0.95, abs=0.02)
    assert value.log().mean().exp() == pytest.approx(1, abs=0.02)
    narrower = (high / low).log() / torch.stack([(b / a).log().mean() for _, a, b in map(paired_ratio, losses, others)])
    assert narrower.mean() < (0.4 if shared == 0 else 0.95)


def test_a_divergence_counts_against_the_learned_optimizer_only():
    losses = normal(6, 4).exp()
    losses[0, 1] = losses[:, 2] = math.inf
    fine = normal(6, 4).exp()
    both = {name: paired_ratio(*pair) for name, pair in {"learned": (losses, fine), "other": (fine, losses)}.items()}
    assert [list(map(float, part[1:3])) for part in both["learned"]] == [[math.inf] * 2] * 3
    assert [list(map(float, part[1:3])) for part in both["other"]] == [[0, 0], [0, 0], [math.inf] * 2]
    assert [float(part[0]) for part in paired_ratio(losses[1:2], fine[1:2])][1:] == [0, math.inf], "one says nothing"
    averages = [paired_ratio(*pair, average=True) for pair in ((losses, fine), (fine[:, :2], losses[:, :2]))]
    assert [list(map(float, average)) for average in averages] == [[math.inf] * 3, [0, 0, math.inf]]


def test_where_another_diverged_a_typical_ratio_has_a_draw():
    losses, others = normal(2, 25, 1).exp()
    level = others.clone()
    level[:2] = losses[:2]
    others[:2] = math.inf
    for part, expected in zip(
        paired_ratio(losses, others, typical=True), paired_ratio(losses, level, typical=True), strict=True
    ):
        torch.testing.assert_close(part, expected)


def made(ratio, number=25, steps=1, noise=0.03):
    """Curves on which the LSTM's loss is so many times Adam's, and half as many times SGD's."""
    adam = (0.3 * normal(number, steps)).exp()
    lstm = ratio * adam * (noise * normal(number, steps, 1)[..., 0]).exp()
    return Curves({"LSTM": lstm, "Adam": adam, "SGD": 2 * adam}, MADE_UP, 0)


def swept(*adams, other=2.0, **columns):
    """A recorded sweep over as many settings; in each the LSTM meets Adam, with that ratio, and SGD, which is hopeless.

    Another LSTM is no baseline.
    """
    rows = []
    for scale, adam in enumerate(adams):
        for name, ratio in {"LSTM": 1, "another LSTM": other, "Adam": adam, "SGD": 0.1}.items():
            measures = {"ratio": ratio, "ratio_low": ratio / 1.05, "ratio_high": ratio * 1.05, "mean": 1, "low": 0}
            rate = None if "LSTM" in name else 0.1
            rows.append({"scale": scale, "step": 100, "optimizer": name, "lr": rate, "high": 2, **measures, **columns})
    table = pd.DataFrame(rows)
    table.attrs = {"num_tasks": 50, "seed": 7, "learned": {"LSTM": "mine"}, "tuning_tasks": 4, "problem": MADE_UP}
    return table


# Each makes a table for a true ratio, and says how the claim is judged that this ratio decides.
KINDS = {
    "below all others": (lambda r: ratio_table(made(r)), {}),
    "below all others, typically": (lambda r: ratio_table(made(r), typical=True), {}),
    "below all others at every step": (lambda r: ratio_table(made(r, steps=30), steps=range(30)), {}),
    "below one of them": (lambda r: ratio_table(made(2 * r)), {"every": False}),
    "above all others": (lambda r: ratio_table(made(2 / r)), {"side": "above"}),
    "above one of them": (lambda r: ratio_table(made(1 / r)), {"side": "above", "every": False}),
    "below all baselines in every setting": (lambda r: swept(0.5, r), {}),
    "below all baselines on average": (lambda r: swept(0.5 * r, 2 * r), {"average": True}),
    "below what is no baseline": (lambda r: swept(0.5, other=r), {"against": ["another LSTM"]}),
}


@pytest.mark.parametrize(("ratio", "verdict"), [(0.8, "holds"), (1.0, "undecided"), (1.25, "refuted")])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_claim_has_each_verdict(kind, ratio, verdict):
    make, how = KINDS[kind]
    found = judged(make(ratio), **how)
    assert found.verdict == verdict
    assert found.low <= found.effect <= found.high
    assert found.effect == pytest.approx(1 / ratio if "above" in kind else ratio, rel=0.05)
    assert (found.low <= 1 <= found.high) == (verdict == "undecided")


@pytest.mark.parametrize(("margin", "verdict"), [(0.7, "refuted"), (0.8, "undecided"), (0.95, "holds")])
def test_the_margin_decides(margin, verdict):
    found = judged(ratio_table(made(0.8)), margin=margin)
    assert (found.verdict, found.margin) == (verdict, margin)


@pytest.mark.parametrize(
    ("ends", "margin", "told", "verdict"),
    [
        ((1.0042, 1.0961), 1.0, "1.004 to 1.10", "refuted"),
        ((0.8123, 0.99996), 1.0, "0.812 to 0.99996", "holds"),
        ((0.8123, 0.9499), 0.95, "0.812 to 0.9499", "holds"),
        ((0.8123, 0.8500), 0.95, "0.812 to 0.850", "holds"),
    ],
)
def test_an_end_that_rounds_to_the_margin_is_told_with_more_digits(ends, margin, told, verdict):
    table = pd.DataFrame({"optimizer": ["Adam"], "ratio": [sum(ends) / 2], "ratio_low": ends[0], "ratio_high": ends[1]})
    found = judged(table, margin=margin)
    assert (f"(95% CI {told})" in found.measured, found.verdict) == (True, verdict)


def test_many_comparisons_make_neither_verdict_wrong_more_often():
    """Level with the other at a hundred steps: one of the intervals nearly always lies above 1."""
    draws = (0.1 * normal(100, 2, 12, 100)).exp()
    curves = [Curves({"LSTM": one, "Adam": other}, {}, 0) for one, other in draws]
    found = [judged(ratio_table(each, steps=range(100))).verdict for each in curves]
    assert found.count("holds") == 0
    assert found.count("refuted") <= 8  # 2.5 are expected at most


def test_the_power_is_that_of_an_experiment():
    """A ratio as far from the margin as a claim says is decided in about four cases of five."""
    said, verdicts = [], []
    for one, other in (0.1 * normal(80, 2, 12, 1)).exp():
        level = judged(ratio_table(Curves({"LSTM": one, "Adam": other}, {}, 0)))
        said.append(float(level.criterion.split("were ")[1].split(",")[0]))
        better = Curves({"LSTM": one * np.mean(said), "Adam": other}, {}, 0)
        verdicts.append(judged(ratio_table(better)).verdict)
    assert verdicts.count("holds") / 80 == pytest.approx(0.8, abs=0.1)


def test_what_is_no_group_or_side_is_refused():
    for wrong in ({"group": "mine"}, {"side": "Below"}, {"side": "under"}):
        with pytest.raises(UnknownNameError):
            claim(**{"table": swept(0.8), "group": "ours", "source": "", "text": "", "because": ""} | wrong)


def test_a_claim_says_on_what_it_was_measured():
    found = judged(swept(0.8, 0.9).assign(protocol=ONE_RATE))
    assert (found.tasks, found.seed, found.data) == (50, 7, "")
    assert "50 tasks of synthetic(dim=3, step=100), seed 7" in found.conditions
    assert "on 4 other tasks (fewer" in found.conditions
    assert "LSTM / Adam, scale 1: 0.9" in found.measured
    for average in (False, True):  # there is nothing left to average
        found = judged(swept(0.9).assign(protocol=AVERAGED), average=average)
        assert "LSTM / Adam, averaged over the steps: 0.9" in found.measured
    card = {"trained": {"episodes": 5000}, "training": {"horizon": 100}, "start": "mine"}
    found = judged(ratio_table(made(0.8), trained=training_of(card), tuning_tasks=8))
    assert "training of LSTM: 5,000 episodes of 100 steps, starting from mine; baselines" in found.conditions
    assert training_of({}) == "an unknown time"
    table = ratio_table(made(0.8), against=["Adam"], trained="some episodes")
    table.attrs["trained"]["Adam"] = "other episodes"  # as if it were a learned optimizer, too
    found = judged(table, against=["Adam"])
    assert "training of LSTM: some episodes; training of Adam: other episodes" in found.conditions
    found = judged(
        ratio_table(Curves({name: torch.rand(3, 1) for name in ("LSTM", "Adam")}, {"name": "mine"}, 0), unit="seed")
    )
    assert "measurements with 3 seeds would show it" in found.criterion
    assert found.conditions == "3 seeds of mine()"


def test_a_claim_says_which_of_its_ratios_decides_and_how_it_was_tuned():
    found = judged(swept(0.8, 0.9).assign(protocol=ONE_RATE))
    assert found.measured.endswith("the highest of 4 ratios")
    assert "Holds if every ratio is below 1 " in found.criterion
    assert "baselines tuned for the last number of steps on 4 other" in found.conditions
    some = judged(swept(0.8, 0.9), every=False)
    assert some.measured.endswith("the lowest of 4 ratios")
    assert "Holds if some ratio is below 1 " in some.criterion
    assert "averaged over scale: 0.849" in judged(swept(0.8, 0.9), average=True).measured
    enough = swept(0.8)
    enough.attrs["tuning_tasks"] = 8
    assert "fewer" not in judged(enough).conditions
    wide = swept(0.8, 0.9)
    wide.loc[(wide["optimizer"] == "Adam") & (wide["scale"] == 0), "ratio_high"] = 2.0
    found = judged(wide)
    assert found.measured.startswith("LSTM / Adam, scale 1: 0.900"), "the highest ratio, not the highest end"
    assert found.high == pytest.approx(2.0)


def test_a_table_of_ratios_is_of_the_last_step_and_typical_if_asked_for():
    curves = made(0.8, steps=5, noise=1.0)
    for typical in (False, True):
        table = ratio_table(curves, against=["Adam"], typical=typical)
        ratio = paired_ratio(curves["LSTM"][:, 4:], curves["Adam"][:, 4:], typical=typical)
        assert table["step"].tolist() == [4]
        assert table[["ratio", "ratio_low", "ratio_high"]].iloc[0].tolist() == [part.item() for part in ratio]


@pytest.mark.parametrize("step", [-1, 5, 2.5])
def test_a_step_that_the_curves_do_not_have_is_refused(step):
    with pytest.raises(ValueError, match=f"step {step} is outside these curves, which go from 0 to 4"):
        ratio_table(made(0.8, steps=5), steps=[step])


def test_a_power_is_only_said_where_there_is_one():
    diverged = made(0.8)
    diverged["Adam"][0] = math.inf
    for curves, said in ((made(0.8), True), (diverged, False)):
        found = claim(ratio_table(curves, against=["Adam"]), "ours", "section 0", "it is ahead", because="so")
        assert ("four of five measurements" in found.criterion) == said


def test_an_optimizee_that_both_solve_is_a_draw():
    losses, others = torch.tensor([[0.0], [0.5], [0.2]]), torch.tensor([[0.0], [0.5], [0.4]])
    (value,), *_ = paired_ratio(losses, others, typical=True)
    assert value == pytest.approx(0.5 ** (1 / 3))


def test_training_is_what_the_kept_weights_have_had():
    card = {"trained": {"episodes": 40, "best_epoch": 3}, "training": {"horizon": 100, "episodes_per_epoch": 10}}
    assert training_of(card) == "30 episodes of 100 steps, the best of 40 on validation"
    card["imitation"], card["start"] = {"networks": 6}, "mine"
    assert training_of(card).endswith("the best of 40 on validation, starting from mine, after an imitation")
    del card["training"]["episodes_per_epoch"]  # as in a card that was made by hand
    assert training_of(card) == "40 episodes of 100 steps, starting from mine, after an imitation"
    card["training"]["episodes_per_epoch"], card["trained"]["best_epoch"] = 10, 4
    assert training_of(card) == "40 episodes of 100 steps, starting from mine, after an imitation"
    card["trained"]["best_epoch"] = 0
    assert training_of(card) == "no episode, by imitation alone, starting from mine, which 40 episodes did not improve"
    del card["imitation"]
    assert training_of(card).startswith("0 episodes of 100 steps, the best of 40 on validation")


def test_what_was_measured_on_stand_in_data_is_none_of_the_papers(tmp_path):
    problem = MNIST(source="embedded").config()
    curves = Curves(made(0.8).losses, problem, 0)
    found = judged(ratio_table(curves))
    assert (found.group, found.verdict) == ("stand-in", "holds")
    assert "subset" in found.data
    assert found.data in found.conditions
    about = json.loads(write_result("x", swept(0.8), {"problem": problem}, tmp_path).with_suffix(".json").read_text())
    assert (about["data"], about["stand_in"]) == (found.data, True)


def test_a_claim_says_which_recorded_table_it_was_read_from(tmp_path):
    write_result("sweeps/x", swept(0.8), {**swept(0.8).attrs, "command": "l2l sweep x", "device": "a GPU"}, tmp_path)
    found = judged(read_result("sweeps/x", tmp_path))
    assert found.recorded == "From the recorded table x, made by `l2l sweep x` on a GPU"
    assert found.recorded in found._repr_mimebundle_()[0]["text/markdown"]
    assert judged(swept(0.8)).recorded == ""


def test_a_claim_displays_and_records_itself():
    found = judged(ratio_table(Curves({"LSTM": torch.full((3, 1), math.inf), "Adam": torch.ones(3, 1)}, {}, 0)))
    assert (found.verdict, found.effect, found.high) == ("refuted", None, None)
    shown, metadata = found._repr_mimebundle_()
    assert all("refuted" in words.casefold() and "figure 0" in words for words in shown.values())
    assert "refuted" not in shown["text/markdown"].casefold().splitlines()[0]  # shown of a hidden output
    assert json.loads(json.dumps(metadata, allow_nan=False))["l2l_claim"]["verdict"] == "refuted"
    others = [judged(swept(ratio), group="ours") for ratio in (0.8, 0.9, 1.0)]
    paper, ours, *meanings = summary([found, *others]).splitlines()
    assert "0 hold, 1 refuted, 0 undecided" in paper
    assert "2 hold, 0 refuted, 1 undecided" in ours
    assert meanings == [f"{verdict}: {meaning}" for verdict, meaning in VERDICTS.items()]


def test_a_sweep_is_judged_under_one_protocol():
    both = pd.concat([swept(0.8, protocol=ONE_RATE), swept(1.25, protocol=EACH_STEP)], ignore_index=True)
    assert [judged(under(both, each)).verdict for each in (ONE_RATE, EACH_STEP)] == ["holds", "refuted"]
    with pytest.raises(ValueError, match="several protocols"):
        judged(both)


def test_there_must_be_something_to_compare():
    with pytest.raises(ValueError, match="something to compare with"):
        ratio_table(Curves({"LSTM": torch.rand(3, 30)}, {}, 0))
    with pytest.raises(ValueError, match="something to compare with"):
        ratio_table(made(1.0), against=[])
    with pytest.raises(UnknownNameError, match="Did you mean 'Adam'"):
        ratio_table(made(1.0), against=["Adan"])
    with pytest.raises(ValueError, match="needs baselines"):
        judged(swept(0.8).query("lr.isna()"))
    with pytest.raises(UnknownNameError, match="optimizer in this table 'sub'"):
        judged(swept(0.8), against=["Adam", "sub"])
