"""What the LSTM sees of a gradient (appendix A): its inputs, one column per coordinate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.errors import UnknownNameError


class Preprocessing(ABC):
    """A map from gradients ``(coordinates,)`` to LSTM inputs ``(features, coordinates)``."""

    name: ClassVar[str]
    features: ClassVar[int]

    @abstractmethod
    def __call__(self, gradients: Tensor) -> Tensor:
        """LSTM inputs, shape ``(features, coordinates)``; differentiable by autograd."""

    def config(self) -> dict[str, Any]:
        """What `make_preprocessing` needs to build this again."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Identity(Preprocessing):
    """The gradient as it is; the paper's choice on the quadratics."""

    name: ClassVar[str] = "none"
    features: ClassVar[int] = 1

    @override
    def __call__(self, gradients: Tensor) -> Tensor:
        return gradients[None]


@dataclass(frozen=True)
class Scale(Preprocessing):
    """The gradient times a constant that all coordinates share (appendix A, first paragraph).

    Args:
        factor: choose it so that typical gradients come to order 1.
    """

    name: ClassVar[str] = "scale"
    features: ClassVar[int] = 1

    factor: float = 100.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"Scale: factor must be a positive number, got {self.factor!r}.")

    @override
    def __call__(self, gradients: Tensor) -> Tensor:
        return (self.factor * gradients)[None]


@dataclass(frozen=True)
class LogSign(Preprocessing):
    """Logarithm and sign of the gradient (appendix A): gradients of very different size become comparable.

    (log|∇| / p, sgn ∇) where |∇| ≥ e^-p, else (-1, e^p ∇).

    Args:
        p: how small a gradient is told apart from zero; the paper uses 10.
    """

    name: ClassVar[str] = "log-sign"
    features: ClassVar[int] = 2

    p: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.p <= 80:  # e^p must be a float32
            raise ValueError(f"LogSign: p must lie in (0, 80], got {self.p!r}.")

    @override
    def __call__(self, gradients: Tensor) -> Tensor:
        # Clamping does what the case distinction asks for: below e^-p the logarithm stays at -p and the scaled
        # gradient inside (-1, 1); above, the scaled gradient is clipped to the sign.
        magnitude = gradients.abs().clamp_min(math.exp(-self.p))
        direction = (gradients * math.exp(self.p)).clamp(-1, 1)
        return torch.stack([magnitude.log() / self.p, direction])


_PREPROCESSINGS: dict[str, type[Preprocessing]] = {kind.name: kind for kind in (Identity, Scale, LogSign)}


def make_preprocessing(choice: str | Preprocessing | Mapping[str, Any]) -> Preprocessing:
    """A preprocessing from its name, its configuration or itself.

    Raises:
        UnknownNameError: if there is no preprocessing of that name; the message offers the nearest one.
    """
    if isinstance(choice, Preprocessing):
        return choice
    fields = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = fields.pop("name", None)
    if name not in _PREPROCESSINGS:
        raise UnknownNameError("preprocessing", name, _PREPROCESSINGS)
    return _PREPROCESSINGS[name](**fields)
