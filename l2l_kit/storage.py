"""Weights on disk: safetensors with JSON in the header, written atomically, refused with a clear message."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from l2l_kit.errors import WeightsFileError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old content or the new, never a part.

    Raises:
        OSError: with the path, if it cannot be written or the disk is full; what was there is there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # with the usual permissions, unlike mkstemp's
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = (
                str(path),
                None,
            )  # a full disk has no name, and nobody knows the other file
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], version: int) -> None:
    """Write tensors and a JSON description to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"l2l_kit": json.dumps({"version": version, **about}, sort_keys=True)}
    write_atomically(path, save(contiguous, metadata))


def read_tensors(path: Path, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file that `write_tensors` wrote.

    Args:
        path: the file.
        version: the newest format version that the caller understands.

    Raises:
        WeightsFileError: if the file is missing, truncated, not safetensors, not of this kit or of a newer version.
    """
    if not path.is_file():
        raise WeightsFileError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsFileError(
            f"{path}: not a whole safetensors file ({error}). It may be truncated or of another format; make it anew."
        ) from error
    try:
        about = json.loads(metadata["l2l_kit"])
        found = int(about.pop("version"))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WeightsFileError(
            f"{path}: a safetensors file, but not one of l2l_kit (no description in its header)."
        ) from error
    if found > version:
        raise WeightsFileError(
            f"{path}: written in format version {found}; this l2l_kit reads up to {version}. Update l2l_kit."
        )
    return tensors, about


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module, refusing what does not fit by name and shape.

    Raises:
        WeightsFileError: if names or shapes differ from the module's; the message lists what differs.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        differing = [
            f"{name} (expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')})"
            for name in sorted(expected | found)
            if expected.get(name) != found.get(name)
        ]
        raise WeightsFileError(f"{source}: weights of another optimizer: {'; '.join(differing)}.")
    module.load_state_dict(dict(weights))
