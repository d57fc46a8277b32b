"""benchmarks/gpu.py, on a CPU and with sizes that take no time."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu


def rows_of(lines):
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


def test_a_table_is_written(tmp_path, monkeypatch):
    """Of what prints the same and ends at once, or never."""
    runs = {
        "timings": (["sh", "-c", "echo a warning; echo '| 2 × x | 1 s |'"], 0.5),
        "tests": (["sh", "-c", "echo 17 passed in 3 s; sleep 600"], 0.5),
        "quick profile": (["sh", "-c", "echo 01: done in 1 s; echo 02: failed: it"], 50),
    }
    monkeypatch.setattr(gpu, "commands", lambda *_: runs)
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    printed = gpu.report(torch.device("cpu"), 0.1, tmp_path / "a" / "gpu.md")
    assert (tmp_path / "a" / "gpu.md").read_text() == printed + "\n"
    rows = rows_of(printed.splitlines())
    assert rows["torch"] == [torch.__version__]
    assert {"device", "CPU", "driver", "CUDA"} <= rows.keys()
    assert rows["tests"][0].startswith("stopped for lack of time; ")
    assert gpu.outcome("tests", "....\n== 1 failed, 16 passed in 3 s ==\nand so on\n") == "1 failed, 16 passed in 3 s"
    assert rows["quick profile"][0] == "1 lessons done, 1 failed"
    assert "warning" not in printed


def test_timings():
    rows = rows_of(gpu.timings(torch.device("cpu"), 600, {"quadratics": (2, 3)}, horizon=4))
    assert float(rows["2 × quadratics"][2]) > 0
    assert rows["3 × quadratics"][-1] == "0.0e+00"  # a CPU knows no TF32
    too_short = rows_of(gpu.timings(torch.device("cpu"), -1, {"quadratics": (2, 3)}, horizon=4))
    assert too_short["2 × quadratics"] == ["no time", "no time", ""]


def test_a_command_that_takes_too_long_is_ended_with_its_children(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
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
        (timings, _), (tests, _), (lessons, end) = gpu.commands(device, 60, "folder").values()
        assert all((gpu.ROOT / file).is_file() for file in tests if file.startswith("tests/"))
        assert timings[timings.index("--timings") + 1] == "15"
        assert end < 1
        assert lessons[lessons.index("--device") + 1] == device


def test_a_gpu_that_is_not_there_is_said_at_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "torch sees no GPU" in capsys.readouterr().err
