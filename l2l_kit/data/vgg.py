"""Weights of VGG-16 (Simonyan and Zisserman, 2014), whose features are what neural art compares pictures by."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from l2l_kit.data.sources import cache_folder


def vgg16() -> dict[str, Tensor]:
    """Weights and biases of VGG-16's convolutions, by torchvision's names ("features.0.weight").

    The input that they expect is RGB, 0 … 255, minus ImageNet's mean.
    """
    return dict(_weights(cache_folder() / "vgg16.safetensors"))


@cache
def _weights(path: Path) -> dict[str, Tensor]:
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    first = "features.0.weight"
    weights[first] = weights[first].flip(1)  # they were made for BGR
    return weights
