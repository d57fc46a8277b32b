"""What the widgets share: a live plotly figure, the picture that stands in for it, and the look of the controls."""

from __future__ import annotations

import base64
import html
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any, ClassVar

import ipywidgets
import plotly.graph_objects as go

from l2l_kit import static

CONTROLS_WIDTH, FIGURE_WIDTH = 308, 620
"""Pixels: both are side by side in a window of 1,400 with Lab's file browser open."""
ALIVE = 2
UNROLLS = (1, 2, 5, 10, 20, 50, 100)
PREPROCESSINGS = {
    "none": "The LSTM is given the gradient as it is",
    "scale": "The gradient times a constant (appendix A)",
    "log-sign": "The gradient's logarithm and sign (appendix A)",
}


class LiveFigure(go.FigureWidget):  # type: ignore[misc]  # plotly has no types
    """A plotly figure that a notebook keeps up to date, also after the page was loaded anew.

    plotly's own is sent to the page empty, as soon as it is made, and filled by messages, which a slow page misses; and
    a page that reconnects is sent the figure as it was when it was made. This one is sent as it is, by `go_live`.
    """

    _live = False

    def open(self) -> None:
        """Called by ipywidgets as soon as the figure is made; does nothing before `go_live`."""
        if self._live:
            super().open()

    def go_live(self) -> None:
        """Open the connection to the page."""
        self._live = True
        self.open()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        """The state that a page is sent; `key` as in ipywidgets: None for all of it."""
        if key is None and self._live:
            self._trait_values["_widget_data"] = deepcopy(self._data)
            self._trait_values["_widget_layout"] = deepcopy(self._layout_obj._props)
        return super().get_state(key, drop_defaults)


class WithPicture:
    """Displays as a live figure with controls where there is a kernel, elsewhere as a picture of the figure.

    The controls are beside the figure, or below it where the page is too narrow: never above it, where a reader who
    moves one would not see what follows.

    Widgets live as long as the kernel, also when their cell was run again, and a page that is loaded anew loads all of
    them, 5 MB for each figure. So only the newest `ALIVE` of each kind stay alive, and older ones are closed.

    Attributes:
        figure: the live figure.
    """

    _alive: ClassVar[defaultdict[type, list[WithPicture]]] = defaultdict(list)

    def __init__(self, figure: LiveFigure, controls: Iterable[ipywidgets.Widget]) -> None:
        self.figure = figure
        # A scroll bar would be shown where a control is as wide as its column.
        self._column = ipywidgets.VBox(
            list(controls), layout={"flex": f"0 0 {CONTROLS_WIDTH}px", "width": f"{CONTROLS_WIDTH}px"}
        )
        alive = self._alive[type(self)]
        alive.append(self)
        if len(alive) > ALIVE:
            alive.pop(0).close()

    @cached_property
    def view(self) -> ipywidgets.HBox:
        """The whole widget; asking for it sends the figure, which may be much, to the page."""
        self.figure.go_live()
        plot = ipywidgets.VBox(self._shown(), layout={"flex": f"0 0 {FIGURE_WIDTH}px"})
        return ipywidgets.HBox([plot, self._column], layout={"flex_flow": "row wrap", "overflow": "visible"})

    def _shown(self) -> list[ipywidgets.Widget]:
        """The figure, and what belongs to it."""
        return [self.figure]

    def _picture(self) -> bytes:
        """What stands in for it, as a PNG."""
        return static.png(self.figure)

    def close(self) -> None:
        """Take it off the page and out of the kernel."""
        _close(self._column)
        if "view" in self.__dict__:
            _close(self.view)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, Any]:
        live = self.view._repr_mimebundle_() or {}
        return {
            **live,
            "image/png": base64.b64encode(self._picture()).decode(),
            "text/plain": "Interactive figure: run this cell in JupyterLab to use it.",
        }


class Redrawn(WithPicture, ABC):
    """Drawn anew whenever a control is moved; what goes wrong then is shown under the controls.

    Attributes:
        status: what the figure says, or what went wrong.
    """

    def __init__(
        self,
        figure: LiveFigure,
        controls: Iterable[ipywidgets.Widget],
        moved: Iterable[ipywidgets.ValueWidget],
    ) -> None:
        self.status = ipywidgets.HTML(layout={"width": f"{CONTROLS_WIDTH - 20}px"})
        super().__init__(figure, [*controls, self.status])
        for control in moved:
            control.observe(self._update, names="value")
        self._update()

    @abstractmethod
    def _draw(self) -> None:
        """Show what the controls say."""

    def _update(self, _: Any = None) -> None:
        try:
            self._draw()
        except Exception as error:  # the kernel would only log it
            self.status.value = error_message(error)


def _close(widget: ipywidgets.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


def options(values: Iterable[float], *more: float) -> list[tuple[str, float]]:
    """Values of a slider in order, with those that it must be able to show."""
    return [(f"{value:g}", value) for value in sorted({*values, *more})]


def selection(label: str, choices: Sequence[tuple[str, Any]], value: Any, tooltip: str) -> ipywidgets.SelectionSlider:
    """A slider over given values that fills the control column."""
    return ipywidgets.SelectionSlider(
        options=choices, value=value, description=label, tooltip=tooltip, **described("300px")
    )


def described(width: str, label: str = "100px") -> dict[str, Any]:
    """Size of a control and of its label."""
    return {"style": {"description_width": label}, "layout": {"width": width}}


def toggle(choices: Sequence[str], value: str, tooltips: Sequence[str] = ()) -> ipywidgets.ToggleButtons:
    """Buttons of which one is down; `labelled` sets its label, for which its own description leaves no room."""
    width = "88px" if len(choices) == 2 else "auto"  # three of one width would not fit the longest word
    return ipywidgets.ToggleButtons(options=choices, value=value, tooltips=tooltips, style={"button_width": width})


def preprocessing_toggle(choices: Sequence[str], value: str) -> ipywidgets.ToggleButtons:
    """Buttons for some of `PREPROCESSINGS`."""
    return toggle(choices, value, [PREPROCESSINGS[choice] for choice in choices])


def labelled(label: str, control: ipywidgets.Widget) -> ipywidgets.HBox:
    """A control with a label before it, in line with the other controls' labels."""
    text = ipywidgets.Label(label, layout={"width": "100px", "display": "flex", "justify_content": "flex-end"})
    return ipywidgets.HBox([text, control])


def heading(text: str) -> ipywidgets.HTML:
    """A heading within the control column."""
    return ipywidgets.HTML(f"<b>{html.escape(text)}</b>")


def message(text: str) -> str:
    """Text for an HTML widget, as it is."""
    return f'<div style="line-height: 1.4">{html.escape(text)}</div>'


def error_message(error: BaseException) -> str:
    """An error, for an HTML widget: readers must see what went wrong where they look."""
    text = html.escape(f"{type(error).__name__}: {error}")
    style = "color: var(--jp-error-color1, #d32f2f); line-height: 1.4; max-height: 11em; overflow: auto"
    return f'<div role="alert" style="{style}">{text}</div>'
