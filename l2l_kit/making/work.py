"""Work that is kept in files: what is there is not made again, what two processes want is made by one of them.

So a command that was interrupted goes on when it is given again. Pieces of work that do not depend on each other are
done in several processes that share the cores.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from l2l_kit.extras import needs

Result = TypeVar("Result")


def key(about: Mapping[str, Any], weights: Iterable[Tensor] = ()) -> str:
    """A digest of all that a piece of work depends on, for the name of its file."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for tensor in weights:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def once(path: Path, make: Callable[[], object]) -> None:
    """Make a file unless it is there. Of several processes that want it, one makes it while the others wait."""
    if not path.exists():
        with file_lock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                make()


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


def parallel_map(function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Result]:
    """The results of calls in their order.

    Args:
        function: importable, since other processes import it.
        calls: its arguments, call by call.
        jobs: processes at once; with one, all is done in this process.
    """
    with workers(min(jobs, len(calls))) as starmap:
        yield from starmap(function, calls)


@contextmanager
def workers(jobs: int) -> Iterator[Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]]:
    """What `parallel_map` does, as a function of its first two arguments that uses the same processes each time."""
    if jobs <= 1:
        yield itertools.starmap
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), begin_worker, (max(1, cores() // jobs),)) as pool:
        try:
            yield lambda function, calls: (each.result() for each in [pool.submit(function, *call) for call in calls])
        except BaseException:  # such as Ctrl-C: what has not begun must not begin any more
            pool.shutdown(wait=False, cancel_futures=True)
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


def begin_worker(threads: int) -> None:
    """What each process of a pool does first: use its share of the cores, and end when its parent does.

    A worker that outlived its parent would write into files that the parent's successor writes.
    """
    if not os.environ.get("OMP_NUM_THREADS"):  # which torch has read already
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
