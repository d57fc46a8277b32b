"""Neural art (section 3.4 of the paper): the pixels of a picture that is to show one thing in the style of another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit import data
from l2l_kit.errors import UnknownNameError
from l2l_kit.problems.base import Problem, TaskBatch
from l2l_kit.problems.features import SMALL, VGG16, FeatureNetwork, gram
from l2l_kit.tensors import Layout, Tensors

Network = Literal["auto", "vgg16", "small"]
Part = Literal["train", "validation", "test"]

_VARIANTS: dict[str, data.Source] = {"vgg16": "full", "small": "embedded"}
_TRAINING_STYLES = "starry_night_vangogh1889", "swirls"
"""What the kit's optimizers were trained on: a painting, and what comes with the kit."""

CONTENT_LAYERS: dict[str, str] = {"vgg16": "conv3_1", "small": "conv1_2"}
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1")
MEAN = (123.68, 116.779, 103.939)
"""ImageNet's mean red, green and blue, as VGG was trained with."""
PIXEL_SCALE = 57.6
"""The standard deviation of ImageNet's bytes: pixels are counted in these, so that photographs are of scale 1."""
REFERENCE_SIZE = 64
"""Pixels a side of the pictures whose loss is a mean over the places; see `NeuralArt`."""
_AT_ONCE = 4 * 64 * 64
"""Pixels whose features are computed at a time; more are not faster on a CPU, and take 1.5 kB of memory each."""


@dataclass(frozen=True)
class NeuralArtTasks(TaskBatch):
    """``n`` pictures to paint, each of another content, in one style.

    Pixels are RGB, minus ImageNet's mean, in ImageNet's standard deviations.

    Attributes:
        initial: starting points, "pixels" of shape ``(n, 3, size, size)``.
        content_layer: where contents are compared.
        content: the contents' features there, shape ``(n, channels, height, width)``.
        style: the style's Gram matrix in each style layer, shape ``(1, channels, channels)``.
        network: what computes features.
        weights: of the content, style and total-variation terms.
    """

    initial: Tensors
    content_layer: str
    content: Tensor
    style: tuple[Tensor, ...]
    network: FeatureNetwork
    weights: tuple[float, float, float]

    @property
    @override
    def initial_params(self) -> Tensors:
        return self.initial

    @override
    def losses(self, params: Tensors, step: int) -> Tensor:
        return self._losses(params["pixels"], self.content)

    @override
    def select(self, index: int) -> NeuralArtTasks:
        chosen = slice(index, index + 1)
        return replace(self, initial={"pixels": self.initial["pixels"][chosen]}, content=self.content[chosen])

    @override
    def losses_and_gradients(self, rows: Tensor, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        size = self.initial["pixels"].shape[-1]
        parts = _parts(len(rows), size)
        for part, content in zip(rows.chunk(parts), self.content.chunk(parts), strict=True):
            with torch.enable_grad():
                point = part.detach().requires_grad_()
                loss = self._losses(layout.unravel(point)["pixels"], content)
                gradients += torch.autograd.grad(loss.sum(), point)
            losses.append(loss.detach())
        return torch.cat(losses), torch.cat(gradients)

    def terms(self, pixels: Tensor) -> dict[str, Tensor]:
        """The terms of the loss before they are weighted, each of shape ``(n,)``."""
        return self._terms(pixels, self.content)

    def _losses(self, pixels: Tensor, content: Tensor) -> Tensor:
        terms = torch.stack(list(self._terms(pixels, content).values()))
        area = (pixels.shape[-1] / REFERENCE_SIZE) ** 2
        return area * (terms * terms.new_tensor(self.weights)[:, None]).sum(dim=0)

    def _terms(self, pixels: Tensor, content: Tensor) -> dict[str, Tensor]:
        found = self.network(pixels, {self.content_layer, *STYLE_LAYERS})
        styles = [_relative(gram(found[layer]), wanted) for layer, wanted in zip(STYLE_LAYERS, self.style, strict=True)]
        across, down = pixels.diff(dim=-1), pixels.diff(dim=-2)
        return {
            "content": _relative(found[self.content_layer], content),
            "style": torch.stack(styles).mean(dim=0),
            "total variation": across.square().mean(dim=(1, 2, 3)) + down.square().mean(dim=(1, 2, 3)),
        }


def _parts(pictures: int, size: int) -> int:
    """Into how many parts pictures are cut to compute their features."""
    return math.ceil(pictures * size**2 / _AT_ONCE)


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance, in units of what it would be if nothing had been found, shape ``(n,)``."""
    nothing = wanted.square().flatten(1).sum(dim=1)
    return (found - wanted).square().flatten(1).sum(dim=1) / nothing.where(nothing > 0, 1.0)


@dataclass(frozen=True)
class NeuralArt(Problem):
    """Paint what a photograph shows in the style of a painting, from noise (Gatys et al., 2015).

        f(θ) = (size / 64)² · (content_weight · C(θ) + style_weight · S(θ) + tv_weight · V(θ)),    θ the pixels.

    With features F in a layer and its Gram matrices G = FFᵀ / places, of the photograph (F*) and of the painting (G*),

        C = ‖F − F*‖² / ‖F*‖²  in conv3_1 (of the kit's small network in conv1_2);
        S = ‖G − G*‖² / ‖G*‖², averaged over conv1_1, conv2_1, conv3_1 and conv4_1;
        V = mean squared difference of pixels side by side, plus that of pixels one above the other.

    The layers are those of Gatys et al., who paint 512 pixels a side, but for two. At 64 conv4_2 leaves 8 by 8 places,
    from which a picture that begins as noise does not become recognisable, so content is compared in conv3_1, with 16
    by 16; and conv5_1, with 4 by 4, is left out of the style. The small network keeps less, so that pictures become
    most recognisable by conv1_2; and it minds noise less, so that it needs a larger weight of the total variation.
    They divide each layer's distances by constants and rescale the network to mean activations of 1; here a distance
    is divided by what it would be for a picture without features. So C and S are 1 where nothing is right, whatever
    network, layer, style or size, and losses can be compared and averaged. The total variation, which the paper
    mentions, is that of Johnson et al. (2016), squared, and per pixel.

    All three are means over places, so that a pixel moves them the less the more there are. An optimizer that works on
    coordinates sees just its pixel's gradient, and the factor makes that as large at any size: the sum over places that
    Gatys et al. take for contents, in units of 64 by 64. Without it what was trained at 64 finds at 128 a quarter.

    Args:
        style: name of a style, see `data.style_names`, or a file's path; "auto" for a night of stars by van Gogh where
            it is there, else for the kit's own swirls; after construction it says which one.
        size: pixels a side; the paper trains on 64 and tests on 128, too.
        network: whose features: "vgg16", "small" for the kit's own, "auto" for the best there is; after construction
            it says which one.
        split: which photographs, "train", "validation" or "test".
        contents: "full" for the 1,920 photographs, "embedded" for what stands in for them, "auto" for the best there
            is; after construction it says which one that is.
        content_weight, style_weight, tv_weight: see above; the paper does not give its own. These are for VGG-16; the
            kit's own network paints better with 0.5, 1 and 0.5.
        init_scale: standard deviation of the noise that a picture starts from, where photographs have 1; the paper
            does not say where it starts, Gatys et al. do from white noise.

    Raises:
        UnknownNameError: for an unknown style, network, split or kind of contents.
        ValueError: for a size below 16, or a weight or scale that is negative.
    """

    name: ClassVar[str] = "neural_art"

    style: str = "auto"
    size: int = 64
    network: Network = "auto"
    split: Part = "train"
    contents: data.Source = "auto"
    content_weight: float = 1.0
    style_weight: float = 1.0
    tv_weight: float = 0.1
    init_scale: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 16:
            raise ValueError(f"NeuralArt: size must be a whole number of at least 16 pixels, got {self.size!r}.")
        for name in ("content_weight", "style_weight", "tv_weight", "init_scale"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"NeuralArt: {name} must be a number that is not negative, got {value!r}.")
        for kind, value, known in (
            ("network", self.network, get_args(Network)),
            ("split", self.split, get_args(Part)),
            ("kind of contents", self.contents, get_args(data.Source)),
        ):
            if value not in known:
                raise UnknownNameError(kind, value, known)
        if self.network == "auto":
            found = data.feature_weights().source
            object.__setattr__(self, "network", "vgg16" if found == "full" else "small")
        if self.style == "auto":
            there = data.style_names()
            object.__setattr__(self, "style", next(name for name in _TRAINING_STYLES if name in there))
        if self.contents == "auto":
            object.__setattr__(self, "contents", self.photographs.source)

    @property
    def photographs(self) -> data.Photographs:
        """Where the contents come from."""
        return data.photographs(self.contents)

    @property
    def feature_weights(self) -> data.FeatureWeights:
        """Of the network, and where they come from."""
        return data.feature_weights(_VARIANTS[self.network])

    @override
    def validation_problem(self) -> NeuralArt:
        return replace(self, split="validation") if self.split == "train" else self

    @override
    def sample(self, n: int, generator: torch.Generator, device: torch.device | None = None) -> NeuralArtTasks:
        """Draw ``n`` contents, none twice before each was drawn once, and the noise to start from."""
        pictures: Tensor = getattr(self.photographs, self.split)
        rounds = [torch.randperm(len(pictures), generator=generator) for _ in range(math.ceil(n / len(pictures)))]
        return self.tasks(pictures[torch.cat(rounds)[:n]], generator, device=device)

    def tasks(
        self,
        contents: Tensor,
        generator: torch.Generator,
        style: Tensor | None = None,
        device: torch.device | None = None,
    ) -> NeuralArtTasks:
        """TaskBatch of these very contents.

        Args:
            contents: pictures, bytes of shape ``(n, 3, height, width)``; their middle squares are taken.
            generator: of the noise to start from.
            style: a picture, bytes of shape ``(3, height, width)``; None for the style by name.
            device: None for the CPU.
        """
        network, layer = _network(self.network, device), CONTENT_LAYERS[self.network]
        painting = data.style(self.style) if style is None else style
        noise = torch.randn(len(contents), 3, self.size, self.size, generator=generator)
        with torch.no_grad():
            parts = to_pixels(data.fitted(contents, self.size)).chunk(_parts(len(contents), self.size))
            content = torch.cat([network(part.to(device), {layer})[layer] for part in parts])
            found = network(to_pixels(data.fitted(painting[None], self.size)).to(device), STYLE_LAYERS)
        return NeuralArtTasks(
            {"pixels": (self.init_scale * noise).to(device)},
            layer,
            content,
            tuple(gram(found[name]) for name in STYLE_LAYERS),
            network,
            (self.content_weight, self.style_weight, self.tv_weight),
        )


def to_pixels(pictures: Tensor) -> Tensor:
    """Pixels as the optimizees count them, from values 0 … 255, shape ``(n, 3, height, width)``."""
    return (pictures - pictures.new_tensor(MEAN).view(3, 1, 1)) / PIXEL_SCALE


def to_pictures(pixels: Tensor) -> Tensor:
    """Bytes, for people, from pixels as the optimizees count them; inverse of `to_pixels` but for rounding."""
    values = pixels * PIXEL_SCALE + pixels.new_tensor(MEAN).view(3, 1, 1)
    return values.round().clamp(0, 255).to(torch.uint8)


@cache
def _network(name: Network, device: torch.device | None) -> FeatureNetwork:
    """The network, up to its deepest layer that is used; it stays on the device, for all who sample there."""
    blocks, scale = (VGG16, PIXEL_SCALE) if name == "vgg16" else (SMALL, 1.0)
    weights = data.feature_weights(_VARIANTS[name]).weights
    return FeatureNetwork.of(blocks, scale, weights, STYLE_LAYERS[-1]).to(device)
