"""Learning rates of the baselines: the best one is found, on draws of its own."""

import math
from dataclasses import dataclass

import pandas as pd
import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import LEARNING_RATES, Tuning, compare, tune, tuned_baselines, tuning_table
from l2l_kit.optimizers import BASELINES, baseline
from l2l_kit.problems import Problem, QuadraticOptimizees, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import rollout

GRID = (0.01, 0.1, 0.5, 0.9, 3.0)


@dataclass(frozen=True)
class Bowls(Problem):
    """‖θ − y‖²: gradient descent with lr 1/2 is at the minimum after one step, with 1 or more it never is."""

    def sample(self, n, generator, device=None):
        y, theta = (torch.randn(n, 3, generator=generator) for _ in range(2))
        return QuadraticOptimizees(torch.eye(3).expand(n, 3, 3), y, theta)

    def config(self):
        return {"name": "bowls"}


def tuned(name="sgd", problem=None, **arguments):
    return tune(
        name, problem or Bowls(), **{"steps": 20, "tasks": 9, "learning_rates": GRID, "device": "cpu", **arguments}
    )


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_finds_the_known_best(statistic):
    tuning = tuned()
    assert tuning.best_lr(statistic) == 0.5
    assert tuning.best(statistic) == baseline("sgd", 0.5)
    assert tuning.table["mean"][0.5] < 1e-10


@pytest.mark.parametrize("name", BASELINES)
def test_the_table_holds_what_a_rollout_gives(name):
    tuning = tuned(name, Quadratics(dim=3), tasks=8)
    optimizees = Quadratics(dim=3).sample(8, generator(0, "tuning"))
    final = {lr: rollout(baseline(name, lr), optimizees, 20)[:, -1].nan_to_num(nan=math.inf) for lr in GRID}
    assert list(tuning.table.index) == list(GRID)
    for lr, losses in final.items():
        assert tuning.table["mean"][lr] == pytest.approx(losses.mean().item())
    assert tuning.best_lr() == min(final, key=lambda lr: final[lr].mean())


def test_its_median_is_that_of_compare():
    """The middle of eight losses lies between two of them."""
    tuning = tuned("adam", Quadratics(dim=3), tasks=8, learning_rates=[0.1])
    losses = rollout(baseline("adam", 0.1), Quadratics(dim=3).sample(8, generator(0, "tuning")), 20)[:, -1]
    assert tuning.table["median"][0.1] == pytest.approx(losses.sort().values[3:5].mean().item())


def test_tunes_on_other_optimizees_than_the_tests():
    curves = compare({"SGD": baseline("sgd", 0.1)}, Bowls(), steps=20, tasks=9, device="cpu")
    assert tuned(learning_rates=[0.1]).table["mean"][0.1] != pytest.approx(curves["SGD"][:, -1].mean().item(), rel=1e-6)


def test_a_learning_rate_at_which_it_diverged_is_infinite_and_never_best():
    tuning = tuned(learning_rates=[1e20, 0.1], steps=30)
    assert tuning.table.loc[1e20].tolist() == [math.inf, math.inf]
    assert tuning.best_lr() == 0.1


def test_a_loss_that_overflows_is_infinite():
    """Infinite, not NaN: after one step of about 1e25, whose square no float32 holds."""
    assert tuned(learning_rates=[1e25], steps=1).table.loc[1e25].tolist() == [math.inf, math.inf]


def test_the_same_each_time():
    pd.testing.assert_frame_equal(tuned("adam").table, tuned("adam").table, check_exact=True)


def test_the_grid_has_eight_per_decade():
    assert (LEARNING_RATES[0], LEARNING_RATES[-1]) == (1e-4, 10)
    assert list(LEARNING_RATES) == sorted(set(LEARNING_RATES))
    assert len(LEARNING_RATES) == 5 * 8 + 1


def test_recorded_tunings_give_the_tuned_baselines(monkeypatch):
    tunings = [tuned(name) for name in BASELINES]
    recorded = tuning_table(tunings)

    def read_result(name):
        assert name == "bowls/tuning"
        return recorded

    monkeypatch.setattr("l2l_kit.evaluation.tuning.read_result", read_result)
    for statistic in ("mean", "median"):
        chosen = tuned_baselines("bowls", statistic)
        assert chosen == {BASELINES[tuning.name]: tuning.best(statistic) for tuning in tunings}


def test_each_statistic_has_its_own_best():
    table = pd.DataFrame(
        {"mean": [3.0, 1.0, 2.0], "median": [1.0, 3.0, 2.0]}, index=pd.Index([0.1, 0.2, 0.3], name="lr")
    )
    tuning = Tuning("adam", table)
    assert (tuning.best_lr("mean"), tuning.best_lr("median")) == (0.2, 0.1)


def test_an_unknown_baseline_gives_the_near_match():
    with pytest.raises(UnknownNameError, match="Did you mean 'adam'"):
        tuned("adan")


def test_an_unknown_statistic_gives_the_near_match():
    with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
        tuned_baselines("quadratics", "maen")


def test_a_problem_without_recorded_tuning_says_so():
    with pytest.raises(FileNotFoundError, match="no recorded result 'nothing/tuning'"):
        tuned_baselines("nothing")


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="grid of learning rates is empty"):
        tuned(learning_rates=[])


@pytest.mark.parametrize("lr", [0, -1.0, math.nan])
def test_a_learning_rate_that_makes_no_sense_is_refused(lr):
    with pytest.raises(ValueError, match="lr must be a positive number"):
        tuned(learning_rates=[0.1, lr])


@pytest.mark.parametrize("sizes", [{"steps": 0}, {"steps": -1}, {"tasks": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        tuned(**sizes)
