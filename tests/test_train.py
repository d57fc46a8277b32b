"""Making pretrained optimizers by their recipes."""

import itertools
import shutil
from dataclasses import replace

import pytest

from l2l_kit import zoo
from l2l_kit.errors import WeightsFileError
from l2l_kit.evaluation import read_result
from l2l_kit.making import train
from l2l_kit.making.imitation import Imitation
from l2l_kit.making.recipes import Recipe, Search, read_recipes
from l2l_kit.paths import HOME, RECIPES
from l2l_kit.training import MetaTrainer, MetaTraining, rollout, validation_batch

TRAINING = MetaTraining(horizon=4, unroll=2, epochs=2, episodes_per_epoch=2, batch_size=3, validation_tasks=5)
RECIPE = Recipe("tiny", {"name": "quadratics", "dim": 2}, {"hidden_size": 3}, TRAINING)
OPEN = {"forget_bias": (0.0, 4.0), "output_scale": (0.1, 1.0)}
SEARCHED = replace(RECIPE, search=Search(trials=2, epochs=1, meta_lr=(1e-3, 1e-1), optimizer=OPEN))


def follow(data, recipe=RECIPE):
    return train.train_recipe(recipe, data, device="cpu")


def weights(path):
    return {name: weight.tolist() for name, weight in zoo.load(path).state_dict().items()}


def test_goes_on_from_the_optimizer_that_it_starts_from(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "find_recipe", lambda name: asked.append(name) or RECIPE)
    recipe = replace(RECIPE, name="second", start="tiny", training=replace(TRAINING, seed=1))
    path = follow(tmp_path, recipe)
    assert asked == ["tiny"]  # made first, since it was not there
    first = zoo.load(tmp_path / "pretrained" / "tiny")
    validation = validation_batch(recipe.make_problem(), recipe.training)
    before = rollout(first, validation, recipe.training.horizon)[:, -1].mean().item()
    history = read_result("training/second", tmp_path / "results")
    assert history["validation_loss"][0] == pytest.approx(before, rel=1e-5)
    assert zoo.card(path)["start"] == "tiny"
    follow(tmp_path, replace(recipe, name="third"))
    assert asked == ["tiny"]  # it is there now
    old = weights(path)
    zoo.save(
        replace(RECIPE, optimizer={"hidden_size": 3, "seed": 7}).make_optimizer(), tmp_path / "pretrained" / "tiny"
    )
    assert weights(follow(tmp_path, recipe)) != old, "its start has been made anew"
    with pytest.raises(WeightsFileError, match="'fourth', start 'tiny'"):
        follow(tmp_path, replace(recipe, name="fourth", optimizer={"hidden_size": 4}))


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    first = weights(follow(tmp_path, SEARCHED))
    monkeypatch.setattr(MetaTrainer, "_episode", lambda *_: pytest.fail("it was run again"))
    assert weights(follow(tmp_path, SEARCHED)) == first


OTHER = {
    "problem": replace(SEARCHED, problem={"name": "quadratics", "dim": 3}),
    "optimizer": replace(SEARCHED, optimizer={"hidden_size": 4}),
    "training": replace(SEARCHED, training=replace(TRAINING, unroll=1)),
    "start": replace(SEARCHED, start="quadratics"),
    "imitation": replace(SEARCHED, imitation=Imitation(), teacher={"name": "adam", "lr": 0.1}),
    "meta_lr": replace(SEARCHED, search=replace(SEARCHED.search, meta_lr=(1e-3, 1e-2))),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_recipe_does_not_replace_what_is_made_by_that_name(tmp_path, what):
    follow(tmp_path, SEARCHED)
    shutil.rmtree(tmp_path / "cache")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for command in (train.train_recipe, train.search_recipe):
        with pytest.raises(ValueError, match=rf"tiny\.\w+ was made with other settings: {what} .* another name"):
            command(OTHER[what], tmp_path, device="cpu")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    follow(tmp_path / "elsewhere", replace(OTHER[what], start=None, imitation=None))


def test_what_comes_with_the_kit_was_made_by_its_recipe_and_a_damaged_file_is_made_again(tmp_path):
    for recipe in (recipe for file in sorted(RECIPES.glob("*.toml")) for recipe in read_recipes(file)):
        train._check_place(recipe, HOME)
    path = follow(tmp_path)
    whole = weights(path)
    path.write_bytes(path.read_bytes()[:-9])
    assert weights(follow(tmp_path)) == whole


def test_what_it_starts_from_is_asked_for_if_nothing_makes_it(tmp_path):
    with pytest.raises(
        ValueError, match=r"starts from .*good.safetensors, which .* Make it first, with the same --data"
    ):
        follow(tmp_path, replace(RECIPE, start="good"))


def test_a_storage_without_a_search_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'tiny' has no .search. section, which --storage is for"):
        train.train_recipe(RECIPE, tmp_path, storage="trials.db")


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "search.db"])
def test_unfinished_work_that_is_damaged_says_how_to_begin_again(tmp_path, name):
    follow(tmp_path, SEARCHED)
    file = tmp_path / "cache" / "runs" / "tiny" / name
    file.write_bytes(b"junk" * 1000)
    with pytest.raises(ValueError, match=rf"{name}: .*[dD]elete (it|the file)"):
        follow(tmp_path, SEARCHED)
    file.unlink()
    follow(tmp_path, SEARCHED)


def test_what_was_interrupted_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    """Two trials of one epoch are episodes 0 to 3, the training is 4 to 7, with a checkpoint after each epoch."""
    calls, original = itertools.count(), MetaTrainer._episode

    def interrupted(*arguments):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "_episode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            follow(tmp_path / "one", SEARCHED)
    assert not (tmp_path / "one" / "pretrained").exists()
    assert (tmp_path / "one" / "cache" / "runs" / "tiny" / "checkpoint.safetensors").exists(), "where others have it"
    one, other = (follow(tmp_path / data, SEARCHED) for data in ("one", "other"))
    assert weights(one) == weights(other)
    assert zoo.card(one)["training"] == zoo.card(other)["training"]
