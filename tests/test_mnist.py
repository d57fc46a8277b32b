"""The MNIST problem against plain torch networks, one at a time."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from l2l_kit import data
from l2l_kit.data import sources
from l2l_kit.errors import DataError
from l2l_kit.problems import MNIST, MNISTTasks
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, ravel

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}
DIGITS = data.load("mnist", "embedded")
LABELS = {
    split: {image.numpy().tobytes(): int(label) for image, label in zip(*DIGITS.split(split), strict=True)}
    for split in ("train", "test")
}


def mnist(**fields):
    return MNIST(**{"hidden": (5,), "batch_size": 6, "source": "embedded", **fields})


def sample(problem, n=3, seed=0):
    return problem.sample(n, generator(seed, "test"))


@pytest.fixture
def seen(monkeypatch):
    """The minibatches that networks are shown, one entry for each call: bytes of shape `(n, batch, 784)`."""
    shown = []

    def spy(self, params, images, original=MNISTTasks.logits):
        shown.append(images)
        return original(self, params, images)

    monkeypatch.setattr(MNISTTasks, "logits", spy)
    return shown


def minibatch(tasks, seen, step):
    tasks.losses(tasks.initial_params, step)
    return seen[-1]


def labels_of(images, split="train"):
    """Classes of images that are known by their pixels alone; a KeyError if one is not of that split."""
    return torch.tensor([LABELS[split][image.numpy().tobytes()] for image in images])


def network(problem, params, one):
    """One of the optimizees as a plain torch network, in double precision."""
    widths = (784, *problem.hidden, 10)
    layers = []
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs, dtype=torch.float64)
        linear.weight.data = params[f"weight{layer}"][one].T.clone()
        linear.bias.data = params[f"bias{layer}"][one].clone()
        layers += [linear, ACTIVATIONS[problem.activation]()]
    return nn.Sequential(*layers[:-1])


def double(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (5,), (4, 3), (3, 4, 2, 3)], ids=str)
class TestAgainstPlainNetworks:
    def test_losses_and_gradients(self, hidden, activation, seen):
        # A scale that saturates no layer and lets every one matter.
        problem = mnist(hidden=hidden, activation=activation, init_scale=0.3)
        tasks = sample(problem)
        params = double(tasks.initial_params)
        layout = Layout.of(params)
        losses, gradients = tasks.losses_and_gradients(ravel(params), layout, 7)
        (images,) = seen
        assert images.shape == (3, 6, 784)
        for one in range(3):
            reference = network(problem, params, one)
            loss = functional.cross_entropy(reference(images[one].double() / 255), labels_of(images[one]))
            loss.backward()
            torch.testing.assert_close(losses[one], loss.detach(), rtol=1e-12, atol=0)
            for layer, linear in enumerate(reference[::2]):
                mine = {name: tensor[one] for name, tensor in layout.unravel(gradients).items()}
                torch.testing.assert_close(mine[f"weight{layer}"], linear.weight.grad.T, rtol=1e-10, atol=1e-14)
                torch.testing.assert_close(mine[f"bias{layer}"], linear.bias.grad, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_test_is_on_all_test_digits(self, hidden, activation, split):
        problem = mnist(hidden=hidden, activation=activation, split=split, init_scale=0.3)
        tasks = sample(problem)
        params = double(tasks.initial_params)
        losses, accuracies = tasks.test(params)
        images, labels = DIGITS.x_test.flatten(1).double() / 255, DIGITS.y_test
        for one in range(3):
            with torch.no_grad():
                logits = network(problem, params, one)(images)
            torch.testing.assert_close(losses[one], functional.cross_entropy(logits, labels), rtol=1e-12, atol=0)
            right = sum(int(guess) == int(label) for guess, label in zip(logits.argmax(1), labels, strict=True))
            assert accuracies[one].item() == pytest.approx(right / 1000)


class TestDraws:
    def test_minibatches_depend_on_the_step_alone(self, seen):
        tasks = sample(mnist())
        first = [minibatch(tasks, seen, step) for step in range(5)]
        tasks.losses({name: tensor + 1 for name, tensor in tasks.initial_params.items()}, 4)
        again = [seen[-1], *(minibatch(tasks, seen, step) for step in reversed(range(4)))][::-1]
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        assert len({batch.numpy().tobytes() for batch in first}) == 5

    def test_every_optimizee_has_minibatches_and_a_start_of_its_own(self, seen):
        tasks = sample(mnist(), n=4)
        batch = minibatch(tasks, seen, 0)
        for tensor in (batch, *tasks.initial_params.values()):
            assert len({one.numpy().tobytes() for one in tensor}) == 4

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_minibatches_come_from_all_of_their_split_and_from_it_alone(self, split, seen):
        batch = minibatch(sample(mnist(split=split, batch_size=1000)), seen, 0).flatten(0, 1)
        counts = Counter(labels_of(batch, split).tolist())  # a KeyError if one is of the other split
        assert min(counts.values()) > 200  # of the 300 that each digit has on average
        # Drawn with replacement, so that the share of different ones is about 1 - 1/e for as many draws as digits.
        size, drawn = len(LABELS[split]), len(batch)
        assert len(batch.unique(dim=0)) == pytest.approx(size * (1 - (1 - 1 / size) ** drawn), rel=0.03)

    @pytest.mark.parametrize("scale", [0.001, 0.1, 2])
    def test_the_start_is_gaussian_with_standard_deviation_init_scale(self, scale):
        start = sample(mnist(hidden=(20, 30), init_scale=scale), n=50).initial_params
        assert set(start) == {f"{kind}{layer}" for kind in ("weight", "bias") for layer in range(3)}
        for tensor in start.values():
            assert tensor.std() == pytest.approx(scale, rel=0.1)
            assert abs(tensor.mean()) < 0.2 * scale
        everything = torch.cat([tensor.flatten() for tensor in start.values()]) / scale
        assert everything.std() == pytest.approx(1, abs=0.005)
        assert (everything.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.005)

    def test_the_scale_changes_nothing_but_the_scale(self):
        small, large = (sample(mnist(init_scale=scale)) for scale in (0.25, 0.5))
        assert small.order == large.order
        for name, tensor in small.initial_params.items():
            assert torch.equal(2 * tensor, large.initial_params[name])

    def test_between_bounds_every_network_has_a_scale_of_its_own(self):
        start = sample(mnist(hidden=(20, 30), init_scale=(0.01, 1)), n=300).initial_params
        scales = start["weight0"].flatten(1).std(dim=1)
        for tensor in start.values():  # one scale for the whole network
            assert torch.allclose(tensor.flatten(1).square().mean(dim=1).sqrt() / scales, torch.ones(300), atol=0.8)
        position = scales.log10().sort().values / 2 + 1  # between 0 for the low bound and 1 for the high one
        assert torch.allclose(position, torch.linspace(0, 1, 300), atol=0.1)


def test_says_which_digits_auto_means(monkeypatch, tmp_path):
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sources, "_unreachable", lambda url: "offline")
    problem = MNIST(source="auto")
    assert problem.config()["source"] == "embedded"
    assert problem.images.source == DIGITS.source
    assert problem == MNIST(source="embedded")
    full = MNIST(source="full")  # a recipe can be read where its data are not
    with pytest.raises(DataError, match="offline"):
        full.sample(1, torch.Generator())


def test_defaults_are_those_of_the_paper():
    problem = MNIST(source="embedded")
    assert (problem.hidden, problem.activation, problem.batch_size, problem.split) == ((20,), "sigmoid", 128, "train")
