"""Processes that are forked from one which has imported everything: importing torch takes longer than what they do."""

import multiprocessing
import os

import torch

IMPORTED = ["l2l_kit.cli", "optuna", "papermill", "pandas", "pooch", "mlxtend.data", "psutil", "scipy.stats"]
IMPORTED += ["torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"]


def forked(*_):
    """The context of multiprocessing that starts them, in place of any other one."""
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload(IMPORTED)
    return context


def start(log, function, *arguments):
    """A process that runs a function, in a process group of its own, and prints into a file."""
    process = forked().Process(target=_run, args=(log, function, arguments))
    process.start()
    return process


def _run(log, function, arguments):
    if hasattr(os, "setsid"):
        os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    function(*arguments)


def finish(process, log):
    """Wait until it has ended without an error; what it printed."""
    process.join(250)
    told = log.read_text()
    assert process.exitcode == 0, told
    return told
