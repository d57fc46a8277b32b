"""The hand-designed optimizers of the paper's figures: torch.optim's own classes behind the kit's contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l2l_kit.errors import UnknownNameError
from l2l_kit.tensors import Tensors

# Torch7's defaults, which the paper keeps (section 3): momentum 0.9, Adam 0.9/0.999/1e-8, RMSprop 0.99/1e-8. NAdam
# (Dozat, 2016), which is Adam with Nesterov's momentum, is not in the paper; it is what `cifar` learned first.
_TORCH_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD),
    "nag": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.99, eps=1e-8),
    "adam": partial(torch.optim.Adam, betas=(0.9, 0.999), eps=1e-8),
    "nadam": partial(torch.optim.NAdam, betas=(0.9, 0.99), eps=1e-8, momentum_decay=0.0),
}

BASELINES: dict[str, str] = {"sgd": "SGD", "nag": "NAG", "rmsprop": "RMSprop", "adam": "Adam"}
"""The paper's baselines by name, and how figures and tables write them."""


@dataclass
class BaselineState:
    """A torch optimizer with its schedule, and the tensors that it moves."""

    torch_optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    moved: dict[str, Tensor]


@dataclass(frozen=True)
class Baseline:
    """A hand-designed optimizer with its learning rate.

    All of them are coordinatewise, so that on a batch every optimizee is on its own.

    Attributes:
        name: one of `BASELINES`, or "nadam".
        lr: learning rate of the first step.
        decay: τ, in steps, where the learning rate of step t is ``lr / sqrt(1 + t/τ)``; None for a constant one.
    """

    name: str
    lr: float
    decay: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _TORCH_OPTIMIZERS:
            raise UnknownNameError("baseline", self.name, _TORCH_OPTIMIZERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"baseline {self.name!r}: lr must be a positive number, got {self.lr!r}.")
        if self.decay is not None and not (math.isfinite(self.decay) and self.decay > 0):
            raise ValueError(f"baseline {self.name!r}: decay must be a positive number of steps, got {self.decay!r}.")

    def config(self) -> dict[str, Any]:
        """What describes it in JSON. What is not set is left out, so that a new field changes no old description."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def init(self, params: Tensors) -> BaselineState:
        """A fresh torch optimizer for parameters of these shapes."""
        moved = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        torch_optimizer = _TORCH_OPTIMIZERS[self.name](moved.values(), lr=self.lr)
        return BaselineState(torch_optimizer, torch.optim.lr_scheduler.LambdaLR(torch_optimizer, self._factor), moved)

    def _factor(self, step: int) -> float:
        return 1.0 if self.decay is None else (1 + step / self.decay) ** -0.5

    @torch.no_grad()
    def update(self, gradients: Tensors, state: BaselineState) -> tuple[Tensors, BaselineState]:
        """What torch's optimizer adds to the parameters when it meets these gradients."""
        # None of these rules looks at the parameters, so the optimizer may move tensors that are zero: where they
        # end up is the update itself.
        for name, tensor in state.moved.items():
            tensor.zero_()
            tensor.grad = gradients[name]
        state.torch_optimizer.step()
        state.schedule.step()
        return {name: tensor.clone() for name, tensor in state.moved.items()}, state


def baseline(name: str, lr: float, decay: float | None = None) -> Baseline:
    """A baseline by name ("sgd", "nag", "rmsprop", "adam" or "nadam", in any case); the rest as in `Baseline`.

    Raises:
        UnknownNameError: for an unknown name; the message offers the nearest one.
        ValueError: if the learning rate or the decay is not a positive number.
    """
    return Baseline(name.lower(), lr, decay)
