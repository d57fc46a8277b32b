"""How long until a learned optimizer beats every tuned baseline: the kit's loop against published ones.

The paper's optimizer is meta-trained and validated every few episodes on tasks that are drawn for that. It has won when
its final losses are lower than those of each tuned baseline on the same tasks, in the mean and in the median.

All loops take the same meta-updates, because their meta-gradients are equal but for rounding, as tests hold. So a
published loop (see episode.py) takes as many episodes as the kit's, and its time is that times its time per episode,
which is measured here on one batch. Times are those of the processor, without validations.

    python benchmarks/curves.py quadratics
    python benchmarks/curves.py mnist          # a night: the loops are slow, and the baselines are good
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from episode import autograd_episode, make

from l2l_kit.evaluation import machine, tuned_baselines
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import MNIST, Problem, Quadratics
from l2l_kit.training import MetaTrainer, MetaTraining, rollout, validation_batch

PROBLEMS: dict[str, tuple[Callable[[], Problem], MetaTraining]] = {
    "quadratics": (Quadratics, MetaTraining(epochs=100, episodes_per_epoch=10, validation_tasks=1000, meta_lr=0.01)),
    "mnist": (MNIST, MetaTraining(epochs=100, episodes_per_epoch=25, validation_tasks=24, batch_size=1, meta_lr=0.005)),
}
STATISTICS = {"mean": torch.mean, "median": torch.median}


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=PROBLEMS)
    name = parser.parse_args().problem
    make_problem, settings = PROBLEMS[name]
    problem, (tasks, rule) = make_problem(), make(name)
    assert isinstance(rule, LSTMRule)
    loops = {
        loop: autograd_episode(tasks, rule, settings.unroll, mended=loop == "mended")
        for loop in ("published", "mended")
    }
    validation = validation_batch(problem, settings)
    wanted = {}
    for statistic, of in STATISTICS.items():
        finals = {
            label: of(rollout(baseline, validation, settings.horizon)[:, -1]).item()
            for label, baseline in tuned_baselines(name, statistic).items()
        }
        wanted[statistic] = min(finals.values())
        print(f"{statistic} of the final losses:", ", ".join(f"{label} {value:.3g}" for label, value in finals.items()))

    trained, started = 0.0, time.process_time()
    for event in MetaTrainer(rule, problem, settings).run():
        if event.validation_losses is None:
            trained += time.process_time() - started
        else:
            found = {name: of(event.validation_losses[:, -1]).item() for name, of in STATISTICS.items()}
            print(f"{event.episode:5} episodes, {trained:7.1f} s:", ", ".join(f"{n} {x:.3g}" for n, x in found.items()))
            if all(found[statistic] < least for statistic, least in wanted.items()):
                break
        started = time.process_time()
    else:
        raise SystemExit(f"It has not won in {settings.episodes} episodes.")
    print(f"{machine()}; {name}: it beats every tuned baseline after {event.episode} episodes")
    print(f"replay     {trained / 60:.1f} min, {trained / event.episode:.2f} s an episode")
    for loop, episode in loops.items():
        episode()  # warm up
        each = min(seconds(episode) for _ in range(3))
        print(f"{loop:10} {each * event.episode / 60:.1f} min, {each:.2f} s an episode")


if __name__ == "__main__":
    main()
