"""A plotly figure drawn by matplotlib, as a picture for GitHub and other places where no JavaScript runs.

It knows lines, markers and areas, and refuses other traces. It does not use pyplot, which keeps global state and
belongs to the main thread.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator, NullFormatter

DPI = 100  # pixels of plotly's sizes per inch
POINT = 72 / DPI  # of matplotlib's sizes, per pixel
DASHES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-.", "longdash": (0, (7, 3))}
SYMBOLS = {"circle": "o", "square": "s", "star": "*", "x": "x"}
INK = "#767676"  # can be read on white and on black
GRID = (0.5, 0.5, 0.5, 0.25)


def png(figure: go.Figure) -> bytes:
    """A plotly figure as a PNG of its size with no background; the same figure gives the same bytes.

    Raises:
        TypeError: for traces that are not scatter traces.
    """
    stream = io.BytesIO()
    draw(figure).savefig(stream, format="png", transparent=True, metadata={"Software": None})
    return stream.getvalue()


def jpeg(figure: go.Figure) -> bytes:
    """The same on white, as a JPEG; raises as `png` does."""
    stream = io.BytesIO()
    draw(figure).savefig(stream, format="jpeg", pil_kwargs={"quality": 92, "subsampling": 0})
    return stream.getvalue()


def draw(figure: go.Figure) -> Figure:
    """A plotly figure as matplotlib's; raises as `png` does."""
    layout = figure.layout
    size = (layout.width or 700) / DPI, (layout.height or 450) / DPI
    picture = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(picture)
    panels = sorted({trace.yaxis or "y" for trace in figure.data} | {"y"})  # one below the other
    heights = [high - low for low, high in (layout[_long(panel)].domain or (0, 1) for panel in panels)]
    by_panel = dict(zip(panels, picture.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0], strict=True))
    for trace in figure.data:
        if trace.type != "scatter":
            raise TypeError(f"static.png cannot draw traces of kind {trace.type!r}, only 'scatter'.")
        if trace.visible in (None, True):
            _trace(by_panel[trace.yaxis or "y"], trace)
    for panel, axes in by_panel.items():
        _axis(axes, "x", layout[_long(panel.replace("y", "x"))])
        _axis(axes, "y", layout[_long(panel)])
        if layout[_long(panel)].scaleanchor:
            axes.set_aspect("equal")
        axes.tick_params(colors=INK, labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(INK)
    axes = by_panel["y"]
    rows = _legend(axes) if layout.showlegend is not False else 0
    pad = 10 + 15 * rows if rows else None
    axes.set_title(_text(layout.title.text), loc="left", fontsize=11, color=INK, pad=pad)
    return picture


def _long(axis: str) -> str:
    """The name of an axis in the layout, such as "yaxis2" for "y2"."""
    return f"{axis[0]}axis{axis[1:]}"


def _trace(axes: Axes, trace: go.Scatter) -> None:
    x, y = (np.array([] if values is None else values, dtype=float) for values in (trace.x, trace.y))
    x, y = x[: len(y)], y[: len(x)]  # plotly draws as many points as both have
    label = _text(trace.name) if trace.showlegend is not False else ""
    mode = trace.mode or "lines"
    if trace.fill == "toself":
        axes.fill(x, y, facecolor=_color(trace.fillcolor), linewidth=0, label=label)
        return
    if "lines" in mode:
        width = 2 if trace.line.width is None else trace.line.width
        dash = trace.line.dash or "solid"
        if "," in dash:  # lengths in pixels, such as "12px,3px"; matplotlib's are in widths of the line
            dash = (0, [float(length.removesuffix("px")) / width for length in dash.split(",")])
        style = dash if isinstance(dash, tuple) else DASHES[dash]
        axes.plot(x, y, color=_color(trace.line.color), linewidth=width * POINT, linestyle=style, label=label)
    if "markers" in mode:
        marker, symbol = trace.marker, SYMBOLS[trace.marker.symbol or "circle"]
        colors = [marker.color] if isinstance(marker.color, str | None) else marker.color
        color: list[Any] = [_color(each) for each in colors]
        edge: dict[str, Any] = {"linewidths": (marker.line.width or 0) * POINT, "edgecolors": _color(marker.line.color)}
        area = ((marker.size or 6) * POINT) ** 2
        label = label if mode == "markers" else ""
        axes.scatter(x, y, s=area, c=color, marker=symbol, zorder=3, label=label, **({} if symbol == "x" else edge))


def _axis(axes: Axes, name: Literal["x", "y"], axis: go.layout.XAxis | go.layout.YAxis) -> None:
    """Label, scale, range, ticks and grid of one axis."""
    scale = "log" if axis.type == "log" else "linear"
    axes.set(**{f"{name}scale": scale, f"{name}label": _text(axis.title.text)})
    getattr(axes, f"{name}axis").label.set_color(INK)
    if axis.range is not None:
        axes.set(**{f"{name}lim": [10.0**end for end in axis.range] if scale == "log" else axis.range})
    if axis.tickvals is not None:
        axes.set(**{f"{name}ticks": axis.tickvals, f"{name}ticklabels": [_text(tick) for tick in axis.ticktext]})
        axes.tick_params(axis=name, which="minor", length=0)
        getattr(axes, f"{name}axis").set_minor_formatter(NullFormatter())
    elif scale == "linear":
        nice = MaxNLocator("auto", steps=[1, 2, 5, 10])  # as plotly does
        getattr(axes, f"{name}axis").set_major_locator(MultipleLocator(axis.dtick) if axis.dtick else nice)
    if axis.ticks == "":
        axes.tick_params(axis=name, length=0)
    if axis.showgrid is not False:
        axes.grid(axis=name, color=GRID, linewidth=0.6)


def _legend(axes: Axes) -> int:
    """A legend above the axes in as few rows as fit; returns their number."""
    _, labels = axes.get_legend_handles_labels()
    if not labels:
        return 0
    # A column is as wide as its longest entry, its line as eight letters; 80 letters are as wide as a figure.
    rows, columns = 1, len(labels)
    while columns > 1 and sum(max(map(len, part)) + 8 for part in np.array_split(labels, columns)) > 80:
        rows += 1
        columns = math.ceil(len(labels) / rows)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "borderaxespad": 0.2}
    axes.legend(ncols=columns, frameon=False, fontsize=9, labelcolor=INK, handlelength=3, **place)
    return rows


def _text(text: str | None) -> str:
    """Plain text of a label: plotly's are HTML."""
    return re.sub(r"<[^>]+>", "", (text or "").replace("<br>", "\n"))


def _color(color: str | None) -> str | tuple[float, ...]:
    """A plotly colour as matplotlib wants it."""
    if color is None or not color.startswith("rgb"):
        return color or INK
    *rgb, opacity = [*map(float, re.findall(r"[\d.]+", color)), 1.0][:4]
    return (*(part / 255 for part in rgb), opacity)
