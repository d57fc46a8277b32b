"""Photographs without labels, such as neural art paints."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from l2l_kit.data.labelled import photograph
from l2l_kit.data.sources import Array, Arrays, DataSet, Source
from l2l_kit.randomness import generator

SIDE = 128
"""Height and width of photographs."""
SPLIT = {"train": 1800, "validation": 20, "test": 100}
"""Photographs in each part, as in the paper."""


@dataclass(frozen=True)
class Photographs:
    """Photographs in three parts, none of which has a picture of another.

    Attributes:
        source: "full" for 1,800 to train on, 20 to validate on and 100 to test on, as in the paper; "embedded" for
            crops of the few that pip installs.
        title: what figures and tables call them.
        origin: where they came from.
        train, validation, test: bytes, shape ``(photographs, 3, 128, 128)``.
    """

    source: Source
    title: str
    origin: str
    train: Tensor
    validation: Tensor
    test: Tensor


def _photographs(arrays: Arrays, source: Source, title: str, origin: str, _: tuple[str, ...]) -> Photographs:
    parts = {name: torch.from_numpy(array).permute(0, 3, 1, 2) for name, array in arrays.items()}
    if source == "full":
        order = torch.randperm(len(parts["x"]), generator=generator(0, "split of the photographs"))
        split = order[: sum(SPLIT.values())].split_with_sizes(list(SPLIT.values()))
        parts = {name: parts["x"][chosen] for name, chosen in zip(SPLIT, split, strict=True)}
    return Photographs(source, title, origin, **parts)


def _read_imagenette(folder: Path) -> Arrays:
    """Of its training photographs 200 of each class, the middle squares."""
    from PIL import Image, ImageOps

    with tarfile.open(folder / "imagenette2-160.tgz") as archive:
        files = [member for member in archive if member.isfile() and member.name.startswith("imagenette2-160/train/")]
        classes: dict[str, list[tarfile.TarInfo]] = {}
        for member in sorted(files, key=lambda member: member.name):
            classes.setdefault(member.name.split("/")[2], []).append(member)
        chosen = {member.name for members in classes.values() for member in members[:200]}
        if len(chosen) < sum(SPLIT.values()):
            raise ValueError(f"the archive has {len(chosen)} training photographs of the first 200 of each class only")
        x = {}
        for member in files:  # in the archive's order, so that it is unpacked once
            if member.name in chosen and (content := archive.extractfile(member)):
                with Image.open(io.BytesIO(content.read())) as picture:
                    x[member.name] = np.asarray(ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE)))
    return {"x": np.stack([x[name] for name in sorted(x)])}


EMBEDDED = ("astronaut", "cat", "coffee", "rocket", "motorcycle", "palace", "flower")
"""Names of the photographs that pip installs."""


def _embedded_photographs() -> Arrays:
    """Crops of photographs: what is trained on is their left half, the quarters of the right half are for the rest."""
    parts: dict[str, list[Array]] = {"train": [], "validation": [], "test": []}
    for name in EMBEDDED:
        pixels = photograph(name, (4 * SIDE, 2 * SIDE))
        for part, columns, step in (("train", (0, 2), 16), ("validation", (2, 3), 64), ("test", (3, 4), 16)):
            half = pixels[:, columns[0] * SIDE : columns[1] * SIDE]
            crops = np.lib.stride_tricks.sliding_window_view(half, (SIDE, SIDE), axis=(0, 1))[::step, ::step]
            parts[part].append(crops.transpose(0, 1, 3, 4, 2).reshape(-1, SIDE, SIDE, 3))
    return {part: np.concatenate(crops) for part, crops in parts.items()}


PHOTOS = DataSet(
    title="photographs",
    make=_photographs,
    classes=(),
    checksum="",
    copies={"227883cef432ef81983ce5d597a2cf570aac96351277e4fb4d04922f98e2af64": "two of each class of ImageNet"},
    official="https://s3.amazonaws.com/fast-ai-imageclas/",
    files={"imagenette2-160.tgz": "md5:e793b78cc4c9e9a4ccc0c1155377a412"},
    read=_read_imagenette,
    stand_in=f"photo crops ({len(EMBEDDED)} photographs of scikit-image and scikit-learn)",
    embedded=_embedded_photographs,
    embedded_in="scikit-image and scikit-learn",
    embedded_classes=(),
)
