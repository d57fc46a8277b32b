"""What a problem is: a distribution over tasks, sampled as batches of independent functions to minimize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from l2l_kit.problems.checks import check_losses, check_method, check_recordable, checked_start, gradient_of
from l2l_kit.tensors import Layout, Tensors


class TaskBatch(ABC):
    """A batch of ``n`` independent functions, each with a starting point of its own.

    Raises:
        TypeError: where a subclass is defined whose `losses` takes other arguments.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_method(cls, "losses", "params", "step")

    @property
    @abstractmethod
    def initial_params(self) -> Tensors:
        """Starting points θ₀: named tensors of shape ``(n, *shape)``, all of one floating-point type."""

    @abstractmethod
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Each task's loss f(θ) at its own parameters, shape ``(n,)``, differentiable by autograd.

        Args:
            params: named tensors of shape ``(n, *shape)``.
            step: which step of the run this is; tasks on minibatches draw the batch of that step.
        """

    def select(self, index: int) -> TaskBatch:
        """One of them, as a batch of its own.

        Raises:
            TypeError: if they cannot be taken apart, as where minibatches are drawn for all of them together.
        """
        raise TypeError(f"{type(self).__name__} cannot be taken apart.")

    def points_and_losses(self, rows: Tensor, layout: Layout, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Parameters ``(tasks, coordinates)`` for autograd to differentiate by, and the losses ``(tasks,)`` there.

        All tasks at once; a subclass may give them in several parts, to bound the memory.
        """
        point = rows.detach().requires_grad_()
        yield point, check_losses(self, self.losses(layout.unravel(point), step), len(rows))

    @torch.enable_grad()
    def losses_and_gradients(self, rows: Tensor, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` and gradients ``(n, coordinates)`` at parameters ``(n, coordinates)``, both detached.

        The tasks are independent, so the gradient of the summed losses is every task's own gradient.

        Raises:
            TypeError, ValueError: if `losses` gives something else than a loss for each task.
        """
        parts = self.points_and_losses(rows, layout, step)
        found = [(losses.detach(), gradient_of(self, losses, point)) for point, losses in parts]
        losses, gradients = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(gradients)

    @torch.enable_grad()
    def hessian_products(self, rows: Tensor, layout: Layout, step: int, vectors: Tensor) -> Tensor:
        """Products of every task's Hessian at parameters ``(n, coordinates)`` with its vector in ``vectors``, as large.

        By autograd, twice backwards: it costs as much as several gradients, and the Hessian is never formed.
        """
        products: list[Tensor] = []
        for point, losses in self.points_and_losses(rows, layout, step):
            (gradients,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
            mine, vectors = vectors[: len(point)], vectors[len(point) :]
            products += torch.autograd.grad(gradients, point, mine)
        return torch.cat(products)


@dataclass(frozen=True)
class Problem(ABC):
    """A distribution over tasks. Subclasses are frozen dataclasses: their fields are the whole configuration.

    Raises:
        TypeError: where a subclass is defined whose `sample` takes other arguments, or that has an ``__init__``.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_method(cls, "sample", "num_tasks", "generator", "device")
        if "__init__" in vars(cls) and "__dataclass_fields__" not in vars(cls):  # which dataclass(slots=True) has
            raise TypeError(f"{cls.__name__}: expected a frozen dataclass with fields, got a class with an __init__.")

    @abstractmethod
    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> TaskBatch:
        """Draw tasks from `generator` (a CPU generator) and put them on `device` (None: the CPU)."""

    def validation_problem(self) -> Problem:
        """The problem that a training on this one validates on: this one, unless some tasks are set apart."""
        return self

    def config(self) -> dict[str, Any]:
        """What `problems.make` needs to build this problem again: ``{"name": ..., field: value, ...}``."""
        return {"name": self.name, **asdict(self)}

    @staticmethod
    def from_functions(
        name: str,
        init: Callable[[torch.Generator], tuple[Tensors, Tensors]],
        loss: Callable[[Tensors, Tensors], Tensor],
    ) -> Problem:
        """A problem of one's own: how one task is drawn, and its loss. `torch.func.vmap` makes batches of them.

        Args:
            name: all that checkpoints, cards and sweeps record of it, so give a changed problem another one.
                `problems.register` makes it known to `problems.make`.
            init: draws one task, ``params, data = init(generator)``, each a dict of named tensors: where the
                optimization begins, and what else the loss depends on, which may be nothing, ``{}``.
            loss: of one task, a differentiable scalar tensor, ``loss(params, data)``.
        """
        from l2l_kit.problems.own import FunctionProblem

        return FunctionProblem(name, init, loss)


def draw(problem: Problem, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> TaskBatch:
    """What a problem samples, once it is known to be what was asked for. The kit draws tasks in no other way.

    Raises:
        TypeError: if it is no problem, or gives no `TaskBatch`; or its starting points are refused.
        ValueError: if it gives another number of tasks, or on another device; or its starting points are refused.
    """
    check_problem(problem)
    tasks, expected = problem.sample(num_tasks, generator, device), f"{type(problem).__name__}.sample: expected"
    if not isinstance(tasks, TaskBatch):
        raise TypeError(f"{expected} TaskBatch, got {type(tasks).__name__}.")
    first = next(iter(checked_start(tasks).values()))
    if len(first) != num_tasks:
        raise ValueError(f"{expected} {num_tasks} tasks, got {len(first)}.")
    asked = device or torch.device("cpu")
    if first.device.type != asked.type or asked.index not in (None, first.device.index):
        raise ValueError(f"{expected} tensors on {asked}, got {first.device}. Move them with .to(device).")
    return tasks


def check_problem(problem: object) -> None:
    """Refuse what is no problem, or one that files cannot record.

    Raises:
        TypeError: such as for a problem's class, or a tensor among its fields.
    """
    if isinstance(problem, type) and issubclass(problem, Problem):
        raise TypeError(f"expected a problem, got the class {problem.__name__}; make one of it: {problem.__name__}().")
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a problem, such as l2l_kit.problems.Quadratics(), got {problem!r}.")
    check_recordable(problem)
