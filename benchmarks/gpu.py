"""What a GPU is good for: the tests on it, episodes beside the CPU's, and the quick profile, in one table to commit.

`make gpu` installs the kit and runs this. It ends within its minutes on whatever machine: what does not fit is left
out, and the table says so.

    python benchmarks/gpu.py                                  # writes benchmarks/gpu.md
    python benchmarks/gpu.py --device cpu --minutes 5 --out /tmp/gpu.md
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "none"


def episode_seconds(problem: str, size: int, device: torch.device, until: float, horizon: int) -> float | None:
    """Median time of an episode by the first-order replay; None if it would not be done by then.

    A window of it, which is run first, warms up and tells how long that takes.
    """
    tasks, rule = make(problem, size, device)

    def seconds(horizon: int) -> float:
        episode = replay_episode(tasks, rule, min(UNROLL, horizon), horizon=horizon)
        began = time.perf_counter()
        episode()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    window = min(UNROLL, horizon)
    seconds(1)
    if time.monotonic() + seconds(window) * horizon / window > until:
        return None
    found = [seconds(horizon)]
    while len(found) < REPEATS and time.monotonic() + found[-1] < until:
        found.append(seconds(horizon))
    return statistics.median(found)


def episode_rows(
    device: torch.device, sizes: Mapping[str, Sequence[int]], until: float, horizon: int
) -> Iterator[list[str]]:
    cells = [(problem, size) for problem, some in sizes.items() for size in some]
    for index, (problem, size) in enumerate(cells):
        found = []
        for place, where in enumerate((torch.device("cpu"), device)):
            now = time.monotonic()
            share = now + (until - now) / (2 * (len(cells) - index) - place)
            found.append(episode_seconds(problem, size, where, share, horizon))
        ratio = f"{found[0] / found[1]:.2f}" if all(found) else ""
        yield [f"{size} × {problem}", *("no time" if each is None else f"{each:.3f} s" for each in found), ratio]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round what it multiplies to the ten bits of TF32; a CPU never does."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def tf32_rows(
    device: torch.device, sizes: Mapping[str, Sequence[int]], until: float, horizon: int
) -> Iterator[list[str]]:
    for index, (problem, some) in enumerate(sizes.items()):
        tasks, _ = make(problem, some[-1], device)
        params, layout = tasks.initial_params, Layout.of(tasks.initial_params)
        gradients: dict[bool, Tensor] = {}
        times = []
        for allowed in (False, True):
            now = time.monotonic()
            share = now + (until - now) / (2 * (len(sizes) - index) - allowed)
            with tf32(allowed):
                gradients[allowed] = tasks.losses_and_gradients(ravel(params), layout, 0)[1]
                times.append(episode_seconds(problem, some[-1], device, share, horizon))
        differ = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
        shown = ["no time" if each is None else f"{each:.3f} s" for each in times]
        yield [f"{some[-1]} × {problem}", *shown, f"{differ.item():.1e}"]


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
                process.wait(10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return output.read(), ended, time.monotonic() - began


def commands(device: str, folder: str) -> dict[str, list[str]]:
    """What is run beside the timings, in this order; the last lines of the output say how it went."""
    chosen = device if device != "cpu" else "second"  # on a CPU the tests have a device that stands in
    files = [f"tests/test_{name}.py" for name in ("devices", "learned_optimizer", "problems")]
    lessons = ["reproduce", "--profile", "quick", "--device", device, "--out", folder, "--jobs", "4"]
    return {
        f"tests of the device ({chosen})": [sys.executable, "-m", "pytest", "-q", "--no-header", *files, "-k", chosen],
        "quick profile": [sys.executable, "-m", "l2l_kit", *lessons],
    }


def command_row(name: str, command: Sequence[str], seconds: float) -> list[str]:
    output, ended, taken = run_within(command, seconds)
    lines = [line for line in output.splitlines() if line.strip()]
    done, failed = (sum(f": {word}" in line for line in lines) for word in ("done in ", "failed: "))
    outcome = f"{done} lessons done, {failed} failed" if "profile" in name else (lines or ["no output"])[-1].strip("= ")
    return [name, outcome if ended else f"stopped for lack of time; {outcome}", f"{taken:.0f} s"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(
    device: torch.device,
    minutes: float,
    out: Path,
    sizes: Mapping[str, Sequence[int]] = SIZES,
    horizon: int = HORIZON,
) -> str:
    """Run everything within so many minutes, and write what there is after each part."""
    began, seconds = time.monotonic(), 60 * minutes
    name = device.type
    about = machine(device) | {"CPU": machine()["device"], "driver": driver(), "CUDA": torch.version.cuda or "none"}
    parts = [
        f"# The kit on {about['device']}",
        f"`python benchmarks/gpu.py --device {device} --minutes {minutes:g}`, {datetime.date.today()}",
        table(["what", "which"], [(key, str(value)) for key, value in about.items()]),
    ]

    def write(*more: str) -> None:
        parts.extend(more)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n\n".join(parts) + "\n")

    head = [f"an episode of {horizon} steps, unroll {min(UNROLL, horizon)}", "CPU", name, f"CPU / {name}"]
    write(table(head, episode_rows(device, sizes, began + 0.2 * seconds, horizon)))
    head = ["an episode", "TF32 off", "TF32 on", "how much the first gradient differs, relatively"]
    write(table(head, tf32_rows(device, sizes, began + 0.3 * seconds, horizon)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for share, (what, command) in zip((0.55, 0.98), commands(str(device), folder).items(), strict=True):
            rows.append(command_row(what, command, began + share * seconds - time.monotonic()))
    write(table(["what else was run", "outcome", "time"], rows), f"All of it took {time.monotonic() - began:.0f} s.")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=20, help="for all of it; installing takes some more")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.md")
    arguments = parser.parse_args()
    try:
        device = pick_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    print(report(device, arguments.minutes, arguments.out))


if __name__ == "__main__":
    main()
