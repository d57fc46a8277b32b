"""Independent pieces of work in several processes that share the cores."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def share() -> int:
    """How many processes there is room for: $L2L_JOBS, or one for each core."""
    return int(os.environ.get("L2L_JOBS") or os.cpu_count() or 1)


def in_order(function: Callable[..., Result], work: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Result]:
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
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), begin_worker, (threads,)) as pool:

        def results(function: Callable[..., Any], work: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
            return (running.result() for running in [pool.submit(function, *arguments) for arguments in work])

        yield results


def begin_worker(threads: int) -> None:
    """What each process of a pool does first: use its share of the cores, and end when the parent does.

    A worker that outlives a parent that was killed would go on writing into files that the parent's successor writes.
    """
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
