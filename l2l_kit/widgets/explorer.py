"""Learned against hand-designed optimizers on random quadratics, with a slider for all that may change."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ipywidgets
from torch import Tensor

from l2l_kit import plots, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation import LEARNING_RATES, Curves, compare, tuned_baselines
from l2l_kit.optimizers import Baseline
from l2l_kit.problems import Quadratics
from l2l_kit.widgets.live_figure import (
    CONTROLS_WIDTH,
    FIGURE_WIDTH,
    PREPROCESSING_TOOLTIPS,
    PREPROCESSINGS,
    UNROLLS,
    LiveFigure,
    WithPicture,
    described,
    error_message,
    heading,
    labelled,
    message,
    options,
    selection,
    toggle,
)

FUNCTIONS = 64
STEPS = (50, 100, 200)
LEARNED = "LSTM"


def explorer(seed: int = 0, unroll: int = 20, preprocessing: str = "none") -> Explorer:
    """Compare optimizers on random quadratics: end a notebook cell with it.

    Args:
        seed: of the functions, to begin with.
        unroll: unroll length that the learned optimizer was trained with, to begin with.
        preprocessing: of the learned optimizer, "none" or "log-sign", to begin with.

    Raises:
        FileNotFoundError: if no tuned learning rates for the quadratics are recorded.
        UnknownNameError: for an unroll length or preprocessing that no pretrained optimizer has.
    """
    return Explorer(seed, unroll, preprocessing)


class Explorer(WithPicture):
    """See `explorer`. Its controls are attributes; setting their `value` does what a reader's hand does."""

    def __init__(self, seed: int = 0, unroll: int = 20, preprocessing: str = "none") -> None:
        if unroll not in UNROLLS:
            raise UnknownNameError("unroll length", unroll, map(str, UNROLLS))
        if preprocessing not in PREPROCESSINGS:
            raise UnknownNameError("preprocessing", preprocessing, PREPROCESSINGS)
        self._run = lru_cache(maxsize=256)(_run)
        self._paused = False
        self._make_controls(seed, unroll, preprocessing)
        figure = LiveFigure(layout=plots.layout(" ", "step", "loss", width=FIGURE_WIDTH))
        for name in self.shown:
            figure.add_scatter(name=name, mode="lines", line=plots.STYLES[name].line)
        figure.update_layout(showlegend=True)
        figure.update_yaxes(plots.LOGARITHMIC)
        super().__init__(figure, self._column())
        for control in self._controls:
            control.observe(self._update, names="value")
        self._update()

    def _make_controls(self, seed: int, unroll: int, preprocessing: str) -> None:
        baselines = tuned_baselines("quadratics")
        self._rules = {name: tuned.name for name, tuned in baselines.items()}
        self.shown = {name: _checkbox(name) for name in (LEARNED, *baselines)}
        self.learning_rates = {name: _learning_rate(name, tuned.lr) for name, tuned in baselines.items()}
        self.tuned = ipywidgets.Button(
            description="Back to the tuned learning rates",
            tooltip="Those with the lowest final loss of the kind shown, mean or median, in 10 dimensions",
            layout={"width": "300px"},
        )
        self.tuned.on_click(lambda _: self.reset_learning_rates())
        lengths = [(str(length), length) for length in UNROLLS]
        self.unroll = selection("Unroll", lengths, unroll, "Steps that it was trained to look ahead")
        self.preprocessing = toggle(PREPROCESSINGS, preprocessing, PREPROCESSING_TOOLTIPS)
        self.dimension = ipywidgets.IntSlider(
            10, 2, 20, description="Dimension", tooltip="Number of parameters", **described("300px")
        )
        lengths = [(str(steps), steps) for steps in STEPS]
        self.steps = selection("Steps", lengths, 100, "Updates per run; the LSTMs were trained on 100")
        self.seed = ipywidgets.BoundedIntText(seed, 0, 2**31, description="Seed", **described("300px"))
        self.statistic = toggle(("mean", "median"), "mean", ("Over the functions", "Half the functions are below"))
        self.status = ipywidgets.HTML(layout={"width": f"{CONTROLS_WIDTH - 20}px"})

    @property
    def _controls(self) -> list[Any]:
        functions = [self.dimension, self.steps, self.seed, self.statistic]
        return [*self.shown.values(), *self.learning_rates.values(), self.unroll, self.preprocessing, *functions]

    def _column(self) -> list[ipywidgets.Widget]:
        rows = [ipywidgets.HBox([self.shown[name], slider]) for name, slider in self.learning_rates.items()]
        learned = [self.shown[LEARNED], self.unroll, labelled("Preprocessing", self.preprocessing)]
        functions = [heading("Functions"), self.dimension, self.steps, self.seed, labelled("Show the", self.statistic)]
        return [heading("Optimizers"), *learned, *rows, self.tuned, *functions, self.status]

    def reset_learning_rates(self) -> None:
        """Set every learning rate to the one tuned for the statistic that is shown."""
        self._paused = True
        try:
            for name, tuned in tuned_baselines("quadratics", self.statistic.value).items():
                slider = self.learning_rates[name]
                slider.options = options((rate for _, rate in slider.options), tuned.lr)
                slider.value = tuned.lr
        except Exception as error:  # the kernel would only log it
            self.status.value = error_message(error)
        finally:
            self._paused = False
        self._update()

    def _update(self, _: Any = None) -> None:
        if self._paused:
            return
        try:
            self._redraw()
        except Exception as error:  # the kernel would only log it
            self.status.value = error_message(error)

    def _redraw(self) -> None:
        losses, missing = self._losses()
        steps, statistic = self.steps.value, self.statistic.value
        curves = Curves(losses, Quadratics(self.dimension.value).config(), self.seed.value)
        lines = {name: curves.statistic(name, statistic) for name in losses}
        drawn = {name: plots.rounded(line) for name, line in lines.items()}
        with self.figure.batch_update():
            for trace in self.figure.data:
                trace.visible = trace.name in drawn
                if trace.name in drawn:
                    trace.x, trace.y = list(range(steps + 1)), drawn[trace.name]
            self.figure.layout.title.text = (
                f"{statistic.capitalize()} loss over {FUNCTIONS} random quadratics of dimension {self.dimension.value}"
            )
            self.figure.layout.xaxis.range = [0, steps]
            self.figure.layout.yaxis.range = plots.loss_range(drawn.values())
        finals = {name: line[-1].item() for name, line in lines.items()}
        self.status.value = "".join(map(error_message, missing)) + message(_summary(finals, steps, statistic))

    def _losses(self) -> tuple[dict[str, Tensor], list[Exception]]:
        """Losses of the optimizers that are ticked, and what is wrong with those that cannot be had."""
        losses: dict[str, Tensor] = {}
        missing: list[Exception] = []
        for name, box in self.shown.items():
            if box.value:
                try:
                    chosen = self._optimizer(name)
                    losses[name] = self._run(chosen, self.dimension.value, self.steps.value, self.seed.value)
                except (UnknownNameError, WeightsFileError) as error:
                    missing.append(error)
        return losses, missing

    def _optimizer(self, name: str) -> str | Baseline:
        """The optimizer that the controls describe: a baseline, or the name of a pretrained one."""
        if name == LEARNED:
            return f"quadratics-{self.preprocessing.value}-unroll{self.unroll.value}"
        return Baseline(self._rules[name], self.learning_rates[name].value)


def _run(optimizer: str | Baseline, dimension: int, steps: int, seed: int) -> Tensor:
    """Losses of an optimizer, ``(functions, steps + 1)``. So few, small functions are fastest on the CPU."""
    rule = zoo.load(optimizer) if isinstance(optimizer, str) else optimizer
    problem = Quadratics(dimension)
    return compare({"it": rule}, problem, steps=steps, tasks=FUNCTIONS, seed=seed, device="cpu")["it"]


def _summary(finals: dict[str, float], steps: int, statistic: str) -> str:
    """Which optimizer is best at the last step."""
    if not finals:
        return "Tick at least one optimizer."
    (best, loss), *others = sorted(finals.items(), key=lambda item: item[1])
    rest = f"; next is {others[0][0]} with {others[0][1]:.3g}" if others else ""
    return f"After {steps} steps {best} is best: {statistic} loss {loss:.3g}{rest}."


def _checkbox(name: str) -> ipywidgets.Checkbox:
    label = f'<b style="color: {plots.STYLES[name].color}">{name}</b>'
    return ipywidgets.Checkbox(
        True, description=label, description_allow_html=True, indent=False, layout={"width": "90px"}
    )


def _learning_rate(name: str, tuned: float) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(
        options=options(LEARNING_RATES, tuned),
        value=tuned,
        description="lr",
        tooltip=f"Learning rate of {name}",
        **described("210px", "20px"),
    )
