"""Neural art: optimizers paint the same picture side by side, step by step (figure 9)."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from l2l_kit import data, plots, zoo
from l2l_kit.errors import UnknownNameError, WeightsFileError, check_number
from l2l_kit.evaluation import LBFGS, ONE_RATE, lbfgs, read_result, swept_baselines, under
from l2l_kit.problems import NeuralArt, TaskBatch
from l2l_kit.problems.neural_art import Network, to_pictures
from l2l_kit.randomness import generator
from l2l_kit.tensors import Layout, pick_device
from l2l_kit.training.rollout import Point, trajectory
from l2l_kit.widgets.comparison import LEARNED, constructor
from l2l_kit.widgets.explorer import Control, Job, Picture, Rows, Steps, Values, View, ordered, seed_control

PRETRAINED = {"vgg16": "neural-art", "small": "neural-art-small"}
"""The learned optimizer by the network whose features it was trained on."""
SWEEPS = {64: "sweeps/neural-art", 128: "sweeps/neural-art-new-style"}
"""Where the learning rates for pictures of that size come from."""
NAMES = (LEARNED, "Adam", "NAG", LBFGS)
STEPS = (16, 32, 64, 128, 256)
THUMBNAIL = 110  # pixels a side at which content and style are shown
KINDS = {"content": data.content, "style": data.style}


class Painter(Job):
    """Let a learned optimizer, Adam, NAG and L-BFGS paint the same picture.

    Paint begins what the controls say, in the background. Readers upload pictures of their own, or put
    them into the cache's folders "contents" and "styles".

    Args:
        seed: of the noise that pictures begin as.
        content: one of `data.content_names`, to begin with.
        style: one of `data.style_names`, to begin with; None for the one that the optimizer was trained on.
        size: pixels a side, 64 or 128, to begin with; a step of one optimizer takes some 60 or 240 ms with VGG-16.
        steps: updates of each picture, to begin with.
        network: as in `problems.NeuralArt`.

    Attributes:
        painted: the pictures so far by optimizer, bytes of shape ``(3, size, size)``.

    Raises:
        FileNotFoundError: if the sweeps that tuned the learning rates are not recorded.
        UnknownNameError: for an unknown content, style, size or network.
        ValueError: for a number of steps below 1.
    """

    compares, verb = False, "Paint"
    recorded = MappingProxyType({"content": ("astronaut", "cat"), "step": range(0, 65, 4)})

    def __init__(
        self,
        seed: int = 0,
        content: str = "astronaut",
        style: str | None = None,
        *,
        size: int = 64,
        steps: int = 128,
        network: Network = "auto",
    ) -> None:
        check_number("Painter", "steps", steps)
        self._problem = _trained_on(NeuralArt(network=network, source="embedded"))
        self._rates = {number: under(read_result(name), ONE_RATE) for number, name in SWEEPS.items()}
        self._steps = ordered(STEPS, steps)
        self._own: dict[str, dict[str, Tensor]] = {"content": {}, "style": {}}
        self.painted: dict[str, Tensor] = {}
        self._losses: dict[str, list[float]] = {name: [] for name in NAMES}
        self._missing: list[Exception] = []
        self._going = threading.Event()
        self._going.set()
        style = self._problem.style if style is None else style
        super().__init__(content=content, style=style, share=0.5, size=size, steps=steps, seed=seed)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        rows: list[Control | tuple[Control, ...]] = []
        for kind, names in {"content": data.content_names(), "style": data.style_names()}.items():
            names = [*names, *(name for name in self._own[kind] if name not in names)]
            rows.append(Control(kind, "menu", kind.capitalize(), names))
        uploads = (Control(f"own {kind}", "upload", f"Own {kind}…", help="A picture of yours") for kind in KINDS)
        rows.append(tuple(uploads))
        shares, about = [k / 10 for k in range(11)], "Of the loss; the rest is the content's"
        rows.append(Control("share", "slider", "Style's share", shares, about, [0.5]))
        rows.append(Control("steps", "slider", "Steps", self._steps, "Updates; the LSTM was trained on 128", [128]))
        pause = Control("pause", "button", "Pause" if self._going.is_set() else "Go on", more="working")
        size = Control("size", "slider", "Size", tuple(SWEEPS), "Pixels a side", [64])
        rows.append(self.buttons(pause))
        return {"Picture": rows, "More": [size, seed_control()]}

    def replay(self, values: Values) -> None:
        if values["step"] == 0:
            self.move(content=values["content"])
            self._recording = self.work(self.values)
        view = next(self._recording)
        while len(self._losses[LBFGS]) <= values["step"]:  # whose turn is last
            view = next(self._recording)
        self._show(view())

    def press(self, button: str) -> None:
        if button == "pause":
            self._going.clear() if self._going.is_set() else self._going.set()
            self._tell(self.view)
        else:
            super().press(button)

    def receive(self, control: str, name: str, content: bytes) -> None:
        kind = control.removeprefix("own ")
        self._own[kind][name] = data.load_picture(content, name)
        self.move(**{kind: name})
        self._show(self.look(f"{name} is the {kind} now."))

    def picture(self) -> bytes:
        row = {kind: self._chosen(self.values, kind) for kind in KINDS}
        return _png({**row, **{name: self.painted[name] for name in NAMES if name in self.painted}}, THUMBNAIL)

    def code(self, values: Values) -> str:
        return (
            "import l2l_kit as l2l\nfrom l2l_kit import data\nfrom l2l_kit.randomness import generator\n"
            "from l2l_kit.training import trajectory\n\n"
            f"problem = {constructor(self._asked(values))}\n"
            f"content, style = data.content({values['content']!r}), data.style({values['style']!r})\n"
            f'tasks = problem.tasks(content[None], generator({values["seed"]}, "painter"), style)\n'
            f'lstm = l2l.load("{PRETRAINED[self._problem.network]}")\n'
            f"losses = [point.losses.item() for point in trajectory(lstm, tasks, {values['steps']})]"
        )

    def _asked(self, values: Values) -> NeuralArt:
        trained, share = self._problem, 2 * values["share"]
        weights = {"content_weight": (2 - share) * trained.content_weight, "style_weight": share * trained.style_weight}
        return replace(trained, size=values["size"], **weights)

    def _chosen(self, values: Values, kind: str) -> Tensor:
        """The picture that is chosen as content or style."""
        name = values[kind]
        return self._own[kind][name] if name in self._own[kind] else KINDS[kind](name)

    def work(self, values: Values) -> Steps:
        """Every optimizer in turn does a step."""
        device, steps = pick_device(), values["steps"]
        self._missing.clear()
        self.painted.clear()
        self._losses = {name: [] for name in NAMES}
        self._going.set()
        yield partial(self.look, "It begins with the features of content and style.", 0.0)
        draws = generator(values["seed"], "painter")
        content, style = self._chosen(values, "content"), self._chosen(values, "style")
        tasks = self._asked(values).tasks(content[None], draws, style, device)
        layout = Layout.of(tasks.initial_params)
        runs = self._runs(tasks, values, device)
        try:
            for step in range(steps + 1):
                for name, run in runs.items():
                    point = next(run)
                    self.painted[name] = to_pictures(layout.unravel(point.params)["pixels"][0]).cpu()
                    self._losses[name].append(point.losses[0].item())
                    yield partial(self.look, f"Painting: step {step} of {steps}.", step / steps)
                    while not self._going.wait(0.1) and not self.cancelled:
                        yield partial(self.look, f"Paused at step {step} of {steps}.", step / steps)
                    if self.cancelled:
                        yield partial(self.look, f"Cancelled at step {step}.")
                        return
        finally:
            self._going.set()
        finals = {name: math.inf if math.isnan(line[-1]) else line[-1] for name, line in self._losses.items() if line}
        order = ", ".join(sorted(finals, key=lambda name: finals[name]))
        yield partial(self.look, f"After {steps} steps, from the lowest loss: {order}.")

    def _runs(self, tasks: TaskBatch, values: Values, device: torch.device) -> dict[str, Iterator[Point]]:
        """Every optimizer's way through the pictures; those that are missing are noted."""
        table, steps = self._rates[values["size"]], values["steps"]
        tuned = swept_baselines(table, table["step"].max())
        runs = {name: trajectory(tuned[name], tasks, steps) for name in NAMES if name in tuned}
        runs[LBFGS] = lbfgs(tasks, steps)
        try:
            rule = zoo.load(PRETRAINED[self._problem.network], device)
        except (UnknownNameError, WeightsFileError) as error:
            self._missing.append(error)
            return runs
        return {LEARNED: trajectory(rule, tasks, steps), **runs}

    def look(self, text: str, progress: float | None = None) -> View:
        """How far each optimizer is."""
        title = f"Loss, by the features of {self._problem.feature_weights.title}"
        figure = plots.losses(self._losses, self.values["steps"], title, [(2, 0.2)]).update_layout(height=300)
        pictures = []
        for name, style in plots.styles(NAMES).items():
            if line := self._losses[name]:
                caption = f"{line[-1]:.3f}" if math.isfinite(line[-1]) else "diverged"
                pictures.append(Picture(name, _png({"": self.painted[name]}), caption, style.color))
        for kind in KINDS:
            look = _png({"": self._chosen(self.values, kind)}, THUMBNAIL)
            pictures.append(Picture(kind.capitalize(), look, self.values[kind].replace("_", " "), side=THUMBNAIL))
        return View(text, figure, pictures, self._missing, progress)


def _trained_on(problem: NeuralArt) -> NeuralArt:
    """That problem with the weights, and where it is there the style, that the learned optimizer was trained on."""
    name = PRETRAINED[problem.network]
    config = zoo.card(name).get("problem") if name in zoo.names() else None
    if config is None:
        return problem
    if config["style"] in data.style_names():
        problem = replace(problem, style=config["style"])
    return replace(problem, **{weight: config[weight] for weight in ("content_weight", "style_weight", "tv_weight")})


def _png(row: dict[str, Tensor], side: int | None = None) -> bytes:
    content = io.BytesIO()
    plots.pictures({"": row}, side=side).save(content, "PNG")
    return content.getvalue()
