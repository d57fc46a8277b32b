"""Random quadratics (section 3.1 of the paper): the smallest problem on which learning to learn can be watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from l2l_kit.errors import AtLeast, Count, check_fields
from l2l_kit.problems.base import Problem, TaskBatch
from l2l_kit.tensors import Tensors


@dataclass(frozen=True)
class QuadraticTasks(TaskBatch):
    """``n`` functions f(θ) = ‖Wθ − y‖² with their starting points."""

    W: Tensor  # (n, dim, dim)
    y: Tensor  # (n, dim)
    theta: Tensor  # starting points, (n, dim)

    @property
    def initial_params(self) -> Tensors:
        return {"theta": self.theta}

    def losses(self, params: Tensors, step: int = 0) -> Tensor:
        residual = torch.baddbmm(-self.y[:, :, None], self.W, params["theta"][:, :, None])
        return residual.square().sum(dim=(1, 2))

    def select(self, index: int) -> QuadraticTasks:
        return QuadraticTasks(*(tensor[index : index + 1] for tensor in (self.W, self.y, self.theta)))


@dataclass(frozen=True)
class Quadratics(Problem):
    """f(θ) = ‖Wθ − y‖² with Gaussian W and y, θ of ``dim`` parameters (section 3.1).

    The paper does not give the Gaussian's scale, nor θ₀. Here all of them are drawn from a standard Gaussian.
    The rare W that are nearly singular dominate the mean over functions: look at medians and quantiles beside it.
    """

    name = "quadratics"

    dim: Count = 10

    def __post_init__(self) -> None:
        check_fields(self)

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> QuadraticTasks:
        shapes = (num_tasks, self.dim, self.dim), (num_tasks, self.dim), (num_tasks, self.dim)
        return QuadraticTasks(*(torch.randn(shape, generator=generator).to(device) for shape in shapes))


@dataclass(frozen=True)
class ConditionedQuadratics(Quadratics):
    """`Quadratics` whose Hessians 2 WᵀW all have one condition number, the ratio of largest to smallest curvature.

    The singular vectors of W, y and θ₀ are those that `Quadratics` draws, and the mean curvature is its average there.
    """

    name = "conditioned-quadratics"

    condition: Annotated[float, AtLeast(1)] = 100.0

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> QuadraticTasks:
        drawn = super().sample(num_tasks, generator)
        left, _, right = torch.linalg.svd(drawn.W)
        curvatures = self.condition ** torch.linspace(0, -1, self.dim)
        scales = (curvatures * self.dim / curvatures.mean()).sqrt()
        return QuadraticTasks((left * scales @ right).to(device), drawn.y.to(device), drawn.theta.to(device))
