"""Work that is shared: by processes that torchrun started, in meta-training, and by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from l2l_kit.tensors import Device, pick_device


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process and of all processes; (0, 1) for a single one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


@contextmanager
def process_group(device: Device = None) -> Iterator[torch.device]:
    """Join the other processes, if torchrun started several; yields this one's device, which is one of several GPUs."""
    chosen = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield chosen
        return
    if chosen == torch.device("cuda"):
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        torch.distributed.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if rank_and_world_size()[1] > 1:
        torch.distributed.barrier()


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of this tensor over all processes."""
    _, processes = rank_and_world_size()
    if processes > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
        values /= processes
    return values


def in_threads(work: Callable[..., None], *parts: Sequence[Any]) -> None:
    """`map` in as many threads as torch may use. Meanwhile each of torch's operations has a single one."""
    threads = torch.get_num_threads()
    if threads == 1 or len(parts[0]) == 1:
        deque(map(work, *parts), maxlen=0)
        return
    try:
        torch.set_num_threads(1)
        deque(_pool(threads, os.getpid()).map(work, *parts), maxlen=0)
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One for each process, because a fork has its parent's pools without their threads."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
