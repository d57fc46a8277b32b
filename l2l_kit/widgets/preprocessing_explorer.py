"""What the preprocessing of appendix A makes of real gradients, with a slider for its p."""

from __future__ import annotations

import math

import ipywidgets
import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit import plots
from l2l_kit.optimizers import LogSign
from l2l_kit.widgets.live_figure import (
    FIGURE_WIDTH,
    LiveFigure,
    Redrawn,
    described,
    heading,
    message,
)

DECADES = (-9.0, 1.0)
"""Sizes of gradients that are shown, as powers of ten."""
BINS = 60
AREA, FIRST, SECOND, BORDER = "the gradients there are", "first input", "second input (for ∇ > 0)", "e^-p"


def preprocessing_explorer(gradients: Tensor, p: float = 10.0, step: int = 0) -> PreprocessingExplorer:
    """See what the LSTM is shown of real gradients, for any p: end a notebook cell with it.

    Args:
        gradients: along a trajectory, shape ``(steps, coordinates)``.
        p: how small a gradient is told apart from zero, to begin with; the paper uses 10.
        step: of the trajectory, to begin with.

    Raises:
        ValueError: for a p outside (0, 20], or a step that there is not.
    """
    return PreprocessingExplorer(gradients, p, step)


class PreprocessingExplorer(Redrawn):
    """See `preprocessing_explorer`. Its controls are attributes; setting their `value` does what a reader's hand does.

    Attributes:
        p: of the preprocessing.
        step: of the trajectory.
        status: how many gradients are in which branch.
    """

    def __init__(self, gradients: Tensor, p: float, step: int) -> None:
        steps = len(gradients)
        if not 0 < p <= 20 or not 0 <= step < steps:
            raise ValueError(f"p must lie in (0, 20] and step from 0 to {steps - 1}, got p={p!r}, step={step!r}.")
        self._gradients = gradients
        self.p = ipywidgets.FloatSlider(
            p, min=0.5, max=20, step=0.5, description="p", tooltip="Of appendix A", **described("300px")
        )
        self.step = ipywidgets.IntSlider(
            step, 0, steps - 1, description="Step", tooltip="Of the trajectory", **described("300px")
        )
        moved = [self.p, self.step]
        super().__init__(_figure(), [heading("Preprocessing"), *moved], moved)

    @override
    def _draw(self) -> None:
        p, gradients = self.p.value, self._gradients[self.step.value]
        places = torch.linspace(*DECADES, 4 * BINS + 1)
        magnitude, direction = LogSign(p)(10.0**places)
        border = math.log10(math.exp(-p))
        lines: dict[str, tuple[Tensor | list[float], Tensor | list[float]]] = {
            AREA: _outline(gradients),
            FIRST: (places, magnitude),
            SECOND: (places, direction),
            BORDER: ([border] * 2, [-1.0, 1.0]),
        }
        with self.figure.batch_update():
            for trace in self.figure.data:
                x, y = lines[trace.name]
                trace.x, trace.y = plots.rounded(x), plots.rounded(y)
        small = (gradients.abs() < math.exp(-p)).float().mean().item()
        self.status.value = message(
            f"e^-p is {math.exp(-p):.2g}. {1 - small:.1%} of the gradients are at least as large: the LSTM sees their "
            f"logarithm and their sign. Of the other {small:.1%} it sees -1 and the gradient times e^p."
        )


def _outline(gradients: Tensor) -> tuple[list[float], list[float]]:
    """Outline of a histogram of the gradients' sizes, from -1 up to 0 at its highest; what is beyond is left out."""
    low, high = DECADES
    counts = torch.histc(gradients[gradients != 0].abs().log10(), BINS, low, high)
    heights = counts / counts.max().clamp_min(1) - 1
    edges = torch.linspace(low, high, BINS + 1)
    x = [low, *edges.repeat_interleave(2)[1:-1].tolist(), high]
    return x, [-1.0, *heights.repeat_interleave(2).tolist(), -1.0]


def _figure() -> LiveFigure:
    layout = plots.layout("What the LSTM is shown of a gradient", "log₁₀ |∇|", "input of the LSTM", width=FIGURE_WIDTH)
    figure = LiveFigure(layout=layout)
    blue, orange = plots.STYLES["LSTM"], plots.STYLES["Adam"]
    grey = {"mode": "lines", "hoverinfo": "skip"}
    figure.add_scatter(name=AREA, fill="toself", fillcolor=plots.GRID, line={"width": 0, "color": plots.GREY}, **grey)
    figure.add_scatter(name=FIRST, mode="lines", line=blue.line)
    figure.add_scatter(name=SECOND, mode="lines", line=orange.line)
    figure.add_scatter(name=BORDER, line={"color": plots.GREY, "dash": "dash", "width": 1.5}, **grey)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(range=DECADES)
    figure.update_yaxes(range=(-1.05, 1.05))
    return figure
