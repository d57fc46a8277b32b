"""The contract of every optimizer, and what a learned one has on top of it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from l2l_kit.tensors import Layout, Tensors, ravel

State = TypeVar("State")
Memory = TypeVar("Memory", bound=tuple[Tensor, ...])


class Optimizer(Protocol[State]):
    """Proposes updates from gradients: θ(t+1) = θ(t) + g(t), [g(t), h(t+1)] = m(∇f(θ(t)), h(t)) (equations 1 and 2).

    All tensors are named and have a leading axis of length ``n``, one entry per optimizee. Both methods work on the
    whole batch at once, and what they do to one optimizee does not depend on the others.
    """

    def init(self, params: Tensors) -> State:
        """The state h(0) before the first update, for parameters of these shapes, types and devices."""

    def update(self, gradients: Tensors, state: State) -> tuple[Tensors, State]:
        """The updates g(t) to add to the parameters, and the state h(t+1). Never differentiated through."""


class Part(NamedTuple):
    """The coordinates that one recurrent network of a learned optimizer looks after.

    Attributes:
        prefix: of the network's weights among those of the whole.
        network: who looks after them.
        columns: where they are in a row of all coordinates of an optimizee.
        sizes: coordinates of each of their tensors.
    """

    prefix: str
    network: RecurrentRule[Any]
    columns: slice | Tensor
    sizes: list[int]


class LearnedRule(nn.Module, ABC):
    """A learned optimizer: an `Optimizer` whose weights φ can be trained, saved and loaded."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def coupled(self) -> bool:
        """Whether the coordinates of an optimizee learn of each other. Those of different optimizees never do."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `optimizers.make` needs to build this optimizer again, up to its weights."""

    def fingerprint(self) -> str:
        """Identifies the rule by its configuration and its weights in single precision, whatever type holds them."""
        digest = hashlib.blake2b(repr(sorted(self.config().items())).encode(), digest_size=8)
        for tensor in self.state_dict().values():
            digest.update(tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def network_for(self, kind: str | None) -> RecurrentRule[Any]:
        """The network that looks after a kind of parameter, such as "conv"; None where the kind is not known."""

    @abstractmethod
    def parts(self, layout: Layout) -> list[Part]:
        """Which network looks after which coordinates of parameters with that layout."""

    @abstractmethod
    def init(self, params: Tensors) -> Any:
        """As in `Optimizer`."""

    @abstractmethod
    def update(self, gradients: Tensors, state: Any) -> tuple[Tensors, Any]:
        """As in `Optimizer`."""


class RecurrentRule(LearnedRule, Generic[Memory]):
    """A learned optimizer that is one recurrent network with a state of its own for each coordinate.

    Its state is a named tuple of tensors, whose last axes are those of the gradients.
    """

    @abstractmethod
    def initial_state(self, *shape: int) -> Memory:
        """The state h(0) for gradients of that shape: zeros, in the weights' type and on their device."""

    @abstractmethod
    def forward(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """One step; differentiable.

        Args:
            gradients: ∇f(θ(t)), shape ``(coordinates,)`` for one optimizee or ``(n, coordinates)``.
            state: h(t).

        Returns:
            The updates g(t), of the same shape, and h(t+1).
        """

    @torch.no_grad()
    def step(self, gradients: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        """`forward` without a graph. Gradients may be of any floating-point type, which the updates have, too."""
        updates, state = self(gradients.to(state[0].dtype), state)
        return updates.to(gradients.dtype), state

    @override
    def network_for(self, kind: str | None) -> RecurrentRule[Memory]:
        return self

    @override
    def parts(self, layout: Layout) -> list[Part]:
        return [Part("", self, slice(None), layout.sizes)]

    @override
    def init(self, params: Tensors) -> Memory:
        return self.initial_state(*ravel(params).shape)

    @override
    @torch.no_grad()
    def update(self, gradients: Tensors, state: Memory) -> tuple[Tensors, Memory]:
        updates, state = self.step(ravel(gradients), state)
        return Layout.of(gradients).unravel(updates), state


def map_state(state: Memory, change: Callable[[Tensor], Tensor]) -> Memory:
    """A state with each of its tensors changed."""
    return type(state)(*map(change, state))
