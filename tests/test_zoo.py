"""Pretrained optimizers: those that come with the kit, saving and loading."""

import json
import math

import numpy as np
import pytest
import torch

import l2l_kit as l2l
from l2l_kit import optimizers, paths, problems, storage, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.optimizers import LogSign, LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.training import MetaTraining, meta_train


def make_optimizer(**arguments):
    return LSTMRule(**{"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.1, "seed": 5, **arguments})


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
        """In its header, and the same one beside it."""
        card = zoo.card(name)
        beside = (paths.PRETRAINED / f"{name}.json").read_text(encoding="utf-8")
        beside = json.loads(beside, parse_constant=pytest.fail)
        assert beside == card
        assert card.keys() >= {"optimizer", "problem", "training", "trained", "versions"}
        assert card["versions"].keys() == {"l2l_kit", "torch", "python"}
        assert optimizers.make(card["optimizer"]).config() == zoo.load(name).config()
        assert json.loads(json.dumps(problems.make(card["problem"]).config())) == card["problem"]
        training, trained = MetaTraining(**card["training"]), card["trained"]
        epochs = trained["episodes"] / training.episodes_per_epoch
        assert trained["stopped"] == "finished"
        assert epochs == training.epochs or epochs - trained["best_epoch"] >= training.patience
        assert trained["meta_updates"] == trained["episodes"] * len(training.windows)
        assert ("imitation" not in card) <= trained["best_epoch"] <= epochs
        assert math.isfinite(trained["validation_loss"])

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
        if name.startswith("mnist-none"):  # cannot read a network's gradients: lesson 03 shows that it learns nothing
            assert after == pytest.approx(math.log(10), abs=0.1)
        else:
            assert after < before


class TestSaveAndLoad:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("file", ["mine.safetensors", "deep/v1.5"])
    def test_what_was_saved_is_loaded_by_the_same_path(self, tmp_path, file, dtype):
        """In its own precision, with and without the suffix, which `save` adds where it is missing."""
        optimizer = make_optimizer().to(dtype)
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

    def test_a_rule_of_ones_own_is_not_saved_since_it_would_not_be_loaded(self, tmp_path):
        class Clipped(l2l.LSTMRule):
            def forward(self, gradients, state):
                updates, state = super().forward(gradients, state)
                return updates.tanh(), state

        class Mine(Clipped):
            kind = "mine"

        class Bounded(LogSign):  # which has the name of its parent
            def __call__(self, gradients):
                return super().__call__(gradients).clamp(-0.5, 0.5)

        for rule in (Clipped(4, 1), Mine(4, 1), l2l.LSTMRule(4, 1, preprocessing=Bounded())):
            with pytest.raises(ValueError, match=f"load could not make this {type(rule).__name__} again"):
                zoo.save(rule, tmp_path / "mine")
        assert not list(tmp_path.iterdir())

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
        for name in ("mnist", "quadratics"):
            zoo.save(make_optimizer(), tmp_path / name)
        assert zoo.names() == ["mnist", "quadratics"]
        assert_same(zoo.load("mnist"), make_optimizer())
        for name, near in (("quadratic", "quadratics"), ("MNIST", "mnist")):
            with pytest.raises(UnknownNameError, match=f"pretrained optimizer '{name}'. Did you mean '{near}'"):
                zoo.load(name)

    def test_the_card_tells_of_the_training(self, tmp_path):
        optimizer = make_optimizer()
        settings = {"horizon": 4, "unroll": 2, "epochs": 2, "episodes_per_epoch": 2, "batch_size": 3}
        history = meta_train(optimizer, Quadratics(dim=2), MetaTraining(**settings), device="cpu", progress=False)
        path = zoo.save(optimizer, tmp_path / "mine", history)
        card = zoo.card(path)
        assert card["problem"] == {"name": "quadratics", "dim": 2}
        assert MetaTraining(**card["training"]) == MetaTraining(**settings)
        assert card["trained"]["validation_loss"] == history.best.validation_loss
        assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == card

    def test_seeds_may_be_numpys(self, tmp_path):
        rule, seed = make_optimizer(seed=np.int64(5)), np.int64(3)
        assert rule.fingerprint() == make_optimizer().fingerprint()
        settings = MetaTraining(horizon=2, unroll=2, epochs=1, episodes_per_epoch=1, validation_tasks=1, seed=seed)
        history = meta_train(
            rule, Quadratics(dim=2), settings, progress=False, checkpoint=tmp_path / "run", device="cpu"
        )
        assert zoo.card(zoo.save(rule, tmp_path / "mine", history))["training"]["seed"] == 3

    def test_a_checkpoint_is_not_taken_for_a_saved_optimizer(self, tmp_path):
        settings = MetaTraining(horizon=2, unroll=2, epochs=1, episodes_per_epoch=1, batch_size=2)
        path = tmp_path / "run.safetensors"
        meta_train(make_optimizer(), Quadratics(2), settings, checkpoint=path, device="cpu", progress=False)
        for use in (zoo.load, zoo.card):
            with pytest.raises(WeightsFileError, match=r"run\.safetensors: a checkpoint of meta_train.*then save"):
                use(path)

    @pytest.mark.parametrize("key", ["optimizer", "problem", "version", "training"])
    def test_an_origin_does_not_replace_what_save_writes_itself(self, tmp_path, key):
        with pytest.raises(ValueError, match=f"save: origin cannot have '{key}'"):
            zoo.save(make_optimizer(), tmp_path / "mine", origin={key: 3, "place": "here"})
        assert not list(tmp_path.iterdir())
        assert zoo.card(zoo.save(make_optimizer(), tmp_path / "mine", origin={"place": "here"}))["place"] == "here"

    def test_what_is_no_rule_history_or_path_is_refused(self, tmp_path):
        for use, message in {
            lambda: zoo.save(l2l.baseline("adam", 0.1), tmp_path / "mine"): "save: optimizer must be .*got Baseline",
            lambda: zoo.save(make_optimizer(), tmp_path / "mine", "hist"): "save: history must be .*, got 'hist'",
            lambda: zoo.load(None): "expected the name of a pretrained optimizer, or a path, got None",
        }.items():
            with pytest.raises(TypeError, match=message):
                use()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("name", "value"), [("layers.1.weight", math.nan), ("output.bias", -math.inf)])
    def test_a_weight_that_is_not_finite_is_neither_saved_nor_loaded(self, tmp_path, name, value):
        optimizer, path = make_optimizer(), tmp_path / "mine.safetensors"
        with torch.no_grad():
            optimizer.get_parameter(name).view(-1)[0] = value
        with pytest.raises(WeightsFileError, match=f"{name} is not finite"):
            zoo.save(optimizer, path)
        assert list(tmp_path.iterdir()) == []
        storage.write_tensors(path, optimizer.state_dict(), {"optimizer": optimizer.config()}, zoo.FORMAT_VERSION)
        with pytest.raises(WeightsFileError, match=rf"mine\.safetensors: {name} holds NaN, infinity"):
            zoo.load(path)

    @pytest.mark.parametrize(
        ("about", "version", "message"),
        [
            ({}, 1, "optimizer"),
            ({"optimizer": {"kind": "lsmt"}}, 1, "Did you mean 'lstm'"),
            ({"optimizer": {"hiden_size": 4}}, 1, "hiden_size"),
            ({"optimizer": None}, 1, "cannot be used"),
            ({"optimizer": {"hidden_size": 5}}, 1, r"output\.weight \(expected \(1, 5\), found \(1, 4\)\)"),
            ({"optimizer": {"hidden_size": 4}}, 2, "Update l2l_kit"),
        ],
        ids=str,
    )
    def test_a_description_that_cannot_be_used_is_refused(self, tmp_path, about, version, message):
        path = tmp_path / "mine.safetensors"
        storage.write_tensors(path, make_optimizer(preprocessing="none").state_dict(), about, version)
        with pytest.raises(WeightsFileError, match=message):
            zoo.load(path)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_refused(self, tmp_path):
        path = zoo.save(make_optimizer(), tmp_path / "mine")
        with pytest.raises(ValueError, match="torch sees no GPU"):
            zoo.load(path, device="cuda")
