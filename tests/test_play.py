"""The race, the playground and the coordinate that thinks: what they show is what the optimizers do."""

import math
import re

import pandas as pd
import pytest
import torch

from l2l_kit import baseline, compare, zoo
from l2l_kit.evaluation import recorded_gradients, responses, thoughts, tuning
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.widgets import CoordinateExplorer, Playground, Race
from l2l_kit.widgets.comparison import LearnedExplorer
from l2l_kit.widgets.playground import STEPS

RATES = {"SGD": 0.01, "NAG": 0.01, "RMSprop": 0.05, "Adam": 1.0}
LSTM = LSTMRule(hidden_size=4, output_scale=0.5)
BY_HAND = {name: baseline(name, lr) for name, lr in RATES.items()}


@pytest.fixture(autouse=True)
def recorded(monkeypatch, tmp_path):
    """An optimizer and learning rates that are made here, so that the tests need no recorded ones."""
    zoo.save(LSTM, tmp_path / "quadratics")
    monkeypatch.setattr(zoo, "PRETRAINED", tmp_path)
    rows = [{"baseline": name.lower(), "step": 100, "lr": lr, "mean": 1, "median": 1} for name, lr in RATES.items()]
    monkeypatch.setattr(tuning, "read_result", lambda name: pd.DataFrame(rows))


def drawn(widget):
    return {trace.name: (list(trace.x), list(trace.y)) for trace in widget.view.figure.data}


class TestRace:
    def test_the_lowest_final_loss_wins(self):
        race = Race(seed=3)
        finals = {3: {}, 4: {}}
        for seed, found in finals.items():
            curves = compare({"LSTM": LSTM, "Adam": BY_HAND["Adam"], "NAG": BY_HAND["NAG"]}, Quadratics(), num_tasks=1,
                             steps=100, seed=seed, device="cpu")  # fmt: skip
            found |= {name: losses[0, -1].item() for name, losses in curves.losses.items()}
            race.move(step=100)
            assert race.state["text"].startswith(f"{min(found, key=found.get)} wins draw {seed}")
            race.move(seed=5 if seed == 4 else 4)
        winners = [min(found, key=found.get) for found in finals.values()]
        score = ", ".join(f"{name} {winners.count(name)}" for name in ("LSTM", "Adam", "NAG"))
        assert race.view.figure.layout.title.text == f"Races won: {score}"

    def test_another_racer_begins_at_the_start_with_a_score_of_its_own(self, monkeypatch):
        monkeypatch.setattr(LearnedExplorer, "_trained_here", {})
        race = Race()
        race.move(step=100)
        LearnedExplorer.offer("quadratics", "mine", LSTMRule(hidden_size=4, output_scale=0.5, seed=1))
        for learned, races in (("mine", 0), ("pretrained", 1)):
            race.move(learned=learned)
            assert race.values["step"] == 0
            assert sum(map(int, re.findall(r"\d+", race.view.figure.layout.title.text))) == races

    def test_another_draw_begins_at_the_start_and_counts_only_at_the_end(self):
        race = Race()
        race.move(step=40)
        assert {len(x) for x, _ in drawn(race).values()} == {41}
        race.picture()  # shows the end
        race.move(seed=1)
        assert (race.values["seed"], race.values["step"]) == (1, 0)
        assert re.findall(r"\d+", race.view.figure.layout.title.text) == ["0"] * 3
        race.move(step=100)
        race.move(step=98)
        race.move(step=100)
        assert sorted(re.findall(r"\d+", race.view.figure.layout.title.text)) == ["0", "0", "1"], "it counts once"
        race.press("reset")
        assert re.findall(r"\d+", race.view.figure.layout.title.text) == ["0"] * 3


class TestPlayground:
    def test_gradient_descent_goes_where_it_must(self):
        """Along the axes of the function, each step of SGD shrinks a coordinate by a factor of 1 - α · curvature."""
        widget = Playground(start=(2.0, -1.0), angle=0, condition=10)
        widget.move(step=STEPS)
        x, y = drawn(widget)["SGD"]
        assert x == pytest.approx([2 * (1 - 0.01 * 2) ** t for t in range(STEPS + 1)], rel=1e-3)
        assert y == pytest.approx([-((1 - 0.01 * 20) ** t) for t in range(STEPS + 1)], rel=1e-3)
        widget.move(angle=90, x=1.0, y=2.0)  # the same start, as seen from the function
        turned_x, turned_y = drawn(widget)["SGD"]
        assert turned_y == pytest.approx(x, rel=1e-3)
        assert turned_x == pytest.approx([-each for each in y], rel=1e-3)

    def test_all_controls_move_it(self):
        widget = Playground()
        before = drawn(widget)
        widget.move(**{"lr Adam": 0.1})
        after = drawn(widget)
        assert [name for name in RATES if after[name] != before[name]] == ["Adam"]
        widget.move(step=7, SGD=False)
        assert "SGD" not in drawn(widget)
        assert {len(drawn(widget)[name][0]) for name in ("LSTM", "NAG", "RMSprop", "Adam")} == {8}
        assert sum("downhill" in str(name) for name in drawn(widget)) == 4
        widget.move(arrows=False)
        assert not any("downhill" in str(name) for name in drawn(widget))
        with pytest.raises(ValueError, match="unknown"):
            Playground(condition=3)

    def test_it_has_a_picture_also_where_nothing_is_chosen(self):
        widget = Playground()
        widget.move(**dict.fromkeys(("LSTM", *RATES), False))
        assert widget.picture().startswith(b"\x89PNG")

    def test_arrows_point_downhill(self):
        widget = Playground(start=(2.0, 1.0), angle=0, condition=10)
        widget.move(step=0)
        (x, tip_x, *_), (y, tip_y, *_) = drawn(widget)["LSTM, downhill"]
        steep = math.hypot(2 * 2, 20 * 1)
        assert ((tip_x - x) / 0.5, (tip_y - y) / 0.5) == pytest.approx((-4 / steep, -20 / steep))

    def test_its_code_leads_to_the_same_place(self, capsys):
        widget = Playground()
        exec(widget.code(widget.values), {})
        theta = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", capsys.readouterr().out)[:2]]
        x, y = drawn(widget)["LSTM"]
        assert theta == pytest.approx([x[-1], y[-1]], rel=0.05, abs=1e-2)


@pytest.fixture(scope="module")
def gradients():
    recorded = recorded_gradients(LSTM, Quadratics(dim=5), steps=8, device="cpu")
    return {"theta": recorded["theta"], "other": 10 * recorded["theta"][:, :3]}


@pytest.mark.parametrize("rule", [LSTM, LSTMRule(3, 3, "log-sign"), LSTMRule(4, odd=True)], ids=["plain", "log", "odd"])
def test_thoughts_keep_the_equations_of_an_lstm(gradients, rule):
    found = thoughts(rule, gradients["theta"][:, 2])
    take, keep, give, candidate = found.gates.unbind(2)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.cells[1:], keep * found.cells[:-1] + take * candidate, **close)
    torch.testing.assert_close(found.outputs[1:], give * found.cells[1:].tanh(), **close)
    torch.testing.assert_close(found.updates, responses({"": rule}, gradients["theta"])[""][:, 2], **close)
    if not rule.odd:
        update = rule.output_scale * (found.outputs[1:, -1] @ rule.output.weight[0] + rule.output.bias)
        torch.testing.assert_close(update.detach(), found.updates, **close)


class TestCoordinate:
    @pytest.fixture
    def widget(self, gradients):
        return CoordinateExplorer(LSTM, BY_HAND, gradients, torch.linspace(2, 1, 9), coordinate=2, step=3)

    def test_the_equations_hold(self, widget):
        """With the numbers that are shown, which are rounded."""
        for step in (0, 3, 7):
            widget.move(step=step, unit=2, layer=2)
            for line in widget.view.lines:
                if " = " in line and not line.startswith(("gradient", "layer", "LSTM")):
                    *_, filled, result = line.replace("−", "-").replace("·", "*").split(" = ")
                    filled = re.sub(r"tanh (\S+)", r"math.tanh(\1)", filled)
                    assert eval(filled, {"math": math}) == pytest.approx(float(result), rel=0.05, abs=1e-3), line

    def test_a_click_chooses_a_step_or_a_unit(self, widget):
        widget.point("LSTM", 5)
        assert widget.values["step"] == 5
        widget.point("layer 2", 3)
        assert (widget.values["layer"], widget.values["unit"]) == (2, 3)
        widget.point("LSTM", 8)
        assert widget.values["step"] == 7, "after the last point there is no update"

    @pytest.mark.parametrize(("along", "names"), [("loss", 1), ("gradient", 1), ("update", 5)])
    def test_each_curve_there_is(self, widget, gradients, along, names):
        widget.move(along=along)
        curves = [trace for trace in widget.view.figure.data if trace.mode == "lines" and trace.yaxis is None]
        assert len(curves) == names
        if along == "update":
            expected = responses(BY_HAND, gradients["theta"][:-1])
            for trace in curves[1:]:
                assert list(trace.y) == pytest.approx(expected[trace.name][:, 2].tolist(), rel=1e-3)
        assert widget.picture().startswith(b"\x89PNG")

    def test_another_parameter(self, widget, gradients):
        widget.move(parameter="other")
        assert widget.values["coordinate"] < 3
        with pytest.raises(ValueError, match="unknown"):
            CoordinateExplorer(LSTM, BY_HAND, gradients, torch.ones(9), parameter="weights")
