"""Paired comparison and its statistics."""

import math
import statistics

import pandas as pd
import pytest
import torch

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import Curves, compare, read_result, write_result
from l2l_kit.optimizers import LSTMRule, baseline
from l2l_kit.problems import Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import rollout

PROBLEM = Quadratics(dim=3)


def optimizers():
    return {
        "LSTM": LSTMRule(hidden_size=4),
        "log-sign": LSTMRule(hidden_size=4, preprocessing="log-sign"),
        "Adam": baseline("adam", 0.1),
        "NAG": baseline("nag", 0.01),
    }


def run(chosen, **arguments):
    return compare(chosen, PROBLEM, **{"steps": 6, "num_tasks": 5, "device": "cpu", **arguments})


def synthetic(losses, seed=0):
    return Curves({name: torch.as_tensor(rows) for name, rows in losses.items()}, {}, seed)


def lognormal(num_tasks, steps=1, seed=0, location=0.0):
    return (
        torch.randn(num_tasks, steps, generator=generator(seed, "synthetic"), dtype=torch.float64).add(location).exp()
    )


class TestPairing:
    def test_every_optimizer_meets_the_same_optimizees(self):
        curves = run(optimizers())
        starts = [curves[name][:, 0] for name in curves.losses]
        assert all(torch.equal(start, starts[0]) for start in starts)
        assert (starts[0].diff() != 0).all()

    def test_the_order_and_the_other_optimizers_do_not_matter(self):
        together, reverse = run(optimizers()), run(dict(reversed(optimizers().items())))
        for name, optimizer in optimizers().items():
            alone = run({"me": optimizer})
            assert torch.equal(together[name], reverse[name])
            assert torch.equal(together[name], alone["me"])

    def test_the_same_optimizer_twice_gives_the_same_bits(self):
        optimizer = LSTMRule(hidden_size=4)
        curves = run({"one": optimizer, "two": optimizer})
        assert torch.equal(curves["one"], curves["two"])
        ratio = curves.interval("one", over="two")
        assert all(torch.equal(part, torch.ones(7)) for part in ratio)

    def test_other_seeds_are_other_optimizees(self):
        assert not torch.isclose(run(optimizers())["Adam"], run(optimizers(), seed=1)["Adam"]).any()

    def test_the_optimizees_are_none_of_meta_training_and_tuning(self):
        test = run(optimizers())["Adam"][:, 0]
        for purpose in (("validation",), ("tuning",), ("meta-train", 0)):
            start = rollout(baseline("adam", 0.1), PROBLEM.sample(5, generator(0, *purpose)), 1)[:, 0]
            assert not torch.isclose(start, test).any()

    def test_curves_are_those_of_a_rollout(self):
        curves = run(optimizers())
        assert (curves.steps, curves.num_tasks, curves.problem) == (6, 5, PROBLEM.config())
        for name, optimizer in optimizers().items():
            expected = rollout(optimizer, PROBLEM.sample(5, generator(0, "test")), 6)
            assert torch.equal(curves[name], expected)

    def test_leaves_optimizers_as_they_were(self):
        optimizer = LSTMRule(hidden_size=4)
        before = {name: weight.clone() for name, weight in optimizer.state_dict().items()}
        run({"me": optimizer})
        assert all(torch.equal(weight, before[name]) for name, weight in optimizer.state_dict().items())
        assert all(weight.requires_grad and weight.grad is None for weight in optimizer.parameters())


class TestStatistics:
    @pytest.mark.parametrize("num_tasks", [1, 2, 7, 8])
    def test_mean_median_and_quantiles_equal_those_of_the_standard_library(self, num_tasks):
        losses = lognormal(num_tasks, steps=3)
        curves = synthetic({"me": losses})
        for step in range(3):
            column = losses[:, step].tolist()
            assert curves.statistic("me", "mean")[step].item() == pytest.approx(statistics.mean(column))
            assert curves.statistic("me", "median")[step].item() == pytest.approx(statistics.median(column))
            if num_tasks > 1:
                deciles = statistics.quantiles(column, n=10, method="inclusive")
                low, high = curves.quantiles("me", (0.1, 0.9))[:, step].tolist()
                assert (low, high) == pytest.approx((deciles[0], deciles[-1]))

    @pytest.mark.parametrize("num_tasks", [1, 6, 7])
    @pytest.mark.parametrize("statistic", ["mean", "median"])
    @pytest.mark.parametrize("over", [None, "other"])
    def test_the_bootstrap_equals_a_loop(self, statistic, over, num_tasks):
        """Ties as well: the first step is the same number for all."""
        losses = {"me": lognormal(num_tasks, 3), "other": lognormal(num_tasks, 3, seed=1)}
        losses["me"][:, 0] = 2.0
        curves = synthetic(losses, seed=5)
        found = curves.interval("me", statistic, over=over, level=0.9, resamples=50)
        draws = torch.randint(num_tasks, (50, num_tasks), generator=generator(5, "bootstrap"))
        function = getattr(statistics, statistic)

        def estimate(indices, step):
            value = function([losses["me"][index, step].item() for index in indices])
            return value / function([losses["other"][index, step].item() for index in indices]) if over else value

        for step in range(3):
            samples = torch.tensor([estimate(indices, step) for indices in draws.tolist()], dtype=torch.float64)
            low, high = torch.quantile(samples, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
            expected = estimate(range(num_tasks), step), low, high
            assert [part[step].item() for part in found] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("statistic", ["mean", "median"])
    def test_an_interval_covers_the_truth_as_often_as_it_says(self, statistic):
        truth = {"mean": math.exp(0.5 * 0.25), "median": 1.0}[statistic]
        covered = []
        for seed in range(300):
            curves = synthetic({"me": lognormal(60, seed=seed).pow(0.5)}, seed)
            _, low, high = curves.interval("me", statistic, level=0.9, resamples=200)
            covered.append(bool(low <= truth <= high))
        assert 0.84 <= statistics.mean(covered) <= 0.95

    def test_a_paired_ratio_is_far_tighter_than_an_unpaired_one(self):
        """One optimizer is 10% better on each optimizee, and optimizees differ by orders of magnitude."""
        losses = lognormal(200) ** 2
        noise = 1 + 0.02 * torch.randn(200, 1, generator=generator(0, "noise"), dtype=torch.float64)
        curves = synthetic({"one": 0.9 * losses * noise, "two": losses})
        value, low, high = (part.item() for part in curves.interval("one", over="two"))
        assert 0.88 < low < value < high < 0.92
        _, alone_low, alone_high = (part.item() for part in curves.interval("one"))
        assert alone_high / alone_low > 1.5

    def test_intervals_widen_with_the_level_and_shrink_with_the_tasks(self):
        curves = synthetic({"me": lognormal(50)})
        _, low, high = curves.interval("me", level=0.5)
        _, wider_low, wider_high = curves.interval("me", level=0.99)
        assert wider_low < low < high < wider_high
        _, many_low, many_high = synthetic({"me": lognormal(5000)}).interval("me", level=0.99)
        assert (many_high - many_low) < (wider_high - wider_low) / 4

    def test_an_interval_is_the_same_each_time(self):
        curves = synthetic({"me": lognormal(20)})
        torch.manual_seed(1)
        first = curves.interval("me")
        torch.manual_seed(2)
        assert all(torch.equal(one, other) for one, other in zip(first, curves.interval("me"), strict=True))


class TestDivergedRuns:
    @pytest.fixture
    def curves(self):
        return run({"wild": baseline("sgd", 1e4), "tame": baseline("sgd", 0.01)}, steps=60)

    def test_count_as_infinite_from_there_on(self, curves):
        wild = curves["wild"]
        assert not wild.isnan().any()
        assert wild[:, -1].isinf().all()
        assert torch.equal(wild.isinf().int().cummax(dim=1).values.bool(), wild.isinf())
        assert curves["tame"].isfinite().all()

    def test_count_as_infinite_where_the_loss_overflows(self):
        """θ after one such step is finite still, and its square no longer."""
        losses = run({"wild": baseline("sgd", 1e25)}, steps=1)["wild"]
        assert losses[:, 0].isfinite().all()
        assert losses[:, 1].isinf().all()

    @pytest.mark.parametrize("statistic", ["mean", "median"])
    def test_make_statistics_infinite_not_nan(self, curves, statistic):
        assert curves.statistic("wild", statistic)[-1] == math.inf
        for part in curves.interval("wild", statistic):
            assert part[-1] == math.inf
            assert not part.isnan().any()
        for part in curves.interval("wild", statistic, over="tame"):
            assert part[-1] == math.inf

    def test_make_tables_and_quantiles_infinite_not_nan(self, curves):
        assert (curves.quantiles("wild")[:, -1] == math.inf).all()
        frame = curves.to_frame()
        assert not frame.isna().any(axis=None)
        assert (curves.at_step(60).loc["wild"] == math.inf).all()

    def test_leave_the_median_alone_where_they_are_few(self):
        """One of nine diverged: the mean is infinite, the median is not, and the 0.75 quantile is not either."""
        losses = torch.arange(1.0, 10.0)[:, None]
        losses[8] = math.inf
        curves = synthetic({"me": losses})
        assert curves.statistic("me", "mean").item() == math.inf
        assert curves.statistic("me", "median").item() == 5
        assert curves.quantiles("me", (0.1, 0.5, 0.75, 0.875, 1.0))[:, 0].tolist() == pytest.approx(
            [1.8, 5, 7, 8, math.inf]
        )
        value, low, high = (part.item() for part in curves.interval("me", "median"))
        assert (value, low) == (5, pytest.approx(3, abs=1))
        assert math.isfinite(high)
        value, low, high = (part.item() for part in curves.interval("me", "mean"))
        assert (value, high) == (math.inf, math.inf)
        assert math.isfinite(low)  # a resample without the diverged run


class TestTables:
    def test_to_frame_is_tidy(self):
        curves = run(optimizers())
        frame = curves.to_frame()
        assert list(frame.columns) == ["optimizer", "step", "mean", "median", "q10", "q25", "q75", "q90"]
        assert len(frame) == 4 * 7
        row = frame[(frame["optimizer"] == "NAG") & (frame["step"] == 3)].iloc[0]
        assert row["mean"] == pytest.approx(curves["NAG"][:, 3].mean().item())
        assert row["q75"] == pytest.approx(curves["NAG"][:, 3].quantile(0.75).item())

    def test_at_step_gives_a_row_per_optimizer(self):
        curves = run(optimizers())
        assert list(curves.at_step(6).index) == ["LSTM", "log-sign", "Adam", "NAG"]
        assert curves.at_step(6)["median"]["Adam"] == pytest.approx(curves["Adam"][:, 6].median().item())

    @pytest.mark.parametrize("step", [-1, 7])
    def test_a_step_outside_the_curves_is_refused(self, step):
        with pytest.raises(ValueError, match=f"step {step} is outside these curves, which go from 0 to 6"):
            run(optimizers()).at_step(step)

    def test_results_are_read_as_they_were_written(self, tmp_path):
        table = pd.DataFrame({"optimizer": ["LSTM", "Adam"], "loss": [0.125, math.inf], "tasks": [5, 7]})
        path = write_result("deep/er/table", table, {"seed": 0, "problem": PROBLEM.config()}, tmp_path)
        assert path == tmp_path / "deep" / "er" / "table.csv"
        pd.testing.assert_frame_equal(read_result("deep/er/table", tmp_path), table)
        assert '"dim": 3' in path.with_suffix(".json").read_text()

    def test_results_are_read_to_six_digits(self, tmp_path):
        table = run(optimizers()).to_frame()
        write_result("curves", table, {}, tmp_path)
        pd.testing.assert_frame_equal(read_result("curves", tmp_path), table, rtol=1e-5, check_dtype=False)

    def test_a_result_that_is_not_there_lists_those_that_are(self, tmp_path):
        write_result("quadratics/tuning", pd.DataFrame({"lr": [0.1]}), {}, tmp_path)
        with pytest.raises(FileNotFoundError, match=r"no recorded result 'mnist/tuning'.*There is: quadratics.tuning"):
            read_result("mnist/tuning", tmp_path)


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "near"), [("Adm", "Adam"), ("lstm", "LSTM"), ("nag", "NAG"), ("logsign", "log-sign")]
    )
    def test_an_unknown_optimizer_gives_the_near_match(self, name, near):
        with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
            run(optimizers())[name]

    def test_an_unknown_optimizer_to_divide_by_gives_the_near_match(self):
        with pytest.raises(UnknownNameError, match="Did you mean 'Adam'"):
            run(optimizers()).interval("LSTM", over="Adan")

    def test_an_unknown_statistic_gives_the_near_match(self):
        with pytest.raises(UnknownNameError, match="Did you mean 'median'"):
            run(optimizers()).interval("LSTM", "medain")

    def test_nothing_to_compare_is_refused(self):
        with pytest.raises(ValueError, match="no optimizers given"):
            run({})

    @pytest.mark.parametrize("arguments", [{"steps": 0}, {"num_tasks": 0}, {"steps": -1}, {"num_tasks": -5}])
    def test_sizes_below_one_are_refused(self, arguments):
        with pytest.raises(ValueError, match="must be at least 1"):
            run(optimizers(), **arguments)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_refused(self):
        with pytest.raises(ValueError, match="torch sees no GPU"):
            run(optimizers(), device="cuda")
