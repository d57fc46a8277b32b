"""What optimizers would do with a coordinate, as a function of its gradient, anywhere on a trajectory (appendix B)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import ipywidgets
import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit import plots
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import proposals
from l2l_kit.optimizers import Optimizer
from l2l_kit.tensors import Tensors
from l2l_kit.widgets.live_figure import (
    FIGURE_WIDTH,
    LiveFigure,
    Redrawn,
    described,
    heading,
    message,
)

POINTS = 81
"""At which each function is evaluated."""


def proposal_explorer(
    optimizers: Mapping[str, Optimizer[Any]],
    gradients: Tensors,
    parameter: str | None = None,
    coordinate: int | None = None,
    step: int | None = None,
) -> ProposalExplorer:
    """See what optimizers would propose for a coordinate at any step of a trajectory: end a notebook cell with it.

    Each has met the coordinate's gradients up to that step, so it is shown with the state that it would be in there.

    Args:
        optimizers: by name.
        gradients: along the trajectory, by parameter, as `evaluation.recorded_gradients` gives them.
        parameter: of which a coordinate is shown, to begin with; None for the first.
        coordinate: which one, to begin with; None for one whose gradients are of middling size.
        step: to begin with; None for the middle of the trajectory.

    Raises:
        UnknownNameError: for a parameter of which there are no gradients.
        ValueError: for a coordinate or step that there is not.
    """
    return ProposalExplorer(optimizers, gradients, parameter, coordinate, step)


class ProposalExplorer(Redrawn):
    """See `proposal_explorer`. Its controls are attributes; setting their `value` does what a reader's hand does.

    Attributes:
        parameter: of which a coordinate is shown.
        coordinate: which one.
        step: after how many updates.
        status: what the curves say, or what went wrong.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer[Any]],
        gradients: Tensors,
        parameter: str | None,
        coordinate: int | None,
        step: int | None,
    ) -> None:
        names = tuple(gradients)
        parameter = names[0] if parameter is None else parameter
        if parameter not in names:
            raise UnknownNameError("parameter", parameter, names)
        steps, coordinates = gradients[parameter].shape
        coordinate = _middling(gradients[parameter]) if coordinate is None else coordinate
        step = steps // 2 if step is None else step
        if not 0 <= coordinate < coordinates or not 0 <= step < steps:
            raise ValueError(
                f"{parameter} has coordinates 0 to {coordinates - 1} and steps 0 to {steps - 1}, "
                f"got coordinate={coordinate!r}, step={step!r}."
            )
        self._optimizers, self._gradients = optimizers, gradients
        self._found = lru_cache(maxsize=64)(self._evaluate)
        self.parameter = ipywidgets.Dropdown(
            options=names, value=parameter, description="Parameter", **described("300px")
        )
        self.coordinate = ipywidgets.BoundedIntText(
            coordinate, 0, coordinates - 1, description="Coordinate", **described("300px")
        )
        self.step = ipywidgets.IntSlider(
            step, 0, steps - 1, description="Step", tooltip="Of the trajectory", **described("300px")
        )
        moved = [self.coordinate, self.step]
        super().__init__(_figure(optimizers), [heading("Coordinate"), self.parameter, *moved], moved)
        self.parameter.observe(self._choose, names="value")

    def _choose(self, _: Any) -> None:
        """Go to another parameter, and a coordinate of middling gradients there."""
        gradients = self._gradients[self.parameter.value]
        with self.coordinate.hold_trait_notifications():
            self.coordinate.max = gradients.shape[1] - 1
            self.coordinate.value = _middling(gradients)
        self._update()

    @override
    def _draw(self) -> None:
        parameter, coordinate, step = self.parameter.value, self.coordinate.value, self.step.value
        probes, found = self._found(parameter, coordinate)
        actual = self._gradients[parameter][step, coordinate].item()
        with self.figure.batch_update():
            for trace in self.figure.data[:-1]:
                trace.x, trace.y = plots.rounded(probes), plots.rounded(found[trace.name][step])
            largest = max(found[name].abs().max().item() for name in found)
            self.figure.data[-1].x, self.figure.data[-1].y = [actual] * 2, [-largest, largest]
            self.figure.layout.yaxis.range = [-1.05 * largest, 1.05 * largest]
            self.figure.layout.title.text = f"{parameter}, coordinate {coordinate}: proposed update at step {step}"
        self.status.value = message(f"Its gradient at this step is {actual:.3g}.")

    def _evaluate(self, parameter: str, coordinate: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients at which the functions are evaluated, and their values at every step."""
        history = self._gradients[parameter][:, coordinate]
        probes = torch.linspace(-1, 1, POINTS) * 1.2 * max(history.abs().max().item(), 1e-8)
        return probes, proposals(self._optimizers, history[:-1], probes)


def _middling(gradients: Tensor) -> int:
    """The coordinate whose largest gradient is the median of all coordinates'."""
    return int(gradients.abs().amax(dim=0).argsort()[gradients.shape[1] // 2])


def _figure(optimizers: Mapping[str, Optimizer[Any]]) -> LiveFigure:
    figure = LiveFigure(layout=plots.layout(" ", "gradient", "proposed update", width=FIGURE_WIDTH))
    for name, style in plots.styles(optimizers).items():
        figure.add_scatter(name=name, mode="lines", line=style.line)
    line = {"color": plots.GREY, "dash": "dash", "width": 1.5}
    figure.add_scatter(name="it is here", mode="lines", line=line, hoverinfo="skip")
    figure.update_layout(showlegend=True)
    figure.update_yaxes(zeroline=True, zerolinecolor=plots.GRID)
    return figure
