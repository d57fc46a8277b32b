"""What the preprocessing of appendix A makes of real gradients, with a slider for its p."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets
import torch
from torch import Tensor

from l2l_kit import plots
from l2l_kit.optimizers import LogSign
from l2l_kit.widgets.live_figure import (
    CONTROLS_WIDTH,
    FIGURE_WIDTH,
    LiveFigure,
    WithPicture,
    described,
    error_message,
    heading,
    message,
)

BINS = 60
_RANGES = (-10, 2), (-1, 0.5), (-1, 1)
"""Of the three histograms."""


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


class PreprocessingExplorer(WithPicture):
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
        self.status = ipywidgets.HTML(layout={"width": f"{CONTROLS_WIDTH - 20}px"})
        super().__init__(_figure(), [heading("Preprocessing"), self.p, self.step, self.status])
        for control in (self.p, self.step):
            control.observe(self._update, names="value")
        self._update()

    def _update(self, _: Any = None) -> None:
        try:
            self._draw()
        except Exception as error:  # the kernel would only log it
            self.status.value = error_message(error)

    def _draw(self) -> None:
        p, gradients = self.p.value, self._gradients[self.step.value]
        magnitude, direction = LogSign(p)(gradients)
        shown = gradients.abs().log10(), magnitude, direction
        with self.figure.batch_update():
            for trace, values, (low, high) in zip(self.figure.data, shown, _RANGES, strict=True):
                trace.x, trace.y = _histogram(values, low, high)
        small = (gradients.abs() < math.exp(-p)).float().mean().item()
        self.status.value = message(
            f"e^-p is {math.exp(-p):.2g}. {1 - small:.1%} of the gradients are at least as large: the LSTM sees their "
            f"logarithm and their sign. Of the other {small:.1%} it sees -1 and the gradient times e^p."
        )


def _histogram(values: Tensor, low: float, high: float) -> tuple[list[float], list[float]]:
    """Middles of the bins, and the share of the values in each; what is beyond is in the outermost."""
    counts = torch.histc(values.clamp(low, high), BINS, low, high)
    middles = low + (torch.arange(BINS) + 0.5) * (high - low) / BINS
    return middles.tolist(), (counts / len(values)).tolist()


def _figure() -> LiveFigure:
    from plotly.subplots import make_subplots

    titles = ("gradients: log₁₀ |∇|", "first input: log |∇| / p", "second input: sign, or e^p ∇")
    figure = LiveFigure(make_subplots(rows=3, cols=1, subplot_titles=titles, vertical_spacing=0.13))
    colors = (plots.GREY, plots.STYLES["LSTM"].color, plots.STYLES["LSTM"].color)
    for row, color in enumerate(colors, start=1):
        figure.add_bar(row=row, col=1, marker={"color": color, "line": {"width": 0}})
    look = plots.layout(None, width=FIGURE_WIDTH, height=520)
    figure.update_layout(
        {name: look[name] for name in ("template", "width", "height", "font", "modebar", "hoverlabel")}
    )
    figure.update_layout(
        showlegend=False, bargap=0, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", margin_t=40
    )
    figure.update_xaxes(gridcolor=plots.GRID, linecolor=plots.GREY, showline=True)
    figure.update_yaxes(gridcolor=plots.GRID, tickformat=".0%", rangemode="tozero")
    return figure
