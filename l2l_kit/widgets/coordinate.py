"""One coordinate thinks: all that an LSTM computes for it at a step of a run, with the numbers filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from l2l_kit import plots
from l2l_kit.evaluation import Thoughts, responses, thoughts
from l2l_kit.optimizers import Baseline, LogSign, LSTMRule, Scale
from l2l_kit.tensors import Tensors
from l2l_kit.widgets.comparison import LEARNED
from l2l_kit.widgets.explorer import Control, Rows, Values, View
from l2l_kit.widgets.inside import OneCoordinate, step_control

ALONG = ("loss", "gradient", "update")
ROWS = ("input gate i", "forget gate f", "output gate o", "candidate c̃", "cell c", "output h")
BELOW: dict[str, Any] = {"xaxis": "x2", "yaxis": "y2", "showlegend": False}  # in the lower panel


class CoordinateExplorer(OneCoordinate):
    """Choose a step of a run and a coordinate, and see what the LSTM computes there, beside hand-designed optimizers.

    The curve is of the run, and a click on it chooses a step. A click on a square chooses a unit of the LSTM.

    Args:
        lstm: which made the run.
        baselines: that meet the same gradients, by name.
        losses: along the run, shape ``(steps + 1,)``.
        gradients, parameter, coordinate: as in `OneCoordinate`.
        step: to begin with.
    """

    compares = False
    recorded = MappingProxyType(
        {"along": ALONG, "layer": (1, 2), "unit": (1, 5, 10, 15, 20), "step": range(0, 100, 10)}
    )

    def __init__(
        self,
        lstm: LSTMRule,
        baselines: Mapping[str, Baseline],
        gradients: Tensors,
        losses: Tensor,
        parameter: str | None = None,
        coordinate: int | None = None,
        step: int = 10,
    ) -> None:
        self._lstm, self._baselines, self._losses = lstm, baselines, losses
        self._found = lru_cache(maxsize=64)(self._think)
        super().__init__(gradients, parameter, coordinate, step=step, along=ALONG[0], layer=1, unit=1)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        layer = Control("layer", "slider", "Layer", range(1, self._lstm.num_layers + 1))
        unit = Control("unit", "slider", "Unit", range(1, self._lstm.hidden_size + 1))
        run = [step_control(len(self._losses) - 1), Control("along", "choice", "Curve", ALONG)]
        return {"Run": run, "Coordinate": self.which(values), "Unit of the LSTM": [layer, unit]}

    def point(self, line: str, x: float) -> None:
        if line.startswith("layer"):
            self.move(layer=int(line.removeprefix("layer ")), unit=int(x))
        else:
            self.move(step=min(int(x), len(self._losses) - 2))

    def draw(self, values: Values) -> View:
        gradients, found, updates = self._found(values["parameter"], values["coordinate"])
        curves = {"loss": {LEARNED: self._losses}, "gradient": {LEARNED: gradients}, "update": updates}[values["along"]]
        title = f"{values['parameter']}, coordinate {values['coordinate']}: the LSTM at step {values['step']}"
        figure = plots.graph(
            {name: (range(len(line)), line) for name, line in curves.items()},
            x="step",
            y=values["along"],
            title=title,
            markers=0,
            log="y" if values["along"] == "loss" else "",
        )
        step, ring = values["step"], {"size": 13, "color": plots.CLEAR, "line": {"color": plots.GREY, "width": 3}}
        heights = [line[step].item() for line in curves.values()]
        figure.add_scatter(x=[step] * len(heights), y=heights, mode="markers", marker=ring, **plots.QUIET)
        self._add_units(figure, found, values)
        several = len(curves) > 1
        figure.update_layout(height=560, hovermode="closest", showlegend=several)
        figure.update_layout(xaxis_range=[0, len(self._losses) - 1])
        text = "Click on the curve for a step, on a square for a unit. Red is positive, blue negative."
        return View(text, figure, lines=[*_inside(self._lstm, found, gradients, values), *self._beside(values)])

    def code(self, values: Values) -> str:
        return (
            "from l2l_kit.evaluation import thoughts\n\n"
            f"found = thoughts(lstm, gradients[{values['parameter']!r}][:-1, {values['coordinate']}])\n"
            f"step, layer, unit = {values['step']}, {values['layer'] - 1}, {values['unit'] - 1}\n"
            "take, keep, give, candidate = found.gates[step, layer, :, unit]\n"
            "cell = keep * found.cells[step, layer, unit] + take * candidate  # found.cells[step + 1, layer, unit]\n"
            "output = give * cell.tanh()  # found.outputs[step + 1, layer, unit]\n"
            "found.updates[step]"
        )

    def _think(self, parameter: str, coordinate: int) -> tuple[Tensor, Thoughts, dict[str, Tensor]]:
        """The coordinate's gradients, what the LSTM makes of them, and everybody's updates."""
        gradients = self._gradients[parameter][:-1, coordinate]
        found = thoughts(self._lstm, gradients)
        answers = responses(self._baselines, gradients[:, None])
        return gradients, found, {LEARNED: found.updates, **{name: line[:, 0] for name, line in answers.items()}}

    def _add_units(self, figure: plots.Figure, found: Thoughts, values: Values) -> None:
        """A row of squares for each gate, one for each unit; the layers are one below the other."""
        step, units, labels = values["step"], range(1, self._lstm.hidden_size + 1), dict[int, str]()
        for layer in range(self._lstm.num_layers):
            top = -layer * (len(ROWS) + 1)
            cells, outputs = found.cells[step + 1, layer], found.outputs[step + 1, layer]
            numbers = torch.stack([*found.gates[step, layer], cells, outputs]).flatten().tolist()
            names = [f"{name} of unit {unit}" for name in ROWS for unit in units]
            labels |= {top - row: name for row, name in enumerate(ROWS)} | {top: f"layer {layer + 1}: {ROWS[0]}"}
            figure.add_scatter(
                name=f"layer {layer + 1}",
                x=[*units] * len(ROWS),
                y=[top - row for row in range(len(ROWS)) for _ in units],
                text=[f"{name}: {_short(number)}" for name, number in zip(names, numbers, strict=True)],
                mode="markers",
                marker={"symbol": "square", "size": 9, "color": [_color(number) for number in numbers]},
                hoverinfo="text",
                **BELOW,
            )
        left, right, top = values["unit"] - 0.5, values["unit"] + 0.5, 0.6 - (values["layer"] - 1) * (len(ROWS) + 1)
        low = top - len(ROWS) - 0.2
        frame = {"x": [left, right, right, left, left], "y": [top, top, low, low, top], "mode": "lines"}
        figure.add_scatter(**frame, line={"color": plots.GREY, "width": 2}, hoverinfo="skip", **BELOW)
        across = figure.layout.xaxis.to_plotly_json()
        up = {**across, "title": "", "anchor": "x2", "showgrid": False, "domain": [0, 0.62]}
        up |= {"tickvals": list(labels), "ticktext": list(labels.values()), "range": [min(labels) - 0.8, 0.8]}
        across |= {
            "title": {"text": "unit", "standoff": 0},
            "anchor": "y2",
            "showgrid": False,
            "range": [0.3, len(units) + 0.7],
        }
        up["tickfont"] = {"size": 10}
        ticks = [unit for unit in units if unit == 1 or unit % 5 == 0]
        across |= {"tickvals": ticks, "ticktext": list(map(str, ticks))}
        figure.update_layout(xaxis2=across, yaxis2=up, yaxis_domain=[0.78, 1], margin_l=140)
        figure.update_layout(xaxis={"anchor": "y", "title": {"standoff": 0}})

    def _beside(self, values: Values) -> list[str]:
        """What the hand-designed optimizers compute of the same gradients."""
        gradients, _, updates = self._found(values["parameter"], values["coordinate"])
        met = gradients[: values["step"] + 1]
        ages = torch.arange(len(met)).flip(0)

        def faded(numbers: Tensor, keep: float) -> float:
            """Their sum, of which an older one counts less."""
            return (keep**ages * numbers).sum().item()

        now, ones, lines = met[-1].item(), torch.ones_like(met), []
        for name, rule in self._baselines.items():
            mean = faded(met, 0.9) / faded(ones, 0.9)
            spread = (faded(met**2, 0.999) / faded(ones, 0.999)) ** 0.5
            scale = (0.01 * faded(met**2, 0.99)) ** 0.5
            formulas = {
                "sgd": ("−α ∇", f"−{rule.lr:g} · {_short(now)}"),
                "nag": ("−α (∇ + 0.9 v)", f"−{rule.lr:g} · ({_short(now)} + 0.9 · {_short(faded(met, 0.9))})"),
                "rmsprop": ("−α ∇ / √s", f"−{rule.lr:g} · {_short(now)} / {_short(scale)}"),
                "adam": ("−α m̂ / √v̂", f"−{rule.lr:g} · {_short(mean)} / {_short(spread)}"),
            }
            update = _short(updates[name][values["step"]].item())
            lines.append(" = ".join([f"{name:<10} g", *formulas.get(rule.name, ()), update]))
        return lines


def _inside(lstm: LSTMRule, found: Thoughts, gradients: Tensor, values: Values) -> list[str]:
    """The LSTM's equations for one unit, with their numbers."""
    step, layer, unit = values["step"], values["layer"] - 1, values["unit"] - 1
    take, keep, give, candidate = map(_short, found.gates[step, layer, :, unit].tolist())
    before, after = (_short(found.cells[t, layer, unit].item()) for t in (step, step + 1))
    held, gradient = _short(found.outputs[step + 1, layer, unit].item()), gradients[step].item()
    shown = ", ".join(map(_short, found.features[step].tolist()))
    how = "∇"
    if isinstance(seen := lstm.preprocessing, LogSign):
        how = "(log|∇| / p, sgn ∇)" if abs(gradient) >= math.exp(-seen.p) else "(−1, eᵖ ∇)"
    elif isinstance(seen, Scale):
        how = f"{seen.factor:g} ∇"
    factor = f"{lstm.output_scale:g} · " if lstm.output_scale != 1 else ""
    gates = f"{take}, {keep}, {give};  c̃ = tanh(…) = {candidate}"
    return [
        f"{'gradient':<10} ∇ = {_short(gradient)};  it is shown {how} = ({shown})",
        f"{f'layer {layer + 1},':<10} i, f, o = σ(W [x, h] + b) = {gates}",
        f"{f'unit {unit + 1}':<10} c ← f c + i c̃ = {keep} · {before} + {take} · {candidate} = {after}",
        f"{'':<10} h ← o tanh c = {give} · tanh {after} = {held}",
        f"{LEARNED:<10} g = {factor}(w · h of the last layer + b) = {_short(found.updates[step].item())}",
    ]


def _short(number: float) -> str:
    return f"{number:.3g}".replace("-", "−")


def _color(value: float) -> str:
    """Red if positive, blue if negative, and the stronger the larger; 1 is as strong as it gets."""
    return f"rgba{(*(plots.RED if value > 0 else plots.BLUE), round(0.08 + 0.92 * min(1.0, abs(value)), 2))}"
