"""What a problem is: a distribution over tasks, sampled as batches of independent functions to minimize."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit.problems.checks import check_method, checked_gradients, checked_start
from l2l_kit.tensors import Layout, Tensors


class TaskBatch(ABC):
    """A batch of ``n`` independent functions, each with a starting point of its own.

    A subclass whose `losses` takes other arguments is refused by a TypeError where it is defined.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        check_method(cls, "losses", "params", "step")

    @property
    @abstractmethod
    def initial_params(self) -> Tensors:
        """Starting points θ₀: named tensors of shape ``(n, *shape)``, all of one floating-point type."""

    @abstractmethod
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Each task's loss f(θ), ``(n,)``, at its own parameters ``(n, *shape)``, on the minibatch of the step."""

    def select(self, index: int) -> TaskBatch:
        """One of them, as a batch of its own; a TypeError where minibatches are drawn for all of them together."""
        raise TypeError(f"{type(self).__name__} cannot be taken apart.")

    def points_and_losses(self, rows: Tensor, layout: Layout, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Parameters ``(tasks, coordinates)`` to differentiate by, and losses there; in parts, to bound the memory."""
        point = rows.detach().requires_grad_()
        yield point, self.losses(layout.unravel(point), step)

    @torch.enable_grad()
    def losses_and_gradients(self, rows: Tensor, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` and gradients ``(n, coordinates)`` at parameters ``(n, coordinates)``, both detached.

        Tasks are independent, so the gradient of summed losses is every task's own. Raises as `checked_gradients`.
        """
        parts = self.points_and_losses(rows, layout, step)
        gradients, losses = zip(*((checked_gradients(self, *part), part[1].detach()) for part in parts), strict=True)
        return torch.cat(losses), torch.cat(gradients)

    @torch.enable_grad()
    def hessian_products(self, rows: Tensor, layout: Layout, step: int, vectors: Tensor) -> Tensor:
        """Each task's Hessian at its parameters times its vector, like `rows`; the Hessian is never formed."""
        products: list[Tensor] = []
        for point, losses in self.points_and_losses(rows, layout, step):
            (gradients,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
            mine, vectors = vectors[: len(point)], vectors[len(point) :]
            products += torch.autograd.grad(gradients, point, mine)
        return torch.cat(products)


@dataclass(frozen=True)
class StoredTasks(TaskBatch):
    """A batch that keeps its starting points in a field."""

    initial: Tensors

    @property
    @override
    def initial_params(self) -> Tensors:
        return self.initial


@dataclass(frozen=True)
class Problem(ABC):
    """A distribution over tasks. Subclasses are frozen dataclasses: their fields are the whole configuration.

    One whose `sample` takes other arguments or that has an ``__init__`` is refused by a TypeError where it is defined.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: object) -> None:
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

    def config(self) -> dict[str, object]:
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
            name: all that files record of it, so give a changed problem another one. See `problems.register`.
            init: draws one task, ``params, data = init(generator)``, each a dict of named tensors: where the
                optimization begins, and what else the loss depends on, which may be nothing, ``{}``.
            loss: of one task, a differentiable scalar tensor, ``loss(params, data)``.
        """
        from l2l_kit.problems.own import FunctionProblem

        return FunctionProblem(name, init, loss)


def draw(problem: Problem, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> TaskBatch:
    """What a problem samples, or a TypeError or ValueError if it is no problem or gives not what was asked for."""
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
    """Refuse by a TypeError what is no problem, such as its class, or one that files cannot record."""
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a problem, such as l2l_kit.problems.Quadratics(), got {problem!r}.")
    kind = type(problem)
    if not isinstance(getattr(problem, "name", None), str) or not problem.name:
        raise TypeError(f'{kind.__name__}: expected a name that files record, such as name: ClassVar[str] = "mine".')
    new = [name for name, of in inspect.get_annotations(kind).items() if "ClassVar" not in str(of)]
    if new and "__dataclass_fields__" not in vars(kind):
        raise TypeError(f"{kind.__name__}: expected a dataclass, since it has fields. Write @dataclass(frozen=True).")
    try:
        json.dumps(problem.config())
    except Exception as error:  # objects that cannot even be copied fail in ways of their own
        raise TypeError(
            f"{kind.__name__}: expected fields that JSON can hold, since checkpoints and cards record them: {error}. "
            "Make tensors and other objects in `sample`."
        ) from error
