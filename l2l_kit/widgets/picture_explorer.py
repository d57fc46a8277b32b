"""Learned against hand-designed optimizers on convolutional networks that learn to tell pictures apart (figure 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import ipywidgets
from typing_extensions import override

from l2l_kit import data, plots, zoo
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import EACH_STEP, read_result, swept_baselines, under
from l2l_kit.optimizers import BASELINES, Baseline
from l2l_kit.problems import CIFAR
from l2l_kit.problems.cifar import CHANNELS, HIDDEN, LAYERS
from l2l_kit.widgets.live_figure import message, toggle
from l2l_kit.widgets.running_explorer import RunningExplorer, slider, two_lines

if TYPE_CHECKING:
    import pandas as pd

LABELS = (2, 5, 10)
ALL = LABELS[-1]
TWO, PAPER, ONE, SUB = "two LSTMs", "paper's method", "one LSTM", "LSTM-sub"
OPTIMIZERS = {
    TWO: "One for the kernels and one for all other parameters; imitation first, then meta-training",
    PAPER: "Two LSTMs, trained by the paper's method alone",
    ONE: "The same LSTM for all parameters",
    SUB: "Two LSTMs that were trained only on the labels that are left out here",
}
STEPS = (20, 50, 100, 200, 400)


def picture_explorer(
    seed: int = 0,
    labels: int = 10,
    optimizer: str = TWO,
    *,
    networks: int = 1,
    steps: int = 50,
    images: data.Source = "auto",
) -> PictureExplorer:
    """Compare optimizers on networks that learn to tell the pictures of CIFAR-10 apart: end a notebook cell with it.

    The curves are computed in the background and grow meanwhile; a new choice takes effect at once, and what was
    computed before is kept. Learning rates are the tuned ones for what is shown until the reader moves them.

    Args:
        seed: of the networks and their minibatches, to begin with.
        labels: how many of CIFAR-10's are to be told apart, 10, 5 or 2, to begin with.
        optimizer: the learned one, "two LSTMs", "paper's method", "one LSTM" or "LSTM-sub", to begin with. Two LSTMs
            take the place of one that is not among the pretrained ones, and of LSTM-sub where all 10 labels are told
            apart.
        networks: how many the losses are averaged over: a step takes some 50 ms for each.
        steps: updates per run, to begin with.
        images: as `source` of `problems.CIFAR`.

    Raises:
        FileNotFoundError: if the sweep that tuned the learning rates for 10 labels is not recorded. Where the one for 5
            or 2 labels is not, these take their place, and the explorer says so.
        UnknownNameError: for other labels or optimizers than those, or an unknown source.
        ValueError: for a number of networks or steps below 1.
        DataError: if the images asked for cannot be had.
    """
    return PictureExplorer(seed, labels, optimizer, networks, steps, images)


class PictureExplorer(RunningExplorer):
    """See `picture_explorer`. Its controls are attributes; setting their `value` does what a reader's hand does."""

    def __init__(self, seed: int, labels: int, optimizer: str, networks: int, steps: int, images: data.Source) -> None:
        if labels not in LABELS:
            raise UnknownNameError("number of labels", labels, map(str, LABELS))
        if optimizer not in OPTIMIZERS:
            raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
        self._source = CIFAR(source=images).source
        self._sweeps = _recorded_sweeps()
        self._tuned: Mapping[str, Baseline] = {}
        self.optimizer = toggle(tuple(OPTIMIZERS), optimizer, tuple(OPTIMIZERS.values()))
        self.labels = slider("Labels", LABELS, labels, "How many of CIFAR-10's labels are to be told apart")
        self.tuned_on = ipywidgets.HTML()
        super().__init__(
            seed=seed,
            networks=networks,
            steps=steps,
            lengths=STEPS,
            horizon="200 steps, by the paper's method on 100",
            learned=[self.optimizer],
            network=[self.labels, self.tuned_on],
            controls=[self.optimizer, self.labels],
            tuned_for="Those with the lowest loss on test images of CIFAR-10 after so many steps, with so many labels",
        )

    @override
    def _tuned_baselines(self) -> Mapping[str, Baseline]:
        """The paper's, for the number of steps, or the next that was swept, or the last."""
        sweep = self._sweeps.get(self.labels.value, self._sweeps[ALL])
        swept = sorted(set(sweep["step"]))
        tuned = swept_baselines(sweep, next((step for step in swept if step >= self.steps.value), swept[-1]))
        return {label: tuned[label] for label in BASELINES.values() if label in tuned}

    @property
    @override
    def _pretrained(self) -> str:
        return self._file(self.optimizer.value)

    def _file(self, optimizer: str) -> str:
        names = {TWO: "cifar", PAPER: "cifar-paper", ONE: "cifar-single", SUB: f"cifar-sub{self.labels.value}"}
        return names[optimizer]

    @property
    @override
    def _problem(self) -> CIFAR:
        return CIFAR(tuple(range(self.labels.value)), source=self._source)

    @property
    @override
    def _title(self) -> str:
        problem = self._problem
        channels = "-".join([str(CHANNELS)] * LAYERS)
        network = f"{channels} channels, {HIDDEN} units, minibatches of {problem.batch_size}"
        return two_lines(problem.title, f"{self._averaged}: {network}")

    @property
    @override
    def _of_interest(self) -> plots.Values:
        guessing = math.log(self.labels.value)
        return (1.1 * guessing, 0.5 * guessing)

    @override
    def _settle(self) -> None:
        chosen = self.optimizer.value
        there = zoo.names()
        offered = tuple(name for name in OPTIMIZERS if name == TWO or self._file(name) in there)
        if self.optimizer.options != offered:
            with self._quietly():
                self.optimizer.options = offered  # of which the first is chosen now
                self.optimizer.tooltips = [OPTIMIZERS[name] for name in offered]
                self.optimizer.value = chosen if chosen in offered else TWO
        others = (
            f"The learning rates are those tuned for {ALL} labels." if self.labels.value not in self._sweeps else ""
        )
        self.tuned_on.value = message(others)
        before, self._tuned = self._tuned, self._tuned_baselines()
        # Otherwise a reader would compare with baselines tuned for other labels.
        unmoved = {name for name, tuned in before.items() if self.learning_rates[name].value == tuned.lr}
        self._set_learning_rates({name: tuned for name, tuned in self._tuned.items() if name in unmoved})


def _recorded_sweeps() -> dict[int, pd.DataFrame]:
    """By number of labels; all of them must have been swept, fewer need not."""
    sweeps = {ALL: under(read_result(f"sweeps/cifar{ALL}"), EACH_STEP)}
    for number in LABELS[:-1]:
        with suppress(FileNotFoundError):
            sweeps[number] = under(read_result(f"sweeps/cifar{number}"), EACH_STEP)
    return sweeps
