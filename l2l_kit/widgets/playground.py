"""A landscape to play on: where optimizers go from any start, on a function that can be turned and stretched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from l2l_kit import plots, static
from l2l_kit.evaluation import tuned_baselines
from l2l_kit.optimizers import Baseline, Optimizer, UpdateRule
from l2l_kit.problems import Quadratics, QuadraticTasks
from l2l_kit.widgets.comparison import LEARNED, LearnedExplorer, all_ticked, made_by, rate_controls, tick, ticked
from l2l_kit.widgets.explorer import Control, Rows, Values, View

STEPS, BEGIN, EDGE = 40, 10, 3.0
"""Updates of each optimizer, how many are shown at first, and where the landscape ends on all four sides."""
STEEPEST = 20.0  # The largest curvature. It stays when the function is stretched, and the other one becomes smaller.
CONDITIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
ARROW, PROBLEM = 0.5, Quadratics.name


class Playground(LearnedExplorer):
    """See where SGD, NAG, RMSprop, Adam and a learned optimizer go on a quadratic function of two parameters.

    Args:
        start: the starting point, which can be dragged, to begin with; both within -3 and 3.
        angle: by which the function is turned, in degrees, a multiple of 5 below 180, to begin with.
        condition: its condition number, one of `CONDITIONS`, to begin with.

    Raises:
        FileNotFoundError: if no tuned learning rates for the quadratics are recorded.
        UnknownNameError: for another angle or condition number.
    """

    compares = False
    recorded = MappingProxyType(
        {"angle": (0, 30, 60, 90), "condition": (1, 5, 20, 100), "step": range(0, STEPS + 1, 2)}
    )

    def __init__(self, start: tuple[float, float] = (-2.2, 1.4), angle: int = 30, condition: int = 20) -> None:
        self._tuned = tuned_baselines(PROBLEM)
        self._begun = lru_cache(maxsize=256)(lambda *way: (list[Tensor](), self._walk(*way)))
        values = {"x": start[0], "y": start[1], "angle": angle, "condition": condition, "step": BEGIN, "arrows": True}
        super().__init__(**values, **all_ticked(self._tuned))

    def controls(self, values: Values) -> Mapping[str, Rows]:
        function = [
            Control("angle", "slider", "Turn", range(0, 180, 5), "Degrees"),
            Control("condition", "slider", "Stretch", CONDITIONS, "Condition number: largest curvature over smallest"),
        ]
        arrows = Control("arrows", "check", "arrows downhill", help="At each optimizer, the direction of −∇f")
        rows: Rows = [
            Control("step", "player", "Step", range(STEPS + 1), "Updates so far"),
            (tick(LEARNED), *self.learned_controls(PROBLEM)),
            *rate_controls(self._tuned, values),
            arrows,
        ]
        return {"Function": function, "Optimizers": rows}

    def draw(self, values: Values) -> View:
        functions, step = self._function(values), values["step"]
        rules = ticked(self.rule(PROBLEM, values), self._tuned, values)
        where = values["x"], values["y"], values["angle"], values["condition"]
        paths = {name: self._path(step, rule, *where) for name, rule in rules.items()}
        if not paths:
            return View("Tick at least one optimizer.")
        losses = {name: _losses(functions, path) for name, path in paths.items()}
        title = "Drag the start, or move it with the arrow keys"
        figure = plots.landscape(lambda points: _losses(functions, points), paths, step, EDGE, title)
        figure.update_layout(dragmode=False, meta={"drag": ("x", "y")})
        ring = {"size": 17, "color": plots.CLEAR, "line": {"color": plots.GREY, "width": 3}}
        figure.add_scatter(name="start", x=[values["x"]], y=[values["y"]], mode="markers", marker=ring, **plots.QUIET)
        if values["arrows"]:
            for name, path in paths.items():
                x, y = _arrow(path[step], -path[step] @ _hessian(functions))
                color = {"color": plots.STYLES[name].color, "width": 1.5}
                figure.add_scatter(name=f"{name}, downhill", x=x, y=y, mode="lines", line=color, **plots.QUIET)
        now = sorted((line[step].item(), name) for name, line in losses.items())
        return View(f"f after {step} steps: " + ", ".join(f"{name} {loss:.3g}" for loss, name in now) + ".", figure)

    def code(self, values: Values) -> str:
        hessian = [[float(f"{entry:.4g}") for entry in row] for row in _hessian(self._function(values)).tolist()]
        learned = made_by(self.learned(PROBLEM, PROBLEM, values))
        baselines = "".join(
            f"# or {made_by(Baseline(rule.name, values[f'lr {name}']))}\n" for name, rule in self._tuned.items()
        )
        return (
            f"import torch\nimport l2l_kit as l2l\n\nhessian = torch.tensor({hessian})  # f(θ) = θᵀHθ / 2\n"
            f"theta = torch.tensor([[{values['x']}, {values['y']}]])\noptimizer = {learned}\n{baselines}"
            'state = optimizer.init({"theta": theta})\n'
            f"for _ in range({values['step']}):\n"
            '    updates, state = optimizer.update({"theta": theta @ hessian}, state, {"theta": theta})\n'
            '    theta = theta + updates["theta"]\nprint(theta, (theta @ hessian * theta).sum() / 2)'
        )

    def picture(self) -> bytes:
        return static.png(self.draw({**self.values, "step": STEPS}).figure or plots.Figure())

    def _function(self, values: Values) -> QuadraticTasks:
        angle = math.radians(values["angle"])
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        scales = (STEEPEST / 2 * torch.tensor([1 / values["condition"], 1.0])).sqrt()
        start = torch.tensor([[values["x"], values["y"]]], dtype=torch.float32)
        return QuadraticTasks((scales[:, None] * turn)[None], torch.zeros(1, 2), start)

    def _path(self, step: int, *way: Any) -> Tensor:
        """The positions θ(0) … θ(step). No more are computed, since the pointer waits."""
        points, walk = self._begun(*way)
        points.extend(islice(walk, max(0, step + 1 - len(points))))
        return torch.cat(points[: step + 1])

    def _walk(self, rule: Baseline | UpdateRule, x: float, y: float, angle: int, condition: int) -> Iterator[Tensor]:
        """The positions θ(0), θ(1), …, each of shape ``(1, 2)``. Gradients by hand are cheaper than autograd's."""
        function = self._function({"x": x, "y": y, "angle": angle, "condition": condition})
        optimizer, hessian, theta = cast("Optimizer[Any]", rule), _hessian(function), function.theta
        state = optimizer.init(function.initial_params)
        while True:
            yield theta
            updates, state = optimizer.update({"theta": theta @ hessian}, state, {"theta": theta})
            theta = theta + updates["theta"]


def _arrow(at: Tensor, downhill: Tensor) -> tuple[list[float], list[float]]:
    """The outline of an arrow of one length: gradients of very different sizes are to be seen."""
    if at.abs().max() >= EDGE or downhill.norm() == 0:
        return [], []
    along = ARROW * downhill / downhill.norm()
    tip, across = at + along, 0.12 * torch.stack([-along[1], along[0]])
    points = torch.stack([at, tip, tip - 0.25 * along + across, tip, tip - 0.25 * along - across])
    return points[:, 0].tolist(), points[:, 1].tolist()


def _hessian(functions: QuadraticTasks) -> Tensor:
    return 2 * functions.W[0].mT @ functions.W[0]


def _losses(functions: QuadraticTasks, points: Tensor) -> Tensor:
    return (points @ _hessian(functions) * points).sum(dim=1) / 2
