"""A look inside: what the preprocessing makes of gradients, what optimizers propose, and what a memory remembers."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from l2l_kit import plots
from l2l_kit.errors import look_up
from l2l_kit.evaluation import bfgs_losses, memories, proposals
from l2l_kit.optimizers import NTMBFGS, LogSign, Optimizer
from l2l_kit.problems import ConditionedQuadratics, QuadraticTasks
from l2l_kit.randomness import generator
from l2l_kit.tensors import Tensors
from l2l_kit.training import rollout
from l2l_kit.widgets.explorer import Control, Explorer, Picture, Rows, Values, View

DECADES, BINS = (-9.0, 1.0), 60  # sizes of gradients that are shown, as powers of ten, and the bins of their histogram
POINTS = 81  # at which each proposal is evaluated
CONDITIONS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
FUNCTIONS, STEPS = 10, 100
LOWEST = 1e-6  # losses below are as good as zero, and not shown


class PreprocessingExplorer(Explorer):
    """See what the LSTM is shown of real gradients, for any p (appendix A).

    Args:
        gradients: along a trajectory, shape ``(steps, coordinates)``.
        p: how small a gradient is told apart from zero, to begin with: a half, 1, ... 20; the paper uses 10.
        step: of the trajectory, to begin with.
    """

    recorded = MappingProxyType({"p": range(2, 21, 2), "step": range(0, 101, 10)})

    def __init__(self, gradients: Tensor, p: float = 10.0, step: int = 0) -> None:
        self._gradients = gradients
        super().__init__(p=p, step=step)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        p = Control("p", "slider", "p", [half / 2 for half in range(1, 41)], "Of appendix A", marks=[10.0])
        return {"Preprocessing": [p, step_control(len(self._gradients))]}

    def draw(self, values: Values) -> View:
        gradients, threshold = self._gradients[values["step"]], math.exp(-values["p"])
        places = torch.linspace(*DECADES, 4 * BINS + 1)
        first, second = LogSign(values["p"])(10.0**places)
        labels = "What is the LSTM shown of a gradient?", "log₁₀ |∇|", "input of the LSTM"
        figure = plots.Figure(layout=plots.layout(*labels))
        x, y = _outline(gradients)
        area = {"fill": "toself", "fillcolor": plots.GRID, "line": {"width": 0, "color": plots.GREY}}
        figure.add_scatter(name="gradients of the run", x=x, y=y, **{**plots.MARK, **area})
        lines = {"first input": first, "second input (for ∇ > 0)": second}
        for name, style in plots.styles(lines).items():
            drawn = {"x": plots.rounded(places), "y": plots.rounded(lines[name]), "line": {**style.line, "width": 3}}
            figure.add_scatter(name=name, mode="lines", **drawn)
        figure.add_scatter(name="e⁻ᵖ", x=[math.log10(threshold)] * 2, y=[-1, 1], **plots.MARK)
        figure.update_xaxes(range=DECADES).update_yaxes(range=(-1.05, 1.05)).update_layout(showlegend=True)
        small = (gradients.abs() < threshold).float().mean().item()
        text = (
            f"e⁻ᵖ is {threshold:.2g}. {1 - small:.1%} of the gradients are at least as large: the LSTM sees their "
            f"logarithm and their sign. Of the other {small:.1%} it sees −1 and the gradient times eᵖ."
        )
        return View(text, figure)

    def code(self, values: Values) -> str:
        both = f"LogSign({values['p']})(gradients[{values['step']}])"
        return f"from l2l_kit.optimizers import LogSign\n\n{both}  # both inputs of the LSTM, for each coordinate"


class OneCoordinate(Explorer):
    """What is to be seen of one coordinate of one parameter; a subclass says what.

    Args:
        gradients: along a run, by parameter, as `evaluation.recorded_gradients` gives them.
        parameter: of which a coordinate is shown, to begin with; None for the first.
        coordinate: which one, to begin with; None for one whose gradients are of middling size.
        values: what the other controls begin with.

    Raises:
        ValueError: for an unknown parameter or coordinate.
    """

    def __init__(self, gradients: Tensors, parameter: str | None, coordinate: int | None, **values: Any) -> None:
        self._gradients = gradients
        parameter = next(iter(gradients)) if parameter is None else parameter
        look_up("parameter", parameter, gradients)
        coordinate = _middling(gradients[parameter]) if coordinate is None else coordinate
        super().__init__(parameter=parameter, coordinate=coordinate, **values)

    def which(self, values: Values) -> Rows:
        """Controls that choose the coordinate."""
        parameter = Control("parameter", "menu", "Parameter", tuple(self._gradients))
        last = self._gradients[values["parameter"]].shape[1] - 1
        return [parameter, Control("coordinate", "number", "Coordinate", (0, last), more="Next")]

    def settle(self, values: Values) -> Values:
        if values["parameter"] == self._last.get("parameter", values["parameter"]):
            return values
        return {**values, "coordinate": _middling(self._gradients[values["parameter"]])}


class ProposalExplorer(OneCoordinate):
    """See what optimizers would propose for a coordinate at any step, as a function of its gradient (appendix B).

    Each has met the coordinate's gradients up to that step, so it is shown with the state that it would be in there.

    Args:
        optimizers: by name.
        gradients, parameter, coordinate: as in `OneCoordinate`.
        step: to begin with; None for the middle of the trajectory.
    """

    recorded = MappingProxyType({"step": range(0, 101, 4)})

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer[Any]],
        gradients: Tensors,
        parameter: str | None = None,
        coordinate: int | None = None,
        step: int | None = None,
    ) -> None:
        self._optimizers = optimizers
        self._found = lru_cache(maxsize=64)(self._evaluate)
        step = len(next(iter(gradients.values()))) // 2 if step is None else step
        super().__init__(gradients, parameter, coordinate, step=step)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        return {"Coordinate": [*self.which(values), step_control(len(self._gradients[values["parameter"]]))]}

    def draw(self, values: Values) -> View:
        parameter, coordinate, step = values["parameter"], values["coordinate"], values["step"]
        probes, found = self._found(parameter, coordinate)
        actual = self._gradients[parameter][step, coordinate].item()
        title = f"{parameter}, coordinate {coordinate}: proposed update at step {step}"
        lines = {name: (probes, updates[step]) for name, updates in found.items()}
        figure = plots.graph(lines, x="gradient", y="proposed update", title=title, markers=0)
        largest = 1.05 * max(updates.abs().max().item() for updates in found.values())
        figure.add_scatter(name="its gradient now", x=[actual] * 2, y=[-largest, largest], **plots.MARK)
        figure.update_yaxes(range=[-largest, largest], zeroline=True, zerolinecolor=plots.GRID)
        return View(f"Its gradient at this step is {actual:.3g}.", figure.update_layout(showlegend=True))

    def code(self, values: Values) -> str:
        return (
            "import torch\nfrom l2l_kit.evaluation import proposals\n\n"
            f"history = gradients[{values['parameter']!r}][:-1, {values['coordinate']}]\n"
            f"probes = 1.2 * history.abs().max() * torch.linspace(-1, 1, {POINTS})\n"
            f"{{name: updates[{values['step']}] for name, updates in proposals(rules, history, probes).items()}}"
        )

    def _evaluate(self, parameter: str, coordinate: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients at which the functions are evaluated, and their values at every step."""
        history = self._gradients[parameter][:, coordinate]
        probes = torch.linspace(-1, 1, POINTS) * 1.2 * max(history.abs().max().item(), 1e-8)
        return probes, proposals(self._optimizers, history[:-1], probes)


class MemoryExplorer(Explorer):
    """Compare optimizers on quadratics of any condition number, and see what one with a memory remembers of curvature.

    Everything is computed beforehand, in a second or two; after that the sliders only choose what is shown.

    Args:
        memory: a learned optimizer with a memory.
        others: to compare it with, by name.
        condition: condition number, one of `CONDITIONS`, to begin with.
        function: which of ten functions, to begin with.
        step: after how many updates the memory is shown, to begin with.
        seed: of the functions.
    """

    recorded = MappingProxyType({"condition": CONDITIONS, "function": range(3), "step": range(0, STEPS + 1, 10)})

    def __init__(
        self,
        memory: NTMBFGS,
        others: Mapping[str, Optimizer[Any]],
        condition: int = 100,
        function: int = 0,
        step: int = 20,
        seed: int = 0,
    ) -> None:
        drawn = [ConditionedQuadratics(condition=c).sample(FUNCTIONS, generator(seed, "test")) for c in CONDITIONS]
        tensors = zip(*((each.W, each.y, each.theta) for each in drawn), strict=True)
        functions = QuadraticTasks(*map(torch.cat, tensors))
        rules = {**others, "NTM-BFGS": memory}
        self._losses = {name: rollout(rule, functions, STEPS) for name, rule in rules.items()}
        self._losses["BFGS"] = bfgs_losses(functions, STEPS)
        self._memories, self._seed = memories(memory, functions, STEPS), seed
        self._inverses = (2 * functions.W.mT @ functions.W).inverse()
        super().__init__(condition=condition, function=function, step=step)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        condition = Control("condition", "slider", "Condition", CONDITIONS, "Largest curvature over the smallest")
        function = Control("function", "slider", "Function", range(FUNCTIONS), "Which of ten")
        return {"Function": [condition, function, step_control(STEPS + 1)]}

    def draw(self, values: Values) -> View:
        step, which = values["step"], CONDITIONS.index(values["condition"]) * FUNCTIONS + values["function"]
        lines = {name: losses[which].clamp_min(LOWEST).tolist() for name, losses in self._losses.items()}
        figure = plots.losses(lines, STEPS, "Who goes down fastest? (BFGS by number of gradients)")
        ends = [10.0**end for end in figure.layout.yaxis.range]
        figure.add_scatter(name="here", x=[step] * 2, y=ends, showlegend=False, **plots.MARK)
        memory, inverse = self._memories[which, step], self._inverses[which]
        stream = io.BytesIO()
        plots.matrices({"": {"memory": memory, "inverse Hessian": inverse}}, zoom=12).save(stream, "png")
        text = (
            f"Cosine between the two: {_cosine(memory, inverse):.2f}. The identity, with which a memory begins, has "
            f"{_cosine(torch.eye(len(memory)), inverse):.2f}."
        )
        return View(text, figure, [Picture("Memory", stream.getvalue(), f"at step {step}", side=252)])

    def code(self, values: Values) -> str:
        return (
            "from l2l_kit.evaluation import memories\nfrom l2l_kit.randomness import generator\n\n"
            f"problem = l2l.problems.ConditionedQuadratics(condition={values['condition']})\n"
            f'functions = problem.sample({FUNCTIONS}, generator({self._seed}, "test"))\n'
            f"memories(memory, functions, {STEPS})[{values['function']}, {values['step']}]"
        )


def step_control(steps: int) -> Control:
    """A step of a run, which can be played."""
    return Control("step", "player", "Step", range(steps), "Of the trajectory")


def _outline(gradients: Tensor) -> tuple[list[float], list[float]]:
    """Outline of a histogram of the gradients' sizes, from -1 up to 0 at its highest; what is beyond is left out."""
    low, high = DECADES
    counts = torch.histc(gradients[gradients != 0].abs().log10(), BINS, low, high)
    heights = counts / counts.max().clamp_min(1) - 1
    edges = torch.linspace(low, high, BINS + 1)
    x = [low, *edges.repeat_interleave(2)[1:-1].tolist(), high]
    return x, [-1.0, *heights.repeat_interleave(2).tolist(), -1.0]


def _middling(gradients: Tensor) -> int:
    """The coordinate whose largest gradient is the median of all coordinates'."""
    return int(gradients.abs().amax(dim=0).argsort()[gradients.shape[1] // 2])


def _cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()
