"""Random search of the meta-learning rate: it finds, remembers, and survives what diverges."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_cli import RECIPE as SMALL

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.evaluation import read_result
from l2l_kit.making.recipes import Recipe, Search, read_recipes
from l2l_kit.making.search import draw_rate, random_search
from l2l_kit.paths import RESULTS
from l2l_kit.training import MetaTrainer, MetaTraining, meta_training

RECIPE = Recipe(
    "tiny",
    {"name": "quadratics", "dim": 2},
    {"hidden_size": 3},
    MetaTraining(horizon=4, unroll=2, epochs=9, episodes_per_epoch=2, batch_size=3, validation_tasks=5),
    Search(trials=4, epochs=1, meta_lr=(1e-3, 1e-1)),
)
COLUMNS = ["trial", "meta_lr", "validation_loss"]


def search(path, recipe=RECIPE):
    return random_search(recipe, recipe.search, path, device="cpu")


def with_search(**changes):
    return replace(RECIPE, search=replace(RECIPE.search, **changes))


def episodes(monkeypatch, change):
    """Call `change` with the number of each episode before it is run; returns the numbers that were run."""
    ran, original = [], MetaTrainer._episode

    def episode(*arguments):
        ran.append(len(ran))
        change(ran[-1])
        return original(*arguments)

    monkeypatch.setattr(MetaTrainer, "_episode", episode)
    return ran


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return search(tmp_path_factory.mktemp("whole"))


def assert_same(table, whole):
    pd.testing.assert_frame_equal(table[COLUMNS], whole[COLUMNS], check_exact=True)


def test_the_table_has_the_trials_with_the_best_first(whole, tmp_path):
    assert list(whole.columns) == [*COLUMNS, "seconds"]
    assert sorted(whole["trial"]) == [0, 1, 2, 3]
    assert whole["validation_loss"].is_monotonic_increasing
    assert whole["meta_lr"].between(1e-3, 1e-1).all()
    assert whole["meta_lr"].nunique() == 4
    other = replace(with_search(trials=1), training=replace(RECIPE.training, seed=1))
    assert set(search(tmp_path, other)["meta_lr"]).isdisjoint(whole["meta_lr"]), "another seed"


def test_a_trial_is_a_training_of_its_own_with_the_rate_that_was_drawn(whole):
    for _, row in whole.iterrows():
        settings = replace(RECIPE.training, epochs=1, meta_lr=row["meta_lr"])
        trainer = MetaTrainer(RECIPE.make_optimizer(), RECIPE.make_problem(), settings, device="cpu")
        list(trainer.run())
        assert trainer.history.records[-1].validation_loss == row["validation_loss"]


@pytest.mark.parametrize("interrupt_at", [0, 3])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path, monkeypatch, whole, interrupt_at):
    def interrupt(number):
        if number == interrupt_at:
            raise KeyboardInterrupt

    ran = episodes(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path)
    assert_same(search(tmp_path), whole)
    assert len(ran) == 1 + 8 + interrupt_at % 2, "finished trials are not run again"


def test_a_trial_that_diverged_is_infinite_and_last(tmp_path, monkeypatch):
    def diverge(number):
        if number == 2:
            raise MetaTrainingDivergedError("the loss became nan at step 1")

    episodes(monkeypatch, diverge)
    assert search(tmp_path)["validation_loss"].map(math.isinf).tolist() == [False, False, False, True]


def test_a_trial_that_ends_in_nan_is_infinite(tmp_path, monkeypatch):
    """Training may stay finite where the validation does not."""
    monkeypatch.setattr(meta_training, "rollout", lambda *_: torch.full((5, 5), math.nan))
    with pytest.raises(ValueError, match="every trial"):
        search(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, problem={"name": "quadratics", "dim": 3}),
        replace(RECIPE, optimizer={"hidden_size": 4}),
        replace(RECIPE, training=replace(RECIPE.training, horizon=5)),
        with_search(epochs=2),
    ],
    ids=["problem", "optimizer", "training", "epochs"],
)
def test_the_trials_of_another_recipe_are_no_others(tmp_path, other):
    """Both in one folder, as where a recipe is changed."""
    search(tmp_path)
    assert_same(search(tmp_path, other), search(tmp_path / "apart", other))


@pytest.mark.parametrize("name", ["quadratics", "mnist-paper"])
def test_what_is_drawn_is_what_was_recorded(name):
    """Recorded searches can be made again: the draws depend on seed and number alone."""
    (recipe,) = read_recipes(name)
    recorded = read_result(f"search/{name}", RESULTS).set_index("trial")["meta_lr"]
    assert len(recorded) == recipe.search.trials
    for number, meta_lr in recorded.items():
        drawn = draw_rate(1000 * recipe.training.seed + number, recipe.search.meta_lr)
        assert drawn == pytest.approx(meta_lr, rel=1e-5)


def test_two_processes_share_a_search(tmp_path):
    """Each trial is run once, by one or the other, and both end with the table that one process makes."""
    path = tmp_path / "shared.toml"
    path.write_text(
        SMALL.replace("tiny-unroll{unroll}", "shared").replace("[2, 5]", "[2]").replace("trials = 2", "trials = 8")
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-m", "l2l_kit", "search", str(path), "--device", "cpu", "--data", str(tmp_path)]
    running = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=280) for process in running] == [0, 0]
    assert len(list((tmp_path / "cache" / "runs" / "shared").glob("trial-*.safetensors"))) == 8
    alone = search(tmp_path / "alone", read_recipes(path)[0])
    shared = read_result("search/shared", tmp_path / "results")
    pd.testing.assert_frame_equal(shared[COLUMNS], alone[COLUMNS], rtol=1e-5)
    assert (tmp_path / "cache" / "runs" / "shared" / "search.png").read_bytes()[1:4] == b"PNG"
