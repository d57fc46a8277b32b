"""Meta-training to watch: the learned optimizer's curve after each epoch, against the tuned baselines."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets
from torch import Tensor

from l2l_kit import plots
from l2l_kit.evaluation import Curves, compare
from l2l_kit.optimizers import Baseline, LSTMRule, Optimizer
from l2l_kit.problems import MNIST, Problem, Quadratics
from l2l_kit.training import History, MetaTrainer, MetaTraining, Progress, rollout, validation_batch
from l2l_kit.widgets.base import LEARNED, baselines_for
from l2l_kit.widgets.job import Job, Outcome
from l2l_kit.widgets.live_figure import (
    CONTROLS_WIDTH,
    FIGURE_WIDTH,
    PREPROCESSINGS,
    UNROLLS,
    LiveFigure,
    WithPicture,
    error_message,
    heading,
    labelled,
    message,
    options,
    preprocessing_toggle,
    selection,
)

EPOCHS = (5, 10, 25, 50, 100)
META_LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TESTS_PER_VALIDATION = 2
"""Fresh optimizees that the result is tried on, for each one that it is validated on."""


@dataclass(frozen=True)
class _Kind:
    """What live training of one kind of problem begins with; with these settings it takes about a minute.

    Attributes:
        tasks: what figures call them.
        settings: arguments of `MetaTraining`.
        optimizer: arguments of `LSTMRule`.
        preprocessings: to choose from.
    """

    tasks: str
    settings: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    preprocessings: tuple[str, ...]


_ANY = _Kind("optimizees", {"epochs": 25, "episodes_per_epoch": 10, "meta_lr": 0.01}, {}, tuple(PREPROCESSINGS))
_KINDS = {
    Quadratics.name: replace(_ANY, tasks="functions", preprocessings=("none", "log-sign")),
    MNIST.name: _Kind(
        "networks",
        {"epochs": 6, "episodes_per_epoch": 10, "batch_size": 1, "validation_tasks": 4, "meta_lr": 0.01},
        {"preprocessing": "log-sign", "output_scale": 0.1},
        tuple(PREPROCESSINGS),
    ),
}


def trainer(
    problem: Problem | None = None,
    settings: MetaTraining | None = None,
    seed: int = 0,
    *,
    optimizer: Mapping[str, Any] | None = None,
    baselines: Mapping[str, Baseline] | None = None,
) -> Trainer:
    """Meta-train an optimizer and watch it learn: end a notebook cell with it.

    Args:
        problem: what to train on; None for the quadratics in 10 dimensions.
        settings: how; the controls begin there. None for what takes about a minute on two cores: on the quadratics 25
            epochs of 10 episodes, on MNIST 6 epochs of 10 episodes with one network each.
        seed: of the LSTM's initial weights and, if no settings are given, of all draws.
        optimizer: arguments of `LSTMRule`; the preprocessing is where its control begins. None for those of the
            paper: on MNIST the preprocessing "log-sign" and an output factor of 0.1, on the quadratics none of either.
        baselines: what to compare with; None for the tuned ones recorded for this problem.

    Raises:
        FileNotFoundError: if no tuned baselines are recorded for this problem and none are given.
        UnknownNameError: for an unknown preprocessing.
        ValueError: if the optimizer's arguments make no sense.
    """
    problem = Quadratics() if problem is None else problem
    kind = _KINDS.get(problem.name, _ANY)
    if settings is None:
        settings = MetaTraining(**kind.settings, seed=seed)
    if baselines is None:
        baselines = baselines_for(problem.name, settings.horizon)
    return Trainer(problem, settings, {"seed": seed, **(kind.optimizer if optimizer is None else optimizer)}, baselines)


class Trainer(WithPicture):
    """See `trainer`. Its controls are attributes; `run` does in a script what the Train button does in a page.

    Attributes:
        trained: the optimizer that came out of the last run that got through an epoch, with its best weights; or None.
        history: of that run, or None.
    """

    def __init__(
        self,
        problem: Problem,
        settings: MetaTraining,
        optimizer: Mapping[str, Any],
        baselines: Mapping[str, Baseline],
    ) -> None:
        self.trained: LSTMRule | None = None
        self.history: History | None = None
        self._problem, self._settings, self._baselines = problem, settings, dict(baselines)
        self._kind, self._optimizer = _KINDS.get(problem.name, _ANY), optimizer
        self._first_preprocessing = LSTMRule(**optimizer).preprocessing
        self._result = ""
        self._trainer: MetaTrainer | None = None
        self._best: list[float | None] | None = None
        self._lines: dict[str, list[float | None]] = {}
        self._job = Job(self._train, self._show, self._end, important=lambda event: event.validation_losses is not None)
        self._make_controls()
        super().__init__(self._make_figure(), self._column())

    def _make_controls(self) -> None:
        settings = self._settings
        self.unroll = selection(
            "Unroll",
            [(label, int(length)) for label, length in options(UNROLLS, settings.unroll) if length <= settings.horizon],
            settings.unroll,
            "Steps that are backpropagated through at once",
        )
        first = self._first_preprocessing.name
        choices = [name for name in PREPROCESSINGS if name in (*self._kind.preprocessings, first)]
        self.preprocessing = preprocessing_toggle(choices, first)
        rates = options(META_LEARNING_RATES, settings.meta_lr)
        self.meta_lr = selection("Meta rate", rates, settings.meta_lr, "Learning rate of Adam, the meta-optimizer")
        epochs = [(label, int(number)) for label, number in options(EPOCHS, settings.epochs)]
        self.epochs = selection("Epochs", epochs, settings.epochs, f"Of {settings.episodes_per_epoch} episodes each")
        self.train = ipywidgets.Button(description="Train", button_style="primary", layout={"width": "145px"})
        self.cancel = ipywidgets.Button(description="Cancel", disabled=True, layout={"width": "145px"})
        self.train.on_click(lambda _: self.start())
        self.cancel.on_click(lambda _: self._cancel())
        self.bar = ipywidgets.IntProgress(0, 0, settings.episodes, layout={"width": "300px"})
        self.status = ipywidgets.HTML(layout={"width": f"{CONTROLS_WIDTH - 20}px"})
        self._set_status(message("Choose, then press Train."))

    def _column(self) -> list[ipywidgets.Widget]:
        buttons = ipywidgets.HBox([self.train, self.cancel])
        settings = [self.unroll, labelled("Preprocessing", self.preprocessing), self.meta_lr, self.epochs]
        return [heading("Meta-training"), *settings, buttons, self.bar, self.status]

    def _make_figure(self) -> LiveFigure:
        settings = self._settings
        title = f"Mean loss over {settings.validation_tasks} validation {self._kind.tasks}"
        if isinstance(self._problem, MNIST):
            title += f", {self._problem.images.title}"
        figure = LiveFigure(layout=plots.layout(title, "step", "loss", width=FIGURE_WIDTH))
        # The very optimizees that meta-training validates on: on others, the rare hard ones would decide.
        tasks = validation_batch(self._problem, settings)
        for name, baseline in self._baselines.items():
            self._lines[name] = _mean(rollout(baseline, tasks, settings.horizon))
        steps, by_name = list(range(settings.horizon + 1)), plots.styles([LEARNED, *self._baselines])
        for name in (LEARNED, *self._baselines):
            figure.add_scatter(name=name, x=steps, y=self._lines.get(name, []), mode="lines", line=by_name[name].line)
        figure.update_layout(showlegend=True)
        figure.update_xaxes(range=[0, settings.horizon])
        figure.update_yaxes(plots.loss_axis(self._lines.values()))
        return figure

    def start(self) -> None:
        """Train in the background, as the Train button does."""
        if not self._job.running:
            self._begin()
            self._job.start()

    def run(self) -> LSTMRule:
        """Train here and now, without a page, and return the optimizer with its best weights. Ctrl-C stops early.

        Raises:
            RuntimeError: if it is training already, or was stopped before it got through an epoch.
            MetaTrainingDivergedError: if the training diverged.
            ValueError: for settings that make no sense.
        """
        before = self.trained
        self._begin()
        self._job.run()
        if self._job.error is not None:
            raise self._job.error
        if self.trained is None or self.trained is before:
            raise RuntimeError("the training was stopped before it got through an epoch.")
        return self.trained

    def wait(self, timeout: float | None = None) -> None:
        """Wait until training in the background has ended, for at most `timeout` seconds."""
        self._job.join(timeout)

    def close(self) -> None:
        """Stop training, and take it off the page and out of the kernel."""
        self._job.cancel()
        super().close()

    def _cancel(self) -> None:
        """What the Cancel button does; the training ends when the episode under way does."""
        self._job.cancel()
        self.cancel.disabled = True
        self._set_status(message("Cancelling after the episode under way."))

    def _begin(self) -> None:
        self._set_running(True)
        self._result, self._best = "", None
        self.bar.value, self.bar.bar_style = 0, ""
        self.bar.max = self.epochs.value * self._settings.episodes_per_epoch
        self._set_status(message("Training begins."))

    def _train(self) -> Generator[Progress, None, None]:
        """The work of the job: train as the controls say, then try the result on fresh optimizees."""
        settings = replace(
            self._settings, unroll=self.unroll.value, meta_lr=self.meta_lr.value, epochs=self.epochs.value
        )
        first = self._first_preprocessing  # as the caller gave it, perhaps with settings of its own
        preprocessing = first if self.preprocessing.value == first.name else self.preprocessing.value
        optimizer = LSTMRule(**{**self._optimizer, "preprocessing": preprocessing})
        meta_trainer = self._trainer = MetaTrainer(optimizer, self._problem, settings)
        try:
            yield from meta_trainer.run()
        finally:
            history = meta_trainer.history
            if len(history.records) > 1:
                self.trained, self.history = optimizer, history
                self._result = f"The best weights so far, of epoch {history.best.epoch}, are in .trained."
        contenders: dict[str, Optimizer[Any]] = {LEARNED: optimizer, **self._baselines}
        tests = TESTS_PER_VALIDATION * settings.validation_tasks
        fresh = f"{tests} fresh {self._kind.tasks}"
        self._set_status(message(f"Trained. Now it is tried on {fresh}."))
        curves = compare(contenders, self._problem, steps=settings.horizon, num_tasks=tests, seed=settings.seed)
        self._result = _verdict(curves, fresh)

    def _show(self, event: Progress) -> None:
        self.bar.value = event.episode
        if event.validation_losses is not None:
            line = _mean(event.validation_losses)
            self._draw(line)
            if self._best is None or _final(line) <= _final(self._best):
                self._best = line
        if self._job.cancelling or self._trainer is None:
            return
        trainer, settings = self._trainer, self._trainer.settings
        self._set_status(
            message(
                f"Epoch {event.epoch} of {settings.epochs}, episode {event.episode} of {settings.episodes}, "
                f"{trainer.seconds:.0f} s. Lowest loss after {settings.horizon} steps so far: "
                f"{trainer.history.best.validation_loss:.3g}{self._to_beat}."
            )
        )

    def _draw(self, line: list[float | None]) -> None:
        self._lines[LEARNED] = line
        with self.figure.batch_update():
            self.figure.data[0].y = self._lines[LEARNED]
            self.figure.layout.yaxis.update(plots.loss_axis(self._lines.values()))

    def _end(self, outcome: Outcome) -> None:
        self._set_running(False)
        if self._best is not None:
            self._draw(self._best)
        self.bar.bar_style = {"finished": "success", "cancelled": "warning", "failed": "danger"}[outcome]
        if self._job.error is not None:
            self._set_status(error_message(self._job.error))
        elif outcome == "cancelled":
            self._set_status(message(f"Cancelled. {self._result}"))
        else:
            self._set_status(message(self._result))

    @property
    def _to_beat(self) -> str:
        """The best baseline on the validation optimizees."""
        lines = ((line[-1], name) for name, line in self._lines.items() if name != LEARNED)
        finals = [(loss, name) for loss, name in lines if loss is not None]
        return " ({1}: {0:.3g})".format(*min(finals)) if finals else ""

    def _set_running(self, running: bool) -> None:
        self.train.disabled, self.cancel.disabled = running, not running
        for control in (self.unroll, self.preprocessing, self.meta_lr, self.epochs):
            control.disabled = running

    def _set_status(self, text: str) -> None:
        self.status.value = text


def _mean(losses: Tensor) -> list[float | None]:
    return plots.rounded(losses.mean(dim=0))


def _final(line: list[float | None]) -> float:
    return math.inf if line[-1] is None else line[-1]


def _verdict(curves: Curves, fresh: str) -> str:
    """Whether the learned optimizer ends below the best of the others, and how sure that is."""
    finals = {name: curves.statistic(name)[-1].item() for name in curves.losses}
    mine = finals.pop(LEARNED)
    text = f"Trained: after {curves.steps} steps on {fresh} the mean loss is {mine:.3g}"
    if not finals:
        return f"{text}."
    best = min(finals, key=lambda name: finals[name])
    low, high = (bound[-1].item() for bound in curves.interval(LEARNED, over=best)[1:])
    verdict = "beats every baseline" if high < 1 else "does not beat every baseline"
    return (
        f"{text}, of {best}, the best baseline, {finals[best]:.3g} (ratio {low:.2f} to {high:.2f}, 95%): it {verdict}."
    )
