"""Explorers whose curves take long: they are computed in the background, grow meanwhile, and are kept."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, cast

import ipywidgets
import torch
from typing_extensions import override

from l2l_kit import plots, zoo
from l2l_kit.optimizers import Baseline, Optimizer
from l2l_kit.problems import Problem
from l2l_kit.randomness import generator
from l2l_kit.tensors import pick_device
from l2l_kit.training.rollout import trajectory
from l2l_kit.widgets.base import BaseExplorer, summary
from l2l_kit.widgets.job import Job, Outcome
from l2l_kit.widgets.live_figure import described, error_message, heading, message, options, selection


class RunningExplorer(BaseExplorer):
    """Compares optimizers on networks. What a subclass adds are controls, and the problem that they describe.

    Args:
        seed: of the networks and their minibatches, to begin with.
        networks: how many the losses are averaged over.
        steps: updates per run, to begin with.
        lengths: more numbers of updates to choose from.
        horizon: how many updates the runs had that the learned optimizers were trained on, in words.
        learned: rows of controls below the learned optimizer's checkbox.
        network: rows of controls for the networks.
        controls: those of all of them that are followed.
        tuned_for: what the tuned learning rates are best for, in words.

    Attributes:
        steps: control of the updates per run.
        seed: control of the seed.

    Raises:
        ValueError: for a number of networks or steps below 1.
    """

    def __init__(
        self,
        seed: int,
        networks: int,
        steps: int,
        lengths: Iterable[int],
        horizon: str,
        learned: Sequence[ipywidgets.Widget],
        network: Sequence[ipywidgets.Widget],
        controls: Iterable[ipywidgets.ValueWidget],
        tuned_for: str,
    ) -> None:
        if networks < 1 or steps < 1:
            raise ValueError(f"networks and steps must be at least 1, got networks={networks!r}, steps={steps!r}.")
        self._networks = networks
        self._runs: dict[tuple[str | Baseline, Problem, int], _Run] = {}
        self._wanted: dict[str, _Run] = {}
        self._choosing, self._drawing = threading.Lock(), threading.Lock()
        self._job = Job(self._compute, self._show, self._end)
        self.steps = slider("Steps", lengths, steps, f"Updates per run; the LSTMs were trained on {horizon}")
        self.seed = ipywidgets.BoundedIntText(seed, 0, 2**31, description="Seed", **described("300px"))
        super().__init__(
            learned=learned,
            task=[heading("Networks"), *network, self.steps, self.seed],
            controls=[*controls, self.steps, self.seed],
            tuned_for=tuned_for,
        )
        self.figure.layout.update(height=plots.HEIGHT + 60, margin_t=85)  # room for the second line of the title
        self._update()

    @property
    @abstractmethod
    def _problem(self) -> Problem:
        """Where the networks that the controls describe come from."""

    @property
    @abstractmethod
    def _title(self) -> str:
        """Title of the figure, such as `two_lines` makes."""

    @property
    @abstractmethod
    def _of_interest(self) -> plots.Values:
        """Losses that the axis always shows, so that it does not move while the curves grow."""

    @abstractmethod
    def _settle(self) -> None:
        """Let the other controls follow one that was moved."""

    @property
    def _averaged(self) -> str:
        """What the curves are, for the title."""
        return "Mean loss of " + ("1 network" if self._networks == 1 else f"{self._networks} networks")

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the curves are finished, for at most `timeout` seconds."""
        self._job.join(timeout)

    def close(self) -> None:
        """Stop computing, and take it off the page and out of the kernel."""
        self._job.cancel()
        super().close()

    @override
    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **options: Any) -> dict[str, Any]:
        self.wait()  # the picture is for good
        return super()._repr_mimebundle_(include, exclude, **options)

    @override
    def _redraw(self) -> None:
        """Show at once what is known of the new choice, and compute the rest from now on instead of the old one."""
        with self._choosing:  # a page and a cell may choose at the same time
            self._settle()
            self._job.cancel()
            before, self._wanted = self._wanted, self._wanted_now()
            self._show()
            self._job.join()
            for run in before.values():
                if run not in self._wanted.values():
                    run.rest()
            self._job.start()

    def _wanted_now(self) -> dict[str, _Run]:
        """The runs that the controls ask for: those there are, as far as they are, and new ones."""
        problem, seed = self._problem, self.seed.value
        wanted = {}
        for name, optimizer in self._ticked.items():
            key = (optimizer, problem, seed)
            if key not in self._runs or self._runs[key].error is not None:
                self._runs[key] = _Run(*key, self._networks, self._longest)
            wanted[name] = self._runs[key]
        return wanted

    @property
    def _longest(self) -> int:
        return max(int(steps) for _, steps in self.steps.options)

    def _compute(self) -> Generator[str, None, None]:
        """The work of the job: a step at a time of the run that is furthest behind. Its events are of no interest."""
        while unfinished := [run for run in self._wanted.values() if not run.reaches(self.steps.value)]:
            min(unfinished, key=lambda run: len(run.losses)).advance()
            yield "a step"

    def _show(self, _: str = "") -> None:
        """Draw what there is of the runs that are wanted."""
        with self._drawing:  # the job and a new choice may draw at the same time
            wanted, steps = self._wanted, self.steps.value
            finished = all(run.reaches(steps) for run in wanted.values())
            lines = {name: run.losses[: steps + 1] for name, run in wanted.items() if run.error is None}
            self._draw(lines, steps, self._title, in_range=[self._of_interest])
            errors = [run.error for run in wanted.values() if run.error is not None]
            if not finished:
                text = f"Computing: step {max(0, min(map(len, lines.values())) - 1)} of {steps}."
            elif lines or not errors:
                text = summary({name: line[-1] for name, line in lines.items()}, steps, "mean")
                text += " (On one minibatch each: small differences are chance.)" if len(lines) > 1 else ""
            else:
                text = ""
            self.status.value = "".join(map(error_message, errors)) + message(text)

    def _end(self, outcome: Outcome) -> None:
        if self._job.error is not None:
            self.status.value = error_message(self._job.error)


class _Run:
    """One optimizer on the networks of one seed, as far as it was needed.

    It can go on from where it is as long as it is not put to rest, which frees the state of the optimizer.

    Attributes:
        losses: mean over the networks after 0, 1, ... updates.
        error: what went wrong, or None.
    """

    def __init__(self, optimizer: str | Baseline, problem: Problem, seed: int, networks: int, longest: int) -> None:
        self.losses: list[float] = []
        self.error: Exception | None = None
        self._optimizer, self._problem, self._seed = optimizer, problem, seed
        self._networks, self._longest = networks, longest
        self._steps: Iterator[float] | None = None
        self._at = 0

    def reaches(self, steps: int) -> bool:
        """Whether it needs no more work to show that many updates."""
        return self.error is not None or len(self.losses) > steps

    def advance(self) -> None:
        """Go one update further."""
        try:
            if self._steps is None:
                self._steps, self._at = self._run(), 0
            loss = next(self._steps)
            if self._at == len(self.losses):  # else it was put to rest, and has to come again to where it was
                self.losses.append(loss)
            self._at += 1
        except Exception as error:  # it is shown, and the other runs go on
            self.error = error
            self.rest()

    def rest(self) -> None:
        """Free all but the losses."""
        self._steps = None

    def _run(self) -> Iterator[float]:
        device = pick_device()
        rule = zoo.load(self._optimizer, device) if isinstance(self._optimizer, str) else self._optimizer
        networks = self._problem.sample(self._networks, generator(self._seed, "test"), device)
        for _, losses, _ in trajectory(cast("Optimizer[Any]", rule), networks, self._longest):
            yield losses.mean().nan_to_num(nan=torch.inf).item()


def slider(label: str, values: Iterable[float], value: float, tooltip: str) -> ipywidgets.SelectionSlider:
    """A slider over given values and the one that it begins with."""
    return selection(label, options(values, value), value, tooltip)


def two_lines(title: str, details: str) -> str:
    """A title with a smaller line below it."""
    return f'{title}<br><span style="font-size: 12px">{details}</span>'
