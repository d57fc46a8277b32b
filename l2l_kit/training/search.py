"""Random search of the meta-learning rate (section 3 of the paper)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.training.meta_training import MetaTrainer
from l2l_kit.training.recipes import Recipe

if TYPE_CHECKING:
    import pandas as pd


def search_meta_lr(
    recipe: Recipe,
    storage: Path,
    *,
    device: str | torch.device | None = None,
    on_trial: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Run the trials that the recipe's search asks for and are not in `storage` yet.

    Args:
        recipe: with a `search`; each trial trains its optimizer for the search's number of epochs.
        storage: SQLite file that keeps finished trials, so that an interrupted search goes on where it was.
        device: None for the best there is.
        on_trial: called with the table so far after each trial.

    Returns:
        A row per trial, best first: meta_lr, validation_loss (infinite where the trial diverged), seconds.

    Raises:
        ValueError: if the recipe has no search, `storage` is that of another recipe, or every trial diverged.
    """
    import optuna

    search = recipe.search
    if search is None:
        raise ValueError(f"recipe {recipe.name!r} has no [search] section.")
    low, high = search.meta_lr
    storage.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=recipe.name, storage=f"sqlite:///{storage}", direction="minimize", load_if_exists=True
    )

    asked = {
        "problem": recipe.make_problem().config(),
        "optimizer": recipe.make_optimizer().config(),
        "training": asdict(replace(recipe.training, meta_lr=low, epochs=search.epochs)),
        "meta_lr": [low, high],
    }
    asked = json.loads(json.dumps(asked))
    if study.user_attrs.get("asked", asked) != asked:
        raise ValueError(
            f"{storage}: holds the trials of another recipe named {recipe.name!r}. Delete it to search anew, or give "
            "this recipe another name."
        )
    study.set_user_attr("asked", asked)

    def trial_loss(trial: optuna.Trial) -> float:
        meta_lr = trial.suggest_float("meta_lr", low, high, log=True)
        settings = replace(recipe.training, meta_lr=meta_lr, epochs=search.epochs)
        trainer = MetaTrainer(recipe.make_optimizer(), recipe.make_problem(), settings, device=device)
        try:
            for _ in trainer.run():
                pass
        except MetaTrainingDivergedError:
            return float("inf")
        finally:
            trial.set_user_attr("seconds", round(trainer.seconds, 1))
        loss = trainer.history.records[-1].validation_loss
        return float("inf") if math.isnan(loss) else loss  # optuna would count NaN as a failure and try again for ever

    def table() -> pd.DataFrame:
        import pandas as pd

        rows = [
            {"trial": trial.number, **trial.params, "validation_loss": trial.value, **trial.user_attrs}
            for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        ]
        return pd.DataFrame(rows).sort_values("validation_loss", ignore_index=True)

    while (done := len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))) < search.trials:
        # A sampler of its own for each trial: what it draws depends on the trial's number, not on interruptions.
        study.sampler = optuna.samplers.RandomSampler(seed=recipe.training.seed * 1000 + done)
        study.optimize(trial_loss, n_trials=1)
        if on_trial is not None:
            on_trial(table())
    trials = table()
    if not trials["validation_loss"].iloc[0] < float("inf"):
        raise ValueError(f"recipe {recipe.name!r}: every trial of the search diverged; lower its meta_lr bounds.")
    return trials
