"""Claims and their verdicts: a paired ratio with its 95% confidence interval, against a margin that was set before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from l2l_kit.errors import check_names
from l2l_kit.evaluation.curves import Curves, paired_ratio
from l2l_kit.evaluation.results import AVERAGED, EACH_STEP, ONE_RATE, RATIO, provenance, ratios_of, under
from l2l_kit.extras import pd, stats

if TYPE_CHECKING:
    import numpy.typing as npt

Group = Literal["paper", "recipe", "stricter", "ours", "stand-in"]
GROUPS: dict[Group, tuple[str, str]] = {
    "paper": (
        "The paper's claims",
        "What the paper says, in words close to its own, under its protocol of comparison. It is asked of the best "
        "optimizer of the kit, whose training the conditions describe.",
    ),
    "recipe": (
        "The paper's claims, asked of the paper's own recipe",
        "The same claims for optimizers that were trained as the paper says, but not for as long as the authors' "
        "code trains them. The conditions say for how long.",
    ),
    "stricter": ("Stricter versions", "More than the paper says: other scales, every number of steps, harder tuning."),
    "ours": ("Our own questions", "Asked in the lessons; the paper does not answer them."),
    "stand-in": ("Claims on stand-in data", "Measured on the small data that come with the kit: no replication."),
}
"""Whose claims they are: title and meaning, in the order of the report."""
Verdict = Literal["holds", "refuted", "undecided"]
VERDICTS: dict[Verdict, str] = {
    "holds": "the whole 95% interval lies on the claimed side of a margin that was set beforehand",
    "refuted": "the whole interval lies on the other side",
    "undecided": "the interval contains the margin, so the data support neither",
}
FEWEST_TO_TUNE_ON = 8  # how many tasks the protocol asks baselines to be tuned on, at least

_MEASURES = ("protocol", "optimizer", "lr", "mean", "low", "high", *RATIO)
_RATES = {
    **dict.fromkeys((ONE_RATE, AVERAGED), "tuned for the last number of steps"),
    EACH_STEP: "tuned for each number of steps",
    "": "tuned",
}


@dataclass(frozen=True)
class Claim:
    """A claim and its verdict; displays itself in a notebook, where the report collects it.

    Attributes:
        group: whose claim it is.
        source: section or figure of the paper.
        text: the claim.
        verdict: what the measurement says of it.
        measured: what was measured, with its uncertainty.
        criterion: when the claim holds, why the margin is there, and what difference the measurement could have shown.
        conditions: what it was measured on: tasks, data, training and tuning.
        effect, low, high: the ratio with its 95% interval; None where infinite.
        margin: what the ratio has to be below or above.
        tasks, seed: number of tasks, or of other units, in each comparison, and their seed.
        data: which data the tasks are made of; empty if of none.
        recorded: which table was judged, and what recorded it; empty for what was computed on the spot.
    """

    group: Group
    source: str
    text: str
    verdict: Verdict
    measured: str
    criterion: str = ""
    conditions: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    tasks: int | None = None
    seed: int | None = None
    data: str = ""
    recorded: str = ""

    def __str__(self) -> str:
        lines = f"{GROUPS[self.group][0]}, {self.source}: {self.text}", self.measured, self.criterion, self.conditions
        return "\n  ".join([*filter(None, lines), f"verdict: {self.verdict}"])

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        # The first line has no verdict: JupyterLab shows it of an output that is hidden, as those of predictions are.
        verdict = f"*{self.verdict.capitalize()}*: {self.measured}"
        lines = f"**{self.source}**: {self.text}.", verdict, self.criterion, self.conditions, self.recorded
        markdown = "\n>\n".join(f"> {line}" for line in filter(None, lines))
        return {"text/plain": str(self), "text/markdown": markdown}, {"l2l_claim": asdict(self)}


def tally(claims: Sequence[Claim]) -> str:
    """How many claims have each verdict, in words."""
    holding, refuted, undecided = ([each.verdict for each in claims].count(verdict) for verdict in VERDICTS)
    return f"{holding} hold, {refuted} refuted, {undecided} undecided"


def summary(claims: Sequence[Claim]) -> str:
    """How many claims of each group have each verdict, a line each, and what each of them means."""
    groups = {title: [each for each in claims if each.group == group] for group, (title, _) in GROUPS.items()}
    lines = [f"{title}: {tally(members)}" for title, members in groups.items() if members]
    meanings = [f"{verdict}: {meaning}" for verdict, meaning in VERDICTS.items()] if claims else ["no claims"]
    return "\n".join([*lines, *meanings])


def ratio_table(
    curves: Curves,
    learned: str = "LSTM",
    *,
    against: Sequence[str] | None = None,
    steps: Iterable[int] | None = None,
    typical: bool = False,
    trained: str = "",
    tuning_tasks: int | None = None,
    unit: str = "task",
) -> pd.DataFrame:
    """One optimizer's loss over those of others, as recorded sweeps have it and `claim` judges it.

    Args:
        curves: of all of them; any positive quantity will do instead of losses.
        learned: the one whose loss is divided.
        against: the others; None for all.
        steps: the numbers of steps; None for the last.
        typical: the geometric mean of the ratios instead of the ratio of the means (see `paired_ratio`).
        trained: how the learned one was trained (see `training_of`).
        tuning_tasks: how many tasks the others were tuned on; None where nothing was tuned.
        unit: what a row of the curves is of, such as "seed" where each is the mean over one seed's tasks.

    Raises:
        UnknownNameError: if one of the optimizers is not in the curves.
        ValueError: if there is nothing to compare with, or the curves have no such step.
    """
    at = [curves.steps] if steps is None else list(steps)
    for step in at:
        curves.check_step(step)
    others = [name for name in curves.losses if name != learned] if against is None else list(against)
    if not others:
        raise ValueError(f"ratio_table: needs something to compare with, got only {learned}.")
    frames = []
    for name in others:
        interval = paired_ratio(curves[learned][:, at], curves[name][:, at], typical=typical)
        columns = dict(zip(RATIO, (part.numpy() for part in interval), strict=True))
        frames.append(pd.DataFrame({**({"step": at} if curves.steps else {}), "optimizer": name, **columns}))
    table = pd.concat(frames, ignore_index=True)
    about: dict[Any, Any] = {"problem": dict(curves.problem), "num_tasks": curves.num_tasks, "seed": curves.seed}
    about |= {"learned": [learned], "trained": {learned: trained}, "tuning_tasks": tuning_tasks, "unit": unit}
    table.attrs = about | provenance(curves.problem)
    return table


def claim(
    table: pd.DataFrame,
    group: Group,
    source: str,
    text: str,
    *,
    because: str,
    margin: float = 1.0,
    side: Literal["below", "above"] = "below",
    learned: str | None = None,
    against: Sequence[str] | None = None,
    every: bool = True,
    average: bool = False,
) -> Claim:
    """Judge a claim that ratios lie below, or above, a margin.

    Args:
        table: from `ratio_table`, or a recorded sweep; only the rows that the claim is about.
        group: whose claim it is; what was measured on stand-in data belongs to "stand-in" instead.
        source, text: of the claim.
        because: why the margin is there.
        margin, side: of what, and where, the claim says that the ratios are.
        learned: whose ratios they are, where the table has those of several (see `ratios_of`); None for the first.
        against: optimizers to compare with; None for the baselines.
        every: whether all ratios have to be there, or one is enough.
        average: whether each optimizer's ratios are averaged first over settings and steps (as geometric means, each
            with an interval as wide as if all erred in the same direction; where a sweep's table has ratios `AVERAGED`
            over the steps, their intervals are exact).

    Raises:
        UnknownNameError: if there is no such group or side, or if `learned` or one of `against` is not in the table.
        ValueError: if there is nothing to compare with, or the table has several protocols (see `under`).
    """
    check_names("group of claims", [group], GROUPS)
    check_names("side", [side], ["below", "above"])
    table = under(ratios_of(table, learned))
    about, rows = table.attrs, table
    check_names("optimizer in this table", against or (), rows["optimizer"].unique())
    if against is not None or "lr" in rows:
        rows = rows[rows["lr"].notna() if against is None else rows["optimizer"].isin(against)]
    if rows.empty:
        raise ValueError("claim: needs baselines, got none.")
    with np.errstate(divide="ignore"):
        logs = pd.DataFrame(np.log(rows[RATIO].to_numpy(float)), rows["optimizer"])
    varied = [str(name) for name in rows if name not in _MEASURES and len(set(rows[name])) > 1]
    over = ["averaged over the steps"] if "protocol" in rows and rows["protocol"].iloc[0] == AVERAGED else []
    labels = [", ".join([row["optimizer"], *(f"{k} {row[k]}" for k in varied), *over]) for _, row in rows.iterrows()]
    if average and varied:
        logs = logs.groupby(level=0, sort=False).mean()
        labels = [f"{name}, averaged over {' and '.join(varied)}" for name in logs.index]

    highest = (side == "below") == every
    tasks, unit = about.get("num_tasks"), about.get("unit", "task")
    name = next(iter(about.get("learned", ["learned"])))
    interval, decisive, factor = _extreme(logs.to_numpy(), highest, tasks)
    value, low, high = interval.tolist()
    seen = margin / factor if side == "below" else margin * factor
    holds, refuted = (high < margin, low > margin) if side == "below" else (low > margin, high < margin)
    among = f", the {'highest' if highest else 'lowest'} of {len(logs)} ratios" if len(logs) > 1 else ""
    which = ("every ratio" if every else "some ratio") if among else "the ratio"
    power = f". If the true ratio were {seen:.3g}, four of five measurements with {tasks} {unit}s would show it"
    effect, lower, upper = (end if math.isfinite(end) else None for end in (value, low, high))
    return Claim(
        "stand-in" if about.get("stand_in") else group,
        source,
        text,
        "holds" if holds else "refuted" if refuted else "undecided",
        f"{name} / {labels[decisive]}: {value:#.3g} (95% CI {_end(low, margin)} to {_end(high, margin)}){among}",
        f"Holds if {which} is {side} {margin:.4g} ({because})" + (power if 0 < seen < math.inf else ""),
        _conditions(rows, name),
        effect,
        lower,
        upper,
        margin,
        tasks,
        about.get("seed"),
        about.get("data", ""),
        about.get("recorded", ""),
    )


def _extreme(logs: npt.NDArray[Any], highest: bool, tasks: int | None) -> tuple[npt.NDArray[Any], int, float]:
    """The highest or lowest of several ratios.

    The highest lies below a margin if all do. So the upper end of its interval is the highest of their upper ends, each
    of which errs in 2.5% of all cases (an intersection-union test, which needs no correction). One of many lower ends
    is easily too high by chance, so its lower end is the highest of theirs at 2.5% over their number (Bonferroni).
    The lowest ratio is the mirror image.

    Args:
        logs: logarithms of ratios and their 95% intervals, shape ``(ratios, 3)``.
        highest: which of the two.
        tasks: number of tasks behind each; None where unknown.

    Returns:
        The ratio with its 95% interval; which one it is; and the factor by which a true ratio has to differ from the
        margin for a power of 80%.
    """
    value, low, high = logs.T if highest else -logs.T[[0, 2, 1]]
    student = stats.t(tasks - 1 if tasks else math.inf)
    decisive = int(value.argmax())
    with np.errstate(invalid="ignore"):  # of infinite ratios
        lower = value - student.isf(0.025 / len(value)) / student.isf(0.025) * (value - low)
        error = (high - low)[decisive] / 2 / student.isf(0.025)
    interval = np.array([value.max(), np.where(np.isnan(lower), low, lower).max(), high.max()])
    interval = interval if highest else -interval[[0, 2, 1]]
    return np.exp(interval), decisive, float(np.exp(error * (student.isf(0.025) + student.isf(0.2))))


def _end(value: float, margin: float) -> str:
    """An end of an interval to three digits, or to as many as tell on which side of the margin it lies."""
    digits = next((d for d in range(3, 8) if np.sign(float(f"{value:.{d}g}") - margin) == np.sign(value - margin)), 8)
    return f"{value:#.{digits}g}"


def _conditions(table: pd.DataFrame, learned: str) -> str:
    """What was measured on, in words: tasks, data, training and tuning."""
    about = table.attrs
    config, unit = about.get("problem", {}), about.get("unit", "task")
    same = {name: table[name].iloc[0] for name in table if name not in _MEASURES and len(set(table[name])) == 1}
    fields = ", ".join(f"{name}={value}" for name, value in {**config, **same}.items() if name != "name")
    compared, trained = dict.fromkeys([learned, *table["optimizer"]]), about.get("trained", {})
    tuned = about.get("tuning_tasks")
    tuned = tuned if "lr" not in table or table["lr"].notna().any() else None  # no baseline among the others
    protocol = table["protocol"].iloc[0] if "protocol" in table else ""
    few = f" (fewer than the {FEWEST_TO_TUNE_ON} of the protocol)" if tuned and tuned < FEWEST_TO_TUNE_ON else ""
    parts = [
        f"{about.get('num_tasks')} {unit}s of {config.get('name')}({fields})"
        + ("" if unit == "seed" else f", seed {about.get('seed')}"),
        f"data: {about['data']}" if about.get("data") else "",
        *(f"training of {name}: {trained[name]}" for name in compared if trained.get(name)),
        f"baselines {_RATES[protocol]} on {tuned} other tasks{few}" if tuned else "",
    ]
    return "; ".join(filter(None, parts))
