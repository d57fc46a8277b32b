"""Neural art: optimizers paint the same picture side by side, step by step (figure 9)."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import ipywidgets
import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit import data, plots, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError
from l2l_kit.evaluation import LBFGS, ONE_RATE, lbfgs, read_result, swept_baselines, under
from l2l_kit.problems import NeuralArt, TaskBatch
from l2l_kit.problems.neural_art import Network, to_pictures
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, pick_device
from l2l_kit.training.rollout import Point, trajectory
from l2l_kit.widgets.job import Job, Outcome
from l2l_kit.widgets.live_figure import (
    FIGURE_WIDTH,
    LiveFigure,
    WithPicture,
    described,
    error_message,
    heading,
    message,
    options,
    selection,
)

LEARNED = "LSTM"
PRETRAINED = {"vgg16": "neural-art", "small": "neural-art-small"}
"""The learned optimizer by the network whose features it was trained on."""
SWEEPS = {64: "sweeps/neural-art", 128: "sweeps/neural-art-new-style"}
"""Where the learning rates for pictures of that size come from."""
BASELINES = ("Adam", "NAG")
STEPS = (16, 32, 64, 128, 256)
CANVAS = 150
"""Pixels a side at which a picture is shown."""
THUMBNAIL = 96
LARGEST_UPLOAD = "Own pictures: at most 10 MB each, or 100 MB where JupyterLab was started by make lab."
"""Larger ones never arrive: the server drops the page's connection to the kernel. See .jupyter in the checkout."""
"""Parameters ``(1, coordinates)`` and their loss ``(1,)``."""


def painter(
    seed: int = 0,
    content: str = "astronaut",
    style: str | None = None,
    *,
    size: int = 64,
    steps: int = 128,
    network: Network = "auto",
) -> Painter:
    """Let a learned optimizer, Adam, NAG and L-BFGS paint the same picture: end a notebook cell with it.

    Paint begins what the controls say, in the background. Pictures of the reader's own are uploaded, or put into the
    cache's folders "contents" and "styles".

    Args:
        seed: of the noise that pictures begin as.
        content: one of `data.content_names`, to begin with.
        style: one of `data.style_names`, to begin with; None for the one that the optimizer was trained on.
        size: pixels a side, 64 or 128, to begin with; a step of one optimizer takes some 60 or 240 ms with VGG-16.
        steps: updates of each picture, to begin with.
        network: as in `problems.NeuralArt`.

    Raises:
        FileNotFoundError: if the sweeps that tuned the learning rates are not recorded.
        UnknownNameError: for a content, style, size or network that there is not.
        ValueError: for a number of steps below 1.
    """
    return Painter(seed, content, style, size, steps, network)


class Painter(WithPicture):
    """See `painter`. Its controls are attributes; setting their `value` does what a reader's hand does.

    Attributes:
        content, style: what to paint, and in the style of what.
        own_content, own_style: buttons to upload a picture of one's own.
        share: of the style in the loss; the optimizer was trained with one half.
        size, steps, seed: see `painter`.
        paint, cancel: buttons; `pause`: one that stays down.
        canvases: by optimizer, its picture.
        status: what is going on, or what went wrong.
    """

    def __init__(self, seed: int, content: str, style: str | None, size: int, steps: int, network: Network) -> None:
        if size not in SWEEPS:
            raise UnknownNameError("size", str(size), map(str, SWEEPS))
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps!r}.")
        self._problem = _trained_on(NeuralArt(network=network, source="embedded"))
        self._rates = {number: under(read_result(name), ONE_RATE) for number, name in SWEEPS.items()}
        self._own: dict[str, dict[str, Tensor]] = {"content": {}, "style": {}}
        self._painted: dict[str, Tensor] = {}
        self._losses: dict[str, list[float]] = {}
        self._missing: list[Exception] = []
        self._going = threading.Event()
        self._job = Job(self._work, self._show, self._end, interval=0.25)

        self.content = _choice("Content", data.content_names(), content)
        self.style = _choice("Style", data.style_names(), self._problem.style if style is None else style)
        self.own_content, self.own_style = _upload("content"), _upload("style")
        self._looks = {kind: _image(THUMBNAIL) for kind in self._own}
        self.share = selection(
            "Style's share", options([k / 10 for k in range(11)]), 0.5, "Of the loss; the rest is the content's"
        )
        self.size = selection("Size", [(f"{number} × {number}", number) for number in SWEEPS], size, "Pixels")
        self.steps = selection("Steps", options(STEPS, steps), steps, "Updates; the LSTM was trained on 128")
        self.seed = ipywidgets.BoundedIntText(seed, 0, 2**31, description="Seed", **described("300px"))
        self.paint = ipywidgets.Button(description="Paint", button_style="primary", layout={"width": "95px"})
        self.pause = ipywidgets.ToggleButton(description="Pause", disabled=True, layout={"width": "95px"})
        self.cancel = ipywidgets.Button(description="Cancel", disabled=True, layout={"width": "95px"})
        self.bar = ipywidgets.IntProgress(0, 0, 1, layout={"width": "300px"})
        self.status = ipywidgets.HTML(layout={"width": "300px"})
        names = (LEARNED, *BASELINES, LBFGS)
        self._styles = plots.styles(names)
        self._captions = {name: ipywidgets.HTML() for name in names}
        self.canvases = {name: _image(CANVAS) for name in names}
        looks = ipywidgets.HBox([ipywidgets.Label(layout={"width": "100px"}), *self._looks.values()])
        super().__init__(
            self._make_figure(),
            [
                heading("Picture"),
                ipywidgets.HBox([self.content, self.own_content]),
                ipywidgets.HBox([self.style, self.own_style]),
                looks,
                *(self.share, self.size, self.steps, self.seed),
                ipywidgets.HBox([self.paint, self.pause, self.cancel]),
                self.bar,
                self.status,
            ],
        )
        self.content.observe(self._guarded(self._look), names="value")
        self.style.observe(self._guarded(self._look), names="value")
        self.own_content.observe(self._guarded(lambda: self._add("content")), names="value")
        self.own_style.observe(self._guarded(lambda: self._add("style")), names="value")
        self.paint.on_click(self._guarded(self.start))
        self.cancel.on_click(self._guarded(self._cancel))
        self.pause.observe(self._guarded(self._pause), names="value")
        self._look()
        self._clear()
        self.status.value = message(LARGEST_UPLOAD)

    def start(self) -> None:
        """Paint in the background, as the Paint button does."""
        if not self._job.running:
            self._begin()
            self._job.start()

    def run(self) -> dict[str, Tensor]:
        """Paint here and now, without a page. Ctrl-C stops early.

        Returns:
            The pictures by optimizer, bytes of shape ``(3, size, size)``.

        Raises:
            RuntimeError: if it is painting already.
        """
        self._begin()
        self._job.run()
        if self._job.error is not None:
            raise self._job.error
        return dict(self._painted)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until what is painted in the background is finished, for at most `timeout` seconds."""
        self._job.join(timeout)

    @override
    def close(self) -> None:
        """Stop painting, and take it off the page and out of the kernel."""
        self._cancel()
        super().close()

    @override
    def _shown(self) -> list[ipywidgets.Widget]:
        easels = [ipywidgets.VBox([self._captions[name], canvas]) for name, canvas in self.canvases.items()]
        return [
            ipywidgets.HBox(easels, layout={"justify_content": "space-between", "overflow": "visible"}),
            self.figure,
        ]

    @override
    def _picture(self) -> bytes:
        row = {kind: self._chosen(kind) for kind in self._own}
        row |= {name: self._painted[name] for name in self.canvases if name in self._painted}
        return _png(plots.pictures({"": row}, side=THUMBNAIL))

    def _guarded(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """What a page may ask for at any time: errors are shown."""

        def act(_: Any) -> None:
            try:
                action()
            except Exception as error:  # the kernel would only log it
                self.status.value = error_message(error)

        return act

    def _chosen(self, kind: str) -> Tensor:
        """The picture that is chosen as content or style."""
        name = {"content": self.content, "style": self.style}[kind].value
        named = {"content": data.content, "style": data.style}[kind]
        return self._own[kind][name] if name in self._own[kind] else named(name)

    def _look(self) -> None:
        for kind, look in self._looks.items():
            look.value = _png(plots.pictures({"": {"": self._chosen(kind)}}, side=THUMBNAIL))

    def _add(self, kind: str) -> None:
        """Take in what was uploaded."""
        button, choice = {"content": (self.own_content, self.content), "style": (self.own_style, self.style)}[kind]
        if not button.value:
            return
        (file,) = button.value
        button.value = ()  # so that the same file can be chosen again
        name = str(file["name"])
        self._own[kind][name] = data.load_picture(bytes(file["content"]), name)
        choice.options = [*dict.fromkeys([*choice.options, name])]
        choice.value = name
        self._look()  # also where the name was chosen already, and the picture is another one
        self.status.value = message(f"{name} is the {kind} now.")

    def _begin(self) -> None:
        self._clear()
        self._going.set()
        self.pause.value = False
        self._set_running(True)
        self.bar.value, self.bar.bar_style = 0, ""
        self.bar.max = len(self.canvases) * (self.steps.value + 1)
        self.status.value = message("It begins with the features of content and style.")

    def _work(self) -> Generator[str, None, None]:
        """The work of the job: every optimizer in turn does a step. Its events say whose."""
        device, steps = pick_device(), self.steps.value
        trained, share = self._problem, 2 * self.share.value
        problem = replace(
            trained,
            size=self.size.value,
            content_weight=(2 - share) * trained.content_weight,
            style_weight=share * trained.style_weight,
        )
        draws = generator(self.seed.value, "painter")
        tasks = problem.tasks(self._chosen("content")[None], draws, self._chosen("style"), device)
        layout = Layout.of(tasks.initial_params)
        runs = self._runs(tasks, steps, device)
        for _ in range(steps + 1):
            for name, run in runs.items():
                point = next(run)
                self._painted[name] = to_pictures(layout.unravel(point.params)["pixels"][0]).cpu()
                self._losses[name].append(point.losses[0].item())
                yield name
                while not self._going.wait(0.1):
                    yield name

    def _runs(self, tasks: TaskBatch, steps: int, device: torch.device) -> dict[str, Iterator[Point]]:
        """Everybody's way through the pictures; who is missing is noted."""
        table = self._rates[self.size.value]
        tuned = swept_baselines(table, table["step"].max())
        runs = {name: trajectory(tuned[name], tasks, steps) for name in BASELINES}
        runs[LBFGS] = lbfgs(tasks, steps)
        try:
            rule = zoo.load(PRETRAINED[self._problem.network], device)
        except (UnknownNameError, WeightsFileError) as error:
            self._missing.append(error)
            return runs
        return {LEARNED: trajectory(rule, tasks, steps), **runs}

    def _show(self, _: str = "") -> None:
        """Show how far everybody is."""
        drawn = {name: plots.rounded(losses) for name, losses in self._losses.items() if losses}
        for name in drawn:
            self.canvases[name].value = _png(plots.pictures({"": {"": self._painted[name]}}))
            loss = self._losses[name][-1]
            self._caption(name, f"{loss:.3f}" if math.isfinite(loss) else "diverged")
        with self.figure.batch_update():
            for curve in self.figure.data:
                curve.y = drawn.get(curve.name, [])
                curve.x = list(range(len(curve.y)))
            self.figure.layout.xaxis.range = [0, self.steps.value]
            self.figure.layout.yaxis.update(plots.loss_axis([*drawn.values(), (2, 0.2)]))
        self.bar.value = sum(map(len, drawn.values()))
        if not self._job.cancelling:
            step = min(map(len, drawn.values()), default=1) - 1
            self._say("Paused at" if self.pause.value else "Painting:", f"step {step} of {self.steps.value}.")

    def _end(self, outcome: Outcome) -> None:
        self._set_running(False)
        self.pause.value = False
        self.bar.bar_style = {"finished": "success", "cancelled": "warning", "failed": "danger"}[outcome]
        finals = {name: losses[-1] for name, losses in self._losses.items() if losses}
        finals = {name: math.inf if math.isnan(loss) else loss for name, loss in finals.items()}
        if self._job.error is not None:
            self.status.value = error_message(self._job.error)
        elif outcome == "cancelled":
            self._say("Cancelled.")
        else:
            order = sorted(finals, key=lambda name: finals[name])
            self._say(f"After {self.steps.value} steps, from the lowest loss:", ", ".join(order) + ".")

    def _say(self, *words: str) -> None:
        self.status.value = "".join(map(error_message, self._missing)) + message(" ".join(words))

    def _pause(self) -> None:
        if self.pause.value:
            self._going.clear()
        else:
            self._going.set()

    def _cancel(self) -> None:
        """What the Cancel button does; it takes effect after the step under way."""
        self._job.cancel()
        self._going.set()
        self.cancel.disabled = True

    def _clear(self) -> None:
        """Empty canvases."""
        self._missing.clear()
        self._painted = {}
        self._losses = {name: [] for name in self.canvases}
        blank = _png(plots.pictures({"": {"": torch.full((2, 2), 128, dtype=torch.uint8)}}))
        for name, canvas in self.canvases.items():
            canvas.value = blank
            self._caption(name, "")

    def _caption(self, name: str, text: str) -> None:
        self._captions[name].value = f'<b style="color: {self._styles[name].color}">{name}</b> {text}'

    def _set_running(self, running: bool) -> None:
        self.paint.disabled = running
        self.pause.disabled = self.cancel.disabled = not running
        for control in (self.content, self.style, self.share, self.size, self.steps, self.seed):
            control.disabled = running

    def _make_figure(self) -> LiveFigure:
        title = f"Loss, by the features of {self._problem.feature_weights.title}"
        figure = LiveFigure(layout=plots.layout(title, "step", "loss", width=FIGURE_WIDTH, height=300))
        for name, style in self._styles.items():
            figure.add_scatter(name=name, x=[], y=[], mode="lines", line=style.line)
        figure.update_layout(showlegend=True)
        figure.update_xaxes(range=[0, self.steps.value])
        figure.update_yaxes(plots.loss_axis([(2, 0.2)]))
        return figure


def _trained_on(problem: NeuralArt) -> NeuralArt:
    """That problem with the weights, and where it is there the style, that the learned optimizer was trained on."""
    name = PRETRAINED[problem.network]
    config = zoo.card(name).get("problem") if name in zoo.names() else None
    if config is None:
        return problem
    if config["style"] in data.style_names():
        problem = replace(problem, style=config["style"])
    return replace(problem, **{weight: config[weight] for weight in ("content_weight", "style_weight", "tv_weight")})


def _choice(label: str, names: list[str], value: str) -> ipywidgets.Dropdown:
    if value not in names:
        raise UnknownNameError(label.lower(), value, names)
    return ipywidgets.Dropdown(options=names, value=value, description=label, **described("205px", "55px"))


def _upload(kind: str) -> ipywidgets.FileUpload:
    return ipywidgets.FileUpload(
        accept="image/*",
        description="Own",
        tooltip=f"A picture of your own as the {kind}. {LARGEST_UPLOAD}",
        layout={"width": "95px"},
    )


def _image(side: int) -> ipywidgets.Image:
    return ipywidgets.Image(format="png", width=side, height=side, layout={"width": f"{side}px", "height": f"{side}px"})


def _png(picture: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
