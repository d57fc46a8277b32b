"""The paper's claims as statistics: what it says, what was measured here, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation.compare import Curves, Statistic
from l2l_kit.evaluation.results import EACH_STEP, ONE_RATE, under

if TYPE_CHECKING:
    import pandas as pd

_MEASURES = ("protocol", "optimizer", "lr", "mean", "low", "high", "ratio", "ratio_low", "ratio_high")

_RATES = {
    ONE_RATE: ", with the learning rate that is best for the last number of steps",
    EACH_STEP: ", with the learning rate that is best for each number of steps",
}


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and its verdict; displays itself in a notebook, where the report collects it.

    Attributes:
        source: section or figure of the paper.
        text: the claim, in our words.
        measured: what was measured, with its uncertainty.
        conditions: number of optimizees, seed and what else the measurement depends on.
        holds: whether the measurement supports the claim.
        effect: what was measured as one number, if it is one; for a sweep, that of the setting which decides.
        low: lower end of its 95% confidence interval.
        high: upper end.
        problems: number of optimizees behind it; for a sweep, in each setting.
        seed: of these optimizees.
    """

    source: str
    text: str
    measured: str
    conditions: str
    holds: bool
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    problems: int | None = None
    seed: int | None = None

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
    measured, ratio = _against_the_best(curves, learned, statistic, from_step)
    mine = curves.statistic(learned, statistic)[from_step:]
    others = [curves.statistic(name, statistic)[from_step:] for name in curves.losses if name != learned]
    below = all(bool((mine < other).all()) for other in others)
    if from_step < curves.steps:
        measured += f"; below every baseline at every step from {from_step} on: {below}"
    return Claim(source, text, measured, _conditions(curves), below and ratio[2] < 1, **_numbers(ratio, curves))


def falls_behind(curves: Curves, source: str, text: str, *, learned: str = "LSTM") -> Claim:
    """The learned optimizer fails here: another one is clearly below it at the last step.

    Holds if the 95% confidence interval of its paired ratio to the best of the others lies above 1.

    Args:
        curves: of the learned optimizer and of tuned baselines.
        source: section or figure of the paper.
        text: the claim, in our words.
        learned: name of the learned optimizer in the curves.

    Raises:
        ValueError: if there is nothing to compare with.
    """
    measured, ratio = _against_the_best(curves, learned, "mean", curves.steps)
    return Claim(source, text, measured, _conditions(curves), ratio[1] > 1, **_numbers(ratio, curves))


def wins_sweep(
    table: pd.DataFrame,
    source: str,
    text: str,
    *,
    learned: str = "LSTM",
    ahead: int | None = None,
    clearly: int | None = None,
) -> Claim:
    """The learned optimizer beats every baseline of a recorded sweep, in all settings and numbers of steps or in most.

    Holds if its mean is below that of the best baseline in `ahead` of them or more, and the 95% confidence interval of
    the paired ratio of the two lies below 1 in `clearly` of them or more.

    Args:
        table: a recorded sweep, from `read_result`; only the rows that the claim is about, under one protocol.
        source: section or figure of the paper.
        text: the claim, in our words.
        learned: name of the learned optimizer in the table, the first of the sweep, since ratios are its own.
        ahead: None for all.
        clearly: None for all.

    Raises:
        ValueError: if there is nothing to compare with, or the table has several protocols (see `under`).
    """
    setting = [name for name in under(table).columns if name not in _MEASURES]
    baselines = table[table["lr"].notna()]
    if baselines.empty:
        raise ValueError("claim: needs baselines, got none.")
    best = baselines.sort_values("ratio").groupby(setting, sort=False).tail(1)  # the best of them has the highest
    below, won, lost = (
        int(which.sum()) for which in (best["ratio"] < 1, best["ratio_high"] < 1, best["ratio_low"] > 1)
    )
    worst = best.iloc[int(best["ratio"].argmax())]
    where = [f"{name} {worst[name]}" for name in setting if best[name].nunique() > 1]
    measured = (
        f"{learned} is below the best baseline in {below} of {len(best)} settings, clearly in {won}, clearly not in "
        f"{lost}; ratio between {best['ratio'].min():.3g} and {worst['ratio']:.3g} (95% CI {worst['ratio_low']:.3g} to "
        f"{worst['ratio_high']:.3g}; {', '.join([worst['optimizer'], *where])})"
    )
    numbers = _swept_numbers(best.iloc[int(best["ratio_high"].argmax())], table)
    holds = below >= (len(best) if ahead is None else ahead) and won >= (len(best) if clearly is None else clearly)
    return Claim(source, text, measured, _swept_over(table), holds, **numbers)


def ratio_to(
    table: pd.DataFrame, other: str, source: str, text: str, *, above: float = 0.0, below: float = math.inf
) -> Claim:
    """How the first learned optimizer of a recorded sweep does against another one, learned or not.

    Holds if in every setting the 95% confidence interval of its paired ratio to the other one lies within the bounds.

    Args:
        table: as in `wins_sweep`.
        other: name of the other optimizer in the table.
        source: section or figure of the paper.
        text: the claim, in our words.
        above: lower bound.
        below: upper bound.

    Raises:
        UnknownNameError: if the other one is not in the table.
        ValueError: if the table has several protocols (see `under`).
    """
    rows = under(table)[table["optimizer"] == other]
    if rows.empty:
        raise UnknownNameError("optimizer in this sweep", other, table["optimizer"].unique())
    within = int(((rows["ratio_low"] > above) & (rows["ratio_high"] < below)).sum())
    margin = np.minimum(rows["ratio_low"] / above if above else math.inf, below / rows["ratio_high"])  # of the bounds
    bounds = " and ".join([f"above {above:g}"] * (above > 0) + [f"below {below:g}"] * (below < math.inf))
    measured = (
        f"mean loss over that of {other}: between {rows['ratio'].min():.3g} and {rows['ratio'].max():.3g}; "
        f"clearly {bounds} in {within} of {len(rows)} settings"
    )
    numbers = _swept_numbers(rows.iloc[int(margin.argmin())], table)
    return Claim(source, text, measured, _swept_over(table), within == len(rows), **numbers)


def _swept_over(table: pd.DataFrame) -> str:
    varied = [name for name in table.columns if name not in _MEASURES and table[name].nunique() > 1]
    rates = _RATES[table["protocol"].iloc[0]] if "protocol" in table else ""
    return f"the recorded sweep over {' and '.join(varied) or 'one setting'}, baselines tuned for each setting{rates}"


def _numbers(ratio: tuple[float, float, float], curves: Curves) -> dict[str, Any]:
    """A claim's fields from a paired ratio with its interval."""
    return {**_as_fields(ratio), "problems": curves.num_tasks, "seed": curves.seed}


def _swept_numbers(row: pd.Series[Any], table: pd.DataFrame) -> dict[str, Any]:
    """A claim's fields from one row of a sweep."""
    ratio = (float(row["ratio"]), float(row["ratio_low"]), float(row["ratio_high"]))
    return {**_as_fields(ratio), "problems": table.attrs.get("num_tasks"), "seed": table.attrs.get("seed")}


def _as_fields(ratio: tuple[float, float, float]) -> dict[str, float | None]:
    """Three numbers, those that JSON has no words for left out."""
    finite = (value if math.isfinite(value) else None for value in ratio)
    return dict(zip(("effect", "low", "high"), finite, strict=True))


def _against_the_best(
    curves: Curves, learned: str, statistic: Statistic, from_step: int
) -> tuple[str, tuple[float, float, float]]:
    """How it does at the last step against the best of the others: in words, and as a paired ratio, low, high."""
    others = [name for name in curves.losses if name != learned]
    if not others or curves.steps < from_step:
        raise ValueError(
            f"claim: needs baselines and at least {from_step} steps, got {others} and {curves.steps} steps."
        )
    finals = {name: curves.statistic(name, statistic)[-1].item() for name in curves.losses}
    best = min(others, key=lambda name: finals[name])
    value, low, high = (part[-1].item() for part in curves.interval(learned, statistic, over=best))
    measured = (
        f"{statistic} f after {curves.steps} steps: {learned} {finals[learned]:.3g}, best baseline {best} "
        f"{finals[best]:.3g}, ratio {value:.3g} (95% CI {low:.3g} to {high:.3g})"
    )
    return measured, (value, low, high)


def _conditions(curves: Curves) -> str:
    return f"{curves.num_tasks} fresh optimizees of {_named(curves.problem)}, seed {curves.seed}"


def _named(problem: Mapping[str, Any]) -> str:
    """A problem's configuration in one word, such as ``quadratics(dim=10)``."""
    fields = ", ".join(f"{name}={value}" for name, value in problem.items() if name != "name")
    return f"{problem.get('name')}({fields})"
