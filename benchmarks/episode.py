"""Speed of one meta-training episode: the kit's replay against LSTMCell-and-autograd loops, in the same run.

All train the paper's optimizer (two layers of 20) on the same batch of quadratics over 100 steps with unroll 20:

published  what the published re-implementations do: at each step `backward(retain_graph=True)` for the optimizee's
           gradient, which walks the whole unroll again
mended     the same, with one `autograd.grad` for that gradient, which stops at the parameters
replay     the kit: no graph at all, backpropagation through the LSTM alone

    python benchmarks/episode.py --functions 128 --repeats 7
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from l2l_kit.evaluation import machine
from l2l_kit.optimizers import LSTMOptimizer
from l2l_kit.problems import Quadratics
from l2l_kit.problems.base import Optimizees
from l2l_kit.randomness import generator
from l2l_kit.training import ReplayUnroller

HORIZON, UNROLL = 100, 20


def replay_episode(optimizees: Optimizees) -> Callable[[], None]:
    optimizer = LSTMOptimizer()
    meta_optimizer = torch.optim.Adam(optimizer.parameters(), lr=1e-3)
    unroller = ReplayUnroller(optimizer)

    def episode() -> None:
        unroller.begin(optimizees)
        for _ in range(HORIZON // UNROLL):
            window = unroller.advance(UNROLL)
            for name, weight in optimizer.named_parameters():
                weight.grad = window.meta_gradient[name]
            meta_optimizer.step()

    return episode


def autograd_episode(optimizees: Optimizees, *, mended: bool) -> Callable[[], None]:
    cells = nn.ModuleList([nn.LSTMCell(1, 20), nn.LSTMCell(20, 20)])
    output = nn.Linear(20, 1)
    meta_optimizer = torch.optim.Adam([*cells.parameters(), *output.parameters()], lr=1e-3)

    def episode() -> None:
        theta = optimizees.start["theta"].clone().requires_grad_()
        states = [(torch.zeros(theta.numel(), 20), torch.zeros(theta.numel(), 20)) for _ in cells]
        loss = optimizees.losses({"theta": theta}, 0)
        for _ in range(HORIZON // UNROLL):
            total = torch.zeros(())
            for _ in range(UNROLL):
                if mended:
                    (gradient,) = torch.autograd.grad(loss.sum(), theta, retain_graph=True)
                else:
                    theta.retain_grad()
                    loss.sum().backward(retain_graph=True)
                    assert theta.grad is not None
                    gradient = theta.grad.clone()
                signal = gradient.reshape(-1, 1)
                for index, cell in enumerate(cells):
                    states[index] = cell(signal, states[index])
                    signal = states[index][0]
                theta = theta + output(signal).view_as(theta)
                loss = optimizees.losses({"theta": theta}, 0)
                total = total + loss.mean()
            meta_optimizer.zero_grad()
            total.backward()
            meta_optimizer.step()
            theta = theta.detach().requires_grad_()
            states = [(h.detach(), c.detach()) for h, c in states]
            loss = optimizees.losses({"theta": theta}, 0)

    return episode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    optimizees = Quadratics(10).sample(arguments.functions, generator(0, "benchmark"))
    episodes = {
        "published": autograd_episode(optimizees, mended=False),
        "mended": autograd_episode(optimizees, mended=True),
        "replay": replay_episode(optimizees),
    }
    for episode in episodes.values():  # warm up
        episode()
    times: dict[str, list[float]] = {name: [] for name in episodes}
    for _ in range(arguments.repeats):  # in turn, so that a drift of the machine's speed meets all
        for name, episode in episodes.items():
            started = time.perf_counter()
            episode()
            times[name].append(time.perf_counter() - started)
    print(f"{machine()}; {arguments.functions} functions of dimension 10, {HORIZON} steps, unroll {UNROLL}")
    for name, seconds in times.items():
        ratio = statistics.median(slow / fast for slow, fast in zip(seconds, times["replay"], strict=True))
        print(
            f"{name:10} median {statistics.median(seconds):.3f} s (min {min(seconds):.3f}, max {max(seconds):.3f}), "
            f"{ratio:.1f} times replay"
        )


if __name__ == "__main__":
    main()
