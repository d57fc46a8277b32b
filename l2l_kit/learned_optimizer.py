"""A learned update rule on your own model, as a `torch.optim.Optimizer`."""

from __future__ import annotations

import copy
import numbers
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT, StateDict

from l2l_kit import zoo
from l2l_kit.errors import NotNegative, WeightsFileError, check_number
from l2l_kit.optimizers import LSTMRule, UpdateRule
from l2l_kit.optimizers.base import Memory, check_network, map_state

CHUNK = 2**16
"""Coordinates that are updated at once. It bounds the memory that a large parameter needs in addition to its state."""

_OPTIONS = {"params", "lr", "weight_decay", "kind", "fingerprint"}
# Entries that torch's schedulers, Lightning and timm write into groups, and read there themselves.
_LABELS = {"param_names", "name", "initial_lr", "max_lr", "min_lr", "swa_lr"}
_LABELS |= {"base_momentum", "max_momentum", "lr_scale"}


class LearnedOptimizer(torch.optim.Optimizer):
    """Moves parameters by a learned update rule, as torch.optim.Adam moves them by Adam's.

    Each coordinate has its own LSTM state of ``2 · layers · hidden`` floats: 80 with the paper's sizes, or 320 bytes.
    An odd rule, such as "cifar", keeps twice as many. A step needs another 60 MB, and 4 bytes per coordinate of the
    largest parameter (10 in half precision). A coordinate whose gradient has always been exactly zero stays where it
    is, such as the row of a padding token; the rule alone would move it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer. A group may have its own ``lr`` and
            ``weight_decay``. A rule with a network for each kind of parameter needs groups with a ``kind`` (see
            `parameter_groups`). Other options are refused, except those of torch's schedulers.
        rule: name of a pretrained rule, path of a saved one, or a rule, which is copied.
        lr: factor on the learned updates. Rules are trained for 1.0; learning-rate schedulers may change it.
        weight_decay: decoupled from the gradient as in AdamW: θ ← θ − lr · weight_decay · θ. It should be smaller than
            Adam's by the same factor by which `lr` is larger.
        state_dtype: type of the state between steps, None for the rule's own, in which it computes. torch.bfloat16
            halves the memory and rounds the state to three digits.

    Raises:
        ValueError: for a name or a kind of parameter that does not exist (`UnknownNameError`), a saved rule that cannot
            be read (`WeightsFileError`), an option that makes no sense or would be ignored, or sharded parameters
            (DTensors) with a rule that is not coordinatewise.
    """

    def __init__(
        self,
        params: ParamsT,
        rule: str | Path | UpdateRule,
        lr: float | Tensor = 1.0,
        *,
        weight_decay: float = 0.0,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(params, Iterable):
            raise TypeError(f"LearnedOptimizer: expected parameters, as of model.parameters(), got {params!r}.")
        if state_dtype is not None and not (isinstance(state_dtype, torch.dtype) and state_dtype.is_floating_point):
            raise ValueError(f"LearnedOptimizer: state_dtype must be a floating-point type, got {state_dtype!r}.")
        if not isinstance(rule, UpdateRule | str | Path):
            raise TypeError(
                f"LearnedOptimizer: expected a learned rule, the name of one or a path to one, got {rule!r}. "
                "A learning rate is given as lr=..., and is a factor on the updates."
            )
        loaded = copy.deepcopy(rule) if isinstance(rule, UpdateRule) else zoo.load(rule)
        self._rule = loaded.cpu().requires_grad_(False)
        self._rule_on: dict[torch.device, UpdateRule] = {}
        self._fingerprint = self._rule.fingerprint()
        which = self._rule if isinstance(rule, UpdateRule) else rule
        # `defaults` are the arguments, because others build such an optimizer by type(o)(params, **o.defaults).
        super().__init__(params, {"rule": which, "lr": lr, "weight_decay": weight_decay, "state_dtype": state_dtype})

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add parameters; they begin with a fresh state."""
        super().add_param_group(param_group)
        group = self.param_groups.pop()  # a group that is refused is not kept
        for name in ("rule", "state_dtype"):
            if group.pop(name) != self.defaults[name]:
                raise ValueError(f"LearnedOptimizer: a group cannot have its own {name}; use one optimizer for each.")
        if group.setdefault("fingerprint", self._fingerprint) != self._fingerprint:
            raise ValueError("LearnedOptimizer: this group belongs to an optimizer with another learned rule.")
        if unknown := sorted(group.keys() - _OPTIONS - _LABELS):
            raise ValueError(
                f"LearnedOptimizer: the options {', '.join(map(repr, unknown))} of a group would have no effect; take "
                "them out. A group may have its own 'lr', 'weight_decay' and 'kind'."
            )
        for name in ("lr", "weight_decay"):
            value = group[name].detach() if isinstance(group[name], Tensor) else group[name]
            number = float(value) if isinstance(value, numbers.Real | Tensor) else value
            check_number("LearnedOptimizer", name, number, NotNegative)
        network = self._rule.network_for(group.setdefault("kind", None))
        check_network(network, 3)
        if any(part.any() for part in network.initial_state(3)):
            raise TypeError(
                f"{type(network).__name__}.initial_state: expected zeros, with which LearnedOptimizer begins."
            )
        if not network.coordinatewise and any(map(_is_sharded, group["params"])):
            raise ValueError(
                "LearnedOptimizer: this rule moves all coordinates together, but several processes share these "
                "parameters (DTensors of FSDP2 or tensor parallelism). Use a rule that is coordinatewise."
            )
        self.param_groups.append(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; a RuntimeError for sparse ones.

        A closure evaluates the model again and returns the loss, as for every torch optimizer, and so does this then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        together: dict[LSTMRule, list[tuple[Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                network = self._network(param, group)
                if not network.coordinatewise:
                    together.setdefault(network, []).append((param, group))
                elif param.grad is not None:
                    self._move(param, network, group)
        for network, params in together.items():
            self._move_together(params, network)
        return loss

    def _move(self, param: Tensor, network: LSTMRule, group: dict[str, Any]) -> None:
        gradient, state = _gradient(param, network), self._memory(param, network)
        updates = torch.empty_like(gradient)
        for first in range(0, len(gradient), CHUNK):
            part = slice(first, first + CHUNK)
            before = type(state)(*(values[..., part].to(gradient.dtype) for values in state))
            updates[part], after = _advanced(network, gradient[part], before)
            for values, new in zip(state, after, strict=True):
                values[..., part] = new
        _add(param, updates, group)

    def _move_together(self, params: list[tuple[Tensor, dict[str, Any]]], network: LSTMRule) -> None:
        """Update parameters whose coordinates depend on each other: all of them, or none."""
        if (without := sum(param.grad is None for param, _ in params)) == len(params):
            return
        if without:
            raise RuntimeError(
                f"LearnedOptimizer: this rule moves all coordinates together, but {without} of {len(params)} "
                "parameters have no gradient; leave those that do not take part out of the optimizer."
            )
        gradients = [_gradient(param, network) for param, _ in params]
        sizes = [len(gradient) for gradient in gradients]
        states = [self._memory(param, network) for param, _ in params]
        joined = (_side_by_side(parts).to(gradients[0].dtype) for parts in zip(*states, strict=True))
        updates, state = _advanced(network, torch.cat(gradients), type(states[0])(*joined))
        pieces = zip(*(values.split_with_sizes(sizes, dim=-1) for values in state), strict=True)
        for (param, group), update, piece in zip(params, updates.split_with_sizes(sizes), pieces, strict=True):
            self.state[param] = self._kept(param, network, dict(zip(self.state[param], piece, strict=True)))
            _add(param, update, group)

    def _network(self, param: Tensor, group: dict[str, Any]) -> LSTMRule:
        if param.device not in self._rule_on:
            self._rule_on[param.device] = copy.deepcopy(self._rule).to(param.device)
        return self._rule_on[param.device].network_for(group["kind"])

    def _memory(self, param: Tensor, network: LSTMRule) -> Memory:
        """The network's state of a parameter: views ``(..., coordinates)`` of what this process keeps."""
        empty, shape = network.initial_state(0), _local(param).shape
        if not self.state[param]:  # none yet, or an empty one, which it gets when a user looks at it
            zeros = torch.zeros_like(_real(param))  # sharded as the parameter is, and so is the state
            fresh: Any = map_state(empty, lambda part: zeros.expand(*part.shape[:-1], *zeros.shape))
            self.state[param] = self._kept(param, network, fresh._asdict())
        kept = map(_local, self.state[param].values())
        return type(empty)(*(values.view(*values.shape[: values.dim() - len(shape)], shape.numel()) for values in kept))

    def _kept(self, param: Tensor, network: LSTMRule, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state as it is kept between steps: tensors of its own, ``(..., *shape of the parameter)``."""
        empty: Any = network.initial_state(0)
        dtype, kept = self.defaults["state_dtype"] or empty[0].dtype, {}
        for name, part in empty._asdict().items():
            shape = state[name].shape[part.dim() - 1 :] if is_lazy(param) else _real(param).shape
            shaped = state[name].reshape(*state[name].shape[: part.dim() - 1], *shape)
            kept[name] = shaped.to(param.device, dtype, copy=True, memory_format=torch.contiguous_format)
        return kept

    def _check_shape(self, param: Tensor, network: LSTMRule, state: dict[str, Tensor], index: int) -> None:
        """Refuse a parameter's state that is another shape's, before anything is changed."""
        if is_lazy(param):  # its shape is not known yet
            return
        shape, empty = _real(param).shape, cast(Any, network.initial_state(0))._asdict()
        tails = {name: values.shape[empty[name].dim() - 1 :] for name, values in state.items() if name in empty}
        if state and (tails.keys() != empty.keys() or not set(tails.values()) <= {shape, torch.Size([shape.numel()])}):
            found = ", ".join(sorted({str(tuple(tail)) for tail in tails.values()})) or "another kind"
            raise WeightsFileError(
                f"LearnedOptimizer: the state of parameter {index} is of shape {found}, the parameter {tuple(shape)}. "
                "Give the parameters in the order in which they were saved."
            )

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Continue from a `state_dict`, bit for bit; a ValueError if it is another rule's, or its groups differ."""
        given: StateDict = {}

        def check(_: torch.optim.Optimizer, state_dict: StateDict) -> None:
            given.update(state_dict)
            for group in given["param_groups"]:
                found = group.get("fingerprint", group.get("rule"))  # its first name
                if found != self._fingerprint:
                    owner = f"another learned rule ({found}, not {self._fingerprint})" if found else "another optimizer"
                    raise WeightsFileError(
                        f"LearnedOptimizer: this state belongs to {owner}. Build the optimizer that made it."
                    )
            for group, theirs in zip(self.param_groups, given["param_groups"], strict=False):  # torch counts them
                for param, index in zip(group["params"], theirs["params"], strict=False):
                    self._check_shape(param, self._network(param, group), given["state"].get(index) or {}, index)

        def restore(_: torch.optim.Optimizer) -> None:
            for group, from_group in zip(self.param_groups, given["param_groups"], strict=True):
                for param, index in zip(group["params"], from_group["params"], strict=True):
                    if given["state"].get(index):
                        self.state[param] = self._kept(param, self._network(param, group), given["state"][index])

        # Between the user's hooks. torch alone would cast the state to the type of each parameter.
        with (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_rule": self._rule, "_rule_on": {}, "_fingerprint": self._fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch puts it there; it is not an argument
        for group in self.param_groups:  # an older version may have saved them
            group.pop("rule", None)
            group.update({"weight_decay": 0.0, "kind": None, **group, "fingerprint": self._fingerprint})


def _side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    """States of several parameters as one; a parameter that was added later has zeros for the writes before it."""
    longest = max(map(len, parts))
    grown = (torch.cat([part.new_zeros(longest - len(part), *part.shape[1:]), part]) for part in parts)
    return torch.cat([*grown], dim=-1)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # a DTensor, whose import takes a second


def _real(tensor: Tensor) -> Tensor:
    """A view of a complex tensor's real and imaginary parts, which are two coordinates, as for Adam."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _local(tensor: Any) -> Tensor:
    """A view of the coordinates on this process."""
    return _real(tensor.to_local() if _is_sharded(tensor) else tensor)


def _gradient(param: Any, network: LSTMRule) -> Tensor:
    """The gradient on this process, flat, in the network's precision."""
    gradient: Any = param.grad
    if gradient is None or gradient.layout is not torch.strided:
        raise RuntimeError("LearnedOptimizer does not support sparse gradients; use dense ones.")
    if _is_sharded(gradient):
        gradient = gradient.redistribute(placements=param.placements)
    return _local(gradient.resolve_conj()).flatten().to(next(network.parameters()).dtype)


def _advanced(network: LSTMRule, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
    """One step of the network, in its own precision, for the coordinates that have ever had a gradient."""
    device = gradients.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        updates, after = network.step(gradients, state)
    seen = gradients != 0
    if device == "cpu" and seen.all():  # as nearly always; elsewhere one would wait for the answer
        return updates, after
    for part in state:  # only initial states are zero
        seen.logical_or_(part.abs().reshape(part.shape[:-1].numel(), len(gradients)).sum(dim=0))
    return updates.mul_(seen), map_state(after, lambda values: values.mul_(seen))


def _add(param: Tensor, updates: Tensor, group: dict[str, Any]) -> None:
    values, lr = _local(param), group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
    if group["weight_decay"]:
        values.mul_(1 - lr * group["weight_decay"])
    values.add_(updates.view(values.shape).to(values.dtype), alpha=lr)
