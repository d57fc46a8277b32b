"""Random search of the meta-learning rate: it finds, remembers, and survives what diverges."""

import itertools
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import optuna
import pandas as pd
import pytest
import sqlalchemy
import torch
from test_cli import RECIPE as SMALL
from workers import finish, start

from l2l_kit import cli
from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.evaluation import read_result
from l2l_kit.making import search as module
from l2l_kit.making.recipes import Recipe, Search, read_recipes
from l2l_kit.making.search import draw, random_search
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


def search(folder, recipe=RECIPE):
    return random_search(recipe, recipe.search, folder / "search.db", device="cpu")


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
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(folder):
    return search(folder)


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


def test_a_trial_is_a_training_of_its_own_with_what_was_drawn(tmp_path, whole):
    """The meta-learning rate, the same ones as without other open settings, and those."""
    ranges = {"forget_bias": (0.0, 4.0), "output_scale": (0.1, 1.0)}
    recipe = with_search(trials=6, optimizer=ranges)
    table = search(tmp_path, recipe)
    assert list(table.columns) == ["trial", "meta_lr", *ranges, "validation_loss", "seconds"]
    assert all(table[name].between(*bounds).all() for name, bounds in ranges.items())
    assert table["forget_bias"].nunique() == 6
    rates, alone = (one.set_index("trial")["meta_lr"] for one in (table, whole))
    assert rates[range(4)].tolist() == alone[range(4)].tolist()
    for _, row in table.iterrows():
        tried = recipe.with_draw(row[["meta_lr", *ranges]].to_dict())
        assert tried.make_optimizer().config()["forget_bias"] == row["forget_bias"]
        settings = replace(tried.training, epochs=1)
        trainer = MetaTrainer(tried.make_optimizer(), tried.make_problem(), settings, device="cpu")
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


def test_more_trials_continue_a_finished_search(tmp_path, whole):
    search(tmp_path, with_search(trials=2))
    assert_same(search(tmp_path), whole)


def test_a_trial_that_diverged_is_infinite_and_last(tmp_path, monkeypatch):
    def diverge(number):
        if number == 2:
            raise MetaTrainingDivergedError("the loss became nan at step 1")

    episodes(monkeypatch, diverge)
    assert search(tmp_path)["validation_loss"].map(math.isinf).tolist() == [False, False, False, True]


def test_a_trial_that_ends_in_nan_is_infinite_and_not_tried_for_ever(tmp_path, monkeypatch):
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
        with_search(meta_lr=(1e-4, 1e-1)),
        with_search(prune=True),
        with_search(optimizer={"forget_bias": (0.0, 1.0)}),
    ],
    ids=["problem", "optimizer", "training", "bounds", "pruning", "more that is open"],
)
def test_the_trials_of_another_recipe_are_refused(tmp_path, folder, whole, other):
    shutil.copy(folder / "search.db", tmp_path)
    with pytest.raises(ValueError, match="another"):
        search(tmp_path, other)


@pytest.mark.parametrize("name", ["quadratics", "mnist-paper"])
def test_what_is_drawn_is_what_was_recorded(name):
    """Recorded searches can be made again: the draws depend on seed and number alone."""
    (recipe,) = read_recipes(name)
    recorded = read_result(f"search/{name}", RESULTS).set_index("trial")["meta_lr"]
    assert len(recorded) == recipe.search.trials
    for number, meta_lr in recorded.items():
        assert draw(recipe, recipe.search, number) == {"meta_lr": pytest.approx(meta_lr, rel=1e-5)}


def queued(folder, *numbers):
    """A study in whose queue are these draws."""
    folder.mkdir(exist_ok=True)
    study = module._open(RECIPE, RECIPE.search, module._url(folder / "search.db"))
    for number in numbers:
        study.enqueue_trial(draw(RECIPE, RECIPE.search, number), user_attrs={"draw": number})
    return study


@pytest.mark.filterwarnings("ignore:.*(E|e)xperimental", "ignore:Heartbeat")
@pytest.mark.parametrize("alive", [True, False], ids=["later", "before its first sign of life"])
def test_a_trial_whose_process_was_killed_is_run_again(tmp_path, monkeypatch, whole, alive):
    monkeypatch.setattr(module, "HEARTBEAT", 1)
    study = queued(tmp_path, 0)
    dead = study.ask()
    if alive:
        study._storage.record_heartbeat(dead._trial_id)
    assert_same(search(tmp_path), whole)


@pytest.mark.filterwarnings("ignore:.*(E|e)xperimental", "ignore:Heartbeat")
def test_a_queue_that_two_filled_at_the_same_moment_is_run_once(tmp_path, monkeypatch, whole):
    queued(tmp_path, *(0, 1, 2, 3) * 2)
    ran = episodes(monkeypatch, lambda _: None)
    assert_same(search(tmp_path), whole)
    assert len(ran) == 8


def test_hopeless_trials_are_given_up_and_the_same_ones_each_time(tmp_path):
    recipe = with_search(trials=8, epochs=4, prune=True)
    one, other = (search(tmp_path / name, recipe) for name in ("one", "other"))
    columns = [*COLUMNS, "pruned_after"]
    pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)
    given_up = one["pruned_after"].notna()
    assert 0 < given_up.sum() < 4
    assert given_up.is_monotonic_increasing, "they come last"
    whole = search(tmp_path / "whole", with_search(trials=8, epochs=4)).set_index("trial")
    for _, row in one[~given_up].iterrows():
        assert row["validation_loss"] == whole.loc[row["trial"], "validation_loss"]


def write_shared(folder):
    """The path of a recipe whose search has 8 trials."""
    path = folder / "shared.toml"
    text = SMALL.replace("tiny-unroll{unroll}", "shared").replace("[2, 5]", "[2]").replace("trials = 2", "trials = 8")
    path.write_text(text)
    return path


def share(path, url, folder):
    """What the command does in a process of its own."""
    cli.app(["search", str(path), "--storage", url, "--device", "cpu", "--data", str(folder)])


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_no_trial_of_a_file_is_taken_twice(tmp_path):
    """However close together they are asked for, by connections that know nothing of each other."""
    url, queue = sqlalchemy.make_url(f"sqlite:///{tmp_path / 'queue.db'}"), 60
    study = optuna.create_study(study_name="queue", storage=module._storage(url))
    for number in range(queue):
        study.enqueue_trial({}, user_attrs={"draw": number})

    def take(_):
        mine = optuna.load_study(study_name="queue", storage=module._storage(url))
        asked = iter(mine.ask, None)
        return [trial.number for trial in itertools.takewhile(lambda trial: "draw" in trial.user_attrs, asked)]

    with ThreadPoolExecutor(3) as pool:
        taken = [number for numbers in pool.map(take, range(3)) for number in numbers]
    assert sorted(taken) == list(range(queue))


def test_two_processes_share_a_search(tmp_path):
    """Each trial is run once, by one or the other, and both end with the table that one process makes."""
    path, url = write_shared(tmp_path), f"sqlite:///{tmp_path / 'shared.db'}"
    logs = {name: tmp_path / f"{name}.log" for name in ("one", "other")}
    running = {name: start(log, share, path, url, tmp_path / name) for name, log in logs.items()}
    for name, process in running.items():
        finish(process, logs[name])
    one, other = (read_result("search/shared", tmp_path / name / "results") for name in ("one", "other"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    alone = search(tmp_path, read_recipes(path)[0])
    pd.testing.assert_frame_equal(one[COLUMNS], alone[COLUMNS], rtol=1e-5)
    trials = optuna.load_study(study_name="shared", storage=url).trials
    assert sum("seconds" in trial.user_attrs for trial in trials) == 8
    assert (tmp_path / "one" / "cache" / "runs" / "shared" / "search-meta_lr.png").read_bytes()[1:4] == b"PNG"
