"""benchmarks/gpu.py, on a CPU and with sizes that take no time."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu

SIZES = {"quadratics": (2, 3)}


@pytest.fixture
def of_no_work(monkeypatch):
    """In place of tests and lessons: something that ends, and something that never does."""
    ends = [sys.executable, "-c", "print('17 passed in 3 s')"]
    does_not = [sys.executable, "-c", "import time; print('01: done in 1 s', flush=True); time.sleep(600)"]
    monkeypatch.setattr(gpu, "commands", lambda device, folder: {"tests": ends, "profile": does_not})


@pytest.mark.usefixtures("of_no_work")
def test_a_table_is_written_within_the_time_and_says_what_there_was_no_time_for(tmp_path):
    began = time.monotonic()
    printed = gpu.report(torch.device("cpu"), 0.5, tmp_path / "a" / "gpu.md", SIZES, horizon=4)
    assert time.monotonic() - began < 60
    assert (tmp_path / "a" / "gpu.md").read_text() == printed + "\n"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["torch"] == [torch.__version__]
    assert {"device", "CPU", "driver", "CUDA", "2 × quadratics", "3 × quadratics"} <= rows.keys()
    assert rows["tests"][0] == "17 passed in 3 s"
    assert rows["profile"][0] == "stopped for lack of time; 1 lessons done, 0 failed"
    assert rows["3 × quadratics"][-1] == "0.0e+00"  # a CPU knows no TF32


def test_an_episode_that_would_not_be_done_in_time_is_not_begun():
    assert gpu.episode_seconds("quadratics", 2, torch.device("cpu"), time.monotonic() - 1, 4) is None
    assert gpu.episode_seconds("quadratics", 2, torch.device("cpu"), time.monotonic() + 60, 4) > 0


def test_a_command_is_ended_with_its_children():
    child = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); "
    output, ended, _ = gpu.run_within([sys.executable, "-c", code + child], 5)
    assert not ended
    if output:  # the parent had the time to say which
        child = Path("/proc", output.split()[0])
        assert not child.exists() or "Z" in (child / "stat").read_text()


def test_the_commands_are_those_of_the_kit():
    """What they name is there."""
    for device in ("cpu", "cuda"):
        tests, lessons = gpu.commands(device, "folder").values()
        assert all((gpu.ROOT / file).is_file() for file in tests if file.startswith("tests/"))
        assert lessons[lessons.index("--device") + 1] == device


def test_a_gpu_that_is_not_there_is_said_at_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "torch sees no GPU" in capsys.readouterr().err
