"""Learned against hand-designed optimizers on networks that learn digits, with a control for all that may change."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets
from typing_extensions import override

from l2l_kit import data, plots
from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import Baseline
from l2l_kit.problems import MNIST
from l2l_kit.widgets.base import baselines_for
from l2l_kit.widgets.live_figure import PREPROCESSINGS, labelled, preprocessing_toggle, toggle
from l2l_kit.widgets.running_explorer import RunningExplorer, slider, two_lines

UNROLLS = (5, 10, 20, 50)
LAYERS = (1, 2, 3, 5)
UNITS = (5, 10, 20, 40, 80)
ACTIVATIONS = ("sigmoid", "relu", "tanh")
INIT_SCALES = (0.001, 0.01, 0.1, 0.3, 1.0)
STEPS = (50, 100, 200)
PAPER = MNIST.name


def network_explorer(
    seed: int = 0,
    unroll: int = 20,
    preprocessing: str = "log-sign",
    architecture: bool = True,
    *,
    fully_trained: bool = True,
    networks: int = 2,
    steps: int = 100,
    digits: data.Source = "auto",
) -> NetworkExplorer:
    """Compare optimizers on networks that learn digits: end a notebook cell with it.

    The curves are computed in the background and grow meanwhile; a new choice takes effect at once, and what was
    computed before is kept.

    Args:
        seed: of the networks and their minibatches, to begin with.
        unroll: unroll length that the learned optimizer was trained with, to begin with.
        preprocessing: of the learned optimizer, "none", "scale" or "log-sign", to begin with.
        architecture: let the reader change the networks too; otherwise they are the paper's, 784-20-10 with sigmoids.
        fully_trained: begin with the main optimizer, which was trained to the end, instead of one of
            those for each unroll length and preprocessing, whose training was shorter.
        networks: how many the losses are averaged over: a step of the learned optimizer takes some 5 ms for each.
        steps: updates per run, to begin with.
        digits: as `source` of `problems.MNIST`.

    Raises:
        FileNotFoundError: if no tuned learning rates for MNIST are recorded.
        UnknownNameError: for an unroll length or preprocessing that no pretrained optimizer has.
        ValueError: for a number of networks or steps below 1.
        DataError: if the digits asked for cannot be had.
    """
    return NetworkExplorer(seed, unroll, preprocessing, architecture, fully_trained, networks, steps, digits)


class NetworkExplorer(RunningExplorer):
    """See `network_explorer`. Its controls are attributes; setting their `value` does what a reader's hand does."""

    def __init__(
        self,
        seed: int,
        unroll: int,
        preprocessing: str,
        architecture: bool,
        fully_trained: bool,
        networks: int,
        steps: int,
        digits: data.Source,
    ) -> None:
        if unroll not in UNROLLS:
            raise UnknownNameError("unroll length", unroll, map(str, UNROLLS))
        if preprocessing not in PREPROCESSINGS:
            raise UnknownNameError("preprocessing", preprocessing, PREPROCESSINGS)
        self._source = MNIST(source=digits).source
        self._make_controls(unroll, preprocessing, fully_trained)
        lstm = [self.unroll, self.preprocessing, self.fully_trained]
        network = [self.layers, self.units, self.activation, self.init_scale]
        rows = [self.layers, self.units, labelled("Activation", self.activation), self.init_scale]
        super().__init__(
            seed=seed,
            networks=networks,
            steps=steps,
            lengths=STEPS,
            horizon="100 steps",
            learned=[self.fully_trained, self.unroll, labelled("Preprocessing", self.preprocessing)],
            network=rows if architecture else [],
            controls=[*lstm, *network],
            tuned_for="Those with the lowest final loss on 784-20-10 with sigmoids and initial weights of 0.1",
        )

    def _make_controls(self, unroll: int, preprocessing: str, fully_trained: bool) -> None:
        self.fully_trained = ipywidgets.Checkbox(
            fully_trained,
            description="the main one, fully trained",
            tooltip="Otherwise one that was trained as chosen below, and for a shorter time",
            indent=False,
            layout={"width": "auto", "margin": "0 0 0 24px"},
        )
        self.unroll = slider("Unroll", UNROLLS, unroll, "Steps that it was trained to look ahead")
        self.preprocessing = preprocessing_toggle(list(PREPROCESSINGS), preprocessing)
        self.layers = slider("Layers", LAYERS, 1, "Hidden layers")
        self.units = slider("Units", UNITS, 20, "Units of each hidden layer")
        self.activation = toggle(ACTIVATIONS, "sigmoid")
        self.init_scale = slider("Init scale", INIT_SCALES, 0.1, "Standard deviation of the initial weights and biases")

    @override
    def _tuned_baselines(self) -> Mapping[str, Baseline]:
        return baselines_for(PAPER, self.steps.value)

    @property
    @override
    def _pretrained(self) -> str:
        if self.fully_trained.value:
            return PAPER
        return f"{PAPER}-{self.preprocessing.value}-unroll{self.unroll.value}"

    @property
    @override
    def _problem(self) -> MNIST:
        hidden = (self.units.value,) * self.layers.value
        return MNIST(hidden, activation=self.activation.value, init_scale=self.init_scale.value, source=self._source)

    @property
    @override
    def _title(self) -> str:
        problem = self._problem
        widths = "-".join(map(str, (784, *problem.hidden, 10)))
        return two_lines(
            f"{self._averaged} on {problem.images.title}",
            f"{widths}, {problem.activation}, initial weights {problem.init_scale:g}, "
            f"minibatches of {problem.batch_size}",
        )

    @property
    @override
    def _of_interest(self) -> plots.Values:
        return (3.0, 0.11)

    @override
    def _settle(self) -> None:
        self.unroll.disabled = self.preprocessing.disabled = self.fully_trained.value
