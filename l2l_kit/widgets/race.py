"""A race: the learned optimizer against tuned Adam and NAG, each time on a fresh function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from l2l_kit import plots, static
from l2l_kit.evaluation import compare, tuned_baselines
from l2l_kit.optimizers import Optimizer, UpdateRule
from l2l_kit.problems import Quadratics
from l2l_kit.widgets.comparison import LEARNED, LearnedExplorer, made_by
from l2l_kit.widgets.explorer import Control, Rows, Values, View

STEPS, PROBLEM = 100, Quadratics.name


class Race(LearnedExplorer):
    """Watch optimizers minimize a random quadratic in ten dimensions. It begins as soon as it is on the page.

    The lowest loss after the last step wins. The score is that of the draws that were raced to the end.

    Args:
        seed: of the first draw; the next ones count up.

    Raises:
        FileNotFoundError: if no tuned learning rates for the quadratics are recorded.
    """

    compares = False
    recorded = MappingProxyType({"seed": range(5), "step": range(0, STEPS + 1, 4)})

    def __init__(self, seed: int = 0) -> None:
        tuned = tuned_baselines(PROBLEM)
        self._tuned = {name: tuned[name] for name in ("Adam", "NAG")}
        self._finished: set[tuple[UpdateRule, int]] = set()  # who raced on which draw to the end
        self._losses = lru_cache(maxsize=256)(self._run)
        super().__init__(seed=seed, step=0)

    def controls(self, values: Values) -> Mapping[str, Rows]:
        another = Control("seed", "number", "Draw", (0, 2**31), "Seed of the function", more="Another draw")
        step = Control("step", "player", "Step", range(0, STEPS + 1, 2), more="auto")
        return {"Race": [another, step, *self.learned_controls(PROBLEM)]}

    def settle(self, values: Values) -> Values:
        if any(values[name] != self._last.get(name, values[name]) for name in ("seed", "learned")):
            return {**values, "step": 0}
        if values["step"] == STEPS:
            self._finished.add((self.rule(PROBLEM, values), values["seed"]))
        return values

    def press(self, button: str) -> None:
        self._finished.clear()  # there is no button but "reset"
        super().press(button)

    def draw(self, values: Values) -> View:
        return self._view(self.rule(PROBLEM, values), values["seed"], values["step"], self._finished)

    def code(self, values: Values) -> str:
        return (
            "import l2l_kit as l2l\n\n"
            f'learned, tuned = {made_by(self.learned(PROBLEM, PROBLEM, values))}, l2l.tuned_baselines("quadratics")\n'
            'racers = {"LSTM": learned, "Adam": tuned["Adam"], "NAG": tuned["NAG"]}\n'
            "problem = l2l.problems.Quadratics(dim=10)\n"
            f"curves = l2l.compare(racers, problem, steps={STEPS}, num_tasks=1, seed={values['seed']})\n"
            "l2l.plots.learning_curves(curves, band=None)"
        )

    def picture(self) -> bytes:
        racer, seed = self.rule(PROBLEM, self.values), self.values["seed"]
        return static.png(self._view(racer, seed, STEPS, self._finished | {(racer, seed)}).figure)

    def _view(self, racer: UpdateRule, seed: int, step: int, finished: set[tuple[UpdateRule, int]]) -> View:
        losses = self._losses(racer, seed)
        score = Counter(_ranks(self._losses(*race))[0] for race in finished if race[0] is racer)
        title = "Races won: " + ", ".join(f"{name} {score[name]}" for name in losses)
        figure = plots.losses(
            {name: line[: step + 1] for name, line in losses.items()}, STEPS, title, [*losses.values()]
        )
        figure.update_layout(height=320).update_yaxes(title="loss f(θ)")
        ranks = _ranks(losses, step)
        standing = ", ".join(f"{name} {losses[name][step]:.3g}" for name in ranks)
        told = f"{ranks[0]} wins draw {seed}" if step == STEPS else f"Draw {seed}, step {step} of {STEPS}"
        return View(f"{told}. Losses, lowest first: {standing}.", figure)

    def _run(self, racer: UpdateRule, seed: int) -> dict[str, list[float]]:
        racers: dict[str, Optimizer[Any]] = {LEARNED: racer, **self._tuned}
        found = compare(racers, Quadratics(), steps=STEPS, num_tasks=1, seed=seed, device="cpu")
        return {name: losses[0].tolist() for name, losses in found.losses.items()}


def _ranks(losses: Mapping[str, list[float]], step: int = STEPS) -> list[str]:
    """Who has the lowest loss at a step, who the next."""
    return sorted(losses, key=lambda name: losses[name][step])
