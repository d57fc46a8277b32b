"""Work that is kept in files: what exists is not made again, and what two processes need is made by one of them.

So a command that was interrupted goes on when it is given again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from l2l_kit.errors import WeightsFileError
from l2l_kit.evaluation import machine
from l2l_kit.extras import needs
from l2l_kit.storage import in_json, read_tensors, write_tensors
from l2l_kit.tensors import Device, Tensors, pick_device

Result = TypeVar("Result")
VERSION = 1  # of the files' format


def kept(
    folder: Path,
    about: Mapping[str, Any],
    make: Callable[[], Tensors],
    *,
    weights: Iterable[Tensor] = (),
    prefix: str = "",
    device: Device = None,
) -> tuple[Tensors, dict[str, Any]]:
    """What `make` gives, from a file if it was made before. Of several processes, one makes it while others wait.

    Args:
        folder: where the file is; its name is a `prefix` and a digest of `about` and `weights`.
        about: all that the result depends on, but for `weights`.
        device: where it is made.

    Returns:
        The tensors, and on which `machine` they were made (empty for files of earlier versions, which do not say).

    Raises:
        WeightsFileError: if the file is damaged.
    """
    path = folder / f"{prefix}{digest(about, weights)}.safetensors"
    if not path.exists():
        with file_lock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                write_tensors(path, make(), {**about, "machine": machine(pick_device(device))}, VERSION)
    with to_begin_again():
        tensors, description = read_tensors(path, VERSION)
    return tensors, description.get("machine", {})


@contextmanager
def to_begin_again() -> Iterator[None]:
    """Say what to do about a file of unfinished work that cannot be used."""
    try:
        yield
    except WeightsFileError as error:
        raise WeightsFileError(f"{error} To begin again, delete the file and give the same command.") from error


def digest(about: Mapping[str, Any], weights: Iterable[Tensor] = ()) -> str:
    """Sixteen characters that differ where `about` or `weights` do, for the name of a file."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for tensor in weights:
        found.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def check_same(path: Path, recorded: Mapping[Any, Any], asked: Mapping[str, Any], remedy: str) -> None:
    """Refuse by a ValueError to replace a file that was made with other settings; what is not recorded may be any."""
    for name, now in in_json(asked).items():
        was = recorded.get(name, now)
        if isinstance(was, dict) and isinstance(now, dict):
            differing = [field for field in was | now if was.get(field) != now.get(field)]
            was, now = ({field: each.get(field) for field in differing} for each in (was, now))
        if was != now:
            raise ValueError(f"{path} was made with other settings: {name} {was}, not {now}. {remedy}")


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, for which other processes wait.

    Raises:
        OSError: with the path, if the file cannot be written, or the drive has no file locks.
    """
    with needs("reproduce"):
        import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the second is how older versions say that there are no locks
        number = getattr(error, "errno", None) or errno.ENOLCK
        raise OSError(number, os.strerror(number), str(path)) from error
    try:
        yield
    finally:
        lock.release()


def parallel_map(
    function: Callable[..., Result],
    calls: Sequence[tuple[Any, ...]],
    jobs: int,
    on_result: Callable[[Result], object] = lambda _: None,
    *,
    apart: bool = False,
    shared: bool = False,
) -> list[Result]:
    """The results of calls of an importable function, in their order, from `jobs` processes that share the cores.

    The processes end when this one does, or when it is interrupted: what they have made by then is in their files. For
    a single job there are none, unless it is to be run `apart`. `on_result` is called as soon as a result is there.
    Calls whose results are kept are made in a random order if they may be `shared`: machines that keep them in the same
    folder then rarely want the same one at the same time.
    """
    jobs, order = max(1, min(jobs, len(calls))), list(range(len(calls)))
    if shared:
        random.Random().shuffle(order)
    if jobs == 1 and not apart:
        results = {}
        for number in order:
            results[number] = function(*calls[number])
            on_result(results[number])
        return [results[number] for number in sorted(results)]
    others = set(active_children())
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin_worker, (max(1, cores() // jobs),)) as pool:
        try:
            futures = {number: pool.submit(function, *calls[number]) for number in order}
            for future in as_completed(futures.values()):
                on_result(future.result())
            return [futures[number].result() for number in sorted(futures)]
        except BaseException as error:  # what was begun may take hours
            for worker in set(active_children()) - others:
                worker.kill()
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("The same command goes on where it was.") from None
            raise


def cores() -> int:
    """How many cores this process may use: fewer than there are under ``taskset`` or in a container with a quota."""
    with needs("reproduce"):
        import joblib

    return int(joblib.cpu_count())


def default_jobs() -> int:
    """How many processes there is room for: $L2L_JOBS, or one for each core.

    Raises:
        ValueError: if $L2L_JOBS is no number of processes.
    """
    jobs = os.environ.get("L2L_JOBS") or str(cores())
    if not jobs.isdecimal() or int(jobs) < 1:
        raise ValueError(f"L2L_JOBS must be a number of processes, at least 1, got {jobs!r}.")
    return int(jobs)


def _begin_worker(share: int) -> None:
    """What a worker does first: take its share of the cores, also for processes of its own, and end with its parent.

    A worker that outlived its parent would write into files that the parent's successor writes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent ends it
    if not os.environ.get("OMP_NUM_THREADS"):  # which torch has read already
        torch.set_num_threads(share)
    for variable in ("OMP_NUM_THREADS", "L2L_JOBS"):
        os.environ[variable] = os.environ.get(variable) or str(share)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
