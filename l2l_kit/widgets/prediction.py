"""Predict first: a reader says what will come, and then sees what does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from l2l_kit import plots, static
from l2l_kit.errors import check_names
from l2l_kit.widgets.explorer import Control, Explorer, Rows, Values, View


class Prediction(Explorer):
    """A figure some lines of which are hidden until a reader has said what to expect; without a kernel, all are shown.

    A reader chooses an answer, or draws a line with the pen above the figure, or both, and presses Reveal. The axes are
    those of the whole figure from the beginning.

    Args:
        figure: what there is to see.
        question: what to predict.
        answers: to choose from; none if the reader is to draw.
        hidden: names of the lines that are not shown at first; all of them if none is named.
        right: the answer that turned out right, and why, or what to look at; shown with the hidden lines.

    Raises:
        UnknownNameError: for a line that is not in the figure.
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
        names = {name for trace in figure.data for name in (trace.name, trace.legendgroup) if name}
        check_names("line of the figure", hidden, names)
        self._figure, self._question, self._answers, self._right = figure, question, answers, right
        self._hidden, self._revealed = set(hidden), False
        super().__init__()

    def controls(self, values: Values) -> Mapping[str, Rows]:
        answers = Control("answer", "choice", "Your answer", self._answers, off=self._revealed, more="list")
        waits = bool(self._answers) and "answer" not in values
        reveal = Control("reveal", "button", "Hide again" if self._revealed else "Reveal", off=waits, more="first")
        return {self._question: [answers, reveal] if self._answers else [reveal]}

    def press(self, button: str) -> None:
        self._revealed = button == "reveal" and not self._revealed
        if button == "reset":
            self._follow({})
        else:
            self._show(self.draw(self.values))

    def draw(self, values: Values) -> View:
        figure = plots.Figure(self._figure)
        pen = {"color": plots.GREY, "width": 3}
        figure.update_layout(showlegend=True, dragmode="drawopenpath", newshape={"line": pen})
        if self._revealed:
            said = f"You expected: {values['answer']}. " if "answer" in values else ""
            return View(said + self._right, figure)
        for trace in figure.data:
            if not self._hidden or self._hidden & {trace.name, trace.legendgroup}:
                trace.update(opacity=0, **plots.QUIET)
        choose = "Choose an answer, or draw" if self._answers else "Draw"
        return View(f"{choose} what you expect with the pen, then press Reveal.", figure)

    def picture(self) -> bytes:
        return static.png(self._figure)
