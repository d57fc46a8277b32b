"""Independent pieces of work in several processes that share the cores."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import torch

from l2l_kit.extras import needs

Result = TypeVar("Result")


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


def parallel_map(function: Callable[..., Result], work: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Result]:
    """Results of calls in their order, here or in several processes that share the cores.

    Args:
        function: importable, since other processes import it.
        work: its arguments, call by call.
        jobs: processes at once.
    """
    with workers(min(jobs, len(work))) as pool:
        yield from pool(function, work)


@contextmanager
def workers(jobs: int) -> Iterator[Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]]:
    """What does the work of `in_order` again and again, with the same processes; here, if one is enough."""
    if jobs <= 1:
        yield itertools.starmap
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), begin_worker, (max(1, cores() // jobs),)) as pool:

        def results(function: Callable[..., Any], work: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
            return (running.result() for running in [pool.submit(function, *arguments) for arguments in work])

        try:
            yield results
        except BaseException:  # such as Ctrl-C: what has not begun is not to begin any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, for which other processes wait.

    Raises:
        OSError: with the path, if the file cannot be written, or the drive has no file locks.
    """
    with needs("reproduce"):
        import filelock

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


def begin_worker(threads: int) -> None:
    """What each process of a pool does first: use its share of the cores, and end when the parent does.

    Where $OMP_NUM_THREADS says how many threads, torch has read it already.
    A worker that outlives a parent that was killed would go on writing into files that the parent's successor writes.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
