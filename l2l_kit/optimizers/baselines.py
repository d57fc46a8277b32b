"""The hand-designed optimizers of the paper's figures: torch.optim's own classes behind the kit's contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from l2l_kit.errors import UnknownNameError
from l2l_kit.tensors import Tensors

# Torch7's defaults, which the paper keeps (section 3): momentum 0.9, Adam 0.9/0.999/1e-8, RMSprop 0.99/1e-8.
_TORCH_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD),
    "nag": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.99, eps=1e-8),
    "adam": partial(torch.optim.Adam, betas=(0.9, 0.999), eps=1e-8),
    # One gradient is one step, as everybody paints with it: without a line search, which would ask for more.
    "lbfgs": partial(torch.optim.LBFGS, max_iter=1, history_size=10, tolerance_grad=0, tolerance_change=0),
}

BASELINES: dict[str, str] = {"sgd": "SGD", "nag": "NAG", "rmsprop": "RMSprop", "adam": "Adam"}
"""Names of the baselines, and how figures and tables write them."""
LABELS: dict[str, str] = {**BASELINES, "lbfgs": "L-BFGS"}
"""Of all hand-designed optimizers: the paper's baselines, and L-BFGS, the usual one for neural art."""


@dataclass
class BaselineState:
    """Torch optimizers and the tensors that they move."""

    torch_optimizers: list[torch.optim.Optimizer]
    moved: dict[str, Tensor]


@dataclass(frozen=True)
class Baseline:
    """One of `LABELS` with its learning rate.

    The paper's are coordinatewise, so that on a batch every optimizee is on its own; L-BFGS looks at all coordinates of
    an optimizee together, and there is one for each.
    """

    name: str
    lr: float

    def __post_init__(self) -> None:
        if self.name not in _TORCH_OPTIMIZERS:
            raise UnknownNameError("baseline", self.name, _TORCH_OPTIMIZERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"baseline {self.name!r}: lr must be a positive number, got {self.lr!r}.")

    def init(self, params: Tensors) -> BaselineState:
        """Fresh torch optimizers for parameters of these shapes."""
        moved = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        alone = self._alone(moved)
        return BaselineState([_TORCH_OPTIMIZERS[self.name](each, lr=self.lr) for each in alone], moved)

    @torch.no_grad()
    def update(self, gradients: Tensors, state: BaselineState) -> tuple[Tensors, BaselineState]:
        """What torch's optimizers add to the parameters when they meet these gradients."""
        # None of these rules looks at the parameters or losses, so the optimizers may move tensors that are zero: where
        # they end up is the update itself.
        for tensor in state.moved.values():
            tensor.zero_()
        for torch_optimizer, its in zip(state.torch_optimizers, self._alone(gradients), strict=True):
            for tensor, gradient in zip(torch_optimizer.param_groups[0]["params"], its, strict=True):
                tensor.grad = gradient
            torch_optimizer.step(lambda: 0.0)
        return {name: tensor.clone() for name, tensor in state.moved.items()}, state

    def _alone(self, tensors: Tensors) -> list[tuple[Tensor, ...]]:
        """The tensors of each torch optimizer: one has all of them, or there is one for each optimizee."""
        return [tuple(tensors.values())] if self.name in BASELINES else list(zip(*tensors.values(), strict=True))


def baseline(name: str, lr: float) -> Baseline:
    """A baseline by name ("sgd", "nag", "rmsprop", "adam" or "lbfgs", in any case) and learning rate.

    Raises:
        UnknownNameError: for an unknown name; the message offers the nearest one.
        ValueError: if the learning rate is not a positive number.
    """
    return Baseline(name.lower(), lr)
