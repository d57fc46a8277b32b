"""Predict first: a reader says what will come, and then sees what does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from l2l_kit import plots, static
from l2l_kit.widgets.explorer import Control, Explorer, Rows, Values, View

OPEN = "?"


class Prediction(Explorer):
    """A figure some lines of which are hidden until a reader has said what to expect; without a kernel, all are shown.

    A reader chooses an answer, or draws a line with the pen above the figure, or both, and presses Reveal.

    Args:
        figure: what there is to see.
        question: what to predict.
        answers: to choose from; none if the reader is to draw.
        hidden: names of the lines that are not shown at first; all of them if none is named.
        right: the answer that turned out right, and why, or what to look at; shown with the hidden lines.
    """

    compares = False

    def __init__(
        self,
        figure: plots.Figure,
        question: str,
        answers: Sequence[str] = (),
        *,
        hidden: Sequence[str] = (),
        right: str = "",
    ) -> None:
        self._figure, self._question, self._answers, self._right = figure, question, answers, right
        self._hidden = set(hidden or (trace.name for trace in figure.data))
        self._revealed = False
        super().__init__(answer=OPEN)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        answers = Control("answer", "choice", "I expect", (OPEN, *self._answers), off=self._revealed)
        reveal = Control("reveal", "button", "Hide again" if self._revealed else "Reveal", more="first")
        return {"Predict first": [answers, reveal] if self._answers else [reveal]}

    def press(self, button: str) -> None:
        if button == "reveal":
            self._revealed = not self._revealed
            self._show(self.draw(self.values))
        else:
            self._revealed = False
            super().press(button)

    def draw(self, values: Values) -> View:
        figure = plots.Figure(self._figure)
        figure.update_layout(
            showlegend=True, dragmode="drawopenpath", newshape={"line": {"color": plots.GREY, "width": 3}}
        )
        if self._revealed:
            said = f"You expected: {values['answer']}. " if values["answer"] != OPEN else ""
            return View(said + self._right, figure)
        names = {trace.name for trace in figure.data if trace.name in self._hidden or trace.legendgroup in self._hidden}
        for trace in figure.data:
            if trace.name in names:
                trace.x, trace.y = [], []
        return View(self._question, figure)

    def code(self, values: Values) -> str:
        return ""

    def picture(self) -> bytes:
        return static.png(self._figure)
