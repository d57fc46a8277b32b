"""Paired comparison and its statistics."""

import math
import statistics
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from l2l_kit import data
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import Curves, compare, metrics_on_test_set, paired_ratio, read_result, write_result
from l2l_kit.optimizers import LSTMRule, baseline
from l2l_kit.problems import MNIST, Problem, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import rollout

PROBLEM = Quadratics(dim=3)
DIGITS = MNIST(source="embedded", hidden=(3,), batch_size=16)
OPTIMIZERS = {
    "LSTM": LSTMRule(hidden_size=4, output_scale=0.1),
    "log-sign": LSTMRule(hidden_size=4, preprocessing="log-sign"),
    "Adam": baseline("adam", 0.1),
    "SGD": baseline("sgd", 0.01),
}


def run(chosen=OPTIMIZERS, **arguments):
    return compare(chosen, PROBLEM, **{"steps": 6, "num_tasks": 5, "device": "cpu", **arguments})


def synthetic(seed=0, **losses):
    return Curves({name: torch.as_tensor(rows) for name, rows in losses.items()}, {}, seed)


def lognormal(num_tasks, steps=1, seed=0):
    return torch.randn(num_tasks, steps, generator=generator(seed, "synthetic"), dtype=torch.float64).exp()


class TestPairing:
    def test_curves_are_those_of_a_rollout_whoever_else_is_compared(self):
        """All meet the same optimizees; the order, and being there twice, makes no difference."""
        curves = run({**dict(reversed(OPTIMIZERS.items())), "again": OPTIMIZERS["LSTM"]})
        assert (curves.steps, curves.num_tasks, curves.problem) == (6, 5, PROBLEM.config())
        for name, optimizer in {**OPTIMIZERS, "again": OPTIMIZERS["LSTM"]}.items():
            assert torch.equal(curves[name], rollout(optimizer, PROBLEM.sample(5, generator(0, "test")), 6))
        assert all(torch.equal(part, torch.ones(7)) for part in curves.interval("LSTM", over="again"))

    @pytest.mark.parametrize(
        ("drawn", "message"),
        [
            (lambda: torch.randn(3), "careless: drew from torch's global generator"),
            (lambda: torch.as_tensor(np.random.randn(3)), "careless: not all optimizers met the same optimizees"),
        ],
    )
    def test_draws_that_are_not_from_the_generator_are_refused(self, drawn, message):
        careless = Problem.from_functions(
            "careless", lambda _: ({"t": drawn()}, {}), lambda params, data: params["t"].square().sum()
        )
        with pytest.raises(ValueError, match=message):
            compare(OPTIMIZERS, careless, steps=1, num_tasks=2, device="cpu")

    def test_names_that_are_no_text_are_refused(self):
        with pytest.raises(TypeError, match=r"expected optimizers by name, such as '0.1', got 0.1 as a name"):
            compare({0.1: baseline("adam", 0.1)}, PROBLEM, steps=1, num_tasks=2)

    def test_equal_seeds_are_the_same_optimizees_whatever_their_type(self):
        for seed in (np.int64(1), True):
            assert torch.equal(run(seed=seed)["Adam"], run(seed=1)["Adam"])
            assert type(run(seed=seed).seed) is int, "JSON does not know numpy's"
        with pytest.raises(TypeError):
            run(seed=1.0)

    def test_other_seeds_are_other_optimizees(self):
        assert not torch.isclose(run()["Adam"], run(seed=1)["Adam"]).any()

    @pytest.mark.parametrize("purpose", [("validation",), ("tuning",), ("meta-train", 0)])
    def test_the_optimizees_are_none_of_meta_training_and_tuning(self, purpose):
        start = rollout(OPTIMIZERS["Adam"], PROBLEM.sample(5, generator(0, *purpose)), 1)[:, 0]
        assert not torch.isclose(start, run()["Adam"][:, 0]).any()


class Elsewhere(nn.Module):
    """Proposes nothing, and notes where it and its copies are put."""

    copies: ClassVar[list] = []

    def to(self, device):
        self.mine = True
        Elsewhere.copies.append(device)
        return self

    def init(self, params):
        return None

    def update(self, gradients, state, params):
        return {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}, state


def test_a_copy_of_a_learned_optimizer_is_put_where_the_optimizees_are():
    """The caller's own stays as it is and where it is."""
    optimizer = Elsewhere()
    compare({"": optimizer}, PROBLEM, steps=1, num_tasks=1, device="cpu")
    assert Elsewhere.copies == [torch.device("cpu")]
    assert not hasattr(optimizer, "mine")


class TestStatistics:
    @pytest.mark.parametrize("num_tasks", [1, 2, 7, 8])
    def test_mean_median_and_quantiles_equal_those_of_the_standard_library(self, num_tasks):
        losses = lognormal(num_tasks, steps=3)
        curves = synthetic(me=losses)
        for step in range(3):
            column = losses[:, step].tolist()
            assert curves.statistic("me", "mean")[step].item() == pytest.approx(statistics.mean(column))
            assert curves.statistic("me", "median")[step].item() == pytest.approx(statistics.median(column))
            if num_tasks > 1:
                deciles = statistics.quantiles(column, n=10, method="inclusive")
                low, high = curves.quantiles("me", (0.1, 0.9))[:, step].tolist()
                assert (low, high) == pytest.approx((deciles[0], deciles[-1]))

    @pytest.mark.parametrize("num_tasks", [1, 6, 7])
    @pytest.mark.parametrize(("statistic", "over"), [("mean", None), ("median", None), ("median", "other")])
    def test_the_bootstrap_equals_a_loop(self, monkeypatch, statistic, over, num_tasks):
        """Ties as well: the first step is the same number for all."""
        monkeypatch.setattr("l2l_kit.evaluation.curves.RESAMPLES", 50)
        losses = {"me": lognormal(num_tasks, 3), "other": lognormal(num_tasks, 3, seed=1)}
        losses["me"][:, 0] = 2.0
        found = synthetic(5, **losses).interval("me", statistic, over=over)
        draws = torch.randint(num_tasks, (50, num_tasks), generator=generator(5, "bootstrap"))
        function = getattr(statistics, statistic)

        def estimate(indices, step):
            value = function([losses["me"][index, step].item() for index in indices])
            return value / function([losses["other"][index, step].item() for index in indices]) if over else value

        for step in range(3):
            samples = torch.tensor([estimate(indices, step) for indices in draws.tolist()], dtype=torch.float64)
            low, high = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            expected = estimate(range(num_tasks), step), low, high
            assert [part[step].item() for part in found] == pytest.approx(expected, rel=1e-12)


@pytest.fixture(scope="module")
def curves():
    return run({"wild": baseline("sgd", 1e4), "tame": baseline("sgd", 0.01)}, steps=60)


@pytest.mark.parametrize("typical", [False, True])
def test_there_is_no_ratio_of_losses_below_zero(typical):
    """The lower of two would have the higher ratio."""
    losses = torch.tensor([[1.0], [-3.0], [1.0]])
    for pair in ((losses, losses.abs()), (losses.abs(), losses)):
        with pytest.raises(ValueError, match="ratios need losses that are not negative"):
            paired_ratio(*pair, typical=typical)


@pytest.mark.parametrize("at", [(-0.5,), (25,), 0.5, ("a",)])
def test_quantiles_are_numbers_from_0_to_1(at):
    with pytest.raises(ValueError, match=r"quantiles: expected numbers from 0 to 1, such as \(0.25, 0.75\), got"):
        synthetic(me=lognormal(3)).quantiles("me", at)


@pytest.mark.parametrize("at", [np.linspace(0.1, 0.9, 3), torch.tensor([0.1, 0.5, 0.9]), (np.float32(0.5),)])
def test_quantiles_may_be_numpys_or_torchs(at):
    assert synthetic(me=torch.arange(11.0)[:, None]).quantiles("me", at)[:, 0].tolist() == pytest.approx(
        [10 * float(each) for each in at]
    )


def test_a_ratio_that_one_task_decides_has_no_narrow_interval():
    ours, theirs = (torch.tensor([1.0] + [small] * 7, dtype=torch.float64)[:, None] for small in (1e-20, 7e-20))
    value, low, high = paired_ratio(ours, theirs)
    assert (value.item(), low.item(), high.item()) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize(
    ("ours", "theirs", "ratio"),
    [
        (math.inf, 1.0, (math.inf, math.inf, math.inf)),
        (math.inf, math.inf, (math.inf, math.inf, math.inf)),
        (1.0, math.inf, (0.0, 0.0, math.inf)),  # what diverged is beaten, but by how much nobody knows
        (0.0, 0.0, (1.0, 1.0, 1.0)),
    ],
)
def test_ratios_where_one_diverged_or_both_solved_it(statistic, ours, theirs, ratio):
    found = synthetic(me=torch.full((5, 1), ours), other=torch.full((5, 1), theirs)).interval(
        "me", statistic, over="other"
    )
    assert [part.item() for part in found] == [*ratio]


class TestDivergedRuns:
    def test_count_as_infinite_from_there_on(self, curves):
        wild = curves["wild"]
        assert not wild.isnan().any()
        assert wild[:, -1].isinf().all()
        assert torch.equal(wild.isinf().int().cummax(dim=1).values.bool(), wild.isinf())
        assert curves["tame"].isfinite().all()

    @pytest.mark.parametrize("statistic", ["mean", "median"])
    def test_make_statistics_and_tables_infinite_not_nan(self, curves, statistic):
        for part in (curves.statistic("wild", statistic), *curves.interval("wild", statistic)):
            assert part[-1] == math.inf
            assert not part.isnan().any()
        assert [part[-1] for part in curves.interval("wild", statistic, over="tame")] == [math.inf] * 3
        assert not curves.to_frame().isna().any(axis=None)

    def test_leave_the_median_alone_where_they_are_few(self):
        """One of nine diverged: the mean is infinite, the median is not, and the 0.75 quantile is not either."""
        losses = torch.arange(1.0, 10.0)[:, None]
        losses[8] = math.inf
        curves = synthetic(me=losses)
        quantiles = curves.quantiles("me", (0.1, 0.5, 0.75, 0.875, 1.0))[:, 0].tolist()
        assert quantiles == pytest.approx([1.8, 5, 7, 8, math.inf])
        value, low, high = (part.item() for part in curves.interval("me", "median"))
        assert (value, low) == (5, pytest.approx(3, abs=1))
        assert math.isfinite(high)
        value, low, high = (part.item() for part in curves.interval("me", "mean"))
        assert (value, high) == (math.inf, math.inf)
        assert math.isfinite(low)  # a resample without the diverged run


class TestTables:
    def test_to_frame_is_tidy(self):
        curves = run()
        frame = curves.to_frame()
        assert list(frame.columns) == ["optimizer", "step", "mean", "median", "q10", "q25", "q75", "q90"]
        assert len(frame) == 4 * 7
        row = frame[(frame["optimizer"] == "SGD") & (frame["step"] == 3)].iloc[0]
        assert row["mean"] == pytest.approx(curves["SGD"][:, 3].mean().item())
        assert row["q75"] == pytest.approx(curves["SGD"][:, 3].quantile(0.75).item())
        at_end = curves.at_step(6)
        assert list(at_end.index) == list(OPTIMIZERS)
        assert at_end["median"]["Adam"] == pytest.approx(curves["Adam"][:, 6].median().item())

    def test_results_are_read_as_they_were_written(self, tmp_path):
        table = pd.DataFrame({"optimizer": ["LSTM", "Adam"], "loss": [0.125, math.inf], "tasks": [5, 7]})
        path = write_result("deep/er/table", table, {"seed": 0, "problem": PROBLEM.config()}, tmp_path)
        assert path == tmp_path / "deep" / "er" / "table.csv"
        pd.testing.assert_frame_equal(read_result("deep/er/table", tmp_path), table)
        assert '"dim": 3' in path.with_suffix(".json").read_text()

    def test_a_result_that_is_not_there_lists_those_that_are(self, tmp_path):
        for name in ("quadratics/tuning", "training/mine"):
            write_result(name, pd.DataFrame({"lr": [0.1]}), {}, tmp_path)
        with pytest.raises(
            FileNotFoundError, match=r"no recorded result 'mnist/tuning'.*There is: quadratics.tuning\.$"
        ):
            read_result("mnist/tuning", tmp_path)
        with pytest.raises(FileNotFoundError, match=r"There is: quadratics.tuning, training.mine\.$"):
            read_result("mine", tmp_path)

    @pytest.mark.parametrize("content", ["a,b\n1", "lr,step,mean,median,baseline\n0.1,5,1.5,1.5,sgd\n0.2,5,1."])
    def test_a_table_without_its_columns_is_damaged(self, tmp_path, content):
        path = write_result("quadratics/tuning", pd.DataFrame({"lr": [0.1]}), {}, tmp_path)
        path.write_text(content)
        with pytest.raises(ValueError, match=r"tuning.csv: .* damaged \(.*baseline missing\)"):
            read_result("quadratics/tuning", tmp_path)


@pytest.fixture(scope="module")
def table():
    chosen = {"LSTM": OPTIMIZERS["LSTM"], "SGD": baseline("sgd", 0.5)}
    return metrics_on_test_set(chosen, DIGITS, at=[5, 0, 2], num_tasks=2, seed=3, device="cpu")


class TestOnTestImages:
    def test_it_has_a_row_for_each_optimizer_and_step(self, table):
        assert list(table.columns) == ["optimizer", "step", "loss", "accuracy"]
        assert table["optimizer"].tolist() == ["LSTM"] * 3 + ["SGD"] * 3
        assert table["step"].tolist() == [0, 2, 5] * 2
        assert table.groupby("step")["loss"].nunique().tolist() == [1, 2, 2], "they start from the same networks"

    @pytest.mark.parametrize("step", [0, 5])
    def test_gradient_descent_does_on_test_images_as_torch_says(self, table, step):
        """One network after the other, trained on the minibatches of `losses` and shown all the test images."""
        images, labels = data.load("mnist", "embedded").split("test")
        tasks = DIGITS.sample(2, generator(3, "test"))
        params = {name: tensor.clone().requires_grad_() for name, tensor in tasks.initial_params.items()}
        descent = torch.optim.SGD(params.values(), lr=0.5)
        for t in range(step):
            descent.zero_grad()
            tasks.losses(params, t).sum().backward()
            descent.step()
        losses, accuracies = [], []
        with torch.no_grad():
            for one in range(2):
                network = nn.Sequential(nn.Linear(784, 3), nn.Sigmoid(), nn.Linear(3, 10))
                for layer, index in ((network[0], 0), (network[2], 1)):
                    layer.weight.copy_(params[f"weight{index}"][one].T)
                    layer.bias.copy_(params[f"bias{index}"][one])
                logits = network(images.flatten(1) / 255)
                losses.append(functional.cross_entropy(logits, labels).item())
                accuracies.append((logits.argmax(dim=1) == labels).float().mean().item())
        (row,) = table[(table["optimizer"] == "SGD") & (table["step"] == step)].itertuples()
        assert row.loss == pytest.approx(sum(losses) / 2, rel=1e-4)
        assert row.accuracy == pytest.approx(sum(accuracies) / 2, abs=1e-6)

    def test_problems_without_test_images_are_refused(self):
        with pytest.raises(ValueError, match="no test images"):
            metrics_on_test_set(OPTIMIZERS, PROBLEM, at=[0], num_tasks=1, device="cpu")


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        (lambda: run()["logsign"], UnknownNameError, "Did you mean 'log-sign'"),
        (lambda: run().interval("LSTM", over="Adan"), UnknownNameError, "Did you mean 'Adam'"),
        (lambda: run().interval("LSTM", "medain"), UnknownNameError, "Did you mean 'median'"),
        (lambda: run().at_step(7), ValueError, "step 7 is outside these curves, which go from 0 to 6"),
        (lambda: run({}), ValueError, "no optimizers given"),
        (lambda: run({"mine": "mnist"}), TypeError, r"'mine': expected an optimizer of the kit, .* got 'mnist'"),
        (lambda: run([baseline("sgd", 0.1)]), TypeError, "expected optimizers by name"),
        *(
            (lambda wrong=wrong: run(steps=wrong), ValueError, "steps must be a whole number")
            for wrong in (0, 2.5, "5")
        ),
        *((lambda wrong=wrong: run(num_tasks=wrong), ValueError, "num_tasks must be a") for wrong in (-5, 2.5, None)),
        (lambda: run(steps=True), ValueError, "steps must be a whole number"),
        *(
            (
                lambda at=at: metrics_on_test_set(OPTIMIZERS, Quadratics(), at=at),
                ValueError,
                "at must have some numbers",
            )
            for at in ([], [-1, 1])
        ),
        (lambda: run(seed=0.5), TypeError, "the seed must be a whole number, got 0.5"),
        (lambda: run(device="abacus"), ValueError, "there is no device 'abacus'"),
    ],
)
def test_mistakes_are_named(wrong, error, match):
    with pytest.raises(error, match=match):
        wrong()
