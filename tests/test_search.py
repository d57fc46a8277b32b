"""Random search of the meta-learning rate: it finds, remembers, and survives what diverges."""

import itertools
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch

from l2l_kit import zoo
from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.evaluation import read_result
from l2l_kit.paths import RESULTS
from l2l_kit.training import MetaTrainer, MetaTraining, Recipe, Search, meta_training, random_search, read_recipes
from l2l_kit.training import search as module

RECIPE = Recipe(
    "tiny",
    {"name": "quadratics", "dim": 2},
    {"hidden_size": 3},
    MetaTraining(horizon=4, unroll=2, epochs=9, episodes_per_epoch=2, batch_size=3, validation_tasks=5),
    Search(trials=4, epochs=1, meta_lr=(1e-3, 1e-1)),
)
COLUMNS = ["meta_lr", "validation_loss"]


def search(path, recipe=RECIPE, **arguments):
    return random_search(recipe, path, device="cpu", **arguments)


def with_search(**changes):
    return replace(RECIPE, search=replace(RECIPE.search, **changes))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "search.db"


@pytest.fixture(scope="module")
def whole(database):
    return search(database)


def test_the_table_has_the_trials_with_the_best_first(whole):
    assert list(whole.columns) == ["trial", "meta_lr", "validation_loss", "seconds"]
    assert sorted(whole["trial"]) == [0, 1, 2, 3]
    assert whole["validation_loss"].is_monotonic_increasing
    assert whole["meta_lr"].between(1e-3, 1e-1).all()
    assert whole["meta_lr"].nunique() == 4


def test_a_trial_is_a_training_of_its_own_with_that_rate(whole):
    for _, row in whole.iterrows():
        settings = replace(RECIPE.training, meta_lr=row["meta_lr"], epochs=1)
        trainer = MetaTrainer(RECIPE.make_optimizer(), RECIPE.make_problem(), settings, device="cpu")
        for _ in trainer.run():
            pass
        assert trainer.history.records[-1].validation_loss == row["validation_loss"]


def test_the_same_each_time_and_told_of_trial_by_trial(tmp_path, whole):
    lengths = []
    again = search(tmp_path / "search.db", on_trial=lambda table: lengths.append(len(table)))
    pd.testing.assert_frame_equal(again[COLUMNS], whole[COLUMNS], check_exact=True)
    assert lengths == [1, 2, 3, 4]


def test_another_seed_tries_other_rates(tmp_path, whole):
    other = replace(with_search(trials=1), training=replace(RECIPE.training, seed=1))
    assert set(search(tmp_path / "search.db", other)["meta_lr"]).isdisjoint(whole["meta_lr"])


@pytest.mark.parametrize("interrupt_at", [0, 3])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path, monkeypatch, whole, interrupt_at):
    calls, original = itertools.count(), MetaTrainer._episode

    def interrupted(*arguments):
        if next(calls) == interrupt_at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(MetaTrainer, "_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "search.db")
    resumed = search(tmp_path / "search.db")
    assert next(calls) == 1 + 8 + interrupt_at % 2, "finished trials are not run again"
    pd.testing.assert_frame_equal(resumed[COLUMNS], whole[COLUMNS], check_exact=True)


def test_more_trials_continue_a_finished_search(tmp_path, whole):
    search(tmp_path / "search.db", with_search(trials=2))
    more = search(tmp_path / "search.db")
    pd.testing.assert_frame_equal(more[COLUMNS], whole[COLUMNS], check_exact=True)


def test_a_trial_that_diverged_is_infinite_and_last(tmp_path, monkeypatch):
    calls, original = itertools.count(), MetaTrainer._episode

    def diverging(*arguments):
        if next(calls) == 2:
            raise MetaTrainingDivergedError("the loss became nan at step 1")
        return original(*arguments)

    monkeypatch.setattr(MetaTrainer, "_episode", diverging)
    table = search(tmp_path / "search.db")
    assert table["trial"].iloc[-1] == 1
    assert table["validation_loss"].iloc[-1] == math.inf
    assert len(table) == 4


def test_a_trial_that_ends_in_nan_is_infinite_and_not_tried_for_ever(tmp_path, monkeypatch):
    """Training may stay finite where the validation does not."""
    losses = iter([1.0, 0.5, 1.0, math.nan, 1.0, 0.25, 1.0, 0.75])  # before and after the one epoch of each trial
    monkeypatch.setattr(meta_training, "rollout", lambda *_: torch.full((5, 5), next(losses)))
    table = search(tmp_path / "search.db")
    assert table["validation_loss"].tolist() == [0.25, 0.5, 0.75, math.inf]


def test_if_all_diverge_it_says_so(tmp_path, monkeypatch):
    def diverging(*_):
        raise MetaTrainingDivergedError("the loss became nan at step 1")

    monkeypatch.setattr(MetaTrainer, "_episode", diverging)
    with pytest.raises(ValueError, match="recipe 'tiny': every trial of the search diverged"):
        search(tmp_path / "search.db")


def test_a_recipe_without_search_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"recipe 'tiny' has no \[search\] section"):
        search(tmp_path / "search.db", replace(RECIPE, search=None))


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, problem={"name": "quadratics", "dim": 3}),
        replace(RECIPE, optimizer={"hidden_size": 4}),
        replace(RECIPE, training=replace(RECIPE.training, horizon=5)),
        with_search(epochs=2),
        with_search(meta_lr=(1e-4, 1e-1)),
    ],
    ids=["problem", "optimizer", "training", "epochs", "bounds"],
)
def test_the_trials_of_another_recipe_are_not_taken_for_its_own(tmp_path, database, whole, other):
    """As with a checkpoint: refused, not continued."""
    shutil.copy(database, tmp_path / "search.db")
    with pytest.raises(ValueError, match="another"):
        search(tmp_path / "search.db", other)


@pytest.mark.parametrize("name", ["quadratics", "mnist-paper"])
def test_what_is_drawn_is_what_was_recorded(name):
    """Recorded searches can be made again: the draws depend on seed and number alone."""
    (recipe,) = read_recipes(name)
    recorded = read_result(f"search/{name}", RESULTS).set_index("trial")["meta_lr"]
    assert len(recorded) == recipe.search.trials
    for number, meta_lr in recorded.items():
        assert module._draw(recipe, recipe.search, number)["meta_lr"] == pytest.approx(meta_lr, rel=1e-5)


def test_a_trial_whose_process_was_killed_is_run_again(tmp_path, monkeypatch, whole):
    """A dead process gives no signs of life any more; what it had taken is given to another."""
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    study = module._open(RECIPE, RECIPE.search, module._url(tmp_path / "search.db"))
    module._queue(study, RECIPE, RECIPE.search)
    with pytest.warns(UserWarning, match="Heartbeat"):
        dead = study.ask()
    study._storage.record_heartbeat(dead._trial_id)
    assert dead.user_attrs["draw"] == 0
    pd.testing.assert_frame_equal(search(tmp_path / "search.db")[COLUMNS], whole[COLUMNS], check_exact=True)


def test_a_trial_whose_process_was_killed_before_its_first_sign_of_life_is_run_again(tmp_path, monkeypatch, whole):
    """Optuna counts the time since the last sign, and would wait for the first one for ever."""
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    study = module._open(RECIPE, RECIPE.search, module._url(tmp_path / "search.db"))
    module._queue(study, RECIPE, RECIPE.search)
    with pytest.warns(UserWarning, match="Heartbeat"):
        assert study.ask().user_attrs["draw"] == 0
    pd.testing.assert_frame_equal(search(tmp_path / "search.db")[COLUMNS], whole[COLUMNS], check_exact=True)


def test_a_queue_that_two_filled_at_the_same_moment_is_run_once(tmp_path, monkeypatch, whole):
    study = module._open(RECIPE, RECIPE.search, module._url(tmp_path / "search.db"))
    for number in (0, 1, 2, 3) * 2:
        study.enqueue_trial(module._draw(RECIPE, RECIPE.search, number), user_attrs={"draw": number})
    calls, original = itertools.count(), MetaTrainer.run
    monkeypatch.setattr(MetaTrainer, "run", lambda self: next(calls) < 9 and original(self))
    pd.testing.assert_frame_equal(search(tmp_path / "search.db")[COLUMNS], whole[COLUMNS], check_exact=True)
    assert next(calls) == 4


FILE = """
name = "shared"
[problem]
name = "quadratics"
dim = 2
[optimizer]
hidden_size = 3
[training]
horizon = 4
unroll = 2
epochs = 9
episodes_per_epoch = 10
batch_size = 3
validation_tasks = 5
[search]
trials = 8
epochs = 1
meta_lr = [1e-3, 1e-1]
"""


def test_two_processes_share_a_search(tmp_path):
    """Each trial is run once, by one or the other, and both end with the table that one process makes."""
    path = tmp_path / "shared.toml"
    path.write_text(FILE)
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "l2l_kit", "search", str(path), "--storage", url, "--device", "cpu", "--data"]
    running = [subprocess.Popen([*command, str(tmp_path / name)], env=environment) for name in ("one", "other")]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    tables = [read_result("search/shared", tmp_path / name / "results") for name in ("one", "other")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    alone = search(tmp_path / "alone.db", read_recipes(path)[0])
    pd.testing.assert_frame_equal(tables[0][["trial", *COLUMNS]], alone[["trial", *COLUMNS]], rtol=1e-5)
    study = optuna.load_study(study_name="shared", storage=url)
    run = [trial for trial in study.trials if "seconds" in trial.user_attrs]
    assert len(run) == 8
    assert (tmp_path / "one" / "cache" / "runs" / "shared" / "search-meta_lr.png").read_bytes()[1:4] == b"PNG"


OPEN = with_search(trials=6, optimizer={"forget_bias": (0.0, 4.0), "output_scale": (0.1, 1.0)})


def test_a_recipe_may_open_more_than_the_meta_learning_rate(tmp_path, whole):
    table = search(tmp_path / "search.db", OPEN)
    assert list(table.columns) == ["trial", "meta_lr", "forget_bias", "output_scale", "validation_loss", "seconds"]
    assert table["forget_bias"].between(0, 4).all()
    assert table["output_scale"].between(0.1, 1).all()
    assert table["forget_bias"].nunique() == 6
    same = table.set_index("trial")["meta_lr"].loc[[0, 1, 2, 3]]
    assert same.tolist() == whole.set_index("trial")["meta_lr"].loc[[0, 1, 2, 3]].tolist()
    row = table.iloc[-1]
    tried = OPEN.with_draw(row[["meta_lr", "forget_bias", "output_scale"]].to_dict())
    assert tried.make_optimizer().config()["forget_bias"] == row["forget_bias"]
    trainer = MetaTrainer(tried.make_optimizer(), tried.make_problem(), replace(tried.training, epochs=1), device="cpu")
    list(trainer.run())
    assert trainer.history.records[-1].validation_loss == row["validation_loss"]


def test_what_a_search_has_found_is_trained_with(tmp_path):
    recipe = replace(OPEN, training=replace(RECIPE.training, epochs=2))
    card = zoo.card(zoo.follow_recipe(recipe, tmp_path, device="cpu", progress=False))
    best = read_result("search/tiny", tmp_path / "results").iloc[0]
    assert card["training"]["meta_lr"] == pytest.approx(best["meta_lr"], rel=1e-5)
    for name in ("forget_bias", "output_scale"):
        assert card["optimizer"][name] == pytest.approx(best[name], rel=1e-5)


def test_hopeless_trials_are_given_up_and_the_same_ones_each_time(tmp_path):
    recipe = with_search(trials=12, epochs=4, prune=True)
    one, other = (search(tmp_path / name, recipe) for name in ("one.db", "other.db"))
    columns = ["trial", *COLUMNS, "pruned_after"]
    pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)
    given_up = one["pruned_after"].notna()
    assert 0 < given_up.sum() < 8
    assert given_up.is_monotonic_increasing, "they come last"
    whole = search(tmp_path / "whole.db", with_search(trials=12, epochs=4)).set_index("trial")
    for _, row in one[~given_up].iterrows():
        assert row["validation_loss"] == whole.loc[row["trial"], "validation_loss"]


def test_a_search_that_prunes_is_another_one(tmp_path, database, whole):
    shutil.copy(database, tmp_path / "search.db")
    for other in (with_search(prune=True), with_search(optimizer={"forget_bias": (0.0, 1.0)})):
        with pytest.raises(ValueError, match="another"):
            search(tmp_path / "search.db", other)


@pytest.mark.parametrize(
    "bounds", [{"optimizer": {"forget_bias": (4.0, 1.0)}}, {"optimizer": {"forget_bias": (-1.0, 1.0)}}, {"epochs": 0}]
)
def test_bounds_that_make_no_sense_are_refused(bounds):
    with pytest.raises(ValueError, match=r"search: .* got Search"):
        Search(**{**asdict(RECIPE.search), **bounds})
