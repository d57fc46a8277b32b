"""BFGS, which learns the curvature of a function on its way, and what a learned optimizer with a memory keeps of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l2l_kit.optimizers import NTMBFGS
from l2l_kit.problems import QuadraticTasks
from l2l_kit.tensors import Layout


def bfgs_losses(functions: QuadraticTasks, evaluations: int) -> Tensor:
    """Losses of scipy's BFGS, on each function on its own, in double precision.

    It evaluates function and gradient more often than it moves, to find how far to go; an optimizer that moves after
    every gradient has seen as many after t updates as BFGS after t evaluations beyond the first.

    Args:
        functions: to minimize.
        evaluations: of function and gradient, beyond the first.

    Returns:
        The lowest loss that it had met by then, shape ``(n, evaluations + 1)``, on the CPU.
    """
    from scipy.optimize import minimize

    rows = []
    for tensors in zip(functions.W, functions.y, functions.theta, strict=True):
        matrix, target, start = (tensor.double().cpu().numpy() for tensor in tensors)
        met: list[float] = []
        options = {"gtol": 1e-10, "maxiter": evaluations}
        minimize(_loss_and_gradient, start, (matrix, target, met), jac=True, method="BFGS", options=options)
        padded = met[: evaluations + 1] + met[-1:] * (evaluations + 1 - len(met))
        rows.append(torch.tensor(padded, dtype=torch.float64).cummin(dim=0).values)
    return torch.stack(rows)


def memories(optimizer: NTMBFGS, functions: QuadraticTasks, steps: int) -> Tensor:
    """The memory along the way, as matrices M(0) … M(steps), shape ``(n, steps + 1, coordinates, coordinates)``."""
    rows, layout = functions.theta, Layout.of(functions.initial_params)
    state = optimizer.initial_state(*rows.shape)
    matrices = [state.memory]
    for step in range(steps):
        _, gradients = functions.losses_and_gradients(rows, layout, step)
        updates, state = optimizer.step(gradients, state)
        rows = rows + updates
        matrices.append(state.memory)
    return torch.stack(matrices, dim=1).cpu()


def _loss_and_gradient(point: Any, matrix: Any, target: Any, met: list[float]) -> tuple[float, Any]:
    """‖Wθ − y‖², which is noted in `met`, and its gradient."""
    residual = matrix @ point - target
    met.append(float(residual @ residual))
    return met[-1], 2 * residual @ matrix
