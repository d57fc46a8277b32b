"""Sweeps: what they record is what compare and tune say of each setting, once, however often they are interrupted."""

import math
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch

from l2l_kit import zoo
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import (
    AVERAGED,
    EACH_STEP,
    ONE_RATE,
    Curves,
    claim,
    compare,
    lbfgs,
    machine,
    metrics_on_test_set,
    paired_ratio,
    ratios_of,
    read_result,
    swept_baselines,
    training_of,
    tune,
    tuned_baselines,
    under,
)
from l2l_kit.evaluation.claims import FEWEST_TO_TUNE_ON
from l2l_kit.making.plans import combinations
from l2l_kit.making.recipes import find_recipe, read_recipes
from l2l_kit.making.runs import Run
from l2l_kit.making.sweeps import Sweep, read_sweep, run_sweep
from l2l_kit.optimizers import Baseline, LSTMRule, baseline
from l2l_kit.paths import RECIPES, RESULTS, SWEEPS
from l2l_kit.problems import NeuralArt, Quadratics, neural_art
from l2l_kit.randomness import generator

STEPS = [2, 25]
SGD = {"name": "sgd", "learning_rates": [0.01, 0.03]}
BASELINES = {
    "Adam": {"name": "adam", "learning_rates": [0.3]},
    "decaying Adam": {"name": "adam", "decay": 10.0, "learning_rates": [0.3, 0.9]},
}
DIGITS = {"name": "mnist", "source": "embedded", "hidden": [2], "batch_size": 4}
LEARNED, TUNING, TEST = ("learned", "test"), ("baseline", "tuning"), ("baseline", "test")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    zoo.save(LSTMRule(hidden_size=3), folder / "one")
    zoo.save(LSTMRule(hidden_size=3, preprocessing="log-sign", output_scale=0.1), folder / "two")
    learned = {"LSTM": str(folder / "one"), "log-sign": str(folder / "two")}
    return Sweep(
        "mine", {"name": "quadratics"}, {"dim": [3]}, learned, STEPS, 7, BASELINES, 5, ratios_of=["log-sign"], seed=4
    )


@pytest.fixture(scope="module")
def quick(sweep):
    return replace(sweep, steps=[1], baselines={"SGD": SGD}, ratios_of=[])


def run(folder, sweep, **arguments):
    """The table that a sweep records there, and what was run for it."""
    ran, original = [], Run._run
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "_run", lambda one: (ran.append(one), original(one))[1])
        path = run_sweep(sweep, folder, device="cpu", **arguments)
    return None if path is None else read_result(f"sweeps/{sweep.name}", folder / "results"), ran


def kinds(ran):
    """What was run: a learned optimizer or a baseline, and on which draw."""
    return [("baseline" if isinstance(each.optimizer, Baseline) else "learned", each.draw) for each in ran]


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
    rules = sweep.baselines.items()
    return learned | {label: Baseline(rule["name"], rates[label], rule.get("decay")) for label, rule in rules}


class TestTable:
    def test_it_has_a_row_for_each_protocol_step_and_optimizer(self, table):
        names = ["LSTM", "log-sign", "Adam", "decaying Adam"]
        assert list(zip(table["dim"], table["protocol"], table["step"], table["optimizer"], strict=True)) == [
            (3, protocol, step, name)
            for protocol, steps in ((ONE_RATE, STEPS), (EACH_STEP, STEPS), (AVERAGED, STEPS[-1:]))
            for step in steps
            for name in names
        ]
        assert set(table[table["lr"].isna()]["optimizer"]) == {"LSTM", "log-sign"}

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("protocol", [ONE_RATE, EACH_STEP])
    def test_it_holds_what_compare_gives_for_that_number_of_steps(self, table, sweep, protocol, step):
        """A comparison of that length alone, all optimizers together; ratios are paired, of a learned one over each."""
        rules = chosen(table, sweep, protocol, step)
        curves = compare(rules, Quadratics(3), steps=step, num_tasks=7, seed=4, device="cpu")
        last = Curves({name: losses[:, -1:] for name, losses in curves.losses.items()}, {}, 4)
        for learned in (None, "LSTM", "log-sign"):
            rows = under(ratios_of(table[table["step"] == step], learned), protocol)
            assert next(iter(rows.attrs["learned"])) == (learned or "LSTM")
            for row in rows.itertuples():
                interval = [part.item() for part in last.interval(row.optimizer)]
                ratio = [part.item() for part in last.interval(learned or "LSTM", over=row.optimizer)]
                assert [row.mean, row.low, row.high] == pytest.approx(interval, rel=1e-5)
                assert [row.ratio, row.ratio_low, row.ratio_high] == pytest.approx(ratio, rel=1e-5)

    def test_a_claim_may_be_about_any_optimizer_with_ratios(self, table):
        rows = under(table[table["step"] == STEPS[-1]], ONE_RATE)
        for learned, other in (("LSTM", "log-sign"), ("log-sign", "LSTM")):
            found = claim(rows, "ours", "here", "it is so", because="so", learned=learned, against=[other])
            assert found.measured.startswith(f"{learned} / {other}: ")
            assert found.conditions.endswith(
                f"training of {learned}: an unknown time; training of {other}: an unknown time"
            )
        with pytest.raises(UnknownNameError, match="optimizer with ratios in this table"):
            claim(rows, "ours", "here", "it is so", because="so", learned="Adam")

    def test_it_says_how_the_optimizers_were_trained(self, table, sweep):
        assert table.attrs["trained"] == {label: training_of(zoo.card(name)) for label, name in sweep.learned.items()}
        assert all(table.attrs["trained"].values())

    def test_an_average_is_that_of_the_ratios_at_the_steps(self, table, sweep):
        averaged, one_rate = under(table, AVERAGED), under(table, ONE_RATE)
        rules = chosen(table, sweep, AVERAGED, STEPS[-1])
        curves = compare(rules, Quadratics(3), steps=STEPS[-1], num_tasks=7, seed=4, device="cpu")
        for row in averaged.itertuples():
            steps = one_rate[one_rate["optimizer"] == row.optimizer]
            assert steps["lr"].dropna().unique().tolist() == ([] if math.isnan(row.lr) else [row.lr])
            assert row.mean == pytest.approx(steps["mean"].mean(), rel=1e-4)
            assert row.ratio == pytest.approx(math.prod(steps["ratio"]) ** (1 / len(STEPS)), rel=1e-4)
            pair = (curves[name][:, STEPS] for name in ("LSTM", row.optimizer))
            interval = [part.item() for part in paired_ratio(*pair, average=True)]
            assert [row.ratio, row.ratio_low, row.ratio_high] == pytest.approx(interval, rel=1e-5)

    def test_learned_optimizers_may_be_compared_with_each_other_alone(self, tmp_path, sweep, table):
        alone, ran = run(tmp_path, replace(sweep, baselines={}, tuning_tasks=None))
        assert kinds(ran) == [LEARNED, LEARNED]
        assert alone["protocol"].unique().tolist() == [ONE_RATE, AVERAGED]
        shared = table[table["protocol"].isin([ONE_RATE, AVERAGED]) & table["lr"].isna()].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, shared)

    def test_a_teacher_is_run_as_it_is(self, tmp_path, quick):
        small = {"name": "cifar", "source": "embedded", "batch_size": 8}
        sweep = replace(quick, problem=small, grid={"labels": [[0, 1]]}, learned={"LSTM": "cifar"}, teacher="cifar")
        table, _ = run(tmp_path, replace(sweep, num_tasks=2, tuning_tasks=1))
        assert table["optimizer"].tolist() == ["LSTM", "teacher", "SGD"]
        curves = compare(
            {"teacher": find_recipe("cifar").make_teacher()},
            sweep.make_problem({"labels": [0, 1]}),
            steps=1,
            num_tasks=2,
            seed=4,
            device="cpu",
        )
        assert table["mean"][1] == pytest.approx(curves.losses["teacher"][:, 1].mean().item(), rel=1e-5)
        assert table["lr"].isna().tolist() == [True, True, False]

    def test_lists_are_one_word(self, tmp_path, quick):
        """Also where they are read again, from a file in which they look like numbers."""
        grid = {"hidden": [[2], [2, 3]], "activation": ["relu"]}
        table, _ = run(tmp_path, replace(quick, problem=DIGITS, grid=grid, num_tasks=1, tuning_tasks=1))
        assert table["hidden"].tolist() == ["2"] * 3 + ["2-3"] * 3
        assert table["activation"].tolist() == ["relu"] * 6

    def test_with_another_seed_it_is_beside_the_first(self, tmp_path, quick):
        first, _ = run(tmp_path, quick, seed=quick.seed)
        path = run_sweep(quick, tmp_path, seed=5, device="cpu")
        assert path.stem == "mine-seed5"
        pd.testing.assert_frame_equal(read_result("sweeps/mine", tmp_path / "results"), first)
        second, other = (read_result("sweeps/mine", tmp_path / "results", seed=seed) for seed in (5, 6))
        pd.testing.assert_frame_equal(second, run(tmp_path / "alone", replace(quick, seed=5))[0])
        assert second.attrs["seed"] == 5
        assert not second.equals(first)
        assert other.equals(first), "there is none with this seed"

    def test_losses_may_be_those_on_test_images(self, tmp_path, quick):
        """On images that no network is trained on, of baselines tuned for that."""
        sweep = replace(quick, problem=DIGITS, grid={"init_scale": [0.1]}, steps=[1, 4], num_tasks=3, tuning_tasks=2)
        table, _ = run(tmp_path, replace(sweep, on_test_set=True))
        problem = sweep.make_problem({"init_scale": 0.1})
        for step in (1, 4):
            rules = chosen(table, sweep, EACH_STEP, step)
            expected = metrics_on_test_set(rules, problem, at=[step], num_tasks=3, seed=4, device="cpu")
            rows = under(table[table["step"] == step], EACH_STEP)
            assert rows["mean"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-5)
        on_minibatches, ran = run(tmp_path, sweep)
        assert kinds(ran).count(LEARNED) == 2, "it is measured apart"
        assert not table["mean"].equals(on_minibatches["mean"])

    def test_lbfgs_meets_the_same_optimizees_and_is_no_baseline(self, tmp_path, sweep):
        sweep = replace(sweep, baselines={"SGD": SGD})
        run(tmp_path, sweep)
        table, ran = run(tmp_path, replace(sweep, lbfgs=True))
        assert [each.optimizer for each in ran] == [None], "the others are the same"
        tasks = Quadratics(3).sample(7, generator(4, "test"))
        curves = [torch.cat([point.losses for point in lbfgs(tasks.select(index), 25)]) for index in range(7)]
        for protocol in (ONE_RATE, EACH_STEP):
            rows = under(table[table["optimizer"] == "L-BFGS"], protocol)
            assert rows["lr"].isna().all()
            assert rows["mean"].tolist() == pytest.approx(torch.stack(curves).mean(dim=0)[STEPS].tolist(), rel=1e-5)


class TestProtocols:
    def test_a_rate_is_the_best_of_all_that_were_tried(self, recorded, table):
        """For the last step under one protocol, for each under the other; on draws of its own."""
        (tried,) = table.attrs["tried"]["Adam"]
        tuning = tune("adam", Quadratics(3), steps=STEPS, num_tasks=5, learning_rates=tried, seed=4, device="cpu")
        best = {step: tuning.best(step=step).lr for step in STEPS}
        assert len(set(best.values())) == 2, "else nothing would be told apart here"
        rates = table[table["optimizer"] == "Adam"].set_index(["protocol", "step"])["lr"]
        for step in STEPS:
            assert rates[ONE_RATE, step] == best[STEPS[-1]]
            assert rates[EACH_STEP, step] == best[step]
        adam = [each.optimizer for each in recorded[1] if each.draw == "test" and "Adam" in each.words]
        assert sorted(rule.lr for rule in adam if rule.decay is None) == sorted(set(rates)), "each is tested once"

    def test_one_has_to_be_chosen_where_there_are_several(self, table):
        for protocol in table["protocol"].unique():
            assert set(under(table, protocol)["protocol"]) == {protocol}
            assert len(under(table, protocol)) == table["protocol"].eq(protocol).sum()
        for read in (under, lambda table: swept_baselines(table, 2)):
            with pytest.raises(ValueError, match="several protocols"):
                read(table)
        with pytest.raises(UnknownNameError, match="Did you mean 'one rate'"):
            under(table, "one rat")
        with pytest.raises(UnknownNameError, match="unknown protocol"):
            under(table.drop(columns="protocol"), ONE_RATE)

    def test_baselines_are_those_of_the_setting_protocol_and_step(self, table, sweep):
        for protocol in (ONE_RATE, EACH_STEP):
            for step in STEPS:
                expected = chosen(table, sweep, protocol, step)
                tuned = swept_baselines(under(table, protocol), step, dim=3)
                assert tuned == {label: expected[label] for label in ("Adam", "decaying Adam")}
        assert tuned["decaying Adam"].decay == 10

    def test_a_setting_may_be_a_word_that_looks_like_a_number(self, tmp_path):
        table = pd.DataFrame({"hidden": ["20", "40"], "step": 1, "optimizer": "SGD", "lr": [0.1, 0.2]})
        table.to_csv(tmp_path / "table.csv", index=False)
        for one in (table, pd.read_csv(tmp_path / "table.csv")):
            assert swept_baselines(one, 1, hidden="40") == {"SGD": baseline("sgd", 0.2)}

    def test_a_setting_that_no_sweep_has_is_named(self, table):
        with pytest.raises(UnknownNameError, match=r"unknown setting of this sweep 'dmi'. Did you mean 'dim'"):
            swept_baselines(under(table, ONE_RATE), 2, dmi=3)

    def test_a_setting_that_was_not_swept_or_is_not_the_only_one_is_refused(self, table):
        rows = under(table, ONE_RATE)
        for step, dim in ((2, 9), (4, 3)):
            with pytest.raises(ValueError, match=rf"nothing at step {step} for {{'dim': {dim}}}"):
                swept_baselines(rows, step, dim=dim)
        with pytest.raises(ValueError, match="more than one setting at step 2"):
            swept_baselines(pd.concat([rows, rows.assign(dim=2)]), 2)


class TestGrid:
    """Of learning rates: it goes on until the best one, for any of the steps, is neither the first nor the last."""

    def test_the_best_is_never_at_its_end(self, table):
        for label in ("Adam", "decaying Adam"):
            (tried,) = table.attrs["tried"][label]
            assert set(table[table["optimizer"] == label]["lr"]) <= set(tried[1:-1])
            assert all(1 < larger / rate <= 10 / 3 for rate, larger in pairwise(tried))

    @pytest.mark.parametrize("start", [1e-4, 1e4])
    def test_it_gets_there_from_wherever_it_begins(self, tmp_path, quick, start):
        """Also from where every run diverges, and up to where one does."""
        rates = {"SGD": {"name": "sgd", "learning_rates": [start]}}
        table, ran = run(tmp_path, replace(quick, baselines=rates, steps=[60]))
        (tried,), (lr,) = table.attrs["tried"]["SGD"], table["lr"].dropna()
        assert start in tried
        assert tried[0] < lr < tried[-1]
        assert 0.01 <= lr <= 0.1
        assert kinds(ran).count(TUNING) == len(tried)

    def test_a_baseline_that_always_diverges_is_an_error(self, tmp_path, quick):
        with pytest.raises(ValueError, match="the best learning rate is 1e-09 or beyond"):
            run(tmp_path, replace(quick, problem=DIGITS, grid={"init_scale": [1e38]}, num_tasks=1, tuning_tasks=1))

    def test_one_that_diverges_on_a_test_optimizee_gives_way_to_the_next_best(
        self, tmp_path, sweep, table, monkeypatch
    ):
        run_it, before = Run._run, under(table, EACH_STEP)
        largest = before.loc[before["optimizer"] == "Adam", "lr"].max()

        def diverge(one):
            losses = run_it(one)
            if one.draw == "test" and isinstance(one.optimizer, Baseline) and one.optimizer.lr >= largest:
                losses["losses"][3, one.steps.index(25) if 25 in one.steps else 99 :] = math.inf
            return losses

        monkeypatch.setattr(Run, "_run", diverge)
        changed, _ = run(tmp_path, sweep)
        assert changed["mean"].max() < math.inf
        for protocol in (ONE_RATE, EACH_STEP, AVERAGED):
            rows = under(changed, protocol)
            rates = rows[rows["optimizer"] == "Adam"].set_index("step")["lr"]
            tried = changed.attrs["tried"]["Adam"][0]
            tuning = tune("adam", Quadratics(3), steps=25, num_tasks=5, learning_rates=tried, seed=4, device="cpu")
            finite = tuning.table[(tuning.table["step"] == 25) & (tuning.table["lr"] < largest)]
            assert rates[25] == finite.loc[finite["mean"].idxmin(), "lr"]

    def test_where_every_one_diverges_there_is_still_a_row(self, tmp_path, quick, monkeypatch):
        run_it, size = Run._run, {"test": math.inf, "tuning": 1}
        monkeypatch.setattr(Run, "_run", lambda one: {"losses": size[one.draw] * run_it(one)["losses"]})
        table, _ = run(tmp_path, quick)
        assert table.loc[table["optimizer"] == "SGD", "mean"].tolist() == [math.inf]

    def test_it_is_of_the_problem_that_is_tuned_on(self, tmp_path, quick):
        rates = {}
        for tuned_on in ({}, {"dim": 30}):
            table, _ = run(tmp_path, replace(quick, grid={"dim": [2]}, tuned_on=tuned_on, steps=[25]))
            (lr,), (tried,) = table["lr"].dropna(), table.attrs["tried"]["SGD"]
            problem = Quadratics(tuned_on.get("dim", 2))
            tuning = tune("sgd", problem, steps=25, num_tasks=5, learning_rates=tried, seed=4, device="cpu")
            assert lr == tuning.best().lr
            curves = compare({"SGD": baseline("sgd", lr)}, Quadratics(2), steps=25, num_tasks=7, seed=4, device="cpu")
            assert table["mean"].iloc[-1] == pytest.approx(curves.statistic("SGD")[-1].item(), rel=1e-5)
            rates[str(tuned_on)] = lr
        assert len(set(rates.values())) == 2


class TestRuns:
    """One optimizer, run once on one draw: what is there is not run again."""

    @pytest.fixture
    def before(self, tmp_path, quick):
        return run(tmp_path, quick)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, set()),
            ({"seed": 5}, {LEARNED, TUNING, TEST}),
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
        assert set(kinds(before[1])) == {LEARNED, TUNING, TEST}
        table, ran = run(tmp_path, replace(quick, **change))
        assert set(kinds(ran)) - {TEST} == expected - {TEST}
        if TEST in expected or not expected:  # otherwise another learning rate may be the best
            assert set(kinds(ran)) == expected
        if not change:
            pd.testing.assert_frame_equal(table, before[0])

    def test_their_files_have_the_names_that_they_always_had(self, tmp_path):
        """Those of half-finished sweeps cost core-hours."""
        rule = LSTMRule(hidden_size=2)
        for weight in rule.parameters():
            torch.nn.init.constant_(weight, 0.5)
        names = {Baseline("adam", 0.1, 10.0): "2802b6b6be99da88", rule: "ac15a89bd2e82c46", None: "8c3f7038d18dd59a"}
        for optimizer, name in names.items():
            Run(tmp_path / name, Quadratics(3), optimizer, "test", 7, [2, 25], False, 4, "cpu").losses()
            assert (tmp_path / name / f"{name}.safetensors").is_file()

    @pytest.mark.parametrize(
        "optimizer", [Baseline("adam", 0.1), LSTMRule(hidden_size=2), None], ids=["Adam", "LSTM", "L-BFGS"]
    )
    def test_one_of_pictures_goes_on_with_those_that_are_left(self, tmp_path, monkeypatch, capsys, optimizer):
        monkeypatch.setattr(neural_art, "_AT_ONCE", 1)  # pixels, so that each picture is a part
        problem = NeuralArt(network="small", source="embedded", style="swirls", size=16)
        make = partial(Run, problem=problem, optimizer=optimizer, draw="test", num_tasks=3, steps=[1, 3], device="cpu")
        whole, interrupted = make(tmp_path / "whole"), make(tmp_path / "interrupted", words="mine")
        done, run_part = [], Run._run_part

        def until_the_second(run, tasks):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(tasks)
            return run_part(run, tasks)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "_run_part", until_the_second)
            with pytest.raises(KeyboardInterrupt):
                interrupted.losses()
        assert capsys.readouterr().out.splitlines() == ["mine: part 1 of 3", "mine: part 2 of 3"]
        left = []
        monkeypatch.setattr(Run, "_run_part", lambda run, tasks: left.append(tasks) or run_part(run, tasks))
        assert torch.equal(interrupted.losses(), whole.losses())
        assert len(left) == 1 + 3
        assert capsys.readouterr().out.splitlines()[-2:] == ["mine: part 3 of 3", "mine"]
        assert [path.suffix for path in interrupted.folder.iterdir() if not path.name.startswith(".")] == [
            ".safetensors"
        ]

    def test_a_table_says_on_which_machines_they_were_made(self, tmp_path, quick, before, monkeypatch):
        table, _ = before
        assert {name: table.attrs[name] for name in machine()} == machine()
        monkeypatch.setattr("l2l_kit.making.work.machine", lambda device: machine() | {"device": "a GPU"})
        table, _ = run(tmp_path, replace(quick, num_tasks=8), only=["LSTM"])
        assert table is None
        monkeypatch.undo()
        table, _ = run(tmp_path, replace(quick, num_tasks=8))
        assert table.attrs["device"] == f"a GPU; {machine()['device']}"

    def test_a_newly_trained_optimizer_is_all_that_is_run(self, tmp_path, quick, before):
        other = LSTMRule(hidden_size=3)
        torch.nn.init.constant_(other.output.bias, 0.1)
        zoo.save(other, tmp_path / "other")
        table, ran = run(tmp_path, replace(quick, learned=quick.learned | {"LSTM": str(tmp_path / "other")}))
        assert kinds(ran) == [LEARNED]
        assert not table["ratio"].equals(before[0]["ratio"])

    def test_they_can_be_moved_to_another_machine(self, tmp_path, quick, before):
        """Some optimizers are run on one, the others on another, and all their files put into one folder."""
        for labels, expected in ((["SGD"], {TUNING, TEST}), (["LSTM"], {LEARNED})):
            unknown = {label: path if label in labels else "nothing" for label, path in quick.learned.items()}
            table, ran = run(tmp_path / labels[0], replace(quick, learned=unknown), only=labels)
            assert table is None
            assert set(kinds(ran)) == expected
            shutil.copytree(tmp_path / labels[0], tmp_path / "together", dirs_exist_ok=True)
        table, ran = run(tmp_path / "together", quick)
        assert kinds(ran) == [LEARNED]
        pd.testing.assert_frame_equal(table, before[0])


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
MISTAKES = {
    "unknown setting": ("num_tasks = 4", "num_tsks = 4", "setting 'num_tsks'. Did you mean 'num_tasks'?"),
    "lost section": ("[learned]\nLSTM =", "[grid.LSTM]\nx =", "not a valid sweep"),
    "nothing learned": ('LSTM = "quadratics"', "", "learned and grid must not be empty"),
    "a label twice": ("SGD =", "LSTM =", "two optimizers have the same label"),
    "steps of zero": ("steps = [5, 10]", "steps = [0, 5]", "steps must be a whole number of at least 1, got 0"),
    "steps that fall": ("steps = [5, 10]", "steps = [10, 5]", "steps must be some, and ascend, got [10, 5]"),
    "no tasks to tune on": (
        "tuning_tasks = 3",
        "tuning_tasks = 0",
        "tuning_tasks must be a whole number of at least 1, got 0",
    ),
    "grid that is no list": ("dim = [2, 3]", "dim = 2", "grid.dim must be a list with something in it, got 2"),
    "unknown field": ("dim = [2, 3]", "dims = [2, 3]", "dims"),
    "a mistake in what is tuned on": ("\n[grid]", "\n[tuned_on]\ndim = 0\n[grid]", "dim must be"),
    "unknown baseline": ('"sgd"', '"sdg"', "unknown baseline 'sdg'. Did you mean 'sgd'"),
    "no word on tuning": ("tuning_tasks = 3", "", "tuning_tasks is needed where there are baselines to tune"),
    "nothing to tune": (VALID[VALID.index("[baselines]") :], "[tuned_on]", "something to compare with"),
    "a rate that is not tuned": ('"sgd",', '"sgd", lr = 0.1,', "a list of learning_rates and no lr"),
    "unknown setting of a baseline": ('"sgd",', '"sgd", decy = 9,', "setting 'decy'. Did you mean 'decay'?"),
    "no name of a baseline": ('name = "sgd",', "", "baseline 'SGD': 'name' is missing"),
    "no learning rates": ("[0.03, 0.1]", "[]", "learning_rates of SGD must ascend"),
    "lost learning rates": (", learning_rates = [0.03, 0.1]", "", "'learning_rates' is missing"),
    "learning rates too far apart": ("[0.03, 0.1]", "[0.03, 0.11]", "by a factor of √10 at most, got [0.03, 0.11]"),
}


def read(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return read_sweep(path)


class TestFiles:
    def test_a_sweep_says_all_that_is_in_the_file(self, tmp_path):
        baselines, grid = {"SGD": {"name": "sgd", "learning_rates": [0.03, 0.1]}}, {"dim": [2, 3]}
        expected = Sweep("mine", {"name": "quadratics"}, grid, {"LSTM": "quadratics"}, [5, 10], 4, baselines, 3)
        assert read(tmp_path, VALID) == expected

    def test_a_copy_needs_a_name_of_its_own(self, tmp_path):
        for read, folder in ((read_sweep, SWEEPS), (read_recipes, RECIPES)):
            original = sorted(folder.glob("*.toml"))[0]
            copy = shutil.copy(original, tmp_path)
            with pytest.raises(ValueError, match=r"whose result it would replace\. Rename the file\."):
                read(copy)
            assert read(Path(copy).rename(tmp_path / "mine.toml"))
            assert read(original)

    @pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES.values(), ids=MISTAKES)
    def test_a_mistake_is_named(self, tmp_path, right, wrong, message):
        assert VALID.count(right) >= 1
        with pytest.raises(ValueError, match=r"mine\.toml: not a valid sweep: .") as caught:
            read(tmp_path, VALID.replace(right, wrong, 1))
        assert message in str(caught.value)

    @pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.toml")))
    def test_one_of_the_kit_compares_what_a_recipe_makes_on_problems_that_differ(self, name, tmp_path):
        """Read with other digits than it asks for, since those are not everywhere."""
        sweep = read(tmp_path, (SWEEPS / f"{name}.toml").read_text(encoding="utf-8").replace('"full"', '"embedded"'))
        settings = combinations(sweep.grid)
        configs = {str(sweep.make_problem(setting).config()) for setting in settings}
        assert len(configs) == len(settings) == math.prod(map(len, sweep.grid.values()))
        for optimizer in sweep.learned.values():
            assert find_recipe(optimizer).problem["name"] == sweep.problem["name"]


LN_10 = math.log(10)
RECORDS = {path.stem: path for path in sorted((RESULTS / "sweeps").glob("*.csv"))}


def at_an_end(table):
    """Where the best learning rate is the first or the last that was tried, though networks learn something with it."""
    settings = [name for name in table if name in table.attrs["grid"]]
    numbers = {setting: number for number, (setting, _) in enumerate(table.groupby(settings, sort=False))}
    for setting, rows in table[table["lr"].notna()].groupby(settings, sort=False):
        for row in rows.itertuples():
            if "tried" in table.attrs:
                tried = table.attrs["tried"][row.optimizer][numbers[setting]]
            else:  # recorded before grids were extended
                tried = table.attrs["learning_rates"][row.optimizer.lower()]
            if not min(tried) < row.lr < max(tried) and row.mean < 0.999 * LN_10:
                yield row


class TestRecords:
    """The paper's protocol in what is recorded: learning rates from other problems, at least 8, and none at an end."""

    @pytest.mark.parametrize("name", RECORDS)
    def test_a_sweep(self, name):
        table = read_result(f"sweeps/{name}")
        if table["lr"].notna().any():  # else nothing was tuned
            assert table.attrs["tuning_tasks"] >= FEWEST_TO_TUNE_ON
        assert not list(at_an_end(table))

    @pytest.mark.parametrize("problem", ["quadratics", "mnist"])
    def test_a_tuning(self, problem, recwarn):
        assert read_result(f"{problem}/tuning").attrs["num_tasks"] >= FEWEST_TO_TUNE_ON
        for step in read_result(f"{problem}/tuning").attrs["steps"]:
            for statistic in ("mean", "median"):
                tuned_baselines(problem, statistic, step)
        assert not recwarn.list, "a learning rate is at the end of its grid"
