import base64
import json
import math
import struct

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l2l_kit import baseline, compare, plots, static
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import EACH_STEP, ONE_RATE, under
from l2l_kit.evaluation.trajectories import trajectories
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Quadratics

BASELINES = {
    "SGD": baseline("sgd", 0.01),
    "NAG": baseline("nag", 0.01),
    "RMSprop": baseline("rmsprop", 0.05),
    "Adam": baseline("adam", 0.3),
}
ARCHITECTURES = ["5", "20", "50", "5-5", "20-20", "50-50", "20-10-5"]
BUNDLE = {"application/vnd.plotly.v1+json", "image/png", "text/plain"}


def png_size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[-8:-4] == b"IEND"
    return struct.unpack(">II", png[16:24])


def swept(setting, values):
    """Rows of a sweep in which each optimizer has losses of its own, between 0.2 and 2.4."""
    losses = iter(np.linspace(0.2, 2.2, 5 * len(values)))
    rows = [(value, name, next(losses)) for value in values for name in ("LSTM", *BASELINES)]
    table = pd.DataFrame(rows, columns=[setting, "optimizer", "mean"])
    return table.assign(low=0.9 * table["mean"], high=1.1 * table["mean"])


@pytest.fixture(scope="module")
def curves():
    return compare({"LSTM": LSTMRule(), **BASELINES}, Quadratics(4), steps=20, num_tasks=16, device="cpu")


@pytest.fixture(scope="module")
def paths():
    return trajectories({"LSTM": LSTMRule(), **BASELINES}, Quadratics(2), steps=60, seed=4)


@pytest.fixture(scope="module")
def figures(curves, paths):
    rates = pd.DataFrame(
        [
            {"lr": lr, "mean": 1 + abs(np.log10(lr) + 2), "median": 1.0, "baseline": name}
            for name in ("sgd", "nag", "rmsprop", "adam")
            for lr in (1e-3, 1e-2, 1e-1)
        ]
    )
    lengths = pd.DataFrame(
        [
            {"unroll": unroll, "preprocessing": name, "mean": 1.0, "median": 0.5, "low": 0.9, "high": 1.1}
            for name in ("none", "log-sign")
            for unroll in (20, 1, 100)
        ]
    )
    history = pd.DataFrame({"validation_loss": [1e4, 1.0, 0.5, float("nan")]}, index=pd.Index(range(4), name="epoch"))
    along = pd.DataFrame(
        [
            {"optimizer": name, "step": step, "loss": 2.3 / (step + 1), "accuracy": 1 - 0.9 / (step + 1)}
            for name in ("LSTM", *BASELINES)
            for step in (0, 1, 5)
        ]
    )
    return {
        "settings": plots.by_setting(swept("init_scale", [0.01, 0.1, 1]), "init_scale", x="scale", title="Scales"),
        "architectures": plots.architectures(swept("hidden", ARCHITECTURES), "20", "Architectures"),
        "accuracy": plots.over_steps(along, "accuracy", y="accuracy", title="Accuracy"),
        "loss held out": plots.over_steps(along, "loss", y="loss", title="Loss", logarithmic=True),
        "graph": plots.graph(
            {"first": ([1, 20, 100], [0.1, float("nan"), 0.9]), "second": (torch.tensor([1.0, 5.0]), torch.ones(2))},
            x="unroll",
            y="cosine",
            title="A graph",
            numbers=True,
        ),
        "learning curves": plots.learning_curves(curves),
        "quantiles": plots.learning_curves(curves, "median", "quantiles", title="A title"),
        "no band": plots.learning_curves(curves, band=None),
        "tuning": plots.tuning(rates),
        "validation": plots.validation({"unroll 20": history, "unroll 5": history}),
        "unroll": plots.unroll_lengths(lengths),
        "landscape": plots.landscape(paths),
    }


FIGURES = ["learning curves", "quantiles", "no band", "tuning", "validation", "unroll", "landscape"]
FIGURES += ["graph", "settings", "architectures", "accuracy", "loss held out"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_itself_in_three_ways(figures, name):
    figure = figures[name]
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == BUNDLE
    assert bundle["text/plain"] == "Figure"
    size = png_size(base64.b64decode(bundle["image/png"]))
    assert size == (figure.layout.width, figure.layout.height)  # Lab swaps one for the other
    json.dumps(bundle, allow_nan=False)


@pytest.mark.parametrize("name", FIGURES)
def test_ipython_shows_the_bundle_and_nothing_from_the_network(figures, name):
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    shown, _ = formatter.format(figures[name])
    assert set(shown) == BUNDLE


@pytest.mark.parametrize("name", FIGURES)
def test_the_picture_is_the_same_each_time(figures, name):
    assert static.png(figures[name]) == static.png(figures[name])


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_no_background_of_their_own(figures, name):
    layout = figures[name].layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_a_graph_has_ticks_where_its_curves_have_points(figures):
    figure = figures["graph"]
    assert figure.layout.xaxis.tickvals == (1, 5, 20, 100)
    assert [trace.name for trace in figure.data] == ["first", "second"]
    assert figure.data[0].y == (0.1, None, 0.9)


def test_optimizers_keep_their_colours(figures):
    for name in ("learning curves", "tuning", "landscape", "settings", "architectures", "accuracy"):
        for trace in figures[name].data:
            if trace.name in plots.STYLES and trace.mode in ("lines", "lines+markers"):
                assert trace.line.color == plots.STYLES[trace.name].color
    assert max(plots.STYLES, key=lambda name: plots.STYLES[name].width) == "LSTM"


def test_names_that_are_not_the_papers_get_colours_that_are_left():
    styles = plots.styles(["Adam", "one", "two"])
    assert styles["Adam"] == plots.STYLES["Adam"]
    assert len({style.color for style in styles.values()}) == 3


def test_learning_curves_show_the_statistic(curves, figures):
    (line,) = [trace for trace in figures["quantiles"].data if trace.name == "Adam"]
    np.testing.assert_allclose(line.y, curves.statistic("Adam", "median"), rtol=1e-4)
    assert figures["quantiles"].layout.title.text == "A title"
    assert len(figures["no band"].data) == 5


def test_the_best_learning_rate_is_marked(figures):
    marks = [trace for trace in figures["tuning"].data if trace.mode == "markers"]
    assert [mark.name for mark in marks] == [f"{name}, best: 0.01" for name in BASELINES]


def lines_of(figure):
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def test_settings_show_the_rows_and_their_intervals(figures):
    figure, table = figures["settings"], swept("init_scale", [0.01, 0.1, 1])
    assert [line.name for line in lines_of(figure)] == ["LSTM", *BASELINES]
    for line in lines_of(figure):
        rows = table[table["optimizer"] == line.name]
        (band,) = [trace for trace in figure.data if trace.name == f"{line.name}, band"]
        assert list(line.x) == [0.01, 0.1, 1]
        np.testing.assert_allclose(line.y, rows["mean"], rtol=1e-4)
        np.testing.assert_allclose(band.y, [*rows["low"], *rows["high"][::-1]], rtol=1e-4)
    assert list(figure.layout.xaxis.ticktext) == ["0.01", "0.1", "1"]
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "scale"


def test_architectures_stand_in_groups_by_layers(figures):
    """In whatever order the sweep went: by number of layers, then by width."""
    table = swept("hidden", ARCHITECTURES).sample(frac=1, random_state=0)
    figure = plots.architectures(table, "20", "Architectures")
    lines = lines_of(figure)
    assert len(lines) == 3 * 5
    assert [line.name for line in lines if line.showlegend] == [line.name for line in lines[:5]]
    shown = {name: [line for line in lines if line.name == name] for name in ("LSTM", *BASELINES)}
    for name, (one, two, three) in shown.items():
        rows = table[table["optimizer"] == name].set_index("hidden")["mean"]
        np.testing.assert_allclose([*one.y, *two.y, *three.y], rows[ARCHITECTURES], rtol=1e-4)
        assert np.diff([*one.x, *two.x, *three.x]) == pytest.approx([1, 1, 1.7, 1, 1, 1.7])
    axis = figure.layout.xaxis
    labels = dict(zip(axis.tickvals, axis.ticktext, strict=True))
    places = [place for line in shown["LSTM"] for place in line.x]
    assert [labels[place] for place in places] == [
        "5", "20<br>1 layer", "50", "5", "20<br>2 layers", "50", "20-10-5<br>3 layers",
    ]  # fmt: skip


def test_groups_of_even_size_have_their_layers_named_between_two():
    figure = plots.architectures(swept("hidden", ["5", "20"]), "5", "")
    axis = figure.layout.xaxis
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True)) == {0.7: "5", 1.7: "20", 1.2: "<br>1 layer"}


def test_where_the_learned_optimizer_was_trained_is_marked(figures):
    across, up = figures["architectures"].data[-2:]
    table = swept("hidden", ARCHITECTURES).set_index(["hidden", "optimizer"])
    assert across.y == pytest.approx([table["mean"]["20", "LSTM"]] * 2, rel=1e-4)
    assert set(up.x) == {1.7}
    assert np.log10(up.y) == pytest.approx(figures["architectures"].layout.yaxis.range)


def test_architectures_of_one_layer_come_from_a_file_as_numbers():
    words, numbers = (plots.architectures(swept("hidden", hidden), "20", "") for hidden in (["5", "20"], [5, 20]))
    assert words == numbers


@pytest.mark.parametrize("arguments", [("7", ""), ("20", "", "GRU")])
def test_an_architecture_that_was_not_swept_is_refused(arguments):
    with pytest.raises(UnknownNameError, match="unknown architecture of"):
        plots.architectures(swept("hidden", ARCHITECTURES), *arguments)


def test_every_style_has_a_picture():
    """GitHub shows the pictures, which know plotly's dashes only if they are told of them."""
    for style in plots.STYLES.values():
        figure = go.Figure(go.Scatter(x=[0, 1], y=[1, 2], mode="lines", line=style.line))
        assert static.png(figure).startswith(b"\x89PNG")


def test_a_sweep_under_two_protocols_is_not_drawn_as_one():
    table = pd.concat([swept("step", [10, 20]).assign(protocol=protocol) for protocol in (ONE_RATE, EACH_STEP)])
    for draw in (
        lambda rows: plots.over_steps(rows, "mean", y="loss", title=""),
        lambda rows: plots.by_setting(rows, "step", x="step", title=""),
        lambda rows: plots.architectures(rows.assign(hidden=rows["step"]), "10", ""),
    ):
        assert len(draw(under(table, ONE_RATE)).data) >= 10
        with pytest.raises(ValueError, match="several protocols"):
            draw(table)


def test_the_best_optimizer_of_a_sweep_does_not_set_its_scale():
    """The axis of the others ends ten times above where they begin, not ten times above the first row."""
    table = swept("dim", [1, 10])
    table.loc[table["optimizer"] == "LSTM", "mean"] = 1e-4
    figure = plots.by_setting(table, "dim", x="", title="")
    assert figure.layout.yaxis.range[1] >= math.log10(table["mean"].max())


def test_what_was_measured_along_the_way_is_shown(figures):
    for name, column in (("accuracy", [0.1, 0.55, 0.85]), ("loss held out", [2.3, 1.15, 0.38333])):
        assert [line.name for line in figures[name].data] == ["LSTM", *BASELINES]
        for line in figures[name].data:
            assert list(line.x) == [0, 1, 5]
            np.testing.assert_allclose(line.y, column, rtol=1e-4)
    assert figures["accuracy"].layout.yaxis.type is None
    assert figures["loss held out"].layout.yaxis.type == "log"
    assert figures["accuracy"].layout.yaxis.title.text == "accuracy"


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
    start = curves["SGD"][:, 0].mean().log10()
    assert figure.layout.yaxis.range[1] < start + 1.6
    png_size(static.png(figure))


def test_loss_range():
    assert plots.loss_range([]) == [-1, 1]
    assert plots.loss_range([[None, 0.0]]) == [-1, 1]
    assert plots.loss_range([[100.0, 1.0], [100.0, 0.5]]) == [-0.5, 2.02]
    assert plots.loss_range([[2.4, 0.25]]) == [-0.625, 0.52]  # by eighths, where the losses are close
    assert plots.loss_range([[2.0, 1.9]]) == [-0.125, 0.395]


positive = st.floats(1e-9, 1e9)
several = st.lists(st.lists(st.none() | positive, min_size=1, max_size=5), max_size=4)
close = st.builds(
    lambda low, decades: [[low * 10**more for more in decades]],
    positive,
    st.lists(st.floats(0, 2.5), min_size=1, max_size=5),
)


@given(several | close)
@settings(deadline=None)
@example([[5.0, 0.17]])  # more than a decade and a half, and but one power of ten
def test_a_loss_axis_has_ticks_that_can_be_read(lines):
    axis = plots.loss_axis(lines)
    low, high = axis["range"]
    assert high - low >= 0.5
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
    assert places.min() >= low
    assert places.max() <= high
    assert (np.diff(places) > 0.05 * (high - low)).all()  # a label is a twentieth of a figure high
    assert np.diff([low, *places, high]).max() <= max(0.25, 0.45 * (high - low))
    assert max(map(len, axis["ticktext"])) <= 7


def test_ticks_of_a_narrow_axis_go_when_it_is_wide():
    """An axis is updated while a widget's curves change: what one kind sets the other must set as well."""
    narrow, wide = plots.loss_axis([[2.4, 0.25]]), plots.loss_axis([[100.0, 1e-3]])
    assert narrow["ticktext"] == ["0.3", "0.5", "0.7", "1", "1.5", "2", "3"]
    figure = go.Figure()
    figure.update_yaxes(narrow)
    figure.update_yaxes(wide)
    assert figure.layout.yaxis.tickvals is None
    assert figure.layout.yaxis.dtick == 1
    assert figure.layout.yaxis.minor.ticks == "outside"


def test_rounded():
    assert plots.rounded([1.23456789, float("inf"), float("nan")]) == [1.2346, None, None]
    assert plots.rounded(torch.tensor([0.1])) == [0.1]


def test_landscape_is_small_and_walks_along_the_steps(figures, paths):
    figure = figures["landscape"]
    size = len(json.dumps(figure._repr_mimebundle_()["application/vnd.plotly.v1+json"]))
    assert size < 400_000
    assert len(figure.frames) == len(figure.layout.sliders[0].steps) == 61
    for frame in (figure.frames[0], figure.frames[30]):
        *grown, heads = frame.data
        assert [len(line.x) for line in grown] == [int(frame.name) + 1] * 5
        assert list(heads.x) == [line.x[-1] for line in grown]
        assert [figure.data[trace].name for trace in frame.traces][:5] == list(paths.positions)
    np.testing.assert_allclose(figure.frames[60].data[4].x, paths.positions["Adam"][:, 0], rtol=1e-3)


def test_contours_are_where_the_loss_is_the_same(figures, paths):
    for contour in figures["landscape"].data[4 : plots.LEVELS]:  # at the bottom the grid is too coarse to say
        points = [point for point in zip(contour.x, contour.y, strict=True) if None not in point]
        losses = paths.losses_at(torch.tensor(points)).log10()
        assert losses.max() - losses.min() < 0.1


def test_landscape_is_of_two_parameters():
    paths = trajectories({"SGD": baseline("sgd", 0.01)}, Quadratics(3), steps=2)
    with pytest.raises(ValueError, match=r"2 parameters; this one has 3"):
        plots.landscape(paths)


def test_landscape_of_a_run_that_diverges():
    paths = trajectories({"SGD": baseline("sgd", 10.0), "Adam": baseline("adam", 0.1)}, Quadratics(2), steps=60)
    figure = plots.landscape(paths)
    low, high = figure.layout.xaxis.range
    assert high - low < 50
    png_size(static.png(figure))


def test_trajectories_meet_the_same_function(paths):
    starts = torch.stack([path[0] for path in paths.positions.values()])
    assert (starts == starts[0]).all()
    assert paths.steps == 60
    torch.testing.assert_close(paths.losses_at(paths.positions["Adam"]), paths.losses["Adam"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("optimizers", "steps"), [({}, 5), ({"SGD": baseline("sgd", 0.1)}, 0)])
def test_trajectories_of_nothing_are_refused(optimizers, steps):
    with pytest.raises(ValueError, match="trajectories"):
        trajectories(optimizers, Quadratics(2), steps=steps)


def axes_of(figure):
    """What `static` draws, laid out, as matplotlib's axes."""
    picture = static.draw(figure)
    picture.draw_without_rendering()
    return picture.axes[0]


DRAWN = ["learning curves", "settings", "architectures", "accuracy", "loss held out"]


@pytest.fixture(scope="module")
def drawn(figures):
    return {name: axes_of(figures[name]) for name in DRAWN}


@pytest.mark.parametrize("name", DRAWN)
class TestPicture:
    def test_it_has_all_lines_and_bands_and_cuts_no_line_off(self, figures, drawn, name):
        figure, axes = figures[name], drawn[name]
        assert len(axes.lines) == sum("lines" in trace.mode and not trace.fill for trace in figure.data)
        assert len(axes.patches) == sum(trace.fill == "toself" for trace in figure.data)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            x, y = line.get_xdata(), line.get_ydata()
            assert ((left <= x) & (x <= right) & (bottom <= 1.0001 * y) & (y <= 1.0001 * top)).all()

    def test_its_ticks_are_those_of_the_figure_and_no_others(self, figures, drawn, name):
        for side, axis in (("xaxis", drawn[name].xaxis), ("yaxis", drawn[name].yaxis)):
            asked = figures[name].layout[side].ticktext
            if asked is not None:
                found = [label.get_text() for label in axis.get_ticklabels()]
                assert found == [text.replace("<br>", "\n") for text in asked]
                assert not any(label.get_text() for label in axis.get_ticklabels(minor=True))

    def test_labels_do_not_overlap_and_lie_within(self, drawn, name):
        axes = drawn[name]
        texts = [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.get_legend().get_texts()]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes, whole = [text.get_window_extent() for text in texts if text.get_text()], axes.figure.bbox
        assert len(boxes) >= 12
        for index, box in enumerate(boxes):
            assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
            assert whole.y0 <= box.y0 <= box.y1 <= whole.y1
            assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in boxes[index + 1 :])


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["LSTM", *BASELINES], 5),
        (["LSTM", *BASELINES, "where it was trained"], 3),
        (["x" * 60] * 3, 1),
        ([f"preprocessing: {'x' * 15}"] * 4, 2),
    ],
)
def test_a_legend_has_as_few_rows_as_fit(names, columns):
    axes = axes_of(go.Figure([go.Scatter(name=name, x=[0, 1], y=[0, 1]) for name in names]))
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert len({round(box.x0) for box in boxes}) == columns
    assert max(box.x1 for box in boxes) <= axes.figure.bbox.x1
    assert len(boxes) == len(names)


def test_a_picture_of_an_unknown_kind_is_refused():
    with pytest.raises(TypeError, match="'bar'"):
        static.png(go.Figure(go.Bar(y=[1, 2])))


def test_a_picture_of_lines_that_lack_points():
    png_size(static.png(go.Figure([go.Scatter(x=[1, 2, 3], y=[]), go.Scatter(x=[1, 2], y=[1, None])])))


def test_pictures_stand_in_rows_and_columns():
    red, grey = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((4, 4), 128, dtype=torch.uint8)
    red[0] = 255
    sheet = np.asarray(plots.pictures({"a": {"x": red, "y": grey}, "b": {"y": red}}))
    assert sheet.shape[0] == 24 + 4 + 4 + 4
    reds, greys = ((sheet == colour).all(axis=2) for colour in ((255, 0, 0), (128, 128, 128)))
    left, right = sheet.shape[1] - 12, sheet.shape[1] - 4
    assert reds[24:28, left : left + 4].all()
    assert reds[32:, right:].all()
    assert reds.sum() == 2 * 16
    assert greys[24:28, right:].all()


def test_a_single_picture_is_itself_at_any_size():
    picture = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    assert (np.asarray(plots.pictures({"": {"": picture}})) == picture.permute(1, 2, 0).numpy()).all()
    assert plots.pictures({"": {"": picture}}, side=10).size == (10, 10)


def test_filters_are_drawn_one_by_one_in_their_own_range():
    weights = torch.zeros(8, 3, 2, 2)
    weights[:, 1, 0, 0] = torch.linspace(0.1, 5, 8)  # however strong, the brightest green there is
    picture = plots.filters({name: {0: weights, 10: weights} for name in ("LSTM", "Adam")})
    green = (np.asarray(picture) == (0, 255, 0)).all(axis=2)
    assert green.sum() == 4 * 8 * 5 * 5


def test_matrices_are_drawn_entry_by_entry_in_their_own_range():
    matrix = torch.diag(torch.tensor([2.0, -2.0, 0.0]))
    picture = plots.matrices({name: {"one": matrix, "two": 1e-3 * matrix} for name in ("first", "second")}, zoom=7)
    pixels = np.asarray(picture)
    for colour in (plots.BLUE, plots.RED):
        assert (pixels == colour).all(axis=2).sum() == 4 * 7 * 7


def test_trials_of_a_search_are_points_and_pruned_ones_are_apart():
    table = pd.DataFrame(
        {
            "trial": [0, 1, 2, 3],
            "meta_lr": [1e-3, 1e-2, 3e-2, 1e-1],
            "validation_loss": [0.2, 0.3, math.inf, 0.5],
            "pruned_after": [math.nan, math.nan, math.nan, 2],
        }
    )
    figure = plots.search(table, "meta_lr", "a search")
    finished, pruned = figure.data
    assert finished.x == (1e-3, 1e-2, 3e-2)
    assert finished.y == (0.2, 0.3, None)
    assert (pruned.x, pruned.y) == ((1e-1,), (0.5,))
    assert figure.layout.xaxis.type == "log"
    assert static.png(figure).startswith(b"\x89PNG")
    (alone,) = plots.search(table.drop(columns="pruned_after"), "meta_lr", "a search").data
    assert len(alone.x) == 4
