"""Loss curves of several optimizers on the same optimizees, and their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from l2l_kit.errors import check_names, look_up
from l2l_kit.extras import pd, stats
from l2l_kit.randomness import generator

Statistic = Literal["mean", "median"]
QUANTILES = (0.1, 0.25, 0.75, 0.9)
RESAMPLES = 1000


class Interval(NamedTuple):
    """An estimate with its confidence interval, each with one number for every step."""

    value: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Curves:
    """Losses of several optimizers on the same optimizees.

    Attributes:
        losses: by optimizer, f(θ(0)) … f(θ(steps)) of every optimizee, shape ``(num_tasks, steps + 1)``, on the CPU.
            A run that diverged counts as infinite from there on.
        problem: configuration of the problem.
        seed: of the optimizees.
    """

    losses: dict[str, Tensor]
    problem: Mapping[str, object]
    seed: int

    @property
    def steps(self) -> int:
        """Number of updates that each run took."""
        return next(iter(self.losses.values())).shape[1] - 1

    @property
    def num_tasks(self) -> int:
        """Number of optimizees."""
        return len(next(iter(self.losses.values())))

    def __repr__(self) -> str:
        return f"<Curves of {', '.join(self.losses)}: {self.steps} steps, {self.num_tasks} tasks, seed {self.seed}>"

    def __getitem__(self, name: str) -> Tensor:
        """Losses of one optimizer, ``(num_tasks, steps + 1)``."""
        return look_up("optimizer in these curves", name, self.losses)

    def statistic(self, name: str, statistic: Statistic = "mean") -> Tensor:
        """Mean or median over the optimizees at each step, shape ``(steps + 1,)``."""
        check_names("statistic", [statistic], get_args(Statistic))
        return self[name].mean(dim=0) if statistic == "mean" else self.quantiles(name, (0.5,))[0]

    def quantiles(self, name: str, at: Sequence[float] = QUANTILES) -> Tensor:
        """Quantiles over the optimizees at each step, shape ``(len(at), steps + 1)``; they are numbers from 0 to 1."""
        try:
            wanted = [float(each) for each in at]
        except (TypeError, ValueError):
            wanted = []
        if not wanted or not all(0 <= each <= 1 for each in wanted):
            raise ValueError(f"quantiles: expected numbers from 0 to 1, such as (0.25, 0.75), got {at!r}.")
        return _quantiles(self[name], wanted)

    def interval(
        self,
        name: str,
        statistic: Statistic = "mean",
        *,
        over: str | None = None,
    ) -> Interval:
        """A statistic at each step with its 95% interval: a ratio of means as `paired_ratio`, else by bootstrap.

        Args:
            over: divide by the same statistic of this optimizer, on the same optimizees (a paired ratio).
        """
        if over is not None and statistic == "mean":
            return paired_ratio(self[name], self[over])
        draws = torch.randint(self.num_tasks, (RESAMPLES, self.num_tasks), generator=generator(self.seed, "bootstrap"))
        value, samples = self.statistic(name, statistic), _resampled(self[name], statistic, draws)
        if over is None:
            return Interval(value, *_quantiles(samples, (0.025, 0.975)))
        other, others = self.statistic(over, statistic), _resampled(self[over], statistic, draws)
        low, high = _quantiles(_ratio(samples, others), (0.025, 0.975))
        return Interval(_ratio(value, other), low, high.masked_fill(other.isinf(), torch.inf))

    def to_frame(self) -> pd.DataFrame:
        """A tidy table, one row per optimizer and step: mean, median and quantiles over the optimizees."""
        frames = []
        for name in self.losses:
            measures = {"mean": self.statistic(name), "median": self.statistic(name, "median")}
            measures |= {f"q{round(100 * at)}": row for at, row in zip(QUANTILES, self.quantiles(name), strict=True)}
            columns = {measure: row.numpy() for measure, row in measures.items()}
            frames.append(pd.DataFrame({"optimizer": name, "step": range(self.steps + 1), **columns}))
        return pd.concat(frames, ignore_index=True)

    def at_step(self, step: int) -> pd.DataFrame:
        """The rows of `to_frame` at one step, indexed by optimizer.

        Raises:
            ValueError: if the runs did not go that far.
        """
        self.check_step(step)
        frame = self.to_frame()
        return frame[frame["step"] == step].drop(columns="step").set_index("optimizer")

    def check_step(self, step: int) -> None:
        """Refuse by a ValueError a number of steps that the runs do not have."""
        if step not in range(self.steps + 1):
            raise ValueError(f"step {step} is outside these curves, which go from 0 to {self.steps}.")


def paired_ratio(losses: Tensor, others: Tensor, *, typical: bool = False, average: bool = False) -> Interval:
    """The ratio of two optimizers' losses on the same optimizees, with Student's 95% interval of its logarithm.

    The ratio of the means, which is what the paper plots, has its standard error from the jackknife; that is sound
    where losses differ by a factor of a few from one optimizee to another. The typical ratio, the geometric mean of the
    optimizees' own ratios, is sound however skewed the losses are.

    Args:
        losses, others: of the two optimizers, shape ``(num_tasks, steps)``.
        typical: the geometric mean of the ratios instead of the ratio of the means.
        average: the geometric mean of the steps' ratios. Its interval knows that they are of the same runs.

    Returns:
        Each of shape ``(steps,)``, or ``(1,)`` for an average. If a run of the first optimizer diverged, all three are
        infinite. If one of the other's did, that never helps the first: a typical ratio counts this optimizee as a
        draw, and for a ratio of means the interval is 0 to ∞, as it is for a single optimizee.

    Raises:
        ValueError: for a mean below zero, or a loss in a typical ratio: a ratio of them means nothing.
    """
    if any((each if typical else each.double().mean(dim=0)).lt(0).any() for each in (losses, others)):
        raise ValueError("ratios need losses that are not negative. Add a constant to the loss.")
    number, diverged = len(losses), losses.isinf().any(dim=0)
    ours, theirs = losses.double(), others.double()
    if typical:
        values = (ours.log() - theirs.log()).masked_fill(others.isinf() | (losses == others), 0.0)
        value = values.mean(dim=0)
    else:
        value = _ratio(ours.mean(dim=0), theirs.mean(dim=0)).log()
        left_out = ((ours.sum(dim=0) - ours) / (theirs.sum(dim=0) - theirs)).log()
        left_out = left_out.masked_fill((losses == others).all(dim=0), 0.0)  # also where all are zero
        values = number * value - (number - 1) * left_out  # the jackknife's pseudo-values
    if average:
        value, values, diverged = value.mean(dim=0, keepdim=True), values.mean(dim=1, keepdim=True), diverged.any()
    quantile = float(stats.t.ppf(0.975, number - 1))
    reach = (quantile * values.std(dim=0, correction=min(1, number - 1)) / number**0.5).nan_to_num(nan=torch.inf)
    ends = (value - reach).exp().nan_to_num(0.0, torch.inf), (value + reach).exp().nan_to_num(torch.inf, torch.inf)
    return Interval(*(part.masked_fill(diverged, torch.inf).to(losses.dtype) for part in (value.exp(), *ends)))


def _ratio(ours: Tensor, theirs: Tensor) -> Tensor:
    """Theirs never helps by being infinite where ours is, too, and 0 / 0 is a draw."""
    return (ours / theirs).masked_fill(ours == theirs, 1.0).masked_fill(ours.isinf(), torch.inf)


def _quantiles(values: Tensor, at: Sequence[float]) -> Tensor:
    """Quantiles over the first axis. Values may be infinite: torch.quantile would interpolate ∞ - ∞ to NaN."""
    ordered = values.sort(dim=0).values
    position = torch.tensor(at, dtype=torch.float64) * (len(values) - 1)
    below, above = ordered[position.floor().long()], ordered[position.ceil().long()]
    weight = position.frac().to(values.dtype)[:, None]
    return torch.where(below == above, below, below + weight * (above - below))


def _resampled(losses: Tensor, statistic: Statistic, draws: Tensor) -> Tensor:
    """The statistic of each resample, ``(resamples, steps + 1)``; draws are task indices ``(resamples, num_tasks)``."""
    if statistic == "mean":
        weights = torch.zeros(draws.shape, dtype=losses.dtype)
        weights.scatter_add_(1, draws, torch.ones_like(weights))
        diverged = losses.isinf()
        means = weights @ losses.masked_fill(diverged, 0) / len(losses)
        return means.masked_fill(weights @ diverged.to(losses.dtype) > 0, torch.inf)
    times = torch.zeros(draws.shape, dtype=torch.int32)
    times.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.int32))  # that each task was drawn
    medians = []
    for values, order in zip(*(each.T for each in losses.sort(dim=0)), strict=True):
        up_to = times[:, order].cumsum(dim=1, dtype=torch.int32)
        middle = up_to.new_tensor([(len(losses) + 1) // 2, len(losses) // 2 + 1]).expand(len(draws), 2).contiguous()
        medians.append(values[torch.searchsorted(up_to, middle)].mean(dim=1))
    return torch.stack(medians, dim=1)
