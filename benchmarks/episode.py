"""Speed of one meta-training episode: the kit's replay against LSTMCell-and-autograd loops, in the same run.

All train the paper's optimizer (two layers of 20) on the same optimizees over 100 steps with unroll 20:

published  what the published re-implementations do: at each step `backward(retain_graph=True)` for the optimizee's
           gradient, which walks the whole unroll again
mended     the same, with one `autograd.grad` for that gradient, which stops at the parameters
replay     the kit: no graph at all, backpropagation through the LSTM alone

How much faster could it be? The same run measures the floor, which no implementation in torch can avoid, part by part:

products   the matrix products of the LSTM, forward, backward and for its weights
sigmoids   those of its gates and cells
memory     what backpropagation needs of each step, written once and read once
gradients  the losses of the tasks and their gradients

For the convolutional network and its two LSTMs, of whose coordinates a sample is replayed, two things that make the
kit's replay faster are taken back, one at a time:

contiguous  the network's channels come before height and width, as is usual in torch, not last
forward     steps that are not recorded are `LSTMRule.forward` in blocks, with new tensors all the way

    python benchmarks/episode.py quadratics          # 128 functions of dimension 10
    python benchmarks/episode.py mnist               # one 784-20-10 network
    python benchmarks/episode.py mnist --memory      # peak memory of the replay, with unroll 100
    python benchmarks/episode.py cifar               # a convolutional network and two LSTMs
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from l2l_kit.evaluation import machine
from l2l_kit.optimizers import GroupedRule, LSTMRule, LSTMState, UpdateRule
from l2l_kit.optimizers.lstm import LSTMLayer
from l2l_kit.optimizers.tape import BLOCK, bytes_per_step
from l2l_kit.problems import CIFAR, MNIST, Problem, Quadratics, TaskBatch
from l2l_kit.processes import in_threads
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, ravel
from l2l_kit.training import FirstOrderEstimator

HORIZON = 100
NETWORKS: dict[str, Any] = {"preprocessing": "log-sign", "output_scale": 0.1}
"""What the paper changes in its optimizer for networks."""


def make(
    problem: str, num_tasks: int | None = None, device: torch.device | None = None
) -> tuple[TaskBatch, UpdateRule]:
    """Some tasks, 128 quadratics or one network if not given, and the rule that is trained on them."""
    found: tuple[Problem, UpdateRule]
    if problem == "cifar":
        found = CIFAR(), GroupedRule({"conv": NETWORKS, "fc": NETWORKS})
    elif problem == "quadratics":
        found = Quadratics(10), LSTMRule()
    else:
        found = MNIST(), LSTMRule(**NETWORKS)
    size = num_tasks or (128 if problem == "quadratics" else 1)
    return found[0].sample(size, generator(0, "benchmark"), device), found[1].to(device)


def replay_episode(
    tasks: TaskBatch, rule: UpdateRule, unroll: int, sample: int | None = None, horizon: int = HORIZON
) -> Callable[[], None]:
    meta_optimizer = torch.optim.Adam(rule.parameters(), lr=1e-3)
    estimator = FirstOrderEstimator(rule, sample=sample)

    def episode() -> None:
        estimator.reset(tasks)
        for _ in range(horizon // unroll):
            window = estimator.unroll(unroll)
            for name, weight in rule.named_parameters():
                weight.grad = window.meta_gradient[name]
            meta_optimizer.step()

    return episode


def autograd_episode(tasks: TaskBatch, rule: LSTMRule, unroll: int, *, mended: bool) -> Callable[[], None]:
    inputs = rule.preprocessing.features
    cells = nn.ModuleList([nn.LSTMCell(inputs, 20), nn.LSTMCell(20, 20)])
    output = nn.Linear(20, 1)
    meta_optimizer = torch.optim.Adam([*cells.parameters(), *output.parameters()], lr=1e-3)
    layout = Layout.of(tasks.initial_params)

    def episode() -> None:
        theta = ravel(tasks.initial_params).clone().requires_grad_()
        states = [(torch.zeros(theta.numel(), 20), torch.zeros(theta.numel(), 20)) for _ in cells]
        step = 0
        loss = tasks.losses(layout.unravel(theta), step)
        for _ in range(HORIZON // unroll):
            total = torch.zeros(())
            for _ in range(unroll):
                if mended:
                    (gradient,) = torch.autograd.grad(loss.sum(), theta, retain_graph=True)
                else:
                    theta.retain_grad()
                    loss.sum().backward(retain_graph=True)
                    assert theta.grad is not None
                    gradient = theta.grad.clone()
                signal = rule.preprocessing(gradient.flatten()).T
                for index, cell in enumerate(cells):
                    states[index] = cell(signal, states[index])
                    signal = states[index][0]
                theta = theta + rule.output_scale * output(signal).view_as(theta)
                step += 1
                loss = tasks.losses(layout.unravel(theta), step)
                total = total + loss.mean()
            meta_optimizer.zero_grad()
            total.backward()
            meta_optimizer.step()
            theta = theta.detach().requires_grad_()
            states = [(h.detach(), c.detach()) for h, c in states]
            loss = tasks.losses(layout.unravel(theta), step)

    return episode


@torch.no_grad()
def step_by_forward(rule: LSTMRule, gradients: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
    """Of one task, whose coordinates are the last axis."""
    updates = torch.empty_like(gradients)
    after = LSTMState(torch.empty_like(state.hidden), torch.empty_like(state.cell))
    for first in range(0, gradients.shape[-1], 4096):
        part = ..., slice(first, first + 4096)
        before = LSTMState(state.hidden[part], state.cell[part])
        updates[part], (after.hidden[part], after.cell[part]) = rule(gradients[part], before)
    return updates, after


def floor(tasks: TaskBatch, rule: LSTMRule, unroll: int) -> dict[str, Callable[[], None]]:
    """The parts of the floor, for an episode; in blocks of coordinates that are in the cache, as those of the tape."""
    rows, layout, hidden = ravel(tasks.initial_params), Layout.of(tasks.initial_params), rule.hidden_size
    blocks = torch.split(torch.ones(unroll * bytes_per_step(rule) // 4, rows.numel()), BLOCK, dim=1)
    kept = [block.contiguous() for block in blocks]

    @torch.no_grad()
    def products(kept: Tensor) -> None:
        gates, output, total = (torch.ones(rows, kept.shape[1]) for rows in (4 * hidden, hidden, 1))
        for index, layer in enumerate(cast(LSTMLayer, layer) for layer in rule.layers):
            inputs, weight = torch.ones(layer.weight.shape[1], kept.shape[1]), layer.weight
            back = weight[:, -hidden:].T if index == 0 else weight.T  # the first layer's input needs no gradient
            for _ in range(HORIZON):
                torch.mm(weight, inputs, out=gates)
                torch.mm(back, gates)
                torch.mm(inputs, gates.T)
        for _ in range(HORIZON):
            torch.mm(rule.output.weight, output, out=total)
            torch.mm(rule.output.weight.T, total)
            torch.mm(output, total.T)

    def sigmoids(kept: Tensor) -> None:
        values = torch.ones(5 * hidden, kept.shape[1])
        for _ in range(HORIZON * rule.num_layers):
            values.sigmoid_()

    def memory(kept: Tensor) -> None:
        for _ in range(HORIZON // unroll):
            kept.fill_(1.0)
            kept.sum()

    def gradients() -> None:
        for step in range(HORIZON):
            tasks.losses_and_gradients(rows, layout, step)

    alone = {work.__name__: partial(in_threads, work, kept) for work in (products, sigmoids, memory)}
    return {**alone, "gradients": gradients}


def within(change: AbstractContextManager[Any], episode: Callable[[], None]) -> Callable[[], None]:
    def changed() -> None:
        with change:
            episode()

    return changed


def speed(problem: str, repeats: int) -> None:
    tasks, rule = make(problem)
    parts: dict[str, Callable[[], None]] = {}
    if isinstance(rule, LSTMRule):
        episodes = {
            "published": autograd_episode(tasks, rule, 20, mended=False),
            "mended": autograd_episode(tasks, rule, 20, mended=True),
            "replay": replay_episode(tasks, rule, 20),
            **(parts := floor(tasks, rule, 20)),
        }
    else:
        replay = replay_episode(tasks, rule, 20, sample=1500)
        contiguous = mock.patch.object(torch, "channels_last", torch.contiguous_format)
        episodes = {
            "contiguous": within(contiguous, replay),
            "forward": within(mock.patch.object(LSTMRule, "step", step_by_forward), replay),
            "replay": replay,
        }
    for episode in episodes.values():  # warm up
        episode()
    times: dict[str, list[float]] = {name: [] for name in episodes}
    for _ in range(repeats):  # in turn, so that a drift of the machine's speed meets all
        for name, episode in episodes.items():
            started = time.perf_counter()
            episode()
            times[name].append(time.perf_counter() - started)
    for name, seconds in times.items():
        ratio = statistics.median(slow / fast for slow, fast in zip(seconds, times["replay"], strict=True))
        print(
            f"{name:10} median {statistics.median(seconds):.3f} s (min {min(seconds):.3f}, max {max(seconds):.3f}), "
            f"{ratio:.2f} times replay"
        )
    if parts:
        floors = [sum(each) for each in zip(*(times[name] for name in parts), strict=True)]
        shares = [least / replay for least, replay in zip(floors, times["replay"], strict=True)]
        print(f"the floor, which is the sum of the last {len(parts)}, is {statistics.median(shares):.0%} of replay")


def memory(problem: str, unroll: int) -> None:
    """Peak memory above that of an interpreter that has made the optimizees."""
    tasks, rule = make(problem)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    replay_episode(tasks, rule, unroll)()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"replay, unroll {unroll}: {(after - before) / 1024:.0f} MiB above {before / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=("quadratics", "mnist", "cifar"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--unroll", type=int, default=HORIZON, help="for --memory")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.problem}, {HORIZON} steps")
    if arguments.memory:
        memory(arguments.problem, arguments.unroll)
    else:
        speed(arguments.problem, arguments.repeats)


if __name__ == "__main__":
    main()
