"""What a problem is: a distribution over optimizees, sampled as batches of independent functions to minimize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, Tensors


class Optimizees(ABC):
    """A batch of ``n`` independent functions, each with a starting point of its own."""

    @property
    @abstractmethod
    def start(self) -> Tensors:
        """Starting points θ₀: named tensors of shape ``(n, *shape)``."""

    @abstractmethod
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Each optimizee's loss f(θ) at its own parameters, shape ``(n,)``, differentiable by autograd.

        Args:
            params: named tensors of shape ``(n, *shape)``.
            step: which step of the run this is; optimizees on minibatches draw the batch of that step.
        """

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


class Classifiers(Optimizees):
    """Optimizees that put images into classes, so that they can be tested on images they are not trained on."""

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


class Problem(ABC):
    """A distribution over optimizees. Subclasses are frozen dataclasses: their fields are the whole configuration."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator, device: torch.device | None = None) -> Optimizees:
        """Draw ``n`` optimizees from `generator` (a CPU generator) and put them on `device` (None: the CPU)."""

    def held_out(self) -> Problem:
        """The problem that a training on this one validates on: this one, unless some optimizees are set apart."""
        return self

    def config(self) -> dict[str, Any]:
        """What `problems.make` needs to build this problem again: ``{"name": ..., field: value, ...}``."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]
