"""The explorers without a page: what they draw is what is measured, and they follow every move."""

import base64
import re
import threading
import time
from functools import partial

import pandas as pd
import pytest

from l2l_kit import baseline, compare, plots, zoo
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import tuning
from l2l_kit.optimizers import LSTMRule
from l2l_kit.optimizers.preprocessing import Scale
from l2l_kit.problems import MNIST, Quadratics
from l2l_kit.training import MetaTraining
from l2l_kit.widgets import (
    Explorer,
    NetworkExplorer,
    Playground,
    Prediction,
    QuadraticsExplorer,
    Race,
    Trainer,
    comparison,
)
from l2l_kit.widgets.explorer import Control, Job, View

BASELINES = {"NAG": baseline("nag", 0.01), "Adam": baseline("adam", 1.0)}
TINY = MetaTraining(
    horizon=10, unroll=5, epochs=2, episodes_per_epoch=2, batch_size=4, validation_tasks=8, meta_lr=0.01
)
DIGITS = MNIST(source="embedded")
PRETRAINED = (
    "quadratics-none-unroll20",
    "quadratics-log-sign-unroll20",
    "mnist",
    "mnist-none-unroll20",
    "mnist-scale-unroll20",
    "mnist-log-sign-unroll20",
    "quadratics",
)
RATES = {"SGD": 0.01, "NAG": 0.01, "RMSprop": 0.05, "Adam": 1.0}
LIVE = {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Pretrained optimizers and tuned learning rates that are made here, so that the tests need no recorded ones."""
    for seed, name in enumerate(PRETRAINED):
        preprocessing = next((each for each in ("scale", "log-sign") if each in name), "none")
        zoo.save(LSTMRule(hidden_size=4, preprocessing=preprocessing, seed=seed), tmp_path / name)
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    rows = [{"baseline": name.lower(), "step": 100, "lr": lr, "mean": 1, "median": 1} for name, lr in RATES.items()]
    monkeypatch.setattr(tuning, "read_result", lambda name: pd.DataFrame(rows))
    monkeypatch.setattr(comparison.LearnedExplorer, "_trained_here", {})


@pytest.fixture
def close():
    made = []
    yield lambda widget: made.append(widget) or widget
    for widget in made:
        widget.close()


@pytest.fixture
def quadratics(recorded, close, monkeypatch):
    monkeypatch.setattr("l2l_kit.widgets.comparisons.FUNCTIONS", 4)
    return close(QuadraticsExplorer())


@pytest.fixture
def networks(recorded, close, monkeypatch):
    monkeypatch.setattr(NetworkExplorer, "lengths", (4, 8, 12))
    return lambda **given: close(NetworkExplorer(**{"networks": 1, "steps": 4, "digits": "embedded", **given}))


def lines(widget):
    widget.wait(60)
    return {trace.name: trace.y for trace in widget.view.figure.data}


def text(widget):
    widget.wait(60)
    return widget.state["text"]


def control(widget, name):
    return next(each for group in widget.groups for row in group["rows"] for each in row if each["name"] == name)


def shown(widget):
    """Names of all that the page is to draw, ghosts and pins among them."""
    return [trace["name"] for trace in widget.shown["figure"]["data"]]


def wait_until(done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


class TestQuadratics:
    def test_shows_what_compare_measures(self, quadratics):
        optimizers = {"LSTM": zoo.load(PRETRAINED[0]), "Adam": baseline("adam", 1.0)}
        curves = compare(optimizers, Quadratics(), steps=100, num_tasks=4, seed=0, device="cpu")
        for over in ("mean", "median"):
            quadratics.move(statistic=over)
            assert list(lines(quadratics)) == ["LSTM", *RATES]
            for name in optimizers:
                assert lines(quadratics)[name] == pytest.approx(curves.statistic(name, over).tolist(), rel=1e-3)
            assert re.search(rf"After 100 steps \w+ is best: {over} loss [\d.e+-]+; next is \w+", text(quadratics))

    def test_the_code_gives_the_same_curves(self, quadratics):
        drawn = {}
        quadratics.move(dimension=3, SGD=False)
        quadratics.wait(60)
        code = quadratics.shown["code"].replace(
            "l2l.plots.learning_curves", "drawn.update(curves=curves); (lambda *_: 0)"
        )
        exec(code, {"drawn": drawn})
        for name, line in lines(quadratics).items():
            assert line == pytest.approx(drawn["curves"].statistic(name).tolist(), rel=1e-3)

    def test_a_learning_rate_moves_its_curve_alone(self, quadratics):
        before = lines(quadratics)
        quadratics.move(**{"lr Adam": 0.1})
        after = lines(quadratics)
        assert [name for name in before if before[name] != after[name]] == ["Adam"]
        quadratics.press("tuned")
        assert lines(quadratics) == before

    @pytest.mark.parametrize(
        "move", [{"dimension": 3}, {"seed": 7}, {"statistic": "median"}, {"preprocessing": "log-sign"}], ids=str
    )
    def test_each_control_moves_the_lstm(self, quadratics, move):
        before = lines(quadratics)["LSTM"]
        quadratics.move(**move)
        assert lines(quadratics)["LSTM"] != before

    def test_unticking_hides_a_curve(self, quadratics):
        quadratics.move(SGD=False)
        assert "SGD" not in lines(quadratics)
        quadratics.move(**dict.fromkeys(["LSTM", *RATES], False))
        assert text(quadratics) == "Tick at least one optimizer."

    def test_a_missing_pretrained_optimizer_is_said_and_the_others_shown(self, quadratics):
        quadratics.move(unroll=50)
        assert list(lines(quadratics)) == list(RATES)
        assert "unknown pretrained optimizer 'quadratics-none-unroll50'" in quadratics.state["errors"][0]
        quadratics.move(unroll=20)
        assert "LSTM" in lines(quadratics)
        assert not quadratics.state["errors"]

    def test_an_error_is_shown_and_gone_after_the_next_change(self, quadratics, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(quadratics, "_view", lambda *_: 1 / 0)
            quadratics.move(dimension=5)
            quadratics.wait(30)
            assert quadratics.state["errors"] == ["ZeroDivisionError: division by zero"]
        quadratics.move(dimension=6)
        assert "is best" in text(quadratics)
        assert not quadratics.state["errors"]

    def test_a_diverging_run_does_not_set_the_scale(self, quadratics):
        quadratics.move(**{"lr SGD": max(control(quadratics, "lr SGD")["values"])})
        quadratics.wait(60)
        assert quadratics.shown["figure"]["layout"]["yaxis"]["range"][1] < 5

    def test_rates_that_were_tuned_for_something_else_are_said_and_tuned(self, quadratics, monkeypatch):
        assert control(quadratics, "lr Adam")["marks"] == [1.0]
        assert "tune" not in str(quadratics.groups[0]["rows"][-1][1:])
        quadratics.move(dimension=20)
        assert "Learning rates were tuned for 100 steps in 10 dimensions." in text(quadratics)
        monkeypatch.setattr(comparison, "learning_rates", lambda _: (0.002, 0.3))
        quadratics.press("tune")
        assert "tuned for" not in text(quadratics)
        assert quadratics.values["lr SGD"] == 0.002
        assert control(quadratics, "lr Adam")["marks"] == [0.3]
        quadratics.move(dimension=10)
        assert quadratics.values["lr SGD"] == 0.01

    @pytest.mark.parametrize("wrong", [{"unroll": 7}, {"preprocessing": "log"}, {"seed": -1}, {"seed": 3.7}], ids=str)
    def test_what_there_is_not(self, recorded, wrong):
        with pytest.raises(ValueError, match=r"unknown|whole number"):
            QuadraticsExplorer(**wrong)


class TestComparing:
    def test_the_curves_before_a_move_stay_as_ghosts(self, quadratics):
        before = lines(quadratics)["Adam"]
        for rate in (0.1, 0.13):
            quadratics.move(**{"lr Adam": control(quadratics, "lr Adam")["values"][3 if rate == 0.1 else 4]})
            quadratics.wait(60)
        assert shown(quadratics) == ["LSTM", *RATES, "Adam, before"]
        assert quadratics.shown["figure"]["data"][-1]["y"] == before
        moved = lines(quadratics)
        quadratics.move(seed=1)
        quadratics.wait(60)
        assert [name for name in shown(quadratics) if "before" in name] == [
            f"{name}, before" for name in ["LSTM", *RATES]
        ]
        assert quadratics.shown["figure"]["data"][-1]["y"] == moved["Adam"]

    def test_pins_stay_until_they_are_removed(self, quadratics):
        quadratics.wait(60)
        quadratics.press("pin")
        quadratics.move(**{"lr Adam": 1.3})
        quadratics.wait(60)
        assert "Adam, pin 1" in shown(quadratics)
        quadratics.press("unpin")
        assert not any("pin" in name for name in shown(quadratics))

    def test_the_axis_only_grows_until_it_is_fitted(self, quadratics):
        def ends():
            quadratics.wait(60)
            return quadratics.shown["figure"]["layout"]["yaxis"]["range"]

        quadratics.move(dimension=2)
        wide = ends()
        quadratics.move(dimension=20)
        assert ends()[0] <= wide[0]
        assert ends()[1] >= wide[1]
        quadratics.press("fit")
        assert ends()[0] > wide[0]

    def test_reset(self, quadratics):
        before = lines(quadratics)
        quadratics.move(dimension=3, seed=5, **{"lr Adam": 0.1})
        quadratics.press("pin")
        quadratics.press("reset")
        assert lines(quadratics) == before
        assert not any("pin" in name for name in shown(quadratics))


class TestNetworks:
    def test_shows_what_compare_measures(self, networks):
        widget = networks(networks=2, seed=3)
        optimizers = {"LSTM": zoo.load("mnist"), "Adam": baseline("adam", 1.0)}
        curves = compare(optimizers, DIGITS, steps=4, num_tasks=2, seed=3, device="cpu")
        for name in optimizers:
            assert lines(widget)[name] == pytest.approx(curves.statistic(name).tolist(), rel=1e-3)
        title = widget.view.figure.layout.title.text
        assert title.startswith("Mean loss of 2 networks on MNIST subset (5,000 digits)<br>")
        assert "784-20-10, sigmoid, initial weights 0.1, minibatches of 128" in title

    def test_each_control_moves_every_curve(self, networks):
        widget = networks()
        drawn = [lines(widget)]
        for move, titled in (
            ({"layers": 2}, "784-20-20-10, sigmoid"),
            ({"units": 5}, "784-5-5-10, sigmoid"),
            ({"activation": "relu"}, "784-5-5-10, relu"),
            ({"init_scale": 0.3}, "initial weights 0.3"),
            ({"seed": 7}, ""),
        ):
            widget.move(**move)
            drawn.append(lines(widget))
            assert titled in widget.view.figure.layout.title.text
        for name in drawn[0]:
            assert len({each[name] for each in drawn}) == len(drawn)

    def test_which_lstm(self, networks):
        widget = networks()
        seen = [lines(widget)["LSTM"]]
        assert control(widget, "unroll")["off"]
        for preprocessing in ("log-sign", "scale", "none"):
            widget.move(main=False, preprocessing=preprocessing)
            seen.append(lines(widget)["LSTM"])
        assert not control(widget, "unroll")["off"]
        assert len(set(seen)) == 4

    @pytest.fixture
    def begun(self, monkeypatch):
        """The optimizers that began a run, in order; `slow` makes them take their time."""

        class Begun(list):
            slow = False

        begun, works = Begun(), comparison.trajectory

        def told(optimizer, *arguments):
            begun.append(getattr(optimizer, "name", "LSTM"))
            for point in works(optimizer, *arguments):
                if begun.slow:
                    time.sleep(0.05)
                yield point

        monkeypatch.setattr(comparison, "trajectory", told)
        return begun

    def test_only_what_changed_is_computed(self, networks, begun):
        widget = networks()
        before = lines(widget)
        begun.clear()
        widget.move(**{"lr Adam": 0.1})
        assert [name for name, line in lines(widget).items() if before[name] != line] == ["Adam"]
        widget.move(**{"lr Adam": 1.0})
        assert lines(widget) == before
        assert begun == ["adam"]

    def test_more_steps_go_on_from_where_the_curves_are(self, networks, begun):
        widget = networks()
        before = lines(widget)
        begun.clear()
        widget.move(steps=8)
        longer = lines(widget)
        assert all(longer[name][:5] == before[name] for name in before)
        # Adam was left meanwhile and comes again to where it was.
        assert begun == []
        widget.move(units=5)
        widget.wait(60)
        widget.move(units=20, steps=12)
        assert {len(line) for line in lines(widget).values()} == {13}
        assert all(line[:9] == longer[name] for name, line in lines(widget).items())

    def test_a_move_leaves_what_is_computed_and_keeps_what_is_valid(self, networks, begun):
        widget = networks(steps=30)
        whole = lines(widget)
        begun.slow = True
        begun.clear()
        widget.move(seed=1)
        wait_until(lambda: re.search(r"Computing: step [1-9]\d* of 30", widget.state["text"]))
        assert 0 < widget.state["progress"] < 1
        widget.move(**{"lr Adam": 0.1})
        wait_until(lambda: begun.count("adam") == 2)
        assert begun.count("LSTM") == begun.count("sgd") == 1
        widget.move(**{"lr Adam": 1.0}, seed=0)
        assert lines(widget) == whole
        assert widget.state["progress"] is None

    def test_an_error_in_a_run_is_shown_and_tried_again(self, networks, monkeypatch):
        widget = networks()
        with monkeypatch.context() as patch:
            patch.setattr(comparison, "trajectory", lambda *_: 1 / 0)
            widget.move(units=5)
            assert not lines(widget)
            assert "ZeroDivisionError: division by zero" in widget.state["errors"]
        widget.move(units=20)
        widget.move(units=5)
        assert len(lines(widget)) == 5
        assert not widget.state["errors"]

    def test_the_papers_architecture_alone(self, networks):
        names = [each["name"] for row in networks(architecture=False).groups[1]["rows"] for each in row]
        assert names == ["seed", "steps"]

    @pytest.mark.parametrize(
        "wrong", [{"unroll": 100}, {"preprocessing": "log"}, {"digits": "all"}, {"networks": 0}, {"steps": 0}], ids=str
    )
    def test_what_there_is_not(self, networks, wrong):
        with pytest.raises(ValueError, match=r"unknown|at least 1"):
            networks(**wrong)


@pytest.mark.parametrize(
    ("problem", "make"),
    [
        ("quadratics", QuadraticsExplorer),
        ("quadratics", Playground),
        ("quadratics", Race),
        ("mnist", partial(NetworkExplorer, networks=1, steps=4, digits="embedded")),
    ],
    ids=["quadratics", "playground", "race", "networks"],
)
def test_what_was_just_trained_can_be_chosen(recorded, close, problem, make):
    widget = close(make())
    if "step" in widget.values:
        widget.move(step=widget.recorded["step"][-1])
    before = lines(widget)
    comparison.LearnedExplorer.offer(problem, "mine", LSTMRule(hidden_size=4, output_scale=0.5, seed=7))
    assert control(widget, "learned")["values"] == ["pretrained", "mine"]
    widget.move(learned="mine")
    if "step" in widget.values:
        widget.move(step=widget.recorded["step"][-1])
    now = lines(widget)
    assert now["LSTM"] != before["LSTM"]
    assert {name: now[name] for name in RATES if name in now} == {name: before[name] for name in RATES if name in now}
    assert "trainer.trained" in widget.shown["code"]
    widget.move(learned="pretrained")
    assert "trainer.trained" not in widget.shown["code"]


class TestTrainer:
    def test_the_code_sees_what_the_training_sees(self):
        for factor, written in ((2.0, "{'name': 'scale', 'factor': 2.0}"), (100.0, "'scale'")):
            optimizer = {"preprocessing": {"name": "scale", "factor": factor}}
            widget = Trainer(settings=TINY, baselines=BASELINES, optimizer=optimizer)
            assert f"preprocessing={written}" in widget.shown["code"]
            widget.move(preprocessing="log-sign")
            assert "preprocessing='log-sign'" in widget.shown["code"]

    def test_run_trains_says_how_good_it_is_and_offers_the_result(self, quadratics):
        widget = Trainer(settings=TINY, baselines=BASELINES)
        assert widget.trained is None
        widget.run()
        assert widget.history.stopped == "finished"
        assert len(lines(widget)["LSTM"]) == 11
        assert re.search(r"16 fresh optimizees .* LSTM / .* (beats|does not beat) every baseline", text(widget))
        before = lines(quadratics)["LSTM"]
        (name,) = [each for each in control(quadratics, "learned")["values"] if each.startswith("trained here")]
        quadratics.move(learned=name)
        assert lines(quadratics)["LSTM"] != before
        assert control(quadratics, "unroll")["off"]

    def test_without_baselines_it_only_trains(self):
        widget = Trainer(settings=TINY, baselines={})
        widget.run()
        assert text(widget) == "Trained."
        assert widget.trained is not None

    def test_what_is_no_problem_is_refused(self):
        with pytest.raises(TypeError, match=r"expected a problem, such as .* got 'quadratics'"):
            Trainer("quadratics")

    def test_the_controls_decide(self, recorded):
        widget = Trainer(settings=TINY, baselines=BASELINES)
        widget.move(unroll=2, meta_lr=0.003, epochs=5, preprocessing="log-sign")
        widget.run()
        settings = widget.history.settings
        assert (settings.unroll, settings.meta_lr, settings.epochs) == (2, 0.003, 5)
        assert widget.trained.preprocessing.name == "log-sign"

    def test_the_optimizer_begins_as_the_caller_says(self, recorded):
        optimizer = {"hidden_size": 3, "preprocessing": {"name": "scale", "factor": 2.0}}
        settings = MetaTraining(horizon=4, unroll=2, epochs=1, episodes_per_epoch=2, batch_size=1, validation_tasks=2)
        widget = Trainer(DIGITS, settings, baselines=BASELINES, optimizer=optimizer)
        widget.run()
        assert (widget.trained.preprocessing, widget.trained.hidden_size) == (Scale(2.0), 3)
        widget.move(preprocessing="none")
        widget.run()
        assert widget.trained.preprocessing.name == "none"

    def test_the_code_trains_the_same(self, recorded):
        widget = Trainer(settings=TINY, baselines=BASELINES)
        made = {}
        exec(widget.shown["code"], made)
        widget.run()
        weights = widget.trained.state_dict()
        assert all((weights[name] == weight).all() for name, weight in made["lstm"].state_dict().items())

    def test_the_buttons_train_in_the_background_and_cancel(self, recorded):
        long = MetaTraining(horizon=20, unroll=5, epochs=100, episodes_per_epoch=2, batch_size=4, validation_tasks=8)
        widget = Trainer(settings=long, baselines=BASELINES)
        widget.press("begin")
        wait_until(lambda: re.search(r"Epoch [2-9].* s left", widget.state["text"]))
        assert widget.state["working"]
        assert 0 < widget.state["progress"] < 1
        widget.press("cancel")
        assert "Cancelled. The best weights so far" in text(widget)
        assert widget.history.stopped == "cancelled"
        assert isinstance(widget.trained, LSTMRule)
        assert not widget.state["working"]

    def test_an_error_is_shown(self, recorded, monkeypatch):
        widget = Trainer(settings=TINY, baselines=BASELINES)
        monkeypatch.setattr("l2l_kit.widgets.trainer.MetaTrainer", lambda *_: 1 / 0)
        widget.press("begin")
        widget.wait(30)
        assert widget.state["errors"] == ["ZeroDivisionError: division by zero"]
        assert not widget.state["working"]
        with pytest.raises(ZeroDivisionError):
            widget.run()

    def test_a_problem_with_no_recorded_baselines_is_refused(self, monkeypatch):
        def nothing(name):
            raise FileNotFoundError(f"no recorded result {name!r}")

        monkeypatch.setattr(tuning, "read_result", nothing)
        with pytest.raises(FileNotFoundError, match="quadratics/tuning"):
            Trainer(settings=TINY)


class Counting(Explorer):
    """Counts up to a number, slowly."""

    def __init__(self):
        self.seen, self.closed, self.begun = [], [], threading.Event()
        super().__init__(to=0)

    def controls(self, values):
        return {"Count": [Control("to", "slider", "To", (0, 3, 10**6))]}

    def draw(self, values):
        try:
            for number in range(values["to"] + 1):
                self.begun.set()
                yield lambda number=number: self.seen.append(number) or View(f"{number}")
        finally:
            self.closed.append(values["to"])

    def code(self, values):
        return "range(3)"


class Sleeping(Job):
    """Works until it is left."""

    verb = "Sleep"

    def controls(self, values):
        return {"Sleep": [Control("to", "slider", "To", (0, 3)), self.buttons()]}

    def look(self, text, progress=None):
        return View(text, progress=progress)

    def work(self, values):
        while values["to"] == 0:
            yield lambda: self.look("asleep", 0.0)
        yield lambda: self.look("awake")


class TestBase:
    def test_work_can_begin_again_after_a_move_that_ended_it(self):
        widget = Sleeping(to=0)
        widget.press("begin")
        assert widget.state["working"]
        widget.move(to=3)
        assert not widget.state["working"]
        widget.press("begin")
        assert text(widget) == "awake"
        widget.run()

    def test_the_last_step_is_shown(self):
        widget = Counting()
        widget.move(to=3)
        assert text(widget) == "3"
        assert widget.seen == [0, 3]

    def test_a_move_leaves_the_work_under_way(self):
        widget = Counting()
        widget.move(to=10**6)
        assert widget.begun.wait(10)
        widget.move(to=3)
        assert text(widget) == "3"
        assert widget.closed == [0, 10**6, 3]

    def test_a_page_is_answered_also_when_what_it_asks_for_fails(self):
        widget = Counting()
        widget.set_state({"values": {"to": 3}, "moves": 1})
        assert text(widget) == "3"
        widget.set_state({"values": {"to": 4}, "moves": 2})
        assert widget.answered == 2
        assert "unknown to 4" in widget.state["errors"][0]

    @pytest.mark.parametrize("name", ["too", "To", "figure"])
    def test_what_is_no_control_cannot_be_moved(self, name):
        widget = Counting()
        with pytest.raises(UnknownNameError, match=name):
            widget.move(**{name: 3})
        assert set(widget.values) == {"to"}

    def test_it_has_a_picture_also_where_it_shows_no_figure(self):
        assert Counting().picture().startswith(b"\x89PNG")

    def test_it_comes_with_a_picture(self, quadratics):
        bundle, _ = quadratics._repr_mimebundle_()
        assert set(bundle) == LIVE
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert quadratics.state["progress"] is None, "the picture is of finished curves"


def test_a_prediction_hides_what_is_to_be_predicted_until_it_is_revealed():
    figure = plots.graph({"LSTM": ([1, 2], [3, 4]), "Adam": ([1, 2], [5, 6])}, x="x", y="y", title="t")
    widget = Prediction(figure, "Which is lower?", ["LSTM", "Adam"], hidden=["LSTM"], right="The LSTM.")

    def seen():
        return [trace.name for trace in widget.view.figure.data if trace.opacity != 0]

    assert seen() == ["Adam"]
    assert control(widget, "reveal")["off"], "predict first"
    widget.move(answer="Adam")
    assert not control(widget, "reveal")["off"]
    widget.press("reveal")
    assert seen() == ["LSTM", "Adam"]
    assert text(widget) == "You expected: Adam. The LSTM."
    assert control(widget, "answer")["off"]
    widget.press("reset")
    assert seen() == ["Adam"]
    assert control(widget, "reveal")["off"]
    assert widget.picture() == Prediction(figure, "").picture()
    with pytest.raises(UnknownNameError, match=r"unknown line of the figure 'Lstm'.* Did you mean 'LSTM'"):
        Prediction(figure, "Which is lower?", hidden=["Lstm"])
