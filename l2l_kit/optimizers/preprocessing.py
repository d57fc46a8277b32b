"""What the LSTM sees of a gradient (appendix A)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from typing import ClassVar

import torch
from torch import Tensor

from l2l_kit.errors import Positive, check_fields, check_names, look_up


@dataclass(frozen=True)
class Preprocessing(ABC):
    """A map from gradients to the inputs of the LSTM."""

    name: ClassVar[str]
    features: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, gradients: Tensor) -> Tensor:
        """Inputs of shape ``(features, *shape)`` for gradients of any shape; differentiable by autograd."""

    def config(self) -> dict[str, object]:
        """The arguments from which `make_preprocessing` builds this again."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Identity(Preprocessing):
    """The gradient itself; the paper's choice on the quadratics."""

    name = "none"

    def __call__(self, gradients: Tensor) -> Tensor:
        return gradients[None]


@dataclass(frozen=True)
class Scale(Preprocessing):
    """The gradient times a constant, which should bring typical gradients to order 1 (section 2.1)."""

    name = "scale"

    factor: Positive = 100.0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "factor", float(self.factor))  # one rule, one fingerprint

    def __call__(self, gradients: Tensor) -> Tensor:
        return (self.factor * gradients)[None]


@dataclass(frozen=True)
class LogSign(Preprocessing):
    """(log|∇| / p, sgn ∇) where |∇| ≥ e^-p, else (-1, e^p ∇), so that sizes are comparable (appendix A, p = 10)."""

    name = "log-sign"
    features = 2

    p: float = 10.0

    def __post_init__(self) -> None:
        if not (isinstance(self.p, int | float) and 0 < self.p <= 80):  # e^p must be a float32
            raise ValueError(f"LogSign: p must lie in (0, 80], got {self.p!r}.")
        object.__setattr__(self, "p", float(self.p))

    def __call__(self, gradients: Tensor) -> Tensor:
        # Clamping takes the place of the two cases: for a small gradient the logarithm stays at -p, and for a large one
        # the scaled gradient stays at its sign.
        magnitude = gradients.abs().clamp_min(math.exp(-self.p))
        direction = (gradients * math.exp(self.p)).clamp(-1, 1)
        return torch.stack([magnitude.log() / self.p, direction])


_KINDS: dict[str, type[Preprocessing]] = {kind.name: kind for kind in (Identity, Scale, LogSign)}


def make_preprocessing(choice: str | Preprocessing | Mapping[str, object]) -> Preprocessing:
    """A preprocessing from its name, its configuration or itself; a ValueError for another name or setting."""
    if isinstance(choice, Preprocessing):
        return choice
    fields = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    kind = look_up("preprocessing", fields.pop("name", None), _KINDS)
    check_names(f"setting of preprocessing {kind.name!r}", fields, signature(kind).parameters)
    return kind(**fields)
