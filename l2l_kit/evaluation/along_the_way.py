"""What optimizers do on the way, beside the loss: how they do on images held out, and the steps that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from l2l_kit.evaluation.compare import paired_tasks, scores_at
from l2l_kit.optimizers import Optimizer
from l2l_kit.problems import Problem
from l2l_kit.tensors import Layout
from l2l_kit.training import trajectory

if TYPE_CHECKING:
    import pandas as pd


def metrics_on_test_set(
    optimizers: Mapping[str, Optimizer[Any]],
    problem: Problem,
    *,
    at: Sequence[int],
    num_tasks: int = 16,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Loss and accuracy on the test images, which no optimizee is trained on, after chosen numbers of steps.

    Args:
        optimizers: by the name under which figures and tables show them.
        problem: one whose optimizees put images into classes.
        at: after how many steps.
        num_tasks: number of optimizees, the same as those of `compare` with this number and seed.
        seed: of the optimizees.
        device: None for the best there is.

    Returns:
        Columns `optimizer`, `step`, `loss` and `accuracy`, both means over the optimizees.

    Raises:
        TypeError: if the problem's optimizees are not classifiers.
    """
    import pandas as pd

    rows: list[tuple[str, int, float, float]] = []
    for name, optimizer, tasks in paired_tasks(optimizers, problem, num_tasks, seed, device):
        losses, accuracies = (scores.mean(dim=0).tolist() for scores in scores_at(optimizer, tasks, sorted(at)))
        rows += zip([name] * len(at), sorted(at), losses, accuracies, strict=True)
    return pd.DataFrame(rows, columns=["optimizer", "step", "loss", "accuracy"])


def proposed_steps(
    optimizers: Mapping[str, Optimizer[Any]],
    problem: Problem,
    *,
    steps: int = 10,
    num_tasks: int = 8,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """The updates that optimizers take: how long, and how much against the gradient.

    Args:
        optimizers: by the name under which figures and tables show them.
        problem: where the optimizees come from.
        steps: number of updates.
        num_tasks: number of optimizees.
        seed: of the optimizees.
        device: None for the best there is.

    Returns:
        A row per optimizer, `step` and `parameter` of the optimizee: `size`, the root mean square of the update's
        coordinates, and `descent`, the cosine between the update and the negative gradient; means over the optimizees.
    """
    import pandas as pd

    table = []
    for name, optimizer, tasks in paired_tasks(optimizers, problem, num_tasks, seed, device):
        layout = Layout.of(tasks.initial_params)
        for step, (before, after) in enumerate(pairwise(trajectory(optimizer, tasks, steps))):
            descents, updates = layout.unravel(-before.gradients), layout.unravel(after.params - before.params)
            for parameter, update in updates.items():
                flat, descent = update.flatten(1), descents[parameter].flatten(1)
                table.append(
                    {
                        "optimizer": name,
                        "step": step + 1,
                        "parameter": parameter,
                        "size": flat.square().mean(dim=1).sqrt().mean().item(),
                        "descent": torch.cosine_similarity(flat, descent, dim=1).mean().item(),
                    }
                )
    return pd.DataFrame(table)
