"""Meta-training to watch: the learned optimizer's curve after each epoch, against the tuned baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from l2l_kit import plots
from l2l_kit.evaluation import claim, compare, ratio_table
from l2l_kit.optimizers import Baseline, LSTMRule, Preprocessing
from l2l_kit.optimizers.preprocessing import make_preprocessing
from l2l_kit.problems import Problem, Quadratics
from l2l_kit.problems.base import check_problem
from l2l_kit.training import History, MetaTrainer, MetaTraining, rollout, validation_batch
from l2l_kit.widgets.comparison import (
    LEARNED,
    PREPROCESSINGS,
    LearnedExplorer,
    constructor,
    preprocessing_control,
    recorded_for,
)  # fmt: skip
from l2l_kit.widgets.comparisons import UNROLLS
from l2l_kit.widgets.explorer import Control, Job, Rows, Steps, Values, View, ordered

EPOCHS = (5, 10, 25, 50, 100)
META_LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TESTS_PER_VALIDATION = 2  # fresh optimizees that the result is tried on, for each one that it is validated on
VERDICTS = {
    "holds": "It beats every baseline.",
    "refuted": "It does not beat every baseline.",
    "undecided": "They do not settle whether it beats every baseline.",
}


class Trainer(Job):
    """Meta-train an optimizer and watch it learn. The explorers of the same problem offer what was trained.

    Args:
        problem: what to train on; None for the quadratics in 10 dimensions.
        settings: how; the controls begin there. None for what takes a minute or two on two cores on the quadratics: 25
            epochs of 10 episodes.
        seed: of the LSTM's initial weights and, if no settings are given, of all draws.
        optimizer: arguments of `LSTMRule`; the preprocessing is where its control begins.
        baselines: what to compare with, nothing if empty; None for the tuned ones recorded for this problem.

    Attributes:
        trained: the optimizer that came out of the last run that got through an epoch, with its best weights; or None.
        history: of that run, or None.

    Raises:
        FileNotFoundError: if no tuned baselines are recorded for this problem and none are given.
        TypeError: for what is no problem.
        ValueError: if the optimizer's arguments make no sense.
    """

    verb = "Train"

    def __init__(
        self,
        problem: Problem | None = None,
        settings: MetaTraining | None = None,
        seed: int = 0,
        *,
        optimizer: Mapping[str, Any] | None = None,
        baselines: Mapping[str, Baseline] | None = None,
    ) -> None:
        self.trained: LSTMRule | None = None
        self.history: History | None = None
        self._problem = problem = problem or Quadratics()
        check_problem(problem)
        self._settings = settings or MetaTraining(epochs=25, episodes_per_epoch=10, meta_lr=0.01, seed=seed)
        self._optimizer = {"seed": seed, **(optimizer or {})}
        self._first = LSTMRule(**self._optimizer).preprocessing
        horizon = self._settings.horizon
        self._baselines = recorded_for(problem.name, horizon) if baselines is None else dict(baselines)
        # The very optimizees that meta-training validates on: on others, the rare hard ones would decide.
        tasks = validation_batch(problem, self._settings)
        self._losses: dict[str, list[float]] = {LEARNED: []}
        for name, rule in self._baselines.items():
            self._losses[name] = rollout(rule, tasks, horizon).mean(dim=0).tolist()
        chosen = {"unroll": self._settings.unroll, "meta_lr": self._settings.meta_lr, "epochs": self._settings.epochs}
        super().__init__(preprocessing=self._first.name, **chosen)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        settings = self._settings
        unrolls = [length for length in ordered(UNROLLS, settings.unroll) if length <= settings.horizon]
        rates, epochs = ordered(META_LEARNING_RATES, settings.meta_lr), ordered(EPOCHS, settings.epochs)
        rows = [
            Control("unroll", "slider", "Unroll", unrolls, "Steps that are backpropagated through at once"),
            preprocessing_control(tuple(PREPROCESSINGS)),
            Control("meta_lr", "slider", "Meta rate", rates, "Learning rate of Adam, the meta-optimizer"),
            Control("epochs", "slider", "Epochs", epochs, f"Of {settings.episodes_per_epoch} episodes each"),
        ]
        return {"Meta-training": [*rows, self.buttons()]}

    def code(self, values: Values) -> str:
        default, chosen = asdict(MetaTraining()), asdict(self._chosen(values))
        seen = self._preprocessing(values)
        written = seen.name if seen == make_preprocessing(seen.name) else seen.config()
        changed = {name: value for name, value in chosen.items() if value != default[name]}
        optimizer, settings = (
            ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            for arguments in ({**self._optimizer, "preprocessing": written}, changed)
        )
        return (
            f"import l2l_kit as l2l\n\nlstm = l2l.LSTMRule({optimizer})\nsettings = l2l.MetaTraining({settings})\n"
            f"history = l2l.meta_train(lstm, {constructor(self._problem)}, settings)"
        )

    def _chosen(self, values: Values) -> MetaTraining:
        return replace(self._settings, **{name: values[name] for name in ("unroll", "meta_lr", "epochs")})

    def _preprocessing(self, values: Values) -> Preprocessing:
        """The first one is as the caller gave it, perhaps with settings of its own."""
        return (
            self._first if values["preprocessing"] == self._first.name else make_preprocessing(values["preprocessing"])
        )

    def work(self, values: Values) -> Steps:
        """Train as the controls say, then try the result on fresh optimizees."""
        rule = LSTMRule(**{**self._optimizer, "preprocessing": self._preprocessing(values)})
        trainer = MetaTrainer(rule, self._problem, self._chosen(values))
        yield partial(self.look, "Training begins.", 0.0)
        lowest: list[float] = []
        try:
            with closing(trainer.run()) as run:
                for event in run:
                    if event.validation_losses is not None:
                        line = self._losses[LEARNED] = event.validation_losses.mean(dim=0).tolist()
                        lowest = line if not lowest or not line[-1] > lowest[-1] else lowest
                    if self.cancelled:
                        break
                    yield partial(self._progress, trainer, event.epoch, event.episode)
        finally:
            self._losses[LEARNED] = lowest or self._losses[LEARNED]
            if len(trainer.history.records) > 1:
                self.trained, self.history = rule, trainer.history
                about = f"unroll {values['unroll']}, {values['preprocessing']}, epoch {self.history.best.epoch}"
                LearnedExplorer.offer(self._problem.name, f"trained here: {about}", rule)
        if self.cancelled:
            epoch = trainer.history.best.epoch if self.trained is rule else 0
            kept = f"The best weights so far, of epoch {epoch}, are kept: the explorers offer them."
            yield partial(self.look, f"Cancelled. {kept if epoch else 'No epoch was done.'}")
            return
        if not self._baselines:
            yield partial(self.look, "Trained.")
            return
        tests = TESTS_PER_VALIDATION * self._settings.validation_tasks
        yield partial(self.look, f"Trained. Now it is tried on {tests} fresh optimizees.", 1.0)
        steps, seed = self._settings.horizon, self._settings.seed
        found = compare({LEARNED: rule, **self._baselines}, self._problem, steps=steps, num_tasks=tests, seed=seed)
        judged = claim(ratio_table(found, LEARNED), "ours", "", VERDICTS["holds"], because="any lower loss counts")
        text = f"Trained. Mean losses of {tests} fresh optimizees after {steps} steps: {judged.measured}."
        yield partial(self.look, f"{text} {VERDICTS[judged.verdict]}")

    def _progress(self, trainer: MetaTrainer, epoch: int, episode: int) -> View:
        settings, best = trainer.settings, trainer.history.best.validation_loss
        left = f", about {trainer.seconds * (settings.episodes / episode - 1):.0f} s left" if episode else ""
        finals = [
            (line[-1], name) for name, line in self._losses.items() if name != LEARNED and math.isfinite(line[-1])
        ]
        beat = " ({1}: {0:.3g})".format(*min(finals)) if finals else ""
        text = (
            f"Epoch {epoch} of {settings.epochs}, episode {episode} of {settings.episodes}, "
            f"{trainer.seconds:.0f} s{left}. Lowest loss after {settings.horizon} steps so far: {best:.3g}{beat}."
        )
        return self.look(text, episode / settings.episodes)

    def look(self, text: str, progress: float | None = None) -> View:
        title = f"Mean loss of {self._settings.validation_tasks} validation tasks ({self._problem.name})"
        return View(text, plots.losses(self._losses, self._settings.horizon, title), progress=progress)
