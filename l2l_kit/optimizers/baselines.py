"""The hand-designed optimizers: classes of torch.optim and schedulefree behind the kit's contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, optim

from l2l_kit.errors import Positive, check_fields, look_up
from l2l_kit.extras import needs
from l2l_kit.optimizers.base import by_kind
from l2l_kit.tensors import Tensors


def _schedule_free(params: list[Tensor], lr: float) -> optim.Optimizer:
    with needs("lessons"):
        from schedulefree import AdamWScheduleFree
    # ε and the decay let a network that fits all of its data come to rest; both were chosen on CIFAR-10 and CIFAR-2.
    optimizer = AdamWScheduleFree(params, lr, betas=(0.9, 0.99), eps=0.01, weight_decay=0.1, r=1.0)
    optimizer.train()
    optimizer.register_step_pre_hook(_copy_gradients)  # it overwrites them
    return cast(optim.Optimizer, optimizer)


def _copy_gradients(optimizer: optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            tensor.grad = tensor.grad.clone()


class _Kind(NamedTuple):
    make: Callable[..., optim.Optimizer]  # torch's class with its settings
    reads: bool = False  # whether it reads the parameters
    others: str | None = None  # for an optimizer of matrices: the kind that moves all other tensors


# Torch7's defaults, which the paper keeps (section 3): momentum 0.9, Adam 0.9/0.999/1e-8, RMSprop 0.99/1e-8.
KINDS = {
    "sgd": _Kind(optim.SGD),
    "nag": _Kind(partial(optim.SGD, momentum=0.9, nesterov=True)),
    "rmsprop": _Kind(partial(optim.RMSprop, alpha=0.99, eps=1e-8)),
    "adam": _Kind(partial(optim.Adam, betas=(0.9, 0.999), eps=1e-8)),
    # Later ones: Adam with decoupled weight decay (Loshchilov and Hutter, 2019); orthogonalized momentum
    # (Jordan et al., 2024), with AdamW's learning rates.
    "adamw": _Kind(partial(optim.AdamW, weight_decay=0.01), reads=True),
    "muon": _Kind(partial(optim.Muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), reads=True, others="adamw"),
    # Adam in schedule-free form (Defazio et al., 2024): the parameters stay near the running mean of where it has been.
    "schedule-free": _Kind(_schedule_free, reads=True),
}

BASELINES: dict[str, str] = {"sgd": "SGD", "nag": "NAG", "rmsprop": "RMSprop", "adam": "Adam"}
"""The paper's baselines by name, with their labels in figures and tables."""


def _matrices(tensor: Tensor) -> tuple[Tensor, ...]:
    """Each task's matrix of ``(tasks, rows, ...)``: a kernel has a row for each output channel."""
    return tensor.flatten(2).unbind()


class BaselineState(NamedTuple):
    """The optimizers of a run; `Baseline.update` changes them in place."""

    moved: Tensors  # tensors like the parameters, which torch's optimizers move
    leaves: dict[str, tuple[Tensor, ...]]  # their views that torch's optimizers get: the tensor, or each task's matrix
    optimizers: list[optim.Optimizer]
    step: int = 0


@dataclass(frozen=True)
class Baseline:
    """A hand-designed optimizer with its learning rate. It treats each task of a batch independently.

    Raises:
        ValueError: for an unknown name (`UnknownNameError`), or a number that makes no sense.
    """

    name: str  # "sgd", "nag", "rmsprop", "adam", "adamw", "muon" or "schedule-free"
    lr: Positive  # learning rate of the first step
    decay: Positive | None = None  # τ in steps: the learning rate of step t is lr / sqrt(1 + t/τ), or lr for None
    cosine: Positive | None = None  # T in steps: it falls to 0 along half a cosine, over T steps

    def __post_init__(self) -> None:
        look_up("baseline", self.name, KINDS)
        check_fields(self, f"baseline {self.name!r}")

    def config(self) -> dict[str, str | float]:
        """The arguments of this baseline. Those that change nothing are left out, as in old files."""
        return {name: value for name, value in asdict(self).items() if value}

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0, by the schedule."""
        decayed = self.lr if self.decay is None else self.lr * (1 + step / self.decay) ** -0.5
        if self.cosine is None:
            return decayed
        return decayed * (1 + math.cos(math.pi * min(step / self.cosine, 1))) / 2

    def init(self, params: Tensors) -> BaselineState:
        moved = {n: torch.zeros_like(t, memory_format=torch.contiguous_format) for n, t in params.items()}
        leaves: dict[str, tuple[Tensor, ...]] = {}
        tensors: dict[str, list[Tensor]] = {}
        for name, tensor in moved.items():
            others = KINDS[self.name].others
            is_matrix = others is not None and tensor.dim() >= 3  # with the axis of the tasks
            leaves[name] = _matrices(tensor) if is_matrix else (tensor,)
            tensors.setdefault(self.name if is_matrix or others is None else others, []).extend(leaves[name])
        optimizers = [KINDS[kind].make(some, lr=self.lr) for kind, some in tensors.items()]
        return BaselineState(moved, leaves, optimizers)

    @torch.no_grad()
    def update(self, gradients: Tensors, state: BaselineState, params: Tensors) -> tuple[Tensors, BaselineState]:
        # An optimizer that does not read the parameters moves zeros, which become the update without rounding.
        reads = KINDS[self.name].reads
        for name, tensor in state.moved.items():
            tensor.copy_(params[name]) if reads else tensor.zero_()
            leaves, gradient = state.leaves[name], gradients[name]
            split = leaves[0].dim() < gradient.dim()
            for leaf, of_leaf in zip(leaves, _matrices(gradient) if split else (gradient,), strict=True):
                leaf.grad = of_leaf
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(state.step)
            optimizer.step()
        updates = {n: t - params[n] if reads else t.clone() for n, t in state.moved.items()}
        return updates, state._replace(step=state.step + 1)


def baseline(name: str, lr: float, decay: float | None = None, cosine: float | None = None) -> Baseline:
    """A hand-designed optimizer.

    Args:
        name: "sgd", "nag", "rmsprop", "adam", "adamw", "muon" or "schedule-free", in upper or lower case.
        lr: learning rate of the first step.
        decay: τ in steps: the learning rate of step t is lr / sqrt(1 + t/τ); None for no decay.
        cosine: T in steps: the learning rate falls to 0 along half a cosine, over T steps; None for no fall.

    Raises:
        ValueError: for an unknown name (`UnknownNameError`), or a number that makes no sense.
    """
    return Baseline(str(name).lower(), lr, decay, cosine)


class GroupedBaselines:
    """A hand-designed optimizer for each kind of parameter, as `GroupedRule` has a learned one."""

    def __init__(self, groups: Mapping[str, Baseline]) -> None:
        self.groups = dict(groups)

    def config(self) -> dict[str, object]:
        """The arguments of its baselines, by kind."""
        return {kind: optimizer.config() for kind, optimizer in self.groups.items()}

    def init(self, params: Tensors) -> dict[str, Any]:
        """As in `Optimizer`; the states by kind. An UnknownNameError names a kind that has no optimizer."""
        return {
            kind: look_up("kind of parameter", kind, self.groups).init(named) for kind, named in by_kind(params).items()
        }

    def update(self, gradients: Tensors, state: dict[str, Any], params: Tensors) -> tuple[Tensors, dict[str, Any]]:
        updates, after = dict(gradients), {}  # in the order of the gradients
        for kind, named in by_kind(gradients).items():
            own = {name: params[name] for name in named}
            moved, after[kind] = self.groups[kind].update(named, state[kind], own)
            updates |= moved
        return updates, after
