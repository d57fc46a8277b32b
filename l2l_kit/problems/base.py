"""What a problem is: a distribution over optimizees, sampled as batches of independent functions to minimize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from l2l_kit.problems.checks import FrozenDataclass, check_arguments, check_name, checked_start, is_abstract
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, Tensors


class TaskBatch(ABC):
    """A batch of ``n`` independent functions, each with a starting point of its own.

    Raises:
        TypeError: where a subclass is defined whose `losses` takes other arguments.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_arguments(cls, "losses", "params", "step")

    @property
    @abstractmethod
    def initial_params(self) -> Tensors:
        """Starting points θ₀: named tensors of shape ``(n, *shape)``, all of one floating-point type."""

    @abstractmethod
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Each optimizee's loss f(θ) at its own parameters, shape ``(n,)``, differentiable by autograd.

        Args:
            params: named tensors of shape ``(n, *shape)``.
            step: which step of the run this is; optimizees on minibatches draw the batch of that step.
        """

    def select(self, index: int) -> TaskBatch:
        """One of them, as a batch of its own.

        Raises:
            TypeError: if they cannot be taken apart, as where minibatches are drawn for all of them together.
        """
        raise TypeError(f"{type(self).__name__} cannot be taken apart.")

    def losses_and_gradients(self, rows: Tensor, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
        """Losses ``(n,)`` and gradients ``(n, coordinates)`` at parameters ``(n, coordinates)``, both detached.

        The optimizees are independent, so the gradient of the summed losses is every optimizee's own gradient.
        """
        with torch.enable_grad():
            point = rows.detach().requires_grad_()
            losses = self.losses(layout.unravel(point), step)
            (gradients,) = torch.autograd.grad(losses.sum(), point)
        return losses.detach(), gradients

    def hessian_products(self, rows: Tensor, layout: Layout, step: int, vectors: Tensor) -> Tensor:
        """Products of every optimizee's Hessian at parameters ``(n, coordinates)`` with its vector in ``vectors``.

        By autograd, twice backwards: it costs as much as several gradients, and the Hessian is never formed.

        Args:
            rows: θ, shape ``(n, coordinates)``.
            layout: of a row.
            step: as for `losses`.
            vectors: one for each optimizee, shape ``(n, coordinates)``, as the result.
        """
        with torch.enable_grad():
            point = rows.detach().requires_grad_()
            losses = self.losses(layout.unravel(point), step)
            (gradients,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
        return torch.autograd.grad(gradients, point, vectors)[0]


class Classifiers(TaskBatch):
    """TaskBatch that put images into classes, so that they can be tested on images they are not trained on."""

    @abstractmethod
    def test(self, params: Tensors) -> tuple[Tensor, Tensor]:
        """Mean loss and share of right answers of every optimizee on all test images, both of shape ``(n,)``.

        Args:
            params: named tensors of shape ``(n, *shape)``.
        """


def draw_minibatches(order: int, step: int, n: int, batch_size: int, images: int) -> Tensor:
    """Which images ``n`` optimizees see at a step, shape ``(n, batch_size)``.

    A minibatch is a function of the step alone, so that every optimizer meets the same ones. They are drawn with
    replacement: no order of the whole data has to be kept for each network.

    Args:
        order: seed of these optimizees' minibatches.
        step: of the run.
        n: number of optimizees.
        batch_size: images per minibatch.
        images: how many there are to draw from.
    """
    return torch.randint(images, (n, batch_size), generator=generator(order, "minibatch", step))


class Problem(metaclass=FrozenDataclass):
    """A distribution over optimizees. Subclasses are frozen dataclasses: their fields are the whole configuration.

    Raises:
        TypeError: where a subclass is defined that has no `name`, or whose `sample` takes other arguments; where an
            instance is made, if its class is no frozen dataclass, or JSON cannot hold its configuration.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_arguments(cls, "sample", "n", "generator", "device")
        if not is_abstract(cls, "sample"):
            check_name(cls)

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator, device: torch.device | None = None) -> TaskBatch:
        """Draw ``n`` optimizees from `generator` (a CPU generator) and put them on `device` (None: the CPU)."""

    def validation_problem(self) -> Problem:
        """The problem that a training on this one validates on: this one, unless some optimizees are set apart."""
        return self

    def config(self) -> dict[str, Any]:
        """What `problems.make` needs to build this problem again: ``{"name": ..., field: value, ...}``."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


def draw(problem: Problem, n: int, generator: torch.Generator, device: torch.device | None = None) -> TaskBatch:
    """What a problem samples, once it is known to be what was asked for. The kit draws optimizees in no other way.

    Args:
        problem: where they come from.
        n, generator, device: see `Problem.sample`.

    Raises:
        TypeError: if it is no problem, or gives no `TaskBatch`; or its `start` is refused.
        ValueError: if it gives another number of them, or on another device; or its `start` is refused.
    """
    check_problem(problem)
    where, tasks = f"{type(problem).__name__}.sample", problem.sample(n, generator, device)
    if not isinstance(tasks, TaskBatch):
        raise TypeError(f"{where}: expected TaskBatch, got {type(tasks).__name__}.")
    first = next(iter(checked_start(tasks).values()))
    if len(first) != n:
        raise ValueError(f"{where}: expected {n} optimizees, got {len(first)}.")
    asked = device or torch.device("cpu")
    if first.device.type != asked.type or asked.index not in (None, first.device.index):
        raise ValueError(f"{where}: expected tensors on {asked}, got {first.device}. Move them with .to(device).")
    return tasks


def check_problem(problem: object) -> None:
    """Refuse what is no problem.

    Raises:
        TypeError: such as for a problem's class or its name.
    """
    if isinstance(problem, type) and issubclass(problem, Problem):
        raise TypeError(f"expected a problem, got the class {problem.__name__}; make one of it: {problem.__name__}().")
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a problem, such as l2l_kit.problems.Quadratics(), got {problem!r}.")
