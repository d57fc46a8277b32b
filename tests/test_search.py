"""Random search of the meta-learning rate: it finds, remembers, and survives what diverges."""

import itertools
import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.training import MetaTrainer, MetaTraining, Recipe, Search, meta_training, random_search

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
