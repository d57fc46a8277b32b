"""Imitation: a learned optimizer is fitted to the updates of a hand-designed one, as a start for meta-training.

Meta-training from random weights has to find everything by itself: that steps go downhill, and how long they should be.
Where an episode is expensive, much of that can be learned from a teacher (Chen et al., 2020). The gradients of some
coordinates of a few networks are recorded, and the LSTMs learn by regression to make of them the teacher's updates.

An LSTM that is not yet the teacher takes a network elsewhere. So from the third network on the LSTMs make the updates
themselves, and the teacher says what it would have done there (DAgger; Ross, Gordon and Bagnell, 2011).

A network that comes to fit all of its data meets gradients that fade away, which few networks do within the horizon. So
every recording is used a second time with gradients that fade, for which the teacher is asked anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2l_kit.errors import Count, MetaTrainingDivergedError, Positive, check_fields
from l2l_kit.optimizers import LSTMTape, Optimizer, UpdateRule
from l2l_kit.optimizers.base import Part
from l2l_kit.problems import Problem, TaskBatch
from l2l_kit.problems.base import draw
from l2l_kit.randomness import generator
from l2l_kit.tensors import Device, Layout, pick_device, ravel
from l2l_kit.training.rollout import trajectory

TAUGHT = 2  # networks that the teacher trains, before the LSTMs do
TOGETHER = 4  # recordings from which one pass takes its coordinates
FADING = 10.0  # by how much, at most, the logarithm of fading gradients has fallen at the end


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """The settings of an imitation; a ValueError for a number that is not positive, or an unroll that is too long."""

    networks: Count = 10  # they are trained and recorded, one after the other; the LSTMs are fitted after each
    horizon: Count = 1000  # steps that are recorded
    sample: Count = 250  # coordinates of each parameter tensor that are recorded
    # How often the LSTMs go over all that is recorded after each network. The passes see, in turn, the first tenth, the
    # first four tenths and all of the horizon, because the first steps differ most from each other. The last third of
    # the passes sees all of it.
    passes: Count = 60
    coordinates: Count = 250  # of a network and LSTM that one pass sees
    # Steps of truncated backpropagation through time. In the last third of the passes it is a quarter of the horizon,
    # without which no cell learns to tell late steps from early ones, as a teacher's schedule asks.
    unroll: Count = 25
    lr: Positive = 0.003  # of Adam in the first pass after each network; it falls linearly to a twentieth of that
    seed: int = 0  # of all draws

    def __post_init__(self) -> None:
        check_fields(self, "imitation")
        if self.unroll * 10 > self.horizon:
            raise ValueError(
                f"imitation: unroll {self.unroll} is longer than a tenth of the horizon {self.horizon}, which some "
                "passes are confined to."
            )


class Recording(NamedTuple):
    """What some coordinates of one network met, and what the teacher makes of it.

    Attributes:
        layout: the network's tensors, thinned out to these coordinates.
        gradients: shape ``(horizon, coordinates)``.
        targets: the teacher's updates, same shape.
        sizes: root mean square of the targets over each tensor, smoothed in time, same shape.
    """

    layout: Layout
    gradients: Tensor
    targets: Tensor
    sizes: Tensor


class Taught(NamedTuple):
    """How far an imitation has come; one after each network.

    Attributes:
        network: its number, from 1.
        losses: of the network's minibatches, shape ``(horizon + 1,)``.
        error: squared distance from the teacher's updates, relative to their mean square, over the last passes.
    """

    network: int
    losses: Tensor
    error: float


def imitate(
    optimizer: UpdateRule,
    teacher: Optimizer[Any],
    problem: Problem,
    settings: Imitation | None = None,
    *,
    device: Device = None,
) -> Iterator[Taught]:
    """Fit a learned optimizer to a teacher, in place; goes on as it is iterated over.

    The teacher must move each coordinate by its own gradients. One that reads the parameters, as for a weight decay,
    is told that all coordinates begin at zero. The optimizer is moved to the device, None for the best there is.

    Raises:
        ValueError: for an optimizer whose coordinates depend on each other, or a teacher without a kind of parameter.
        MetaTrainingDivergedError: if the error becomes NaN or infinite.
    """
    if not optimizer.coordinatewise:
        raise ValueError("imitate: the optimizer's coordinates must be independent of each other.")
    settings, chosen = settings or Imitation(), pick_device(device)
    optimizer.to(chosen)
    adam = torch.optim.Adam(optimizer.parameters(), lr=settings.lr, betas=(0.9, 0.99))
    recordings: list[Recording] = []
    for number in range(settings.networks):
        tasks = draw(problem, 1, generator(settings.seed, "imitation", number), chosen)
        driver = teacher if number < TAUGHT else optimizer
        layout, gradients, losses = _met(driver, tasks, settings, number)
        recordings += [_record(teacher, layout, each) for each in (gradients, _fading(gradients, settings, number))]
        errors = []
        for index in range(settings.passes):
            for group in adam.param_groups:
                group["lr"] = settings.lr * (1 - 0.95 * index / settings.passes)
            draws = generator(settings.seed, "passes", number, index)
            if index < settings.passes * 2 // 3:
                steps, unroll = settings.horizon * (1, 4, 10)[index % 3] // 10, settings.unroll
            else:
                steps, unroll = settings.horizon, settings.horizon // 4
            errors.append(_pass(optimizer, adam, recordings, steps, unroll, settings, draws))
        error = sum(errors[-3:]) / len(errors[-3:])
        if not math.isfinite(error):
            raise MetaTrainingDivergedError(
                f"imitate: the error became {error} on network {number + 1}. Lower the learning rate, or the teacher's."
            )
        yield Taught(number + 1, losses, error)
    optimizer.zero_grad(set_to_none=True)


def _met(driver: Optimizer[Any], tasks: TaskBatch, settings: Imitation, number: int) -> tuple[Layout, Tensor, Tensor]:
    """Which coordinates of a network are recorded, what gradients they meet with `driver`, and the network's losses."""
    whole, draws = Layout.of(tasks.initial_params), generator(settings.seed, "recorded coordinates", number)
    columns, shapes, first = [], [], 0
    for (name, _), size in zip(whole.shapes, whole.sizes, strict=True):
        kept = min(size, settings.sample)
        columns.append(first + torch.randperm(size, generator=draws)[:kept])
        shapes.append((name, (kept,)))
        first += size
    chosen = torch.cat(columns).to(next(iter(tasks.initial_params.values())).device)
    met, losses = [], []
    for point in trajectory(driver, tasks, settings.horizon):
        met.append(point.gradients[0, chosen])
        losses.append(point.losses[0])
    return Layout(tuple(shapes)), torch.stack(met[:-1]), torch.stack(losses)


def _fading(gradients: Tensor, settings: Imitation, number: int) -> Tensor:
    """The same gradients, fading away exponentially, by a factor that is drawn."""
    fallen = FADING * torch.rand((), generator=generator(settings.seed, "fading", number)).item()
    return gradients * torch.linspace(0, -fallen, len(gradients), device=gradients.device).exp()[:, None]


def _record(teacher: Optimizer[Any], layout: Layout, gradients: Tensor) -> Recording:
    """What the teacher makes of gradients, shape ``(horizon, coordinates)``."""
    targets, place = torch.empty_like(gradients), torch.zeros_like(gradients[:1])  # where the teacher would be
    state = teacher.init(layout.unravel(place))
    for target, row in zip(targets, gradients, strict=True):
        updates, state = teacher.update(layout.unravel(row[None]), state, layout.unravel(place))
        target.copy_(ravel(updates)[0])
        place = place + target
    sizes = torch.cat([_smoothed(part) for part in targets.split_with_sizes(layout.sizes, dim=1)], dim=1)
    return Recording(layout, gradients, targets, sizes)


def _smoothed(targets: Tensor) -> Tensor:
    """Root mean square over a tensor's coordinates, averaged over about the last twenty steps."""
    power = targets.square().mean(dim=1)
    for step in range(1, len(power)):
        power[step] = power[step - 1].lerp(power[step], max(1 / (step + 1), 0.05))
    return power.sqrt().clamp_min(1e-9)[:, None].expand_as(targets)


def _pass(
    optimizer: UpdateRule,
    adam: torch.optim.Adam,
    recordings: list[Recording],
    steps: int,
    unroll: int,
    settings: Imitation,
    draws: torch.Generator,
) -> float:
    """Go over the first steps of some recordings, window by window, and fit the LSTMs; returns the mean error."""
    some = [recordings[int(index)] for index in torch.randint(len(recordings), (TOGETHER,), generator=draws)]
    streams = [_Stream(part, some, steps, unroll, settings, draws) for part in optimizer.parts(some[0].layout)]
    errors = []
    for first in range(0, steps - unroll + 1, unroll):
        errors += [stream.fit(slice(first, first + unroll)) for stream in streams]
        adam.step()
    return sum(errors) / len(errors)


class _Stream:
    """The coordinates that one LSTM sees in one pass, and where it is with them."""

    def __init__(
        self,
        part: Part,
        recordings: list[Recording],
        steps: int,
        unroll: int,
        settings: Imitation,
        draws: torch.Generator,
    ) -> None:
        self.lstm = part.network
        gradients, targets, sizes = [], [], []
        for recording in recordings:
            mine = torch.arange(recording.gradients.shape[1], device=recording.gradients.device)[part.columns]
            chosen = mine[torch.randperm(len(mine), generator=draws)[: settings.coordinates].to(mine.device)]
            # Downhill is downhill on either side: the mirror image of a coordinate is as good an example.
            sign = torch.randint(0, 2, (len(chosen),), generator=draws).to(mine.device) * 2.0 - 1.0
            gradients.append(recording.gradients[:steps, chosen] * sign)
            targets.append(recording.targets[:steps, chosen] * sign)
            sizes.append(recording.sizes[:steps, chosen])
        self.gradients, self.targets, self.sizes = (torch.cat(part, dim=1) for part in (gradients, targets, sizes))
        self.tape = LSTMTape(self.lstm, self.gradients.shape[1], unroll)
        self.state = self.lstm.initial_state(self.gradients.shape[1])

    def fit(self, window: slice) -> float:
        """Run through a window and leave the gradient of its error in the LSTM's weights."""
        self.tape.start(self.state)
        updates = torch.stack([self.tape.step(gradients) for gradients in self.gradients[window]])
        self.state = self.tape.state
        error = (updates - self.targets[window]) / self.sizes[window]
        found = self.tape.backward(2 * error.clamp(-5, 5) / self.sizes[window] / error.numel())
        for name, weight in self.lstm.named_parameters():
            weight.grad = found[name].reshape(weight.shape).clone()
        torch.nn.utils.clip_grad_norm_(self.lstm.parameters(), 1.0)
        return error.square().mean().item()
