"""The contract of every optimizer, and what a learned one has on top of it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from l2l_kit.tensors import Layout, Tensors

if TYPE_CHECKING:
    from l2l_kit.optimizers.lstm import RecurrentRule

State = TypeVar("State")
Memory = TypeVar("Memory", bound=tuple[Tensor, ...])


class Optimizer(Protocol[State]):
    """Proposes updates from gradients: θ(t+1) = θ(t) + g(t), [g(t), h(t+1)] = m(∇f(θ(t)), h(t)) (equations 1 and 2).

    All tensors are named and have a leading axis of length ``n``, one entry per task. Both methods work on the whole
    batch at once, and what they do to one task does not depend on the others.
    """

    def init(self, params: Tensors) -> State:
        """The state h(0) before the first update, for parameters of these shapes, types and devices."""

    def update(self, gradients: Tensors, state: State, params: Tensors) -> tuple[Tensors, State]:
        """The updates g(t) to add to the parameters θ(t), and the state h(t+1); h(t) is not to be used again."""


class Part(NamedTuple):
    """The coordinates that one recurrent network of a learned optimizer looks after.

    Attributes:
        prefix: of the network's weights among those of the whole.
        network: who looks after them.
        columns: where they are in a row of all coordinates of an task.
        sizes: coordinates of each of their tensors.
    """

    prefix: str
    network: RecurrentRule[Any]
    columns: slice | Tensor
    sizes: list[int]


class UpdateRule(nn.Module, ABC):
    """A learned optimizer: an `Optimizer` whose weights φ can be trained, saved and loaded."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def coordinatewise(self) -> bool:
        """Whether each coordinate moves by itself. If not, the coordinates of a task depend on each other."""

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
    def update(self, gradients: Tensors, state: Any, params: Tensors) -> tuple[Tensors, Any]:
        """As in `Optimizer`."""


def map_state(state: Memory, change: Callable[[Tensor], Tensor]) -> Memory:
    """A state with each of its tensors changed."""
    return type(state)(*map(change, state))
