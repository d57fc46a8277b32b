"""Figures: plotly, each a pure function of results.

They carry three forms of themselves: JSON that is alive in JupyterLab, a static picture for places that run no
JavaScript (GitHub, papermill's output), and a word for the rest.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from l2l_kit import static
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation.compare import Curves, Statistic
from l2l_kit.evaluation.results import under
from l2l_kit.evaluation.trajectories import Trajectories
from l2l_kit.optimizers import BASELINES

if TYPE_CHECKING:
    import pandas as pd
    import PIL.Image

Band = Literal["interval", "quantiles"]
Values = Sequence[float | None]

GREY = "#7a7a7a"  # text: as far from white as from the dark theme's black
GRID = "rgba(128, 128, 128, 0.25)"
LOGARITHMIC = {"type": "log", "dtick": 1}
WIDE = 2  # decades over which powers of ten are ticks enough
WIDTH, HEIGHT = 720, 420
LEVELS = 12
BLUE, RED = (0, 114, 178), (213, 94, 0)  # of matrices
FEW = 40  # points of a graph that are marked


@dataclass(frozen=True)
class Style:
    """How an optimizer is drawn: colour and dash, so that neither has to be told apart alone."""

    color: str
    dash: str = "solid"
    width: float = 2

    @property
    def line(self) -> dict[str, Any]:
        """As plotly wants it."""
        return {"color": self.color, "dash": self.dash, "width": self.width}

    def tint(self, opacity: float) -> str:
        """The colour, see-through."""
        red, green, blue = (int(self.color[at : at + 2], 16) for at in (1, 3, 5))
        return f"rgba({red}, {green}, {blue}, {opacity})"


# Okabe and Ito's palette, which the colour-blind can tell apart; all but its yellow and black show on white and black.
STYLES: dict[str, Style] = {
    "LSTM": Style("#0072B2", width=3.5),
    "LSTM-sub": Style("#56B4E9"),
    "one LSTM": Style("#8C6D31"),
    "paper's method": Style("#0072B2", "dash"),
    "decaying NAdam": Style(GREY, "longdash"),
    "SGD": Style("#E69F00", "dot"),
    "NAG": Style("#CC79A7", "dash"),
    "RMSprop": Style("#009E73", "dashdot"),
    "Adam": Style("#D55E00", "12px,3px"),
}
_OTHERS = (Style("#56B4E9"), Style("#D55E00"), Style("#009E73"), Style("#CC79A7"), Style("#E69F00"), Style("#8C6D31"))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: the optimizers of the paper have their own, others are given those left, in order."""
    names = list(names)
    taken = {STYLES[name].color for name in names if name in STYLES}
    left = itertools.cycle([style for style in _OTHERS if style.color not in taken] or _OTHERS)
    return {name: STYLES[name] if name in STYLES else next(left) for name in names}


class Figure(go.Figure):  # type: ignore[misc]  # plotly has no types
    """A plotly figure that shows itself in JupyterLab, on GitHub (a picture) and in a terminal (a word).

    JupyterLab shows the picture until the pointer touches it, and the live figure, of the same size, from then on: that
    is how plotly's renderer treats a figure that comes with a picture.
    """

    # IPython asks for these before the bundle, and plotly's answers load a script from the network.
    _ipython_display_ = None
    _repr_html_ = None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": {**json.loads(self.to_json()), "config": {"displaylogo": False}},
            "image/png": base64.b64encode(static.png(self)).decode(),
            "text/plain": "Figure",
        }


def layout(title: str | None = None, x: str = "", y: str = "", *, width: int = WIDTH, height: int = HEIGHT) -> Any:
    """What all figures share: no background of its own, so that it fits light and dark pages."""
    axis = {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "showline": True}
    axis |= {"exponentformat": "power", "minor": {"ticks": "outside", "ticklen": 3, "tickcolor": GRID}}
    return go.Layout(
        template="none",
        title={"text": title, "x": 0.02, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 15}},
        width=width,
        height=height,
        margin={"l": 65, "r": 20, "t": 75 if title else 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": STYLES["LSTM"].color},
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": "#333333"}},
        xaxis={**axis, "title": x},
        yaxis={**axis, "title": y},
    )


def rounded(values: Iterable[float] | Tensor, digits: int = 5) -> list[float | None]:
    """Numbers short enough for a notebook; where a run diverged there is a gap."""
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in numbers]


def loss_axis(curves: Iterable[Values]) -> dict[str, Any]:
    """A logarithmic loss axis, as plotly wants it, with the range of `loss_range` and ticks that suit it."""
    low, high = loss_range(curves)
    if high - low > WIDE:
        return {**LOGARITHMIC, "range": [low, high], "tickvals": None, "ticktext": None, "minor": {"ticks": "outside"}}
    digits = (1, 1.5, 2, 3, 5, 7) if high - low < 1.2 else (1, 2, 5)
    ticks = [float(f"{digit}e{power}") for power in range(math.floor(low), math.ceil(high)) for digit in digits]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    labels = [f"{tick:g}" for tick in ticks]
    return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": labels, "minor": {"ticks": ""}}


def loss_range(curves: Iterable[Values]) -> list[float]:
    """A range for a logarithmic loss axis, as plotly wants it: powers of ten.

    It ends at half decades, or eighths where the losses are close, so that it stays where it is while a slider moves
    the curves a little; and ten times above the highest first loss, so that a diverging run does not squeeze the others
    into a line.
    """
    positive = [[value for value in curve if value is not None and value > 0] for curve in curves]
    positive = [curve for curve in positive if curve]
    if not positive:
        return [-1.0, 1.0]
    top = math.log10(min(max(map(max, positive)), 10 * max(curve[0] for curve in positive)))
    bottom = math.log10(min(map(min, positive)))
    parts = 2 if top - bottom > WIDE else 8
    low, high = math.floor(parts * bottom) / parts, math.ceil(parts * top) / parts
    return [min(low, high - 0.5), high + 0.02]  # half a decade at least, so that two ticks are to be seen


def learning_curves(
    curves: Curves, statistic: Statistic = "mean", band: Band | None = "interval", title: str | None = None
) -> Figure:
    """Loss over steps, a line for each optimizer.

    Args:
        curves: what `compare` measured.
        statistic: "mean" or "median" over the optimizees.
        band: "interval" for the statistic's 95% confidence interval, "quantiles" for the middle half of the optimizees,
            None for none.
        title: None says statistic and number of optimizees.
    """
    title = title or f"{statistic.capitalize()} loss over {curves.num_tasks} functions"
    figure = Figure(layout=layout(title, "step", "loss"))
    steps = list(range(curves.steps + 1))
    by_name = styles(curves.losses)
    lines = {name: rounded(curves.statistic(name, statistic)) for name in curves.losses}
    if band is not None:
        for name in lines:
            figure.add_trace(_band(name, steps, *_bounds(curves, name, statistic, band), by_name[name]))
    for name, line in lines.items():
        figure.add_scatter(name=name, x=steps, y=line, mode="lines", line=by_name[name].line, legendgroup=name)
    figure.update_yaxes(loss_axis(lines.values()))
    return figure


def _bounds(curves: Curves, name: str, statistic: Statistic, band: Band) -> tuple[Tensor, Tensor]:
    if band == "interval":
        interval = curves.interval(name, statistic)
        return interval.low, interval.high
    low, high = curves.quantiles(name, (0.25, 0.75))
    return low, high


def _band(name: str, x: Sequence[float], low: Iterable[float], high: Iterable[float], style: Style) -> Any:
    """The area between two lines, as one outline; points that a logarithmic axis cannot show are left out."""
    bounds = zip(x, rounded(low), rounded(high), strict=True)
    points = [(at, down, up) for at, down, up in bounds if down is not None and up is not None and down > 0]
    there, back = [at for at, _, _ in points], [up for _, _, up in points]
    return go.Scatter(
        name=f"{name}, band",
        x=there + there[::-1],
        y=[down for _, down, _ in points] + back[::-1],
        fill="toself",
        fillcolor=style.tint(0.18),
        mode="lines",
        line={"width": 0, "color": style.color},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )


def tuning(table: pd.DataFrame, statistic: Statistic = "mean") -> Figure:
    """Final loss over learning rate, a line for each baseline, the best learning rate marked.

    Args:
        table: what `l2l tune` records: columns `lr`, `mean`, `median` and `baseline`.
        statistic: the column to show.
    """
    figure = Figure(layout=layout(f"{statistic.capitalize()} final loss by learning rate", "learning rate", "loss"))
    groups = {BASELINES.get(str(name), str(name)): group for name, group in table.groupby("baseline", sort=False)}
    lines = {name: rounded(group[statistic]) for name, group in groups.items()}
    by_name = styles(lines)
    for name, line in lines.items():
        rates = rounded(groups[name]["lr"])
        figure.add_scatter(name=name, x=rates, y=line, mode="lines", line=by_name[name].line, legendgroup=name)
    for name, line in lines.items():
        found = [(loss, rate) for loss, rate in zip(line, groups[name]["lr"], strict=True) if loss is not None]
        if not found:
            continue
        loss, rate = min(found)
        figure.add_scatter(
            name=f"{name}, best: {rate:g}",
            x=[rate],
            y=[loss],
            mode="markers",
            marker={"color": by_name[name].color, "size": 11, "symbol": "star"},
            legendgroup=name,
            showlegend=False,
        )
    figure.update_xaxes(LOGARITHMIC)
    figure.update_yaxes(loss_axis(lines.values()))
    return figure


def search(table: pd.DataFrame, setting: str, title: str) -> Figure:
    """Validation loss of the trials of a random search over one of the settings that were drawn.

    Args:
        table: what `random_search` gives; trials that diverged are left out, those that were pruned are drawn apart.
        setting: the column to show them over.
        title: of the figure.
    """
    figure = Figure(layout=layout(title, setting.replace("_", "-"), "validation loss"))
    pruned = table["pruned_after"].notna() if "pruned_after" in table else table["trial"] < 0
    finished, given_up = STYLES["LSTM"].color, STYLES["SGD"].color
    kinds = {"finished": (~pruned, finished, "circle"), "pruned, loss when it was": (pruned, given_up, "x")}
    for name, (rows, color, symbol) in kinds.items():
        if rows.any():
            marker = {"color": color, "size": 9, "symbol": symbol}
            x, y = rounded(table[rows][setting]), rounded(table[rows]["validation_loss"])
            figure.add_scatter(name=name, x=x, y=y, mode="markers", marker=marker)
    if (table[setting] > 0).all() and table[setting].max() > 3 * table[setting].min():
        figure.update_xaxes(LOGARITHMIC)
    figure.update_layout(showlegend=True)
    figure.update_yaxes(loss_axis([rounded(table["validation_loss"].sort_values(ascending=False))]))
    return figure


def validation(histories: Mapping[str, pd.DataFrame], title: str = "Validation loss in meta-training") -> Figure:
    """Validation loss over the course of meta-training, a line for each run.

    Args:
        histories: tables with a column `validation_loss`, such as `History.to_frame` gives; the horizontal axis is
            the index, or a column `epoch` if there is one.
        title: of the figure.
    """
    figure = Figure(layout=layout(title, "epoch", "validation loss"))
    by_name = styles(histories)
    lines = {name: rounded(history["validation_loss"]) for name, history in histories.items()}
    for name, history in histories.items():
        epochs = history.get("epoch", history.index).tolist()
        figure.add_scatter(name=name, x=epochs, y=lines[name], mode="lines", line=by_name[name].line)
    figure.update_layout(showlegend=True)
    # Untrained weights may do anything: the loss of epoch 0 must not set the scale.
    figure.update_yaxes(loss_axis(line[1:] for line in lines.values()))
    return figure


def unroll_lengths(table: pd.DataFrame, statistic: Statistic = "mean", title: str | None = None) -> Figure:
    """Final loss of optimizers over the unroll length that they were trained with, a line for each preprocessing.

    Args:
        table: columns `unroll`, `preprocessing`, and the statistic; `low` and `high`, where there are such, are drawn
            as error bounds.
        statistic: "mean" or "median", the column to show.
        title: None says the statistic.
    """
    title = title or f"{statistic.capitalize()} final loss by unroll length"
    figure = Figure(layout=layout(title, "unroll length", "loss"))
    groups = {str(name): rows.sort_values("unroll") for name, rows in table.groupby("preprocessing", sort=False)}
    by_name = {name: Style(style.color, width=3) for name, style in styles(groups).items()}
    lines = {name: rounded(group[statistic]) for name, group in groups.items()}
    if {"low", "high"} <= set(table.columns):
        for name, group in groups.items():
            bounds = group["low"].tolist(), group["high"].tolist()
            figure.add_trace(_band(name, group["unroll"].tolist(), *bounds, by_name[name]))
    for name, group in groups.items():
        figure.add_scatter(
            name=f"preprocessing: {name}",
            x=group["unroll"].tolist(),
            y=lines[name],
            mode="lines+markers",
            line=by_name[name].line,
            marker={"color": by_name[name].color, "size": 8},
            legendgroup=name,
        )
    lengths = sorted({int(length) for length in table["unroll"]})
    figure.update_layout(showlegend=True)
    figure.update_xaxes(type="log", tickvals=lengths, ticktext=[str(length) for length in lengths])
    figure.update_yaxes(loss_axis(lines.values()))
    return figure


def by_setting(table: pd.DataFrame, setting: str, *, x: str, title: str) -> Figure:
    """Loss after the last step over a setting that was swept, a line for each optimizer with its 95% interval.

    Args:
        table: rows of a sweep: columns `optimizer`, `mean`, `low`, `high` and the setting's.
        setting: the column that varies; numbers are placed on a logarithmic axis.
        x: what the axis says.
        title: of the figure.
    """
    figure = Figure(layout=layout(title, x, "loss"))
    figure.add_traces(_swept(table, setting))
    values = table[setting].drop_duplicates().tolist()
    figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{value:g}" for value in values])
    figure.update_yaxes(_swept_axis(table))
    return figure


def architectures(table: pd.DataFrame, trained_on: str, title: str, learned: str = "LSTM") -> Figure:
    """Loss after the last step for networks of several layers and widths (figure 6), layer by layer from left to right.

    Args:
        table: rows of a sweep: columns `hidden` ("20-20" for two layers of 20), `optimizer`, `mean`, `low`, `high`.
        trained_on: the architecture on which the learned optimizer was trained, marked by dashed lines.
        title: of the figure.
        learned: name of that optimizer.

    Raises:
        UnknownNameError: if that optimizer was not measured on that architecture.
    """
    table = table.assign(hidden=table["hidden"].astype(str))
    parsed = {hidden: tuple(map(int, hidden.split("-"))) for hidden in table["hidden"].unique()}
    order = sorted(parsed, key=lambda hidden: (len(parsed[hidden]), parsed[hidden]))
    # One place after the other, with a gap between numbers of layers.
    place = {hidden: round(index + 0.7 * len(parsed[hidden]), 2) for index, hidden in enumerate(order)}
    table = table.assign(place=table["hidden"].map(place)).sort_values("place", kind="stable")
    measured = table[table["optimizer"] == learned].set_index("hidden")["mean"]
    if trained_on not in measured:
        raise UnknownNameError(f"architecture of {learned}", trained_on, measured.index)
    figure = Figure(layout=layout(title, "units per layer", "loss", height=470))
    labels = {place[hidden]: str(units[0]) if len(set(units)) == 1 else hidden for hidden, units in parsed.items()}
    for layers, panel in table.groupby(table["hidden"].map(lambda hidden: len(parsed[hidden]))):
        figure.add_traces(_swept(panel, "place", showlegend=not figure.data))
        middle = round((panel["place"].min() + panel["place"].max()) / 2, 2)
        labels[middle] = f"{labels.get(middle, '')}<br>{layers} layer{'s' if layers > 1 else ''}"
    axis = _swept_axis(table)
    left, right = place[order[0]] - 0.5, place[order[-1]] + 0.5
    still = {"mode": "lines", "line": {"color": GREY, "dash": "dash", "width": 1.5}, "hoverinfo": "skip"}
    level = rounded([measured[trained_on]]) * 2
    figure.add_scatter(name=f"where {learned} was trained", x=[left, right], y=level, **still)
    ends = [10.0**end for end in axis["range"]]
    figure.add_scatter(x=[place[trained_on]] * 2, y=ends, showlegend=False, **still)
    figure.update_xaxes(tickvals=list(labels), ticktext=list(labels.values()), ticks="", showgrid=False)
    figure.update_xaxes(range=[left, right], minor_ticks="")
    figure.update_layout(margin_b=75)  # for two lines of labels
    figure.update_yaxes(axis)
    return figure


def over_steps(table: pd.DataFrame, column: str, *, y: str, title: str, logarithmic: bool = False) -> Figure:
    """Something that was measured along the way, a line for each optimizer.

    Args:
        table: columns `optimizer`, `step` and the one to show; `low` and `high`, where there are such, are drawn as
            error bounds. Of a sweep the rows under one protocol.
        column: what to show.
        y: what the axis says.
        title: of the figure.
        logarithmic: whether the vertical axis is.
    """
    figure = Figure(layout=layout(title, "step", y))
    groups = {str(name): rows for name, rows in under(table).groupby("optimizer", sort=False)}
    by_name = styles(groups)
    lines = {name: rounded(rows[column]) for name, rows in groups.items()}
    if {"low", "high"} <= set(table.columns):
        for name, rows in groups.items():
            bounds = rows["low"].tolist(), rows["high"].tolist()
            figure.add_trace(_band(name, rows["step"].tolist(), *bounds, by_name[name]))
    for name, rows in groups.items():
        figure.add_scatter(
            name=name, x=rows["step"].tolist(), y=lines[name], mode="lines", line=by_name[name].line, legendgroup=name
        )
    if logarithmic:
        figure.update_yaxes(loss_axis(lines.values()))
    return figure


def graph(
    curves: Mapping[str, tuple[Iterable[float] | Tensor, Iterable[float] | Tensor]],
    *,
    x: str,
    y: str,
    title: str,
    numbers: bool = False,
) -> Figure:
    """Curves of any kind over a common axis.

    Args:
        curves: by name, where and how high.
        x: what the horizontal axis says.
        y: what the vertical axis says.
        title: of the figure.
        numbers: the horizontal axis counts something, such as steps of an unroll, and is logarithmic.
    """
    figure = Figure(layout=layout(title, x, y))
    by_name = styles(curves)
    places: set[float] = set()
    for name, (at, heights) in curves.items():
        along = rounded(at)
        places.update(place for place in along if place is not None)
        marker = {"color": by_name[name].color, "size": 6}
        mode = "lines+markers" if len(along) <= FEW else "lines"
        figure.add_scatter(name=name, x=along, y=rounded(heights), mode=mode, line=by_name[name].line, marker=marker)
    if numbers:
        figure.update_xaxes(type="log", tickvals=sorted(places), ticktext=[f"{place:g}" for place in sorted(places)])
    figure.update_layout(showlegend=True)
    return figure


def filters(weights: Mapping[str, Mapping[int, Tensor]]) -> PIL.Image.Image:
    """Filters of a first convolution as coloured pictures: a row for each optimizer, a block for each moment.

    Args:
        weights: by optimizer and step, shape ``(filters, 3, height, width)``, each drawn in its own range.
    """
    blocks = {
        name: {f"step {step}": _block(filters, 4) for step, filters in moments.items()}
        for name, moments in weights.items()
    }
    return _sheet(blocks, gap=12)


def pictures(rows: Mapping[str, Mapping[str, Tensor]], *, side: int | None = None) -> PIL.Image.Image:
    """Pictures in rows and columns, with the rows' names on the left and the columns' above.

    Args:
        rows: by name, pictures by the column's name; bytes of shape ``(3, height, width)``, or without colours
            ``(height, width)``. A row may lack some.
        side: width and height to which each is scaled, its middle square; None for as it is.
    """
    import PIL.Image
    import PIL.ImageOps

    def tile(picture: Tensor) -> Any:
        array = (picture.expand(3, *picture.shape[-2:])).permute(1, 2, 0).contiguous().numpy()
        return array if side is None else np.asarray(PIL.ImageOps.fit(PIL.Image.fromarray(array), (side, side)))

    return _sheet({name: {column: tile(each) for column, each in row.items()} for name, row in rows.items()}, gap=4)


def _sheet(rows: Mapping[str, Mapping[str, Any]], gap: int) -> PIL.Image.Image:
    """Blocks of bytes ``(height, width, 3)`` of one size, by the names of their row and column, on white."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    high, wide, _ = next(block for row in rows.values() for block in row.values()).shape
    font = PIL.ImageFont.load_default(13)
    left = max(math.ceil(font.getlength(name)) for name in rows) + 12 if any(rows) else 0
    top = 24 if any(columns) else 0
    size = left + (wide + gap) * len(columns) - gap, top + (high + gap) * len(rows) - gap
    picture = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(picture)
    places = {column: left + (wide + gap) * number for number, column in enumerate(columns)}
    for column, x in places.items():
        draw.text((x, 4), column, fill="black", font=font)
    for number, (name, blocks) in enumerate(rows.items()):
        y = top + (high + gap) * number
        draw.text((4, y + high // 2 - 8), name, fill="black", font=font)
        for column, block in blocks.items():
            picture.paste(PIL.Image.fromarray(block), (places[column], y))
    return picture


def _block(filters: Tensor, across: int, zoom: int = 5, gap: int = 2) -> Any:
    """Filters side by side on white, `across` in a row, as bytes ``(height, width, 3)``."""
    low, high = (bound(filters, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    shades = (255 * (filters - low) / (high - low)).round().to(torch.uint8).cpu()
    large = shades.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    framed = torch.nn.functional.pad(large, (0, gap, 0, gap), value=255)
    rows, _, height, width = len(framed) // across, *framed.shape[1:]
    tiles = framed.view(rows, across, 3, height, width).permute(0, 3, 1, 4, 2)
    return tiles.reshape(rows * height, across * width, 3).numpy()


def matrices(rows: Mapping[str, Mapping[str, Tensor]], zoom: int = 11) -> PIL.Image.Image:
    """Square matrices as coloured pictures, blue below zero and red above: a row for each name, a column for each word.

    Args:
        rows: by name of the row and heading of the column, shape ``(n, n)``, each drawn in its own range. Headings are
            those of the first row.
        zoom: pixels of an entry.
    """
    import PIL.Image
    import PIL.ImageDraw

    pictures = {(name, head): _heat(matrix, zoom) for name, of in rows.items() for head, matrix in of.items()}
    side = max(picture.width for picture in pictures.values())
    left, top, gap = (110 if any(rows) else 2), 24, 12
    heads = list(next(iter(rows.values())))
    columns = {head: left + (side + gap) * column for column, head in enumerate(heads)}
    picture = PIL.Image.new("RGB", (left + (side + gap) * len(heads), top + (side + gap) * len(rows)), "white")
    draw = PIL.ImageDraw.Draw(picture)
    for head, x in columns.items():
        draw.text((x, 4), head, fill="black", font_size=13)
    for row, name in enumerate(rows):
        draw.multiline_text((4, top + (side + gap) * row + side // 2 - 8), name, fill="black", font_size=13)
        for head in rows[name]:
            picture.paste(pictures[name, head], (columns[head], top + (side + gap) * row))
    return picture


def _heat(matrix: Tensor, zoom: int) -> PIL.Image.Image:
    """A matrix between blue (its largest entry, negative), white (zero) and red (its largest entry)."""
    import PIL.Image

    share = (matrix / matrix.abs().max().clamp_min(1e-30)).cpu()[..., None]
    towards = torch.where(share > 0, torch.tensor(RED), torch.tensor(BLUE))
    shades = (255 + share.abs() * (towards - 255)).round().to(torch.uint8)
    large = shades.repeat_interleave(zoom, dim=0).repeat_interleave(zoom, dim=1)
    return PIL.Image.fromarray(large.numpy())


def _swept(table: pd.DataFrame, setting: str, *, showlegend: bool = True) -> list[Any]:
    """Bands and then lines of the optimizers over a setting: columns `optimizer`, `mean`, `low`, `high`."""
    groups = {str(name): rows for name, rows in under(table).groupby("optimizer", sort=False)}
    by_name = styles(groups)
    bands = [
        _band(name, rows[setting].tolist(), rows["low"], rows["high"], by_name[name]) for name, rows in groups.items()
    ]
    lines = [
        go.Scatter(
            name=name,
            x=rows[setting].tolist(),
            y=rounded(rows["mean"]),
            mode="lines+markers",
            line=by_name[name].line,
            marker={"color": by_name[name].color, "size": 7},
            legendgroup=name,
            showlegend=showlegend,
        )
        for name, rows in groups.items()
    ]
    return bands + lines


def _swept_axis(table: pd.DataFrame) -> dict[str, Any]:
    return loss_axis(rounded(rows["mean"]) for _, rows in table.groupby("optimizer"))


def landscape(trajectories: Trajectories, title: str = "The paths of the optimizers over one function") -> Figure:
    """Contours of a function of two parameters with each optimizer's path; Play and a slider walk along the steps.

    Steps are frames of the figure: moving through them needs no kernel.

    Args:
        trajectories: on a problem with two parameters.
        title: of the figure.

    Raises:
        ValueError: if the function has not two parameters.
    """
    coordinates = trajectories.best.numel()
    if coordinates != 2:
        raise ValueError(f"plots.landscape draws functions of 2 parameters; this one has {coordinates}.")
    by_name = styles(trajectories.positions)
    view = _View.around(trajectories)
    paths = {
        name: tuple(rounded(column, 4) for column in view.clip(path).T) for name, path in trajectories.positions.items()
    }
    figure = Figure(layout=layout(title, "θ₁", "θ₂", width=600, height=720))
    figure.add_traces(view.contours(trajectories))
    for name, (x, y) in paths.items():
        line = {**by_name[name].line, "dash": "solid"}  # a dashed path would look like steps
        figure.add_scatter(name=name, x=x, y=y, mode="lines", line=line)
    colors = [by_name[name].color for name in paths]
    marker = {"color": colors, "size": 11, "line": {"color": "#ffffff", "width": 1.5}}
    figure.add_scatter(**_heads(paths, trajectories.steps), mode="markers", marker=marker, showlegend=False)
    figure.frames = [_frame(paths, step) for step in range(trajectories.steps + 1)]
    figure.update_layout(
        margin_b=130, sliders=[_step_slider(trajectories.steps)], updatemenus=[_play_buttons()], hovermode="closest"
    )
    figure.update_xaxes(range=rounded(view.x, 4), showgrid=False)
    figure.update_yaxes(range=rounded(view.y, 4), showgrid=False, scaleanchor="x")
    return figure


@dataclass(frozen=True)
class _View:
    """The square of the plane that a landscape shows."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, trajectories: Trajectories) -> _View:
        """Start, best point and as much of the paths as stays near them: a diverging run must not set the scale."""
        points = torch.cat(list(trajectories.positions.values()))
        start, best = points[0], trajectories.best
        reach = 1.5 * (start - best).norm().clamp_min(1e-3)
        near = points[(points - best).norm(dim=1) <= reach]
        middle = (near.amax(dim=0) + near.amin(dim=0)) / 2
        half = 1.15 * (near.amax(dim=0) - near.amin(dim=0)).max().item() / 2
        (x, y) = middle.tolist()
        return cls((x - half, x + half), (y - half, y + half))

    def clip(self, path: Tensor) -> Tensor:
        """A path cut off where it left for good: what is far outside says nothing but costs space."""
        low, high = (torch.tensor([self.x[end], self.y[end]]) for end in (0, 1))
        span = high - low
        return torch.minimum(torch.maximum(path.nan_to_num(nan=torch.inf), low - 5 * span), high + 5 * span)

    def contours(self, trajectories: Trajectories, cells: int = 60) -> list[Any]:
        """Contour lines at log-spaced losses; a lower loss is a darker grey.

        They are lines like others and not a contour trace, which plotly loses while it plays frames.
        """
        x, y = (torch.linspace(*ends, cells) for ends in (self.x, self.y))
        losses = trajectories.losses_at(torch.cartesian_prod(y, x).flip(1)).clamp_min(1e-12).log10().view(cells, cells)
        levels = torch.linspace(torch.quantile(losses, 0.002).item(), losses.max().item(), LEVELS + 1)[:-1]
        style = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
        lines = (static.contour_line(x.numpy(), y.numpy(), losses.numpy(), level) for level in levels.tolist())
        return [
            go.Scatter(
                x=rounded(line[0], 4),
                y=rounded(line[1], 4),
                line={"color": f"rgba(128, 128, 128, {0.9 - 0.6 * height / LEVELS:.2f})", "width": 1},
                **style,
            )
            for height, line in enumerate(lines)
        ]


Paths = Mapping[str, tuple[list[float | None], ...]]


def _heads(paths: Paths, step: int) -> dict[str, Any]:
    """Where every optimizer is at one step, as one trace."""
    x, y = ([path[axis][step] for path in paths.values()] for axis in (0, 1))
    return {"x": x, "y": y, "text": list(paths), "hoverinfo": "text"}


def _frame(paths: Paths, step: int) -> Any:
    grown = [{"type": "scatter", "x": x[: step + 1], "y": y[: step + 1]} for x, y in paths.values()]
    heads = {"type": "scatter", **{axis: _heads(paths, step)[axis] for axis in "xy"}}
    moving = range(LEVELS, LEVELS + len(paths) + 1)  # the contours come first and stay
    return go.Frame(name=str(step), data=[*grown, heads], traces=list(moving))


def _step_slider(steps: int) -> dict[str, Any]:
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    return {
        "active": steps,
        "steps": [{"label": str(s), "method": "animate", "args": [[str(s)], at_once]} for s in range(steps + 1)],
        "currentvalue": {"prefix": "step "},
        "x": 0.22,
        "len": 0.78,
        "y": -0.09,
        "pad": {"t": 10},
        "bgcolor": GRID,
        "bordercolor": GREY,
        "tickcolor": GREY,
        "minorticklen": 0,
        "font": {"color": GREY, "size": 11},
    }


def _play_buttons() -> dict[str, Any]:
    play = {"fromcurrent": True, "frame": {"duration": 90, "redraw": False}, "transition": {"duration": 0}}
    stop = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    return {
        "type": "buttons",
        "direction": "left",
        "showactive": False,
        "x": 0,
        "xanchor": "left",
        "y": -0.16,
        "yanchor": "top",
        "bgcolor": "rgba(128, 128, 128, 0.15)",
        "bordercolor": GREY,
        "font": {"color": GREY},
        "buttons": [
            {"label": "Play", "method": "animate", "args": [None, play]},
            {"label": "Pause", "method": "animate", "args": [[None], stop]},
        ],
    }
