"""Named tensors: the currency between problems and optimizers.

A batch of ``n`` tasks is a dict of tensors whose first axis has length ``n``. An optimizer that treats all coordinates
alike sees the same numbers as one row per task, ``(n, coordinates)``; `ravel` and `Layout.unravel` convert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Device = str | torch.device | None  # where to compute: None for the best there is, see `pick_device`


@dataclass(frozen=True)
class Layout:
    """Names and shapes of one task's parameters, in the order in which `ravel` lays them out."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of a batch of tensors of shape ``(n, *shape)``."""
        return cls(tuple((name, tuple(tensor.shape[1:])) for name, tensor in tensors.items()))

    @cached_property
    def sizes(self) -> list[int]:
        """Number of coordinates of each tensor, per task."""
        return [math.prod(shape) for _, shape in self.shapes]

    def unravel(self, rows: Tensor) -> Tensors:
        """Rows of shape ``(n, coordinates)`` as named tensors of shape ``(n, *shape)``; views where possible."""
        pieces = rows.split_with_sizes(self.sizes, dim=1)
        return {
            name: piece.reshape(len(rows), *shape) for (name, shape), piece in zip(self.shapes, pieces, strict=True)
        }


def ravel(tensors: Mapping[str, Tensor]) -> Tensor:
    """Named tensors of shape ``(n, *shape)`` as one row per task, ``(n, coordinates)``."""
    rows = [tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors.values()]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def described(named: Mapping[str, object]) -> str:
    """Names, shapes, types and devices of tensors, as messages list them."""
    each = (
        f"{name!r} {tuple(value.shape)} {value.dtype} {value.device}"
        if isinstance(value, Tensor)
        else f"{name!r} {value!r}"
        for name, value in named.items()
    )
    return ", ".join(each) or "none"


def parameter_kinds(model: nn.Module) -> dict[nn.Parameter, str]:
    """A model's parameters, each once: "conv" for kernels of convolutions (reparametrized ones too), or else "fc"."""
    kernels = {
        param
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        for name, param in module.named_parameters()
        if name.startswith(("weight", "parametrizations.weight"))
    }
    return {param: "conv" if param in kernels else "fc" for param in model.parameters()}


def pick_device(device: Device = None) -> torch.device:
    """The device of that name, or a ValueError if there is none; None is the best there is: "cuda", else "cpu".

    On a GPU, cuDNN then times its algorithms on the first convolution of each shape, for all that this process does.
    """
    torch.backends.cudnn.benchmark = True  # a run has the same few shapes thousands of times
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        is_missing = chosen.type == "cuda" and not torch.cuda.is_available()
        if not is_missing:
            torch.zeros(1, device=chosen).item()  # torch also knows devices that do not exist here or hold no numbers
    except RuntimeError as error:
        raise ValueError(f'there is no device {str(device)!r}; use "cpu" or "cuda".') from error
    if is_missing:
        raise ValueError(f'device {str(device)!r} was asked for, but torch sees no GPU. Use device="cpu" or None.')
    return chosen
