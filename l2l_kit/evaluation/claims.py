"""The paper's claims as statistics: what it says, what was measured here, and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from l2l_kit.evaluation.compare import Curves, Statistic


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and its verdict; displays itself in a notebook, where the report collects it.

    Attributes:
        source: section or figure of the paper.
        text: the claim, in our words.
        measured: what was measured, with its uncertainty.
        conditions: number of optimizees, seed and what else the measurement depends on.
        holds: whether the measurement supports the claim.
    """

    source: str
    text: str
    measured: str
    conditions: str
    holds: bool

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{self.source}: {self.text}\n  measured: {self.measured}\n  on: {self.conditions}\n  claim {verdict}"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        verdict = "holds" if self.holds else "**does not hold**"
        markdown = f"> **{self.source}** {verdict}: {self.text}.\n>\n> {self.measured}\n>\n> *On {self.conditions}.*"
        return {"text/plain": str(self), "text/markdown": markdown}, {"l2l_claim": asdict(self)}


def beats_baselines(
    curves: Curves, source: str, text: str, *, learned: str = "LSTM", statistic: Statistic = "mean", from_step: int = 20
) -> Claim:
    """The learned optimizer is below every other one at every step from `from_step` on, and clearly so at the end.

    Holds if the curve of the chosen statistic lies below all others from that step on, and the 95% confidence interval
    of its paired ratio to the best of the others at the last step lies below 1.

    Args:
        curves: of the learned optimizer and of tuned baselines.
        source: section or figure of the paper.
        text: the claim, in our words.
        learned: name of the learned optimizer in the curves.
        statistic: "mean" or "median" over the optimizees.
        from_step: first step that counts.

    Raises:
        ValueError: if there is nothing to compare with, or the curves end before that step.
    """
    others = [name for name in curves.losses if name != learned]
    if not others or curves.steps < from_step:
        raise ValueError(
            f"claim: needs baselines and at least {from_step} steps, got {others} and {curves.steps} steps."
        )
    finals = {name: curves.statistic(name, statistic)[-1].item() for name in others}
    best = min(finals, key=lambda name: finals[name])
    mine = curves.statistic(learned, statistic)[from_step:]
    below = all(bool((mine < curves.statistic(name, statistic)[from_step:]).all()) for name in others)
    ratio = curves.interval(learned, statistic, over=best)
    value, low, high = (part[-1].item() for part in ratio)
    measured = (
        f"{statistic} f after {curves.steps} steps: {learned} {mine[-1].item():.3g}, best baseline {best} "
        f"{finals[best]:.3g}, ratio {value:.3g} (95% CI {low:.3g} to {high:.3g}); "
        f"below every baseline at every step from {from_step} on: {below}"
    )
    conditions = f"{curves.tasks} fresh optimizees of {_named(curves.problem)}, seed {curves.seed}"
    return Claim(source, text, measured, conditions, below and high < 1)


def _named(problem: Mapping[str, Any]) -> str:
    """A problem's configuration in one word, such as ``quadratics(dim=10)``."""
    fields = ", ".join(f"{name}={value}" for name, value in problem.items() if name != "name")
    return f"{problem.get('name')}({fields})"
