"""Random search of what a recipe leaves open: the meta-learning rate (section 3 of the paper), and more if it says so.

What is drawn depends on the recipe's seed and the number of the draw, and on nothing else. The draws wait in an optuna
study as a queue, from which any number of processes, on any machines that reach its database, take the next one.
"""

from __future__ import annotations

import math
import sqlite3
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.extras import needs
from l2l_kit.making.recipes import Recipe, Search
from l2l_kit.making.work import digest, file_lock
from l2l_kit.paths import user_path
from l2l_kit.storage import in_json
from l2l_kit.tensors import Device
from l2l_kit.training import MetaTrainer

with needs("reproduce"):
    import optuna
    import pandas as pd
    import sqlalchemy.exc
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.event import listen

HEARTBEAT = 15  # seconds between signs of life; a trial whose process was killed is run again after twice as long
DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)


def random_search(recipe: Recipe, search: Search, storage: str | Path, device: Device = None) -> pd.DataFrame:
    """Run the trials of a search that `storage` does not have yet, alone or together with other processes.

    Args:
        recipe: what is trained, for the search's number of epochs.
        storage: SQLite file, or the URL of a database that SQLAlchemy can open, which keeps the trials.
        device: None for the best there is.

    Returns:
        A row per trial, once all are done, wherever they were run; the best first: trial, meta_lr and what else was
        drawn, validation_loss (infinite where the trial diverged), seconds. Where trials were pruned there is a column
        pruned_after, the epoch; they come last, with the loss that they had then.

    Raises:
        ValueError: if `storage` is that of another recipe, is damaged or cannot be opened, or every trial diverged.
        ImportError: if its driver is not installed.
    """
    url = _url(storage)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # optuna's heartbeat is one
            study = _open(recipe, search, url)
            _run(study, recipe, search, device)
            trials = _table(study)
    except DATABASE_ERRORS as error:
        cause = error.__cause__ or error
        cause = getattr(cause, "orig", cause)
        reason = " ".join(str(cause).split())  # without the statement that failed
        damaged = type(cause) is sqlite3.DatabaseError  # a place that cannot be read or written is of a subclass
        raise ValueError(f"{url}: {reason}{'. Delete it to search anew.' if damaged else ''}") from error
    if trials["validation_loss"].iloc[0] == math.inf:
        raise ValueError(f"recipe {recipe.name!r}: every trial of the search diverged; lower its meta_lr bounds.")
    return trials


def draw(recipe: Recipe, search: Search, number: int) -> dict[str, float]:
    """What one trial tries: a function of seed and number alone."""
    sampler = optuna.samplers.RandomSampler(seed=(recipe.training.seed * 1000 + number) % 2**32)
    open_to: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=low > 0)
        for name, (low, high) in search.ranges.items()
    }
    drawn: dict[str, float] = optuna.create_study(sampler=sampler).ask(open_to).params
    return drawn


def _url(storage: str | Path) -> sqlalchemy.URL:
    """Where the trials are kept; as text it shows no password."""
    if "://" not in str(storage):
        return sqlalchemy.URL.create("sqlite", database=str(user_path(storage)))
    try:
        url = sqlalchemy.make_url(str(storage))
        if url.drivername in ("postgresql", "postgres"):  # SQLAlchemy's own choice of a driver depends on its version
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() not in ("postgresql", "sqlite"):
            raise ValueError(f"{url.drivername} is not supported")
        with needs("postgresql"):
            url.get_dialect().import_dbapi()
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise ValueError("the database URL is not of the form postgresql://user@host:port/name.") from error
    return url


def _open(recipe: Recipe, search: Search, url: sqlalchemy.URL) -> optuna.Study:
    """The study of this recipe, made if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    settings = replace(recipe.training, meta_lr=search.meta_lr[0], epochs=search.epochs)
    problem, optimizer = recipe.make_problem().config(), recipe.make_optimizer().config()
    about: dict[str, Any] = {"problem": problem, "optimizer": optimizer}
    about |= {"training": asdict(settings), "search": {**asdict(search), "trials": None}}  # there may be more of them
    about |= {"start": digest({}, recipe.initial.values())} if recipe.initial else {}
    about = in_json(about)
    try:
        # Two processes that make a new study at the same moment would disturb each other; a server sees to that itself.
        with file_lock(file.with_name(f".{file.name}.lock")) if file else nullcontext():
            storage = _storage(url)
            if recipe.name in optuna.get_all_study_names(storage):
                study = optuna.load_study(study_name=recipe.name, storage=storage, pruner=pruner)
            else:
                study = optuna.create_study(study_name=recipe.name, storage=storage, pruner=pruner, load_if_exists=True)
        known = study.user_attrs.get("asked", about)
        _table(study)
    except (*DATABASE_ERRORS, OSError):
        raise
    except Exception as error:  # what is in a damaged database can be wrong in any way
        raise ValueError(f"{url}: damaged, or no database of a search ({error}). Delete it to search anew.") from error
    if known != about:
        remedy = "Delete it to search anew, or give this recipe another name."
        raise ValueError(f"{url}: holds the trials of another recipe named {recipe.name!r}. {remedy}")
    study.set_user_attr("asked", about)
    return study


def _storage(url: sqlalchemy.URL, attempts: int = 5) -> optuna.storages.RDBStorage:
    text, sqlite = url.render_as_string(hide_password=False), url.get_backend_name() == "sqlite"
    patient = {"connect_args": {"timeout": 60}} if sqlite else None
    try:
        storage = optuna.storages.RDBStorage(text, patient, heartbeat_interval=HEARTBEAT)
    except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
        if sqlite or attempts == 1:
            raise
        time.sleep(1)  # another process makes the tables of a new database at this moment
        return _storage(url, attempts - 1)
    if sqlite:
        # Each transaction locks the file before it reads. Otherwise two processes may read that a trial is waiting,
        # and both run it.
        storage.engine.dispose()
        listen(storage.engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def _run(study: optuna.Study, recipe: Recipe, search: Search, device: Device) -> None:
    """Run one draw after the other until all are done, here or elsewhere."""

    def loss(trial: optuna.Trial) -> float:
        mine = _by_draw(study).get(trial.user_attrs.get("draw", -1))
        if mine is None or mine.number != trial.number:
            return math.nan  # the queue was empty by now, or two processes had filled it: a failure, which is ignored
        drawn = {name: trial.suggest_float(name, low, high, log=low > 0) for name, (low, high) in search.ranges.items()}
        tried = recipe.with_draw(drawn)
        settings = replace(tried.training, epochs=search.epochs)
        trainer = MetaTrainer(tried.make_optimizer(), tried.make_problem(), settings, device=device)
        try:
            for event in trainer.run():
                if search.prune and event.validation_losses is not None and 0 < event.epoch < search.epochs:
                    trial.report(trainer.history.records[-1].validation_loss, event.epoch)
                    if trial.should_prune():
                        trial.set_user_attr("pruned_after", event.epoch)
                        raise optuna.TrialPruned
        except MetaTrainingDivergedError:
            return math.inf
        finally:
            trial.set_user_attr("seconds", round(trainer.seconds, 1))
        last = trainer.history.records[-1].validation_loss
        return math.inf if math.isnan(last) else last

    seen = set[int]()
    while True:
        trials = _by_draw(study)  # one look: a trial may be given up by another process at any moment
        if missing := set(range(search.trials)) - trials.keys():
            for number in missing:
                study.enqueue_trial(draw(recipe, search, number), user_attrs={"draw": number})
            continue
        running = {trial._trial_id for trial in trials.values() if trial.state == TrialState.RUNNING}
        if any(trial.state == TrialState.WAITING for trial in trials.values()):
            study.optimize(loss, n_trials=1)
        elif running:  # elsewhere
            time.sleep(1)
            # A process may have been killed before its trial gave the first sign of life, without which optuna would
            # wait for ever. So each trial is given one here; a dead one will not give another.
            for trial_id in running - seen:
                study._storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]
            seen |= running
            optuna.storages.fail_stale_trials(study)
        else:
            return


def _by_draw(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The trial of each draw; those that failed, since they were interrupted or killed, do not count."""
    found: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.FAIL and "draw" in trial.user_attrs:
            found.setdefault(trial.user_attrs["draw"], trial)
    return found


def _table(study: optuna.Study) -> pd.DataFrame:
    """Finished trials, the best first and pruned ones last."""
    rows = []
    for number, trial in _by_draw(study).items():
        if trial.state.is_finished():
            result = {"validation_loss": math.inf if trial.value is None else trial.value, **trial.user_attrs}
            rows.append({"trial": number, **trial.params, **result})
    rows.sort(key=lambda row: ("pruned_after" in row, row["validation_loss"], row["trial"]))
    return pd.DataFrame(rows).drop(columns="draw", errors="ignore")
