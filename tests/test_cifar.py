"""The CIFAR problem against plain torch networks, one at a time, on the photo patches that are everywhere."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from l2l_kit import data
from l2l_kit.optimizers import GroupedRule
from l2l_kit.problems import CIFAR, CIFARTasks
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, ravel
from l2l_kit.training import AutogradEstimator, SecondOrderEstimator, rollout

PATCHES = data.load("cifar10", "embedded")


def cifar(**fields):
    return CIFAR(**{"batch_size": 4, "source": "embedded", **fields})


def sample(problem, n=2, seed=0):
    return problem.sample(n, generator(seed, "test"))


@pytest.fixture
def seen(monkeypatch):
    """The images that networks are shown, one entry for each network: bytes of shape `(images, 3, 32, 32)`."""
    shown = []

    def spy(self, params, images, original=CIFARTasks.logits):
        shown.extend(images)
        return original(self, params, images)

    monkeypatch.setattr(CIFARTasks, "logits", spy)
    return shown


def label_of(image, split="train"):
    """The class of an image that is known by its pixels alone."""
    images, labels = PATCHES.split(split)
    (place,) = (images == image).flatten(1).all(dim=1).nonzero()[:, 0].tolist()
    return int(labels[place])


def moved(tasks, seed=0):
    """Parameters in double precision away from their start, so that everything matters, normalisation too."""
    draws = torch.Generator().manual_seed(seed)
    return {
        name: tensor.double() + 0.1 * torch.randn(tensor.shape, generator=draws, dtype=torch.float64)
        for name, tensor in tasks.initial_params.items()
    }


def network(params, one):
    """One of the optimizees as a plain torch network; and its parameters by the names that the kit gives them."""
    named, layers = {}, []

    def normalised(norm, index):
        norm.weight.requires_grad_(False)
        named[f"fc.offset{index}"] = norm.bias
        return [norm, nn.ReLU()]

    kind = {"track_running_stats": False, "dtype": torch.float64}
    for index in range(3):
        conv = nn.Conv2d(16 if index else 3, 16, 5, padding=2, bias=False, dtype=torch.float64)
        named[f"conv.weight{index}"] = conv.weight
        layers += [conv, *normalised(nn.BatchNorm2d(16, **kind), index), nn.MaxPool2d(2)]
    hidden = nn.Linear(256, 32, bias=False, dtype=torch.float64)
    output = nn.Linear(32, params["fc.bias"].shape[1], dtype=torch.float64)
    named |= {"fc.weight0": hidden.weight, "fc.weight1": output.weight, "fc.bias": output.bias}
    layers += [nn.Flatten(), hidden, *normalised(nn.BatchNorm1d(32, **kind), 3), output]
    assert named.keys() == params.keys()
    for name, parameter in named.items():
        value = params[name][one]
        parameter.data = (value.T if name.startswith("fc.weight") else value).clone()
    return nn.Sequential(*layers), named


@pytest.fixture(params=[0, 8, 2**15], ids=["one by one", "two of three", "together"])
def at_once(request, monkeypatch):
    """How many images of four for each network are looked at: as on a CPU, and as on a GPU."""
    monkeypatch.setattr(CIFARTasks, "images_at_once", request.param)


@pytest.mark.usefixtures("at_once")
class TestAgainstPlainNetworks:
    @pytest.mark.parametrize("labels", [tuple(range(10)), (7, 2)], ids=str)
    def test_losses_and_gradients(self, labels, seen):
        tasks = sample(cifar(labels=labels), n=3)
        params = moved(tasks)
        layout = Layout.of(params)
        losses, gradients = tasks.losses_and_gradients(ravel(params), layout, 7)
        assert torch.equal(losses, tasks.losses(params, 7))
        for one, images in enumerate(seen[:3]):
            reference, named = network(params, one)
            expected = torch.tensor([labels.index(label_of(image)) for image in images])
            loss = functional.cross_entropy(reference(images.double() / 255), expected)
            loss.backward()
            torch.testing.assert_close(losses[one], loss.detach(), rtol=1e-12, atol=0)
            for name, tensor in layout.unravel(gradients).items():
                gradient = named[name].grad
                gradient = gradient.T if name.startswith("fc.weight") else gradient
                torch.testing.assert_close(tensor[one], gradient, rtol=1e-9, atol=1e-12)

    def test_hessian_products(self):
        """Against differences of gradients: so close by, no ReLU and no maximum goes over to another value."""
        tasks = sample(cifar(labels=(7, 2)), n=3)
        rows, layout = ravel(moved(tasks)), Layout.of(tasks.initial_params)
        vectors = torch.randn(rows.shape, generator=generator(0, "vectors"), dtype=torch.float64)
        ahead, behind = (tasks.losses_and_gradients(rows + h * vectors, layout, 7)[1] for h in (1e-8, -1e-8))
        products = tasks.hessian_products(rows, layout, 7, vectors)
        assert ((ahead - behind) / 2e-8 - products).norm() < 1e-4 * products.norm()

    def test_meta_gradients_with_second_derivatives(self):
        tasks = sample(cifar(), n=3)
        tasks = replace(tasks, initial=moved(tasks))
        rule = GroupedRule({kind: {"hidden_size": 2, "output_scale": 0.1} for kind in ("conv", "fc")}).double()
        windows = []
        for unroller in (SecondOrderEstimator(rule), AutogradEstimator(rule, second_order=True)):
            unroller.reset(tasks)
            windows.append(unroller.unroll(2))
        found, expected = windows
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=0)
        for name, gradient in expected.meta_gradient.items():
            assert (found.meta_gradient[name] - gradient).norm() <= 1e-9 * gradient.norm()

    def test_test_is_on_test_images(self, seen, monkeypatch):
        monkeypatch.setattr("l2l_kit.problems.cifar.TEST_IMAGES", 20)
        tasks = sample(cifar(labels=(3, 1)), n=3)
        params = moved(tasks)
        losses, accuracies = tasks.test(params)
        for one, images in enumerate(seen):
            assert len(images) == 20
            expected = torch.tensor([(3, 1).index(label_of(image, "test")) for image in images])
            with torch.no_grad():
                logits = network(params, one)[0](images.double() / 255)
            torch.testing.assert_close(losses[one], functional.cross_entropy(logits, expected), rtol=1e-12, atol=0)
            assert accuracies[one].item() == pytest.approx((logits.argmax(1) == expected).double().mean().item())


def test_the_images_that_it_looks_at_are_of_all_classes(seen, monkeypatch):
    """The stand-in's test images come class by class, as in some packings of CIFAR-10."""
    monkeypatch.setattr("l2l_kit.problems.cifar.TEST_IMAGES", 50)
    tasks = sample(cifar(), n=1)
    tasks.test(tasks.initial_params)
    assert [label_of(image, "test") for image in seen[0]] == [label for label in range(10) for _ in range(5)]


class TestDraws:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_only_the_labels_asked_for_are_shown(self, split, seen):
        tasks = sample(cifar(labels=(8, 0, 5), split=split, batch_size=50), n=1)
        tasks.losses(tasks.initial_params, 0)
        assert {label_of(image, split) for image in seen[0]} == {8, 0, 5}

    def test_the_start_is_what_the_docstring_says(self):
        start = sample(cifar(init_scale=0.05), n=3).initial_params
        weights = torch.cat([tensor.flatten() for name, tensor in start.items() if "offset" not in name])
        assert weights.std() == pytest.approx(0.05, rel=0.02)
        assert not any(tensor.any() for name, tensor in start.items() if "offset" in name)
        assert sum(tensor[0].numel() for tensor in start.values()) == 1200 + 2 * 6400 + 3 * 16 + 32 + 8192 + 330

    def test_kinds_are_those_of_two_lstms(self):
        rule = GroupedRule({"conv": {"hidden_size": 2}, "fc": {"hidden_size": 2}})
        tasks = sample(cifar())
        conv, fc = rule.parts(Layout.of(tasks.initial_params))
        assert conv.sizes == [1200, 6400, 6400]  # the kernels, and nothing else
        assert sum(fc.sizes) == 3 * 16 + 32 + 8192 + 330
        assert rollout(rule, tasks, 1).isfinite().all()


def test_the_stand_in_is_never_called_cifar():
    problem = cifar(labels=(1, 2))
    assert "CIFAR" not in problem.title
    assert problem.title.startswith("2 classes of photo patches")
    assert replace(problem, source="full", labels=(0, 1, 2, 3, 4)).title == "CIFAR-5"
