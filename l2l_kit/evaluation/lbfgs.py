"""L-BFGS, what neural art is usually painted with (Gatys et al., 2015): torch's own, with a line search.

It is no optimizer like the others. It looks at all coordinates of an optimizee together, asks for the loss at points of
its own choice, and takes several of them for one step. What it has in common with the others, and what it costs, is
that each point is one evaluation of the loss and its gradient: so it is followed by evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from l2l_kit.problems.base import TaskBatch
from l2l_kit.problems.checks import first_evaluation
from l2l_kit.training.rollout import Point

LBFGS = "L-BFGS"
"""How figures and tables call it."""


def lbfgs(tasks: TaskBatch, evaluations: int, memory: int = 10) -> Iterator[Point]:
    """Follow one optimizee from its starting point, which is the first evaluation and counts as number 0.

    The loss is given to torch times the number of coordinates, since its thresholds are made for gradients that do not
    become smaller the more coordinates there are.

    Args:
        tasks: a batch of one.
        evaluations: after the first.
        memory: steps whose changes of the gradient are remembered.

    Yields:
        After each evaluation the point with the lowest loss so far.

    Raises:
        ValueError: if there are more optimizees than one, or as `first_evaluation`.
        TypeError: as `first_evaluation`.
    """
    layout, rows, losses, gradients = first_evaluation(tasks)
    if len(rows) != 1:
        raise ValueError(f"lbfgs: needs one optimizee, got {len(rows)}.")
    point = rows.clone()
    # One step at a time, so that its evaluations, of which 26 are enough, can be passed on.
    limits = {"max_iter": 1, "max_eval": 26, "tolerance_grad": 0, "tolerance_change": 0}
    torch_optimizer = torch.optim.LBFGS([point], history_size=memory, line_search_fn="strong_wolfe", **limits)
    seen = [Point(rows, losses, gradients)]

    def evaluate() -> float:
        known = [other for other in seen if torch.equal(other.params, point)]
        if not known:  # else a step begins where the last one ended
            known = [Point(point.clone(), *tasks.losses_and_gradients(point, layout, step=0))]
            seen.extend(known)
        point.grad = point.numel() * known[0].gradients
        return point.numel() * known[0].losses.item()

    best = seen[0]
    yield best
    done = 1
    while done <= evaluations:
        before = len(seen)
        torch_optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        new = seen[before:]
        if not new:  # no better point is to be found
            new = [best]
        for found in new[: evaluations + 1 - done]:
            best = found if found.losses < best.losses else best
            yield best
        done += len(new)
        seen = seen[-len(new) :]
