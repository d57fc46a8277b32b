"""The paper's claims as statistics: what it says, what was measured here, and whether it holds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from l2l_kit.errors import UnknownNameError
from l2l_kit.evaluation.curves import Curves, Statistic
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
        effect, low, high: the measurement as one number with its 95% confidence interval, if it is one; for a sweep,
            that of the setting which decides.
        problems, seed: number of optimizees behind it, in each setting of a sweep, and their seed.
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


class Ratio(NamedTuple):
    """An optimizer's mean or median loss over another one's, paired, with its 95% confidence interval."""

    value: float
    low: float
    high: float

    def lies(self, above: float = -math.inf, below: float = math.inf) -> bool:
        """Whether all of the interval is within the bounds. Every verdict on a ratio is given here."""
        return above < self.low and self.high < below


def beats_baselines(
    curves: Curves, source: str, text: str, *, learned: str = "LSTM", statistic: Statistic = "mean", from_step: int = 20
) -> Claim:
    """The learned optimizer is below every other one at every step from `from_step` on, and clearly so at the end.

    Holds if the curve of the chosen statistic lies below all others from that step on, and the 95% confidence interval
    of its paired ratio to the best of the others at the last step lies below 1.

    Args:
        curves: of the learned optimizer and of tuned baselines.
        source, text: of the claim.
        learned: name of the learned optimizer in the curves.
        statistic: "mean" or "median" over the optimizees.
        from_step: first step that counts.

    Raises:
        ValueError: if there is nothing to compare with, or the curves end before that step.
    """
    if curves.steps < from_step:
        raise ValueError(f"claim: needs at least {from_step} steps, got {curves.steps}.")
    measured, ratio = _against_the_best(curves, learned, statistic)
    below = all(
        bool((curves.statistic(learned, statistic) < curves.statistic(other, statistic))[from_step:].all())
        for other in curves.losses
        if other != learned
    )
    if from_step < curves.steps:
        measured += f"; below every baseline at every step from {from_step} on: {below}"
    return Claim(source, text, measured, holds=below and ratio.lies(below=1), **_numbers(ratio), **_on(curves))


def falls_behind(curves: Curves, source: str, text: str, *, learned: str = "LSTM") -> Claim:
    """The learned optimizer fails here: another one is clearly below it at the last step.

    Holds if the 95% confidence interval of its paired ratio to the best of the others lies above 1. Arguments are those
    of `beats_baselines`.

    Raises:
        ValueError: if there is nothing to compare with.
    """
    measured, ratio = _against_the_best(curves, learned, "mean")
    return Claim(source, text, measured, holds=ratio.lies(above=1), **_numbers(ratio), **_on(curves))


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
        source, text: of the claim.
        learned: name of the learned optimizer in the table, the first of the sweep, since ratios are its own.
        ahead, clearly: None for all.

    Raises:
        ValueError: if there is nothing to compare with, or the table has several protocols (see `under`).
    """
    settings = [name for name in under(table).columns if name not in _MEASURES]
    baselines = table[table["lr"].notna()]
    if baselines.empty:
        raise ValueError("claim: needs baselines, got none.")
    best = baselines.sort_values("ratio").groupby(settings, sort=False).tail(1)  # the best of them has the highest
    ratios, worst = _ratios(best), best.iloc[int(best["ratio"].argmax())]
    below = sum(ratio.value < 1 for ratio in ratios)
    won, lost = sum(ratio.lies(below=1) for ratio in ratios), sum(ratio.lies(above=1) for ratio in ratios)
    where = [f"{name} {worst[name]}" for name in settings if best[name].nunique() > 1]
    measured = (
        f"{learned} is below the best baseline in {below} of {len(best)} settings, clearly in {won}, clearly not in "
        f"{lost}; ratio between {best['ratio'].min():.3g} and {worst['ratio']:.3g} (95% CI {worst['ratio_low']:.3g} to "
        f"{worst['ratio_high']:.3g}; {', '.join([worst['optimizer'], *where])})"
    )
    holds = below >= (len(best) if ahead is None else ahead) and won >= (len(best) if clearly is None else clearly)
    decisive = max(ratios, key=lambda ratio: ratio.high)
    return Claim(source, text, measured, holds=holds, **_numbers(decisive), **_over(table))


def ratio_to(
    table: pd.DataFrame, other: str, source: str, text: str, *, above: float = 0.0, below: float = math.inf
) -> Claim:
    """How the first learned optimizer of a recorded sweep does against another one, learned or not.

    Holds if in every setting the 95% confidence interval of its paired ratio to the other one lies within the bounds
    `above` and `below`. The rest as in `wins_sweep`.

    Raises:
        UnknownNameError: if the other one is not in the table.
        ValueError: if the table has several protocols (see `under`).
    """
    rows = under(table)[table["optimizer"] == other]
    if rows.empty:
        raise UnknownNameError("optimizer in this sweep", other, table["optimizer"].unique())
    ratios = _ratios(rows)
    within = sum(ratio.lies(above, below) for ratio in ratios)
    bounds = " and ".join([f"above {above:g}"] * (above > 0) + [f"below {below:g}"] * (below < math.inf))
    measured = (
        f"mean loss over that of {other}: between {rows['ratio'].min():.3g} and {rows['ratio'].max():.3g}; "
        f"clearly {bounds} in {within} of {len(rows)} settings"
    )
    decisive = min(ratios, key=lambda ratio: min(ratio.low / above if above else math.inf, below / ratio.high))
    return Claim(source, text, measured, holds=within == len(rows), **_numbers(decisive), **_over(table))


def _against_the_best(curves: Curves, learned: str, statistic: Statistic) -> tuple[str, Ratio]:
    """How it does at the last step against the best of the others, in words and as a ratio."""
    finals = {name: curves.statistic(name, statistic)[-1].item() for name in curves.losses}
    best = min((name for name in finals if name != learned), key=lambda name: finals[name], default=None)
    if best is None:
        raise ValueError(f"claim: needs baselines, got only {learned}.")
    ratio = Ratio(*(part[-1].item() for part in curves.interval(learned, statistic, over=best)))
    measured = (
        f"{statistic} f after {curves.steps} steps: {learned} {finals[learned]:.3g}, best baseline {best} "
        f"{finals[best]:.3g}, ratio {ratio.value:.3g} (95% CI {ratio.low:.3g} to {ratio.high:.3g})"
    )
    return measured, ratio


def _ratios(rows: pd.DataFrame) -> list[Ratio]:
    return [Ratio(*row) for row in rows[["ratio", "ratio_low", "ratio_high"]].to_numpy().tolist()]


def _numbers(ratio: Ratio) -> dict[str, Any]:
    """A claim's effect and interval, without what JSON has no word for."""
    finite = (value if math.isfinite(value) else None for value in ratio)
    return dict(zip(("effect", "low", "high"), finite, strict=True))


def _on(curves: Curves) -> dict[str, Any]:
    """A claim's fields that say what the curves were measured on."""
    fields = ", ".join(f"{name}={value}" for name, value in curves.problem.items() if name != "name")
    problem = f"{curves.problem.get('name')}({fields})"
    conditions = f"{curves.num_tasks} fresh optimizees of {problem}, seed {curves.seed}"
    return {"conditions": conditions, "problems": curves.num_tasks, "seed": curves.seed}


def _over(table: pd.DataFrame) -> dict[str, Any]:
    """A claim's fields that say what a sweep was measured on."""
    varied = [name for name in table.columns if name not in _MEASURES and table[name].nunique() > 1]
    rates = _RATES[table["protocol"].iloc[0]] if "protocol" in table else ""
    conditions = f"the recorded sweep over {' and '.join(varied) or 'one setting'}, baselines tuned for each setting"
    return {"conditions": conditions + rates, "problems": table.attrs.get("num_tasks"), "seed": table.attrs.get("seed")}
