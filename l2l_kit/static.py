"""A still picture of a plotly figure, drawn with matplotlib: for GitHub and other places where no JavaScript runs.

It knows the kinds of traces that the kit's figures are made of and refuses others. Figures are drawn on white, with
matplotlib's objects and not pyplot, which keeps global state and belongs to the main thread.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import NullFormatter

PIXELS_PER_INCH = 100  # of plotly's sizes
POINTS_PER_PIXEL = 72 / PIXELS_PER_INCH
_DASHES: dict[str, Any] = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-."}
_DASHES |= {"longdash": (0, (7, 3)), "longdashdot": (0, (7, 3, 1, 3))}
_SYMBOLS = {"circle": "o", "star": "*", "square": "s", "diamond": "D", "x": "x"}
_INK = "#333333"
ANIMATED = "In JupyterLab, point at this picture and it can be played."


def png(figure: Any, *, dpi: int = 100) -> bytes:
    """A plotly figure as a PNG; the same figure gives the same bytes.

    Args:
        figure: a plotly figure, live or not.
        dpi: dots per inch; plotly's sizes in pixels count as hundredths of an inch.

    Raises:
        TypeError: for kinds of traces that the kit does not use.
    """
    buffer = io.BytesIO()
    draw(figure, dpi=dpi).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw(figure: Any, *, dpi: int = 100) -> Figure:
    """A plotly figure as matplotlib's; arguments as in `png`."""
    layout = figure.layout
    size = (layout.width or 700) / PIXELS_PER_INCH, (layout.height or 450) / PIXELS_PER_INCH
    picture = Figure(figsize=size, dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    for trace in figure.data:
        if trace.visible in (None, True):
            if trace.type != "scatter":
                raise TypeError(f"static.png cannot draw traces of kind {trace.type!r}, only 'scatter'.")
            _scatter(axes, trace)
    _dress(axes, layout)
    if layout.showlegend is not False:
        _legend(axes)
    if figure.frames:
        axes.set_xlabel(f"{axes.get_xlabel()}\n\n{ANIMATED}")
    return picture


def contour_line(x: Any, y: Any, z: Any, level: float) -> tuple[list[float], list[float]]:
    """Where a function on a grid has one value: a line, with NaN where its pieces are apart.

    Args:
        x: shape ``(columns,)``.
        y: shape ``(rows,)``.
        z: the function, shape ``(rows, columns)``.
        level: the value.
    """
    chunks: Any = contour_generator(x, y, z, line_type="ChunkCombinedNan").lines(level)
    points = chunks[0][0]
    return ([], []) if points is None else (points[:, 0].tolist(), points[:, 1].tolist())


def _scatter(axes: Axes, trace: Any) -> None:
    x, y = _numbers(trace.x), _numbers(trace.y)
    x, y = x[: len(y)], y[: len(x)]  # plotly draws as many points as both have
    label = _text(trace.name) if trace.showlegend is not False and trace.name else None
    if trace.fill == "toself":
        axes.fill(x, y, facecolor=_colour(trace.fillcolor), linewidth=0, label=label)
        return
    mode = trace.mode or "lines"
    if "lines" in mode:
        width = (2 if trace.line.width is None else trace.line.width) * POINTS_PER_PIXEL
        dash = _dash(trace.line.dash or "solid", trace.line.width or 2)
        axes.plot(x, y, color=_colour(trace.line.color), linewidth=width, linestyle=dash, label=label)
        label = None
    if "markers" in mode:
        _markers(axes, x, y, trace.marker, label)


def _dash(dash: str, width: float) -> Any:
    """A plotly dash: one of its names, or lengths in pixels such as "12px,3px"."""
    if dash in _DASHES:
        return _DASHES[dash]
    return (0, [float(length.removesuffix("px")) / width for length in dash.split(",")])


def _markers(axes: Axes, x: Any, y: Any, marker: Any, label: str | None) -> None:
    colors = marker.color
    color = _colour(colors) if isinstance(colors, str) else [_colour(each) for each in colors or [_INK]]
    area = ((marker.size or 6) * POINTS_PER_PIXEL) ** 2
    symbol = MarkerStyle(_SYMBOLS[marker.symbol or "circle"])
    edge = {}
    if symbol.is_filled():  # others are lines themselves
        edge = {"linewidths": (marker.line.width or 0) * POINTS_PER_PIXEL, "edgecolors": _colour(marker.line.color)}
    axes.scatter(x, y, s=area, c=color, marker=symbol, zorder=3, label=label, **edge)


def _dress(axes: Axes, layout: Any) -> None:
    """Titles, scales, ranges and grid, as the layout has them."""
    if layout.title.text:
        axes.set_title(_text(layout.title.text), loc="left", fontsize=11, color=_INK)
    sides: tuple[tuple[Literal["x", "y"], Any], ...] = (("x", layout.xaxis), ("y", layout.yaxis))
    for name, axis in sides:
        logarithmic = axis.type == "log"
        axes.set(**{f"{name}scale": "log" if logarithmic else "linear", f"{name}label": _text(axis.title.text or "")})
        if axis.range is not None:
            ends = [10.0**end for end in axis.range] if logarithmic else list(axis.range)
            axes.set(**{f"{name}lim": ends})
        if axis.tickvals is not None:
            axes.set(**{f"{name}ticks": list(axis.tickvals), f"{name}ticklabels": [_text(t) for t in axis.ticktext]})
            axes.tick_params(axis=name, which="minor", length=0)
            getattr(axes, f"{name}axis").set_minor_formatter(NullFormatter())
        if axis.ticks == "":
            axes.tick_params(axis=name, length=0)
        if axis.showgrid is not False:
            axes.grid(axis=name, color="#dddddd", linewidth=0.6)
    if layout.yaxis.scaleanchor:
        axes.set_aspect("equal")
    axes.tick_params(colors=_INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(axes: Axes) -> None:
    """The legend in rows above the axes, and the title above it."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    # A column is as wide as its longest entry, its line as eight letters; 85 letters are as wide as a figure.
    rows, columns = 1, len(labels)
    while columns > 1 and sum(max(map(len, part)) + 8 for part in np.array_split(labels, columns)) > 85:
        rows += 1
        columns = math.ceil(len(labels) / rows)
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": _INK, "handlelength": 3}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, borderaxespad=0.2, **style)
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, color=_INK, pad=10 + 15 * rows)


def _numbers(values: Iterable[float | None] | None) -> Any:
    return np.array([math.nan if value is None else value for value in ([] if values is None else values)], dtype=float)


def _text(text: str) -> str:
    """Plain text of a label: plotly's are HTML."""
    return re.sub(r"<[^>]+>", "", text.replace("<br>", "\n"))


def _colour(color: str | None) -> Any:
    """A plotly colour as matplotlib wants it."""
    if color is None:
        return _INK
    if not color.startswith("rgb"):
        return color
    parts = [float(part) for part in re.findall(r"[\d.]+", color)]
    return tuple(part / 255 for part in parts[:3]) + tuple(parts[3:])
