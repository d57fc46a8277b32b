"""Weights on disk: safetensors with JSON in the header, written atomically, refused with a clear message.

The header holds a checksum of the tensors and the JSON, too. Files of earlier versions of the kit have none, and load.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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
    description = json.dumps({"version": version, **about}, sort_keys=True)
    # One entry alone: of several safetensors would write now one first, now another.
    metadata = {_HEADER: f"{_checksum(contiguous, description)} {description}"}
    write_atomically(path, save(contiguous, metadata))


def read_tensors(path: Path, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file that `write_tensors` wrote.

    Args:
        path: the file.
        version: the newest format version that the caller understands.

    Raises:
        WeightsFileError: if the file is missing, truncated, damaged, not safetensors, not of this kit or of a newer
            version.
    """
    if not path.is_file():
        raise WeightsFileError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception as error:  # a damaged file can fail in any way
        raise WeightsFileError(
            f"{path}: not a whole safetensors file ({error}). It may be truncated or of another format; make it anew."
        ) from error
    header = metadata.get(_HEADER, "")
    sealed = not header.startswith("{")
    checksum, _, description = header.partition(" ") if sealed else ("", "", header)
    try:
        about = json.loads(description)
        found = int(about.pop("version"))
    except Exception as error:  # such as a RecursionError for lists in lists in lists
        raise WeightsFileError(
            f"{path}: a safetensors file, but not one of l2l_kit (its header has no description, or a damaged one)."
        ) from error
    if found > version:
        raise WeightsFileError(
            f"{path}: written in format version {found}; this l2l_kit reads up to {version}. Update l2l_kit."
        )
    if sealed and checksum != _checksum(tensors, description):
        raise WeightsFileError(f"{path}: damaged, or changed by hand: its checksum differs. Make it anew.")
    return tensors, about


_HEADER = "l2l_kit"


def _checksum(tensors: Mapping[str, Tensor], description: str) -> str:
    """SHA-256 over the description and the tensors' names, types, shapes and bytes."""
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a module, refusing what does not fit by name and shape, or is not finite.

    Raises:
        WeightsFileError: if names or shapes differ from the module's, where the message lists what differs, or a weight
            is NaN, infinite or no floating-point number; the module is then left as it was.
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
    check_finite(weights, source)
    module.load_state_dict(dict(weights))


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that hold something else than finite floating-point numbers.

    Raises:
        WeightsFileError: if one does; the message says which.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise WeightsFileError(f"{source}: {name} holds NaN, infinity or no floating-point numbers. Make it anew.")


MOST_WEIGHTS = 10_000_000
"""Of a learned optimizer that a file describes: thousands of times those of the paper's."""
_LEAST = 10_000
"""What a tensor counts at least: a million tiny ones take long to make."""


class BoundedWeights(TorchDispatchMode):
    """Refuses, while it is entered, to make tensors of more than `MOST_WEIGHTS` numbers, before their memory is taken.

    What a file asks for may be absurd, by damage or on purpose.

    Raises:
        ValueError: where it is more.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = MOST_WEIGHTS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls for each of its operations."""
        if func is torch.ops.aten.empty.memory_format:
            self._left -= max(math.prod(args[0]), _LEAST)
            if self._left < 0:
                raise ValueError(f"more than {MOST_WEIGHTS:,} weights are asked for")
        return func(*args, **(kwargs or {}))
