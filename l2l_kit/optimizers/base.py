"""The contract of every optimizer, and what a learned update rule adds to it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from l2l_kit.tensors import Layout, Tensors, ravel

if TYPE_CHECKING:
    from l2l_kit.optimizers.lstm import LSTMRule

State = TypeVar("State")
Value = TypeVar("Value")
Memory = tuple[Tensor, ...]  # the state of one network: a named tuple of tensors


class Optimizer(Protocol[State]):
    """Proposes updates from gradients: θ(t+1) = θ(t) + g(t), [g(t), h(t+1)] = m(∇f(θ(t)), h(t)) (equations 1 and 3).

    All tensors are named and have a leading axis of length ``n``, one entry per task. Both methods work on the whole
    batch at once, and what they do to one task does not depend on the others. Both leave the tensors that they
    are given as they are.
    """

    def init(self, params: Tensors) -> State:
        """The state h(0) before the first update, for parameters of these shapes, types and devices: any object."""

    def update(self, gradients: Tensors, state: State, params: Tensors) -> tuple[Tensors, State]:
        """The updates g(t) to add to the parameters θ(t), and the state h(t+1).

        There is an update for each parameter, by its name, of its shape, floating-point type and device. Do not use
        h(t) again: it may have changed.
        """


class Part(NamedTuple):
    """The coordinates of a task that one of a rule's networks moves."""

    prefix: str  # what the names of the network's weights begin with in the rule's `state_dict`
    network: LSTMRule
    columns: slice | Tensor  # where its coordinates are in a row of all of them
    sizes: list[int]  # number of coordinates of each of its tensors


class UpdateRule(nn.Module, ABC):
    """A learned optimizer: an `Optimizer` of one or more networks, whose weights φ can be trained, saved and loaded.

    A rule of one's own says in `parts` which of its networks moves which coordinates, each coordinate by one network.
    Meta-training runs these networks, not `init` and `update`. A network is an `LSTMRule`, or anything that has its
    ``initial_state``, ``step`` and differentiable ``forward``. Lesson 10 has an example, `MomentumMLP`.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def coordinatewise(self) -> bool:
        """Whether a coordinate's updates depend on its own gradients alone."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """The arguments from which `optimizers.make` builds this rule again, without its trained weights."""

    @abstractmethod
    def network_for(self, kind: str | None) -> LSTMRule:
        """The network that moves a kind of parameter, such as "conv"; None for parameters of no kind."""

    @abstractmethod
    def parts(self, layout: Layout) -> list[Part]:
        """Which network moves which coordinates of parameters with that layout."""

    def fingerprint(self) -> str:
        """Identifies the rule by its configuration and its weights in single precision."""
        digest = hashlib.blake2b(repr(sorted(self.config().items())).encode(), digest_size=8)
        for tensor in self.state_dict().values():
            digest.update(tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def init(self, params: Tensors) -> list[Memory]:
        """As in `Optimizer`; the states of the networks. A TypeError for a network that cannot be run."""
        n, parts = len(next(iter(params.values()))), self.parts(Layout.of(params))
        for part in parts:
            check_network(part.network, 1, sum(part.sizes))
        return [part.network.initial_state(n, sum(part.sizes)) for part in parts]

    @torch.no_grad()
    def update(self, gradients: Tensors, state: list[Memory], params: Tensors) -> tuple[Tensors, list[Memory]]:
        layout, rows = Layout.of(gradients), ravel(gradients)
        updates, after = torch.empty_like(rows), list[Memory]()
        for part, memory in zip(self.parts(layout), state, strict=True):
            updates[:, part.columns], memory = part.network.step(rows[:, part.columns], memory)
            after.append(memory)
        return layout.unravel(updates), after


@torch.no_grad()
def check_network(network: LSTMRule, *shape: int) -> None:
    """Refuse by a TypeError a network of one's own that does not fit gradients of that shape."""
    if type(network).__module__.startswith("l2l_kit."):
        return
    name, state = type(network).__name__, network.initial_state(*shape)
    named = isinstance(state, tuple) and bool(getattr(state, "_fields", ()))
    if not named or not all(
        isinstance(part, Tensor) and part.is_floating_point() and part.shape[-len(shape) :] == shape for part in state
    ):
        raise TypeError(
            f"{name}.initial_state: expected a named tuple of floating-point tensors whose last axes are those of the "
            f"gradients, {shape}, got {state!r}."
        )
    stepped = network.step(state[0].new_zeros(shape), state)
    if not (isinstance(stepped, tuple) and len(stepped) == 2 and isinstance(stepped[0], Tensor)):
        raise TypeError(f"{name}.step: expected updates and the state after them, got {stepped!r}.")
    update, after = stepped
    if update.shape != shape or type(after) is not type(state) or any(p.shape[-len(shape) :] != shape for p in after):
        raise TypeError(
            f"{name}.step: expected updates of shape {shape}, that of the gradients, and a {type(state).__name__} with "
            f"these last axes, got {tuple(update.shape)} and {after!r}."
        )


def map_state(state: Memory, change: Callable[[Tensor], Tensor]) -> Memory:
    """A network's state with each of its tensors changed."""
    return type(state)(*map(change, state))


def by_kind(named: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Named values by their kind, which is the first part of a name, such as "conv" of "conv.weight0"."""
    kinds: dict[str, dict[str, Value]] = {}
    for name, value in named.items():
        kinds.setdefault(name.partition(".")[0], {})[name] = value
    return kinds
