"""What a problem is: a distribution over tasks, sampled as batches of independent functions to minimize.

Below that contract stand its checks: a mistake in a problem of your own is named where it is defined or first used.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from l2l_kit.errors import names_files
from l2l_kit.tensors import Layout, Tensors, described, ravel


def _check_method(cls: type, method: str, *arguments: str) -> None:
    """Refuse a class whose method cannot be called with these, in this order, by a TypeError."""
    try:
        inspect.signature(getattr(cls, method)).bind("self", *arguments)
    except TypeError as error:
        listed = ", ".join(("self", *arguments))
        raise TypeError(f"{cls.__name__}.{method}: expected a method ({listed}): {error}.") from error


class TaskBatch(ABC):
    """A batch of ``n`` independent functions, each with a starting point of its own.

    A subclass whose `losses` takes other arguments is refused by a TypeError where it is defined.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _check_method(cls, "losses", "params", "step")

    @property
    @abstractmethod
    def initial_params(self) -> Tensors:
        """Starting points θ₀: named tensors of shape ``(n, *shape)``, all of one floating-point type."""

    @abstractmethod
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Each task's loss f(θ), ``(n,)``, at its own parameters ``(n, *shape)``, on the minibatch of the step."""

    def select(self, index: int) -> TaskBatch:
        """One of them, as a batch of its own; a ValueError where minibatches are drawn for all of them."""
        raise ValueError(
            f"{type(self).__name__} cannot be taken apart: minibatches are drawn for all of them together."
        )

    def parts(self) -> list[TaskBatch]:
        """Batches that are this one together and take no longer one after another; most problems have only one."""
        return [self]

    def points_and_losses(self, rows: Tensor, layout: Layout, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Points ``(tasks, coordinates)``, the leaves of autograd, and losses there; in parts, to bound the memory."""
        parts = self.parts()
        for part, some in zip(parts, rows.chunk(len(parts)), strict=True):
            point = some.detach().requires_grad_()
            yield point, part.losses(layout.unravel(point), step)

    @torch.enable_grad()
    def losses_and_gradients(self, rows: Tensor, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` and gradients ``(n, coordinates)`` at parameters ``(n, coordinates)``, both detached.

        Tasks are independent, so the gradient of summed losses is every task's own. A ValueError if `losses` does not
        give a loss for each task, or one that autograd cannot differentiate.
        """
        parts = self.points_and_losses(rows, layout, step)
        gradients, losses = zip(*((_gradients(self, *part), part[1].detach()) for part in parts), strict=True)
        return (losses[0], gradients[0]) if len(losses) == 1 else (torch.cat(losses), torch.cat(gradients))

    @torch.enable_grad()
    def hessian_products(self, rows: Tensor, layout: Layout, step: int, vectors: Tensor) -> Tensor:
        """Each task's Hessian at its parameters times its vector, like `rows`; the Hessian is never formed."""
        products: list[Tensor] = []
        for point, losses in self.points_and_losses(rows, layout, step):
            (gradients,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
            mine, vectors = vectors[: len(point)], vectors[len(point) :]
            linear = not gradients.requires_grad
            products += [torch.zeros_like(point)] if linear else torch.autograd.grad(gradients, point, mine)
        return torch.cat(products)


@dataclass(frozen=True)
class StoredTasks(TaskBatch):
    """A batch that keeps its starting points in a field."""

    initial: Tensors

    @property
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
        _check_method(cls, "sample", "num_tasks", "generator", "device")
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
            name: all that files record of it, so give a changed problem another one. It has letters, digits, "-", "_"
                and ".". See `problems.register`.
            init: draws one task, ``params, data = init(generator)``: named tensors where the optimization begins, and
                others on which the loss depends, which may be none.
            loss: of one task, a differentiable scalar tensor, ``loss(params, data)``. Under vmap it cannot use
                the value of a tensor (.item(), numpy, an ``if``), draw at random, or run an nn.LSTM.
        """
        from l2l_kit.problems.own import FunctionProblem

        return FunctionProblem(name, init, loss)


def check_name(problem: Problem | type[Problem]) -> None:
    """Refuse by a TypeError a problem whose name is not one that files can have."""
    kind, name = problem if isinstance(problem, type) else type(problem), getattr(problem, "name", None)
    if not names_files(name):
        raise TypeError(
            f"{kind.__name__}: expected a name for files, of letters, digits, '-', '_' and '.', such as "
            f'name: ClassVar[str] = "mine", got {name!r}.'
        )


def check_problem(problem: object) -> None:
    """Refuse by a TypeError what is no problem, such as its class, or one that files cannot record."""
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a problem, such as l2l_kit.problems.Quadratics(), got {problem!r}.")
    check_name(problem)
    kind = type(problem)
    fields = [name for name, of in inspect.get_annotations(kind).items() if "ClassVar" not in str(of)]
    if fields and "__dataclass_fields__" not in vars(kind):
        raise TypeError(f"{kind.__name__}: expected a dataclass, since it has fields. Write @dataclass(frozen=True).")
    try:
        json.dumps(problem.config())
    except Exception as error:  # objects that cannot even be copied fail in ways of their own
        raise TypeError(
            f"{kind.__name__}: expected fields that JSON can hold, since checkpoints and cards record them: {error}. "
            "Make tensors and other objects in `sample`."
        ) from error


T = TypeVar("T")


def _repeatable(name: str, make: Callable[[], T], values: Callable[[T], Iterable[Tensor]]) -> T:
    """What is made, or a ValueError if torch's global generator decides what: no two runs would meet the same tasks."""
    before = torch.get_rng_state()
    made = make()
    if torch.equal(before, torch.get_rng_state()):  # else another thread may have drawn, or it had no effect
        return made
    if not all(map(torch.equal, values(made), values(make()))):
        raise ValueError(
            f"{name}: drew from torch's global generator, so that no two runs would meet the same tasks. Whatever "
            "draws tasks or minibatches must use the generator that it is given, as in torch.randn(3, generator=g), "
            "or stand inside `with torch.random.fork_rng():`, after a torch.manual_seed that is drawn from it."
        )
    return made


def draw(problem: Problem, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> TaskBatch:
    """What a problem samples, or a TypeError or ValueError if it is no problem or gives not what was asked for."""
    check_problem(problem)
    expected, start = f"{type(problem).__name__}.sample: expected", generator.get_state()

    def sample() -> TaskBatch:
        tasks = problem.sample(num_tasks, generator.set_state(start), device)
        if not isinstance(tasks, TaskBatch):
            raise TypeError(f"{expected} TaskBatch, got {type(tasks).__name__}.")
        return tasks

    tasks = _repeatable(problem.name, sample, lambda tasks: _start(tasks).values())
    first = next(iter(_start(tasks).values()))
    if len(first) != num_tasks:
        raise ValueError(f"{expected} {num_tasks} tasks, got {len(first)}.")
    asked = device or torch.device("cpu")
    if first.device.type != asked.type or asked.index not in (None, first.device.index):
        raise ValueError(f"{expected} tensors on {asked}, got {first.device}. Move them with .to(device).")
    return tasks


def first_evaluation(tasks: TaskBatch) -> tuple[Layout, Tensor, Tensor, Tensor]:
    """Layout, starting points ``(n, coordinates)``, losses ``(n,)`` and gradients there, with which every run begins.

    A ValueError for starting points that are not what they must be, losses that change them in place, and as
    `TaskBatch.losses_and_gradients`.
    """
    start = _start(tasks)
    layout, rows = Layout.of(start), ravel(start).detach()
    if not rows.is_meta and not rows.isfinite().all():
        raise ValueError(f"{_name(tasks)}.initial_params: expected numbers, got NaN or infinity.")
    before = rows.clone()
    losses, gradients = _repeatable(
        f"{_name(tasks)}.losses", lambda: tasks.losses_and_gradients(rows, layout, 0), lambda found: found[:1]
    )
    if not rows.is_meta and not torch.equal(before, rows):
        raise ValueError(f"{_name(tasks)}.losses: expected to leave `params` as they are, but changed them in place.")
    return layout, rows, losses, gradients


def _start(tasks: TaskBatch) -> Tensors:
    """Starting points, or a ValueError if they are not what `TaskBatch.initial_params` must be."""
    where, start = f"{_name(tasks)}.initial_params: expected", tasks.initial_params
    if not isinstance(start, dict) or not start or not all(isinstance(each, Tensor) for each in start.values()):
        raise ValueError(f"{where} a property that gives a dict of named tensors, got {start!r}.")
    kinds = {(tensor.dtype, tensor.device, tensor.shape[:1]) for tensor in start.values()}
    if len(kinds) > 1 or not all(tensor.dim() and tensor.is_floating_point() for tensor in start.values()):
        raise ValueError(
            f"{where} tensors of one floating-point type, on one device, with a leading axis of one length that counts "
            f"the tasks; got {described(start)}."
        )
    return start


def _gradients(tasks: TaskBatch, point: Tensor, losses: Tensor) -> Tensor:
    """The gradient of the summed losses at a point, or a ValueError if they are not what `TaskBatch.losses` must be."""
    where, shape = f"{_name(tasks)}.losses: expected", (len(point),)
    if (found := tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__) != shape:
        wanted = f"a tensor of shape {shape}, a loss for each task"
        raise ValueError(f"{where} {wanted}, got {found}. Sum or average over all other axes.")
    gradients = torch.autograd.grad(losses.sum(), point, allow_unused=True)[0] if losses.requires_grad else None
    if gradients is None:
        raise ValueError(
            f"{where} losses that autograd can differentiate with respect to `params`, got some that do not depend on "
            "them. Compute them from `params` by torch alone: no .detach(), .data, .item() or numpy."
        )
    return gradients


def _name(tasks: TaskBatch) -> str:
    """What messages call it: the problem that was made from functions, or its class."""
    return getattr(tasks, "name", type(tasks).__name__)
