"""Sweeps: what they record is what compare and tune say of each setting, once, however often they are interrupted."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from l2l_kit import zoo
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import (
    Curves,
    Sweep,
    as_word,
    compare,
    held_out,
    lbfgs,
    read_sweep,
    run_setting,
    swept_baselines,
    tune,
)
from l2l_kit.evaluation import sweep as module
from l2l_kit.optimizers import BASELINES, LearnedRule, LSTMOptimizer, baseline
from l2l_kit.paths import RECIPES, SWEEPS
from l2l_kit.problems import MNIST, Quadratics
from l2l_kit.randomness import generator
from l2l_kit.training import read_recipes

STEPS = [2, 25]
RATES = {"sgd": [0.001, 0.01, 0.03], "adam": [0.1, 0.3, 0.9]}
SWEEP = Sweep(
    name="mine",
    problem={"name": "quadratics"},
    grid={"dim": [2, 3]},
    learned={"LSTM": "one", "log-sign": "two"},
    steps=STEPS,
    tasks=7,
    tuning_tasks=5,
    learning_rates=RATES,
    seed=4,
)
QUICK = replace(SWEEP, steps=[1], learning_rates={"sgd": [0.01]})
VALID = """
steps = [5, 10]
tasks = 4
tuning_tasks = 3

[learned]
LSTM = "quadratics"

[problem]
name = "quadratics"

[grid]
dim = [2, 3]

[learning_rates]
sgd = [0.01, 0.1]
"""
KIT = sorted(path.stem for path in SWEEPS.glob("*.toml"))


def learned():
    return {
        "LSTM": LSTMOptimizer(hidden_size=3),
        "log-sign": LSTMOptimizer(hidden_size=3, preprocessing="log-sign", output_scale=0.1),
    }


def trained():
    """As `learned`, with other weights."""
    optimizers = learned()
    torch.nn.init.constant_(optimizers["LSTM"].output.bias, 0.1)
    return optimizers


def run(parts, sweep=QUICK, setting=None, optimizers=None):
    return run_setting(sweep, setting or {"dim": 3}, optimizers or learned(), parts, device="cpu")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return run(tmp_path_factory.mktemp("parts"), SWEEP)


@pytest.fixture(scope="module")
def tunings():
    settings = {"steps": STEPS, "tasks": 5, "seed": 4, "device": "cpu"}
    return {name: tune(name, Quadratics(3), learning_rates=rates, **settings) for name, rates in RATES.items()}


@pytest.fixture
def measured(monkeypatch):
    """What was really run, and on what: "learned" for each learned optimizer, "baseline" for each tuned one."""
    runs = []

    def spy(optimizers, problem, *arguments, original=module.matched):
        kinds = ["learned" if isinstance(optimizer, LSTMOptimizer) else "baseline" for optimizer in optimizers.values()]
        runs.extend((kind, problem) for kind in kinds)
        return original(optimizers, problem, *arguments)

    monkeypatch.setattr(module, "matched", spy)
    return runs


def all_of(*dims):
    """What `measured` sees when a whole setting of QUICK is run, for each of these."""
    return [(kind, Quadratics(dim)) for dim in dims for kind in ("learned", "learned", "baseline")]


class TestRows:
    def test_there_is_one_for_each_step_and_optimizer(self, table):
        assert list(table.columns) == [
            "dim", "step", "optimizer", "lr", "mean", "low", "high", "ratio", "ratio_low", "ratio_high",
        ]  # fmt: skip
        names = ["LSTM", "log-sign", "SGD", "Adam"]
        assert list(zip(table["step"], table["optimizer"], strict=True)) == [
            (step, name) for step in STEPS for name in names
        ]
        assert set(table["dim"]) == {3}

    def test_baselines_are_tuned_for_each_step(self, table, tunings):
        for row in table[table["lr"].notna()].itertuples():
            name = row.optimizer.lower()
            assert row.lr == tunings[name].best(step=row.step).lr
        assert table.groupby("optimizer")["lr"].nunique().max() == 2  # else nothing would be told apart here

    def test_learned_optimizers_have_no_learning_rate(self, table):
        assert table[table["lr"].isna()]["optimizer"].tolist() == 2 * ["LSTM", "log-sign"]

    @pytest.mark.parametrize("step", STEPS)
    def test_they_hold_what_compare_gives_for_that_number_of_steps(self, table, tunings, step):
        """A comparison of that length alone, all optimizers together; the ratio is paired, of the first over each."""
        chosen = learned() | {BASELINES[name]: tuning.best(step=step) for name, tuning in tunings.items()}
        curves = compare(chosen, Quadratics(3), steps=step, tasks=7, seed=4, device="cpu")
        last = Curves({name: losses[:, -1:] for name, losses in curves.losses.items()}, {}, 4)
        for row in table[table["step"] == step].itertuples():
            interval = [part.item() for part in last.interval(row.optimizer)]
            ratio = [part.item() for part in last.interval("LSTM", over=row.optimizer)]
            assert [row.mean, row.low, row.high] == pytest.approx(interval, rel=1e-5)
            assert [row.ratio, row.ratio_low, row.ratio_high] == pytest.approx(ratio, rel=1e-5)
            means = last["LSTM"].mean() / last[row.optimizer].mean()
            assert row.ratio == pytest.approx(means.item(), rel=1e-5)

    def test_the_first_is_as_good_as_itself(self, table):
        first = table[table["optimizer"] == "LSTM"]
        assert (first[["ratio", "ratio_low", "ratio_high"]] == 1).all(axis=None)

    def test_lists_are_one_word(self, tmp_path):
        """Also where they are read again, from a part in which they look like numbers."""
        problem = {"name": "mnist", "digits": "embedded", "batch_size": 4}
        grid = {"hidden": [[2], [2, 3]], "activation": ["relu"]}
        sweep = replace(QUICK, problem=problem, grid=grid, tasks=1, tuning_tasks=1)
        for setting, word in zip(sweep.settings, ("2", "2-3"), strict=True):
            for _ in range(2):
                table = run(tmp_path, sweep, setting)
                assert table["hidden"].tolist() == [word] * 3
                assert table["activation"].tolist() == ["relu"] * 3


class TestOneRate:
    """As in the paper: the learning rate that is best at the end, all along."""

    SWEEP = replace(SWEEP, one_rate=True)

    def test_it_is_the_best_for_the_last_step(self, tmp_path, tunings):
        table = run(tmp_path, self.SWEEP)
        last = {name: tuning.best(step=STEPS[-1]) for name, tuning in tunings.items()}
        curves = compare(
            {BASELINES[name]: rule for name, rule in last.items()}, Quadratics(3), steps=25, tasks=7, seed=4
        )
        for label, rows in table[table["optimizer"].isin(curves.losses)].groupby("optimizer"):
            assert set(rows["lr"]) == {last[label.lower()].lr}
            assert rows["mean"].tolist() == pytest.approx(curves.statistic(label)[STEPS].tolist(), rel=1e-5)

    def test_it_is_measured_apart(self, tmp_path, measured):
        run(tmp_path)
        measured.clear()
        run(tmp_path, replace(QUICK, one_rate=True))
        assert [kind for kind, _ in measured] == ["baseline"]


class TestLBFGS:
    def test_it_meets_the_same_optimizees_and_is_no_baseline(self, tmp_path, measured):
        sweep = replace(SWEEP, lbfgs=True)
        table = run(tmp_path, sweep)
        assert sweep.labels == ["LSTM", "log-sign", "SGD", "Adam", "L-BFGS"]
        rows = table[table["optimizer"] == "L-BFGS"]
        assert rows["lr"].isna().all()
        optimizees = Quadratics(3).sample(7, generator(4, "test"))
        curves = [torch.cat([loss for _, loss in lbfgs(optimizees.alone(index), 25)]) for index in range(7)]
        assert rows["mean"].tolist() == pytest.approx(torch.stack(curves).mean(dim=0)[STEPS].tolist(), rel=1e-5)
        assert rows["ratio"].tolist() == pytest.approx(
            (table[table["optimizer"] == "LSTM"]["mean"].to_numpy() / rows["mean"].to_numpy()).tolist(), rel=1e-5
        )

    def test_without_it_the_others_are_the_same(self, tmp_path, measured):
        run(tmp_path)
        measured.clear()
        run(tmp_path, replace(QUICK, lbfgs=True))
        assert measured == []

    def test_a_learned_optimizer_cannot_be_called_so(self):
        with pytest.raises(ValueError, match="cannot be called 'L-BFGS'"):
            replace(SWEEP, learned={"L-BFGS": "one"})


class TestTunedOn:
    """Other optimizees than those that are compared, as far as the sweep says so."""

    def test_learning_rates_are_those_of_that_problem(self, tmp_path):
        rates = {"sgd": [0.001, 0.1, 1000.0]}
        near, far = (replace(SWEEP, learning_rates=rates, tuned_on=on, one_rate=True) for on in ({}, {"dim": 20}))
        tuned = {
            dim: tune("sgd", Quadratics(dim), steps=25, tasks=5, learning_rates=rates["sgd"], seed=4).best().lr
            for dim in (2, 20)
        }
        assert len(set(tuned.values())) == 2
        for sweep, dim in ((near, 2), (far, 20)):
            table = run(tmp_path, sweep, {"dim": 2})
            assert set(table["lr"].dropna()) == {tuned[dim]}
            assert sweep.make_problem({"dim": 2}) == Quadratics(2)

    def test_a_mistake_is_named(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text(f"{VALID}\n[tuned_on]\ndim = 0\n")
        with pytest.raises(ValueError, match=r"mine\.toml: not a valid sweep: .*dim must be"):
            read_sweep(path)


class TestHeldOut:
    """On images that no network is trained on: what `held_out` measures, of baselines tuned for that."""

    SWEEP = replace(
        QUICK,
        problem={"name": "mnist", "digits": "embedded", "hidden": [3], "batch_size": 4},
        grid={"init_scale": [0.1]},
        learned={"LSTM": "one"},
        steps=[1, 4],
        learning_rates={"sgd": [0.01, 3.0]},
        tasks=3,
        held_out=True,
    )

    @pytest.fixture
    def rule(self):
        return {"LSTM": LSTMOptimizer(hidden_size=3, output_scale=0.1)}

    def test_the_losses_are_those_on_test_images(self, tmp_path, rule):
        table = run(tmp_path, self.SWEEP, {"init_scale": 0.1}, rule)
        problem = self.SWEEP.make_problem({"init_scale": 0.1})
        counts = {"seed": 4, "device": "cpu"}
        for step in (1, 4):
            tuned = tune(
                "sgd", problem, steps=step, tasks=5, learning_rates=[0.01, 3.0], held_out=True, **counts
            ).best()
            expected = held_out({**rule, "SGD": tuned}, problem, at=[step], tasks=3, **counts)
            rows = table[table["step"] == step]
            assert rows["mean"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-6)
            assert rows["lr"].iloc[1] == tuned.lr

    def test_it_is_measured_apart_from_the_losses_of_minibatches(self, tmp_path, rule):
        on_test_images, on_minibatches = (
            run(tmp_path, replace(self.SWEEP, held_out=held), {"init_scale": 0.1}, rule) for held in (True, False)
        )
        assert not on_test_images["mean"].equals(on_minibatches["mean"])


class TestParts:
    def test_what_is_finished_is_not_run_again(self, tmp_path, measured):
        first, again = run(tmp_path), run(tmp_path)
        pd.testing.assert_frame_equal(first, again)
        assert measured == all_of(3)

    @pytest.mark.parametrize(
        ("change", "kinds"),
        [
            ({"seed": 5}, ["learned", "learned", "baseline"]),
            ({"tasks": 8}, ["learned", "learned", "baseline"]),
            ({"steps": [2]}, ["learned", "learned", "baseline"]),
            ({"tuning_tasks": 6}, ["baseline"]),
            ({"learning_rates": {"sgd": [0.01, 0.1]}}, ["baseline"]),
            ({"learning_rates": {"sgd": [0.01], "nag": [0.1]}}, ["baseline"]),
            ({"learned": {"LSTM": "three"}}, []),  # a name says nothing; the weights are what is compared
            ({"problem": {"name": "quadratics", "dim": 4}, "grid": {"dim": [3]}}, []),  # the setting is the same
        ],
        ids=str,
    )
    def test_what_depends_on_a_change_is_run_anew(self, tmp_path, measured, change, kinds):
        run(tmp_path)
        measured.clear()
        run(tmp_path, replace(QUICK, **change))
        assert [kind for kind, _ in measured] == kinds

    def test_another_grid_keeps_the_settings_that_it_shares(self, tmp_path, measured):
        run(tmp_path)
        wider = replace(QUICK, grid={"dim": [2, 3, 4]})
        for setting in wider.settings:
            run(tmp_path, wider, setting)
        assert measured == all_of(3, 2, 4)

    @pytest.mark.parametrize(
        "other",
        [trained(), learned() | {"LSTM": LSTMOptimizer(hidden_size=3, output_scale=0.5)}],
        ids=["weights", "same weights, another scale"],
    )
    def test_of_other_optimizers_only_they_are_run(self, tmp_path, measured, other):
        one = run(tmp_path)
        measured.clear()
        two = run(tmp_path, optimizers=other)
        assert measured == [("learned", Quadratics(3))]
        assert not one["ratio"].equals(two["ratio"])

    def test_the_ratio_is_that_of_the_first(self, tmp_path, measured):
        one, two = (run(tmp_path, optimizers=dict(order)) for order in (learned(), reversed(learned().items())))
        assert measured == all_of(3)
        ratio, other = (table.set_index("optimizer")["ratio"] for table in (one, two))
        assert other["LSTM"] == pytest.approx(1 / ratio["log-sign"])

    @pytest.mark.parametrize("where", ["tune", "write_tensors"])
    def test_a_killed_sweep_goes_on(self, tmp_path, measured, monkeypatch, where):
        """Killed while it tunes for the second setting, or while it writes that one down."""
        first = run(tmp_path, setting={"dim": 2})
        measured.clear()

        def killed(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, where, killed)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path)
        ready = {"tune": 2, "write_tensors": 0}[where]
        assert len(list(tmp_path.iterdir())) == 3 + ready
        measured.clear()
        tables = [run(tmp_path, setting=setting) for setting in QUICK.settings]
        assert measured == all_of(3)[ready:]
        pd.testing.assert_frame_equal(tables[0], first)


class TestBaselinesOfASweep:
    def test_they_are_those_of_the_setting_and_step(self, table):
        for step in STEPS:
            rows = table[table["step"] == step].set_index("optimizer")
            expected = {label: baseline(label, rows["lr"][label]) for label in ("SGD", "Adam")}
            assert swept_baselines(table, step, dim=3) == expected

    def test_a_setting_may_be_a_word_that_looks_like_a_number(self, tmp_path):
        table = pd.DataFrame({"hidden": ["20", "40"], "step": 1, "optimizer": "SGD", "lr": [0.1, 0.2]})
        table.to_csv(tmp_path / "table.csv", index=False)
        for one in (table, pd.read_csv(tmp_path / "table.csv")):
            assert swept_baselines(one, 1, hidden="40") == {"SGD": baseline("sgd", 0.2)}

    @pytest.mark.parametrize(("step", "dim"), [(2, 9), (4, 3)])
    def test_a_setting_that_was_not_swept_is_refused(self, table, step, dim):
        with pytest.raises(ValueError, match=rf"nothing at step {step} for {{'dim': {dim}}}"):
            swept_baselines(table, step, dim=dim)

    def test_several_settings_are_refused(self, table):
        with pytest.raises(ValueError, match="more than one setting at step 2"):
            swept_baselines(pd.concat([table, table.assign(dim=2)]), 2)


def test_a_list_is_one_word():
    assert [as_word(hidden) for hidden in ([20], [5, 5], [20, 10, 5])] == ["20", "5-5", "20-10-5"]


def test_the_kit_has_sweeps():
    assert KIT


MISTAKES = {
    "not TOML": ("[grid", "]", "not a valid sweep"),
    "unknown setting": ("tasks = 4", "tsks = 4", "tsks"),
    "lost setting": ("tasks = 4", "", "'tasks'"),
    "lost section": ("[learned]\nLSTM =", "[grid.LSTM]\nx =", "not a valid sweep"),
    "nothing learned": ('LSTM = "quadratics"', "", "learned, grid and learning_rates must not be empty"),
    "nothing varies": ("dim = [2, 3]", "", "learned, grid and learning_rates must not be empty"),
    "no baselines": ("sgd = [0.01, 0.1]", "", "learned, grid and learning_rates must not be empty"),
    "no steps": ("steps = [5, 10]", "steps = []", "steps must be a list with something in it, got []"),
    "one number of steps": ("steps = [5, 10]", "steps = 5", "steps must be a list with something in it, got 5"),
    "steps of zero": ("steps = [5, 10]", "steps = [0, 5]", "whole numbers of at least 1, got 0"),
    "steps that fall": ("steps = [5, 10]", "steps = [10, 5]", "steps must ascend, got [10, 5]"),
    "tasks in words": ("tasks = 4", 'tasks = "four"', "whole numbers of at least 1, got 'four'"),
    "no tasks to tune on": ("tuning_tasks = 3", "tuning_tasks = 0", "whole numbers of at least 1, got 0"),
    "empty part of the grid": ("dim = [2, 3]", "dim = []", "grid.dim must be a list with something in it, got []"),
    "grid that is no list": ("dim = [2, 3]", "dim = 2", "grid.dim must be a list with something in it, got 2"),
    "unknown field": ("dim = [2, 3]", "dims = [2, 3]", "dims"),
    "size below one": ("dim = [2, 3]", "dim = [2, 0]", "dim must be a whole number of at least 1, got 0"),
    "unknown problem": ('name = "quadratics"', 'name = "quadratic"', "Did you mean 'quadratics'"),
    "unknown baseline": ("sgd =", "sdg =", "unknown baseline 'sdg'. Did you mean 'sgd'"),
    "baseline as figures write it": ("sgd =", "SGD =", "unknown baseline 'SGD'. Did you mean 'sgd'"),
    "learning rate of zero": ("[0.01, 0.1]", "[0.01, 0]", "lr must be a positive number, got 0"),
    "one learning rate": ("[0.01, 0.1]", "0.1", "learning_rates.sgd must be a list with something in it, got 0.1"),
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
            [5, 10],
            4,
            3,
            {"sgd": [0.01, 0.1]},
            0,
        )

    def test_settings_are_the_product_of_the_grid(self):
        sweep = replace(SWEEP, grid={"hidden": [[2], [3]], "activation": ["relu", "tanh"]})
        assert sweep.settings == [
            {"hidden": hidden, "activation": activation} for hidden in ([2], [3]) for activation in ("relu", "tanh")
        ]

    def test_a_setting_is_set_over_the_problem(self):
        sweep = replace(SWEEP, problem={"name": "mnist", "digits": "embedded", "hidden": [9], "batch_size": 4})
        assert sweep.make_problem({"hidden": [2, 2]}) == MNIST((2, 2), batch_size=4, digits="embedded")

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

    def test_nothing_is_measured_twice(self, sweep):
        for values in (sweep.steps, *sweep.learning_rates.values()):
            assert values == sorted(set(values))

    def test_its_learned_optimizers_are_those_of_a_recipe(self, sweep, tmp_path):
        """They were trained on that kind of problem, and load if they were trained yet."""
        recipes = [recipe for path in RECIPES.glob("*.toml") for recipe in read_recipes(elsewhere(path, tmp_path))]
        trained_on = {recipe.name: recipe.problem["name"] for recipe in recipes}
        for name in sweep.learned.values():
            assert trained_on[name] == sweep.problem["name"]
            if name in zoo.names():
                assert zoo.card(name)["problem"]["name"] == sweep.problem["name"]
                assert isinstance(zoo.load(name), LearnedRule)
