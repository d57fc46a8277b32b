"""BFGS and L-BFGS, which estimate the curvature of a function on their way.

They need several evaluations of the loss and its gradient for one step. So evaluations are counted here, not steps:
after t evaluations beyond the first, they have computed as many gradients as another optimizer after t updates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from l2l_kit.extras import needs
from l2l_kit.problems import QuadraticTasks, TaskBatch
from l2l_kit.problems.base import first_evaluation
from l2l_kit.training.rollout import Point

LBFGS = "L-BFGS"  # its name in figures and tables


def bfgs_losses(functions: QuadraticTasks, evaluations: int) -> Tensor:
    """The lowest loss that scipy's BFGS has met after each evaluation of each function, in double precision.

    Its shape is ``(n, evaluations + 1)``, on the CPU: the first evaluation is at the starting point.
    """
    with needs("lessons"):
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


def _loss_and_gradient(
    point: np.ndarray, matrix: np.ndarray, target: np.ndarray, met: list[float]
) -> tuple[float, np.ndarray]:
    """‖Wθ − y‖², which is added to `met`, and its gradient."""
    residual = matrix @ point - target
    met.append(float(residual @ residual))
    return met[-1], 2 * residual @ matrix


def lbfgs(tasks: TaskBatch, evaluations: int) -> Iterator[Point]:
    """Follow one optimizee by torch's L-BFGS with a line search, which neural art is usually painted with.

    The loss is given to torch times the number of coordinates, since its thresholds are made for gradients that do not
    become smaller the more coordinates there are.

    Args:
        tasks: a batch of one.
        evaluations: after the first, which is at the starting point.

    Yields:
        After each evaluation, the first included, the point with the lowest loss so far.

    Raises:
        ValueError: if there are more optimizees than one, if the loss depends on the step, as with minibatches, or as
            `first_evaluation`.
    """
    layout, rows, losses, gradients = first_evaluation(tasks)
    if len(rows) != 1:
        raise ValueError(f"lbfgs: needs one optimizee, got {len(rows)}.")
    with torch.no_grad():
        next_losses = tasks.losses(layout.unravel(rows), step=1)
    if not torch.allclose(next_losses, losses, rtol=1e-3):  # a GPU does not always give the same bits
        raise ValueError("lbfgs: needs the same loss at every step, but this one has another minibatch at each.")
    position = rows.clone()
    # One step at a time, so that its evaluations, of which 26 are enough, can be passed on.
    limits = {"max_iter": 1, "max_eval": 26, "tolerance_grad": 0, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([position], history_size=10, line_search_fn="strong_wolfe", **limits)
    best = Point(rows, losses, gradients)
    seen = [best]

    def evaluate() -> float:
        found = next((point for point in seen if torch.equal(point.params, position)), None)
        if found is None:  # else a step begins where the last one ended
            found = Point(position.clone(), *tasks.losses_and_gradients(position, layout, step=0))
            seen.append(found)
        position.grad = position.numel() * found.gradients
        return position.numel() * found.losses.item()

    yield best
    done = 0
    while done < evaluations:
        before = len(seen)
        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        new = seen[before:] or [best]  # there may be no better point to be found
        for point in new[: evaluations - done]:
            best = point if point.losses < best.losses else best
            yield best
        done += len(new)
        seen = seen[-len(new) :]
