"""Random search of what a recipe leaves open: the meta-learning rate (section 3 of the paper), and more if it says so.

What is drawn depends on the recipe's seed and the number of the draw, and on nothing else. The draws wait in the study
as a queue, from which any number of processes, on any machines that reach its database, take one after the other.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.paths import user_path
from l2l_kit.problems import with_current_names
from l2l_kit.training.meta_training import MetaTrainer
from l2l_kit.training.recipes import Recipe, Search

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    import sqlalchemy

HEARTBEAT = 15
"""Seconds between signs of life; a trial whose process was killed is run again after twice as long."""


def random_search(
    recipe: Recipe,
    storage: str | Path,
    *,
    device: str | torch.device | None = None,
    on_trial: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Run the trials that the recipe's search asks for and that `storage` has not yet, alone or together with others.

    Args:
        recipe: with a `search`; each trial trains its optimizer for the search's number of epochs.
        storage: SQLite file, or the URL of a database that SQLAlchemy can open, such as ``postgresql://host/name``,
            which keeps the trials. An interrupted search goes on where it was, and several processes that are given the
            same one share the trials. A password is better kept in $PGPASSWORD or ``~/.pgpass`` than in the URL.
        device: None for the best there is.
        on_trial: called with the table so far after each trial that was run here.

    Returns:
        A row per trial, once all are done, wherever they were run; the best first: trial, meta_lr and what else was
        drawn, validation_loss (infinite where the trial diverged), seconds. Where trials were pruned there is a column
        pruned_after, the epoch; they come last, with the loss that they had then.

    Raises:
        ValueError: if the recipe has no search, `storage` is that of another recipe, cannot be opened or lacks its
            driver, or every trial diverged.
    """
    import optuna
    import sqlalchemy.exc

    search = recipe.search
    if search is None:
        raise ValueError(f"recipe {recipe.name!r} has no [search] section.")
    url = _url(storage)
    try:
        trials = _search(recipe, search, url, device, on_trial)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", cause)).split())  # without the statement that failed
        remedy = " A folder that can be written, on a drive with file locks, is needed." * url.drivername.startswith(
            "sqlite"
        )
        raise ValueError(f"{url}: {reason}.{remedy}") from error
    if trials.empty or not trials["validation_loss"].iloc[0] < float("inf"):
        raise ValueError(f"recipe {recipe.name!r}: every trial of the search diverged; lower its meta_lr bounds.")
    return trials


def _search(
    recipe: Recipe,
    search: Search,
    url: sqlalchemy.URL,
    device: str | torch.device | None,
    on_trial: Callable[[pd.DataFrame], None] | None,
) -> pd.DataFrame:
    import optuna

    study = _open(recipe, search, url)

    def trial_loss(trial: optuna.Trial) -> float:
        mine = _by_draw(study).get(trial.user_attrs.get("draw", -1))
        if mine is None or mine.number != trial.number:
            raise optuna.TrialPruned  # the queue was empty by now, or two processes had filled it at the same moment
        drawn = {name: trial.suggest_float(name, *bounds, log=bounds[0] > 0) for name, bounds in search.ranges.items()}
        tried = recipe.with_draw(drawn)
        settings = replace(tried.training, epochs=search.epochs)
        trainer = MetaTrainer(tried.make_optimizer(), tried.make_problem(), settings, device=device)
        try:
            for event in trainer.run():
                if search.prune and event.validation_losses is not None and event.epoch:
                    trial.report(trainer.history.records[-1].validation_loss, event.epoch)
                    if event.epoch < search.epochs and trial.should_prune():
                        trial.set_user_attr("pruned_after", event.epoch)
                        raise optuna.TrialPruned
        except MetaTrainingDivergedError:
            return float("inf")
        finally:
            trial.set_user_attr("seconds", round(trainer.seconds, 1))
        loss = trainer.history.records[-1].validation_loss
        return float("inf") if math.isnan(loss) else loss  # optuna would count NaN as a failure and try again for ever

    states, silent = optuna.trial.TrialState, _Silent(study)
    while True:
        _queue(study, recipe, search)
        found = {trial.state for trial in _by_draw(study).values()}
        if states.WAITING in found:
            study.optimize(trial_loss, n_trials=1)
            if on_trial is not None:
                on_trial(_table(study))
        elif states.RUNNING in found:  # elsewhere
            time.sleep(1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.fail_stale_trials(study)
            silent.fail()
        else:
            break
    return _table(study)


class _Silent:
    """Trials under way that have never given a sign of life, as where a process was killed before the first one.

    Optuna counts the time since the last sign, and would wait for ever for these.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._since: dict[int, float] = {}

    def fail(self) -> None:
        """Count those as failed that have been silent for as long as others are waited for."""
        import sqlalchemy
        from optuna.trial import TrialState

        with self._study._storage._backend.engine.connect() as connection:  # type: ignore[attr-defined]
            alive = set(connection.execute(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats")).scalars())
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial._trial_id in alive:
                continue
            if time.monotonic() - self._since.setdefault(trial.number, time.monotonic()) > 2 * HEARTBEAT:
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _url(storage: str | Path) -> sqlalchemy.URL:
    """Where the trials are kept; as text it shows no password."""
    import sqlalchemy

    if "://" not in str(storage):
        path = user_path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        return sqlalchemy.URL.create("sqlite", database=str(path))
    try:
        url = sqlalchemy.make_url(str(storage))
        if url.drivername in ("postgresql", "postgres"):  # SQLAlchemy's own choice of a driver depends on its version
            url = url.set(drivername="postgresql+psycopg")
        url.get_dialect().import_dbapi()
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ValueError("the database URL is not of the form postgresql://user@host:port/name.") from error
    except ImportError as error:
        raise ValueError(
            f"{url}: its driver is not installed ({error}). For PostgreSQL: pip install 'l2l_kit[postgresql]'"
        ) from error
    return url


def _open(recipe: Recipe, search: Search, url: sqlalchemy.URL) -> optuna.Study:
    """The study of this recipe, made if it is not there."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _study(recipe.name, url)
        if known := study.user_attrs.get("asked"):
            known = {**known, "problem": with_current_names(known["problem"])}
        _table(study)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError):
        raise
    except Exception as error:  # what is in a damaged database can be wrong in any way
        raise ValueError(f"{url}: damaged, or no database of a search ({error}). Delete it to search anew.") from error
    low, high = search.meta_lr
    asked: dict[str, Any] = {
        "problem": recipe.make_problem().config(),
        "optimizer": recipe.make_optimizer().config(),
        "training": asdict(replace(recipe.training, meta_lr=low, epochs=search.epochs)),
        "meta_lr": [low, high],
    }
    if search.optimizer:
        asked["open"] = search.optimizer
    if search.prune:
        asked["prune"] = True
    asked = json.loads(json.dumps(asked))
    if known not in (None, asked):
        raise ValueError(
            f"{url}: holds the trials of another recipe named {recipe.name!r}. Delete it to search anew, or give "
            "this recipe another name."
        )
    if known is None:
        study.set_user_attr("asked", asked)
    return study


def _study(name: str, url: sqlalchemy.URL) -> optuna.Study:
    """The study of that name in a database, made if it is not there."""
    import optuna
    import sqlalchemy.exc

    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":  # which would find damage in the middle of a search, if at all
        options["connect_args"] = {"timeout": 60}
        with sqlalchemy.create_engine(url, **options).connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        if found != ["ok"]:
            raise ValueError(f"SQLite says: {'; '.join(found[:3])}")
    for attempts_left in reversed(range(5)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                database = optuna.storages.RDBStorage(
                    url.render_as_string(False), options, heartbeat_interval=HEARTBEAT
                )
            break
        except sqlalchemy.exc.DBAPIError as error:  # another process makes a new database's tables at this very moment
            if not attempts_left or type(error) is sqlalchemy.exc.DatabaseError:  # the latter: the file is damaged
                raise
            time.sleep(1)
    return optuna.create_study(
        study_name=name,
        storage=database,
        direction="minimize",
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )


def _draw(recipe: Recipe, search: Search, number: int) -> dict[str, float]:
    """What one trial tries: a function of seed and number alone."""
    import optuna
    from optuna.distributions import BaseDistribution, FloatDistribution

    sampler = optuna.samplers.RandomSampler(seed=recipe.training.seed * 1000 + number)
    open_to: dict[str, BaseDistribution] = {
        name: FloatDistribution(low, high, log=low > 0) for name, (low, high) in search.ranges.items()
    }
    drawn: dict[str, float] = optuna.create_study(sampler=sampler).ask(open_to).params
    return drawn


def _queue(study: optuna.Study, recipe: Recipe, search: Search) -> None:
    """Add those draws that are neither done, nor under way, nor waiting."""
    there = _by_draw(study)
    for number in range(search.trials):
        if number not in there:
            study.enqueue_trial(_draw(recipe, search, number), user_attrs={"draw": number})


def _by_draw(study: optuna.Study) -> Mapping[int, optuna.trial.FrozenTrial]:
    """The trial of each draw; those that failed, since they were interrupted or killed, do not count."""
    from optuna.trial import TrialState

    found: dict[int, optuna.trial.FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.FAIL and "draw" in trial.user_attrs:
            found.setdefault(trial.user_attrs["draw"], trial)
    return found


def _table(study: optuna.Study) -> pd.DataFrame:
    """Finished trials, the best first and pruned ones last."""
    import pandas as pd
    from optuna.trial import TrialState

    done = [trial for trial in _by_draw(study).values() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    done.sort(key=lambda trial: (trial.state == TrialState.PRUNED, trial.value))
    rows = []
    for trial in done:
        attributes = dict(trial.user_attrs)
        rows.append({"trial": attributes.pop("draw"), **trial.params, "validation_loss": trial.value, **attributes})
    return pd.DataFrame(rows)
