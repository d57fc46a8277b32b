import base64
import re
import sys
import threading
import time

import comm
import pandas as pd
import pytest
from comm import create_comm

from l2l_kit import baseline, compare, zoo
from l2l_kit.evaluation import tuning
from l2l_kit.optimizers import LSTMRule
from l2l_kit.optimizers.preprocessing import Scale
from l2l_kit.problems import MNIST, Quadratics
from l2l_kit.training import MetaTraining
from l2l_kit.widgets import explorer, network_explorer, running_explorer, trainer
from l2l_kit.widgets.job import Job

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
)
LIVE = {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Pretrained optimizers and tuned learning rates that are made here, so that the tests need no recorded ones."""
    for name in PRETRAINED:
        preprocessing = next((each for each in ("scale", "log-sign") if each in name), "none")
        seed = PRETRAINED.index(name)
        zoo.save(LSTMRule(hidden_size=4, preprocessing=preprocessing, seed=seed), tmp_path / name)
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    rules = {"sgd": 0.01, "nag": 0.01, "rmsprop": 0.05, "adam": 1.0}
    tunings = [
        tuning.tune(name, Quadratics(), steps=2, num_tasks=4, learning_rates=[rate], device="cpu")
        for name, rate in rules.items()
    ]
    table = pd.concat([each.table for each in tunings])
    monkeypatch.setattr(tuning, "read_result", lambda name: table)


@pytest.fixture
def widget(recorded):
    return explorer()


def curve(widget, name):
    (trace,) = [trace for trace in widget.figure.data if trace.name == name]
    return trace


def text(widget):
    return re.sub("<[^>]+>", "", widget.status.value)


class TestExplorer:
    def test_shows_all_optimizers_at_first(self, widget):
        assert [trace.name for trace in widget.figure.data] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
        assert all(trace.visible and len(trace.y) == 101 for trace in widget.figure.data)
        assert re.search(r"After 100 steps \w+ is best: mean loss [\d.e+]+; next is \w+", text(widget))

    def test_starts_at_the_tuned_learning_rates(self, widget):
        assert {name: slider.value for name, slider in widget.learning_rates.items()} == {
            "SGD": 0.01,
            "NAG": 0.01,
            "RMSprop": 0.05,
            "Adam": 1.0,
        }

    def test_a_learning_rate_moves_its_curve_alone(self, widget):
        before = {trace.name: trace.y for trace in widget.figure.data}
        widget.learning_rates["Adam"].value = 0.1
        after = {trace.name: trace.y for trace in widget.figure.data}
        assert [name for name in before if before[name] != after[name]] == ["Adam"]
        widget.reset_learning_rates()
        assert curve(widget, "Adam").y == before["Adam"]

    def test_only_what_changed_is_computed(self, widget):
        runs = widget._run.cache_info().misses
        widget.learning_rates["Adam"].value = 0.1
        assert widget._run.cache_info().misses == runs + 1
        widget.statistic.value = "median"
        assert widget._run.cache_info().misses == runs + 1

    def test_unticking_hides_a_curve(self, widget):
        widget.shown["SGD"].value = False
        assert curve(widget, "SGD").visible is False
        for box in widget.shown.values():
            box.value = False
        assert "Tick at least one" in text(widget)

    @pytest.mark.parametrize(
        ("control", "value"),
        [("dimension", 3), ("seed", 7), ("statistic", "median"), ("preprocessing", "log-sign")],
    )
    def test_each_control_moves_the_lstm(self, widget, control, value):
        before = curve(widget, "LSTM").y
        getattr(widget, control).value = value
        assert curve(widget, "LSTM").y != before

    def test_steps(self, widget):
        widget.steps.value = 50
        assert len(curve(widget, "Adam").y) == len(curve(widget, "Adam").x) == 51
        assert tuple(widget.figure.layout.xaxis.range) == (0, 50)

    def test_a_missing_pretrained_optimizer_is_said_and_the_others_shown(self, widget):
        widget.unroll.value = 50
        assert "unknown pretrained optimizer 'quadratics-none-unroll50'" in widget.status.value.replace("&#x27;", "'")
        assert curve(widget, "LSTM").visible is False
        assert curve(widget, "Adam").visible is True
        widget.unroll.value = 20
        assert "unknown" not in widget.status.value
        assert curve(widget, "LSTM").visible is True

    def test_an_error_is_shown_and_gone_after_the_next_change(self, widget):
        works = widget._run
        widget._run = lambda *_: 1 / 0
        widget.dimension.value = 5
        assert "ZeroDivisionError: division by zero" in widget.status.value
        widget._run = works
        widget.dimension.value = 6
        assert "ZeroDivisionError" not in widget.status.value

    def test_a_diverging_run_does_not_set_the_scale(self, widget):
        widget.learning_rates["SGD"].value = max(rate for _, rate in widget.learning_rates["SGD"].options)
        assert widget.figure.layout.yaxis.range[1] < 5

    @pytest.mark.parametrize("wrong", [{"unroll": 7}, {"preprocessing": "log"}])
    def test_wrong_arguments_are_refused(self, recorded, wrong):
        with pytest.raises(ValueError, match="unknown"):
            explorer(**wrong)


class TestNetworkExplorer:
    @pytest.fixture
    def make(self, recorded, monkeypatch):
        monkeypatch.setattr(sys.modules[network_explorer.__module__], "STEPS", (4, 8, 12))
        made = []

        def few(**arguments):
            widget = network_explorer(**{"networks": 1, "steps": 4, "digits": "embedded", **arguments})
            made.append(widget)
            return widget

        yield few
        for widget in made:
            widget.close()
            widget.wait(30)

    @pytest.fixture
    def widget(self, make):
        widget = make()
        widget.wait(60)
        return widget

    def lines(self, widget):
        widget.wait(60)
        return {trace.name: trace.y for trace in widget.figure.data if trace.visible}

    def test_shows_what_compare_measures(self, make):
        widget = make(networks=2, seed=3)
        optimizers = {"LSTM": zoo.load("mnist"), "Adam": baseline("adam", 1.0)}
        curves = compare(optimizers, DIGITS, steps=4, num_tasks=2, seed=3, device="cpu")
        for name in optimizers:
            assert self.lines(widget)[name] == pytest.approx(curves.statistic(name).tolist(), rel=1e-3)
        title = widget.figure.layout.title.text
        assert title.startswith("Mean loss of 2 networks on MNIST subset (5,000 digits)<br>")
        assert "784-20-10, sigmoid, initial weights 0.1, minibatches of 128" in title

    def test_says_which_optimizer_is_best(self, widget):
        assert [trace.name for trace in widget.figure.data] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
        assert re.search(r"After 4 steps \w+ is best: mean loss [\d.e+]+; next is \w+", text(widget))

    def test_the_picture_is_of_finished_curves(self, make):
        widget = make(steps=20)
        assert set(widget._repr_mimebundle_()) == LIVE
        assert "is best" in text(widget)
        assert {len(trace.y) for trace in widget.figure.data} == {21}
        widget.units.value = 5
        widget._repr_mimebundle_()
        assert "is best" in text(widget)

    @pytest.mark.parametrize(
        ("control", "value", "titled"),
        [
            ("layers", 2, "784-20-20-10, sigmoid"),
            ("units", 5, "784-5-10, sigmoid"),
            ("activation", "relu", "784-20-10, relu"),
            ("init_scale", 0.3, "initial weights 0.3"),
            ("seed", 7, ""),
        ],
    )
    def test_each_control_moves_every_curve(self, widget, control, value, titled):
        before = self.lines(widget)
        getattr(widget, control).value = value
        after = self.lines(widget)
        assert all(before[name] != after[name] for name in before)
        assert titled in widget.figure.layout.title.text

    def test_which_lstm(self, widget):
        lines = [self.lines(widget)["LSTM"]]
        assert widget.unroll.disabled
        assert widget.preprocessing.disabled
        widget.fully_trained.value = False
        assert not widget.unroll.disabled
        for preprocessing in ("log-sign", "scale", "none"):
            widget.preprocessing.value = preprocessing
            lines.append(self.lines(widget)["LSTM"])
        assert len(set(lines)) == 4

    def test_only_what_changed_is_computed(self, widget, begun):
        begun.clear()
        before = self.lines(widget)
        widget.learning_rates["Adam"].value = 0.1
        after = self.lines(widget)
        assert [name for name in before if before[name] != after[name]] == ["Adam"]
        assert begun == ["adam"]
        widget.learning_rates["Adam"].value = 1.0
        assert self.lines(widget) == before
        assert begun == ["adam"]

    def test_more_steps_go_on_from_where_the_curves_are(self, widget, begun, make):
        before = self.lines(widget)
        widget.steps.value = 8
        longer = self.lines(widget)
        assert all(longer[name][:5] == before[name] for name in before)
        assert not begun
        widget.units.value = 5
        self.lines(widget)
        begun.clear()
        widget.units.value = 20  # known, but put to rest meanwhile
        widget.steps.value = 12
        assert {len(line) for line in self.lines(widget).values()} == {13}
        assert len(begun) == 5
        assert all(line[:9] == longer[name] for name, line in self.lines(widget).items())

    def test_a_new_choice_stops_what_is_computed_and_keeps_what_is_valid(self, make, begun, monkeypatch):
        widget = make(steps=30)
        whole = self.lines(widget)
        begun.slow = True
        begun.clear()
        widget.seed.value = 1
        wait_until(lambda: len(curve(widget, "SGD").y) > 1)
        assert re.search(r"Computing: step \d+ of 30", text(widget))
        (unfinished, *_) = widget._wanted.values()
        widget.learning_rates["Adam"].value = 0.1
        wait_until(lambda: len(curve(widget, "Adam").y) > 1)
        assert begun.count("LSTM") == begun.count("sgd") == 1
        assert begun.count("adam") == 2
        assert "Computing" in text(widget)
        widget.learning_rates["Adam"].value = 1.0
        widget.seed.value = 0
        assert "is best" in text(widget)  # known, so nothing is to be waited for
        assert self.lines(widget) == whole
        assert 1 < len(unfinished.losses) < 31
        assert unfinished._steps is None

    @pytest.fixture
    def begun(self, monkeypatch):
        """The optimizers that began a run, in order; `slow` makes them take their time."""

        class Begun(list):
            slow = False

        begun = Begun()
        works = running_explorer.trajectory

        def told(optimizer, *arguments):
            begun.append(getattr(optimizer, "name", "LSTM"))
            for point in works(optimizer, *arguments):
                if begun.slow:
                    time.sleep(0.05)
                yield point

        monkeypatch.setattr(running_explorer, "trajectory", told)
        return begun

    def test_unticking_hides_a_curve(self, widget):
        widget.shown["SGD"].value = False
        assert "SGD" not in self.lines(widget)
        for box in widget.shown.values():
            box.value = False
        assert "Tick at least one" in text(widget)

    def test_back_to_the_tuned_learning_rates(self, widget):
        before = self.lines(widget)
        for slider in widget.learning_rates.values():
            slider.value = 0.001
        widget.tuned.click()
        assert self.lines(widget) == before

    def test_a_missing_pretrained_optimizer_is_said_and_the_others_shown(self, widget):
        widget.fully_trained.value = False
        widget.unroll.value = 50
        assert sorted(self.lines(widget)) == ["Adam", "NAG", "RMSprop", "SGD"]
        assert "unknown pretrained optimizer &#x27;mnist-log-sign-unroll50&#x27;" in widget.status.value
        assert "is best" in text(widget)
        widget.unroll.value = 20
        assert "LSTM" in self.lines(widget)
        assert "unknown" not in widget.status.value

    def test_an_error_in_a_run_is_shown_and_tried_again(self, widget, monkeypatch):
        works = running_explorer.trajectory
        monkeypatch.setattr(running_explorer, "trajectory", lambda *_: 1 / 0)
        widget.units.value = 5
        assert not self.lines(widget)
        assert "ZeroDivisionError: division by zero" in widget.status.value
        monkeypatch.setattr(running_explorer, "trajectory", works)
        widget.units.value = 20
        widget.units.value = 5
        assert len(self.lines(widget)) == 5
        assert "ZeroDivisionError" not in widget.status.value

    def test_an_error_in_drawing_is_shown(self, widget, monkeypatch):
        draws = widget._draw

        def breaks(*arguments, **options):
            if threading.current_thread() is not threading.main_thread():
                raise ZeroDivisionError("division by zero")
            draws(*arguments, **options)

        monkeypatch.setattr(widget, "_draw", breaks)
        widget.units.value = 5
        widget.wait(30)
        assert "ZeroDivisionError: division by zero" in widget.status.value

    def test_the_papers_architecture_alone(self, make):
        column = make(architecture=False)._column.children
        labels = {getattr(control, "description", "") for control in column}
        assert "Steps" in labels
        assert "Layers" not in labels

    @pytest.mark.parametrize(
        "wrong", [{"unroll": 100}, {"preprocessing": "log"}, {"digits": "all"}, {"networks": 0}, {"steps": 0}]
    )
    def test_wrong_arguments_are_refused(self, make, wrong):
        with pytest.raises(ValueError, match=r"unknown|at least 1"):
            make(**wrong)


def test_both_widgets_come_with_a_picture(widget):
    for each in (widget, trainer(settings=TINY, baselines=BASELINES)):
        bundle = each._repr_mimebundle_()
        assert set(bundle) == LIVE
        assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert bundle["text/plain"] == "Interactive figure: run this cell in JupyterLab to use it."


def test_only_the_newest_stay_alive(recorded):
    made = [explorer() for _ in range(2)]
    views = [each.view for each in made]
    last = explorer()
    assert made[0].figure.comm is None
    assert views[0].comm is None
    assert all(each.view.comm is not None and each.figure.comm is not None for each in (made[1], last))


def test_a_figure_is_sent_whole_when_it_is_shown(widget, monkeypatch):
    assert widget.figure.comm is None
    sent = []
    monkeypatch.setattr(comm, "create_comm", lambda **message: sent.append(message) or create_comm(**message))
    widget._repr_mimebundle_()
    (state,) = [m["data"]["state"] for m in sent if "_widget_data" in m["data"]["state"]]
    assert [trace["name"] for trace in state["_widget_data"]] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
    assert all(len(trace["y"]) == 101 for trace in state["_widget_data"])
    assert "dimension 10" in state["_widget_layout"]["title"]["text"]


def test_a_page_that_reconnects_is_sent_the_present_state(widget):
    assert widget.view
    widget.learning_rates["Adam"].value = 0.1
    state = widget.figure.get_state()
    (sent,) = [trace for trace in state["_widget_data"] if trace["name"] == "Adam"]
    assert tuple(sent["y"]) == tuple(curve(widget, "Adam").y)
    assert "dimension 10" in state["_widget_layout"]["title"]["text"]


class TestTrainer:
    def test_run_trains_and_says_how_good_it_is(self):
        widget = trainer(settings=TINY, baselines=BASELINES)
        assert widget.trained is None
        trained = widget.run()
        assert trained is widget.trained
        assert isinstance(trained, LSTMRule)
        assert widget.history.stopped == "finished"
        assert widget.bar.value == widget.bar.max == 4
        assert len(curve(widget, "LSTM").y) == 11
        assert re.search(r"on 16 fresh functions .* best baseline.* it (beats|does not beat)", text(widget))
        assert not widget.train.disabled
        assert widget.cancel.disabled

    def test_the_controls_decide(self):
        widget = trainer(settings=TINY, baselines=BASELINES)
        widget.unroll.value, widget.meta_lr.value, widget.epochs.value = 2, 0.003, 5
        widget.preprocessing.value = "log-sign"
        trained = widget.run()
        settings = widget.history.settings
        assert (settings.unroll, settings.meta_lr, settings.epochs) == (2, 0.003, 5)
        assert trained.preprocessing.name == "log-sign"

    def test_on_digits(self):
        rates = {"NAG": baseline("nag", 1.0), "Adam": baseline("adam", 0.03)}
        settings = MetaTraining(horizon=4, unroll=2, epochs=1, episodes_per_epoch=2, batch_size=1, validation_tasks=2)
        widget = trainer(DIGITS, settings, baselines=rates)
        assert widget.figure.layout.title.text == "Mean loss over 2 validation networks, MNIST subset (5,000 digits)"
        assert widget.preprocessing.options == ("none", "scale", "log-sign")
        trained = widget.run()
        assert (trained.preprocessing.name, trained.output_scale) == ("log-sign", 0.1)
        assert "on 4 fresh networks" in text(widget)

    def test_the_optimizer_begins_as_the_caller_says(self):
        widget = trainer(
            settings=TINY,
            baselines=BASELINES,
            optimizer={"hidden_size": 3, "preprocessing": {"name": "scale", "factor": 2.0}},
        )
        assert widget.preprocessing.options == ("none", "scale", "log-sign")
        trained = widget.run()
        assert trained.preprocessing == Scale(2.0)
        assert trained.hidden_size == 3
        widget.preprocessing.value = "none"
        assert widget.run().preprocessing.name == "none"

    def test_the_same_run_gives_the_same_weights(self):
        first, second = (trainer(settings=TINY, baselines=BASELINES).run().state_dict() for _ in range(2))
        assert all((first[name] == second[name]).all() for name in first)

    def test_the_buttons_train_in_the_background_and_cancel(self):
        long = MetaTraining(horizon=20, unroll=5, epochs=100, episodes_per_epoch=2, batch_size=4, validation_tasks=8)
        widget = trainer(settings=long, baselines=BASELINES)
        widget.train.click()
        assert widget.train.disabled
        assert widget.unroll.disabled
        wait_until(lambda: curve(widget, "LSTM").y and widget.bar.value >= 4)
        widget.cancel.click()
        widget.wait(30)
        assert re.search(r"Cancelled. The best weights so far, of epoch \d+, are in .trained.", text(widget))
        assert widget.history.stopped == "cancelled"
        assert isinstance(widget.trained, LSTMRule)
        assert not widget.train.disabled

    def test_an_error_is_shown(self, monkeypatch):
        widget = trainer(settings=TINY, baselines=BASELINES)
        monkeypatch.setattr(sys.modules[type(widget).__module__], "MetaTrainer", lambda *_: 1 / 0)
        widget.train.click()
        widget.wait(30)
        assert "ZeroDivisionError: division by zero" in widget.status.value
        assert not widget.train.disabled
        with pytest.raises(ZeroDivisionError):
            widget.run()

    def test_a_problem_with_no_recorded_baselines_is_refused(self, monkeypatch, tmp_path):
        def nothing(name):
            raise FileNotFoundError(f"no recorded result {name!r}")

        monkeypatch.setattr(tuning, "read_result", nothing)
        with pytest.raises(FileNotFoundError, match="quadratics/tuning"):
            trainer(settings=TINY)


def wait_until(done, seconds=30):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


class TestJob:
    def drive(self, work, **options):
        seen, ends = [], []
        job = Job(work, seen.append, ends.append, **options)
        return job, seen, ends

    def test_finishes_and_tells_the_last_event(self):
        job, seen, ends = self.drive(lambda: (number for number in range(100)), interval=60)
        assert job.run() == "finished"
        assert seen == [0, 99]
        assert ends == ["finished"]

    def test_important_events_are_all_told(self):
        job, seen, _ = self.drive(lambda: iter_closable(10), interval=60, important=lambda number: number % 3 == 0)
        job.run()
        assert seen == [0, 3, 6, 9]

    def test_an_error_is_kept_and_told(self):
        def work():
            yield 1
            raise ValueError("broken")

        job, seen, ends = self.drive(work)
        assert job.run() == "failed"
        assert isinstance(job.error, ValueError)
        assert (seen, ends) == ([1], ["failed"])
        assert not job.running

    def test_an_error_in_what_is_told_ends_the_work_too(self):
        closed = []

        def work():
            try:
                yield 1
            finally:
                closed.append(True)

        job = Job(work, lambda _: 1 / 0, lambda _: None)
        assert job.run() == "failed"
        assert closed == [True]

    def test_ctrl_c_cancels(self):
        def work():
            yield 1
            raise KeyboardInterrupt

        assert self.drive(work)[0].run() == "cancelled"

    def test_cancel_closes_the_work(self):
        closed, begun = [], threading.Event()

        def work():
            try:
                while True:
                    begun.set()
                    yield 1
                    time.sleep(0.001)
            finally:
                closed.append(True)

        job, _, ends = self.drive(work)
        job.start()
        assert begun.wait(10)
        with pytest.raises(RuntimeError, match="running already"):
            job.run()
        job.start()  # does nothing
        job.cancel()
        job.join(10)
        assert (closed, ends) == ([True], ["cancelled"])

    def test_a_cancel_right_after_start_counts(self):
        job, _, ends = self.drive(lambda: iter_closable(10**9))
        job.start()
        job.cancel()
        job.join(10)
        assert ends == ["cancelled"]

    def test_runs_again(self):
        job, seen, ends = self.drive(lambda: iter_closable(1))
        assert [job.run(), job.run()] == ["finished", "finished"]
        assert (seen, ends) == ([0, 0], ["finished", "finished"])


def iter_closable(count):
    yield from range(count)
