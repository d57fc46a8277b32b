"""Lesson 0 tells a reader whose JupyterLab cannot show the widgets what to install where."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from l2l_kit.widgets import lab, missing_in_lab

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes cannot be seen here")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another environment, in which nothing is installed; nothing is in the user's and the system's folders either."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "user"))
    monkeypatch.setattr(lab, "SYSTEM_JUPYTER_PATH", [])
    (tmp_path / "other" / "bin").mkdir(parents=True)
    (tmp_path / "other" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path / "other"


@pytest.fixture(params=["jupyter-lab", "jupyter-notebook"])
def server(environment: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """What looks like a Jupyter server of that environment."""
    program = environment / "bin" / request.param
    program.write_text("print('started', flush=True); input()")
    command = [environment / "bin" / "python", program]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.communicate(b"\n", timeout=20)


def test_what_is_missing_beside_lab_is_named(environment: Path, server: int) -> None:
    assert "lacks ipywidgets and anywidget" in missing_in_lab(server)
    assert str(environment) in missing_in_lab(server)
    (environment / "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager").mkdir(parents=True)
    assert "lacks anywidget" in missing_in_lab(server)
    (environment / "share/jupyter/labextensions/anywidget").mkdir()
    assert missing_in_lab(server) == ""


def test_extensions_of_the_user_count(tmp_path: Path, server: int) -> None:
    for extension in lab.EXTENSIONS.values():
        (tmp_path / "user" / "labextensions" / extension).mkdir(parents=True)
    assert missing_in_lab(server) == ""


def test_nothing_is_said_where_nothing_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert missing_in_lab() == ""
    monkeypatch.setenv("JPY_PARENT_PID", "no process")
    assert missing_in_lab() == ""
