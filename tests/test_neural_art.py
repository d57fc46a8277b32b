"""Neural art against plain formulas: features, Gram matrices, the loss and its gradient; and what the problem draws."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from l2l_kit import data
from l2l_kit.data.features import SMALL, VGG16, FeatureNetwork
from l2l_kit.errors import DataError, WeightsFileError
from l2l_kit.problems import NeuralArt, NeuralArtTasks, neural_art
from l2l_kit.problems.neural_art import gram
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, ravel

TINY = ((2, 3), (4, 2), (3, 3), (5,))
LAYERS = {"conv3_1", *neural_art.STYLE_LAYERS}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny_weights():
    network = FeatureNetwork(TINY)
    return {name: draw(*weight.shape, seed=place) for place, (name, weight) in enumerate(network.state_dict().items())}


@pytest.fixture
def tiny():
    network = FeatureNetwork(TINY, scale=2.0).double()
    network.load_state_dict(tiny_weights())
    return network


def by_hand(pixels, blocks, weights, scale):
    """Features in all layers, as a plain loop over torchvision's places."""
    found, place, signal = {}, 0, pixels * scale
    for block, widths in enumerate(blocks, start=1):
        if block > 1:
            signal = functional.max_pool2d(signal, 2)
            place += 1
        for number, _ in enumerate(widths, start=1):
            kernel, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
            signal = functional.conv2d(signal, kernel, bias, padding=1).clamp(min=0)
            found[f"conv{block}_{number}"] = signal
            place += 2
    return found


class TestFeatures:
    def test_are_those_of_a_plain_loop(self, tiny):
        pixels = draw(2, 3, 16, 16, seed=9)
        wanted = by_hand(pixels, TINY, tiny_weights(), 2.0)
        found = tiny(pixels, wanted)
        assert found.keys() == wanted.keys()
        for layer, features in wanted.items():
            torch.testing.assert_close(found[layer], features)

    def test_names_and_shapes_are_those_of_torchvision(self):
        """The first convolutions of torchvision's vgg16().features, as its documentation prints them."""
        with torch.device("meta"):
            found = {name: tuple(weight.shape) for name, weight in FeatureNetwork(VGG16).state_dict().items()}
        places = (0, 2, 5, 7, 10, 12, 14, 17)
        assert list(found) == [f"features.{place}.{kind}" for place in places for kind in ("weight", "bias")]
        assert [found["features.5.weight"], found["features.17.weight"]] == [(128, 64, 3, 3), (512, 256, 3, 3)]

    def test_weights_may_be_those_of_a_deeper_network_and_of_no_other(self):
        network = FeatureNetwork.of(TINY[:3], 1.0, tiny_weights())
        assert list(network.state_dict())[-1] == "features.12.bias"
        assert not any(weight.requires_grad for weight in network.parameters())
        with pytest.raises(WeightsFileError, match=r"features\.0\.weight"):
            FeatureNetwork.of(SMALL, 1.0, tiny_weights())

    def test_gram_is_the_mean_product_of_channels(self):
        features = draw(2, 3, 4, 5)
        torch.testing.assert_close(gram(features), torch.einsum("naij,nbij->nab", features, features) / 20)


@pytest.fixture
def tasks(tiny):
    """Two tiny ones in double precision."""
    content = tiny(draw(2, 3, 16, 16, seed=1), LAYERS)
    style = tiny(draw(1, 3, 16, 16, seed=2), LAYERS)
    grams = tuple(gram(style[layer]) for layer in neural_art.STYLE_LAYERS)
    return NeuralArtTasks({"pixels": draw(2, 3, 16, 16)}, "conv3_1", content["conv3_1"], grams, tiny, (2.0, 3.0, 0.5))


def loss_by_hand(pixels, content, style):
    """One optimizee's loss, from pictures: features by the plain loop, sums by Python's."""
    features, wanted, painting = (by_hand(each[None], TINY, tiny_weights(), 2.0) for each in (pixels, content, style))
    a, b = features["conv3_1"].flatten(), wanted["conv3_1"].flatten()
    loss = 2.0 * ((a - b) ** 2).sum() / (b**2).sum()
    for layer in ("conv1_1", "conv2_1", "conv3_1", "conv4_1"):
        rows, theirs = features[layer][0].flatten(1), painting[layer][0].flatten(1)
        mine, other = (torch.einsum("ap,bp->ab", each, each) / each.shape[1] for each in (rows, theirs))
        loss = loss + 3.0 / 4 * ((mine - other) ** 2).sum() / (other**2).sum()
    across, down = pixels[:, :, 1:] - pixels[:, :, :-1], pixels[:, 1:] - pixels[:, :-1]
    return (16 / 64) ** 2 * (loss + 0.5 * ((across**2).mean() + (down**2).mean()))


class TestLoss:
    def test_is_that_of_the_formula(self, tasks):
        contents, style = draw(2, 3, 16, 16, seed=1), draw(1, 3, 16, 16, seed=2)[0]
        losses, terms = tasks.losses(tasks.initial_params, 0), tasks.terms(tasks.initial_params["pixels"])
        wanted = [loss_by_hand(tasks.initial_params["pixels"][n], contents[n], style) for n in range(2)]
        torch.testing.assert_close(losses, torch.stack(wanted))
        total = 2.0 * terms["content"] + 3.0 * terms["style"] + 0.5 * terms["total variation"]
        torch.testing.assert_close(losses, (16 / 64) ** 2 * total)

    def test_it_does_not_matter_how_many_are_computed_at_a_time(self, tasks, monkeypatch):
        layout, rows = Layout.of(tasks.initial_params), ravel(tasks.initial_params)
        together = tasks.losses_and_gradients(rows, layout, 0)
        monkeypatch.setattr(neural_art, "_AT_ONCE", 1)
        for one, other in zip(together, tasks.losses_and_gradients(rows, layout, 0), strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("scale", [1e-3, 1e3])
    def test_content_and_style_are_1_where_there_are_no_features_whatever_the_scale(self, tasks, scale):
        scaled = replace(tasks, content=scale * tasks.content, style=tuple(scale * style for style in tasks.style))
        blank = {layer: torch.zeros_like(found) for layer, found in scaled.network(draw(2, 3, 16, 16), LAYERS).items()}
        terms = replace(scaled, network=lambda pixels, layers: blank).terms(draw(2, 3, 16, 16))
        for term in ("content", "style"):
            torch.testing.assert_close(terms[term], torch.ones(2, dtype=torch.float64))


def art(**fields):
    return NeuralArt(**{"style": "mosaic", "size": 16, "network": "small", "source": "embedded", **fields})


class TestProblem:
    def test_starts_are_noise_and_contents_differ(self):
        found = art(init_scale=0.5).sample(8, generator(0, "test"))
        pixels = found.initial_params["pixels"]
        assert pixels.shape == (8, 3, 16, 16)
        assert pixels.std().item() == pytest.approx(0.5, rel=0.05)
        assert len(found.content.flatten(1).sum(dim=1).unique()) == 8

    def test_no_content_comes_twice_before_each_came_once(self, monkeypatch):
        seen = []
        monkeypatch.setattr(NeuralArt, "tasks", lambda self, contents, *_, **__: seen.append(contents))
        problem = art(split="test")
        there = problem.photographs.test
        problem.sample(2 * len(there) + 1, generator(0, "test"))
        means = [part.flatten(1).double().mean(dim=1) for part in (there, *seen[0].split(len(there))[:2])]
        assert all(torch.equal(each.sort().values, means[0].sort().values) for each in means)
        assert not torch.equal(means[1], means[2])

    def test_training_validates_on_photographs_set_apart(self):
        assert art(split="train").validation_problem() == art(split="validation")
        assert art(split="test").validation_problem() == art(split="test")

    def test_people_bring_their_own_content_and_style(self):
        content = torch.randint(256, (1, 3, 50, 40), generator=generator(0, "content"), dtype=torch.uint8)
        found = art(size=32).tasks(content, generator(0, "noise"), data.style("woodcut"))
        assert found.initial_params["pixels"].shape == (1, 3, 32, 32)
        named = art(size=32, style="woodcut").tasks(content, generator(0, "noise"))
        assert all(torch.equal(a, b) for a, b in zip(found.style, named.style, strict=True))
        assert torch.equal(neural_art.to_pictures(neural_art.to_pixels(content.float())), content)

    def test_auto_says_what_it_found(self, monkeypatch, tmp_path):
        monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
        monkeypatch.setattr("l2l_kit.data.sources._unreachable", lambda url: "offline")
        for name in ("_full", "_embedded"):
            getattr(data, name).cache_clear()
        found = NeuralArt()
        assert (found.network, found.style, found.source) == ("small", "swirls", "embedded")
        with pytest.raises(DataError, match="offline"):
            NeuralArt(network="vgg16").sample(1, generator(0, "test"))
        for name in ("_full", "_embedded"):
            getattr(data, name).cache_clear()


def test_vgg_tells_the_same_photograph_from_another():
    """Features of a photograph that was moved by two pixels are nearer to it than those of any other one."""
    if not all(data.status(name)[0] for name in ("vgg16", "photos")):
        pytest.skip("VGG-16 or the photographs are not in the cache")
    network = FeatureNetwork.of(VGG16, neural_art.PIXEL_SCALE, data.feature_weights("full").weights)
    pictures = neural_art.to_pixels(data.photographs("full").test[:8, :, 30:94, 30:94].float())
    moved = neural_art.to_pixels(data.photographs("full").test[:8, :, 32:96, 32:96].float())
    one, other = (network(each, ["conv4_1"])["conv4_1"].mean(dim=(2, 3)) for each in (pictures, moved))
    assert torch.cdist(one, other).argmin(dim=1).tolist() == list(range(8))


def test_pixels_are_counted_from_imagenets_mean_colour_in_its_standard_deviation():
    """Red, green and blue, in this order, as in torchvision's documentation, times 255."""
    mean = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    torch.testing.assert_close(neural_art.to_pixels(mean), torch.zeros(1, 3, 1, 1), atol=0.01, rtol=0)
    torch.testing.assert_close(neural_art.to_pixels(mean + 255 * 0.226), torch.ones(1, 3, 1, 1), atol=0.01, rtol=0)
