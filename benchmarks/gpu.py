"""What a GPU is good for: the tests on it, episodes beside the CPU's, and the quick profile, in one table to commit.

`make gpu` installs the kit and runs this. It ends within its minutes on whatever machine: what does not fit is left
out, and the table says so.

    python benchmarks/gpu.py                                  # writes benchmarks/gpu.md
    python benchmarks/gpu.py --device cpu --minutes 5 --out gpu.md
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from episode import HORIZON, make, replay_episode
from torch import Tensor

from l2l_kit.evaluation import machine
from l2l_kit.tensors import Layout, pick_device, ravel

ROOT = Path(__file__).resolve().parents[1]
UNROLL = 20
SIZES = {"quadratics": (128, 4096), "mnist": (1, 16), "cifar": (1, 8)}
"""Optimizees per batch: as in `make benchmark`, and as many as a GPU can be given."""
REPEATS = 5
GRACE = 10.0
"""Seconds for a command that has had its time to say how far it came."""


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "none"


def episode_seconds(problem: str, size: int, device: torch.device, until: float, horizon: int) -> float | None:
    """Median time of an episode by the first-order replay; None if it would not be done by then, to judge by a step."""
    if time.monotonic() > until:
        return None
    tasks, rule = make(problem, size, device)

    def seconds(horizon: int) -> float:
        episode = replay_episode(tasks, rule, min(UNROLL, horizon), horizon=horizon)
        began = time.perf_counter()
        episode()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds(1)  # warm up
    if time.monotonic() + seconds(2) / 2 * horizon > until:
        return None
    found = [seconds(horizon)]
    while len(found) < REPEATS and time.monotonic() + found[-1] < until:
        found.append(seconds(horizon))
    return statistics.median(found)


def in_seconds(found: float | None) -> str:
    return "no time" if found is None else f"{found:.3f} s"


def timings(
    device: torch.device, seconds: float, sizes: Mapping[str, Sequence[int]] = SIZES, horizon: int = HORIZON
) -> Iterator[str]:
    """Two tables, line by line: episodes here and on the CPU, and those with TF32 and without."""
    began, name, cpu = time.monotonic(), device.type, torch.device("cpu")
    cells = [(problem, size) for problem, some in sizes.items() for size in some]
    left = 2 * len(cells) + 2 * len(sizes)  # times to measure, which share what is left of the time

    def measured(problem: str, size: int, where: torch.device) -> float | None:
        nonlocal left
        now = time.monotonic()
        left -= 1
        return episode_seconds(problem, size, where, now + (began + seconds - now) / (left + 1), horizon)

    yield from head(f"an episode of {horizon} steps, unroll {min(UNROLL, horizon)}", "CPU", name, f"CPU / {name}")
    for problem, size in cells:
        slow, fast = measured(problem, size, cpu), measured(problem, size, device)
        ratio = f"{slow / fast:.2f}" if slow and fast else ""
        yield row(f"{size} × {problem}", in_seconds(slow), in_seconds(fast), ratio)
    yield ""
    yield from head("an episode", "TF32 off", "TF32 on", "relative difference of the first gradient")
    for problem, some in sizes.items():
        tasks, _ = make(problem, some[-1], device)
        rows, layout = ravel(tasks.initial_params), Layout.of(tasks.initial_params)
        gradients: list[Tensor] = []
        found: list[str] = []
        for allowed in (False, True):
            with tf32(allowed):
                gradients.append(tasks.losses_and_gradients(rows, layout, 0)[1])
                found.append(in_seconds(measured(problem, some[-1], device)))
        differ = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
        yield row(f"{some[-1]} × {problem}", *found, f"{differ.item():.1e}")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round what it multiplies to the ten bits of TF32; a CPU never does."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def run_within(command: Sequence[str], seconds: float) -> tuple[str, bool, float]:
    """What a command printed, whether it ended in time, and how long it took; else it is ended with its children."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, cwd=ROOT)
        ended = False
        try:
            process.wait(max(0.0, seconds))
            ended = True
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # it may say how far it came
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return output.read(), ended, time.monotonic() - began


def commands(device: str, seconds: float, folder: str) -> dict[str, tuple[list[str], float]]:
    """What is run, in this order, each by what share of the time it has to end."""
    tested = device if device != "cpu" else "second"  # on a CPU the tests have a device that stands in
    tests = [f"tests/test_{name}.py" for name in ("devices", "learned_optimizer")]
    lessons = ["reproduce", "--profile", "quick", "--device", device, "--out", folder, "--jobs", "4"]
    return {
        "timings": ([sys.executable, __file__, "--device", device, "--timings", f"{0.25 * seconds:.0f}"], 0.3),
        f"tests of the device {tested!r}": ([sys.executable, "-m", "pytest", "-q", *tests, "-k", tested], 0.55),
        "quick profile": ([sys.executable, "-m", "l2l_kit", *lessons], 0.98),
    }


def outcome(name: str, output: str) -> str:
    """How a command went, by what it printed."""
    lines = [line for line in output.splitlines() if line.strip()]
    if name == "timings":
        return "above"
    if name == "quick profile":
        done, failed = (sum(f": {word}" in line for line in lines) for word in ("done in ", "failed: "))
        return f"{done} lessons done, {failed} failed"
    counts = [line for line in lines if re.search(r"\d (passed|failed|errors?)\b", line)]
    return counts[-1].strip("= ") if counts else "no summary"


def head(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def report(device: torch.device, minutes: float, out: Path) -> str:
    """Run everything within so many minutes, and write what there is after each part."""
    began, seconds = time.monotonic(), 60 * minutes
    about = machine(device) | {"CPU": machine()["device"], "driver": driver(), "CUDA": torch.version.cuda or "none"}
    lines = [
        f"# The kit on {about['device']}",
        "",
        f"`python benchmarks/gpu.py --device {device} --minutes {minutes:g}`, {datetime.date.today()}",
        "",
        *head("what", "which"),
        *(row(name, str(value)) for name, value in about.items()),
        "",
    ]
    ran = head("what was run", "outcome", "time")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (command, share) in commands(str(device), seconds, folder).items():
            output, ended, taken = run_within(command, began + share * seconds - time.monotonic())
            if name == "timings":
                lines += [line for line in output.splitlines() if not line or line.startswith("|")] + [""]
            stopped = "" if ended else "stopped for lack of time; "
            ran.append(row(name, f"{stopped}{outcome(name, output)}", f"{taken:.0f} s"))
            out.write_text("\n".join([*lines, *ran]) + "\n")
    return "\n".join([*lines, *ran])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=20, help="for all of it; installing takes some more")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.md")
    parser.add_argument("--timings", type=float, help=argparse.SUPPRESS)  # seconds, for the timings alone
    arguments = parser.parse_args()
    try:
        device = pick_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    if arguments.timings is None:
        print(report(device, arguments.minutes, arguments.out))
        return
    for line in timings(device, arguments.timings):
        print(line, flush=True)


if __name__ == "__main__":
    main()
