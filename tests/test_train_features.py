"""Training the kit's own network for features; and the one that it ships."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from l2l_kit import data, paths
from l2l_kit.data.vgg import SMALL as SHIPPED
from l2l_kit.evaluation import read_result
from l2l_kit.problems.features import SMALL, FeatureNetwork
from l2l_kit.randomness import generator
from l2l_kit.storage import read_tensors

TINY = ((4, 4), (6,))
SCRIPT = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "data" / "networks" / "train_small.py")))


def test_it_learns_and_the_same_seed_gives_the_same_bits():
    (weights, table), (again, _) = (SCRIPT.train(data.load("cifar10", "embedded"), TINY, 2) for _ in range(2))
    assert table["training_loss"].is_monotonic_decreasing
    assert table["test_accuracy"].iloc[-1] > 0.2  # of ten classes
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())


def test_folding_batch_normalisation_changes_nothing():
    classifier = SCRIPT.make_classifier(TINY, 10, generator(0, "test"))
    pixels = torch.randn(64, 3, 16, 16, generator=generator(0, "pixels"))
    for _ in range(20):
        classifier(3 * pixels + 1)  # moves the running means and variances
    for norm in (layer for layer in classifier if isinstance(layer, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2, generator=generator(0, "scale"))
        nn.init.uniform_(norm.bias, -1, 1, generator=generator(0, "offset"))
    network, folded = FeatureNetwork(TINY), SCRIPT.fold(classifier, TINY)
    assert {weight.dtype for weight in folded.values()} == {torch.float16}
    network.load_state_dict(folded)
    wanted = classifier.eval()[:10](pixels)  # all but the head
    torch.testing.assert_close(network(pixels, ["conv2_1"])["conv2_1"], wanted, rtol=0.02, atol=0.02)


def test_the_shipped_one_is_small_and_finite_and_its_record_says_how_it_was_made():
    assert SHIPPED.stat().st_size < 2_000_000
    found = data.feature_weights("embedded")
    assert found.title == "the kit's own small network"
    assert all(weight.isfinite().all() for weight in found.weights.values())
    FeatureNetwork.of(SMALL, 1.0, found.weights)
    about = read_tensors(SHIPPED, 1)[1]
    assert about == json.loads((paths.RESULTS / "training" / "small-network.json").read_text(encoding="utf-8"))
    assert about["trained_on"].startswith("CIFAR-10")
    assert read_result("training/small-network")["test_accuracy"].iloc[-1] > 0.6
