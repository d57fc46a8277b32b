"""Several LSTMs, one for each kind of parameter (section 3.3 of the paper)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers.base import Optimizer, Part, UpdateRule
from l2l_kit.optimizers.lstm import LSTMRule
from l2l_kit.tensors import Layout, Tensors


class _ByKind(ABC):
    """An `Optimizer` that is made of one for each kind of parameter: the part of its name before the first dot."""

    @abstractmethod
    def rule_for(self, kind: str) -> Optimizer[Any]:
        """What moves parameters of that kind."""

    def init(self, params: Tensors) -> dict[str, Any]:
        """As in `Optimizer`; the states by kind."""
        return {kind: self.rule_for(kind).init(named) for kind, named in _by_kind(params).items()}

    @torch.no_grad()
    def update(self, gradients: Tensors, state: dict[str, Any], params: Tensors) -> tuple[Tensors, dict[str, Any]]:
        """As in `Optimizer`."""
        updates, after = dict(gradients), {}  # in the order of the gradients
        for kind, named in _by_kind(gradients).items():
            moved, after[kind] = self.rule_for(kind).update(named, state[kind], {name: params[name] for name in named})
            updates |= moved
        return updates, after


def _by_kind(tensors: Tensors) -> dict[str, Tensors]:
    kinds: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        kinds.setdefault(name.partition(".")[0], {})[name] = tensor
    return kinds


class GroupedRule(_ByKind, UpdateRule):
    """A learned optimizer made of several, one for each kind of parameter.

    The paper trains networks with convolutional layers by two LSTMs, one for the convolutional parameters and one for
    the fully connected ones, since one for both was not enough. A parameter's kind is the part of its name before the
    first dot: "conv" for ``conv.weight0``.

    Args:
        groups: by kind, the arguments of its `LSTMRule`.

    Raises:
        ValueError: if there is no group, or what `LSTMRule` raises for its arguments.
    """

    kind: ClassVar[str] = "groups"

    def __init__(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        if not groups:
            raise ValueError("GroupedRule: needs at least one kind of parameter.")
        self.groups = nn.ModuleDict()
        for kind, arguments in groups.items():
            lstm = {name: value for name, value in arguments.items() if name != "kind"}
            self.groups[kind] = LSTMRule(**lstm)

    @property
    @override
    def coordinatewise(self) -> bool:
        return all(self.network_for(kind).coordinatewise for kind in self.groups)

    @override
    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "groups": {kind: self.network_for(kind).config() for kind in self.groups}}

    @override
    def network_for(self, kind: str | None) -> LSTMRule:
        """As in `UpdateRule`.

        Raises:
            UnknownNameError: if no LSTM looks after parameters of that kind; the message offers the nearest one.
            ValueError: if the kind is not known.
        """
        if kind is None:
            raise ValueError(
                f"this optimizer has one LSTM for each kind of parameter ({', '.join(self.groups)}), so each parameter "
                "must say its kind: l2l_kit.parameter_groups(model) sorts those of a model."
            )
        if kind not in self.groups:
            raise UnknownNameError("kind of parameter", kind, self.groups)
        return cast(LSTMRule, self.groups[kind])

    @override
    def parts(self, layout: Layout) -> list[Part]:
        columns: dict[str, list[Tensor]] = {}
        device = next(self.parameters()).device
        first = 0
        for (name, _), size in zip(layout.shapes, layout.sizes, strict=True):
            columns.setdefault(name.partition(".")[0], []).append(torch.arange(first, first + size, device=device))
            first += size
        return [
            Part(f"groups.{kind}.", self.network_for(kind), torch.cat(pieces), [len(piece) for piece in pieces])
            for kind, pieces in columns.items()
        ]

    @override
    def rule_for(self, kind: str) -> LSTMRule:
        return self.network_for(kind)


class GroupedBaselines(_ByKind):
    """A hand-designed optimizer for each kind of parameter: what `GroupedRule` is for learned ones.

    Args:
        groups: by kind, what moves its parameters.
    """

    def __init__(self, groups: Mapping[str, Optimizer[Any]]) -> None:
        self.groups = dict(groups)

    @override
    def rule_for(self, kind: str) -> Optimizer[Any]:
        return self.groups[kind]


def parameter_groups(model: nn.Module, kind_of: Callable[[str, nn.Module], str] | None = None) -> list[dict[str, Any]]:
    """A model's parameters by kind, for a learned optimizer that is made of several.

    Args:
        model: any module.
        kind_of: from the name of a parameter and the submodule that it belongs to, to its kind. None for those of the
            rules that were trained on CIFAR-10, and of the authors' code: "conv" for the kernels of convolutions
            (reparametrized ones too), "fc" for all the rest.

    Returns:
        Parameter groups with ``kind`` and ``params``; each parameter once, frozen ones left out.
    """
    kernels = {
        param
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        for name, param in module.named_parameters()
        if name.startswith(("weight", "parametrizations.weight"))
    }
    kinds: dict[str, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(prefix, recurse=False):
            if param.requires_grad and param not in seen:
                kind = kind_of(name, module) if kind_of else "conv" if param in kernels else "fc"
                kinds.setdefault(kind, []).append(param)
                seen.add(param)
    return [{"kind": kind, "params": params} for kind, params in kinds.items()]
