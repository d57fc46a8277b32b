"""Learned against hand-designed optimizers on random quadratics, with a slider for all that may change."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import ipywidgets
from torch import Tensor
from typing_extensions import override

from l2l_kit import zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation import Curves, compare, tuned_baselines
from l2l_kit.optimizers import Baseline
from l2l_kit.problems import Quadratics
from l2l_kit.widgets.base import BaseExplorer, summary
from l2l_kit.widgets.live_figure import (
    UNROLLS,
    described,
    error_message,
    heading,
    labelled,
    message,
    preprocessing_toggle,
    selection,
    toggle,
)

FUNCTIONS = 64
STEPS = (50, 100, 200)
PRETRAINED_PREPROCESSINGS = ("none", "log-sign")


def explorer(seed: int = 0, unroll: int = 20, preprocessing: str = "none") -> Explorer:
    """Compare optimizers on random quadratics: end a notebook cell with it.

    Args:
        seed: of the functions, to begin with.
        unroll: unroll length that the learned optimizer was trained with, to begin with.
        preprocessing: of the learned optimizer, "none" or "log-sign", to begin with.

    Raises:
        FileNotFoundError: if no tuned learning rates for the quadratics are recorded.
        UnknownNameError: for an unroll length or preprocessing that no pretrained optimizer has.
    """
    return Explorer(seed, unroll, preprocessing)


class Explorer(BaseExplorer):
    """See `explorer`. Its controls are attributes; setting their `value` does what a reader's hand does."""

    def __init__(self, seed: int = 0, unroll: int = 20, preprocessing: str = "none") -> None:
        if unroll not in UNROLLS:
            raise UnknownNameError("unroll length", unroll, map(str, UNROLLS))
        if preprocessing not in PRETRAINED_PREPROCESSINGS:
            raise UnknownNameError("preprocessing", preprocessing, PRETRAINED_PREPROCESSINGS)
        self._run = lru_cache(maxsize=256)(_run)
        lengths = [(str(length), length) for length in UNROLLS]
        self.unroll = selection("Unroll", lengths, unroll, "Steps that it was trained to look ahead")
        self.preprocessing = preprocessing_toggle(PRETRAINED_PREPROCESSINGS, preprocessing)
        self.dimension = ipywidgets.IntSlider(
            10, 2, 20, description="Dimension", tooltip="Number of parameters", **described("300px")
        )
        lengths = [(str(steps), steps) for steps in STEPS]
        self.steps = selection("Steps", lengths, 100, "Updates per run; the LSTMs were trained on 100")
        self.seed = ipywidgets.BoundedIntText(seed, 0, 2**31, description="Seed", **described("300px"))
        self.statistic = toggle(("mean", "median"), "mean", ("Over the functions", "Half the functions are below"))
        functions = [self.dimension, self.steps, self.seed]
        super().__init__(
            learned=[self.unroll, labelled("Preprocessing", self.preprocessing)],
            task=[heading("Functions"), *functions, labelled("Show the", self.statistic)],
            controls=[self.unroll, self.preprocessing, *functions, self.statistic],
            tuned_for="Those with the lowest final loss of the kind shown, mean or median, in 10 dimensions",
        )
        self._update()

    @override
    def _tuned_baselines(self) -> Mapping[str, Baseline]:
        return tuned_baselines("quadratics", self.statistic.value)

    @property
    @override
    def _pretrained(self) -> str:
        return f"quadratics-{self.preprocessing.value}-unroll{self.unroll.value}"

    @override
    def _redraw(self) -> None:
        losses, missing = self._losses()
        dimension, steps, statistic = self.dimension.value, self.steps.value, self.statistic.value
        curves = Curves(losses, Quadratics(dimension).config(), self.seed.value)
        lines = {name: curves.statistic(name, statistic) for name in losses}
        title = f"{statistic.capitalize()} loss over {FUNCTIONS} random quadratics of dimension {dimension}"
        self._draw(lines, steps, title)
        finals = {name: line[-1].item() for name, line in lines.items()}
        self.status.value = "".join(map(error_message, missing)) + message(summary(finals, steps, statistic))

    def _losses(self) -> tuple[dict[str, Tensor], list[Exception]]:
        """Losses of the optimizers that are ticked, and what is wrong with those that cannot be had."""
        losses: dict[str, Tensor] = {}
        missing: list[Exception] = []
        for name, optimizer in self._ticked.items():
            try:
                losses[name] = self._run(optimizer, self.dimension.value, self.steps.value, self.seed.value)
            except (UnknownNameError, WeightsFileError) as error:
                missing.append(error)
        return losses, missing


def _run(optimizer: str | Baseline, dimension: int, steps: int, seed: int) -> Tensor:
    """Losses of an optimizer, ``(functions, steps + 1)``. So few, small functions are fastest on the CPU."""
    rule = zoo.load(optimizer) if isinstance(optimizer, str) else optimizer
    problem = Quadratics(dimension)
    return compare({"it": rule}, problem, steps=steps, num_tasks=FUNCTIONS, seed=seed, device="cpu")["it"]
