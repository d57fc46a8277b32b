"""benchmarks/gpu.py, on a CPU and with sizes that take no time."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu

SIZES = {"quadratics": (2, 3)}


def test_a_table_is_written(tmp_path, monkeypatch):
    """Instead of tests and lessons, of something that ends at once."""
    runs = {"tests": ["sh", "-c", "echo 17 passed in 3 s"], "profile": ["sh", "-c", "echo 01: done in 1 s"]}
    monkeypatch.setattr(gpu, "commands", lambda device, folder: runs)
    printed = gpu.report(torch.device("cpu"), 20, tmp_path / "a" / "gpu.md", SIZES, horizon=4)
    assert (tmp_path / "a" / "gpu.md").read_text() == printed + "\n"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["torch"] == [torch.__version__]
    assert {"device", "CPU", "driver", "CUDA", "2 × quadratics", "3 × quadratics"} <= rows.keys()
    assert rows["3 × quadratics"][-1] == "0.0e+00"  # a CPU knows no TF32
    assert rows["tests"][0] == "17 passed in 3 s"
    assert rows["profile"][0] == "1 lessons done, 0 failed"


def test_an_episode_that_would_not_be_done_in_time_is_not_begun():
    assert gpu.episode_seconds("quadratics", 2, torch.device("cpu"), time.monotonic() - 1, 4) is None
    assert gpu.episode_seconds("quadratics", 2, torch.device("cpu"), time.monotonic() + 60, 4) > 0


def test_a_command_that_takes_too_long_is_ended_with_its_children():
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    assert gpu.command_row("profile", command, 3)[1].startswith("stopped for lack of time")
    output, ended, _ = gpu.run_within(command, 3)
    assert not ended
    child = Path("/proc", output.split()[0], "stat")
    until = time.monotonic() + 60
    while child.exists() and " Z " not in child.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)


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
