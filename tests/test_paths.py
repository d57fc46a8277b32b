"""Whatever path a user gives: the home folder's sign, odd names, a folder that cannot be written, a full disk."""

import errno
import runpy
import subprocess
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import filelock
import pytest
from test_cli import SMALL, SWEEP, l2l
from test_lessons import Here

from l2l_kit import data, load, meta_train, paths, save
from l2l_kit.cli import app
from l2l_kit.making.recipes import Search, read_recipes
from l2l_kit.making.search import random_search
from l2l_kit.making.sweeps import read_sweep

RECIPE = """
[problem]
name = "quadratics"
dim = 2
[optimizer]
hidden_size = 2
[training]
horizon = 2
unroll = 2
epochs = 1
episodes_per_epoch = 1
batch_size = 2
validation_tasks = 2
"""
SEARCH = "[search]\ntrials = 1\nepochs = 1\nmeta_lr = [1e-3, 1e-1]\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "~").exists()


def test_the_home_folder_is_found_in_what_the_environment_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2L_HOME", "~/of mine")
    monkeypatch.setenv("L2L_DATA_DIR", "~/dätä")
    assert runpy.run_path(paths.__file__)["HOME"] == home / "of mine"
    assert data.cache_folder() == home / "dätä"


def test_no_command_takes_a_path_as_it_stands() -> None:
    """A shell leaves the sign alone in --data=~/l2l, so that each path is to go through `user_path`."""
    parsers = []
    for command in app.registered_commands:
        for hint in get_type_hints(command.callback, include_extras=True).values():
            kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if Path in (kind, *get_args(kind)):
                parsers += [note.parser for note in notes]
    assert len(parsers) >= 6
    assert set(parsers) == {paths.user_path}


def test_the_home_folder_is_found_by_functions(home: Path) -> None:
    (home / "tiny.toml").write_text(RECIPE)
    (home / "sweep.toml").write_text(SWEEP)
    assert read_sweep("~/sweep.toml").name == "sweep"
    (recipe,) = read_recipes("~/tiny.toml")
    rule = recipe.make_optimizer()
    meta_train(rule, recipe.make_problem(), recipe.training, checkpoint="~/a/run.safetensors", progress=False)
    random_search(recipe, Search(1, 1, (1e-3, 1e-1)), "~/a/search.db", device="cpu")
    save(rule, "~/a/rule")
    assert load("~/a/rule").config() == rule.config()
    found = {path.name for path in (home / "a").iterdir()}
    assert found >= {"search.db", "run.safetensors", "rule.safetensors", "rule.json"}


@pytest.mark.parametrize(
    ("given", "meant"), [("~/made", "made"), ("a b/ünïcode {x} 100% #1?", "a b/ünïcode {x} 100% #1?")]
)
def test_commands_find_the_home_folder_and_take_odd_names_as_names(home: Path, given: str, meant: str) -> None:
    (home / "tiny.toml").write_text(RECIPE + SEARCH)
    l2l("train", "~/tiny.toml", "--data", given, "--device", "cpu")
    assert (home / meant / "cache" / "runs" / "tiny" / "checkpoint.safetensors").stat().st_size > 0
    assert "tiny" in l2l("compare", f"{given}/pretrained/tiny", "adam=0.1", *SMALL).output


@pytest.fixture(params=["full", "read-only"])
def bad_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A disk of one page that is full, or cannot be written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        if request.param == "full":
            (disk / "filler").write_bytes(bytes(4096))
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        yield disk
        left = {path.name for path in disk.rglob("*") if path.is_file() and path.stat().st_size}
        assert left <= {"filler"}
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize(
    "command",
    [
        ("tune", "quadratics", *SMALL, "--rates", "1", "--data", "{disk}"),
        ("train", "{folder}/tiny.toml", "--data", "{disk}"),
        ("train", "{folder}/searched.toml", "--data", "{disk}"),
        ("search", "{folder}/searched.toml", "--data", "{folder}", "--storage", "{disk}/search.db"),
        ("sweep", "{folder}/sweep.toml", "--data", "{disk}"),
        ("reproduce", "--lesson", "00", "--out", "{disk}"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_disk_that_is_full_or_cannot_be_written_is_one_clear_line(
    bad_disk: Path, tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "searched.toml").write_text(RECIPE + SEARCH)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr("l2l_kit.making.work.ProcessPoolExecutor", Here)
    result = l2l(*(part.format(disk=bad_disk, folder=tmp_path) for part in command), code=2)
    assert result.stderr.startswith(f"error: {'sqlite:///' * ('database' in result.stderr)}{bad_disk}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks"), NotImplementedError("no flock")])
def test_a_drive_without_file_locks_is_named(tmp_path: Path, monkeypatch, error: Exception) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    result = l2l("train", tmp_path / "tiny.toml", "--data", tmp_path, code=2)
    assert result.stderr.startswith(f"error: {tmp_path / 'cache' / 'runs' / 'tiny' / 'lock'}: ")
    assert "file locks" in result.stderr
