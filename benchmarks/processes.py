"""Throughput of meta-training on two processes against one, in the same run: what scale-out gains on this machine.

Both train the paper's optimizer on the same batches, cut into as many shards as there are processes; torch.distributed
averages the meta-gradients (gloo). Each has one thread, so that two processes may have two cores where one has one. The
runs take turns, so that a drift of the machine's speed meets both; the ratio is the median over the turns.

    OMP_NUM_THREADS=1 python benchmarks/processes.py
    OMP_NUM_THREADS=1 python benchmarks/processes.py --problem mnist --batch 8 --episodes 4
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from l2l_kit import LSTMRule, MetaTrainer, MetaTraining, problems
from l2l_kit.evaluation import machine
from l2l_kit.processes import barrier, process_group, rank_and_world_size

OPTIMIZERS = {"quadratics": {}, "mnist": {"preprocessing": "log-sign", "output_scale": 0.1}}


def episodes_per_second(arguments: argparse.Namespace) -> None:
    """One run, on however many processes torchrun started; the first one prints its throughput."""
    with process_group("cpu"):
        settings = MetaTraining(
            epochs=1,
            episodes_per_epoch=arguments.episodes,
            batch_size=arguments.batch,
            shards=arguments.processes,
            validation_tasks=1,
        )
        rule = LSTMRule(**OPTIMIZERS[arguments.problem])
        trainer = MetaTrainer(rule, problems.make({"name": arguments.problem}), settings, device="cpu")
        barrier()
        started = 0.0
        for event in trainer.run():
            if event.episode == 1 and event.validation_losses is None:  # the first episode warms up
                started = time.perf_counter()
            if event.episode == arguments.episodes and event.validation_losses is None:
                taken = time.perf_counter() - started
        if rank_and_world_size()[0] == 0:
            print((arguments.episodes - 1) / taken)


def run(processes: int, arguments: argparse.Namespace) -> float:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
    command += ["--processes", str(processes), "--problem", arguments.problem]
    command += ["--episodes", str(arguments.episodes), "--batch", str(arguments.batch)]
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    return float(ran.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=tuple(OPTIMIZERS), default="quadratics")
    parser.add_argument("--batch", type=int, default=128, help="optimizees per batch")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.processes:
        episodes_per_second(arguments)
        return
    print(f"{machine()}; {arguments.problem}, batch {arguments.batch}, 100 steps, unroll 20")
    turns = [(run(1, arguments), run(2, arguments)) for _ in range(arguments.repeats)]
    for number, speeds in zip((1, 2), zip(*turns, strict=True), strict=True):
        print(f"{number} process{'es' * (number > 1):2}: median {statistics.median(speeds):.2f} episodes/s")
    ratios = sorted(two / one for one, two in turns)
    print(f"ratio: {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f} over {len(ratios)} turns)")


if __name__ == "__main__":
    main()
