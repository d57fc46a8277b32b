"""The base of all explorers: controls, a function of their values, and what it draws. A script in the page shows it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import anywidget
import ipywidgets
import plotly
import traitlets

from l2l_kit import errors, plots, static
from l2l_kit.errors import UnknownNameError

INTERVAL = 0.12
"""Seconds between two drawings of what is still being computed; the first one comes after a third of that."""
HERE = Path(__file__).parent
Values = Mapping[str, Any]  # what the controls of an explorer say, by name
Lines = dict[str, plots.Points]


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        name: of its value.
        kind: a "slider" over values in order; a "player", which is a slider that can be played; a "choice" or a "menu"
            of names; a whole "number"; a "check" box; a "button", which `Explorer.press` is told of; an "upload" of a
            picture, which `Explorer.receive` is given.
        label: what a reader calls it.
        values: to choose from, or the lowest and the highest number.
        help: one sentence more; for a choice, one for each name.
        marks: values to which a slider has a tick.
        off: whether it cannot be moved at present.
        more: of a button, "first" if a reader will press it first, or "working" if it can be pressed only while the
            explorer works; of a number, what a button says that goes on to the next one; of a player, "auto" if it
            plays by itself wherever the explorer puts it to its beginning; of a choice, "list" if the names are long;
            of a check box, its colour.
    """

    name: str
    kind: Literal["slider", "player", "choice", "menu", "number", "check", "button", "upload"]
    label: str
    values: Sequence[Any] = ()
    help: str | Sequence[str] = ""
    marks: Sequence[float] = ()
    off: bool = False
    more: str = ""

    def check(self, value: Any) -> None:
        """Refuse a value that the control cannot have.

        Raises:
            ValueError: which says what it can have.
        """
        if self.kind == "number":
            low, high = self.values
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{self.label} must be a whole number from {low} to {high}, got {value!r}.")
        elif self.values and value not in self.values:
            raise UnknownNameError(self.label.lower(), value, map(str, self.values))


Rows = Sequence[Control | tuple[Control, ...]]  # controls one below the other, or side by side in a tuple


def seed_control() -> Control:
    """The seed, with a button for another draw."""
    return Control("seed", "number", "Seed", (0, 2**31), "Of all that is drawn", more="New draw")


def ordered(values: Iterable[float], *more: float) -> tuple[float, ...]:
    """Values of a slider in order, with those that it must be able to show."""
    return tuple(sorted({*values, *more}))


class Picture(NamedTuple):
    """A picture below the figure, as a PNG; `caption` is shown beside its name, `side` is its width in pixels."""

    name: str
    png: bytes
    caption: str = ""
    color: str = ""
    side: int = 150


class View(NamedTuple):
    """What an explorer shows: a sentence or two, a figure, pictures below it, and what cannot be shown.

    `progress` is how much of the work is done, from 0 to 1, or None where nothing is to be waited for; `lines` are
    equations and the like, one below the other. A figure whose `layout.meta` is ``{"drag": (x, y)}`` sets these two
    values to where the pointer is dragged, or the arrow keys lead.
    """

    text: str
    figure: plots.Figure | None = None
    pictures: Sequence[Picture] = ()
    errors: Sequence[Exception] = ()
    progress: float | None = None
    lines: Sequence[str] = ()


Steps = Generator[Callable[[], View], None, None]
"""Work in small steps. Each makes what there is to see then, if it is time to look."""


class Explorer(anywidget.AnyWidget):
    """An interactive figure: end a notebook cell with it. Without a kernel it is a picture.

    A subclass says which controls there are, what they begin with (the arguments of this constructor), and what is
    drawn for their values: at once, or in steps, which are done in a thread and left when a control is moved.

    Attributes:
        values: what the controls say; `move` sets them.
        view: what is shown.

    Raises:
        ValueError: for values that the controls cannot have.
    """

    _esm = traitlets.Unicode((HERE / "explorer.js").read_text(encoding="utf-8")).tag(sync=True)
    _css = traitlets.Unicode((HERE / "explorer.css").read_text(encoding="utf-8")).tag(sync=True)
    plotly = traitlets.Instance(ipywidgets.Widget).tag(sync=True, **ipywidgets.widget_serialization)
    groups: traitlets.List[Any] = traitlets.List().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    moves = traitlets.Int(0).tag(sync=True)  # counted by the page
    answered = traitlets.Int(0).tag(sync=True)  # how many of them were followed

    compares: bool = True  # whether lines can be pinned and compared with those before the last move
    recorded: Mapping[str, Sequence[Any]] = MappingProxyType({})
    """Values of controls for which `recording.record` keeps what is shown, for pages without a kernel."""
    _thread: threading.Thread | None = None

    def __init__(self, **values: Any) -> None:
        self.view = View("")
        self._initial, self._last = values, dict[str, Any]()
        self._left, self._seen, self._busy = threading.Event(), threading.Event(), False
        self._choosing, self._sending = threading.RLock(), threading.RLock()
        self._moved, self._lines, self._before, self._ghosts = "", Lines(), Lines(), set[str]()
        self._pins: list[Lines] = []
        self._held: tuple[float, float] | None = None
        values = self._settled(values)
        super().__init__(plotly=_plotly())
        self.observe(lambda _: self._answer(), "moves")
        self.on_msg(self._hear)
        self._follow(values)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        """The controls by heading, as they are when their values are these."""
        raise NotImplementedError

    def draw(self, values: Values) -> View | Steps:
        """What is shown for these values, or the work that leads there. Errors are shown, too."""
        raise NotImplementedError

    def code(self, values: Values) -> str:
        """Lines of Python that do the same; empty for none."""
        return ""

    def settle(self, values: Values) -> Values:
        """The values, with those that follow from the one that was moved."""
        return values

    def press(self, button: str) -> None:
        """Do what a button says."""
        if button == "pin":
            self._pins.append(self._lines)
        if button in ("unpin", "reset"):
            self._pins.clear()
        if button in ("fit", "reset"):
            self._held = None
        if button == "reset":
            self.move(**self._initial)
        else:
            self._show(self.view)

    def receive(self, control: str, name: str, content: bytes) -> None:
        """Take in a file that was uploaded; its name is only a name."""

    def point(self, line: str, x: float) -> None:
        """Someone chose a point of a line."""

    def move(self, **values: Any) -> None:
        """Set some controls, as a reader's hand does.

        Raises:
            ValueError: for values that the controls cannot have.
        """
        with self._choosing:  # a page and a cell may move at the same time
            known = {**self.values, **self._controls(self.values)}  # some begin without a value, or have no control
            errors.check_names("control", values, known)
            self._follow(self._settled({**self.values, **values}))

    def replay(self, values: Values) -> None:
        """Show what is to be recorded for these values."""
        self.move(**values)
        self.wait()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until what is shown is finished, for at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def close(self) -> None:
        """Stop the work, and take it off the page and out of the kernel."""
        if self._thread is not None:  # Python closes also what was never finished
            self._leave()
        super().close()

    def picture(self) -> bytes:
        """What stands in for it where there is no kernel, as a PNG."""
        self.wait()  # it is for good
        return static.png(self.view.figure or plots.Figure())

    def start(self, steps: Steps) -> None:
        """Leave the work under way, and begin another in the background."""
        with self._choosing:
            self._leave()
            self._left.clear()
            self._seen.clear()
            self._thread = threading.Thread(target=self._work, args=(steps,), daemon=True)
            self._thread.start()

    def fail(self, error: Exception) -> None:
        """Show what went wrong. The next view that is shown clears it."""
        self._busy = False
        self._tell(View("", errors=[error]))

    def _settled(self, values: Values) -> dict[str, Any]:
        settled = dict(self.settle(values))
        for name, control in self._controls(settled).items():
            if name in settled:
                control.check(settled[name])
        return settled

    def _controls(self, values: Values) -> dict[str, Control]:
        """The controls by name."""
        return {each.name: each for rows in self.controls(values).values() for row in rows for each in _row(row)}

    def _answer(self) -> None:
        """Do what the page asks for."""
        if self._thread is not None and self._thread.is_alive():
            self._seen.wait(1.5 * INTERVAL)  # or a fast drag would leave all work before anything of it is seen
        with self._choosing:
            self.answered = self.moves
            try:
                self._follow(self._settled(self.values))
            except Exception as error:  # the kernel would only log it
                self.fail(error)

    def _follow(self, values: dict[str, Any]) -> None:
        self._leave()
        self._busy = False
        moved = next((name for name in values if values[name] != self._last.get(name)), self._moved)
        if moved != self._moved:
            self._moved, self._before, self._ghosts = moved, self._lines, set()
        with self._sending, self.hold_sync():  # in one message
            self.values = self._last = values
            try:
                drawn = self.draw(values)
                if isinstance(drawn, View):
                    self._show(drawn)
                else:
                    self._describe()
                    self.start(drawn)
            except Exception as error:  # the kernel would only log it
                self.fail(error)

    def _leave(self) -> None:
        """Stop the work after the step under way."""
        self._left.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self, steps: Steps) -> None:
        try:
            self._do(steps)
        except Exception as error:  # the thread would only end
            self.fail(error)

    def _do(self, steps: Steps) -> None:
        """Show the last step, and as many of those before as there is time for."""
        due, step = time.monotonic() + INTERVAL / 3, None
        with closing(steps):
            for step in steps:
                if self._left.is_set():
                    return
                if time.monotonic() >= due:
                    self._show(step())
                    due = time.monotonic() + INTERVAL
        self._busy = False
        if step is not None:
            self._show(step())

    def _show(self, view: View) -> None:
        with self._sending, self.hold_sync():
            self.view = view
            if view.figure is None:
                figure = None
            else:
                lines, figure = _lines(view.figure), view.figure.to_plotly_json()
                if view.progress is None:
                    self._lines = lines
                if self.compares:
                    self._compare(figure, lines)
            self.shown = {
                "figure": figure,
                "pictures": [picture._asdict() for picture in view.pictures],
                "lines": "\n".join(view.lines),
                "code": self.code(self.values),
                "pins": len(self._pins) if self.compares else None,
            }
            self._tell(view)

    def _tell(self, view: View) -> None:
        with self._sending, self.hold_sync():
            errors = [message(error) for error in view.errors]
            self.state = {"text": view.text, "errors": errors, "progress": view.progress, "working": self._busy}
            self._describe()
            self._seen.set()

    def _describe(self) -> None:
        self.groups = [
            {"title": title, "rows": [[_described(each) for each in _row(row)] for row in rows]}
            for title, rows in self.controls(self.values).items()
        ]

    def _compare(self, figure: dict[str, Any], now: Lines) -> None:
        """Draw what was before the last move behind a figure, and pinned lines, and let its vertical axis only grow."""
        colors = {name: style.color for name, style in plots.STYLES.items()}
        colors |= {trace["name"]: trace["line"]["color"] for trace in figure["data"] if trace["name"] in now}
        # Once there, a ghost stays: the page is quickest while there are the same lines.
        self._ghosts |= {name for name, line in self._before.items() if name in now and line != now[name]}
        ghosts = {name: line for name, line in self._before.items() if name in self._ghosts}
        for label, lines in [("before", ghosts), *((f"pin {k}", pin) for k, pin in enumerate(self._pins, 1))]:
            for name, (x, y) in lines.items():
                line = {"color": colors.get(name, plots.GREY), "width": 1.5, "dash": "dot"}
                faint = {"opacity": 0.45, **plots.QUIET} if label == "before" else {"opacity": 0.8, "showlegend": False}
                trace = {"type": "scatter", "name": f"{name}, {label}", "x": x, "y": y, "mode": "lines", "line": line}
                figure["data"].append(trace | faint)
        axis = figure["layout"]["yaxis"]
        if "range" in axis:
            low, high = axis["range"]
            if self._held is not None:
                low, high = min(low, self._held[0]), max(high, self._held[1])
            self._held = low, high
            axis |= plots.log_axis(low, high) if axis.get("type") == "log" else {"range": [low, high]}

    def _hear(self, _: object, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """What the page says beside values."""
        try:
            if "press" in content:
                self.press(content["press"])
            elif "upload" in content:
                self.receive(content["upload"], content["name"], bytes(buffers[0]))
            elif "line" in content:
                self.point(content["line"], content["x"])
        except Exception as error:  # the kernel would only log it
            self.fail(error)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        live, about = super()._repr_mimebundle_() or ({}, {})
        picture = base64.b64encode(self.picture()).decode()
        words = "Interactive figure: run this cell in JupyterLab to use it."
        return {**live, "image/png": picture, "text/plain": words}, about


class Job(Explorer):
    """Work that takes so long that a button begins it, and another cancels it; the controls are off meanwhile.

    Attributes:
        cancelled: whether the work is to stop, or was stopped.
    """

    verb: ClassVar[str]
    """What the button that begins it says."""
    cancelled = False

    def work(self, values: Values) -> Steps:
        """What the button begins. It ends where `cancelled` is set, and then says so."""
        raise NotImplementedError

    def look(self, text: str, progress: float | None = None) -> View:
        """What there is to see so far."""
        raise NotImplementedError

    def buttons(self, *more: Control) -> tuple[Control, ...]:
        """Those that begin and cancel the work, with others between them."""
        begin = Control("begin", "button", self.verb, more="first")
        return begin, *more, Control("cancel", "button", "Cancel", help="Keeps what there is so far", more="working")

    def draw(self, values: Values) -> View:
        return self.look(f"Choose, then press {self.verb}.")

    def press(self, button: str) -> None:
        if button == "cancel":
            self.cancelled = True
        elif button != "begin":
            super().press(button)
        elif not self._busy:
            self.cancelled, self._busy = False, True
            self._tell(self.view)
            self.start(self.work(self.values))

    def run(self) -> None:
        """Do the work here and now, without a page. Ctrl-C stops early.

        Raises:
            RuntimeError: if it is under way already.
        """
        if self._busy:
            raise RuntimeError("this explorer is working already.")
        self._left.clear()
        self.cancelled = False
        try:
            self._do(self.work(self.values))
        except KeyboardInterrupt:
            self.cancelled = True
            self._show(self.look("Cancelled."))


class _Plotly(ipywidgets.Widget):  # type: ignore[misc]  # ipywidgets has no types
    """plotly's script, 5 MB, which a page gets once for all explorers."""

    source = traitlets.Bytes().tag(sync=True)


@cache
def _plotly() -> _Plotly:
    return _Plotly(source=(Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes())


def _row(row: Control | tuple[Control, ...]) -> tuple[Control, ...]:
    return row if isinstance(row, tuple) else (row,)


def _described(control: Control) -> dict[str, Any]:
    return {**vars(control), "values": list(control.values), "marks": list(control.marks)}


def _lines(figure: plots.Figure) -> Lines:
    """The lines of a figure that say something, by name."""
    lines = [trace for trace in figure.data if trace.mode == "lines" and not trace.fill and trace.hoverinfo != "skip"]
    return {trace.name: (trace.x, trace.y) for trace in lines}


def message(error: BaseException) -> str:
    """An error in words; the kit's own ones are sentences already."""
    known = (FileNotFoundError, errors.UnknownNameError, errors.WeightsFileError, errors.DataError)
    return str(error) if isinstance(error, known) else f"{type(error).__name__}: {error}"
