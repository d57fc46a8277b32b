"""One LSTM for each kind of parameter (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from l2l_kit.errors import UnknownNameError, look_up
from l2l_kit.optimizers.base import Part, UpdateRule, by_kind
from l2l_kit.optimizers.lstm import LSTMRule
from l2l_kit.tensors import Layout, parameter_kinds


class GroupedRule(UpdateRule):
    """A rule with an LSTM for each kind of parameter; `groups` has the arguments of each one's `LSTMRule`.

    The paper found one LSTM insufficient for networks with convolutional layers, and uses one for the convolutional
    parameters and another for the fully connected ones. On a problem, a parameter's kind is the part of its name before
    the first dot: "conv" for ``conv.weight0``. On a model, it is what `parameter_groups` says.
    """

    kind = "groups"

    def __init__(self, groups: Mapping[str, Mapping[str, object]]) -> None:
        super().__init__()
        if not (isinstance(groups, Mapping) and groups and all(isinstance(each, Mapping) for each in groups.values())):
            raise ValueError(
                f"GroupedRule: groups must be a table of the settings of at least one kind's LSTM, got {groups!r}."
            )
        self.groups = nn.ModuleDict()
        for kind, config in groups.items():
            arguments: dict[str, Any] = {name: value for name, value in config.items() if name != "kind"}
            network = LSTMRule(**arguments)
            try:
                self.groups[kind] = network
            except KeyError as error:  # such as "training", which is an attribute of modules
                raise ValueError(f"GroupedRule: {kind!r} cannot name a kind of parameter ({error.args[0]}).") from error

    @property
    def coordinatewise(self) -> bool:
        return all(self.network_for(kind).coordinatewise for kind in self.groups)

    def config(self) -> dict[str, object]:
        return {"kind": self.kind, "groups": {kind: self.network_for(kind).config() for kind in self.groups}}

    def network_for(self, kind: str | None) -> LSTMRule:
        """As in `UpdateRule`; a ValueError for no kind, or one that the rule lacks (`UnknownNameError`)."""
        if kind is None:
            raise ValueError(
                f"this optimizer has one LSTM for each kind of parameter ({', '.join(self.groups)}), so each parameter "
                "must say its kind: l2l_kit.parameter_groups(model) sorts those of a model."
            )
        return cast(LSTMRule, look_up("kind of parameter", kind, dict(self.groups.items())))

    def parts(self, layout: Layout) -> list[Part]:
        device = next(self.parameters()).device
        every = torch.arange(sum(layout.sizes), device=device).split_with_sizes(layout.sizes)
        columns = by_kind({name: piece for (name, _), piece in zip(layout.shapes, every, strict=True)})
        if others := [kind for kind in columns if kind not in self.groups]:
            first = next(iter(self.groups))
            what = f"kind of parameter, with which a name must begin, as in '{first}.weight', for this optimizer:"
            raise UnknownNameError(what, others[0], self.groups)
        return [
            Part(f"groups.{kind}.", self.network_for(kind), torch.cat([*pieces.values()]), [*map(len, pieces.values())])
            for kind, pieces in columns.items()
        ]


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """A model's parameters as groups with ``kind`` and ``params``, for a `LearnedOptimizer` with a `GroupedRule`.

    Kernels of convolutions (reparametrized ones too) are "conv" and all other parameters "fc", as in the rules that
    were trained on CIFAR-10 and in the authors' code. Each parameter occurs once; frozen ones are left out.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"parameter_groups: expected a model, not its parameters, got {model!r}.")
    groups: dict[str, list[nn.Parameter]] = {}
    for param, kind in parameter_kinds(model).items():
        if param.requires_grad:
            groups.setdefault(kind, []).append(param)
    return [{"kind": kind, "params": params} for kind, params in groups.items()]
