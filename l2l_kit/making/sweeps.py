"""Sweeps: learned against freshly tuned optimizers over a grid of problems, such as the architectures of figure 6."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2l_kit import problems, zoo
from l2l_kit.errors import Count, check_fields, check_names, check_number
from l2l_kit.evaluation import (
    AVERAGED,
    EACH_STEP,
    LBFGS,
    ONE_RATE,
    RATIO,
    Curves,
    paired_ratio,
    ratio_columns,
    training_of,
    with_seed,
    write_result,
)
from l2l_kit.extras import pd
from l2l_kit.making.plans import combinations, make_from, read_plan
from l2l_kit.making.recipes import find_recipe
from l2l_kit.making.runs import FOLDER, Run, Runnable, machines
from l2l_kit.making.work import parallel_map
from l2l_kit.optimizers import Baseline
from l2l_kit.paths import HOME, SWEEPS
from l2l_kit.problems import Problem
from l2l_kit.tensors import Device

RATES = "learning_rates"
ROUND = [float(f"{digit}e{power}") for power in range(-9, 7) for digit in (1, 2, 5)]
"""Where a grid of learning rates goes on: in steps of √10 at most."""
TEACHER = "teacher"  # its label in figures
FLAT = 1e-4
"""Share of a loss that makes no difference: a grid does not go on into nothingness, where all losses are the same."""


@dataclass(frozen=True)
class Sweep:
    """What a file of data/sweeps says."""

    name: str
    problem: Mapping[str, Any]  # configuration that all settings share
    grid: Mapping[str, list[Any]]  # values of the fields that vary; every combination is a setting
    learned: Mapping[str, str]  # pretrained optimizers by the label that figures show; ratios are those of the first
    steps: list[int]  # numbers of updates after which the losses are noted, in ascending order
    num_tasks: Count  # fresh optimizees per setting
    # By label, the arguments of `Baseline`, with a list of `learning_rates` to begin with instead of one. Others are
    # tried until the best one, for each of the steps, is neither the first nor the last.
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuning_tasks: Count | None = None  # optimizees to tune the baselines on; None where there are no baselines
    tuned_on: Mapping[str, Any] = field(default_factory=dict)  # fields of the problem that are others in tuning
    ratios_of: list[str] = field(default_factory=list)  # others of `learned` whose ratios are recorded as well
    teacher: str | None = None  # a recipe whose teacher is run as well, as it is
    lbfgs: bool = False  # whether L-BFGS is run as well, untuned: the lowest loss after as many evaluations
    # Whether the losses are those on the test images, in tuning as in comparison (which is to the advantage of the
    # baselines, the only ones that are tuned).
    on_test_set: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "sweep")
        if not self.learned or not self.grid or len(self.labels) < 2:
            raise ValueError("learned and grid must not be empty, and there must be something to compare with")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"two optimizers have the same label: {', '.join(self.labels)}")
        if (self.tuning_tasks is None) != (not self.baselines):
            raise ValueError("tuning_tasks is needed where there are baselines to tune, and only there")
        for step in self.steps:
            check_number("sweep", "steps", step)
        if not self.steps or self.steps != sorted(set(self.steps)):
            raise ValueError(f"steps must be some, and ascend, got {self.steps!r}")
        check_names("learned optimizer of ratios_of", self.ratios_of, self.learned)
        for label, name in self.learned.items():
            if not isinstance(name, str):
                raise ValueError(f"learned: {label} must be the name of an optimizer, got {name!r}")
        for label, rule in self.baselines.items():
            if not isinstance(rule, Mapping) or not isinstance(rule[RATES], list) or "lr" in rule:
                raise ValueError(f"baselines: {label} must be a table with a list of {RATES} and no lr, got {rule!r}")
            rates = [self.baseline(label, lr).lr for lr in rule[RATES]]
            if not rates or any(not 1 < larger / rate <= 10 / 3 for rate, larger in itertools.pairwise(rates)):
                raise ValueError(f"{RATES} of {label} must ascend, by a factor of √10 at most, got {rates!r}")

    @property
    def labels(self) -> list[str]:
        """All optimizers, as figures show them: the learned ones, the teacher, the baselines, L-BFGS."""
        return [*self.learned, *[TEACHER] * (self.teacher is not None), *self.baselines, *[LBFGS] * self.lbfgs]

    def baseline(self, label: str, lr: float) -> Baseline:
        """The baseline of that label with a learning rate."""
        settings = {name: value for name, value in self.baselines[label].items() if name != RATES}
        return make_from(f"baseline {label!r}", Baseline, {**settings, "lr": lr})

    def make_problem(self, setting: Mapping[str, Any], draw: str = "test") -> Problem:
        """The problem of one setting, or what the baselines are tuned on for it if the draw is "tuning"."""
        return problems.make({**self.problem, **setting, **(self.tuned_on if draw == "tuning" else {})})


def read_sweep(name_or_path: str | Path) -> Sweep:
    """A sweep of data/sweeps by name, or from a path to a TOML file; raises as `read_plan`."""

    def make(name: str, content: dict[str, Any]) -> Sweep:
        sweep = make_from("sweep", Sweep, {"name": name, **content})
        for setting, draw in itertools.product(combinations(sweep.grid), ("tuning", "test")):
            sweep.make_problem(setting, draw)
        return sweep

    return read_plan("sweep", name_or_path, SWEEPS, make)


def run_sweep(
    sweep: Sweep,
    data: Path = HOME,
    *,
    only: Sequence[str] | None = None,
    seed: int | None = None,
    jobs: int = 1,
    device: Device = None,
) -> Path | None:
    """Run what is missing of a sweep, print each run that is done, and record the table under all protocols.

    Args:
        data: where ``results/`` and ``cache/`` are.
        only: optimizers to run, without a table of them yet; None for all.
        seed: draw other optimizees than the sweep's own seed does, and record their table beside the other (see
            `read_result`).
        jobs: optimizers at once, each in one setting.

    Returns:
        Path of the table, whose attributes say, by baseline, which learning rates were `tried` in each setting; None
        where there is none yet.

    Raises:
        UnknownNameError: for an optimizer that is not in the sweep.
        ValueError: if a baseline diverges with every learning rate, or its loss still falls at the largest or
            the smallest that may be tried.
    """
    check_names(f"optimizer of sweep {sweep.name!r}", only or (), sweep.labels)
    name, command = sweep.name, f"l2l sweep {sweep.name}"
    if seed is not None and seed != sweep.seed:
        sweep, name, command = replace(sweep, seed=seed), with_seed(name, seed), f"{command} --seed {seed}"
    settings, labels = combinations(sweep.grid), only or sweep.labels
    rules: dict[str, Runnable] = {label: zoo.load(name) for label, name in sweep.learned.items() if label in labels}
    if sweep.teacher is not None and TEACHER in labels:
        rules[TEACHER] = find_recipe(sweep.teacher).make_teacher()
    make_run = partial(Run, data / FOLDER, on_test_set=sweep.on_test_set, seed=sweep.seed, device=device)
    calls = [(sweep, setting, label, rules.get(label), make_run) for setting in settings for label in labels]
    found = iter(parallel_map(_measure, calls, jobs, shared=True))
    if only:
        return None
    by_setting = [{label: next(found) for label in labels} for _ in settings]
    protocols = [ONE_RATE]
    if len(sweep.steps) > 1:  # which are otherwise the same
        protocols += [EACH_STEP, AVERAGED] if sweep.baselines else [AVERAGED]
    tables = [
        _tabulate(sweep, setting, protocol, {label: runs for label, (runs, _) in measured.items()})
        for setting, measured in zip(settings, by_setting, strict=True)
        for protocol in protocols
    ]
    tried = {label: [measured[label][1] for measured in by_setting] for label in sweep.baselines}
    trained = {label: training_of(zoo.card(name)) for label, name in sweep.learned.items()}
    about = {**asdict(sweep), "trained": trained, "tried": tried, "command": command}
    about |= machines(run for measured in by_setting for runs, _ in measured.values() for run in runs)
    return write_result(f"sweeps/{name}", pd.concat(tables, ignore_index=True), about, data / "results")


def _measure(
    sweep: Sweep, setting: Mapping[str, Any], label: str, rule: Runnable | None, make_run: Callable[..., Run]
) -> tuple[list[Run], list[float]]:
    """Run one optimizer in one setting, a baseline with ever more learning rates, until nothing is missing.

    Returns:
        For each of the sweep's steps its run on test optimizees, that of a baseline with the learning rate that is best
        for this step; and the learning rates that were tried. One that diverges on a test optimizee gives way to the
        next best: an advantage to the baseline, whose mean would be infinite.
    """

    def run(rule: Runnable | None, draw: str, steps: list[int] = sweep.steps) -> Run:
        rate = f" {rule.lr:g}" if isinstance(rule, Baseline) else ""
        num_tasks = sweep.tuning_tasks if draw == "tuning" and sweep.tuning_tasks else sweep.num_tasks
        words = f"{setting}: {label}{rate}, {draw}"
        done = make_run(sweep.make_problem(setting, draw), rule, draw, num_tasks, steps, words=words)
        done.losses()
        return done

    if label not in sweep.baselines:
        return [run(rule, "test")] * len(sweep.steps), []
    rates: list[float] = []
    further = list(sweep.baselines[label][RATES])
    while further:
        rates = sorted(rates + further)
        means = torch.stack([run(sweep.baseline(label, lr), "tuning").losses().mean(dim=0) for lr in rates])
        further = further_rates(rates, means)
    while True:
        best = means.argmin(dim=0).tolist()
        last = {index: column for column, index in enumerate(best)}  # how long a learning rate is wanted
        tests = {
            index: run(sweep.baseline(label, rates[index]), "test", sweep.steps[: last[index] + 1]) for index in last
        }
        for index, test in tests.items():
            diverged = test.losses().isinf().any(dim=0)
            means[index, : len(diverged)].masked_fill_(diverged, torch.inf)
        if torch.equal(means.argmin(dim=0), torch.tensor(best)):
            return [tests[index] for index in best], rates


def further_rates(rates: Sequence[float], means: Tensor) -> list[float]:
    """What an ascending grid of learning rates lacks: one beyond each end where the best one is, for any of the steps.

    Losses are of shape ``(learning rates, steps)``, infinite where a run diverged. What is offered is the nearest of 1,
    2, 5, 10, 20, ... that differs by a quarter or more.

    Raises:
        ValueError: if there is none from 1e-9 to 5e6, as where every run diverges.
    """
    larger = [lr for lr in ROUND if lr >= 1.25 * rates[-1]]
    smaller = [lr for lr in reversed(ROUND) if 1.25 * lr <= rates[0]]
    last, further = len(rates) - 1, []
    for end, beside, beyond in ((0, min(1, last), smaller), (last, max(last - 1, 0), larger)):
        plateau = (means[beside] - means[end] <= FLAT * means[end].abs()) & (end != beside)
        if ((means.argmin(dim=0) == end) & ~plateau).any():
            if not beyond:
                raise ValueError(f"the best learning rate is {rates[end]:g} or beyond, and none is tried there.")
            further.append(beyond[0])
    return further


def _tabulate(sweep: Sweep, setting: Mapping[str, Any], protocol: str, tests: Mapping[str, list[Run]]) -> pd.DataFrame:
    """The rows of one setting under one protocol, from each optimizer's test runs for each of the steps.

    A row for each number of steps and optimizer has the setting's fields, `protocol`, `step`, `optimizer`, `lr` (of
    baselines only), the mean loss with its 95% interval `low` to `high`, and `ratio` with `ratio_low` to `ratio_high`:
    the first learned optimizer's mean over this one's, paired; the same for each of `ratios_of`. Averaged, the last
    step stands for all, and the loss is the mean of theirs.
    """
    if protocol != EACH_STEP:
        tests = {label: runs[-1:] * len(runs) for label, runs in tests.items()}
    losses = {
        label: torch.stack([run.losses()[:, column] for column, run in enumerate(runs)], dim=1)
        for label, runs in tests.items()
    }
    average = protocol == AVERAGED
    shown = {label: each.mean(dim=1, keepdim=True) if average else each for label, each in losses.items()}
    curves = Curves(shown, sweep.make_problem(setting).config(), sweep.seed)
    steps = sweep.steps[-1:] if average else sweep.steps
    fields = {name: "-".join(map(str, v)) if isinstance(v, list) else v for name, v in setting.items()}  # "20-20"
    frames = []
    for label, runs in tests.items():
        frame = pd.DataFrame({**fields, "protocol": protocol, "step": steps, "optimizer": label})
        frame["lr"] = pd.Series([getattr(run.optimizer, "lr", None) for run in runs[: len(steps)]], dtype=float)
        frame[["mean", "low", "high"]] = torch.stack(curves.interval(label), dim=1).numpy()
        for learned in (sweep.labels[0], *sweep.ratios_of):
            ratio = paired_ratio(losses[learned], losses[label], average=average)
            columns = RATIO if learned == sweep.labels[0] else ratio_columns(learned)
            frame[columns] = torch.stack(ratio, dim=1).numpy()
        frames.append(frame)
    return pd.concat(frames).sort_values("step", kind="stable")
