"""Figures of results, in plotly, and sheets of pictures."""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import PIL.Image
import PIL.ImageColor
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import plotly.graph_objects as go
import torch
from contourpy import LineType, contour_generator
from torch import Tensor
from torch.nn.functional import interpolate, pad

from l2l_kit import static
from l2l_kit.errors import UnknownNameError, check_names
from l2l_kit.evaluation import Curves, Statistic
from l2l_kit.evaluation.results import under
from l2l_kit.optimizers import BASELINES

Band = Literal["interval", "quantiles"]
Numbers = Iterable[float] | Tensor
Points = tuple[Numbers, Numbers]  # their places on the two axes
Values = Sequence[float | None]
Log = Literal["", "x", "y", "xy"]  # which axes are logarithmic
Settings = dict[str, Any]  # of a part of a figure, in plotly's form

GREY = "#7a7a7a"  # text: as far from white as from the dark theme's black
GRID = "rgba(128, 128, 128, 0.25)"
CLEAR = "rgba(0,0,0,0)"
LOGARITHMIC: Settings = {"type": "log", "dtick": 1}
QUIET: Settings = {"hoverinfo": "skip", "showlegend": False}  # what says nothing but is to be seen
MARK: Settings = {"mode": "lines", "line": {"color": GREY, "dash": "dash", "width": 1.5}, "hoverinfo": "skip"}
CLOSE = 0.055  # share of a logarithmic axis that the label of a tick takes
WIDE = 2  # decades over which powers of ten are ticks enough
WIDTH, HEIGHT = 720, 420
LEVELS = 12  # contour lines of a landscape
CELLS = 60  # of the grid from which they are made, along each side
BLUE, RED = (33, 102, 172), (178, 24, 43)  # negative and positive entries of matrices: no optimizer's colours
FEW = 40  # points of a line that are marked


@dataclass(frozen=True)
class Style:
    """Colour and dash of an optimizer's line. They differ together, so that readers can tell lines apart by either."""

    color: str
    dash: str = "solid"
    width: float = 2

    @property
    def line(self) -> Settings:
        """The style in plotly's form."""
        return {"color": self.color, "dash": self.dash, "width": self.width}


# Okabe and Ito's palette, which the colour-blind can tell apart; all but its yellow and black show on white and black.
STYLES: dict[str, Style] = {
    "LSTM": Style("#0072B2", width=3.5),
    "LSTM-sub": Style("#56B4E9"),
    "one LSTM": Style("#8C6D31"),
    "paper's method": Style("#0072B2", "dash"),
    "SGD": Style("#E69F00", "dot"),
    "NAG": Style("#CC79A7", "dash"),
    "RMSprop": Style("#009E73", "dashdot"),
    "Adam": Style("#D55E00", "12px,3px"),
    "decaying Adam": Style(GREY, "longdash"),
    "teacher": Style("#8878C3", "dot"),
}
# For all that is not one of these: none has the colour of a baseline.
_OTHERS = (Style("#56B4E9"), Style("#8C6D31"), Style("#8878C3"), Style("#9A9A2E"), Style("#C44E6C"), Style("#5F8A8B"))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: the optimizers in `STYLES` have their own, the others get the free colours in order."""
    names = list(names)
    taken = {STYLES[name].color for name in names if name in STYLES}
    free = itertools.cycle([style for style in _OTHERS if style.color not in taken] or _OTHERS)
    return {name: STYLES[name] if name in STYLES else next(free) for name in names}


class Figure(go.Figure):  # type: ignore[misc]  # plotly has no types
    """A plotly figure that shows itself in JupyterLab, on GitHub (a picture) and in a terminal (a word).

    The picture is a JPEG: if a PNG comes with a figure, plotly's renderer shows that until the pointer touches it.
    """

    # IPython asks for these before the bundle, and plotly's answers load a script from the network.
    _ipython_display_ = None
    _repr_html_ = None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None, **_: object) -> Settings:
        figure = json.loads(self.to_json())
        if figure["layout"].get("width") == WIDTH:
            del figure["layout"]["width"]  # JupyterLab makes it as wide as the page
        return {
            "application/vnd.plotly.v1+json": {**figure, "config": {"displaylogo": False}},
            "image/jpeg": base64.b64encode(static.jpeg(self)).decode(),
            "text/plain": "Figure",
        }


def layout(
    title: str | None = None,
    x: str = "",
    y: str = "",
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
    xaxis: Settings | None = None,
    yaxis: Settings | None = None,
    **more: Any,
) -> Settings:
    """What all figures share, and more in plotly's form.

    They have no background, so that they fit light and dark pages; `x` and `y` label the axes.
    """
    lines: Settings = {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "showline": True}
    minor = {"ticks": "outside", "ticklen": 3, "tickcolor": GRID}
    corner = {"x": 0.02, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 12}, "font": {"size": 15}}
    # From the title downwards: the axes make room for as many rows as it has at the width of the page.
    below = 1 - (36 + 14 * title.count("<br>") if title else 5) / height

    def axis(label: str, own: Settings) -> Settings:
        return {**lines, "exponentformat": "power", "title": label, **own, "minor": {**minor, **own.get("minor", {})}}

    return {
        "template": "none",
        "title": {"text": title, **corner},
        "width": width,
        "height": height,
        "margin": {"l": 65, "r": 20, "t": 45 if title else 15, "b": 50},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"color": GREY, "size": 13},
        "legend": {"orientation": "h", "x": 0, "yref": "container", "y": below, "yanchor": "top"},
        "modebar": {"bgcolor": CLEAR, "color": GREY, "activecolor": STYLES["LSTM"].color},
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"color": "#333333"}},
        "xaxis": axis(x, xaxis or {}),
        "yaxis": axis(y, yaxis or {}),
        **more,
    }


def rounded(values: Numbers, digits: int = 5) -> list[float | None]:
    """Numbers short enough for a notebook; None, which leaves a gap, where a run diverged."""
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in numbers]


def loss_axis(curves: Iterable[Values]) -> Settings:
    """A logarithmic loss axis for these curves: range and ticks, in plotly's form.

    The range ends at half decades, or eighths where the losses are close, so that it stays put while a slider moves
    the curves a little. It ends ten times above the highest first loss, so that a diverging run does not flatten the
    others.
    """
    positive = [[value for value in curve if value is not None and value > 0] for curve in curves]
    positive = [curve for curve in positive if curve]
    low, high = -1.0, 1.0
    if positive:
        top = math.log10(min(max(map(max, positive)), 10 * max(curve[0] for curve in positive)))
        bottom = math.log10(min(map(min, positive)))
        parts = 2 if top - bottom > WIDE else 8
        low, high = math.floor(parts * bottom) / parts, math.ceil(parts * top) / parts
        low, high = min(low, high - 0.25), high + 0.02  # a quarter of a decade at least, so that it shows two ticks
    return log_axis(low, high)


def log_axis(low: float, high: float) -> Settings:
    """A logarithmic axis between two powers of ten. Where it is narrow, ticks between powers of ten are labelled."""
    if high - low > WIDE:
        return {**LOGARITHMIC, "range": [low, high], "tickvals": None, "ticktext": None, "minor": {"ticks": "outside"}}
    span = high - low
    digits: tuple[float, ...] = (1, 2, 5) if span > 1.2 else (1, 1.5, 2, 3, 5, 7)
    if span < 0.5:
        digits = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
    ticks = [float(f"{digit}e{power}") for power in range(math.floor(low), math.ceil(high)) for digit in digits]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    labels = [f"{tick:g}" for tick in ticks]
    return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": labels, "minor": {"ticks": ""}}


class Curve(NamedTuple):
    """A line, and the band around it where its bounds are known."""

    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None


def _traces(curves: Mapping[str, Curve], markers: int) -> list[go.Scatter]:
    """Bands, and above them a line for each name; arguments as for `graph`."""
    by_name = styles(curves)
    bands, lines = [], []
    for name, curve in curves.items():
        style, x = by_name[name], rounded(curve.x)
        line = go.Scatter(name=name, x=x, y=rounded(curve.y), mode="lines", line=style.line)
        if markers:
            line.marker = {"color": style.color, "size": markers}
            line.mode = "lines+markers" if len(x) <= FEW else "lines"
        if curve.low is not None and curve.high is not None:
            line.legendgroup = name
            bands.append(_band(name, x, rounded(curve.low), rounded(curve.high), style))
        lines.append(line)
    return bands + lines


def _band(name: str, x: Values, low: Values, high: Values, style: Style) -> go.Scatter:
    """The area between two lines, as one outline; points that a logarithmic axis cannot show are left out."""
    points = pd.DataFrame({"x": x, "low": low, "high": high}).dropna().query("low > 0")
    x, y = [*points["x"], *points["x"][::-1]], [*points["low"], *points["high"][::-1]]
    color = f"rgba{(*PIL.ImageColor.getrgb(style.color), 0.18)}"
    area = {"fill": "toself", "fillcolor": color, "mode": "lines", "line": {"width": 0, "color": style.color}}
    return go.Scatter(name=f"{name}, band", x=x, y=y, legendgroup=name, **area, **QUIET)


def graph(
    curves: Mapping[str, Points | Curve], *, x: str, y: str, title: str, log: Log = "", markers: int = 6
) -> Figure:
    """Curves of any kind, by name, over a common axis; `x` and `y` label the axes.

    Args:
        log: the logarithmic axes. A horizontal one has a tick at every point.
        markers: diameter of the points in pixels, where they are few; 0 for none.
    """
    figure = Figure(_traces({name: Curve(*curve) for name, curve in curves.items()}, markers), layout(title, x, y))
    lines = [trace for trace in figure.data if trace.fill is None]
    if len(lines) == len(figure.data):
        figure.update_layout(showlegend=True)  # plotly shows none for a single trace
    if "x" in log:
        ticks = sorted({at for line in lines for at in line.x if at is not None and at > 0})
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=_apart(ticks), minor_ticks="")
    if "y" in log:
        figure.update_yaxes(_loss_axis(figure))
    return figure


def _apart(ticks: Sequence[float]) -> list[str]:
    """Labels for ticks of a logarithmic axis, ascending; empty where there is no room beside the next one."""
    labels, last = list[str](), math.inf
    room = CLOSE * math.log(ticks[-1] / ticks[0]) if ticks else 0
    for tick in reversed(ticks):
        fits = math.log(last / tick) >= room
        labels.insert(0, f"{tick:g}" if fits else "")
        last = tick if fits else last
    return labels


def _loss_axis(figure: Figure) -> Settings:
    """The loss axis of a figure: it holds all lines, and their bands to a third of the lowest loss."""
    lines, bands = ([trace.y for trace in figure.data if bool(trace.fill) == area] for area in (False, True))
    lowest = min((loss for line in lines for loss in line if loss is not None and loss > 0), default=1.0)
    return loss_axis([*lines, *([max(bound, lowest / 3) for bound in band] for band in bands)])


def losses(lines: Mapping[str, Values], steps: int, title: str, in_range: Sequence[Values] = ()) -> Figure:
    """Losses by step of optimizers by name; the axis holds them and what must be in range anyway."""
    data: list[Settings] = []
    for name, style in styles(lines).items():
        y = rounded(math.inf if loss is None else loss for loss in lines[name])
        data.append({"name": name, "x": list(range(len(y))), "y": y, "mode": "lines", "line": style.line})
    axes: Settings = {"xaxis": {"range": [0, steps]}, "yaxis": loss_axis([*(each["y"] for each in data), *in_range])}
    return Figure(data, layout(title, "step", "loss", showlegend=True, **axes))


def lines(
    table: pd.DataFrame,
    over: str,
    column: str = "mean",
    *,
    title: str,
    x: str | None = None,
    y: str = "loss",
    by: str = "optimizer",
    log: Log = "",
) -> Figure:
    """One column of a table over another, a line for each optimizer; the rest as in `graph`.

    Args:
        table: columns `low` and `high`, if there are such, bound a band. Of a sweep, the rows under one protocol.
        over: the column that varies along a line, such as "step".
        column: what to show.
        by: the column that tells the lines apart.

    Raises:
        ValueError: if the rows are under several protocols.
    """
    curves = _by(under(table), by, over, column)
    if by != "optimizer":
        curves = {f"{by}: {name}": curve for name, curve in curves.items()}
    figure = graph(curves, x=x or over, y=y, title=title, log=log, markers=7 if "x" in log else 0)
    if by != "optimizer":  # no LSTM among them is to stand out
        figure.update_traces(line_width=3, marker_size=8, selector={"mode": "lines+markers"})
    return figure


def _by(table: pd.DataFrame, by: str, over: str, column: str) -> dict[str, Curve]:
    """The rows of a table as a curve for each name in a column."""
    return {
        str(name): Curve(rows[over], rows[column], rows.get("low"), rows.get("high"))
        for name, rows in table.groupby(by, sort=False)
    }


def learning_curves(
    curves: Curves, statistic: Statistic = "mean", band: Band | None = "interval", title: str | None = None
) -> Figure:
    """Loss over steps, a line for each optimizer.

    The band is the statistic's 95% confidence interval, or with "quantiles" the middle half of the tasks. The axis is
    logarithmic: losses that are not positive are not shown.
    """
    check_names("band", [] if band is None else [band], get_args(Band))
    drawn = {}
    for name in curves.losses:
        low, high = None, None
        if band == "interval":
            _, low, high = curves.interval(name, statistic)
        elif band == "quantiles":
            low, high = curves.quantiles(name, (0.25, 0.75))
        drawn[name] = Curve(range(curves.steps + 1), curves.statistic(name, statistic), low, high)
    title = title or f"{statistic.capitalize()} loss over {curves.num_tasks} functions"
    return graph(drawn, x="step", y=f"{statistic} loss", title=title, log="y", markers=0)


def tuning(table: pd.DataFrame) -> Figure:
    """Mean final loss over learning rate, a line for each baseline of a recorded tuning, a star at its best one.

    Where the table has several numbers of steps, these are the losses after the last.
    """
    final = table[table["step"] == table["step"].max()]
    curves = {BASELINES.get(name, name): curve for name, curve in _by(final, "baseline", "lr", "mean").items()}
    title = "Mean final loss by learning rate"
    figure = graph(curves, x="learning rate", y="loss", title=title, log="y", markers=0)
    for line in figure.data:
        line.legendgroup = line.name
        measured = [(loss, rate) for loss, rate in zip(line.y, line.x, strict=True) if loss is not None]
        if measured:
            loss, rate = min(measured)
            star = {"color": line.line.color, "size": 11, "symbol": "star"}
            name, hidden = f"{line.name}, best: {rate:g}", {"legendgroup": line.name, "showlegend": False}
            figure.add_scatter(name=name, x=[rate], y=[loss], mode="markers", marker=star, **hidden)
    figure.update_xaxes(LOGARITHMIC)
    return figure


def validation(histories: Mapping[str, pd.DataFrame], title: str = "Validation loss in meta-training") -> Figure:
    """Validation loss over epochs, a line for each run; tables are those of `History.to_frame`, or as recorded."""
    curves = {name: (run.get("epoch", run.index), run["validation_loss"]) for name, run in histories.items()}
    figure = graph(curves, x="epoch", y="validation loss", title=title, markers=0)
    # The loss of epoch 0 does not set the scale: untrained weights may do anything.
    figure.update_yaxes(loss_axis(line.y[1:] for line in figure.data))
    return figure


def search(table: pd.DataFrame, setting: str, title: str) -> Figure:
    """Validation loss of the trials of `random_search` over one of the settings that were drawn.

    Pruned trials are drawn apart, and those that diverged are left out.
    """
    pruned = table["pruned_after"].notna() if "pruned_after" in table else table["trial"] < 0
    kinds = {"finished": table[~pruned], "pruned, loss when it was": table[pruned]}
    points = {name: (rows[setting], rows["validation_loss"]) for name, rows in kinds.items() if len(rows)}
    figure = graph(points, x=setting.replace("_", "-"), y="validation loss", title=title, markers=9)
    figure.update_traces(mode="markers").update_traces(marker_symbol="x", selector={"name": list(kinds)[1]})
    if (table[setting] > 0).all() and table[setting].max() > 3 * table[setting].min():
        figure.update_xaxes(LOGARITHMIC)
    figure.update_yaxes(loss_axis([rounded(table["validation_loss"].sort_values(ascending=False))]))
    return figure


def architectures(table: pd.DataFrame, trained_on: str, title: str) -> Figure:
    """Loss after the last step for networks of several layers and widths (figure 6), layer by layer from left to right.

    Args:
        table: rows of a sweep: columns `hidden` ("20-20" for two layers of 20), `optimizer`, `mean`, `low`, `high`.
        trained_on: the architecture on which the LSTM was trained, marked by dashed lines.

    Raises:
        UnknownNameError: if the LSTM was not measured on that architecture.
    """
    table = under(table.assign(hidden=table["hidden"].astype(str)))
    units = {hidden: tuple(map(int, hidden.split("-"))) for hidden in table["hidden"].unique()}
    order = sorted(units, key=lambda hidden: (len(units[hidden]), units[hidden]))
    # One place after the other, with a gap between numbers of layers.
    place = {hidden: round(index + 0.7 * len(units[hidden]), 2) for index, hidden in enumerate(order)}
    table = table.assign(place=table["hidden"].map(place)).sort_values("place", kind="stable")
    learned = table[table["optimizer"] == "LSTM"].set_index("hidden")["mean"]
    if trained_on not in learned:
        raise UnknownNameError("architecture of LSTM", trained_on, learned.index)
    figure = Figure(layout=layout(title, "units per layer", "loss", height=470))
    labels = {place[hidden]: str(each[0]) if len(set(each)) == 1 else hidden for hidden, each in units.items()}
    for layers, panel in table.groupby(table["hidden"].map(lambda hidden: len(units[hidden]))):
        traces = _traces(_by(panel, "optimizer", "place", "mean"), markers=7)
        for trace in traces:
            trace.showlegend = trace.fill is None and not figure.data  # one panel's lines are enough
        figure.add_traces(traces)
        middle = round((panel["place"].min() + panel["place"].max()) / 2, 2)
        labels[middle] = f"{labels.get(middle, '')}<br>{layers} layer{'s' if layers > 1 else ''}"
    figure.update_yaxes(_loss_axis(figure))
    ends = [place[order[0]] - 0.5, place[order[-1]] + 0.5]
    figure.add_scatter(name="where LSTM was trained", x=ends, y=rounded([learned[trained_on]] * 2), **MARK)
    height = [10.0**end for end in figure.layout.yaxis.range]
    figure.add_scatter(x=[place[trained_on]] * 2, y=height, showlegend=False, **MARK)
    figure.update_xaxes(tickvals=list(labels), ticktext=list(labels.values()), ticks="", minor_ticks="")
    figure.update_xaxes(range=ends, showgrid=False)
    figure.update_layout(margin_b=75)  # for two lines of labels
    return figure


def landscape(
    function: Callable[[Tensor], Tensor], paths: Mapping[str, Tensor], step: int, edge: float, title: str
) -> Figure:
    """Contours of a function of two parameters, and the path of each optimizer.

    Args:
        function: losses ``(n,)`` at points ``(n, 2)``.
        paths: by optimizer θ(0), θ(1), …, shape ``(steps + 1, 2)``.
        step: up to which the paths are drawn.
        edge: where the figure ends on all four sides.
    """
    by_name = styles(paths)
    data, heads = _contours(function, edge), []
    for name, path in paths.items():
        # A run that leaves for good is cut off: what is far outside shows nothing but takes space.
        near = path[: step + 1].nan_to_num(nan=math.inf).clamp(-11 * edge, 11 * edge)
        x, y = (rounded(column, 4) for column in near.T)
        heads.append((x[-1], y[-1]))
        line = {**by_name[name].line, "dash": "solid"}  # a dashed path would look like steps
        data.append({"name": name, "x": x, "y": y, "mode": "lines", "line": line})
    colors = [by_name[name].color for name in paths]
    marker = {"color": colors, "size": 11, "line": {"color": "#ffffff", "width": 1.5}}
    ends_x, ends_y = zip(*heads, strict=True)
    named = {"text": list(paths), "hoverinfo": "text", "showlegend": False}
    data.append({"x": ends_x, "y": ends_y, "mode": "markers", "marker": marker, **named})
    axis = {"range": [-edge, edge], "showgrid": False, "constrain": "domain"}
    axes: Settings = {"xaxis": axis, "yaxis": {**axis, "scaleanchor": "x"}}
    return Figure(data, layout(title, "θ₁", "θ₂", width=600, height=600, hovermode="closest", showlegend=True, **axes))


def _contours(function: Callable[[Tensor], Tensor], edge: float) -> list[Settings]:
    """Contour lines at log-spaced losses; a lower loss is a darker grey. Lines can also be drawn as a picture."""
    line = torch.linspace(-edge, edge, CELLS)
    losses = function(torch.cartesian_prod(line, line).flip(1)).clamp_min(1e-12).log10().view(CELLS, CELLS)
    levels = torch.linspace(torch.quantile(losses, 0.002).item(), losses.max().item(), LEVELS + 1)[:-1]
    generator = contour_generator(line.numpy(), line.numpy(), losses.numpy(), line_type=LineType.ChunkCombinedNan)
    traces = []
    for height, level in enumerate(levels.tolist()):
        points = generator.lines(level)[0][0]  # of the only chunk; pieces of the line are parted by NaN
        across, up = ([], []) if points is None else points.T
        style = {"color": f"rgba(128, 128, 128, {0.9 - 0.6 * height / LEVELS:.2f})", "width": 1}
        traces.append({"x": rounded(across, 4), "y": rounded(up, 4), "mode": "lines", "line": style, **QUIET})
    return traces


def pictures(rows: Mapping[str, Mapping[str, Tensor]], *, side: int | None = None, gap: int = 4) -> PIL.Image.Image:
    """Pictures in rows and columns on nothing, with the rows' names on the left and the columns' above.

    Args:
        rows: by name of the row and of the column, bytes of shape ``(3, height, width)``, or ``(height, width)`` for
            greys. All have one size. A row may lack some columns, whose order is that of the longest row.
        side: width and height to which the middle square of each is scaled; None for pictures as they are.
    """
    columns = list(dict.fromkeys(column for row in sorted(rows.values(), key=len, reverse=True) for column in row))
    high, wide = (side, side) if side else next(each for row in rows.values() for each in row.values()).shape[-2:]
    font = PIL.ImageFont.load_default(13)
    names = [line for name in rows for line in name.splitlines()]
    left = max(math.ceil(font.getlength(name)) for name in names) + 12 if names else 0
    top = 24 if any(columns) else 0
    size = left + (wide + gap) * len(columns) - gap, top + (high + gap) * len(rows) - gap
    sheet = PIL.Image.new("RGBA", size, (255, 255, 255, 0))  # white where a format knows no transparency
    draw = PIL.ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        draw.text((left + (wide + gap) * number, 4), column, fill=static.INK, font=font)
    for number, (name, row) in enumerate(rows.items()):
        y = top + (high + gap) * number
        draw.text((4, y + high // 2 - 8), name, fill=static.INK, font=font)
        for column, picture in row.items():
            pixels = picture.expand(3, *picture.shape[-2:]).permute(1, 2, 0).contiguous()
            tile = PIL.Image.fromarray(pixels.numpy())
            tile = PIL.ImageOps.fit(tile, (side, side)) if side else tile
            sheet.paste(tile, (left + (wide + gap) * columns.index(column), y))
    return sheet


def filters(weights: Mapping[str, Mapping[int, Tensor]]) -> PIL.Image.Image:
    """Filters ``(filters, 3, height, width)`` by optimizer and step as pictures, each drawn in its own range."""

    def block(filters: Tensor, across: int = 4) -> Tensor:
        low, high = (bound(filters, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
        shades = (255 * (filters - low) / (high - low)).round().to(torch.uint8).cpu()
        framed = pad(interpolate(shades, scale_factor=5), (0, 2, 0, 2), value=255)
        return torch.cat([torch.cat([*row], dim=2) for row in torch.split(framed, across)], dim=1)

    rows = {name: {f"step {step}": block(each) for step, each in moments.items()} for name, moments in weights.items()}
    return pictures(rows, gap=12)


def matrices(rows: Mapping[str, Mapping[str, Tensor]], zoom: int = 11) -> PIL.Image.Image:
    """Square matrices by name of row and column: blue below zero, red above, each in its own range.

    An entry is `zoom` pixels wide.
    """

    def heat(matrix: Tensor) -> Tensor:
        share = (matrix / matrix.abs().max().clamp_min(1e-30)).cpu()
        red, blue = (torch.tensor(color)[:, None, None] for color in (RED, BLUE))
        shades = (255 + share.abs() * (torch.where(share > 0, red, blue) - 255)).round().to(torch.uint8)
        return interpolate(shades[None], scale_factor=zoom)[0]

    return pictures({name: {column: heat(each) for column, each in row.items()} for name, row in rows.items()}, gap=12)
