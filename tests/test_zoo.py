"""Pretrained optimizers: those that come with the kit, saving, loading, and making one from its recipe."""

import itertools
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

import l2l_kit as l2l
from l2l_kit import optimizers, paths, problems, storage, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation import read_result
from l2l_kit.optimizers import LSTMOptimizer
from l2l_kit.problems import Quadratics
from l2l_kit.training import MetaTrainer, MetaTraining, Recipe, Search, meta_train, rollout, validation_batch

TRAINING = MetaTraining(horizon=4, unroll=2, epochs=2, episodes_per_epoch=2, batch_size=3, validation_tasks=5)


def make_optimizer(**arguments):
    return LSTMOptimizer(**{"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.1, "seed": 5, **arguments})


def assert_same(one, other):
    assert one.config() == other.config()
    for name, weight in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], weight)


@pytest.mark.parametrize("name", zoo.names())
class TestPretrained:
    def test_loads_with_finite_weights(self, name):
        optimizer = l2l.load(name)
        assert all(weight.isfinite().all() for weight in optimizer.state_dict().values())
        fresh = optimizers.make(optimizer.config())
        assert all(not torch.equal(weight, fresh.state_dict()[key]) for key, weight in optimizer.state_dict().items())

    def test_has_a_card_that_says_where_it_comes_from(self, name):
        card = zoo.card(name)
        assert card.keys() >= {"optimizer", "problem", "training", "trained", "versions"}
        assert card["versions"].keys() == {"l2l_kit", "torch", "python"}
        assert optimizers.make(card["optimizer"]).config() == zoo.load(name).config()
        assert json.loads(json.dumps(problems.make(card["problem"]).config())) == card["problem"]
        training, trained = MetaTraining(**card["training"]), card["trained"]
        if trained["stopped"] == "running":  # a snapshot of a training that goes on
            assert 0 < trained["episodes"] < training.episodes
        else:
            assert trained["stopped"] == "finished"
            assert trained["episodes"] == training.episodes
        assert trained["meta_updates"] == trained["episodes"] * len(training.windows)
        assert 0 < trained["best_epoch"] <= training.epochs
        assert math.isfinite(trained["validation_loss"])

    def test_its_card_beside_it_equals_the_one_in_its_header(self, name):
        beside = (paths.PRETRAINED / f"{name}.json").read_text(encoding="utf-8")
        card = json.loads(beside, parse_constant=pytest.fail)
        assert {**card, "problem": problems.with_current_names(card["problem"])} == zoo.card(name)

    def test_lowers_the_loss_of_its_problem(self, name):
        config = zoo.card(name)["problem"]
        if "source" in config:
            config["source"] = "embedded"  # the real ones may not be at hand
        if config["name"] == "neural_art":  # nor VGG-16 and paintings
            config |= {"network": "small", "style": "swirls", "size": 32}
        num_tasks = {"quadratics": 20, "mnist": 4, "cifar": 1, "neural_art": 1}[config["name"]]
        curves = l2l.compare(
            {"learned": l2l.load(name)}, problems.make(config), steps=20, num_tasks=num_tasks, device="cpu"
        )
        before, after = curves.statistic("learned", "median")[[0, -1]].tolist()
        if name.startswith("mnist-none"):  # cannot read a network's gradients: lesson 02 shows that it learns nothing
            assert after == pytest.approx(math.log(10), abs=0.1)
        else:
            assert after < before


class TestSaveAndLoad:
    @pytest.mark.parametrize("file", ["mine", "mine.safetensors", "v1.5", "deep/er/mine"])
    def test_what_was_saved_is_loaded_by_the_same_path(self, tmp_path, file):
        """With and without the suffix, which `save` adds where it is missing."""
        optimizer = make_optimizer()
        with torch.no_grad():
            optimizer.output.bias.fill_(0.25)
        path = zoo.save(optimizer, tmp_path / file)
        assert path.suffix == ".safetensors"
        assert path.with_suffix(".json").exists()
        for source in (path, str(path), tmp_path / file):
            assert_same(zoo.load(source), optimizer)

    def test_what_was_saved_under_a_mere_name_is_loaded_by_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        optimizer = make_optimizer(hidden_size=3)
        assert zoo.save(optimizer, "mine").resolve() == tmp_path / "mine.safetensors"
        assert_same(l2l.load("mine"), optimizer)
        assert zoo.card("mine")["optimizer"] == optimizer.config()
        assert l2l.LearnedOptimizer([torch.nn.Parameter(torch.ones(2))], "mine").defaults["lr"] == 1.0
        with pytest.raises(UnknownNameError, match="'min'"):
            l2l.load("min")

    def test_a_mere_name_of_a_pretrained_one_is_not_saved_under(self, tmp_path, monkeypatch):
        """It would be lost: `load` gives the pretrained one."""
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="'mnist' is the name of a pretrained optimizer"):
            zoo.save(make_optimizer(), "mnist")
        assert not list(tmp_path.iterdir())
        path = zoo.save(make_optimizer(), "mnist.safetensors")
        assert_same(l2l.load(path), make_optimizer())
        assert_same(l2l.load("mnist"), l2l.load(paths.PRETRAINED / "mnist"))

    def test_a_pretrained_one_comes_by_name(self, tmp_path, monkeypatch):
        monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
        for name in ("mnist", "cifar10", "quadratics"):
            zoo.save(make_optimizer(), tmp_path / name)
        assert zoo.names() == ["cifar10", "mnist", "quadratics"]
        assert_same(zoo.load("mnist"), make_optimizer())
        for name, near in (("mnits", "mnist"), ("quadratic", "quadratics"), ("MNIST", "mnist")):
            with pytest.raises(UnknownNameError, match=f"unknown pretrained optimizer '{name}'. Did you mean '{near}'"):
                zoo.load(name)
            with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
                zoo.card(name)

    def test_the_card_tells_of_the_training(self, tmp_path):
        optimizer = make_optimizer()
        history = meta_train(optimizer, Quadratics(dim=2), device="cpu", progress=False, **asdict(TRAINING))
        path = zoo.save(optimizer, tmp_path / "mine", history)
        card = zoo.card(path)
        assert card["problem"] == {"name": "quadratics", "dim": 2}
        assert MetaTraining(**card["training"]) == TRAINING
        assert card["trained"]["validation_loss"] == history.best.validation_loss
        assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == card

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["layers.1.weight", "output.bias"])
    def test_a_weight_that_is_not_finite_is_not_saved(self, tmp_path, name, value):
        optimizer = make_optimizer()
        with torch.no_grad():
            optimizer.get_parameter(name).view(-1)[0] = value
        with pytest.raises(WeightsFileError, match=f"{name} is not finite"):
            zoo.save(optimizer, tmp_path / "broken")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_weight_that_is_not_finite_is_not_loaded(self, tmp_path, value):
        path, weights = tmp_path / "mine.safetensors", make_optimizer().state_dict()
        weights["output.bias"] = torch.tensor([value])
        storage.write_tensors(path, weights, {"optimizer": make_optimizer().config()}, zoo.FORMAT_VERSION)
        with pytest.raises(WeightsFileError, match=r"mine\.safetensors: output\.bias holds NaN, infinity"):
            zoo.load(path)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_is_loaded_in_the_precision_in_which_it_was_saved(self, tmp_path, dtype):
        optimizer = make_optimizer().to(dtype)
        assert_same(zoo.load(zoo.save(optimizer, tmp_path / "mine")), optimizer)

    @pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
    def test_a_truncated_file_is_refused(self, tmp_path, part):
        path = zoo.save(make_optimizer(), tmp_path / "mine")
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        for read in (zoo.load, zoo.card):
            with pytest.raises(WeightsFileError, match=r"mine\.safetensors: not a whole safetensors file"):
                read(path)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(WeightsFileError, match=r"none\.safetensors: there is no such file"):
            zoo.load(tmp_path / "none.safetensors")

    def test_a_newer_version_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(zoo, "FORMAT_VERSION", zoo.FORMAT_VERSION + 1)
        path = zoo.save(make_optimizer(), tmp_path / "mine")
        monkeypatch.undo()
        with pytest.raises(WeightsFileError, match="Update l2l_kit"):
            zoo.load(path)

    def test_weights_of_another_shape_are_refused(self, tmp_path):
        path = tmp_path / "mine.safetensors"
        about = {"optimizer": make_optimizer(hidden_size=5).config()}
        storage.write_tensors(path, make_optimizer().state_dict(), about, zoo.FORMAT_VERSION)
        with pytest.raises(WeightsFileError, match=r"output\.weight \(expected \(1, 5\), found \(1, 4\)\)"):
            zoo.load(path)

    @pytest.mark.parametrize(
        ("about", "message"),
        [
            ({}, "optimizer"),
            ({"optimizer": {"kind": "lsmt"}}, "Did you mean 'lstm'"),
            ({"optimizer": {"hidden_size": -4}}, "hidden_size must be"),
            ({"optimizer": {"hiden_size": 4}}, "hiden_size"),
            ({"optimizer": {"preprocessing": {"name": "log"}}}, "unknown preprocessing 'log'"),
            ({"optimizer": None}, "cannot be used"),
        ],
        ids=str,
    )
    def test_a_description_that_cannot_be_used_is_refused(self, tmp_path, about, message):
        path = tmp_path / "mine.safetensors"
        storage.write_tensors(path, make_optimizer().state_dict(), about, zoo.FORMAT_VERSION)
        with pytest.raises(WeightsFileError, match=message):
            zoo.load(path)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_refused(self, tmp_path):
        path = zoo.save(make_optimizer(), tmp_path / "mine")
        with pytest.raises(ValueError, match="torch sees no GPU"):
            zoo.load(path, device="cuda")


class TestFollowRecipe:
    RECIPE = Recipe("tiny", {"name": "quadratics", "dim": 2}, {"hidden_size": 3}, TRAINING)

    def follow(self, data, recipe=RECIPE):
        return zoo.follow_recipe(recipe, data, device="cpu", progress=False)

    def test_makes_the_optimizer_its_card_and_its_history(self, tmp_path):
        path = self.follow(tmp_path)
        assert path == tmp_path / "pretrained" / "tiny.safetensors"
        card = zoo.card(path)
        assert card["problem"] == self.RECIPE.problem
        assert MetaTraining(**card["training"]) == TRAINING
        history = read_result("training/tiny", tmp_path / "results")
        assert list(history["epoch"]) == [0, 1, 2]
        assert history["validation_loss"].min() == pytest.approx(card["trained"]["validation_loss"], rel=1e-5)

    def test_trains_with_the_best_rate_of_the_search(self, tmp_path):
        recipe = replace(self.RECIPE, search=Search(trials=3, epochs=1, meta_lr=(1e-3, 1e-1)))
        path = self.follow(tmp_path, recipe)
        trials = read_result("search/tiny", tmp_path / "results")
        assert len(trials) == 3
        assert trials["validation_loss"].is_monotonic_increasing
        assert zoo.card(path)["training"]["meta_lr"] == pytest.approx(trials["meta_lr"][0], rel=1e-5)

    def test_goes_on_from_the_optimizer_that_it_starts_from(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(zoo, "find_recipe", lambda name: asked.append(name) or self.RECIPE)
        recipe = replace(self.RECIPE, name="second", start="tiny", training=replace(TRAINING, seed=1))
        path = self.follow(tmp_path, recipe)
        assert asked == ["tiny"]  # made first, since it was not there
        first = zoo.load(tmp_path / "pretrained" / "tiny")
        validation = validation_batch(recipe.make_problem(), recipe.training)
        before = rollout(first, validation, recipe.training.horizon)[:, -1].mean().item()
        history = read_result("training/second", tmp_path / "results")
        assert history["validation_loss"][0] == pytest.approx(before, rel=1e-5)
        assert zoo.card(path)["start"] == "tiny"
        self.follow(tmp_path, replace(recipe, name="third"))
        assert asked == ["tiny"]  # it is there now

    def test_refuses_to_start_from_another_shape(self, tmp_path):
        self.follow(tmp_path)
        recipe = replace(self.RECIPE, name="second", start="tiny", optimizer={"hidden_size": 4})
        with pytest.raises(WeightsFileError, match="'second', start 'tiny'"):
            self.follow(tmp_path, recipe)

    def test_what_is_finished_is_not_run_again(self, tmp_path, monkeypatch):
        recipe = replace(self.RECIPE, search=Search(trials=2, epochs=1, meta_lr=(1e-3, 1e-1)))
        first = zoo.load(self.follow(tmp_path, recipe))
        monkeypatch.setattr(MetaTrainer, "_episode", lambda *_: pytest.fail("it was run again"))
        assert_same(zoo.load(self.follow(tmp_path, recipe)), first)

    @pytest.mark.parametrize("interrupt_at", [1, 6])
    def test_what_was_interrupted_goes_on_with_the_same_bits(self, tmp_path, monkeypatch, interrupt_at):
        """Two trials of one epoch are episodes 0 to 3, the training is 4 to 7."""
        recipe = replace(self.RECIPE, search=Search(trials=2, epochs=1, meta_lr=(1e-3, 1e-1)))
        calls, original = itertools.count(), MetaTrainer._episode

        def interrupted(*arguments):
            if next(calls) == interrupt_at:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(MetaTrainer, "_episode", interrupted)
            with pytest.raises(KeyboardInterrupt):
                self.follow(tmp_path / "one", recipe)
        assert not (tmp_path / "one" / "pretrained").exists()
        one, other = (self.follow(tmp_path / data, recipe) for data in ("one", "other"))
        assert_same(zoo.load(one), zoo.load(other))
        assert zoo.card(one)["training"] == zoo.card(other)["training"]


def test_lives_in_the_checkout():
    """`paths` finds data/ beside the package, where the recipes are."""
    assert list(paths.RECIPES.glob("*.toml"))
    assert paths.RECIPES.parent == paths.PRETRAINED.parent == paths.RESULTS.parent == paths.DATA
