"""Sweeps: learned against freshly tuned optimizers over a grid of problems, such as the architectures of figure 6.

What takes time are pieces, one optimizer run once on one draw of optimizees, and each is kept as a small file. Which
learning rates are tried and chosen, what is still to be run, and the table under either protocol follow from the files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from l2l_kit import problems
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation.compare import Curves, losses_at
from l2l_kit.evaluation.lbfgs import LBFGS, lbfgs
from l2l_kit.evaluation.tuning import further_rates
from l2l_kit.optimizers import Baseline, UpdateRule, baseline
from l2l_kit.paths import SWEEPS, toml_file
from l2l_kit.problems import Problem
from l2l_kit.problems.base import draw as draw_tasks
from l2l_kit.randomness import generator
from l2l_kit.storage import read_tensors, write_tensors
from l2l_kit.tensors import pick_device

if TYPE_CHECKING:
    import pandas as pd

PIECE_VERSION = 1
RATES = "learning_rates"
MOST_SETTINGS = 10_000
"""In a grid: more would not be run in a lifetime."""
ONE_RATE = "one rate"
"""The paper's protocol: a baseline has one learning rate, the one with the best loss at the last of the steps."""
EACH_STEP = "rate for each step"
"""A stricter one: at each number of steps a baseline has the learning rate that is best for that very number."""


@dataclass(frozen=True)
class Sweep:
    """What a file of data/sweeps says.

    Attributes:
        name: of the file.
        problem: configuration that all settings share.
        grid: lists of values of the fields that vary; their product is swept.
        learned: pretrained optimizers by the label that figures show; ratios are those of the first.
        baselines: by label, the arguments of `Baseline`, with a list of `learning_rates` to begin with instead of one.
            Others are tried until the best one, for each of the steps, is neither the first nor the last.
        steps: numbers of updates after which the losses are noted, in ascending order.
        num_tasks: fresh optimizees per setting.
        tuning_tasks: optimizees to tune the baselines on.
        tuned_on: fields of the problem that are others in tuning, such as the part of the pictures.
        lbfgs: whether L-BFGS is run as well, which is not tuned: the lowest loss after as many evaluations.
        held_out: whether the losses are those on the test images, in tuning as in comparison (which is to the
            advantage of the baselines, the only ones that are tuned).
        seed: of all draws.
    """

    name: str
    problem: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    learned: Mapping[str, str]
    baselines: Mapping[str, Mapping[str, Any]]
    steps: list[int]
    num_tasks: int
    tuning_tasks: int
    tuned_on: Mapping[str, Any] = field(default_factory=dict)
    lbfgs: bool = False
    on_test_set: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.learned or not self.grid or not self.baselines:
            raise ValueError("learned, grid and baselines must not be empty")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"two optimizers have the same label: {', '.join(self.labels)}")
        lists: dict[str, object] = {"steps": self.steps}
        lists |= {f"grid.{name}": values for name, values in self.grid.items()}
        lists |= {f"{RATES} of {label}": rule.get(RATES) for label, rule in self.baselines.items()}
        for name, values in lists.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{name} must be a list with something in it, got {values!r}")
        for number in (*self.steps, self.num_tasks, self.tuning_tasks):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"steps, tasks and tuning_tasks must be whole numbers of at least 1, got {number!r}")
        if self.steps != sorted(set(self.steps)):
            raise ValueError(f"steps must ascend, got {self.steps!r}")
        for label, rule in self.baselines.items():
            rates = [self.baseline(label, lr).lr for lr in rule[RATES]]
            if any(not 1 < larger / rate <= 10 / 3 for rate, larger in itertools.pairwise(rates)):  # as in 0.1, 0.3, 1
                raise ValueError(f"{RATES} of {label} must ascend, by a factor of √10 at most, got {rates!r}")

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The grid's combinations, each as the fields that it sets."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    @property
    def labels(self) -> list[str]:
        """All optimizers, as figures show them: the learned ones, the baselines, L-BFGS."""
        return [*self.learned, *self.baselines, *[LBFGS] * self.lbfgs]

    def baseline(self, label: str, lr: float) -> Baseline:
        """The baseline of that label with a learning rate."""
        return Baseline(lr=lr, **{name: value for name, value in self.baselines[label].items() if name != RATES})

    def make_problem(self, setting: Mapping[str, Any], draw: str = "test") -> Problem:
        """The problem of one setting, or what the baselines are tuned on for it if the draw is "tuning"."""
        return problems.make({**self.problem, **setting, **(self.tuned_on if draw == "tuning" else {})})


def read_sweep(name_or_path: str | Path) -> Sweep:
    """A sweep of data/sweeps by name, or from a path to a TOML file.

    Raises:
        UnknownNameError: if there is no such sweep; the message offers the nearest one.
        ValueError: if the file is no valid sweep; the message says which part is wrong.
    """
    path = toml_file("sweep", name_or_path, SWEEPS)
    try:
        sweep = Sweep(path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
        if (settings := math.prod(map(len, sweep.grid.values()))) > MOST_SETTINGS:
            raise ValueError(f"its grid has {settings} settings; at most {MOST_SETTINGS} are possible")
        for setting, draw in itertools.product(sweep.settings, ("tuning", "test")):
            sweep.make_problem(setting, draw)
        return sweep
    except Exception as error:  # a file can be wrong in any way
        raise ValueError(f"{path}: not a valid sweep: {error}") from error


class Piece(NamedTuple):
    """One optimizer, run once on one draw of optimizees.

    Attributes:
        words: what it is, for people.
        problem: where the optimizees come from.
        optimizer: a learned one, or a baseline with one learning rate; None for L-BFGS.
        draw: "tuning" or "test".
        tasks, steps, held_out, seed: as in `Sweep`.
    """

    words: str
    problem: Problem
    optimizer: UpdateRule | Baseline | None
    draw: str
    num_tasks: int
    steps: list[int]
    on_test_set: bool
    seed: int

    def path(self, folder: Path) -> Path:
        """Its file in a folder of pieces, whose name is a digest of all that the losses depend on."""
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode())
        if isinstance(self.optimizer, UpdateRule):
            for tensor in self.optimizer.state_dict().values():
                digest.update(tensor.cpu().numpy().tobytes())
        return folder / f"{digest.hexdigest()[:16]}.safetensors"

    @property
    def _about(self) -> dict[str, Any]:
        """All that the losses depend on, but for a learned optimizer's weights."""
        optimizer = LBFGS if self.optimizer is None else self.optimizer.config()
        about = {**self._asdict(), "problem": self.problem.config(), "optimizer": optimizer}
        return {name: value for name, value in about.items() if name != "words"}

    def run(self, folder: Path, device: str | torch.device | None = None) -> None:
        """Run the optimizer, on the best device there is if none is named, and keep its losses in the folder."""
        chosen = pick_device(device)
        tasks = draw_tasks(self.problem, self.num_tasks, generator(self.seed, self.draw), chosen)
        if self.optimizer is None:
            runs = [lbfgs(tasks.select(index), self.steps[-1]) for index in range(self.num_tasks)]
            losses = torch.stack([torch.cat([point.losses for point in run])[self.steps] for run in runs])
        else:
            if isinstance(self.optimizer, UpdateRule):
                self.optimizer.to(chosen)
            losses = losses_at(self.optimizer, tasks, self.steps, on_test_set=self.on_test_set)
        write_tensors(self.path(folder), {"losses": losses}, self._about, PIECE_VERSION)

    def losses(self, folder: Path) -> Tensor:
        """What `run` kept: the losses after each of the steps, shape ``(tasks, steps)``."""
        path = self.path(folder)
        losses = read_tensors(path, PIECE_VERSION)[0].get("losses", torch.empty(0))
        if losses.shape != (self.num_tasks, len(self.steps)):
            raise WeightsFileError(f"{path}: not what this piece of a sweep writes. Delete it, and it is run again.")
        return losses


class Ran(NamedTuple):
    """What the pieces of one optimizer in one setting say so far.

    Attributes:
        missing: pieces to be run next; more may follow from what these will say.
        tried: a baseline's learning rates, in ascending order.
        tests: for each of the sweep's steps, the test piece with the learning rate that is best for it, or the only
            one there is. Empty as long as that is not known.
    """

    missing: list[Piece]
    tried: list[float]
    tests: list[Piece]


def look(sweep: Sweep, setting: Mapping[str, Any], label: str, rule: UpdateRule | None, folder: Path) -> Ran:
    """Look into a folder of pieces what there is of one optimizer in one setting.

    Args:
        sweep, folder: what is run, and where its pieces are.
        setting: one of `Sweep.settings`.
        label: of the optimizer, one of `Sweep.labels`.
        rule: the learned optimizer of that label; None for a baseline or L-BFGS.

    Raises:
        ValueError: if a baseline diverges with every learning rate, or is the better the longer its steps are.
    """

    def piece(rule: UpdateRule | Baseline | None, draw: str) -> Piece:
        rate = f" {rule.lr:g}" if isinstance(rule, Baseline) else ""
        words, problem = f"{setting}: {label}{rate}, {draw}", sweep.make_problem(setting, draw)
        num_tasks = sweep.tuning_tasks if draw == "tuning" else sweep.num_tasks
        return Piece(words, problem, rule, draw, num_tasks, sweep.steps, sweep.on_test_set, sweep.seed)

    def missing(pieces: list[Piece]) -> list[Piece]:
        return list({path: one for one in pieces if not (path := one.path(folder)).exists()}.values())

    if label not in sweep.baselines:
        tests = [piece(rule, "test")] * len(sweep.steps)
        return Ran(missing(tests), [], tests)
    rates = list(sweep.baselines[label][RATES])
    while True:
        tunings = [piece(sweep.baseline(label, lr), "tuning") for lr in rates]
        if to_run := missing(tunings):
            return Ran(to_run, [], [])
        means = torch.stack([one.losses(folder).mean(dim=0) for one in tunings])
        if not (further := further_rates(rates, means)):
            tests = [piece(sweep.baseline(label, rates[best]), "test") for best in means.argmin(dim=0).tolist()]
            return Ran(missing(tests), rates, tests)
        rates = sorted(rates + further)


def tabulate(
    sweep: Sweep, setting: Mapping[str, Any], protocol: str, ran: Mapping[str, Ran], folder: Path
) -> pd.DataFrame:
    """The rows of one setting under one protocol, from what `look` found when nothing was missing any more.

    Returns:
        A row for each number of steps and optimizer: the setting's fields, `protocol`, `step`, `optimizer`, `lr` (of
        baselines only), mean loss with its 95% interval `low` to `high`, and `ratio` with `ratio_low` to `ratio_high`:
        the first learned optimizer's mean over this one's, paired.
    """
    import pandas as pd

    tests = {
        label: one.tests[-1:] * len(one.tests) if protocol == ONE_RATE else one.tests for label, one in ran.items()
    }
    losses = {
        label: torch.stack([piece.losses(folder)[:, column] for column, piece in enumerate(pieces)], dim=1)
        for label, pieces in tests.items()
    }
    curves = Curves(losses, sweep.make_problem(setting).config(), sweep.seed)
    fields = {name: as_word(value) if isinstance(value, list) else value for name, value in setting.items()}
    frames = []
    for label, pieces in tests.items():
        frame = pd.DataFrame({**fields, "protocol": protocol, "step": sweep.steps, "optimizer": label})
        frame["lr"] = pd.Series([getattr(piece.optimizer, "lr", None) for piece in pieces], dtype=float)
        frame[["mean", "low", "high"]] = torch.stack(curves.interval(label), dim=1).numpy()
        ratio = curves.interval(sweep.labels[0], over=label)
        frame[["ratio", "ratio_low", "ratio_high"]] = torch.stack(ratio, dim=1).numpy()
        frames.append(frame)
    return pd.concat(frames).sort_values("step", kind="stable")


def as_word(numbers: list[int]) -> str:
    """Units of hidden layers, or labels, as tables have them: "20-20"."""
    return "-".join(map(str, numbers))


def under(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """The rows of a recorded sweep under a protocol, `ONE_RATE` or `EACH_STEP`; None for the only one that it has.

    Raises:
        UnknownNameError: if it has none under that protocol.
        ValueError: if it has several, and none is named.
    """
    known = table["protocol"].unique().tolist() if "protocol" in table else []
    if protocol is not None and protocol not in known:
        raise UnknownNameError("protocol of this table", protocol, known)
    if protocol is None and len(known) > 1:
        raise ValueError(f"the table has several protocols: choose one of {known} with under(table, protocol).")
    return table if protocol is None else table[table["protocol"] == protocol]


def swept_baselines(table: pd.DataFrame, step: int, **setting: Any) -> dict[str, Baseline]:
    """The baselines as a sweep tuned them for one setting and number of steps, by the name that figures show.

    Raises:
        ValueError: if the sweep has no such setting, or several, or several protocols (see `under`).
    """
    rows = under(table[(table["step"] == step) & table["lr"].notna()])
    for name, value in setting.items():
        # Where all networks have one layer, a file's reader takes their units for numbers.
        column = rows[name].astype(str) if isinstance(value, str) else rows[name]
        rows = rows[column == value]
    rates = rows.set_index("optimizer")["lr"]
    if rates.empty or rates.index.has_duplicates:
        many = "nothing" if rates.empty else "more than one setting"
        raise ValueError(f"the sweep has {many} at step {step} for {setting}.")
    rules = {label: table.attrs.get("baselines", {}).get(label, {"name": label}) for label in rates.index}
    return {label: baseline(rule["name"], float(rates[label]), rule.get("decay")) for label, rule in rules.items()}
