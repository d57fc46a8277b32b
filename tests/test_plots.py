import base64
import json
import struct

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from l2l_kit import baseline, compare, plots, static
from l2l_kit.evaluation.trajectories import trajectories
from l2l_kit.optimizers import LSTMOptimizer
from l2l_kit.problems import Quadratics

BASELINES = {
    "SGD": baseline("sgd", 0.01),
    "NAG": baseline("nag", 0.01),
    "RMSprop": baseline("rmsprop", 0.05),
    "Adam": baseline("adam", 0.3),
}
BUNDLE = {"application/vnd.plotly.v1+json", "image/png", "text/plain"}


def png_size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[-8:-4] == b"IEND"
    return struct.unpack(">II", png[16:24])


@pytest.fixture(scope="module")
def curves():
    return compare({"LSTM": LSTMOptimizer(), **BASELINES}, Quadratics(4), steps=20, tasks=16, device="cpu")


@pytest.fixture(scope="module")
def paths():
    return trajectories({"LSTM": LSTMOptimizer(), **BASELINES}, Quadratics(2), steps=60, seed=4)


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
    return {
        "learning curves": plots.learning_curves(curves),
        "quantiles": plots.learning_curves(curves, "median", "quantiles", title="A title"),
        "no band": plots.learning_curves(curves, band=None),
        "tuning": plots.tuning(rates),
        "validation": plots.validation({"unroll 20": history, "unroll 5": history}),
        "unroll": plots.unroll_lengths(lengths),
        "landscape": plots.landscape(paths),
    }


FIGURES = ["learning curves", "quantiles", "no band", "tuning", "validation", "unroll", "landscape"]


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


def test_optimizers_keep_their_colours(figures):
    for name in ("learning curves", "tuning", "landscape"):
        for trace in figures[name].data:
            if trace.name in plots.STYLES and trace.mode == "lines":
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


def test_a_diverged_run_leaves_a_gap_and_does_not_set_the_scale():
    curves = compare(
        {"SGD": baseline("sgd", 10.0), "Adam": baseline("adam", 0.1)}, Quadratics(4), steps=60, tasks=4, device="cpu"
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
    low, high = plots.loss_range([[2.0, 1.9]])
    assert high - low >= 1


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


def test_a_picture_of_an_unknown_kind_is_refused():
    with pytest.raises(TypeError, match="'bar'"):
        static.png(go.Figure(go.Bar(y=[1, 2])))


def test_a_picture_of_lines_that_lack_points():
    png_size(static.png(go.Figure([go.Scatter(x=[1, 2, 3], y=[]), go.Scatter(x=[1, 2], y=[1, None])])))
