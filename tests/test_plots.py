"""Figures: what they show, of what, on which axes; and their pictures."""

import base64
import io
import itertools
import json
import math

import numpy as np
import pandas as pd
import PIL.Image
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l2l_kit import baseline, compare, plots, static
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import EACH_STEP, ONE_RATE, under
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Quadratics

BASELINES = {
    "SGD": baseline("sgd", 0.01),
    "NAG": baseline("nag", 0.01),
    "RMSprop": baseline("rmsprop", 0.05),
    "Adam": baseline("adam", 0.3),
}
NAMES = ["LSTM", *BASELINES]
PATHS = {
    "LSTM": torch.tensor([[2.0, 1.0], [1.0, 0.5], [-0.5, 0.0]]),
    "SGD": torch.tensor([[2.0, 1.0], [-9.0, 1e9], [math.nan] * 2]),
}
ARCHITECTURES = ["5", "20", "50", "5-5", "20-20", "50-50", "20-10-5"]

TRIALS = pd.DataFrame(
    {
        "trial": range(4),
        "meta_lr": [1e-3, 1e-2, 3e-2, 1e-1],
        "validation_loss": [0.2, 0.3, math.inf, 0.5],
        "pruned_after": [math.nan, math.nan, math.nan, 2],
    }
)


def valley(points):
    return points[:, 0].square() + 20 * points[:, 1].square()


def swept(setting, values):
    """Rows of a sweep in which each optimizer has losses of its own, between 0.2 and 2.4."""
    losses = iter(np.linspace(0.2, 2.2, 5 * len(values)))
    rows = [(value, name, next(losses)) for value in values for name in NAMES]
    table = pd.DataFrame(rows, columns=[setting, "optimizer", "mean"])
    return table.assign(low=0.9 * table["mean"], high=1.1 * table["mean"])


@pytest.fixture(scope="module")
def curves():
    return compare({"LSTM": LSTMRule(), **BASELINES}, Quadratics(4), steps=20, num_tasks=16, device="cpu")


@pytest.fixture(scope="module")
def figures(curves):
    baselines = ("sgd", "nag", "rmsprop", "adam")
    rates = pd.DataFrame([(lr, 1 + abs(np.log10(lr) + 2), each) for each in baselines for lr in (1e-3, 1e-2, 1e-1)])
    rates.columns = ["lr", "mean", "baseline"]
    shorter = rates.assign(step=50, mean=rates["mean"] / 2)  # losses that are not those after the last step
    rates = pd.concat([shorter, rates.assign(step=100)])
    lengths = swept("unroll", [1, 20, 100]).rename(columns={"optimizer": "preprocessing"})
    history = pd.DataFrame({"validation_loss": [1e4, 1.0, 0.5, math.nan]}, index=pd.Index(range(4), name="epoch"))
    along = pd.DataFrame([(name, at, 2.3 / (at + 1), 1 - 0.9 / (at + 1)) for name in NAMES for at in (0, 1, 5)])
    along.columns = ["optimizer", "step", "loss", "accuracy"]
    two = {"first": ([1, 20, 100], [0.1, math.nan, 0.9]), "second": (torch.tensor([1.0, 5.0]), torch.ones(2))}
    return {
        "settings": plots.lines(swept("init_scale", [0.01, 0.1, 1]), "init_scale", x="scale", title="Scales", log="xy"),
        "architectures": plots.architectures(swept("hidden", ARCHITECTURES), "20", "Architectures"),
        "accuracy": plots.lines(along, "step", "accuracy", y="accuracy", title="Accuracy"),
        "loss held out": plots.lines(along, "step", "loss", title="Loss", log="y"),
        "graph": plots.graph(two, x="unroll", y="cosine", title="A graph", log="x"),
        "learning curves": plots.learning_curves(curves),
        "quantiles": plots.learning_curves(curves, "median", "quantiles", title="A title"),
        "no band": plots.learning_curves(curves, band=None),
        "tuning": plots.tuning(rates),
        "validation": plots.validation({"unroll 20": history, "unroll 5": history.reset_index()}),
        "unroll": plots.lines(lengths, "unroll", by="preprocessing", title="Unroll lengths", log="xy"),
        "landscape": plots.landscape(valley, PATHS, 2, 3.0, "A landscape"),
        "search": plots.search(TRIALS, "meta_lr", "Trials"),
    }


FIGURES = ["learning curves", "quantiles", "no band", "tuning", "validation", "unroll", "landscape"]
FIGURES += ["graph", "settings", "architectures", "accuracy", "loss held out", "search"]


def test_pruned_trials_of_a_search_are_apart_and_those_that_diverged_are_left_out(figures):
    finished, pruned = figures["search"].data
    assert (finished.x, finished.y) == ((1e-3, 1e-2, 3e-2), (0.2, 0.3, None))
    assert (pruned.x, pruned.y, pruned.marker.symbol) == ((1e-1,), (0.5,), "x")
    assert figures["search"].layout.xaxis.type == "log"
    (alone,) = plots.search(TRIALS.drop(columns="pruned_after"), "meta_lr", "Trials").data
    assert len(alone.x) == 4


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_itself_in_three_ways(figures, name):
    """And in no other: plotly's own would load a script from the network."""
    figure = figures[name]
    bundle, _ = pytest.importorskip("IPython.core.formatters").DisplayFormatter().format(figure)
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/jpeg", "text/plain"}
    json.dumps(bundle, allow_nan=False)
    picture = base64.b64decode(bundle["image/jpeg"])  # with a PNG, Lab would show that instead of the live figure
    assert picture == static.jpeg(figure)
    size = PIL.Image.open(io.BytesIO(picture)).size
    assert size == PIL.Image.open(io.BytesIO(static.png(figure))).size == (figure.layout.width, figure.layout.height)
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"


def lines_of(figure):
    return [trace for trace in figure.data if trace.mode.startswith("lines") and trace.fill is None]


def test_optimizers_keep_their_colours(figures):
    for name in ("learning curves", "tuning", "settings", "architectures", "accuracy"):
        shown = [line for line in lines_of(figures[name]) if line.name in plots.STYLES]
        assert len(shown) >= 4
        assert all(line.line.color == plots.STYLES[line.name].color for line in shown)
    for style in plots.STYLES.values():  # GitHub's pictures know plotly's dashes only if they are told of them
        static.png(go.Figure(go.Scatter(x=[0, 1], y=[1, 2], mode="lines", line=style.line)))
    styles = plots.styles(["Adam", "one", "two"])
    assert styles["Adam"] == plots.STYLES["Adam"]
    assert len({style.color for style in styles.values()}) == 3


def test_a_graph_has_ticks_where_its_curves_have_points(figures):
    assert figures["graph"].layout.xaxis.tickvals == (1, 5, 20, 100)
    assert figures["graph"].data[0].y == (0.1, None, 0.9)


def test_learning_curves_show_the_statistic(curves, figures):
    (line,) = [trace for trace in figures["quantiles"].data if trace.name == "Adam"]
    np.testing.assert_allclose(line.y, curves.statistic("Adam", "median"), rtol=1e-4)
    assert figures["quantiles"].layout.title.text == "A title"
    assert len(figures["no band"].data) == 5


def test_the_best_learning_rate_is_marked_and_epoch_0_does_not_set_the_scale(figures):
    marks = [trace for trace in figures["tuning"].data if trace.mode == "markers"]
    assert [(mark.name, mark.y) for mark in marks] == [(f"{name}, best: 0.01", (1,)) for name in BASELINES]
    assert figures["validation"].layout.yaxis.range[1] < 1


def test_settings_show_the_rows_and_their_intervals(figures):
    figure, table = figures["settings"], swept("init_scale", [0.01, 0.1, 1])
    assert [line.name for line in lines_of(figure)] == NAMES
    for line in lines_of(figure):
        rows = table[table["optimizer"] == line.name]
        (band,) = [trace for trace in figure.data if trace.name == f"{line.name}, band"]
        assert list(line.x) == [0.01, 0.1, 1]
        np.testing.assert_allclose(line.y, rows["mean"], rtol=1e-4)
        np.testing.assert_allclose(band.y, [*rows["low"], *rows["high"][::-1]], rtol=1e-4)
    axis = figure.layout.xaxis
    assert (axis.type, axis.title.text, axis.ticktext) == ("log", "scale", ("0.01", "0.1", "1"))


def test_an_unknown_band_is_refused(curves):
    with pytest.raises(ValueError, match=r"unknown band 'quantile'. Did you mean 'quantiles'"):
        plots.learning_curves(curves, "mean", "quantile")


def test_a_band_leaves_out_what_a_logarithmic_axis_cannot_show():
    table = swept("step", [0, 1, 2, 3]).assign(low=lambda rows: rows["low"].where(rows["step"] != 1, -1.0))
    table["high"] = table["high"].where(table["step"] != 2, math.inf)
    assert plots.lines(table, "step", title="").data[0].x == (0, 3, 3, 0)


def test_architectures_stand_in_groups_by_layers(figures):
    """In whatever order the sweep went: by number of layers, then by width."""
    table = swept("hidden", ARCHITECTURES).sample(frac=1, random_state=0)
    figure = plots.architectures(table, "20", "Architectures")
    lines = [line for line in lines_of(figure) if line.name in NAMES]
    assert len(lines) == 3 * 5
    assert [line.name for line in lines if line.showlegend] == [line.name for line in lines[:5]]
    shown = {name: [line for line in lines if line.name == name] for name in NAMES}
    for name, (one, two, three) in shown.items():
        rows = table[table["optimizer"] == name].set_index("hidden")["mean"]
        np.testing.assert_allclose([*one.y, *two.y, *three.y], rows[ARCHITECTURES], rtol=1e-4)
        assert np.diff([*one.x, *two.x, *three.x]) == pytest.approx([1, 1, 1.7, 1, 1, 1.7])
    labels = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    assert [labels[place] for line in shown["LSTM"] for place in line.x] == [
        "5", "20<br>1 layer", "50", "5", "20<br>2 layers", "50", "20-10-5<br>3 layers",
    ]  # fmt: skip


def test_architectures_of_one_layer_and_where_the_lstm_was_trained():
    """A file's reader takes them for numbers; the middle of an even number is between two."""
    words, numbers = (plots.architectures(swept("hidden", hidden), "20", "") for hidden in (["5", "20"], [5, 20]))
    assert words == numbers
    axis = words.layout.xaxis
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True)) == {0.7: "5", 1.7: "20", 1.2: "<br>1 layer"}
    across, up = words.data[-2:]
    losses = swept("hidden", ["5", "20"]).set_index(["hidden", "optimizer"])["mean"]
    assert across.y == pytest.approx([losses["20", "LSTM"]] * 2, rel=1e-4)
    assert set(up.x) == {1.7}
    with pytest.raises(UnknownNameError, match="unknown architecture of LSTM"):
        plots.architectures(swept("hidden", ARCHITECTURES), "7", "")


def test_a_sweep_under_two_protocols_is_not_drawn_as_one():
    table = pd.concat([swept("step", [10, 20]).assign(protocol=protocol) for protocol in (ONE_RATE, EACH_STEP)])
    assert len(plots.lines(under(table, ONE_RATE), "step", title="").data) == 10
    for draw in (
        lambda: plots.lines(table, "step", title=""),
        lambda: plots.architectures(table.assign(hidden="5"), "5", ""),
    ):
        with pytest.raises(ValueError, match="several protocols"):
            draw()


def test_a_diverged_run_leaves_a_gap_and_does_not_set_the_scale():
    curves = compare(
        {"SGD": baseline("sgd", 10.0), "Adam": baseline("adam", 0.1)},
        Quadratics(4),
        steps=60,
        num_tasks=4,
        device="cpu",
    )
    figure = plots.learning_curves(curves)
    assert None in figure.data[-2].y
    assert figure.layout.yaxis.range[1] < curves["SGD"][:, 0].mean().log10() + 1.6
    static.png(figure)


positive = st.floats(1e-9, 1e9)
several = st.lists(st.lists(st.none() | positive, min_size=1, max_size=5), max_size=4)
decades = st.lists(st.floats(0, 2.5), min_size=1, max_size=5)
close = st.builds(lambda low, decades: [[low * 10**more for more in decades]], positive, decades)


@given(several | close)
@settings(deadline=None)
@example([[5.0, 0.17]])  # more than a decade and a half, and but one power of ten
def test_a_loss_axis_has_ticks_that_can_be_read(lines):
    axis = plots.loss_axis(lines)
    low, high = axis["range"]
    assert high - low >= 0.25
    shown = [value for line in lines for value in line if value is not None]
    if shown:
        first = max(next(value for value in line if value is not None) for line in lines if any(line))
        assert math.log10(min(shown)) >= low - 1e-9
        assert math.log10(min(max(shown), 10 * first)) <= high
        assert low >= math.log10(min(shown)) - 1  # and little room is wasted
    if axis["tickvals"] is None:
        assert sum(low <= power <= high for power in range(-12, 13)) >= 2  # powers of ten are labelled
        return
    places = np.log10(axis["tickvals"])
    assert [float(label) for label in axis["ticktext"]] == pytest.approx(axis["tickvals"], rel=1e-9)
    assert 2 <= len(places) <= 9
    assert low <= places.min() <= places.max() <= high
    assert (np.diff(places) > 0.05 * (high - low)).all()  # a label is a twentieth of a figure high
    assert np.diff([low, *places, high]).max() <= max(0.25, 0.45 * (high - low))
    assert max(map(len, axis["ticktext"])) <= 7


def test_ticks_of_a_narrow_axis_go_when_it_is_wide():
    """An axis is updated while a widget's curves change: what one kind sets the other must set as well."""
    narrow, wide = plots.loss_axis([[2.4, 0.25]]), plots.loss_axis([[100.0, 1e-3]])
    assert narrow["ticktext"] == ["0.3", "0.5", "0.7", "1", "1.5", "2", "3"]
    axis = go.Figure().update_yaxes(narrow).update_yaxes(wide).layout.yaxis
    assert (axis.tickvals, axis.dtick, axis.minor.ticks) == (None, 1, "outside")


def test_a_landscape_shows_the_paths_up_to_a_step_over_contours_of_equal_losses(figures):
    """However far a run goes, the figure ends where it was asked to."""
    figure = figures["landscape"]
    *lines, heads = figure.data[plots.LEVELS :]
    assert [line.name for line in lines] == list(PATHS)
    assert (lines[0].x, lines[0].y) == ((2, 1, -0.5), (1, 0.5, 0))
    assert heads.x[0] == -0.5
    assert figure.layout.xaxis.range == figure.layout.yaxis.range == (-3, 3)
    assert len(plots.landscape(valley, PATHS, 1, 3.0, "").data[plots.LEVELS].x) == 2
    for contour in figure.data[4 : plots.LEVELS]:  # at the bottom the grid is too coarse to say
        points = [point for point in zip(contour.x, contour.y, strict=True) if None not in point]
        losses = valley(torch.tensor(points)).log10()
        assert losses.max() - losses.min() < 0.1


def axes_of(figure):
    """What `static` draws, laid out, as matplotlib's axes."""
    picture = static.draw(figure)
    picture.draw_without_rendering()
    return picture.axes[0]


@pytest.mark.parametrize("name", ["learning curves", "settings", "architectures", "accuracy", "loss held out"])
def test_the_picture_shows_all_of_a_figure_and_its_labels_do_not_overlap(figures, name):
    figure, axes = figures[name], axes_of(figures[name])
    assert len(axes.lines) == len(lines_of(figure))
    assert len(axes.patches) == sum(trace.fill == "toself" for trace in figure.data)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for line in axes.lines:
        x, y = line.get_xdata(), line.get_ydata()
        assert ((left <= x) & (x <= right) & (bottom <= 1.0001 * y) & (y <= 1.0001 * top)).all()
    texts = [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.get_legend().get_texts()]
    for axis, asked in ((axes.xaxis, figure.layout.xaxis.ticktext), (axes.yaxis, figure.layout.yaxis.ticktext)):
        if asked is not None:
            found = [label.get_text() for label in axis.get_ticklabels()]
            assert found == [text.replace("<br>", "\n") for text in asked]
            assert not any(label.get_text() for label in axis.get_ticklabels(minor=True))
        low, high = axis.get_view_interval()
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes, whole = [text.get_window_extent() for text in texts if text.get_text()], axes.figure.bbox
    assert len(boxes) >= 12
    for index, box in enumerate(boxes):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
        assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in boxes[index + 1 :])


FIGURE_7 = ["LSTM", "LSTM-sub", "paper's method", "teacher", "SGD", "NAG", "RMSprop", "Adam", "decaying Adam"]
LONG = {5: NAMES, 3: FIGURE_7, 2: [f"preprocessing: {'x' * 15}"] * 4, 1: ["x" * 60] * 3}


@pytest.mark.parametrize("columns", LONG)
def test_a_legend_has_as_few_rows_as_fit(columns):
    names = LONG[columns]
    axes = axes_of(go.Figure([go.Scatter(name=name, x=[0, 1], y=[0, 1]) for name in names]))
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert len({round(box.x0) for box in boxes}) == columns
    assert max(box.x1 for box in boxes) <= axes.figure.bbox.x1
    assert len(boxes) == len(names)


def test_pictures_are_of_lines_that_may_lack_points_and_of_nothing_else():
    static.png(go.Figure([go.Scatter(x=[1, 2, 3], y=[]), go.Scatter(x=[1, 2], y=[1, None])]))
    with pytest.raises(TypeError, match="'bar'"):
        static.png(go.Figure(go.Bar(y=[1, 2])))


def test_pictures_stand_in_rows_and_columns():
    red, grey = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((4, 4), 128, dtype=torch.uint8)
    red[0] = 255
    sheet = np.asarray(plots.pictures({"a": {"x": red, "y": grey}, "b": {"y": red}}).convert("RGB"))
    assert sheet.shape[0] == 24 + 4 + 4 + 4
    reds, greys = ((sheet == colour).all(axis=2) for colour in ((255, 0, 0), (128, 128, 128)))
    left, right = sheet.shape[1] - 12, sheet.shape[1] - 4
    assert reds[24:28, left : left + 4].all()
    assert reds[32:, right:].all()
    assert reds.sum() == 2 * 16
    assert greys[24:28, right:].all()
    assert plots.pictures({"": {"": red}}, side=10).size == (10, 10)
    below = np.asarray(plots.pictures({"b": {"y": red}, "a": {"x": red, "y": grey}}))
    assert (below[24:28, right:] == [255, 0, 0, 255]).all(), "the longer row gives the order of the columns"
    assert not below[24:28, left : left + 4, 3].any(), "what a row lacks is transparent"


def test_filters_are_drawn_one_by_one_in_their_own_range():
    weights = torch.zeros(8, 3, 2, 2)
    weights[:, 1, 0, 0] = torch.linspace(0.1, 5, 8)  # however strong, the brightest green there is
    picture = plots.filters({name: {0: weights, 10: weights} for name in ("LSTM", "Adam")})
    assert (np.asarray(picture.convert("RGB")) == (0, 255, 0)).all(axis=2).sum() == 4 * 8 * 5 * 5


def test_matrices_are_drawn_entry_by_entry_in_their_own_range():
    matrix = torch.diag(torch.tensor([2.0, -2.0, 0.0]))
    rows = {name: {"one": matrix, "two": 1e-3 * matrix} for name in ("first", "in two\nlines")}
    pixels = np.asarray(plots.matrices(rows, zoom=7).convert("RGB"))
    for colour in (plots.BLUE, plots.RED):
        assert (pixels == colour).all(axis=2).sum() == 4 * 7 * 7


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=30, unique=True).map(sorted))
@example([10, 20, 40, 60, 80, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 1000])
def test_labels_of_a_logarithmic_axis_do_not_overlap(steps):
    axis = plots.graph(
        {"LSTM": ([0, *steps], [1.0] * (len(steps) + 1))}, x="step", y="loss", title="", log="x"
    ).layout.xaxis
    assert list(axis.tickvals) == steps, "every point has a tick, but for step 0, which has no place there"
    labelled = [math.log10(step) for step, label in zip(steps, axis.ticktext, strict=True) if label]
    assert labelled[-1] == math.log10(steps[-1])
    room = plots.CLOSE * math.log10(steps[-1] / steps[0])
    assert all(after - before > 0.999 * room for before, after in itertools.pairwise(labelled))
    assert all(label in ("", f"{step:g}") for step, label in zip(steps, axis.ticktext, strict=True))
