"""The explorers of lesson 07: what they draw is what the optimizers and the preprocessing give."""

import pytest
import torch

from l2l_kit import baseline
from l2l_kit.evaluation import proposals, recorded_gradients
from l2l_kit.optimizers import LogSign, LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.widgets import PreprocessingExplorer, ProposalExplorer

OPTIMIZERS = {"LSTM": LSTMRule(hidden_size=4), "NAG": baseline("nag", 0.01), "Adam": baseline("adam", 0.1)}


@pytest.fixture(scope="module")
def gradients():
    recorded = recorded_gradients(OPTIMIZERS["Adam"], Quadratics(dim=5), steps=8, device="cpu")
    return {"theta": recorded["theta"], "other": 10 * recorded["theta"][:, :3]}


def drawn(widget):
    return {trace.name: (trace.x, trace.y) for trace in widget.view.figure.data}


class TestProposals:
    def test_shows_what_the_optimizers_propose(self, gradients):
        widget = ProposalExplorer(OPTIMIZERS, gradients, coordinate=2, step=3)
        *lines, here = widget.view.figure.data
        for trace in lines:
            expected = proposals(OPTIMIZERS, gradients["theta"][:-1, 2], torch.tensor(trace.x))[trace.name][3]
            assert trace.y == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
        actual = gradients["theta"][3, 2].item()
        assert here.x == pytest.approx([actual] * 2)
        assert f"{actual:.3g}" in widget.state["text"]
        assert widget.view.figure.layout.title.text == "theta, coordinate 2: proposed update at step 3"

    def test_begins_in_the_middle(self, gradients):
        values = ProposalExplorer(OPTIMIZERS, gradients).values
        assert (values["parameter"], values["step"]) == ("theta", 4)
        largest = gradients["theta"].abs().amax(dim=0)
        assert largest[values["coordinate"]] == largest.median()

    def test_each_control_moves_the_curves(self, gradients):
        widget = ProposalExplorer(OPTIMIZERS, gradients, coordinate=1, step=2)
        shown = [drawn(widget)]
        for move in ({"step": 5}, {"coordinate": 3}, {"parameter": "other"}):
            widget.move(**move)
            shown.append(drawn(widget))
        assert len({each["Adam"] for each in shown}) == 4
        assert widget.values["coordinate"] < 3

    @pytest.mark.parametrize("wrong", [{"parameter": "weights"}, {"coordinate": 5}, {"step": 9}, {"step": -1}], ids=str)
    def test_what_there_is_not(self, gradients, wrong):
        with pytest.raises(ValueError, match=r"unknown|whole number"):
            ProposalExplorer(OPTIMIZERS, gradients, **wrong)


class TestPreprocessing:
    def test_shows_the_inputs_for_gradients_of_every_size(self, gradients):
        shown = drawn(PreprocessingExplorer(gradients["theta"], p=4.0, step=1))
        places = torch.tensor(shown["first input"][0], dtype=torch.float64)
        for name, expected in zip(("first input", "second input (for ∇ > 0)"), LogSign(4.0)(10**places), strict=True):
            assert shown[name][1] == pytest.approx(expected.tolist(), abs=1e-3)

    def test_shows_where_the_gradients_are(self):
        gradients = torch.tensor([[1e-3] * 4 + [-1e-6] * 2 + [0.0]])
        x, y = drawn(PreprocessingExplorer(gradients))["gradients of the run"]
        heights = {
            round(at): max(top for place, top in zip(x, y, strict=True) if abs(place - at) < 0.3) for at in (-3, -6)
        }
        assert heights == pytest.approx({-3: 0.0, -6: -0.5})
        assert max(top for place, top in zip(x, y, strict=True) if abs(place + 4.5) < 1) == -1

    def test_says_how_many_are_in_which_branch(self):
        widget = PreprocessingExplorer(torch.tensor([[1.0, 0.5, 1e-3, -1e-4]]), p=5.0)
        assert "50.0% of the gradients are at least as large" in widget.state["text"]
        widget.move(p=8.0)
        assert "75.0% of the gradients are at least as large" in widget.state["text"]

    @pytest.mark.parametrize("wrong", [{"p": 0}, {"p": 21}, {"step": 9}], ids=str)
    def test_what_there_is_not(self, gradients, wrong):
        with pytest.raises(ValueError, match="unknown"):
            PreprocessingExplorer(gradients["theta"], **wrong)
