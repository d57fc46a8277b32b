"""Random search of what a recipe leaves open: the meta-learning rate (section 3 of the paper), and more if it says so.

What is drawn depends on the recipe's seed and the number of the draw, and on nothing else. The draws wait in an optuna
study as a queue, from which any number of processes, on any machines that reach its database, take the next one.
"""

from __future__ import annotations

import json
import math
import secrets
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l_kit.errors import MetaTrainingDivergedError
from l2l_kit.extras import needs
from l2l_kit.making.recipes import Recipe, Search
from l2l_kit.making.work import file_lock
from l2l_kit.paths import user_path
from l2l_kit.problems import with_current_names
from l2l_kit.tensors import Device
from l2l_kit.training import MetaTrainer

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    import sqlalchemy

HEARTBEAT = 15
"""Seconds between signs of life; a trial whose process was killed is run again after twice as long."""


def random_search(recipe: Recipe, storage: str | Path, device: Device = None) -> pd.DataFrame:
    """Run the trials that the recipe's search asks for and that `storage` has not yet, alone or together with others.

    Args:
        recipe: with a `search`; each trial trains its optimizer for the search's number of epochs.
        storage: SQLite file, or the URL of a database that SQLAlchemy can open, which keeps the trials. An interrupted
            search goes on where it was, and several processes that are given the same one share the trials.
        device: None for the best there is.

    Returns:
        A row per trial, once all are done, wherever they were run; the best first: trial, meta_lr and what else was
        drawn, validation_loss (infinite where the trial diverged), seconds. Where trials were pruned there is a column
        pruned_after, the epoch; they come last, with the loss that they had then.

    Raises:
        ValueError: if the recipe has no search, `storage` is that of another recipe, cannot be opened or lacks its
            driver, or every trial diverged.
    """
    with needs("reproduce"):
        import optuna
    import sqlalchemy.exc

    if recipe.search is None:
        raise ValueError(f"recipe {recipe.name!r} has no [search] section.")
    url = _url(storage)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = _open(recipe, recipe.search, url)
            _run(study, recipe, recipe.search, device)
            trials = _table(study)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", cause)).split())  # without the statement that failed
        remedy = " A folder that can be written, on a drive with file locks, is needed." if _file(url) else ""
        raise ValueError(f"{url}: {reason}.{remedy}") from error
    if not trials["validation_loss"].iloc[0] < math.inf:
        raise ValueError(f"recipe {recipe.name!r}: every trial of the search diverged; lower its meta_lr bounds.")
    return trials


def _run(study: optuna.Study, recipe: Recipe, search: Search, device: Device) -> None:
    """Run one draw after the other until all are done, here or elsewhere."""
    import optuna

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
            return math.inf
        finally:
            trial.set_user_attr("seconds", round(trainer.seconds, 1))
        loss = trainer.history.records[-1].validation_loss
        return math.inf if math.isnan(loss) else loss  # optuna would count NaN as a failure and try again for ever

    states, polls = optuna.trial.TrialState, Counter[int]()
    while True:
        for number in set(range(search.trials)) - _by_draw(study).keys():
            study.enqueue_trial(_draw(recipe, search, number), user_attrs={"draw": number})
        trials = _by_draw(study).values()
        running = [trial._trial_id for trial in trials if trial.state == states.RUNNING]
        if any(trial.state == states.WAITING for trial in trials):
            study.optimize(trial_loss, n_trials=1)
        elif running:  # elsewhere
            time.sleep(1)
            polls.update(running)
            for trial_id in running:
                # A process may have been killed before its trial gave the first sign of life, without which optuna
                # would wait for ever. So each trial is given one here; a dead one will not give another.
                if polls[trial_id] == 2:
                    study._storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]
            optuna.storages.fail_stale_trials(study)
        else:
            return


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


def _file(url: sqlalchemy.URL) -> Path | None:
    """The file of a SQLite database."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _open(recipe: Recipe, search: Search, url: sqlalchemy.URL) -> optuna.Study:
    """The study of this recipe, made if it is not there."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = _file(url)
    try:
        # Two processes that make a new study at the same moment would disturb each other; a server sees to that itself.
        with file_lock(file.with_name(f".{file.name}.lock")) if file else nullcontext():
            study = optuna.create_study(
                study_name=recipe.name,
                storage=_storage(url, file),
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
            )
        if known := study.user_attrs.get("asked"):
            known = {**known, "problem": with_current_names(known["problem"])}
        _table(study)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError):
        raise
    except Exception as error:  # what is in a damaged database can be wrong in any way
        raise ValueError(f"{url}: damaged, or no database of a search ({error}). Delete it to search anew.") from error
    settings = replace(recipe.training, meta_lr=search.meta_lr[0], epochs=search.epochs)
    asked = {"problem": recipe.make_problem().config(), "optimizer": recipe.make_optimizer().config()}
    asked |= {"training": asdict(settings), "search": {**asdict(search), "trials": None}}  # there may be more of them
    if known is None:
        study.set_user_attr("asked", asked)
    elif known != json.loads(json.dumps(asked)):
        remedy = "Delete it to search anew, or give this recipe another name."
        raise ValueError(f"{url}: holds the trials of another recipe named {recipe.name!r}. {remedy}")
    return study


def _storage(url: sqlalchemy.URL, file: Path | None) -> optuna.storages.RDBStorage:
    import optuna
    import sqlalchemy.exc

    def opened(url: sqlalchemy.URL) -> optuna.storages.RDBStorage:
        options: dict[str, Any] = {"connect_args": {"timeout": 60}} if file else {}
        return optuna.storages.RDBStorage(url.render_as_string(False), options, heartbeat_interval=HEARTBEAT)

    if file and not file.exists():
        # In another file first: a kill halfway would leave tables in which names of studies are not unique.
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        storage = opened(url.set(database=str(temporary)))
        storage.remove_session()
        storage.engine.dispose()
        temporary.replace(file)
    if file:  # SQLite would find damage in the middle of a search, if at all
        with sqlalchemy.create_engine(url).connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        if found != ["ok"]:
            raise ValueError(f"SQLite says: {'; '.join(found[:3])}")
        return opened(url)
    for _ in range(4):
        try:
            return opened(url)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            # Another process makes a new database's tables at this very moment.
            time.sleep(1)
    return opened(url)


def _draw(recipe: Recipe, search: Search, number: int) -> dict[str, float]:
    """What one trial tries: a function of seed and number alone."""
    import optuna

    sampler = optuna.samplers.RandomSampler(seed=recipe.training.seed * 1000 + number)
    open_to: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=low > 0)
        for name, (low, high) in search.ranges.items()
    }
    drawn: dict[str, float] = optuna.create_study(sampler=sampler).ask(open_to).params
    return drawn


def _by_draw(study: optuna.Study) -> dict[int, optuna.trial.FrozenTrial]:
    """The trial of each draw; those that failed, since they were interrupted or killed, do not count."""
    found: dict[int, optuna.trial.FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name != "FAIL" and "draw" in trial.user_attrs:
            found.setdefault(trial.user_attrs["draw"], trial)
    return found


def _table(study: optuna.Study) -> pd.DataFrame:
    """Finished trials, the best first and pruned ones last."""
    with needs("lessons"):
        import pandas as pd

    done = [trial for trial in _by_draw(study).values() if trial.state.name in ("COMPLETE", "PRUNED")]
    done.sort(key=lambda trial: (trial.state.name == "PRUNED", trial.value))
    rows = []
    for trial in done:
        attributes = dict(trial.user_attrs)
        rows.append({"trial": attributes.pop("draw"), **trial.params, "validation_loss": trial.value, **attributes})
    return pd.DataFrame(rows)
