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
from l2l_kit.widgets import MemoryExplorer

MEMORY = NTMBFGS(hidden_size=4, history=3)
with torch.no_grad():
    for weight in MEMORY.parameters():  # as they are drawn, what it remembers changes by less than a shade of colour
        weight.mul_(10)
OTHERS = {"NAG": baseline("nag", 0.01)}


@pytest.fixture(scope="module")
def widget():
    return MemoryExplorer(MEMORY, OTHERS, seed=2)


def drawn(widget, **move):
    widget.move(**{"condition": 300, "function": 4, "step": 7, **move})
    return {trace.name: trace.y for trace in widget.view.figure.data if trace.name != "here"}


def test_shows_the_losses_of_the_function_that_is_chosen(widget):
    functions = ConditionedQuadratics(condition=300).sample(10, generator(2, "test"))
    expected = {name: rollout(rule, functions, 100)[4] for name, rule in {**OTHERS, "NTM-BFGS": MEMORY}.items()}
    expected["BFGS"] = bfgs_losses(functions, 100)[4]
    shown = drawn(widget)
    assert set(shown) == set(expected)
    for name, losses in expected.items():
        assert shown[name] == pytest.approx(losses.clamp_min(1e-6).tolist(), rel=1e-3)
    assert widget.view.figure.data[-1].x == (7, 7)


def colors(widget):
    picture = PIL.Image.open(io.BytesIO(widget.view.pictures[0].png))
    return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("step", [7, 60])
def test_shows_the_memory_beside_the_inverse_hessian(widget, step):
    drawn(widget, step=step)
    functions = ConditionedQuadratics(condition=300).sample(10, generator(2, "test"))
    memory = memories(MEMORY, functions, step)[4, step]
    inverse = (2 * functions.W.mT @ functions.W).inverse()[4]
    cosine = torch.cosine_similarity(memory.flatten(), inverse.flatten(), dim=0).item()
    assert f"{cosine:.2f}" in widget.state["text"]
    expected = plots.matrices({"": {"memory": memory, "inverse Hessian": inverse}}, zoom=12).convert("RGB")
    assert abs(colors(widget) - np.asarray(expected)).max() <= 2
    assert widget.view.pictures[0].caption == f"at step {step}"


def test_other_functions_have_other_curves_and_other_steps_another_memory(widget):
    before = drawn(widget)
    for move in ({"condition": 10}, {"function": 5}):
        assert all(drawn(widget, **move)[name] != before[name] for name in ("NAG", "NTM-BFGS", "BFGS"))
    drawn(widget)
    remembered = colors(widget)
    assert drawn(widget, step=60) == before
    assert abs(colors(widget) - remembered).max() > 50, "one sees that the memory has changed"


@pytest.mark.parametrize("arguments", [{"condition": 2}, {"function": 10}, {"step": 101}, {"step": -1}], ids=str)
def test_what_there_is_not(arguments):
    with pytest.raises(ValueError, match="unknown"):
        MemoryExplorer(MEMORY, OTHERS, **arguments)
