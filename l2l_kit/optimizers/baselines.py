"""The hand-designed optimizers: torch.optim's own classes behind the kit's contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, optim

from l2l_kit.errors import UnknownNameError
from l2l_kit.tensors import Tensors


class _Kind(NamedTuple):
    """How torch's optimizer is made from tensors and a learning rate, and what it does beyond adding up gradients.

    Attributes:
        make: torch's class with its settings.
        decays: whether it looks at the parameters, as for weight decay.
        others: for one that moves matrices as a whole, the kind that moves all other tensors; None if coordinatewise.
    """

    make: Callable[..., optim.Optimizer]
    decays: bool = False
    others: str | None = None


# Torch7's defaults, which the paper keeps (section 3): momentum 0.9, Adam 0.9/0.999/1e-8, RMSprop 0.99/1e-8.
_KINDS = {
    "sgd": _Kind(optim.SGD),
    "nag": _Kind(partial(optim.SGD, momentum=0.9, nesterov=True)),
    "rmsprop": _Kind(partial(optim.RMSprop, alpha=0.99, eps=1e-8)),
    "adam": _Kind(partial(optim.Adam, betas=(0.9, 0.999), eps=1e-8)),
    # Later ones: Adam with Nesterov's momentum (Dozat, 2016), which `cifar` imitates; with decoupled weight decay
    # (Loshchilov and Hutter, 2019); and momentum made orthogonal (Jordan et al., 2024), with AdamW's learning rates.
    "nadam": _Kind(partial(optim.NAdam, betas=(0.9, 0.99), eps=1e-8, momentum_decay=0.0)),
    "adamw": _Kind(partial(optim.AdamW, weight_decay=0.01), decays=True),
    "muon": _Kind(partial(optim.Muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), decays=True, others="adamw"),
}

BASELINES: dict[str, str] = {"sgd": "SGD", "nag": "NAG", "rmsprop": "RMSprop", "adam": "Adam"}
"""The paper's baselines by name, and how figures and tables write them."""


class BaselineState(NamedTuple):
    """What a baseline works with; `Baseline.update` changes it in place.

    Attributes:
        moved: tensors like the parameters, which torch's optimizers move.
        leaves: by name, what of them is given to torch: the tensor, or the matrix of each task.
        optimizers: torch's.
        schedules: of their learning rates.
    """

    moved: Tensors
    leaves: dict[str, tuple[Tensor, ...]]
    optimizers: list[optim.Optimizer]
    schedules: list[optim.lr_scheduler.LambdaLR]


@dataclass(frozen=True)
class Baseline:
    """A hand-designed optimizer with its learning rate; on a batch every task is on its own.

    Attributes:
        name: "sgd", "nag", "rmsprop", "adam", "nadam", "adamw" or "muon".
        lr: learning rate of the first step.
        decay: τ, in steps, where the learning rate of step t is ``lr / sqrt(1 + t/τ)``; None for a constant one.

    Raises:
        UnknownNameError: for an unknown name; the message offers the nearest one.
        ValueError: if the learning rate or the decay is not a positive number.
    """

    name: str
    lr: float
    decay: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _KINDS:
            raise UnknownNameError("baseline", self.name, _KINDS)
        for what, value in (("lr", self.lr), ("decay", 1.0 if self.decay is None else self.decay)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"baseline {self.name!r}: {what} must be a positive number, got {value!r}.")

    def config(self) -> dict[str, str | float]:
        """What describes it in JSON. What is not set is left out, so that a new field changes no old description."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def init(self, params: Tensors) -> BaselineState:
        """As in `Optimizer`."""
        moved = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        leaves: dict[str, tuple[Tensor, ...]] = {}
        by_kind: dict[str, list[Tensor]] = {}
        for name, tensor in moved.items():
            others = _KINDS[self.name].others
            is_matrix = others is not None and tensor.dim() == 3  # with the axis of the tasks
            leaves[name] = tensor.unbind() if is_matrix else (tensor,)
            by_kind.setdefault(self.name if is_matrix or others is None else others, []).extend(leaves[name])
        optimizers = [_KINDS[kind].make(tensors, lr=self.lr) for kind, tensors in by_kind.items()]
        schedules = [optim.lr_scheduler.LambdaLR(each, self._factor) for each in optimizers]
        return BaselineState(moved, leaves, optimizers, schedules)

    def _factor(self, step: int) -> float:
        return 1.0 if self.decay is None else (1 + step / self.decay) ** -0.5

    @torch.no_grad()
    def update(self, gradients: Tensors, state: BaselineState, params: Tensors) -> tuple[Tensors, BaselineState]:
        """What torch's optimizer adds to the parameters when it meets these gradients."""
        # Where an optimizer does not look at the parameters, it moves zeros: they become the update, not rounded.
        decays = _KINDS[self.name].decays
        for name, tensor in state.moved.items():
            tensor.copy_(params[name]) if decays else tensor.zero_()
            leaves, gradient = state.leaves[name], gradients[name]
            split = leaves[0].dim() < gradient.dim()
            for leaf, of_leaf in zip(leaves, gradient.unbind() if split else (gradient,), strict=True):
                leaf.grad = of_leaf
        for optimizer, schedule in zip(state.optimizers, state.schedules, strict=True):
            optimizer.step()
            schedule.step()
        return {n: t - params[n] if decays else t.clone() for n, t in state.moved.items()}, state


def baseline(name: str, lr: float, decay: float | None = None) -> Baseline:
    """A baseline by name, in any case; the rest as in `Baseline`."""
    return Baseline(name.lower(), lr, decay)
