"""A learned optimizer on one's own model, as a `torch.optim.Optimizer`."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT, StateDict

from l2l_kit import zoo
from l2l_kit.errors import WeightsFileError
from l2l_kit.optimizers import LearnedRule, RecurrentRule

CHUNK = 2**16
"""Coordinates that are updated at once: it bounds the memory that a large parameter takes on top of its state."""

_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
        nn.GroupNorm,
    ),
    "fc": (nn.Linear, nn.BatchNorm1d, nn.LayerNorm),
}


class LearnedOptimizer(torch.optim.Optimizer):
    """Moves parameters by a learned update rule where torch.optim.Adam would move them by Adam's.

    Each coordinate has an LSTM state of its own: ``2 · layers · hidden`` floats (80 with the paper's sizes, so 320
    bytes), kept in the rule's precision, whatever that of the parameter, or in half of that as `state_dtype` says.

    Args:
        params: parameters or parameter groups, as for every torch optimizer. A rule that is made of several, one for
            each kind of parameter, needs groups that say their ``kind``: see `parameter_groups`.
        rule: a pretrained optimizer by name, a path to a saved one, or a learned optimizer (a copy of it is used).
        lr: factor on the learned updates. 1.0 is what the rule was trained for; learning-rate schedulers may move it.
        state_dtype: type in which the state is kept between steps, such as torch.bfloat16, which takes half the memory
            and rounds what the rule remembers to three digits; None for the rule's own. It computes in its own anyway.

    Raises:
        UnknownNameError: if no pretrained optimizer has that name, or it has no rule for a kind of parameter.
        WeightsFileError: if the saved optimizer cannot be read.
        ValueError: for a negative `lr`, or a `state_dtype` that has no fractions.
        TypeError: for parameters that are not real floating-point tensors.
    """

    def __init__(
        self,
        params: ParamsT,
        rule: str | Path | LearnedRule,
        lr: float = 1.0,
        *,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if state_dtype is not None and not state_dtype.is_floating_point:
            raise ValueError(f"LearnedOptimizer: state_dtype must be a floating-point type, got {state_dtype}.")
        self._state_dtype = state_dtype
        loaded = copy.deepcopy(rule) if isinstance(rule, LearnedRule) else zoo.load(rule)
        self._rule = loaded.cpu().requires_grad_(False)
        self._rule_on: dict[torch.device, LearnedRule] = {}
        super().__init__(params, {"lr": lr, "kind": None, "rule": _fingerprint(self._rule)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; they begin with a fresh state."""
        super().add_param_group(param_group)
        group = self.param_groups.pop()  # a group that is refused is not kept
        if group["rule"] != self.defaults["rule"]:
            raise ValueError(
                "LearnedOptimizer: a group cannot have a rule of its own; use one optimizer for each rule."
            )
        if not (math.isfinite(group["lr"]) and group["lr"] >= 0):
            raise ValueError(f"LearnedOptimizer: lr must be a number of at least 0, got {group['lr']!r}.")
        self._rule.network_for(group["kind"])
        for param in group["params"]:
            if not param.is_floating_point():
                raise TypeError(f"LearnedOptimizer: parameters must be floating-point tensors, got {param.dtype}.")
        self.param_groups.append(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss, as for every torch optimizer.

        Returns:
            What the closure returned, if there is one.

        Raises:
            RuntimeError: for sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        together: dict[RecurrentRule[Any], list[tuple[Tensor, float]]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                network = self._rule_for(param.device).network_for(group["kind"])
                if network.coupled:
                    together.setdefault(network, []).append((param, group["lr"]))
                elif param.grad is not None:
                    self._move(param, network, group["lr"])
        for network, params in together.items():
            self._move_together(params, network)
        return loss

    def _move(self, param: Tensor, network: RecurrentRule[Any], lr: float) -> None:
        state = self._memory(param, network)
        gradient = _gradient(param, network)
        updates = torch.empty_like(gradient)
        for first in range(0, len(gradient), CHUNK):
            part = slice(first, first + CHUNK)
            before = type(state)(*(values[..., part].to(gradient.dtype) for values in state))
            updates[part], new = network.step(gradient[part], before)
            for values, after in zip(state, new, strict=True):
                values[..., part] = after
        param.add_(updates.view(param.shape).to(param.dtype), alpha=lr)

    def _move_together(self, params: list[tuple[Tensor, float]], network: RecurrentRule[Any]) -> None:
        """Update parameters whose coordinates learn of each other: all of them, or none."""
        without = sum(param.grad is None for param, _ in params)
        if without == len(params):
            return
        if without:
            raise RuntimeError(
                f"LearnedOptimizer: this rule moves all coordinates together, but {without} of {len(params)} "
                "parameters have no gradient; leave those that do not take part out of the optimizer."
            )
        states = [self._memory(param, network) for param, _ in params]
        gradients = torch.cat([_gradient(param, network) for param, _ in params])
        sizes = [param.numel() for param, _ in params]
        joined = (torch.cat(values, dim=-1).to(gradients.dtype) for values in zip(*states, strict=True))
        updates, state = network.step(gradients, type(states[0])(*joined))
        pieces = zip(*(values.split_with_sizes(sizes, dim=-1) for values in state), strict=True)
        for (param, lr), update, piece in zip(params, updates.split_with_sizes(sizes), pieces, strict=True):
            self.state[param].update(self._kept(type(state)(*piece)))
            param.add_(update.view(param.shape).to(param.dtype), alpha=lr)

    def _memory(self, param: Tensor, network: RecurrentRule[Any]) -> Any:
        """What the network remembers of a parameter, as its state."""
        fresh = network.initial_state(param.numel())
        if param not in self.state:
            self.state[param].update(self._kept(fresh))
        return type(fresh)(**self.state[param])

    def _kept(self, state: Any) -> dict[str, Tensor]:
        """A state as it is kept between steps: tensors of its own, by name."""
        return {name: values.to(self._state_dtype, copy=True) for name, values in state._asdict().items()}

    def _rule_for(self, device: torch.device) -> LearnedRule:
        if device not in self._rule_on:
            self._rule_on[device] = copy.deepcopy(self._rule).to(device)
        return self._rule_on[device]

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Continue from a `state_dict`, bit for bit.

        Raises:
            WeightsFileError: if it is the state of another learned rule, for which it has no meaning.
            ValueError: if its parameter groups differ from this optimizer's.
        """
        for group in state_dict["param_groups"]:
            if group.get("rule") != self.defaults["rule"]:
                raise WeightsFileError(
                    f"LearnedOptimizer: this state belongs to another learned rule ({group.get('rule')}, not "
                    f"{self.defaults['rule']}). Build the optimizer with the rule that made it."
                )
        super().load_state_dict(state_dict)
        # torch casts the state to each parameter's type; the LSTM's keeps its own.
        mine = (param for group in self.param_groups for param in group["params"])
        theirs = (index for group in state_dict["param_groups"] for index in group["params"])
        for param, index in zip(mine, theirs, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[param][name] = value.to(param.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rule": self._rule, "_rule_on": {}, "_state_dtype": self._state_dtype}


def _gradient(param: Tensor, network: RecurrentRule[Any]) -> Tensor:
    """Its gradient, flat, in the network's precision."""
    if param.grad is None or param.grad.is_sparse:
        raise RuntimeError("LearnedOptimizer does not support sparse gradients; use dense ones.")
    return param.grad.to(next(network.parameters()).dtype).flatten()


def parameter_groups(model: nn.Module, kind_of: Callable[[str, nn.Module], str] | None = None) -> list[dict[str, Any]]:
    """A model's parameters by kind, for a `LearnedOptimizer` whose rule is made of several.

    Args:
        model: any module.
        kind_of: from the name of a submodule and the submodule to the kind of the parameters that it has itself. None
            for "conv" for convolutions and the normalisation of their channels, "fc" for linear layers and theirs.

    Returns:
        Parameter groups with ``kind`` and ``params``; each parameter once, frozen ones left out.

    Raises:
        TypeError: for a module with parameters whose kind is not known; the message says to give `kind_of`.
    """
    kind_of = kind_of or _kind_by_type
    kinds: dict[str, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        mine = [param for param in module.parameters(recurse=False) if param.requires_grad and param not in seen]
        if mine:
            kinds.setdefault(kind_of(name, module), []).extend(mine)
            seen.update(mine)
    return [{"kind": kind, "params": params} for kind, params in kinds.items()]


def _kind_by_type(name: str, module: nn.Module) -> str:
    for kind, types in _KINDS.items():
        if isinstance(module, types):
            return kind
    raise TypeError(
        f"parameter_groups: no kind of parameter is known for {name!r}, a {type(module).__name__}; give a function "
        'kind_of(name, module) that says "conv", "fc" or another kind that the optimizer has.'
    )


def _fingerprint(rule: LearnedRule) -> str:
    """Identifies the rule to which an optimizer's state belongs."""
    digest = hashlib.blake2b(repr(sorted(rule.config().items())).encode(), digest_size=8)
    for tensor in rule.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
