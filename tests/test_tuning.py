"""Learning rates of the baselines: the best one is found, on draws of its own."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import LEARNING_RATES, Tuning, compare, learning_rates, tune, tuned_baselines, tuning_table
from l2l_kit.evaluation.tuning import further_rates
from l2l_kit.optimizers import BASELINES, baseline
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
    return tune(
        name, problem or Bowls(), **{"steps": 20, "num_tasks": 9, "learning_rates": GRID, "device": "cpu", **arguments}
    )


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_finds_the_known_best(statistic):
    tuning = tuned()
    assert tuning.best(statistic) == baseline("sgd", 0.5)
    assert tuning.final(statistic)[0.5] < 1e-10


@pytest.mark.parametrize("name", BASELINES)
def test_the_table_holds_what_a_rollout_gives(name):
    tuning = tuned(name, Quadratics(dim=3), num_tasks=8)
    tasks = Quadratics(dim=3).sample(8, generator(0, "tuning"))
    final = {lr: rollout(baseline(name, lr), tasks, 20)[:, -1].nan_to_num(nan=math.inf) for lr in GRID}
    assert list(tuning.table.columns) == ["lr", "step", "mean", "median"]
    assert tuning.table["lr"].tolist() == list(GRID)
    assert tuning.table["step"].tolist() == [20] * len(GRID)
    assert tuning.table["mean"].tolist() == pytest.approx([losses.mean().item() for losses in final.values()])
    assert tuning.best() == baseline(name, min(final, key=lambda lr: final[lr].mean()))


@pytest.mark.parametrize("name", BASELINES)
def test_several_steps_are_noted_in_one_run(name):
    """The same numbers as from runs of those lengths, whatever their order."""
    together = tuned(name, steps=[20, 3, 20, 7])
    assert together.table["step"].tolist() == [3, 7, 20] * len(GRID)
    for step in (3, 7, 20):
        alone = tuned(name, steps=step)
        for statistic in ("mean", "median"):
            pd.testing.assert_series_equal(together.final(statistic, step), alone.final(statistic))
            assert together.best(statistic, step) == alone.best(statistic)


def test_without_a_step_it_is_the_last():
    tuning = tuned(steps=[3, 20])
    pd.testing.assert_series_equal(tuning.final(), tuning.final(step=20))
    assert not tuning.final().equals(tuning.final(step=3))


def test_each_step_has_its_own_best():
    """A large rate is ahead at first, a small one ends lower."""
    table = pd.DataFrame({"lr": [0.1, 0.1, 0.5, 0.5], "step": [1, 9, 1, 9], "mean": [3.0, 1.0, 2.0, 2.0]})
    tuning = Tuning("adam", table)
    assert [tuning.best(step=step).lr for step in (1, 9, None)] == [0.5, 0.1, 0.1]


def test_a_step_that_was_not_recorded_is_named_with_those_that_were():
    with pytest.raises(UnknownNameError, match=r"unknown step of this tuning 50.* Known: '100', '20'"):
        Tuning("sgd", pd.DataFrame({"lr": [0.1, 0.1], "step": [20, 100], "mean": [1.0, 1.0]})).final(step=50)


def test_its_median_is_that_of_compare():
    """The middle of eight losses lies between two of them."""
    tuning = tuned("adam", Quadratics(dim=3), num_tasks=8, learning_rates=[0.1])
    losses = rollout(baseline("adam", 0.1), Quadratics(dim=3).sample(8, generator(0, "tuning")), 20)[:, -1]
    assert tuning.final("median")[0.1] == pytest.approx(losses.sort().values[3:5].mean().item())


def test_tunes_on_other_optimizees_than_the_tests():
    curves = compare({"SGD": baseline("sgd", 0.1)}, Bowls(), steps=20, num_tasks=9, device="cpu")
    assert tuned(learning_rates=[0.1]).final()[0.1] != pytest.approx(curves["SGD"][:, -1].mean().item(), rel=1e-6)


def test_a_learning_rate_at_which_it_diverged_is_infinite_and_never_best():
    tuning = tuned(learning_rates=[1e20, 0.1], steps=30)
    assert tuning.table.loc[0, ["mean", "median"]].tolist() == [math.inf, math.inf]
    assert tuning.best().lr == 0.1


def test_a_loss_that_overflows_is_infinite():
    """Infinite, not NaN: after one step of about 1e25, whose square no float32 holds."""
    tuning = tuned(learning_rates=[1e25], steps=1)
    assert [tuning.final(statistic)[1e25] for statistic in ("mean", "median")] == [math.inf, math.inf]


def test_the_same_each_time():
    pd.testing.assert_frame_equal(tuned("adam").table, tuned("adam").table, check_exact=True)


def test_the_grid_has_eight_per_decade():
    assert (LEARNING_RATES[0], LEARNING_RATES[-1]) == (1e-4, 10)
    assert list(LEARNING_RATES) == sorted(set(LEARNING_RATES))
    assert len(LEARNING_RATES) == 5 * 8 + 1


@pytest.mark.parametrize("per_decade", [1, 2, 4, 5])
def test_a_grid_has_as_many_per_decade_as_asked_for(per_decade):
    grid = learning_rates(per_decade)
    assert len(grid) == len(set(grid)) == 5 * per_decade + 1
    for lr, expected in zip(grid, torch.logspace(-4, 1, 5 * per_decade + 1), strict=True):
        assert lr == pytest.approx(expected.item(), rel=0.05)  # two digits
    assert {1e-4, 1e-3, 1e-2, 0.1, 1, 10} <= set(grid)


def test_recorded_tunings_give_the_tuned_baselines(monkeypatch):
    tunings = [tuned(name, steps=[1, 20]) for name in BASELINES]
    recorded = tuning_table(tunings)

    def read_result(name):
        assert name == "bowls/tuning"
        return recorded

    monkeypatch.setattr("l2l_kit.evaluation.tuning.read_result", read_result)
    for statistic in ("mean", "median"):
        for step in (1, 20, None):
            chosen = tuned_baselines("bowls", statistic, step)
            assert chosen == {BASELINES[tuning.name]: tuning.best(statistic, step) for tuning in tunings}
    assert tuned_baselines("bowls", step=1) != tuned_baselines("bowls")


def test_each_statistic_has_its_own_best():
    table = pd.DataFrame({"lr": [0.1, 0.2, 0.3], "step": 5, "mean": [3.0, 1.0, 2.0], "median": [1.0, 3.0, 2.0]})
    tuning = Tuning("adam", table)
    assert (tuning.best("mean").lr, tuning.best("median").lr) == (0.2, 0.1)


def test_the_recorded_tuning_of_the_kit_is_read():
    """Its file has the columns that are read, and a loss for every baseline."""
    for statistic in ("mean", "median"):
        chosen = tuned_baselines("quadratics", statistic, 100)
        assert list(chosen) == list(BASELINES.values())
        assert chosen == tuned_baselines("quadratics", statistic)


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


@pytest.mark.parametrize("sizes", [{"steps": 0}, {"steps": -1}, {"steps": [5, 0]}, {"steps": []}, {"num_tasks": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        tuned(**sizes)


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
            ([[math.inf, math.inf, math.inf]], [0.05]),
            ([[2.0, 2.0001, 3]], []),  # steps too small to make a difference
            ([[2.0, 2.01, 3]], [0.05]),
            ([[3, 2.0001, 2.0]], []),
            ([[0, 0, 1]], []),
        ],
        ids=str,
    )
    def test_beyond_the_end_where_the_best_is(self, losses, further):
        assert further_rates([0.1, 0.3, 1.0], torch.tensor(losses).T) == further

    @pytest.mark.parametrize("loss", [1.0, math.inf])
    def test_one_alone_has_two_ends(self, loss):
        assert further_rates([0.3], torch.tensor([[loss]])) == [0.2, 0.5]

    def test_by_a_quarter_at_least_and_by_the_root_of_ten_at_most(self):
        for lr in torch.logspace(-7, 5, 999, dtype=torch.float64).tolist():
            smaller, larger = further_rates([lr], torch.tensor([[1.0]]))
            for ratio in (lr / smaller, larger / lr):
                assert 1.25 * (1 - 1e-12) <= ratio <= math.sqrt(10)

    @pytest.mark.parametrize(("lr", "losses"), [(1e-9, [math.inf, math.inf]), (5e6, [2.0, 1.0])])
    def test_not_for_ever(self, lr, losses):
        rates = [lr, 2 * lr] if lr < 1 else [lr / 2, lr]
        with pytest.raises(ValueError, match=f"the best learning rate is {lr:g} or beyond".replace("+", ".")):
            further_rates(rates, torch.tensor(losses)[:, None])
