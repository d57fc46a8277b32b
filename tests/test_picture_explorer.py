"""The explorer of lesson 05; what it shares with that of networks that learn digits is tested there."""

import re

import pandas as pd
import pytest

from l2l_kit import baseline, compare, zoo
from l2l_kit.evaluation import EACH_STEP, ONE_RATE, read_result, write_result
from l2l_kit.optimizers import GroupedRule, LSTMRule
from l2l_kit.problems import CIFAR
from l2l_kit.widgets import PictureExplorer, comparison

TINY = {"hidden_size": 4, "preprocessing": "log-sign", "output_scale": 0.1}
RATES = {
    (10, 2): {"sgd": 0.1, "nag": 0.03, "rmsprop": 0.002, "adam": 0.004},
    (10, 5): {"sgd": 0.3, "nag": 0.03, "rmsprop": 0.002, "adam": 0.008},
    (5, 2): {"sgd": 0.3, "nag": 0.1, "rmsprop": 0.001, "adam": 0.002},
    (5, 5): {"sgd": 0.3, "nag": 0.1, "rmsprop": 0.004, "adam": 0.016},
    (2, 2): {"sgd": 1.0, "nag": 0.01, "rmsprop": 0.0005, "adam": 0.001},
    (2, 5): {"sgd": 1.0, "nag": 0.01, "rmsprop": 0.004, "adam": 0.001},
}
"""Tuned learning rates by number of labels and of steps."""
BASELINES = {"SGD": "sgd", "NAG": "nag", "RMSprop": "rmsprop", "Adam": "adam"}


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Pretrained optimizers and sweeps that are made here, so that the tests need no recorded ones."""
    zoo.save(LSTMRule(**TINY, seed=3), tmp_path / "cifar-single")
    for seed, name in enumerate(("cifar", "cifar-paper", "cifar-sub5")):
        zoo.save(GroupedRule({kind: {**TINY, "seed": seed} for kind in ("conv", "fc")}), tmp_path / name)
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    for labels in (10, 5, 2):
        word = "-".join(map(str, range(labels)))
        rows = [(word, step, "LSTM", None) for step in (2, 5)]
        for (number, step), rates in RATES.items():
            if number == labels:
                rows += [(word, step, label, rates[name]) for label, name in BASELINES.items()]
        rows.append((word, 2, "decaying Adam", 0.01))
        table = pd.DataFrame(rows, columns=["labels", "step", "optimizer", "lr"])
        other = table.assign(lr=3 * table["lr"], protocol=ONE_RATE)
        table = pd.concat([table.assign(protocol=EACH_STEP), other])
        about = {"baselines": {"decaying Adam": {"name": "adam", "decay": 50.0}}}
        write_result(f"sweeps/cifar{labels}", table, about, tmp_path)
    monkeypatch.setattr("l2l_kit.widgets.comparisons.read_result", lambda name: read_result(name, tmp_path))
    monkeypatch.setattr(PictureExplorer, "lengths", (2, 3, 8))
    monkeypatch.setattr(comparison.LearnedExplorer, "_trained_here", {})
    return tmp_path


@pytest.fixture
def make(recorded):
    made = []

    def few(**arguments):
        widget = PictureExplorer(**{"steps": 2, "images": "embedded", **arguments})
        made.append(widget)
        return widget

    yield few
    for widget in made:
        widget.close()


def lines(widget):
    widget.wait(60)
    return {trace.name: trace.y for trace in widget.view.figure.data}


def rates(widget):
    return {name: widget.values[f"lr {label}"] for label, name in BASELINES.items()}


def offered(widget):
    return next(each for row in widget.groups[0]["rows"] for each in row if each["name"] == "optimizer")["values"]


@pytest.mark.parametrize("labels", [10, 2])
def test_shows_what_compare_measures(make, labels):
    widget = make(networks=2, seed=3, labels=labels)
    optimizers = {"LSTM": zoo.load("cifar"), "Adam": baseline("adam", RATES[labels, 2]["adam"])}
    problem = CIFAR(tuple(range(labels)), source="embedded")
    curves = compare(optimizers, problem, steps=2, num_tasks=2, seed=3, device="cpu")
    for name in optimizers:
        assert lines(widget)[name] == pytest.approx(curves.statistic(name).tolist(), rel=1e-3)
    title, details = widget.view.figure.layout.title.text.split("<br>")
    assert title == problem.title
    assert "Mean loss of 2 networks: 16-16-16 channels, 32 units, minibatches of 128" in details
    assert re.search(r"After 2 steps \w+ is best: mean loss [\d.]+; next is", widget.state["text"])


def test_each_control_moves_every_curve(make):
    widget = make()
    drawn = [lines(widget)]
    for move in ({"labels": 5}, {"seed": 7}):
        widget.move(**move)
        drawn.append(lines(widget))
    assert all(len({each[name] for each in drawn}) == 3 for name in drawn[0])


def test_which_lstm(make):
    widget = make(labels=5)
    shown = [lines(widget)]
    for optimizer in ("paper's method", "one LSTM", "LSTM-sub"):
        widget.move(optimizer=optimizer)
        shown.append(lines(widget))
    assert len({each["LSTM"] for each in shown}) == 4
    assert len({each["Adam"] for each in shown}) == 1


def test_an_lstm_is_offered_where_there_is_one(make, recorded):
    widget = make(labels=5, optimizer="LSTM-sub")
    widget.move(labels=10)
    assert offered(widget) == ["two LSTMs", "paper's method", "one LSTM"]
    assert widget.values["optimizer"] == "two LSTMs"
    assert lines(widget) == lines(make(labels=10, optimizer="LSTM-sub"))
    widget.move(optimizer="one LSTM")
    widget.move(labels=5)
    assert widget.values["optimizer"] == "one LSTM"
    (recorded / "cifar-single.safetensors").unlink()
    assert offered(make(labels=2, optimizer="LSTM-sub")) == ["two LSTMs", "paper's method"]


@pytest.mark.parametrize(("steps", "swept"), [(1, 2), (2, 2), (3, 5), (8, 5)])
def test_learning_rates_are_tuned_for_the_next_number_of_steps_that_was_swept(make, steps, swept):
    assert rates(make(steps=steps)) == RATES[10, swept]


def test_learning_rates_follow_until_they_are_moved(make):
    widget = make()
    widget.move(labels=5)
    assert rates(widget) == RATES[5, 2]
    widget.move(steps=3)
    assert rates(widget) == RATES[5, 5]
    widget.move(**{"lr Adam": 0.1})
    widget.move(labels=2)
    assert rates(widget) == {**RATES[2, 5], "adam": 0.1}
    widget.press("tuned")
    assert rates(widget) == RATES[2, 5]


def test_a_missing_pretrained_optimizer_is_said_and_the_others_shown(make, recorded):
    (recorded / "cifar.safetensors").unlink()
    widget = make()
    assert sorted(lines(widget)) == ["Adam", "NAG", "RMSprop", "SGD"]
    assert "unknown pretrained optimizer 'cifar'" in widget.state["errors"][0]
    widget.move(optimizer="paper's method")
    assert "LSTM" in lines(widget)
    assert not widget.state["errors"]


def test_learning_rates_for_all_labels_where_fewer_were_not_swept(make, recorded):
    (recorded / "sweeps" / "cifar5.csv").unlink()
    widget = make(labels=5)
    assert rates(widget) == RATES[10, 2]
    lines(widget)
    assert "tuned for 10 labels" in widget.state["text"]
    (recorded / "sweeps" / "cifar10.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no recorded result 'sweeps/cifar10'"):
        make()


@pytest.mark.parametrize(
    "wrong", [{"labels": 3}, {"optimizer": "LSTM"}, {"images": "all"}, {"networks": 0}, {"steps": 0}], ids=str
)
def test_what_there_is_not(make, wrong):
    with pytest.raises(ValueError, match=r"unknown|at least 1"):
        make(**wrong)
