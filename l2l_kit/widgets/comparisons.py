"""The explorers that compare optimizers on the paper's problems: quadratics, digits, photographs (figures 4 to 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from types import MappingProxyType

from l2l_kit import data, zoo
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import EACH_STEP, read_result, swept_baselines, under
from l2l_kit.optimizers import BASELINES, Baseline
from l2l_kit.problems import CIFAR, MNIST, Quadratics
from l2l_kit.problems.cifar import CHANNELS, HIDDEN, LAYERS
from l2l_kit.widgets.comparison import PREPROCESSINGS, PRETRAINED, ComparisonExplorer, Setting, preprocessing_control
from l2l_kit.widgets.explorer import Control, Rows, Values, seed_control

UNROLLS = (1, 2, 5, 10, 20, 50, 100)
AHEAD = "Steps that it was trained to look ahead"
FUNCTIONS, DIM = 64, Quadratics().dim
NETWORK = {"layers": 1, "units": 20, "activation": "sigmoid", "init_scale": 0.1}  # the paper's, on MNIST
NETWORKS = {"activation": ("sigmoid", "relu", "tanh"), "layers": (1, 2), "units": (10, 20, 40)}
TRAININGS = {"main": (True, False), "preprocessing": tuple(PREPROCESSINGS), "unroll": (5, 10, 20, 50)}
"""What is recorded of the explorer, with and without changes of the architecture."""
LABELS = (2, 5, 10)
OPTIMIZERS = {
    "two LSTMs": "One for the kernels and one for all other parameters; imitation first, then meta-training",
    "paper's method": "Two LSTMs, trained by the paper's method alone",
    "one LSTM": "The same LSTM for all parameters",
    "LSTM-sub": "Two LSTMs that were trained only on the labels that are left out here",
}
TWO = next(iter(OPTIMIZERS))
SMALL = '<span style="font-size: 12px">'  # the second line of a title


class QuadraticsExplorer(ComparisonExplorer):
    """Compare optimizers on random quadratics.

    Args:
        seed: of the functions, to begin with.
        unroll: unroll length that the learned optimizer was trained with, to begin with.
        preprocessing: of the learned optimizer, "none" or "log-sign", to begin with.
    """

    device = "cpu"  # so few, small functions are fastest there
    recorded = MappingProxyType(
        {
            "dimension": (2, 10, 20),
            "statistic": ("mean", "median"),
            "preprocessing": ("none", "log-sign"),
            "unroll": UNROLLS,
        }
    )

    def __init__(self, seed: int = 0, unroll: int = 20, preprocessing: str = "none") -> None:
        start = {"unroll": unroll, "preprocessing": preprocessing, "dimension": DIM, "statistic": "mean", "seed": seed}
        super().__init__(steps=100, num_tasks=FUNCTIONS, **start)

    def setting(self, values: Values) -> Setting:
        dim, over = values["dimension"], values["statistic"]
        return Setting(
            Quadratics(dim),
            f"quadratics-{values['preprocessing']}-unroll{values['unroll']}",
            self.recorded_for("quadratics", 100, over),
            "" if dim == DIM and values["steps"] == 100 else f"100 steps in {DIM} dimensions",
            f"{over.capitalize()} loss over {FUNCTIONS} random quadratics of dimension {dim}",
        )

    def choices(self, values: Values) -> tuple[list[Control], Rows]:
        off, helps = values["learned"] != PRETRAINED, ("Over the functions", "Half the functions are below")
        unroll = Control("unroll", "slider", "Unroll", UNROLLS, AHEAD, off=off)
        dimension = Control("dimension", "slider", "Dimension", range(2, 21), "Number of parameters", [DIM])
        over = Control("statistic", "choice", "Show the", ("mean", "median"), helps)
        return [unroll, preprocessing_control(("none", "log-sign"), off=off)], [dimension, seed_control(), over]


class NetworkExplorer(ComparisonExplorer):
    """Compare optimizers on networks that learn digits.

    Args:
        seed: of the networks and their minibatches, to begin with.
        unroll: unroll length that the learned optimizer was trained with, to begin with.
        preprocessing: of the learned optimizer, "none", "scale" or "log-sign", to begin with.
        architecture: let the reader change the networks too; otherwise they are the paper's, 784-20-10 with sigmoids.
        networks: how many the losses are averaged over: a step of the learned optimizer takes some 5 ms for each.
        steps: updates per run, to begin with.
        digits: as `source` of `problems.MNIST`.
    """

    recorded = MappingProxyType(TRAININGS)

    def __init__(
        self,
        seed: int = 0,
        unroll: int = 20,
        preprocessing: str = "log-sign",
        architecture: bool = True,
        *,
        networks: int = 2,
        steps: int = 100,
        digits: data.Source = "auto",
    ) -> None:
        self._source, self._architecture = MNIST(source=digits).source, architecture
        learned = {"main": True, "unroll": unroll, "preprocessing": preprocessing}
        self.recorded = MappingProxyType(NETWORKS if architecture else TRAININGS)
        super().__init__(steps=steps, num_tasks=networks, seed=seed, **learned, **NETWORK)

    def setting(self, values: Values) -> Setting:
        hidden = (values["units"],) * values["layers"]
        problem = MNIST(hidden, values["activation"], init_scale=values["init_scale"], source=self._source)
        short = f"{MNIST.name}-{values['preprocessing']}-unroll{values['unroll']}"
        network = f"{'-'.join(map(str, (784, *hidden, 10)))}, {problem.activation}, initial weights"
        usual = all(values[name] == value for name, value in NETWORK.items())
        return Setting(
            problem,
            MNIST.name if values["main"] else short,
            self.recorded_for(MNIST.name, values["steps"]),
            "" if usual else "784-20-10, sigmoid, initial weights 0.1",
            f"{self._averaged} on {problem.images.title}<br>"
            f"{SMALL}{network} {problem.init_scale:g}, minibatches of {problem.batch_size}</span>",
            in_range=(3.0, 0.11),
        )

    def choices(self, values: Values) -> tuple[list[Control], Rows]:
        here = values["learned"] != PRETRAINED
        off = here or values["main"]
        about = "Otherwise one that was trained as chosen below, and for a shorter time"
        scale = "Standard deviation of the initial weights and biases"
        learned = [
            Control("main", "check", "the main one, fully trained", help=about, off=here),
            Control("unroll", "slider", "Unroll", (5, 10, 20, 50), AHEAD, off=off),
            preprocessing_control(tuple(PREPROCESSINGS), off=off),
        ]
        network = [
            Control("layers", "slider", "Layers", (1, 2, 3, 5), "Hidden layers"),
            Control("units", "slider", "Units", (5, 10, 20, 40, 80), "Units of each hidden layer"),
            Control("activation", "choice", "Activation", ("sigmoid", "relu", "tanh")),
            Control("init_scale", "slider", "Init scale", (0.001, 0.01, 0.1, 0.3, 1.0), scale),
        ]
        return learned, [*(network if self._architecture else []), seed_control()]


class PictureExplorer(ComparisonExplorer):
    """Compare optimizers on convolutional networks that learn to tell the pictures of CIFAR-10 apart (figure 7).

    Args:
        seed: of the networks and their minibatches, to begin with.
        labels: how many of CIFAR-10's are to be told apart, 10, 5 or 2, to begin with.
        optimizer: one of `OPTIMIZERS`, to begin with. Two LSTMs take the place of one that is not among the pretrained
            ones, and of LSTM-sub where all 10 labels are told apart.
        networks: how many the losses are averaged over: a step takes some 50 ms for each.
        steps: updates per run, to begin with.
        images: as `source` of `problems.CIFAR`.
    """

    lengths = (20, 50, 100, 200, 400)
    recorded = MappingProxyType({"labels": LABELS, "optimizer": tuple(OPTIMIZERS)})

    def __init__(
        self,
        seed: int = 0,
        labels: int = 10,
        optimizer: str = TWO,
        *,
        networks: int = 1,
        steps: int = 50,
        images: data.Source = "auto",
    ) -> None:
        if labels not in LABELS or optimizer not in OPTIMIZERS:
            raise UnknownNameError("labels or optimizer", (labels, optimizer), [*map(str, LABELS), *OPTIMIZERS])
        self._source, self._sweeps = CIFAR(source=images).source, {}
        for number in LABELS:  # of which fewer than all need not have been swept
            with suppress(*[FileNotFoundError] if number < LABELS[-1] else []):
                self._sweeps[number] = under(read_result(f"sweeps/cifar{number}"), EACH_STEP)
        self._swept_for = cache(self._swept)
        optimizer = optimizer if optimizer in _offered(labels) else TWO
        super().__init__(steps=steps, num_tasks=networks, seed=seed, labels=labels, optimizer=optimizer)

    def setting(self, values: Values) -> Setting:
        labels, channels = values["labels"], "-".join([str(CHANNELS)] * LAYERS)
        problem, guessing = CIFAR(tuple(range(labels)), source=self._source), math.log(labels)
        network = f"{channels} channels, {HIDDEN} units, minibatches of {problem.batch_size}"
        return Setting(
            problem,
            _file(values["optimizer"], labels),
            self._swept_for(labels, values["steps"]),
            "" if labels in self._sweeps else f"{LABELS[-1]} labels",
            f"{problem.title}<br>{SMALL}{self._averaged}: {network}</span>",
            in_range=(1.1 * guessing, 0.5 * guessing),
        )

    def settle(self, values: Values) -> Values:
        offered = values["optimizer"] in _offered(values["labels"])
        return super().settle({**values, "optimizer": values["optimizer"] if offered else TWO})

    def _swept(self, labels: int, steps: int) -> Mapping[str, Baseline]:
        """The paper's, for the number of steps, or the next that was swept, or the last."""
        sweep = self._sweeps.get(labels, self._sweeps[LABELS[-1]])
        swept = sorted(set(sweep["step"]))
        tuned = swept_baselines(sweep, next((step for step in swept if step >= steps), swept[-1]))
        return {label: tuned[label] for label in BASELINES.values() if label in tuned}

    def choices(self, values: Values) -> tuple[list[Control], Rows]:
        names = tuple(dict.fromkeys((*_offered(values["labels"]), values["optimizer"])))
        helps, off = [OPTIMIZERS.get(name, "") for name in names], values["learned"] != PRETRAINED
        about = "How many of CIFAR-10's labels are to be told apart"
        labels = Control("labels", "slider", "Labels", LABELS, about)
        return [Control("optimizer", "choice", "Which", names, helps, off=off)], [labels, seed_control()]


def _offered(labels: int) -> tuple[str, ...]:
    there = zoo.names()
    return tuple(name for name in OPTIMIZERS if name == TWO or _file(name, labels) in there)


def _file(optimizer: str, labels: int) -> str:
    return dict(zip(OPTIMIZERS, ("cifar", "cifar-paper", "cifar-single", f"cifar-sub{labels}"), strict=True))[optimizer]
