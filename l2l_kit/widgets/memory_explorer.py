"""Optimizers on quadratics of any condition number, and what one with a memory remembers of their curvature."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import ipywidgets
import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit import plots
from l2l_kit.evaluation import bfgs_losses, memories
from l2l_kit.optimizers import NTMBFGS, Optimizer
from l2l_kit.problems import ConditionedQuadratics, QuadraticTasks
from l2l_kit.randomness import generator
from l2l_kit.training import rollout
from l2l_kit.widgets.live_figure import (
    FIGURE_WIDTH,
    LiveFigure,
    Redrawn,
    described,
    heading,
    message,
    options,
    selection,
)

CONDITIONS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
FUNCTIONS = 10
STEPS = 100
BFGS, HERE = "BFGS", "here"
LOWEST = 1e-6
"""Losses below are as good as zero, and not shown."""


def memory_explorer(
    memory: NTMBFGS,
    others: Mapping[str, Optimizer[Any]],
    condition: int = 100,
    function: int = 0,
    step: int = 20,
    seed: int = 0,
) -> MemoryExplorer:
    """Compare optimizers on quadratics of any condition number, and see a memory's matrix: end a notebook cell with it.

    Everything is computed beforehand, in a second or two; after that the sliders only choose what is shown.

    Args:
        memory: a learned optimizer with a memory.
        others: to compare it with, by name.
        condition: condition number, one of `CONDITIONS`, to begin with.
        function: which of ten functions, to begin with.
        step: after how many updates the memory is shown, to begin with.
        seed: of the functions.

    Raises:
        ValueError: for a condition number, function or step that there is not.
    """
    return MemoryExplorer(memory, others, condition, function, step, seed)


class MemoryExplorer(Redrawn):
    """See `memory_explorer`. Its controls are attributes; setting their `value` does what a reader's hand does.

    Attributes:
        condition: condition number of the functions.
        function: which of them.
        step: after how many updates the memory is shown.
        picture: of the memory and the inverse Hessian.
        status: how much they have in common, or what went wrong.
    """

    def __init__(
        self,
        memory: NTMBFGS,
        others: Mapping[str, Optimizer[Any]],
        condition: int,
        function: int,
        step: int,
        seed: int,
    ) -> None:
        if condition not in CONDITIONS or not 0 <= function < FUNCTIONS or not 0 <= step <= STEPS:
            raise ValueError(
                f"condition must be one of {CONDITIONS}, function from 0 to {FUNCTIONS - 1}, step from 0 to {STEPS}, "
                f"got condition={condition!r}, function={function!r}, step={step!r}."
            )
        optimizers = {**others, "NTM-BFGS": memory}
        drawn = [ConditionedQuadratics(condition=c).sample(FUNCTIONS, generator(seed, "test")) for c in CONDITIONS]
        functions = QuadraticTasks(*(torch.cat(tensors) for tensors in zip(*map(_tensors, drawn), strict=True)))
        self._losses = {name: rollout(rule, functions, STEPS) for name, rule in optimizers.items()}
        self._losses[BFGS] = bfgs_losses(functions, STEPS)
        self._memories = memories(memory, functions, STEPS)
        self._inverses = (2 * functions.W.mT @ functions.W).inverse()
        self.condition = selection("Condition", options(CONDITIONS), condition, "Largest curvature over the smallest")
        self.function = ipywidgets.IntSlider(
            function, 0, FUNCTIONS - 1, description="Function", tooltip="Which of ten", **described("300px")
        )
        self.step = ipywidgets.IntSlider(
            step, 0, STEPS, description="Step", tooltip="At which the memory is shown", **described("300px")
        )
        self.picture = ipywidgets.Image(format="png", layout={"width": "252px", "margin": "8px 0 0 20px"})
        moved = [self.condition, self.function, self.step]
        super().__init__(_figure(self._losses), [heading("Function"), *moved, self.picture], moved)

    @override
    def _draw(self) -> None:
        step = self.step.value
        which = CONDITIONS.index(self.condition.value) * FUNCTIONS + self.function.value
        lines = {name: plots.rounded(losses[which].clamp_min(LOWEST)) for name, losses in self._losses.items()}
        with self.figure.batch_update():
            for trace in self.figure.data[:-1]:
                trace.y = lines[trace.name]
            axis = plots.loss_axis(lines.values())
            self.figure.update_yaxes(axis)
            self.figure.data[-1].x = [step] * 2
            self.figure.data[-1].y = [10.0**end for end in axis["range"]]
        memory, inverse = self._memories[which, step], self._inverses[which]
        stream = io.BytesIO()
        plots.matrices({"": {"memory": memory, "inverse Hessian": inverse}}, zoom=12).save(stream, "png")
        self.picture.value = stream.getvalue()
        self.status.value = message(
            f"Cosine between the two: {_cosine(memory, inverse):.2f}. The identity, with which a memory begins, has "
            f"{_cosine(torch.eye(len(memory)), inverse):.2f}."
        )


def _tensors(functions: QuadraticTasks) -> tuple[Tensor, Tensor, Tensor]:
    return functions.W, functions.y, functions.theta


def _cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def _figure(names: Mapping[str, Any]) -> LiveFigure:
    title = "f along the way, and for BFGS after as many gradients"
    figure = LiveFigure(layout=plots.layout(title, "step", "f", width=FIGURE_WIDTH))
    for name, style in plots.styles(names).items():
        figure.add_scatter(name=name, x=list(range(STEPS + 1)), mode="lines", line=style.line)
    line = {"color": plots.GREY, "dash": "dash", "width": 1.5}
    figure.add_scatter(name=HERE, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    figure.update_layout(showlegend=True)
    return figure
