"""Learning rates of the baselines: the best one is found, on draws of its own, and kept."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import LEARNING_RATES, compare, learning_rates, tune, tuned_baselines
from l2l_kit.making import runs
from l2l_kit.making.runs import record_tuning
from l2l_kit.making.sweeps import further_rates
from l2l_kit.optimizers import BASELINES, LSTMRule, baseline
from l2l_kit.problems import Problem, Quadratics, QuadraticTasks
from l2l_kit.randomness import generator
from l2l_kit.training import rollout

GRID = (0.01, 0.1, 0.5, 0.9, 3.0)


@dataclass(frozen=True)
class Bowls(Problem):
    """‖θ − y‖²: gradient descent with lr 1/2 is at the minimum after one step, with 1 or more it never is."""

    name: ClassVar[str] = "bowls"

    def sample(self, num_tasks, generator, device=None):
        y, theta = (torch.randn(num_tasks, 3, generator=generator) for _ in range(2))
        return QuadraticTasks(torch.eye(3).expand(num_tasks, 3, 3), y, theta)


def tuned(name="sgd", problem=None, **arguments):
    defaults = {"steps": 20, "num_tasks": 9, "learning_rates": GRID, "device": "cpu"}
    return tune(name, problem or Bowls(), **{**defaults, **arguments})


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_finds_the_known_best(statistic):
    tuning = tuned()
    assert tuning.best(statistic) == baseline("sgd", 0.5)
    assert tuning.final(statistic)[0.5] < 1e-10
    with pytest.warns(UserWarning, match=r"sgd: the best learning rate, 0.1, is at the end"):
        tuned(learning_rates=GRID[:2]).best(statistic)


@pytest.mark.parametrize("name", ["nag", "adam"])
def test_the_table_holds_what_a_rollout_gives(name):
    """For several numbers of steps as for one; the median of eight losses lies between two of them."""
    tuning = tuned(name, Quadratics(dim=3), num_tasks=8, steps=[20, 3, 20])
    tasks = Quadratics(dim=3).sample(8, generator(0, "tuning"))
    assert list(tuning.table.columns) == ["lr", "step", "mean", "median", "baseline"]
    assert list(zip(tuning.table["lr"], tuning.table["step"], strict=True)) == [(lr, s) for lr in GRID for s in (3, 20)]
    for step in (3, 20):
        final = {lr: rollout(baseline(name, lr), tasks, 20)[:, step].nan_to_num(nan=math.inf) for lr in GRID}
        assert tuning.final(step=step).tolist() == pytest.approx([losses.mean().item() for losses in final.values()])
        medians = [losses.sort().values[3:5].mean().item() for losses in final.values()]
        assert tuning.final("median", step).tolist() == pytest.approx(medians)
        assert tuning.best(step=step) == baseline(name, min(final, key=lambda lr: final[lr].mean()))
    with pytest.raises(UnknownNameError, match=r"unknown step of this tuning 5.* Known: '20', '3'"):
        tuning.final(step=5)
    with pytest.raises(UnknownNameError, match="unknown statistic 'max'"):
        tuning.final("max")
    assert tuning.final().equals(tuning.final(step=20)), "the last, if none is named"


def test_tunes_on_other_optimizees_than_the_tests():
    curves = compare({"SGD": baseline("sgd", 0.1)}, Bowls(), steps=20, num_tasks=9, device="cpu")
    assert tuned(learning_rates=[0.1]).final()[0.1] != pytest.approx(curves["SGD"][:, -1].mean().item(), rel=1e-6)


@pytest.mark.parametrize(("lr", "steps"), [(1e20, 30), (1e25, 1)], ids=["NaN", "overflow"])
def test_a_learning_rate_at_which_it_diverged_is_infinite_and_never_best(lr, steps):
    tuning = tuned(learning_rates=[lr, 0.1], steps=steps)
    assert tuning.table.set_index("lr").loc[lr, ["mean", "median"]].tolist() == [math.inf, math.inf]
    assert tuning.best().lr == 0.1
    with pytest.raises(ValueError, match=r"sgd: all rates from .* diverged"):
        tuned(learning_rates=[lr], steps=steps).best()


def test_a_grid_may_be_numpys_and_in_any_order(recwarn):
    shuffled = tuned(learning_rates=np.array(GRID)[[3, 0, 4, 1, 2]], steps=np.int64(20))
    pd.testing.assert_frame_equal(shuffled.table, tuned().table)
    pd.testing.assert_frame_equal(tuned(learning_rates=iter(GRID)).table, shuffled.table)
    assert shuffled.best().lr == 0.5
    assert not recwarn, "the best one is not at an end"


def test_a_grid_has_as_many_per_decade_as_asked_for():
    grid = learning_rates(5)
    assert list(grid) == pytest.approx(torch.logspace(-4, 1, 26).tolist(), rel=0.05)  # two digits
    assert {1e-4, 1e-3, 1e-2, 0.1, 1, 10} <= set(grid)
    assert learning_rates(8) == LEARNING_RATES


class TestRecorded:
    def test_it_is_what_tune_gives_and_what_is_there_is_not_run_again(self, tmp_path, monkeypatch):
        arguments = {"steps": [20, 3], "num_tasks": 5, "rates": 1, "seed": 2, "device": "cpu"}
        tunings, path = record_tuning(Bowls(), tmp_path, **arguments)
        for tuning in tunings:
            one = {**arguments, "learning_rates": learning_rates(arguments["rates"])}
            expected = tuned(tuning.name, **{name: value for name, value in one.items() if name != "rates"})
            pd.testing.assert_frame_equal(tuning.table, expected.table, check_exact=True)
        content = path.read_bytes()
        for name, other in {"steps": [20], "num_tasks": 4, "rates": 2, "seed": 3}.items():
            with pytest.raises(ValueError, match=f"other settings: {name} .*, not .*{other}.*. Choose another folder"):
                record_tuning(Bowls(), tmp_path, **{**arguments, name: other})
        note = json.loads(path.with_suffix(".json").read_text())
        path.with_suffix(".json").write_text(json.dumps({name: note[name] for name in note if name != "rates"}))
        with pytest.raises(ValueError, match="other settings: rates 1, not 2"):  # older files do not say
            record_tuning(Bowls(), tmp_path, **{**arguments, "rates": 2})
        assert path.read_bytes() == content
        path.unlink()
        monkeypatch.setattr(runs, "losses_at", None)
        for steps in ([20, 3], [3, 20]):
            record_tuning(Bowls(), tmp_path, **{**arguments, "steps": steps})
        assert path.read_bytes() == content

    def test_it_gives_the_tuned_baselines(self, monkeypatch):
        tunings = [tuned(name, steps=[1, 20]) for name in BASELINES]
        table = pd.concat([tuning.table for tuning in tunings])
        monkeypatch.setattr("l2l_kit.evaluation.tuning.read_result", lambda name: {"bowls/tuning": table}[name])
        for which in (("mean", 1), ("median", 20), ("mean", None)):
            assert tuned_baselines("bowls", *which) == {BASELINES[each.name]: each.best(*which) for each in tunings}
        assert tuned_baselines("bowls", step=1) != tuned_baselines("bowls")

    def test_what_is_not_there_is_named(self):
        with pytest.raises(
            FileNotFoundError, match=r"'nothing/tuning' .* There is: mnist/tuning, quadratics/tuning.*l2l tune"
        ):
            tuned_baselines("nothing")
        with pytest.raises(TypeError, match=r"expected the name of a problem, .* got Bowls"):
            tuned_baselines(Bowls())
        with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
            tuned_baselines("quadratics", "maen")
        with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
            tuned().best("maen")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adan"}, "Did you mean 'adam'"),
        ({"learning_rates": []}, "grid of learning rates is empty"),
        *(({"learning_rates": [0.1, lr]}, "lr must be a positive number") for lr in (0, -1.0, math.nan)),
        *(({"steps": steps}, "steps must be a whole number") for steps in (0, -1, [5, 0], 2.5, "5")),
        ({"steps": []}, "steps must have at least one number"),
        ({"num_tasks": 0}, "num_tasks must be a whole number of at least 1"),
        ({"name": LSTMRule(3)}, "expected the name of a baseline"),
        ({"learning_rates": 0.1}, "learning_rates must be a list of numbers, got 0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tuned(**arguments)


class TestFurtherRates:
    """A grid goes on where the best learning rate for any of the steps is the first or the last."""

    @pytest.mark.parametrize(
        ("losses", "further"),
        [
            ([[3, 1, 2]], []),
            ([[1, 2, 3]], [0.05]),
            ([[3, 2, 1]], [2.0]),
            ([[3, 1, 2], [1, 2, 3], [3, 2, 1]], [0.05, 2.0]),  # at different steps
            ([[3, 2, math.inf]], []),
            ([[3, math.inf, math.inf]], [0.05]),
            ([[2.0, 2.0001, 3]], []),  # steps too small to make a difference
            ([[2.0, 2.01, 3]], [0.05]),
            ([[0, 0, 1]], []),
        ],
        ids=str,
    )
    def test_beyond_the_end_where_the_best_is(self, losses, further):
        assert further_rates([0.1, 0.3, 1.0], torch.tensor(losses).T) == further

    @pytest.mark.parametrize("loss", [1.0, math.inf])
    def test_one_alone_has_two_ends(self, loss):
        assert further_rates([0.3], torch.tensor([[loss]])) == [0.2, 0.5]

    @pytest.mark.parametrize(("lr", "losses"), [(1e-9, [math.inf, math.inf]), (5e6, [2.0, 1.0])])
    def test_not_for_ever(self, lr, losses):
        rates = [lr, 2 * lr] if lr < 1 else [lr / 2, lr]
        with pytest.raises(ValueError, match=f"the best learning rate is {lr:g} or beyond".replace("+", ".")):
            further_rates(rates, torch.tensor(losses)[:, None])


@pytest.mark.parametrize("rates", ["0.1", [0.1, None], ["fast"], 0.1])
def test_learning_rates_that_are_no_numbers_are_refused(rates):
    with pytest.raises(TypeError, match="tune: learning_rates must be"):
        tuned(learning_rates=rates)


def test_learning_rates_are_sorted_as_numbers():
    found = tuned(learning_rates=["1e-3", "0.2", "0.01"]).table["lr"]
    assert list(dict.fromkeys(found)) == [0.001, 0.01, 0.2]
