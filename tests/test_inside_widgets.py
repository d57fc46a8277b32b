"""The explorers of lesson 07: what they draw is what the optimizers and the preprocessing give."""

import re

import pytest
import torch

from l2l_kit import baseline
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import proposals, recorded_gradients
from l2l_kit.optimizers import LogSign, LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.widgets import preprocessing_explorer, proposal_explorer

OPTIMIZERS = {"LSTM": LSTMRule(hidden_size=4), "NAG": baseline("nag", 0.01), "Adam": baseline("adam", 0.1)}


@pytest.fixture(scope="module")
def gradients():
    recorded = recorded_gradients(OPTIMIZERS["Adam"], Quadratics(dim=5), steps=8, device="cpu")
    return {"theta": recorded["theta"], "other": 10 * recorded["theta"][:, :3]}


def text(widget):
    return re.sub("<[^>]+>", "", widget.status.value).replace("&#x27;", "'")


class TestProposals:
    def drawn(self, widget):
        return {trace.name: trace.y for trace in widget.figure.data}

    def test_shows_what_the_optimizers_propose(self, gradients):
        widget = proposal_explorer(OPTIMIZERS, gradients, coordinate=2, step=3)
        for trace in widget.figure.data[:-1]:
            expected = proposals(OPTIMIZERS, gradients["theta"][:-1, 2], torch.tensor(trace.x))[trace.name][3]
            assert trace.y == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
        actual = gradients["theta"][3, 2].item()
        assert widget.figure.data[-1].x == pytest.approx([actual] * 2)
        assert f"{actual:.3g}" in text(widget)
        assert widget.figure.layout.title.text == "theta, coordinate 2: proposed update at step 3"

    def test_begins_in_the_middle(self, gradients):
        widget = proposal_explorer(OPTIMIZERS, gradients)
        assert (widget.parameter.value, widget.step.value) == ("theta", 4)
        largest = gradients["theta"].abs().amax(dim=0)
        assert largest[widget.coordinate.value] == largest.median()

    def test_each_control_moves_the_curves(self, gradients):
        widget = proposal_explorer(OPTIMIZERS, gradients, coordinate=1, step=2)
        shown = [self.drawn(widget)]
        for control, value in (("step", 5), ("coordinate", 3), ("parameter", "other")):
            getattr(widget, control).value = value
            shown.append(self.drawn(widget))
        assert len({each["Adam"] for each in shown}) == 4
        assert widget.coordinate.max == 2

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"parameter": "weights"}, UnknownNameError),
            ({"coordinate": 5}, ValueError),
            ({"step": 9}, ValueError),
            ({"step": -1}, ValueError),
        ],
    )
    def test_what_there_is_not(self, gradients, arguments, error):
        with pytest.raises(error):
            proposal_explorer(OPTIMIZERS, gradients, **arguments)


class TestPreprocessing:
    def drawn(self, widget):
        return {trace.name: (trace.x, trace.y) for trace in widget.figure.data}

    def test_shows_the_inputs_for_gradients_of_every_size(self, gradients):
        drawn = self.drawn(preprocessing_explorer(gradients["theta"], p=4.0, step=1))
        places = torch.tensor(drawn["first input"][0], dtype=torch.float64)
        for name, expected in zip(("first input", "second input (for ∇ > 0)"), LogSign(4.0)(10**places), strict=True):
            assert drawn[name][1] == pytest.approx(expected.tolist(), abs=1e-3)

    def test_shows_where_the_gradients_are(self):
        gradients = torch.tensor([[1e-3] * 4 + [-1e-6] * 2 + [0.0]])
        x, y = self.drawn(preprocessing_explorer(gradients))["the gradients there are"]
        heights = {
            round(at): max(top for place, top in zip(x, y, strict=True) if abs(place - at) < 0.3) for at in (-3, -6)
        }
        assert heights == pytest.approx({-3: 0.0, -6: -0.5})
        assert max(top for place, top in zip(x, y, strict=True) if abs(place + 4.5) < 1) == -1

    def test_says_how_many_are_in_which_branch(self):
        gradients = torch.tensor([[1.0, 0.5, 1e-3, -1e-4]])
        widget = preprocessing_explorer(gradients, p=5.0)
        assert "50.0% of the gradients are at least as large" in text(widget)
        widget.p.value = 8.0
        assert "75.0% of the gradients are at least as large" in text(widget)

    def test_steps(self, gradients):
        widget = preprocessing_explorer(gradients["theta"])
        before = self.drawn(widget)
        widget.step.value = 5
        after = self.drawn(widget)
        assert after.pop("the gradients there are") != before.pop("the gradients there are")
        assert after == before

    @pytest.mark.parametrize("arguments", [{"p": 0}, {"p": 21}, {"step": 9}])
    def test_what_there_is_not(self, gradients, arguments):
        with pytest.raises(ValueError, match="p must lie in"):
            preprocessing_explorer(gradients["theta"], **arguments)
