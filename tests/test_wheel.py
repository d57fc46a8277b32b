"""The kit as a wheel, in an environment without its repository: what README shows works there, too."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from test_paths import RECIPE

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")

BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
USE = """
import json, sys
import torch
from typer.testing import CliRunner
import l2l_kit
from l2l_kit.cli import app

model = torch.nn.Linear(2, 2)
for code in json.load(open("snippets.json")):
    exec(code)
commands = [["zoo"], ["compare", "mine.safetensors", "adam", "--tasks", "2"], ["train", "tiny.toml", "--data", "made"]]
results = [CliRunner().invoke(app, command) for command in commands]
print(json.dumps([l2l_kit.__file__, *([result.exit_code, result.output] for result in results)]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run([sys.executable, "-c", BUILD, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment with the wheel, which finds what the kit needs where it is installed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    found = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", found, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Its packages, not what its .pth files add, such as the repository.
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return found


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "L2L_HOME")}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**environment, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )


def snippets():
    """The Python of README, with fewer episodes."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    short = [part.replace("epochs=10, episodes_per_epoch=25", "epochs=1, episodes_per_epoch=2") for part in code]
    assert short != code
    return short


def test_what_readme_shows_works_without_the_repository(python, tmp_path):
    (tmp_path / "snippets.json").write_text(json.dumps(snippets()))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    ran = run(python, "-c", USE, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    origin, *results = json.loads(ran.stdout.splitlines()[-1])
    assert Path(origin).is_relative_to(python.parents[1])
    assert [code for code, _ in results] == [0, 0, 0], results
    assert (tmp_path / "mine.safetensors").exists()
    assert (tmp_path / "made" / "pretrained" / "tiny.safetensors").exists()


def test_the_command_reproduces_lessons_without_the_repository(python, tmp_path):
    ran = run(python.with_name("l2l"), "reproduce", "--lesson", "00", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert "00_start_here: done" in ran.stdout
    assert (tmp_path / "build" / "report" / "report.html").exists()


def test_without_the_packages_of_the_command_line_it_names_the_extra(python, tmp_path):
    (tmp_path / "typer").mkdir()
    (tmp_path / "typer" / "__init__.py").write_text("raise ModuleNotFoundError(name='typer')")
    ran = run("env", f"PYTHONPATH={tmp_path}", python.with_name("l2l"), "zoo", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == "error: typer is not installed, which this needs: pip install 'l2l_kit[lessons]'\n"


def test_a_wheel_is_small_and_says_that_it_is_typed(wheel):
    assert wheel.stat().st_size < 4_000_000
    with zipfile.ZipFile(wheel) as archive:
        assert "l2l_kit/py.typed" in archive.namelist()
