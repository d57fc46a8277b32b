"""What the explorers share: optimizers to choose, the baselines' learning rates, and all their curves in one figure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets
from torch import Tensor

from l2l_kit import plots
from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation import LEARNING_RATES, tuned_baselines
from l2l_kit.optimizers import Baseline
from l2l_kit.widgets.live_figure import (
    CONTROLS_WIDTH,
    FIGURE_WIDTH,
    LiveFigure,
    WithPicture,
    described,
    error_message,
    heading,
    options,
)

LEARNED = "LSTM"


class BaseExplorer(WithPicture, ABC):
    """Learned against hand-designed optimizers. What a subclass adds are controls, and what follows from them.

    Args:
        learned: rows of controls below the learned optimizer's checkbox.
        task: rows of controls for what is optimized.
        controls: those of them that are followed.
        tuned_for: what the tuned learning rates are best for, in words.

    Attributes:
        shown: by optimizer, whether its curve is shown.
        learning_rates: by baseline, its slider.
        tuned: the button that sets the tuned learning rates.
        status: what the curves say, or what went wrong.
    """

    def __init__(
        self,
        learned: Sequence[ipywidgets.Widget],
        task: Sequence[ipywidgets.Widget],
        controls: Iterable[ipywidgets.ValueWidget],
        tuned_for: str,
    ) -> None:
        self._paused = False
        baselines = self._tuned_baselines()
        self._rules = {name: tuned.name for name, tuned in baselines.items()}
        self.shown = {name: _checkbox(name) for name in (LEARNED, *baselines)}
        self.learning_rates = {name: _learning_rate(name, tuned.lr) for name, tuned in baselines.items()}
        self.tuned = ipywidgets.Button(
            description="Back to the tuned learning rates", tooltip=tuned_for, layout={"width": "300px"}
        )
        self.tuned.on_click(lambda _: self.reset_learning_rates())
        self.status = ipywidgets.HTML(layout={"width": f"{CONTROLS_WIDTH - 20}px"})
        rows = [ipywidgets.HBox([self.shown[name], slider]) for name, slider in self.learning_rates.items()]
        column = [heading("Optimizers"), self.shown[LEARNED], *learned, *rows, self.tuned, *task, self.status]
        super().__init__(self._make_figure(), column)
        for control in (*self.shown.values(), *self.learning_rates.values(), *controls):
            control.observe(self._update, names="value")

    @abstractmethod
    def _tuned_baselines(self) -> Mapping[str, Baseline]:
        """The baselines with the learning rates that are best for what the controls say."""

    @property
    @abstractmethod
    def _pretrained(self) -> str:
        """Name of the pretrained optimizer that the controls describe."""

    @abstractmethod
    def _redraw(self) -> None:
        """Show what the controls say."""

    def reset_learning_rates(self) -> None:
        """Set every learning rate to the one tuned for what is shown."""
        try:
            self._set_learning_rates(self._tuned_baselines())
        except Exception as error:  # the kernel would only log it
            self.status.value = error_message(error)
            return
        self._update()

    def _set_learning_rates(self, baselines: Mapping[str, Baseline]) -> None:
        """Set the learning rates of these baselines, and draw nothing yet."""
        with self._quietly():
            for name, tuned in baselines.items():
                slider = self.learning_rates[name]
                slider.options = options((rate for _, rate in slider.options), tuned.lr)
                slider.value = tuned.lr

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """While controls are set that nothing is to follow yet."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _update(self, _: Any = None) -> None:
        if self._paused:
            return
        try:
            self._redraw()
        except Exception as error:  # the kernel would only log it
            self.status.value = error_message(error)

    @property
    def _ticked(self) -> dict[str, str | Baseline]:
        """The optimizers to show, by name: baselines, and the learned one as the name of a pretrained one."""
        return {name: self._optimizer(name) for name, box in self.shown.items() if box.value}

    def _optimizer(self, name: str) -> str | Baseline:
        if name == LEARNED:
            return self._pretrained
        return Baseline(self._rules[name], self.learning_rates[name].value)

    def _make_figure(self) -> LiveFigure:
        figure = LiveFigure(layout=plots.layout(" ", "step", "loss", width=FIGURE_WIDTH))
        for name in self.shown:
            figure.add_scatter(name=name, mode="lines", line=plots.STYLES[name].line)
        figure.update_layout(showlegend=True)
        figure.update_yaxes(type="log")
        return figure

    def _draw(
        self,
        lines: Mapping[str, Tensor | Sequence[float]],
        steps: int,
        title: str,
        in_range: Iterable[plots.Values] = (),
    ) -> None:
        """Draw these lines and hide the others; the loss axis holds them and what must be `in_range` anyway."""
        drawn = {name: plots.rounded(line) for name, line in lines.items()}
        with self.figure.batch_update():
            for trace in self.figure.data:
                trace.visible = trace.name in drawn
                if trace.name in drawn:
                    trace.x, trace.y = list(range(steps + 1)), drawn[trace.name]
            self.figure.layout.title.text = title
            self.figure.layout.xaxis.range = [0, steps]
            self.figure.layout.yaxis.update(plots.loss_axis([*drawn.values(), *in_range]))


def baselines_for(problem: str, steps: int) -> dict[str, Baseline]:
    """The tuned baselines for runs of that length, or if nothing was recorded for it, of the longest recorded.

    Raises:
        FileNotFoundError: if no tuning of that problem is recorded.
    """
    try:
        return tuned_baselines(problem, step=steps)
    except UnknownNameError:
        return tuned_baselines(problem)


def summary(finals: Mapping[str, float], steps: int, statistic: str) -> str:
    """Which optimizer is best at the last step."""
    if not finals:
        return "Tick at least one optimizer."
    (best, loss), *others = sorted(finals.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
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
