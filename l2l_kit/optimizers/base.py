"""The contract of every optimizer, learned or not."""

from __future__ import annotations

from typing import Protocol, TypeVar

from l2l_kit.tensors import Tensors

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
