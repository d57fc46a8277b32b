"""Learned against hand-designed optimizers: what the explorers of quadratics, digits and photographs share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple, TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor

from l2l_kit import plots, zoo
from l2l_kit.errors import UnknownNameError, check_number
from l2l_kit.evaluation import LEARNING_RATES, Curves, Statistic, learning_rates, tune, tuned_baselines
from l2l_kit.optimizers import Baseline, Optimizer, UpdateRule
from l2l_kit.problems import Problem
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import pick_device
from l2l_kit.training.rollout import trajectory
from l2l_kit.widgets.explorer import Control, Explorer, Rows, Steps, Values, View, ordered

LEARNED, PRETRAINED = "LSTM", "pretrained"
PREPROCESSINGS = {
    "none": "The LSTM is given the gradient as it is",
    "scale": "The gradient times a constant (appendix A)",
    "log-sign": "The gradient's logarithm and sign (appendix A)",
}
TUNING_TASKS = 32
_Key = tuple[Problem, int, Statistic]
_Rule = TypeVar("_Rule")


class Setting(NamedTuple):
    """What the controls of a comparison ask for.

    Attributes:
        problem: where the optimizees come from.
        pretrained: name of the pretrained optimizer.
        recorded: the baselines with the recorded learning rates that fit best.
        tuned_for: what these were tuned for, if that is something else; otherwise nothing.
        title: of the figure.
        in_range: losses that the axis always shows.
    """

    problem: Problem
    pretrained: str
    recorded: Mapping[str, Baseline]
    tuned_for: str
    title: str
    in_range: plots.Values = ()


class LearnedExplorer(Explorer):
    """An explorer of a learned optimizer: a pretrained one, or one that was trained in this notebook."""

    _alive: ClassVar[WeakSet[LearnedExplorer]] = WeakSet()
    _trained_here: ClassVar[dict[str, dict[str, UpdateRule]]] = {}

    def __init__(self, **values: Any) -> None:
        self._load = cache(zoo.load)
        super().__init__(learned=PRETRAINED, **values)
        self._alive.add(self)

    @classmethod
    def offer(cls, problem: str, name: str, rule: UpdateRule) -> None:
        """Let all explorers of a problem choose an optimizer that was just trained."""
        cls._trained_here.setdefault(problem, {})[name] = rule
        for explorer in cls._alive:
            explorer._tell(explorer.view)

    def learned(self, problem: str, pretrained: str, values: Values) -> UpdateRule | str:
        """The learned optimizer that is chosen; a pretrained one as its name."""
        return self._trained_here.get(problem, {}).get(values["learned"], pretrained)

    def rule(self, problem: str, values: Values) -> UpdateRule:
        """The same, where the pretrained one has the problem's name; it is loaded."""
        chosen = self.learned(problem, problem, values)
        return self._load(chosen) if isinstance(chosen, str) else chosen

    def learned_controls(self, problem: str) -> tuple[Control, ...]:
        """Which learned optimizer is shown, if any was trained here."""
        here = self._trained_here.get(problem, {})
        about = "The learned optimizer: a pretrained one, or one that was trained here"
        return (Control("learned", "menu", "Weights", (PRETRAINED, *here), about),) if here else ()


class ComparisonExplorer(LearnedExplorer):
    """Optimizers on the same optimizees, all their curves in one figure. A subclass says which problem it is.

    The curves are computed step by step and kept. The learning rates follow those that were tuned for what the other
    controls say, until a reader moves them.

    Args:
        steps: updates per run, to begin with.
        num_tasks: how many optimizees the losses are averaged over.
        values: what the other controls begin with.

    Raises:
        FileNotFoundError: if no tuned learning rates are recorded for the problem.
        ValueError: for values that the controls cannot have, or a number below 1.
        DataError: if the data set asked for is not available.
    """

    device: ClassVar[str | None] = None
    lengths: ClassVar[Sequence[int]] = (50, 100, 200)  # numbers of updates to choose from

    def __init__(self, *, steps: int, num_tasks: int, **values: Any) -> None:
        for name, count in (("steps", steps), ("networks", num_tasks)):
            check_number(type(self).__name__, name, count)
        self._num_tasks, self._steps = num_tasks, ordered(self.lengths, steps)
        self._runs: dict[tuple[Any, Problem, int], _Run] = {}
        self._tuned: dict[_Key, Mapping[str, Baseline]] = {}  # in this explorer
        self.recorded_for = cache(recorded_for)  # reading a file takes as long as drawing
        values["steps"] = steps
        super().__init__(**values, **all_ticked(self.setting(values).recorded))

    def setting(self, values: Values) -> Setting:
        """What the controls ask for."""
        raise NotImplementedError

    def choices(self, values: Values) -> tuple[list[Control], Rows]:
        """Controls that say which pretrained optimizer, and which problem."""
        raise NotImplementedError

    @property
    def _averaged(self) -> str:
        """What the curves are, for a title."""
        return "Mean loss of " + ("1 network" if self._num_tasks == 1 else f"{self._num_tasks} networks")

    def tuned(self, values: Values) -> Mapping[str, Baseline]:
        """The baselines with the learning rates that were tuned here or elsewhere."""
        setting = self.setting(values)
        return self._tuned.get(_key(setting, values)) or setting.recorded

    def controls(self, values: Values) -> Mapping[str, Rows]:
        setting = self.setting(values)
        learned, task = self.choices(values)
        rows: list[Control | tuple[Control, ...]] = [
            (tick(LEARNED), *self.learned_controls(setting.problem.name)),
            *learned,
        ]
        rows += rate_controls(self.tuned(values), values)
        back = Control("tuned", "button", "Tuned rates", help="Set all learning rates to the tuned ones")
        again = Control("tune", "button", "Tune for this setting", help="Find the best learning rates, on other draws")
        rows.append((back, again) if setting.tuned_for else back)
        return {"Optimizers": rows, "Problem": [*task, Control("steps", "slider", "Steps", self._steps, "Per run")]}

    def settle(self, values: Values) -> Values:
        if not self._last:
            return values
        before, now = self.tuned(self._last), self.tuned(values)
        follow = [label for label in now if label in before and values[f"lr {label}"] == before[label].lr]
        return {**values, **{f"lr {label}": now[label].lr for label in follow}}

    def press(self, button: str) -> None:
        if button == "tuned":
            self.move(**{f"lr {label}": rule.lr for label, rule in self.tuned(self.values).items()})
        elif button == "tune":
            self.start(self._tune(self.values))
        else:
            super().press(button)

    def draw(self, values: Values) -> View | Steps:
        problem, steps = self.setting(values).problem, values["steps"]
        keys = {name: (rule, problem, values["seed"]) for name, rule in self._ticked(values).items()}
        for key, run in self._runs.items():
            if key not in keys.values():
                run.points = None  # which frees all but the losses
        for key in keys.values():
            known = self._runs.get(key)
            if known is None or known.error or (known.points is None and not known.reaches(steps)):
                self._runs[key] = _Run(self._points(*key))
        view = partial(self._view, values, wanted := {name: self._runs[key] for name, key in keys.items()})
        unfinished = [run for run in wanted.values() if not run.reaches(steps)]
        return self._advance(unfinished, steps, view) if unfinished else view()

    def _advance(self, runs: list[_Run], steps: int, view: Callable[[], View]) -> Steps:
        """Whoever is behind goes one update further, until all are there."""
        while runs:
            min(runs, key=lambda run: len(run.losses)).advance()
            runs = [run for run in runs if not run.reaches(steps)]
            yield view

    def code(self, values: Values) -> str:
        optimizers = {name: made_by(rule) for name, rule in self._ticked(values).items()}
        lines = "".join(f'\n    "{name}": {made},' for name, made in optimizers.items())
        arguments = f"steps={values['steps']}, num_tasks={self._num_tasks}, seed={values['seed']}"
        return (
            f"import l2l_kit as l2l\n\nproblem = {constructor(self.setting(values).problem)}\n"
            f"optimizers = {{{lines}\n}}\n"
            f"curves = l2l.compare(optimizers, problem, {arguments})\n"
            f'l2l.plots.learning_curves(curves, "{_over(values)}")'
        )

    def _ticked(self, values: Values) -> dict[str, Baseline | UpdateRule | str]:
        """The optimizers to show, by name; a pretrained one as its name."""
        setting = self.setting(values)
        learned = self.learned(setting.problem.name, setting.pretrained, values)
        return ticked(learned, self.tuned(values), values)

    def _points(self, rule: Baseline | UpdateRule | str, problem: Problem, seed: int) -> Iterator[Tensor]:
        device = pick_device(self.device)
        if not isinstance(rule, Baseline):
            rule = zoo.load(rule, device) if isinstance(rule, str) else copy.deepcopy(rule).to(device)
        tasks = draw(problem, self._num_tasks, generator(seed, "test"), device)
        for _, losses, _ in trajectory(cast("Optimizer[Any]", rule), tasks):
            yield losses.cpu().nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _view(self, values: Values, runs: Mapping[str, _Run]) -> View:
        setting, steps, over = self.setting(values), values["steps"], _over(values)
        errors = [run.error for run in runs.values() if run.error]
        known = {name: torch.stack(run.losses[: steps + 1], dim=1) for name, run in runs.items() if run.losses}
        found = Curves(known, {}, values["seed"])
        lines = {name: found.statistic(name, over).tolist() for name in known if not runs[name].error}
        figure = plots.losses(lines, steps, setting.title, [setting.in_range])
        done = sum(map(len, lines.values())) / max(1, len(lines) * (steps + 1))
        if lines and done < 1:
            return View(f"Computing: step {min(map(len, lines.values())) - 1} of {steps}.", figure, (), errors, done)
        text = "" if errors and not lines else summary({name: line[-1] for name, line in lines.items()}, steps, over)
        if setting.tuned_for and _key(setting, values) not in self._tuned:
            text += f" Learning rates were tuned for {setting.tuned_for}."
        return View(text, figure, errors=errors)

    def _tune(self, values: Values) -> Steps:
        """Find learning rates for this setting, within a factor of ten of those that were tuned for another."""
        setting = self.setting(values)
        problem, steps, over = key = _key(setting, values)
        arguments = {"steps": steps, "num_tasks": min(self._num_tasks, TUNING_TASKS), "seed": values["seed"]}
        rules = setting.recorded
        runs = [(label, lr) for label, rule in rules.items() for lr in learning_rates(4) if 0.1 <= lr / rule.lr <= 10]
        finals: dict[str, dict[float, float]] = {label: {} for label in rules}
        for done, (label, lr) in enumerate(runs):
            text = f"Tuning {label} on other draws: {done} of {len(runs)} runs."
            yield partial(self.view._replace, text=text, progress=done / len(runs))
            tuning = tune(rules[label].name, problem, learning_rates=[lr], device=self.device, **arguments)
            finals[label][lr] = tuning.final(over).iloc[0]
        best = {
            label: Baseline(rules[label].name, min(by_rate, key=by_rate.__getitem__))
            for label, by_rate in finals.items()
        }
        self._tuned[key] = best
        self.values = self._last = {**values, **{f"lr {label}": rule.lr for label, rule in best.items()}}
        drawn = self.draw(self.values)
        yield from [lambda: drawn] if isinstance(drawn, View) else drawn


class _Run:
    """One optimizer on the optimizees of one seed, as far as it was needed; `error` is what went wrong, or None.

    Losses are of shape ``(n,)`` at each step, infinite where a run diverged.
    """

    def __init__(self, points: Iterator[Tensor]) -> None:
        self.losses: list[Tensor] = []
        self.points: Iterator[Tensor] | None = points
        self.error: Exception | None = None

    def reaches(self, steps: int) -> bool:
        """Whether it needs no more work to show that many updates."""
        return self.error is not None or len(self.losses) > steps

    def advance(self) -> None:
        """Go one update further."""
        try:
            self.losses.append(next(cast("Iterator[Tensor]", self.points)))
        except Exception as error:  # it is shown, and the other runs go on
            self.error = error


def recorded_for(problem: str, steps: int, statistic: Statistic = "mean") -> dict[str, Baseline]:
    """The tuned baselines for runs of that length, or if nothing was recorded for it, of the longest recorded.

    Raises:
        FileNotFoundError: if no tuning of that problem is recorded.
    """
    try:
        return tuned_baselines(problem, statistic, step=steps)
    except UnknownNameError:
        return tuned_baselines(problem, statistic)


def preprocessing_control(names: Sequence[str], *, off: bool = False) -> Control:
    """A choice among `PREPROCESSINGS`."""
    helps = [PREPROCESSINGS[name] for name in names]
    return Control("preprocessing", "choice", "Preprocessing", names, helps, off=off)


def all_ticked(tuned: Mapping[str, Baseline]) -> dict[str, Any]:
    """Values with which all optimizers are shown, with their tuned learning rates."""
    rates = {f"lr {label}": rule.lr for label, rule in tuned.items()}
    return {**dict.fromkeys((LEARNED, *tuned), True), **rates}


def ticked(learned: _Rule, tuned: Mapping[str, Baseline], values: Values) -> dict[str, _Rule | Baseline]:
    """The optimizers to show, by name, the baselines with the learning rates that are chosen."""
    rules: dict[str, _Rule | Baseline] = {LEARNED: learned}
    rules |= {label: Baseline(rule.name, values[f"lr {label}"]) for label, rule in tuned.items()}
    return {name: rule for name, rule in rules.items() if values[name]}


def rate_controls(tuned: Mapping[str, Baseline], values: Values) -> list[tuple[Control, Control]]:
    """For each baseline, whether it is shown, and its learning rate."""
    rows = []
    for label, rule in tuned.items():
        rates = ordered(LEARNING_RATES, rule.lr, values.get(f"lr {label}", rule.lr))
        about = f"Learning rate of {label}; the mark is the tuned one"
        rows.append((tick(label), Control(f"lr {label}", "slider", "lr", rates, about, [rule.lr])))
    return rows


def made_by(rule: Baseline | UpdateRule | str) -> str:
    """The Python that makes an optimizer; a pretrained one is its name, and any other one the reader's trainer made."""
    if isinstance(rule, Baseline):
        return f'l2l.baseline("{rule.name}", lr={rule.lr:g})'
    return f'l2l.load("{rule}")' if isinstance(rule, str) else "trainer.trained"


def constructor(problem: Problem) -> str:
    """The Python that makes a problem of the kit; a reader's own problem is only named."""
    values = {field.name: getattr(problem, field.name) for field in fields(cast("Any", problem))}
    if "name" in values:
        return "problem"
    default = {field.name: field.default for field in fields(cast("Any", problem))}
    changed = ", ".join(f"{name}={value!r}" for name, value in values.items() if value != default[name])
    return f"l2l.problems.{type(problem).__name__}({changed})"


def summary(finals: Mapping[str, float], steps: int, statistic: str) -> str:
    """Which optimizer is best at the last step."""
    if not finals:
        return "Tick at least one optimizer."
    (best, loss), *others = sorted(finals.items(), key=lambda item: item[1])
    rest = f"; next is {others[0][0]} with {others[0][1]:.3g}" if others else ""
    return f"After {steps} steps {best} is best: {statistic} loss {loss:.3g}{rest}."


def _key(setting: Setting, values: Values) -> _Key:
    return setting.problem, values["steps"], _over(values)


def _over(values: Values) -> Statistic:
    return cast("Statistic", values.get("statistic", "mean"))


def tick(label: str) -> Control:
    """Whether an optimizer is shown, in its colour."""
    return Control(label, "check", label, help=f"Show {label}", more=plots.STYLES[label].color)
