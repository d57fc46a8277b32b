"""Sweeps: what they record is what compare and tune say of each setting, once, however often they are interrupted."""

import math
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch

from l2l_kit import zoo
from l2l_kit.anew import run_sweep
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import (
    EACH_STEP,
    ONE_RATE,
    Curves,
    Piece,
    Sweep,
    as_word,
    compare,
    lbfgs,
    metrics_on_test_set,
    read_result,
    read_sweep,
    swept_baselines,
    tune,
    under,
)
from l2l_kit.optimizers import Baseline, LearnedRule, LSTMOptimizer, baseline
from l2l_kit.paths import RECIPES, SWEEPS
from l2l_kit.problems import MNIST, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import read_recipes

STEPS = [2, 25]
SGD = {"name": "sgd", "learning_rates": [0.01, 0.03]}
ADAM = {"name": "adam", "learning_rates": [0.3]}
DECAYING = {"name": "adam", "decay": 10.0, "learning_rates": [0.3, 0.9]}
VALID = """
steps = [5, 10]
num_tasks = 4
tuning_tasks = 3

[learned]
LSTM = "quadratics"

[problem]
name = "quadratics"

[grid]
dim = [2, 3]

[baselines]
SGD = { name = "sgd", learning_rates = [0.03, 0.1] }
"""
KIT = sorted(path.stem for path in SWEEPS.glob("*.toml"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Paths of two learned optimizers."""
    folder = tmp_path_factory.mktemp("pretrained")
    zoo.save(LSTMOptimizer(hidden_size=3), folder / "one")
    zoo.save(LSTMOptimizer(hidden_size=3, preprocessing="log-sign", output_scale=0.1), folder / "two")
    return {"LSTM": str(folder / "one"), "log-sign": str(folder / "two")}


@pytest.fixture(scope="module")
def sweep(pretrained):
    return Sweep(
        name="mine",
        problem={"name": "quadratics"},
        grid={"dim": [3]},
        learned=pretrained,
        baselines={"Adam": ADAM, "decaying Adam": DECAYING},
        steps=STEPS,
        num_tasks=7,
        tuning_tasks=5,
        seed=4,
    )


@pytest.fixture(scope="module")
def quick(sweep):
    return replace(sweep, steps=[1], baselines={"SGD": SGD})


def run(folder, sweep, **arguments):
    """The table that a sweep records there, and the pieces that were run for it."""
    ran = []
    path = run_sweep(sweep, folder, device="cpu", on_piece=ran.append, **arguments)
    return None if path is None else read_result(f"sweeps/{sweep.name}", folder / "results"), ran


def kinds(ran):
    """What the pieces were: of a learned optimizer or a baseline, and on which draw."""
    return [("baseline" if isinstance(piece.optimizer, Baseline) else "learned", piece.draw) for piece in ran]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, sweep):
    return run(tmp_path_factory.mktemp("data"), sweep)


@pytest.fixture(scope="module")
def table(recorded):
    return recorded[0]


def chosen(table, sweep, protocol, step):
    """All optimizers of a row, the baselines with the learning rates that the table gives."""
    rates = under(table[table["step"] == step], protocol).set_index("optimizer")["lr"]
    learned = {label: zoo.load(path, "cpu") for label, path in sweep.learned.items()}
    rules = {label: {**rule, "lr": rates[label]} for label, rule in sweep.baselines.items()}
    return learned | {label: Baseline(rule["name"], rule["lr"], rule.get("decay")) for label, rule in rules.items()}


class TestRows:
    def test_there_is_one_for_each_protocol_step_and_optimizer(self, table):
        assert list(table.columns) == [
            "dim", "protocol", "step", "optimizer", "lr", "mean", "low", "high", "ratio", "ratio_low", "ratio_high",
        ]  # fmt: skip
        names = ["LSTM", "log-sign", "Adam", "decaying Adam"]
        assert list(zip(table["protocol"], table["step"], table["optimizer"], strict=True)) == [
            (protocol, step, name) for protocol in (ONE_RATE, EACH_STEP) for step in STEPS for name in names
        ]
        assert set(table["dim"]) == {3}

    def test_learned_optimizers_have_no_learning_rate(self, table):
        assert set(table[table["lr"].isna()]["optimizer"]) == {"LSTM", "log-sign"}

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("protocol", [ONE_RATE, EACH_STEP])
    def test_they_hold_what_compare_gives_for_that_number_of_steps(self, table, sweep, protocol, step):
        """A comparison of that length alone, all optimizers together; the ratio is paired, of the first over each."""
        rules = chosen(table, sweep, protocol, step)
        curves = compare(rules, Quadratics(3), steps=step, num_tasks=7, seed=4, device="cpu")
        last = Curves({name: losses[:, -1:] for name, losses in curves.losses.items()}, {}, 4)
        for row in under(table[table["step"] == step], protocol).itertuples():
            interval = [part.item() for part in last.interval(row.optimizer)]
            ratio = [part.item() for part in last.interval("LSTM", over=row.optimizer)]
            assert [row.mean, row.low, row.high] == pytest.approx(interval, rel=1e-5)
            assert [row.ratio, row.ratio_low, row.ratio_high] == pytest.approx(ratio, rel=1e-5)
            means = last["LSTM"].mean() / last[row.optimizer].mean()
            assert row.ratio == pytest.approx(means.item(), rel=1e-5)

    def test_the_first_is_as_good_as_itself(self, table):
        first = table[table["optimizer"] == "LSTM"]
        assert (first[["ratio", "ratio_low", "ratio_high"]] == 1).all(axis=None)

    def test_lists_are_one_word(self, tmp_path, quick):
        """Also where they are read again, from a file in which they look like numbers."""
        problem = {"name": "mnist", "source": "embedded", "batch_size": 4}
        grid = {"hidden": [[2], [2, 3]], "activation": ["relu"]}
        table, _ = run(tmp_path, replace(quick, problem=problem, grid=grid, num_tasks=1, tuning_tasks=1))
        assert table["hidden"].tolist() == ["2"] * 3 + ["2-3"] * 3
        assert table["activation"].tolist() == ["relu"] * 6


class TestProtocols:
    def test_a_rate_is_the_best_of_all_that_were_tried(self, table):
        """For the last step under one protocol, for each under the other; on draws of its own."""
        (tried,) = table.attrs["tried"]["Adam"]
        tuning = tune("adam", Quadratics(3), steps=STEPS, num_tasks=5, learning_rates=tried, seed=4, device="cpu")
        best = {step: tuning.best(step=step).lr for step in STEPS}
        assert len(set(best.values())) == 2, "else nothing would be told apart here"
        rates = table[table["optimizer"] == "Adam"].set_index(["protocol", "step"])["lr"]
        for step in STEPS:
            assert rates[ONE_RATE, step] == best[STEPS[-1]]
            assert rates[EACH_STEP, step] == best[step]

    def test_they_are_of_the_same_runs(self, recorded, table):
        _, ran = recorded
        tests = [piece.optimizer for piece in ran if piece.draw == "test"]
        for label, decay in (("Adam", None), ("decaying Adam", 10)):
            rates = set(table[table["optimizer"] == label]["lr"])
            of_label = [rule.lr for rule in tests if isinstance(rule, Baseline) and rule.decay == decay]
            assert sorted(of_label) == sorted(rates), "each once"

    def test_with_one_number_of_steps_they_are_the_same(self, tmp_path, quick):
        table, _ = run(tmp_path, quick)
        assert table["protocol"].tolist() == [ONE_RATE] * 3
        assert under(table) is table

    def test_one_has_to_be_chosen_where_there_are_two(self, table):
        for protocol in (ONE_RATE, EACH_STEP):
            assert set(under(table, protocol)["protocol"]) == {protocol}
            assert len(under(table, protocol)) == len(table) / 2
            assert under(under(table, protocol)).equals(under(table, protocol))
        with pytest.raises(ValueError, match="several protocols"):
            under(table)
        with pytest.raises(UnknownNameError, match="Did you mean 'one rate'"):
            under(table, "one rat")
        with pytest.raises(UnknownNameError, match="unknown protocol"):
            under(table.drop(columns="protocol"), ONE_RATE)


class TestGrid:
    """Of learning rates: it goes on until the best one, for any of the steps, is neither the first nor the last."""

    def test_the_best_is_never_at_its_end(self, table):
        for label in ("Adam", "decaying Adam"):
            (tried,) = table.attrs["tried"][label]
            rates = set(table[table["optimizer"] == label]["lr"])
            assert rates <= set(tried[1:-1])
            assert all(1 < larger / rate <= 10 / 3 for rate, larger in pairwise(tried))

    @pytest.mark.parametrize("start", [1e-5, 0.02, 1.0, 1e4])
    def test_it_gets_there_from_wherever_it_begins(self, tmp_path, quick, start):
        """Also from where every run diverges, and up to where one does."""
        rates = {"SGD": {"name": "sgd", "learning_rates": [start]}}
        table, ran = run(tmp_path, replace(quick, baselines=rates, steps=[60]))
        (tried,), (lr,) = table.attrs["tried"]["SGD"], table["lr"].dropna()
        assert start in tried
        assert tried[0] < lr < tried[-1]
        assert 0.01 <= lr <= 0.1
        assert kinds(ran).count(("baseline", "tuning")) == len(tried)

    def test_it_ends_where_steps_are_too_small_to_make_a_difference(self, tmp_path, quick):
        """After one step on one image, any step was for the worse on another image."""
        problem = {"name": "mnist", "source": "embedded", "hidden": [2], "batch_size": 1}
        table, _ = run(
            tmp_path, replace(quick, problem=problem, grid={"init_scale": [0.1]}, num_tasks=1, tuning_tasks=1)
        )
        (tried,), (lr,) = table.attrs["tried"]["SGD"], table["lr"].dropna()
        assert lr == tried[0] < SGD["learning_rates"][0]

    def test_a_baseline_that_always_diverges_is_an_error(self, tmp_path, quick):
        problem = {"name": "mnist", "source": "embedded", "hidden": [1], "batch_size": 4}
        with pytest.raises(ValueError, match="the best learning rate is 1e-09 or beyond"):
            run(tmp_path, replace(quick, problem=problem, grid={"init_scale": [1e38]}, num_tasks=1, tuning_tasks=1))


class TestLBFGS:
    def test_it_meets_the_same_optimizees_and_is_no_baseline(self, tmp_path, sweep):
        sweep = replace(sweep, baselines={"SGD": SGD}, lbfgs=True)
        table, _ = run(tmp_path, sweep)
        assert sweep.labels == ["LSTM", "log-sign", "SGD", "L-BFGS"]
        for protocol in (ONE_RATE, EACH_STEP):
            rows = under(table[table["optimizer"] == "L-BFGS"], protocol)
            assert rows["lr"].isna().all()
            tasks = Quadratics(3).sample(7, generator(4, "test"))
            curves = [torch.cat([loss for _, loss in lbfgs(tasks.select(index), 25)]) for index in range(7)]
            assert rows["mean"].tolist() == pytest.approx(torch.stack(curves).mean(dim=0)[STEPS].tolist(), rel=1e-5)

    def test_without_it_the_others_are_the_same(self, tmp_path, quick):
        run(tmp_path, quick)
        _, ran = run(tmp_path, replace(quick, lbfgs=True))
        assert [piece.optimizer for piece in ran] == [None]


class TestTunedOn:
    """Other optimizees than those that are compared, as far as the sweep says so."""

    def test_learning_rates_are_those_of_that_problem(self, tmp_path, quick):
        rates = {}
        for tuned_on in ({}, {"dim": 30}):
            sweep = replace(quick, grid={"dim": [2]}, tuned_on=tuned_on, steps=[25])
            table, _ = run(tmp_path, sweep)
            (lr,), (tried,) = table["lr"].dropna(), table.attrs["tried"]["SGD"]
            problem = Quadratics(tuned_on.get("dim", 2))
            tuning = tune("sgd", problem, steps=25, num_tasks=5, learning_rates=tried, seed=4, device="cpu")
            assert lr == tuning.best().lr
            curves = compare({"SGD": baseline("sgd", lr)}, Quadratics(2), steps=25, num_tasks=7, seed=4, device="cpu")
            assert table["mean"].iloc[-1] == pytest.approx(curves.statistic("SGD")[-1].item(), rel=1e-5)
            rates[str(tuned_on)] = lr
        assert len(set(rates.values())) == 2

    def test_a_mistake_is_named(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text(f"{VALID}\n[tuned_on]\ndim = 0\n")
        with pytest.raises(ValueError, match=r"mine\.toml: not a valid sweep: .*dim must be"):
            read_sweep(path)


def test_losses_may_be_those_on_test_images(tmp_path, pretrained, quick):
    """On images that no network is trained on: what `held_out` measures, of baselines tuned for that."""
    digits = {"name": "mnist", "source": "embedded", "hidden": [3], "batch_size": 4}
    sweep = replace(quick, problem=digits, grid={"init_scale": [0.1]}, steps=[1, 4], num_tasks=3, tuning_tasks=2)
    table, _ = run(tmp_path, replace(sweep, metrics_on_test_set=True))
    problem = sweep.make_problem({"init_scale": 0.1})
    for step in (1, 4):
        rules = chosen(table, sweep, EACH_STEP, step)
        expected = metrics_on_test_set(rules, problem, at=[step], num_tasks=3, seed=4, device="cpu")
        rows = under(table[table["step"] == step], EACH_STEP)
        assert rows["mean"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-5)
    on_minibatches, ran = run(tmp_path, sweep)
    assert kinds(ran).count(("learned", "test")) == 2, "it is measured apart"
    assert not table["mean"].equals(on_minibatches["mean"])


LEARNED, TUNING, TEST = ("learned", "test"), ("baseline", "tuning"), ("baseline", "test")


class TestPieces:
    """One optimizer, run once on one draw: what is there is not run again."""

    @pytest.fixture
    def before(self, tmp_path, quick):
        return run(tmp_path, quick)

    def test_a_table_is_made_again_without_any(self, tmp_path, quick, before):
        table, ran = before
        again, nothing = run(tmp_path, quick)
        pd.testing.assert_frame_equal(table, again)
        assert nothing == []
        assert set(kinds(ran)) == {LEARNED, TUNING, TEST}

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"seed": 5}, {LEARNED, TUNING, TEST}),
            ({"steps": [2]}, {LEARNED, TUNING, TEST}),
            ({"grid": {"dim": [4]}}, {LEARNED, TUNING, TEST}),
            ({"num_tasks": 8}, {LEARNED, TEST}),
            ({"tuning_tasks": 6}, {TUNING}),
            ({"baselines": {"SGD": {**SGD, "decay": 10.0}}}, {TUNING}),  # with one step the decay does not show
            ({"tuned_on": {"dim": 4}}, {TUNING}),
            ({"baselines": {"label": SGD}}, set()),
            ({"problem": {"name": "quadratics", "dim": 4}}, set()),  # the setting is the same
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else str(sorted(value)),
    )
    def test_only_what_depends_on_a_change_is_run(self, tmp_path, quick, before, change, expected):
        _, ran = run(tmp_path, replace(quick, **change))
        assert set(kinds(ran)) - {TEST} == expected - {TEST}
        if TEST in expected or not expected:  # otherwise another learning rate may be the best
            assert set(kinds(ran)) == expected

    def test_another_grid_keeps_the_settings_that_it_shares(self, tmp_path, quick, before):
        _, ran = run(tmp_path, replace(quick, grid={"dim": [2, 3]}))
        assert {piece.problem for piece in ran} == {Quadratics(2)}

    @pytest.mark.parametrize("scale", [1.0, 0.5], ids=["weights", "same weights, another scale"])
    def test_a_newly_trained_optimizer_is_all_that_is_run(self, tmp_path, quick, before, scale):
        other = LSTMOptimizer(hidden_size=3, output_scale=scale)
        if scale == 1:
            torch.nn.init.constant_(other.output.bias, 0.1)
        zoo.save(other, tmp_path / "other")
        table, ran = run(tmp_path, replace(quick, learned=quick.learned | {"LSTM": str(tmp_path / "other")}))
        assert kinds(ran) == [LEARNED]
        assert not table["ratio"].equals(before[0]["ratio"])

    def test_the_ratio_is_that_of_the_first(self, tmp_path, quick, before):
        table, ran = run(tmp_path, replace(quick, learned=dict(reversed(quick.learned.items()))))
        assert ran == []
        ratio, other = (one.set_index("optimizer")["ratio"] for one in (before[0], table))
        assert other["LSTM"] == pytest.approx(1 / ratio["log-sign"], rel=1e-5)

    def test_a_killed_sweep_goes_on(self, tmp_path, quick, before, monkeypatch):
        table, whole = before
        pieces, finished = tmp_path / "elsewhere", iter(range(3))

        def killed(piece, *arguments, original=Piece.run):
            if next(finished, None) is None:
                raise KeyboardInterrupt
            original(piece, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Piece, "run", killed)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, quick, pieces=pieces)
        assert len(list(pieces.iterdir())) == 3
        again, ran = run(tmp_path, quick, pieces=pieces)
        assert kinds(ran) == kinds(whole)[3:]
        pd.testing.assert_frame_equal(table, again)

    def test_they_can_be_moved_to_another_machine(self, tmp_path, quick, before):
        """Some optimizers are run on one, the others on another, and all their pieces put into one folder."""
        pieces = tmp_path / "pieces"
        for labels, expected in ((["SGD"], {TUNING, TEST}), (["LSTM"], {LEARNED})):
            unknown = {label: path if label in labels else "nothing" for label, path in quick.learned.items()}
            table, ran = run(tmp_path, replace(quick, learned=unknown), only=labels, pieces=pieces)
            assert table is None
            assert set(kinds(ran)) == expected
        table, ran = run(tmp_path, quick, pieces=pieces)
        assert kinds(ran) == [LEARNED]
        pd.testing.assert_frame_equal(table, before[0])


class TestBaselinesOfASweep:
    def test_they_are_those_of_the_setting_and_step(self, table, sweep):
        for protocol in (ONE_RATE, EACH_STEP):
            for step in STEPS:
                expected = chosen(table, sweep, protocol, step)
                tuned = swept_baselines(under(table, protocol), step, dim=3)
                assert tuned == {label: expected[label] for label in ("Adam", "decaying Adam")}
        assert tuned["decaying Adam"].decay == 10

    def test_a_protocol_has_to_be_chosen(self, table):
        with pytest.raises(ValueError, match="several protocols"):
            swept_baselines(table, 2)

    def test_a_setting_may_be_a_word_that_looks_like_a_number(self, tmp_path):
        table = pd.DataFrame({"hidden": ["20", "40"], "step": 1, "optimizer": "SGD", "lr": [0.1, 0.2]})
        table.to_csv(tmp_path / "table.csv", index=False)
        for one in (table, pd.read_csv(tmp_path / "table.csv")):
            assert swept_baselines(one, 1, hidden="40") == {"SGD": baseline("sgd", 0.2)}

    @pytest.mark.parametrize(("step", "dim"), [(2, 9), (4, 3)])
    def test_a_setting_that_was_not_swept_is_refused(self, table, step, dim):
        with pytest.raises(ValueError, match=rf"nothing at step {step} for {{'dim': {dim}}}"):
            swept_baselines(under(table, ONE_RATE), step, dim=dim)

    def test_several_settings_are_refused(self, table):
        rows = under(table, ONE_RATE)
        with pytest.raises(ValueError, match="more than one setting at step 2"):
            swept_baselines(pd.concat([rows, rows.assign(dim=2)]), 2)


def test_a_list_is_one_word():
    assert [as_word(hidden) for hidden in ([20], [5, 5], [20, 10, 5])] == ["20", "5-5", "20-10-5"]


def test_the_kit_has_sweeps():
    assert KIT


MISTAKES = {
    "not TOML": ("[grid", "]", "not a valid sweep"),
    "unknown setting": ("num_tasks = 4", "num_tsks = 4", "num_tsks"),
    "lost setting": ("num_tasks = 4", "", "'num_tasks'"),
    "lost section": ("[learned]\nLSTM =", "[grid.LSTM]\nx =", "not a valid sweep"),
    "nothing learned": ('LSTM = "quadratics"', "", "learned, grid and baselines must not be empty"),
    "nothing varies": ("dim = [2, 3]", "", "learned, grid and baselines must not be empty"),
    "no baselines": ("SGD =", "# SGD =", "learned, grid and baselines must not be empty"),
    "a label twice": ("SGD =", "LSTM =", "two optimizers have the same label"),
    "no steps": ("steps = [5, 10]", "steps = []", "steps must be a list with something in it, got []"),
    "one number of steps": ("steps = [5, 10]", "steps = 5", "steps must be a list with something in it, got 5"),
    "steps of zero": ("steps = [5, 10]", "steps = [0, 5]", "whole numbers of at least 1, got 0"),
    "steps that fall": ("steps = [5, 10]", "steps = [10, 5]", "steps must ascend, got [10, 5]"),
    "tasks in words": ("num_tasks = 4", 'num_tasks = "four"', "whole numbers of at least 1, got 'four'"),
    "no tasks to tune on": ("tuning_tasks = 3", "tuning_tasks = 0", "whole numbers of at least 1, got 0"),
    "empty part of the grid": ("dim = [2, 3]", "dim = []", "grid.dim must be a list with something in it, got []"),
    "grid that is no list": ("dim = [2, 3]", "dim = 2", "grid.dim must be a list with something in it, got 2"),
    "unknown field": ("dim = [2, 3]", "dims = [2, 3]", "dims"),
    "size below one": ("dim = [2, 3]", "dim = [2, 0]", "dim must be a whole number of at least 1, got 0"),
    "unknown problem": ('name = "quadratics"', 'name = "quadratic"', "Did you mean 'quadratics'"),
    "unknown baseline": ('"sgd"', '"sdg"', "unknown baseline 'sdg'. Did you mean 'sgd'"),
    "a baseline without a name": ('name = "sgd", ', "", "name"),
    "a baseline that is no table": ('{ name = "sgd", learning_rates = [0.03, 0.1] }', "3", "not a valid sweep"),
    "unknown argument": ('"sgd",', '"sgd", decays = 3,', "decays"),
    "decay of zero": ('"sgd",', '"sgd", decay = 0,', "decay must be a positive number of steps, got 0"),
    "learning rate of zero": ("[0.03, 0.1]", "[0, 0.1]", "lr must be a positive number, got 0"),
    "one learning rate": ("[0.03, 0.1]", "0.1", "learning_rates of SGD must be a list with something in it, got 0.1"),
    "no learning rates": (", learning_rates = [0.03, 0.1]", "", "learning_rates of SGD must be a list"),
    "learning rates that fall": ("[0.03, 0.1]", "[0.1, 0.03]", "learning_rates of SGD must ascend"),
    "steps too long": ("[0.03, 0.1]", "[0.03, 0.11]", "by a factor of √10 at most, got [0.03, 0.11]"),
}


class TestFiles:
    def read(self, tmp_path, text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return read_sweep(path)

    def test_a_sweep_says_all_that_is_in_the_file(self, tmp_path):
        assert self.read(tmp_path, VALID) == Sweep(
            "mine",
            {"name": "quadratics"},
            {"dim": [2, 3]},
            {"LSTM": "quadratics"},
            {"SGD": {"name": "sgd", "learning_rates": [0.03, 0.1]}},
            [5, 10],
            4,
            3,
        )

    def test_settings_are_the_product_of_the_grid(self, sweep):
        sweep = replace(sweep, grid={"hidden": [[2], [3]], "activation": ["relu", "tanh"]})
        assert sweep.settings == [
            {"hidden": hidden, "activation": activation} for hidden in ([2], [3]) for activation in ("relu", "tanh")
        ]

    def test_a_setting_is_set_over_the_problem(self, sweep):
        sweep = replace(sweep, problem={"name": "mnist", "source": "embedded", "hidden": [9], "batch_size": 4})
        assert sweep.make_problem({"hidden": [2, 2]}) == MNIST((2, 2), batch_size=4, source="embedded")

    @pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES.values(), ids=MISTAKES)
    def test_a_mistake_is_named(self, tmp_path, right, wrong, message):
        assert VALID.count(right) >= 1
        with pytest.raises(ValueError, match=r"mine\.toml: not a valid sweep: .") as caught:
            self.read(tmp_path, VALID.replace(right, wrong, 1))
        assert message in str(caught.value)

    def test_an_unknown_sweep_gives_the_near_match(self):
        with pytest.raises(UnknownNameError, match=r"unknown sweep 'mnist-figure7'\. Did you mean 'mnist-figure"):
            read_sweep("mnist-figure7")


def elsewhere(path, folder):
    """A copy of a file of data/ that asks for the digits that are everywhere."""
    copy = folder / path.name
    copy.write_text(path.read_text(encoding="utf-8").replace('"full"', '"embedded"'), encoding="utf-8")
    return copy


@pytest.mark.parametrize("name", KIT)
class TestKit:
    """The sweeps of data/sweeps, read with other digits than they ask for, since those are not everywhere."""

    @pytest.fixture
    def sweep(self, name, tmp_path):
        return read_sweep(elsewhere(SWEEPS / f"{name}.toml", tmp_path))

    def test_every_setting_is_another_problem(self, sweep):
        configs = {str(sweep.make_problem(setting).config()) for setting in sweep.settings}
        assert len(configs) == len(sweep.settings) == math.prod(map(len, sweep.grid.values()))

    def test_its_learned_optimizers_are_those_of_a_recipe(self, sweep, tmp_path):
        """They were trained on that kind of problem, and load if they were trained yet."""
        recipes = [recipe for path in RECIPES.glob("*.toml") for recipe in read_recipes(elsewhere(path, tmp_path))]
        trained_on = {recipe.name: recipe.problem["name"] for recipe in recipes}
        for name in sweep.learned.values():
            assert trained_on[name] == sweep.problem["name"]
            if name in zoo.names():
                assert zoo.card(name)["problem"]["name"] == sweep.problem["name"]
                assert isinstance(zoo.load(name), LearnedRule)
