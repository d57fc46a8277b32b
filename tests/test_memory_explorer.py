"""The explorer of lesson 08: what it draws is what the optimizers, BFGS and the memory give."""

import io

import numpy as np
import PIL.Image
import pytest
import torch

from l2l_kit import baseline, plots
from l2l_kit.evaluation import bfgs_losses, memories
from l2l_kit.optimizers import NTMBFGS
from l2l_kit.problems import ConditionedQuadratics
from l2l_kit.randomness import generator
from l2l_kit.training import rollout
from l2l_kit.widgets import memory_explorer

MEMORY = NTMBFGS(hidden_size=4, history=3)
OTHERS = {"NAG": baseline("nag", 0.01)}


@pytest.fixture(scope="module")
def widget():
    return memory_explorer(MEMORY, OTHERS, seed=2)


def drawn(widget):
    return {trace.name: trace.y for trace in widget.figure.data}


def show(widget, condition, function, step):
    widget.condition.value, widget.function.value, widget.step.value = condition, function, step


def test_shows_the_losses_of_the_function_that_is_chosen(widget):
    show(widget, 300, 4, 7)
    functions = ConditionedQuadratics(condition=300).sample(10, generator(2, "test"))
    expected = {name: rollout(rule, functions, 100)[4] for name, rule in {**OTHERS, "NTM-BFGS": MEMORY}.items()}
    expected["BFGS"] = bfgs_losses(functions, 100)[4]
    assert set(drawn(widget)) == {*expected, "here"}
    for name, losses in expected.items():
        assert drawn(widget)[name] == pytest.approx(losses.clamp_min(1e-6).tolist(), rel=1e-3)
    assert widget.figure.data[-1].x == (7, 7)


def test_shows_the_memory_beside_the_inverse_hessian(widget):
    show(widget, 300, 4, 7)
    functions = ConditionedQuadratics(condition=300).sample(10, generator(2, "test"))
    memory = memories(MEMORY, functions, 7)[4, 7]
    inverse = (2 * functions.W.mT @ functions.W).inverse()[4]
    cosine = torch.cosine_similarity(memory.flatten(), inverse.flatten(), dim=0).item()
    assert f"{cosine:.2f}" in widget.status.value
    shown = np.asarray(PIL.Image.open(io.BytesIO(widget.picture.value)))
    expected = np.asarray(plots.matrices({"": {"memory": memory, "inverse Hessian": inverse}}, zoom=12))
    assert abs(shown.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("control", "value"), [("condition", 10), ("function", 5)])
def test_other_functions_have_other_curves(widget, control, value):
    show(widget, 300, 4, 7)
    before = drawn(widget)
    getattr(widget, control).value = value
    assert all(drawn(widget)[name] != before[name] for name in ("NAG", "NTM-BFGS", "BFGS"))


def test_another_step_shows_another_memory_and_the_same_curves(widget):
    show(widget, 300, 4, 7)
    before, picture = drawn(widget), widget.picture.value
    widget.step.value = 8
    assert widget.picture.value != picture
    assert all(drawn(widget)[name] == before[name] for name in ("NAG", "NTM-BFGS", "BFGS"))


@pytest.mark.parametrize("arguments", [{"condition": 2}, {"function": 10}, {"step": 101}, {"step": -1}])
def test_what_there_is_not(arguments):
    with pytest.raises(ValueError, match="condition must be one of"):
        memory_explorer(MEMORY, OTHERS, **arguments)
