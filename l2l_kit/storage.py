"""Weights on disk: safetensors files with a JSON description and a checksum in the header, written atomically.

Files of the kit's first version have no checksum and still load.
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


def in_json(value: Any) -> Any:
    """A value as it comes out of a JSON file: lists for tuples."""
    return json.loads(json.dumps(value))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds its old content or its new one, even after a kill at any moment.

    Raises:
        OSError: with the path, if it cannot be written or the disk is full; the old content then remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # mkstemp would restrict the permissions
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # it named the temporary file or none
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object], version: int) -> None:
    """Write tensors and a JSON description to a safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    description = json.dumps({"version": version, **about}, sort_keys=True)
    # A single entry, because safetensors writes several in no fixed order.
    metadata = {_HEADER: f"{_checksum(contiguous, description)} {description}"}
    write_atomically(path, save(contiguous, metadata))


def read_tensors(path: Path, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file by `write_tensors`, up to the format version that the caller understands.

    Raises:
        WeightsFileError: if the file is missing, damaged, not of this kit or of a newer version.
    """
    if not path.is_file():
        what = "a folder is there, and no file" if path.is_dir() else "there is no such file"
        raise WeightsFileError(f"{path}: {what}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception as error:  # a damaged file can fail in any way
        raise WeightsFileError(
            f"{path}: not a whole safetensors file ({error}). It may be truncated or of another format; make it again."
        ) from error
    header = metadata.get(_HEADER, "")
    sealed = not header.startswith("{")
    checksum, _, description = header.partition(" ") if sealed else ("", "", header)
    try:
        about = json.loads(description)
        found = int(about.pop("version"))
    except Exception as error:  # such as a RecursionError for deeply nested lists
        raise WeightsFileError(
            f"{path}: a safetensors file, but not one of l2l_kit (its header has no description, or a damaged one)."
        ) from error
    if found > version:
        raise WeightsFileError(
            f"{path}: written in format version {found}; this l2l_kit reads up to {version}. Update l2l_kit."
        )
    if sealed and checksum != _checksum(tensors, description):
        raise WeightsFileError(f"{path}: damaged, or changed by hand: its checksum differs. Make it again.")
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
    """Load weights into a module.

    Raises:
        WeightsFileError: if names or shapes differ from the module's (the message lists the differences), or as
            `check_finite`. The module is then left as it was.
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
    """Refuse tensors that are not floating-point or not finite.

    Raises:
        WeightsFileError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise WeightsFileError(f"{source}: {name} holds NaN, infinity or no floating-point numbers. Make it again.")


class BoundedWeights(TorchDispatchMode):
    """Refuses to make tensors of more than ten million numbers in all, before their memory is taken.

    A damaged or hostile file may describe a rule of any size. A tensor counts as 10,000 numbers at least, because a
    million tiny ones take long to make.

    Raises:
        ValueError: inside the block, for more than that.
    """

    MOST = 10_000_000  # thousands of times as many as in the paper

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = self.MOST

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls in place of each of its operations."""
        if func is torch.ops.aten.empty.memory_format:
            self.left -= max(math.prod(args[0]), 10_000)
            if self.left < 0:
                raise ValueError(f"more than {self.MOST:,} weights are asked for")
        return func(*args, **(kwargs or {}))
