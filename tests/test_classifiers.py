"""MNIST and CIFAR against plain torch networks, one at a time; what they draw. On the images that are everywhere."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional

from l2l_kit import data, problems
from l2l_kit.data import sources
from l2l_kit.errors import DataError
from l2l_kit.optimizers import GroupedRule
from l2l_kit.problems import CIFAR, MNIST, CIFARTasks, ClassifierTasks, MNISTTasks
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, ravel

DOUBLE = {"dtype": torch.float64}


@cache
def labels_of(name, split):
    """The label of each image, by its pixels."""
    images, labels = data.load(name, "embedded").split(split)
    return {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def mnist(**fields):
    return MNIST(**{"hidden": (5,), "batch_size": 4, "source": "embedded", **fields})


def cifar(**fields):
    return CIFAR(**{"batch_size": 4, "source": "embedded", **fields})


def sample(problem, n=3, seed=0):
    return problem.sample(n, generator(seed, "test"))


@pytest.fixture
def seen(monkeypatch):
    """The images that networks are shown, one entry for each network and minibatch: bytes."""
    shown = []
    for kind in (MNISTTasks, CIFARTasks):

        def spy(self, params, images, original=kind.logits):
            shown.extend(images)
            return original(self, params, images)

        monkeypatch.setattr(kind, "logits", spy)
    return shown


def classes(problem, images, split="train"):
    """Of images that are known by their pixels alone; a KeyError if one is not of that split."""
    known = labels_of(problem.data_set, split)
    labels = problem.labels if isinstance(problem, CIFAR) else tuple(range(10))
    return torch.tensor([labels.index(known[image.numpy().tobytes()]) for image in images])


def network(problem, params, images):
    """Outputs of one network, whose parameters have no axis of networks, on images of its own."""
    signal = images.double() / 255
    if isinstance(problem, MNIST):
        signal = signal.flatten(1)
        for layer in range(len(problem.hidden) + 1):
            signal = signal @ params[f"weight{layer}"] + params[f"bias{layer}"]
            signal = getattr(torch, problem.activation)(signal) if layer < len(problem.hidden) else signal
        return signal

    def normalised(signal, offset):
        return functional.batch_norm(signal, None, None, bias=offset, training=True)

    for layer in range(3):
        signal = functional.conv2d(signal, params[f"conv.weight{layer}"], padding=2)
        signal = functional.max_pool2d(normalised(signal, params[f"fc.offset{layer}"]).relu(), 2)
    signal = normalised(signal.flatten(1) @ params["fc.weight0"], params["fc.offset3"]).relu()
    return signal @ params["fc.weight1"] + params["fc.bias"]


def moved(tasks):
    """Parameters in double precision away from their start, so that everything matters, normalisation too."""
    draws = generator(0, "moved")
    return {
        name: tensor.double() + 0.1 * torch.randn(tensor.shape, generator=draws, **DOUBLE)
        for name, tensor in tasks.initial_params.items()
    }


PROBLEMS = [
    *(mnist(hidden=hidden, activation="relu") for hidden in ((), (4, 3))),
    *(mnist(activation=activation, split="test") for activation in ("sigmoid", "tanh")),
    *(cifar(labels=labels) for labels in (tuple(range(10)), (7, 2))),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=repr)


@pytest.fixture(params=[0, 8, 2**15], ids=["one by one", "two of three", "together"])
def at_once(request, monkeypatch):
    """How many images of four for each network are looked at: as on a CPU, and as on a GPU."""
    for kind in (ClassifierTasks, CIFARTasks):
        monkeypatch.setattr(kind, "images_at_once", request.param)


@pytest.mark.usefixtures("at_once")
@every_problem
def test_losses_and_gradients_are_those_of_plain_networks(problem, seen):
    tasks = sample(problem)
    params, layout = moved(tasks), Layout.of(tasks.initial_params)
    losses, gradients = tasks.losses_and_gradients(ravel(params), layout, 7)
    torch.testing.assert_close(losses, tasks.losses(params, 7), rtol=1e-12, atol=0)
    for one, images in enumerate(seen[:3]):
        mine = {name: tensor[one].requires_grad_() for name, tensor in moved(tasks).items()}
        logits = network(problem, mine, images)
        loss = functional.cross_entropy(logits, classes(problem, images, problem.split))
        torch.testing.assert_close(losses[one], loss.detach(), rtol=1e-12, atol=0)
        expected = torch.autograd.grad(loss, mine.values())
        for tensor, gradient in zip(layout.unravel(gradients).values(), expected, strict=True):
            torch.testing.assert_close(tensor[one], gradient, rtol=1e-9, atol=1e-12)


@every_problem
def test_test_is_on_test_images(problem, seen, monkeypatch):
    monkeypatch.setattr(CIFAR, "tested", 20)
    tasks = sample(problem)
    params = moved(tasks)
    losses, accuracies = tasks.test(params)
    for one, images in enumerate(seen):
        assert len(images) == (1000 if isinstance(problem, MNIST) else 20)
        expected = classes(problem, images, "test")
        if isinstance(problem, CIFAR):  # whose stand-in's test images come class by class, as in some packings
            assert len(expected.unique()) == len(problem.labels)
        logits = network(problem, {name: tensor[one] for name, tensor in params.items()}, images)
        torch.testing.assert_close(losses[one], functional.cross_entropy(logits, expected), rtol=1e-12, atol=0)
        assert accuracies[one].item() == pytest.approx((logits.argmax(1) == expected).double().mean().item())


def test_minibatches_depend_on_the_step_alone_and_each_network_has_its_own(seen):
    tasks = sample(mnist())
    for step in (0, 1, 2):
        tasks.losses(tasks.initial_params, step)
    for step in (2, 1, 0):
        tasks.losses({name: tensor + 1 for name, tensor in tasks.initial_params.items()}, step)
    first, again = torch.stack(seen[:9]).flatten(2), torch.stack(seen[9:]).view(3, 3, 4, -1).flip(0).flatten(0, 1)
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) == 9


@pytest.mark.parametrize("split", ["train", "test"])
def test_minibatches_come_from_all_of_their_split_and_labels_and_from_them_alone(split, seen):
    digits = mnist(split=split, batch_size=1000)
    sample(digits).losses(sample(digits).initial_params, 0)
    counts = Counter(classes(digits, torch.cat(seen), split).tolist())
    assert min(counts.values()) > 200  # of the 300 that each digit has on average
    # Drawn with replacement, so that the share of different ones is about 1 - 1/e for as many draws as digits.
    size = len(labels_of("mnist", split))
    assert len(torch.cat(seen).unique(dim=0)) == pytest.approx(size * (1 - (1 - 1 / size) ** 3000), rel=0.03)
    pictures = cifar(labels=(8, 0, 5), split=split, batch_size=50)
    sample(pictures, 1).losses(sample(pictures, 1).initial_params, 0)
    assert set(classes(pictures, seen[-1], split).tolist()) == {0, 1, 2}


def test_mnist_starts_from_a_gaussian_with_standard_deviation_init_scale():
    """Between bounds every network has a scale of its own, whose logarithm is uniform."""
    start = sample(mnist(hidden=(20, 30), init_scale=0.01), n=50).initial_params
    for tensor in start.values():
        assert tensor.std() == pytest.approx(0.01, rel=0.1)
    everything = torch.cat([tensor.flatten() for tensor in start.values()]) / 0.01
    assert abs(everything.mean()) < 0.01
    assert (everything.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.005)
    start = sample(mnist(hidden=(20, 30), init_scale=(0.01, 1)), n=300).initial_params
    scales = start["weight0"].flatten(1).std(dim=1)
    for tensor in start.values():
        assert torch.allclose(tensor.flatten(1).square().mean(dim=1).sqrt() / scales, torch.ones(300), atol=0.8)
    position = scales.log10().sort().values / 2 + 1  # between 0 for the low bound and 1 for the high one
    assert torch.allclose(position, torch.linspace(0, 1, 300), atol=0.1)


def test_a_mixture_gives_each_batch_an_architecture_and_validates_on_the_last():
    mixture = mnist(hidden=[[5], [4, 3], []])
    assert problems.make(json.loads(json.dumps(mixture.config()))) == mixture
    draws = torch.Generator().manual_seed(0)
    starts = [mixture.sample(2, draws).initial_params for _ in range(60)]
    found = Counter(tuple(start[f"bias{layer}"].shape[1] for layer in range(len(start) // 2)) for start in starts)
    assert found.keys() == {(5, 10), (4, 3, 10), (10,)}
    assert min(found.values()) > 8  # of the 20 that each has on average
    assert mixture.validation_problem() == mnist(hidden=())
    assert mnist().validation_problem() == mnist()


def test_cifar_starts_as_the_docstring_says_with_parameters_of_two_kinds():
    start = sample(cifar(init_scale=0.05)).initial_params
    weights = torch.cat([tensor.flatten() for name, tensor in start.items() if "offset" not in name])
    assert weights.std() == pytest.approx(0.05, rel=0.02)
    assert not any(tensor.any() for name, tensor in start.items() if "offset" in name)
    rule = GroupedRule({"conv": {"hidden_size": 2}, "fc": {"hidden_size": 2}})
    conv, fc = rule.parts(Layout.of(start))
    assert conv.sizes == [1200, 6400, 6400]  # the kernels, and nothing else
    assert sum(fc.sizes) == 3 * 16 + 32 + 8192 + 330


def test_says_which_images_auto_means_and_what_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sources, "_unreachable", lambda url: "offline")
    assert MNIST(source="auto") == MNIST(source="embedded")
    full = MNIST(source="full")  # a recipe can be read where its data are not
    with pytest.raises(DataError, match="offline"):
        full.sample(1, torch.Generator())
    assert cifar(labels=(1, 2)).title.startswith("2 classes of photo patches")
    assert replace(cifar(), source="full", labels=(0, 1, 2, 3, 4)).title == "CIFAR-5"
