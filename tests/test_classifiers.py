"""MNIST and CIFAR against plain torch networks, one at a time; what they draw. On the images that are everywhere."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from l2l_kit import data
from l2l_kit.data import sources
from l2l_kit.errors import DataError
from l2l_kit.optimizers import GroupedRule
from l2l_kit.problems import CIFAR, MNIST, CIFARTasks, ClassifierTasks, MNISTTasks
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, ravel

DOUBLE = {"dtype": torch.float64}
LABELS = {
    (name, split): {
        image.numpy().tobytes(): int(label)
        for image, label in zip(*data.load(name, "embedded").split(split), strict=True)
    }
    for name in ("mnist", "cifar10")
    for split in ("train", "test")
}


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
    known = LABELS[problem.data_set, split]
    labels = problem.labels if isinstance(problem, CIFAR) else tuple(range(10))
    return torch.tensor([labels.index(known[image.numpy().tobytes()]) for image in images])


def network(problem, params, one):
    """One of the networks as torch's own, in double precision; and its parameters by the names that the kit gives."""
    if isinstance(problem, MNIST):
        activation = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}[problem.activation]
        linear = [nn.Linear(*widths, **DOUBLE) for widths in pairwise((784, *problem.hidden, 10))]
        layers = [each for layer in linear for each in (layer, activation())][:-1]
        named = {f"{kind}{i}": getattr(layer, kind) for i, layer in enumerate(linear) for kind in ("weight", "bias")}
    else:
        convs = [nn.Conv2d(16 if i else 3, 16, 5, padding=2, bias=False, **DOUBLE) for i in range(3)]
        norms = [nn.BatchNorm2d(16, track_running_stats=False, **DOUBLE) for _ in convs]
        norms.append(nn.BatchNorm1d(32, track_running_stats=False, **DOUBLE))
        hidden, output = nn.Linear(256, 32, bias=False, **DOUBLE), nn.Linear(32, len(problem.labels), **DOUBLE)
        layers = [each for i in range(3) for each in (convs[i], norms[i], nn.ReLU(), nn.MaxPool2d(2))]
        layers += [nn.Flatten(), hidden, norms[3], nn.ReLU(), output]
        named = {f"conv.weight{i}": conv.weight for i, conv in enumerate(convs)}
        named |= {f"fc.offset{i}": norm.bias for i, norm in enumerate(norms)}
        named |= {"fc.weight0": hidden.weight, "fc.weight1": output.weight, "fc.bias": output.bias}
    assert named.keys() == params.keys()
    for name, parameter in named.items():
        parameter.data = turned(params[name][one]).clone()
    return nn.Sequential(*layers), named


def turned(value):
    """torch keeps matrices the other way round."""
    return value.T if value.dim() == 2 else value


def moved(tasks):
    """Parameters in double precision away from their start, so that everything matters, normalisation too."""
    draws = generator(0, "moved")
    return {
        name: tensor.double() + 0.1 * torch.randn(tensor.shape, generator=draws, **DOUBLE)
        for name, tensor in tasks.initial_params.items()
    }


PROBLEMS = [
    *(mnist(hidden=hidden, activation="relu") for hidden in ((), (4, 3), (3, 4, 2, 3))),
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
class TestAgainstPlainNetworks:
    @every_problem
    def test_losses_and_gradients(self, problem, seen):
        tasks = sample(problem)
        params, layout = moved(tasks), Layout.of(tasks.initial_params)
        losses, gradients = tasks.losses_and_gradients(ravel(params), layout, 7)
        torch.testing.assert_close(losses, tasks.losses(params, 7), rtol=1e-12, atol=0)
        for one, images in enumerate(seen[:3]):
            reference, named = network(problem, params, one)
            loss = functional.cross_entropy(reference(images.double() / 255), classes(problem, images, problem.split))
            loss.backward()
            torch.testing.assert_close(losses[one], loss.detach(), rtol=1e-12, atol=0)
            for name, tensor in layout.unravel(gradients).items():
                torch.testing.assert_close(tensor[one], turned(named[name].grad), rtol=1e-9, atol=1e-12)

    def test_hessian_products(self):
        """Against differences of gradients: so close by, no ReLU and no maximum goes over to another value."""
        tasks = sample(cifar(labels=(7, 2)))
        rows, layout = ravel(moved(tasks)), Layout.of(tasks.initial_params)
        vectors = torch.randn(rows.shape, generator=generator(0, "vectors"), **DOUBLE)
        ahead, behind = (tasks.losses_and_gradients(rows + h * vectors, layout, 7)[1] for h in (1e-8, -1e-8))
        products = tasks.hessian_products(rows, layout, 7, vectors)
        assert ((ahead - behind) / 2e-8 - products).norm() < 1e-4 * products.norm()


@every_problem
def test_test_is_on_test_images(problem, seen, monkeypatch):
    monkeypatch.setattr("l2l_kit.problems.cifar.TEST_IMAGES", 20)
    tasks = sample(problem)
    params = moved(tasks)
    losses, accuracies = tasks.test(params)
    for one, images in enumerate(seen):
        assert len(images) == (1000 if isinstance(problem, MNIST) else 20)
        expected = classes(problem, images, "test")
        with torch.no_grad():
            logits = network(problem, params, one)[0](images.double() / 255)
        torch.testing.assert_close(losses[one], functional.cross_entropy(logits, expected), rtol=1e-12, atol=0)
        assert accuracies[one].item() == pytest.approx((logits.argmax(1) == expected).double().mean().item())


def test_the_images_that_it_looks_at_are_of_all_classes(seen, monkeypatch):
    """The stand-in's test images come class by class, as in some packings of CIFAR-10."""
    monkeypatch.setattr("l2l_kit.problems.cifar.TEST_IMAGES", 50)
    tasks = sample(cifar(), n=1)
    tasks.test(tasks.initial_params)
    assert classes(cifar(), seen[0], "test").tolist() == [label for label in range(10) for _ in range(5)]


class TestDraws:
    def test_minibatches_depend_on_the_step_alone_and_each_network_has_its_own(self, seen):
        tasks = sample(mnist())
        for step in (0, 1, 2):
            tasks.losses(tasks.initial_params, step)
        for step in (2, 1, 0):
            tasks.losses({name: tensor + 1 for name, tensor in tasks.initial_params.items()}, step)
        first, again = torch.stack(seen[:9]), torch.stack(seen[9:]).view(3, 3, 4, -1).flip(0).flatten(0, 1)
        assert torch.equal(first, again)
        assert len(first.unique(dim=0)) == 9

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_minibatches_come_from_all_of_their_split_and_labels_and_from_them_alone(self, split, seen):
        digits = mnist(split=split, batch_size=1000)
        sample(digits).losses(sample(digits).initial_params, 0)
        counts = Counter(classes(digits, torch.cat(seen), split).tolist())
        assert min(counts.values()) > 200  # of the 300 that each digit has on average
        # Drawn with replacement, so that the share of different ones is about 1 - 1/e for as many draws as digits.
        size = len(LABELS["mnist", split])
        assert len(torch.cat(seen).unique(dim=0)) == pytest.approx(size * (1 - (1 - 1 / size) ** 3000), rel=0.03)
        pictures = cifar(labels=(8, 0, 5), split=split, batch_size=50)
        sample(pictures, 1).losses(sample(pictures, 1).initial_params, 0)
        assert set(classes(pictures, seen[-1], split).tolist()) == {0, 1, 2}

    @pytest.mark.parametrize("scale", [0.001, 0.1, 2])
    def test_mnist_starts_from_a_gaussian_with_standard_deviation_init_scale(self, scale):
        start = sample(mnist(hidden=(20, 30), init_scale=scale), n=50).initial_params
        assert set(start) == {f"{kind}{layer}" for kind in ("weight", "bias") for layer in range(3)}
        for tensor in start.values():
            assert tensor.std() == pytest.approx(scale, rel=0.1)
            assert abs(tensor.mean()) < 0.2 * scale
        everything = torch.cat([tensor.flatten() for tensor in start.values()]) / scale
        assert (everything.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.005)

    def test_between_bounds_every_network_has_a_scale_of_its_own(self):
        start = sample(mnist(hidden=(20, 30), init_scale=(0.01, 1)), n=300).initial_params
        scales = start["weight0"].flatten(1).std(dim=1)
        for tensor in start.values():  # one scale for the whole network
            assert torch.allclose(tensor.flatten(1).square().mean(dim=1).sqrt() / scales, torch.ones(300), atol=0.8)
        position = scales.log10().sort().values / 2 + 1  # between 0 for the low bound and 1 for the high one
        assert torch.allclose(position, torch.linspace(0, 1, 300), atol=0.1)

    def test_cifar_starts_as_the_docstring_says_with_parameters_of_two_kinds(self):
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
    problem = MNIST(source="auto")
    assert problem.config()["source"] == "embedded"
    assert problem == MNIST(source="embedded")
    full = MNIST(source="full")  # a recipe can be read where its data are not
    with pytest.raises(DataError, match="offline"):
        full.sample(1, torch.Generator())
    assert cifar(labels=(1, 2)).title.startswith("2 classes of photo patches")
    assert replace(cifar(), source="full", labels=(0, 1, 2, 3, 4)).title == "CIFAR-5"
