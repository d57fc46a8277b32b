"""Pretrained optimizers: weights as safetensors, and beside them a JSON card that says where they come from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2l_kit import optimizers
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.optimizers import UpdateRule
from l2l_kit.paths import PRETRAINED, user_path
from l2l_kit.storage import BoundedWeights, load_weights, read_tensors, write_atomically, write_tensors
from l2l_kit.tensors import Tensors, pick_device

if TYPE_CHECKING:
    from l2l_kit.training import History

FORMAT_VERSION = 1
_CARD = {"version", "optimizer", "problem", "training", "trained", "versions"}


def names() -> list[str]:
    """Names of the pretrained optimizers that come with the kit."""
    return sorted(path.stem for path in PRETRAINED.glob("*.safetensors"))


def load(name_or_path: str | Path, device: str | torch.device | None = None) -> UpdateRule:
    """A learned optimizer with its weights, in the precision in which they were saved.

    Args:
        name_or_path: a pretrained one by name (see `names`), or what was given to `save`.
        device: None for the CPU.

    Raises:
        UnknownNameError: if there is no such pretrained optimizer; the message offers the nearest one.
        WeightsFileError: if the file is missing, truncated, damaged, not safetensors, of another shape or a newer
            version, or a weight is NaN or infinite.
        ValueError: if "cuda" is asked for and torch sees no GPU.
    """
    path = _path(name_or_path)
    weights, about = _read(path)
    try:
        with BoundedWeights():
            optimizer = optimizers.make(about["optimizer"])
    except Exception as error:  # a description can be wrong in any way
        raise WeightsFileError(f"{path}: its description of the optimizer cannot be used ({error}).") from error
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) == 1 and all(dtype.is_floating_point for dtype in dtypes):
        optimizer.to(dtypes.pop())  # whatever torch's default type is now
    load_weights(optimizer, weights, str(path))
    return optimizer if device is None else optimizer.to(pick_device(device))


def card(name_or_path: str | Path) -> dict[str, Any]:
    """What a saved optimizer was trained on, how, for how long, and how well it did. Raises as `load`."""
    return _read(_path(name_or_path))[1]


def save(
    optimizer: UpdateRule, path: str | Path, history: History | None = None, origin: Mapping[str, Any] | None = None
) -> Path:
    """Save a learned optimizer as ``path`` (``.safetensors``) and its card beside it (``.json``).

    The card stands in the header of the weights as well, so the one file is enough to load it.

    Args:
        path: a file name; ``.safetensors`` is added if missing. A mere name goes to the working directory.
        history: of its meta-training; without it the card says nothing of that.
        origin: what else the card is to say of where the optimizer comes from, under names of its own.

    Raises:
        WeightsFileError: if a weight is NaN or infinite.
        ValueError: if it is the name of a pretrained optimizer, which is what `load` would give, or if the optimizer is
            of a class of one's own, which `load` could not make again, or if `origin` has a name that the card has.
    """
    if not isinstance(optimizer, UpdateRule):
        raise TypeError(f"save: optimizer must be a learned rule, such as LSTMRule(), got {optimizer!r}.")
    if history is not None and not callable(getattr(history, "about", None)):
        raise TypeError(f"save: history must be what meta_train gave, got {history!r}.")
    if taken := ", ".join(map(repr, sorted(_CARD & {*(origin or {})}))):
        raise ValueError(f"save: origin cannot have {taken}, which the card has already. Give it another name.")
    if _is_name(Path(path)) and str(path) in names():
        raise ValueError(
            f"{str(path)!r} is the name of a pretrained optimizer, which is what load would give. Choose another name, "
            f'or "{path}.safetensors".'
        )
    path = _with_suffix(user_path(path))
    try:
        rebuilt: object = optimizers.make(optimizer.config())
    except ValueError as error:
        rebuilt = error
    if not isinstance(rebuilt, UpdateRule) or _classes(rebuilt) != _classes(optimizer):
        raise ValueError(
            f"save: load could not make this {type(optimizer).__name__} again, since it or its preprocessing is of a "
            "class of your own. Keep its weights by torch.save(optimizer.state_dict(), path), and load them into one "
            "that you have built."
        )
    weights = optimizer.state_dict()
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise WeightsFileError(f"{path}: not saved, since the optimizer is broken: {name} is not finite.")
    from l2l_kit import __version__

    about: dict[str, Any] = {"optimizer": optimizer.config()}
    if history is not None:
        about |= history.about()
    about |= origin or {}
    about["versions"] = {"l2l_kit": __version__, "torch": torch.__version__, "python": platform.python_version()}
    write_tensors(path, weights, about, FORMAT_VERSION)
    write_atomically(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
    return path


def _classes(rule: UpdateRule) -> list[tuple[type, type]]:
    """Of a rule: those of its parts, each with that of its preprocessing."""
    return [(type(part), type(getattr(part, "preprocessing", None))) for part in rule.modules()]


def _read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Weights and card, or a WeightsFileError as `load` raises it."""
    tensors, about = read_tensors(path, FORMAT_VERSION)
    if {"settings", "history"} <= about.keys():
        raise WeightsFileError(
            f"{path}: a checkpoint of meta_train, and no saved optimizer. Go on by meta_train(..., checkpoint=...), "
            "and then save the rule."
        )
    return tensors, about


def _with_suffix(path: Path) -> Path:
    if not path.name:
        raise ValueError(f"expected a file's name, or a path that ends with one, got {str(path)!r}.")
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")


def _path(name_or_path: str | Path) -> Path:
    if not isinstance(name_or_path, str | Path):
        raise TypeError(f"expected the name of a pretrained optimizer, or a path, got {name_or_path!r}.")
    path = user_path(name_or_path)
    if not _is_name(path):
        return _with_suffix(path)
    for folder in (PRETRAINED, Path()):
        if (file := folder / f"{name_or_path}.safetensors").is_file():
            return file
    raise UnknownNameError("pretrained optimizer", str(name_or_path), names())


def _is_name(path: Path) -> bool:
    return path.suffix != ".safetensors" and len(path.parts) == 1
