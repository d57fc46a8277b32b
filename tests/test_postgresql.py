"""A search that several processes share in a PostgreSQL database, on a real server that runs for these tests alone."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from test_search import COLUMNS, share, write_shared
from typer.testing import CliRunner
from workers import finish, start

from l2l_kit.cli import app
from l2l_kit.evaluation import read_result
from l2l_kit.making import search as module
from l2l_kit.making.recipes import read_recipes
from l2l_kit.making.search import random_search
from l2l_kit.training import MetaTrainer

BRISK = 6
"""Seconds between signs of life: few, so that what a killed process has left is soon taken up, yet more than one that
lives is ever late on a busy machine."""


def brisk(*arguments):
    """A search that soon takes up what a killed one has left."""
    module.HEARTBEAT = BRISK
    share(*arguments)


def hang(*arguments):
    """A search whose first trial never ends."""
    MetaTrainer._episode = lambda *_: time.sleep(1000)
    brisk(*arguments)


@pytest.fixture
def path(tmp_path):
    return write_shared(tmp_path)


def binaries() -> Path | None:
    """Where the server's programs are: Debian keeps them out of the path."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *filter(None, [shutil.which("initdb")])]
    return Path(found[0]).parent if found else None


@pytest.fixture(scope="module")
def server():
    """A URL of a fresh server on the loopback interface that asks for a password."""
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL server here: apt-get install postgresql")
    password = secrets.token_hex(8)
    # Not in pytest's folder: the server refuses to be root, and nobody else may enter that.
    folder = Path(tempfile.mkdtemp(prefix="l2l-"))
    user = {}
    if os.getuid() == 0:
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres", "postgres")
    (folder / "password").write_text(password)
    (folder / "password").chmod(0o644)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make = [programs / "initdb", "-D", folder / "data", "-U", "l2l", "--auth=scram-sha-256", "--no-sync"]
    make += [f"--pwfile={folder / 'password'}"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **user)
    serve = [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(serve, stdout=log, stderr=log, cwd=folder, **user)
    try:
        wait_until(lambda: (folder / f".s.PGSQL.{port}.lock").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"postgresql://l2l:{password}@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown
        process.wait(60)
        shutil.rmtree(folder)


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def running(url, name):
    try:
        study = optuna.load_study(study_name=name, storage=url)
    except KeyError:
        return False
    # A trial is there before it has parameters.
    return any(trial.state == optuna.trial.TrialState.RUNNING and trial.params for trial in study.trials)


def test_two_share_a_search_and_take_up_what_a_third_one_left_when_it_was_killed(server, path, tmp_path, monkeypatch):
    (recipe,) = read_recipes(path)
    driver = server.replace("postgresql://", "postgresql+psycopg://")
    optuna.storages.RDBStorage(driver)  # makes the tables, so that `running` can ask
    killed = start(tmp_path / "killed.log", hang, path, server, tmp_path / "hung")
    wait_until(lambda: running(driver, "shared") or not killed.is_alive())
    killed.kill()
    killed.join()

    monkeypatch.setattr(module, "HEARTBEAT", BRISK)
    other = start(tmp_path / "other.log", brisk, path, server, tmp_path / "data")
    here = random_search(recipe, recipe.search, server, device="cpu")
    told = finish(other, tmp_path / "other.log")

    alone = random_search(recipe, recipe.search, tmp_path / "alone.db", device="cpu")
    pd.testing.assert_frame_equal(here[COLUMNS], alone[COLUMNS], check_exact=True)
    there = read_result("search/shared", tmp_path / "data" / "results")
    pd.testing.assert_frame_equal(there[COLUMNS], alone[COLUMNS], rtol=1e-5)
    trials = optuna.load_study(study_name="shared", storage=driver).trials
    assert sum("seconds" in trial.user_attrs for trial in trials) == 8, "each draw is run once to its end"
    # Those without parameters had not begun: two processes had found the same draw missing.
    given_up = [trial for trial in trials if trial.state == optuna.trial.TrialState.FAIL and trial.params]
    assert len(given_up) == 1, "only one was killed"

    password = server.split(":")[2].split("@")[0]
    written = [file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file()]
    assert len(written) >= 3
    assert not any(password.encode() in content for content in [told.encode(), *written])


def test_a_server_that_lets_nobody_in_is_one_line_without_the_password(server, path, tmp_path):
    wrong = server.replace("l2l:", "l2l:wrong-")
    result = CliRunner().invoke(app, ["search", str(path), "--storage", wrong, "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "password authentication failed" in result.stderr
    assert "wrong-" not in result.output
    assert result.stderr.count("\n") == 1


def test_without_the_driver_it_says_how_to_install_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    (recipe,) = read_recipes(path)
    for scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        with pytest.raises(ImportError, match=r"pip install 'l2l_kit\[postgresql\]'") as caught:
            random_search(recipe, recipe.search, f"{scheme}://me:secret@127.0.0.1/x")
        assert "secret" not in str(caught.value)
