"""Training the kit's own network for features; and the one that it ships."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from l2l_kit import cli, data, paths
from l2l_kit.data.features import SMALL, FeatureNetwork
from l2l_kit.data.vgg import SMALL as SHIPPED
from l2l_kit.evaluation import read_result
from l2l_kit.making import features
from l2l_kit.randomness import generator
from l2l_kit.storage import read_tensors

TINY = ((4, 4), (6,))


@pytest.fixture(scope="module")
def images():
    return data.load("cifar10", "embedded")


@pytest.fixture(scope="module")
def trained(images):
    return features.train_features(images, TINY, 2)


class TestTraining:
    def test_it_learns(self, trained):
        _, table = trained
        assert table["epoch"].tolist() == [1, 2]
        assert table["training_loss"].is_monotonic_decreasing
        assert table["test_accuracy"].iloc[-1] > 0.2  # of ten classes

    def test_the_same_seed_the_same_bits(self, images, trained):
        weights, table = features.train_features(images, TINY, 2)
        assert table.equals(trained[1])
        assert all(torch.equal(weight, trained[0][name]) for name, weight in weights.items())

    def test_folding_batch_normalisation_changes_nothing(self):
        classifier = features._classifier(TINY, 10, generator(0, "test"))
        pixels = torch.randn(64, 3, 16, 16, generator=generator(0, "pixels"))
        for _ in range(20):
            classifier(3 * pixels + 1)  # moves the running means and variances
        for norm in (layer for layer in classifier if isinstance(layer, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 2, generator=generator(0, "scale"))
            nn.init.uniform_(norm.bias, -1, 1, generator=generator(0, "offset"))
        network = FeatureNetwork(TINY)
        folded = features._folded(classifier, network)
        assert {weight.dtype for weight in folded.values()} == {torch.float16}
        network.load_state_dict(folded)
        wanted = classifier.eval()[:10](pixels)  # all but the head
        torch.testing.assert_close(network(pixels, ["conv2_1"])["conv2_1"], wanted, rtol=0.02, atol=0.02)

    def test_the_command_writes_weights_and_how_good_they_are(self, images, trained, monkeypatch, tmp_path):
        monkeypatch.setattr(features, "train_features", lambda *_: trained)
        monkeypatch.setattr(features.data, "load", lambda *_: images)
        result = CliRunner().invoke(cli.app, ["train-features", "--epochs", "2", "--data", str(tmp_path)])
        assert result.exit_code == 0, result.output
        weights, about = read_tensors(tmp_path / "networks" / "small.safetensors", 1)
        assert all(torch.equal(weight, trained[0][name]) for name, weight in weights.items())
        assert about["command"] == "l2l train-features --epochs 2 --seed 0"
        assert about["trained_on"].startswith("photo patches")
        table = read_result("training/small-network", tmp_path / "results")
        assert table["test_accuracy"].tolist() == pytest.approx(trained[1]["test_accuracy"].tolist(), rel=1e-5)


class TestShipped:
    def test_is_small_and_finite(self):
        assert SHIPPED.stat().st_size < 2_000_000
        found = data.feature_weights("embedded")
        assert found.title == "the kit's own small network"
        assert all(weight.isfinite().all() for weight in found.weights.values())
        FeatureNetwork.of(SMALL, 1.0, found.weights)

    def test_its_record_says_how_it_was_made(self):
        about = read_tensors(SHIPPED, 1)[1]
        assert about == json.loads((paths.RESULTS / "training" / "small-network.json").read_text(encoding="utf-8"))
        assert about["trained_on"].startswith("CIFAR-10")
        assert read_result("training/small-network")["test_accuracy"].iloc[-1] > 0.6
