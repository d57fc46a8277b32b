"""Neural art (section 3.4 of the paper): the pixels of a picture that is to show one thing in the style of another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from l2l_kit import data
from l2l_kit.data.features import SMALL, VGG16, FeatureNetwork
from l2l_kit.errors import AtLeast, NotNegative, check_fields
from l2l_kit.problems.base import Problem, StoredTasks, TaskBatch
from l2l_kit.tensors import Tensors

Network = Literal["auto", "vgg16", "small"]

_WEIGHTS: dict[str, data.Source] = {"vgg16": "full", "small": "embedded"}
_TRAINING_STYLES = "starry_night_vangogh1889", "swirls"
"""What the kit's optimizers were trained on: a painting, and what comes with the kit."""

CONTENT_LAYERS: dict[str, str] = {"vgg16": "conv3_1", "small": "conv1_2"}
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1")
MEAN = (123.68, 116.779, 103.939)  # ImageNet's mean red, green and blue, as VGG was trained with
PIXEL_SCALE = 57.6
"""The standard deviation of ImageNet's bytes: pixels are counted in these, so that photographs are of scale 1."""
_AT_ONCE, _AT_ONCE_ON_GPU = 4 * 64 * 64, 2**22
"""Pixels whose features are computed at a time, which take 1.5 kB of memory each; more are not faster on a CPU."""


@dataclass(frozen=True)
class NeuralArtTasks(StoredTasks):
    """``n`` pictures to paint in one style, "pixels" ``(n, 3, size, size)`` as in `to_pixels`, each of one content."""

    content_layer: str  # where contents are compared
    content: Tensor  # the contents' features there, (n, channels, height, width)
    style: tuple[Tensor, ...]  # the style's Gram matrix in each style layer, (1, channels, channels)
    network: FeatureNetwork
    weights: tuple[float, float, float]  # of the content, style and total-variation terms

    def losses(self, params: Tensors, step: int) -> Tensor:
        terms = torch.stack(list(self.terms(params["pixels"]).values()))
        area = (params["pixels"].shape[-1] / 64) ** 2
        return area * (terms * terms.new_tensor(self.weights)[:, None]).sum(dim=0)

    def select(self, index: int) -> NeuralArtTasks:
        chosen = slice(index, index + 1)
        return replace(self, initial={"pixels": self.initial["pixels"][chosen]}, content=self.content[chosen])

    def parts(self) -> list[TaskBatch]:
        pixels = self.initial["pixels"]
        number = _parts(len(pixels), pixels.shape[-1], pixels.device)
        pieces = zip(pixels.chunk(number), self.content.chunk(number), strict=True)
        return [replace(self, initial={"pixels": part}, content=content) for part, content in pieces]

    def terms(self, pixels: Tensor) -> dict[str, Tensor]:
        """The terms of the loss before they are weighted, each of shape ``(n,)``."""
        found = self.network(pixels, {self.content_layer, *STYLE_LAYERS})
        styles = [_relative(gram(found[layer]), wanted) for layer, wanted in zip(STYLE_LAYERS, self.style, strict=True)]
        across, down = pixels.diff(dim=-1), pixels.diff(dim=-2)
        return {
            "content": _relative(found[self.content_layer], self.content),
            "style": torch.stack(styles).mean(dim=0),
            "total variation": across.square().mean(dim=(1, 2, 3)) + down.square().mean(dim=(1, 2, 3)),
        }


def _parts(pictures: int, size: int, device: torch.device) -> int:
    """Into how many parts pictures are cut to compute their features."""
    return math.ceil(pictures * size**2 / (_AT_ONCE if device.type == "cpu" else _AT_ONCE_ON_GPU))


def gram(features: Tensor) -> Tensor:
    """How channels go together, averaged over places: ``(n, channels, channels)`` from ``(n, channels, h, w)``."""
    rows = features.flatten(2)
    return rows @ rows.transpose(1, 2) / rows.shape[2]


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance, in units of what it would be if nothing had been found, shape ``(n,)``."""
    nothing = wanted.square().flatten(1).sum(dim=1)
    return (found - wanted).square().flatten(1).sum(dim=1) / nothing.where(nothing > 0, 1.0)


@dataclass(frozen=True)
class NeuralArt(Problem):
    """Paint what a photograph shows in the style of a painting, from noise (section 3.4; Gatys et al., 2015).

        f(θ) = (size / 64)² · (content_weight · C(θ) + style_weight · S(θ) + tv_weight · V(θ)),    θ the pixels.

    With features F in a layer and its Gram matrices G = FFᵀ / places, of the photograph (F*) and of the painting (G*),

        C = ‖F − F*‖² / ‖F*‖²  in conv3_1 (of the kit's small network in conv1_2);
        S = ‖G − G*‖² / ‖G*‖², averaged over conv1_1, conv2_1, conv3_1 and conv4_1;
        V = mean squared difference of pixels side by side, plus that of pixels one above the other.

    C and S are 1 for a picture without features. (Gatys et al. use constants instead, and compare contents in conv4_2,
    which has too few places at 64 pixels.) V is that of Johnson et al. (2016), squared and per pixel. All three are
    means over places, so the factor (size / 64)² keeps the gradient of a pixel as large at any size.

    Args:
        style: name of a style, see `data.style_names`, or a file's path; "auto" for van Gogh's Starry Night where it
            is there, else for the kit's own swirls.
        size: pixels a side; the paper trains on 64 and tests on 128, too.
        network: whose features: "vgg16", "small" for the kit's own, "auto" for the best there is.
        split: which photographs, "train", "validation" or "test".
        source: of the photographs, "full" for 1,920 of them, "embedded" for what stands in for them, "auto" for the
            best there is. After construction `style`, `network` and `source` say what "auto" found.
        content_weight, style_weight, tv_weight: the paper does not give its own. These are for VGG-16; the kit's own
            network paints better with 0.5, 1 and 0.5.
        init_scale: standard deviation of the noise that a picture starts from, where photographs have 1.

    Raises:
        ValueError: for an unknown word (`UnknownNameError`) or a number that makes no sense.
    """

    name = "neural_art"

    style: str = "auto"
    size: Annotated[int, AtLeast(16)] = 64
    network: Network = "auto"
    split: Literal["train", "validation", "test"] = "train"
    source: data.Source = "auto"
    content_weight: NotNegative = 1.0
    style_weight: NotNegative = 1.0
    tv_weight: NotNegative = 0.1
    init_scale: NotNegative = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.network == "auto":
            found = data.feature_weights().source
            object.__setattr__(self, "network", "vgg16" if found == "full" else "small")
        if self.style == "auto":
            there = data.style_names()
            object.__setattr__(self, "style", next(name for name in _TRAINING_STYLES if name in there))
        if self.source == "auto":
            object.__setattr__(self, "source", self.photographs.source)

    @property
    def photographs(self) -> data.Photographs:
        """Where the contents come from."""
        return data.photographs(self.source)

    @property
    def feature_weights(self) -> data.FeatureWeights:
        """Of the network, and where they come from."""
        return data.feature_weights(_WEIGHTS[self.network])

    def validation_problem(self) -> NeuralArt:
        return replace(self, split="validation") if self.split == "train" else self

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> NeuralArtTasks:
        """Draw contents, none twice before each was drawn once, and the noise to start from."""
        pictures: Tensor = getattr(self.photographs, self.split)
        rounds = [torch.randperm(len(pictures), generator=generator) for _ in range(-(-num_tasks // len(pictures)))]
        return self.tasks(pictures[torch.cat(rounds)[:num_tasks]], generator, device=device)

    def tasks(
        self,
        contents: Tensor,
        generator: torch.Generator,
        style: Tensor | None = None,
        device: torch.device | None = None,
    ) -> NeuralArtTasks:
        """Tasks of the middle squares of contents, bytes ``(n, 3, height, width)``; a style ``(3, height, width)``."""
        network, layer = _network(self.network, device), CONTENT_LAYERS[self.network]
        painting = data.style(self.style) if style is None else style
        noise = torch.randn(len(contents), 3, self.size, self.size, generator=generator).to(device)
        with torch.no_grad():
            parts = to_pixels(data.fitted(contents, self.size)).chunk(_parts(len(contents), self.size, noise.device))
            content = torch.cat([network(part.to(device), {layer})[layer] for part in parts])
            found = network(to_pixels(data.fitted(painting[None], self.size)).to(device), STYLE_LAYERS)
        grams = tuple(gram(found[name]) for name in STYLE_LAYERS)
        weights = self.content_weight, self.style_weight, self.tv_weight
        return NeuralArtTasks({"pixels": self.init_scale * noise}, layer, content, grams, network, weights)


def to_pixels(pictures: Tensor) -> Tensor:
    """What is optimized, from bytes: RGB minus ImageNet's mean, in `PIXEL_SCALE`; shape ``(n, 3, height, width)``."""
    return (pictures - pictures.new_tensor(MEAN).view(3, 1, 1)) / PIXEL_SCALE


def to_pictures(pixels: Tensor) -> Tensor:
    """Bytes, for people; inverse of `to_pixels` but for rounding."""
    values = pixels * PIXEL_SCALE + pixels.new_tensor(MEAN).view(3, 1, 1)
    return values.round().clamp(0, 255).to(torch.uint8)


@cache
def _network(name: Network, device: torch.device | None) -> FeatureNetwork:
    """It stays on the device, for all who sample there."""
    blocks, scale = (VGG16, PIXEL_SCALE) if name == "vgg16" else (SMALL, 1.0)
    return FeatureNetwork.of(blocks, scale, data.feature_weights(_WEIGHTS[name]).weights).to(device)
