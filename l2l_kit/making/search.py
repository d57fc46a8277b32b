"""Random search of the meta-learning rate (section 3 of the paper).

What is drawn depends on the recipe's seed and the number of the trial, and on nothing else. Each finished trial is kept
in a file, so any number of processes that reach the folder, on one machine or several, share a search.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.extras import needs
from l2l_kit.making.recipes import Recipe, Search
from l2l_kit.making.work import kept, parallel_map
from l2l_kit.tensors import Device, Tensors
from l2l_kit.training import MetaTrainer

if TYPE_CHECKING:
    import pandas as pd


def random_search(recipe: Recipe, search: Search, folder: Path, jobs: int = 1, device: Device = None) -> pd.DataFrame:
    """Train by a recipe with several meta-learning rates; trials that are in the folder already are not run again.

    Args:
        recipe: what is trained, for the search's number of epochs.
        folder: where the trials are kept.
        jobs: trials at once.
        device: None for the best there is.

    Returns:
        A row per trial, the best first: trial, meta_lr, validation_loss (infinite where it diverged), seconds.

    Raises:
        ValueError: if every trial diverged.
    """
    with needs("lessons"):
        import pandas as pd

    trials = [(recipe, search, folder, number, device) for number in range(search.trials)]
    table = pd.DataFrame(parallel_map(_trial, trials, jobs, shared=True))
    table = table.sort_values(["validation_loss", "trial"], ignore_index=True)
    if table["validation_loss"].iloc[0] == math.inf:
        raise ValueError(f"recipe {recipe.name!r}: every trial of the search diverged; lower its meta_lr bounds.")
    return table


def draw_rate(seed: int, bounds: tuple[float, float]) -> float:
    """A meta-learning rate whose logarithm is uniform between the bounds' (drawn as Optuna's random sampler does)."""
    low, high = map(math.log, bounds)
    return math.exp(np.random.RandomState(seed).uniform(low, high))


def _trial(recipe: Recipe, search: Search, folder: Path, number: int, device: Device) -> dict[str, float]:
    """The row of one trial."""
    rate = draw_rate(recipe.training.seed * 1000 + number, search.meta_lr)
    settings = replace(recipe.training, meta_lr=rate, epochs=search.epochs)
    optimizer, problem = recipe.make_optimizer(), recipe.make_problem()

    def run() -> Tensors:
        trainer, loss = MetaTrainer(optimizer, problem, settings, device=device), math.inf
        try:
            for _ in trainer.run():
                pass
            loss = trainer.history.records[-1].validation_loss
        except MetaTrainingDivergedError:
            pass
        found = torch.tensor([loss, round(trainer.seconds, 1)], dtype=torch.float64)
        return {"loss and seconds": found.nan_to_num(nan=math.inf, posinf=math.inf)}

    about = {"problem": problem.config(), "optimizer": optimizer.config(), "training": asdict(settings)}
    found = kept(folder, about, run, weights=list(optimizer.state_dict().values()), prefix="trial-")
    loss, seconds = found["loss and seconds"].tolist()
    return {"trial": number, "meta_lr": rate, "validation_loss": loss, "seconds": seconds}
