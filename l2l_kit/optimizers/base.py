"""The contract of every optimizer, and what a learned one has on top of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from l2l_kit.tensors import Layout, Tensors

if TYPE_CHECKING:
    from l2l_kit.optimizers.lstm import LSTMOptimizer

State = TypeVar("State")


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
    """The coordinates that one LSTM of a learned optimizer looks after.

    Attributes:
        prefix: of the LSTM's weights among those of the whole.
        lstm: who looks after them.
        columns: where they are in a row of all coordinates of an optimizee.
        sizes: coordinates of each of their tensors.
    """

    prefix: str
    lstm: LSTMOptimizer
    columns: slice | Tensor
    sizes: list[int]


class LearnedRule(nn.Module, ABC):
    """A learned optimizer: an `Optimizer` whose weights φ can be trained, saved and loaded."""

    kind: ClassVar[str]

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `optimizers.make` needs to build this optimizer again, up to its weights."""

    @abstractmethod
    def lstm_for(self, kind: str | None) -> LSTMOptimizer:
        """The LSTM that looks after a kind of parameter, such as "conv"; None where the kind is not known."""

    @abstractmethod
    def parts(self, layout: Layout) -> list[Part]:
        """Which LSTM looks after which coordinates of parameters with that layout."""

    @abstractmethod
    def init(self, params: Tensors) -> Any:
        """As in `Optimizer`."""

    @abstractmethod
    def update(self, gradients: Tensors, state: Any) -> tuple[Tensors, Any]:
        """As in `Optimizer`."""
