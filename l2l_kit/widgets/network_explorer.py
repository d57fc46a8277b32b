"""Learned against hand-designed optimizers on networks that learn digits, with a control for all that may change."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import ipywidgets
import torch
from typing_extensions import override

from l2l_kit import data, plots, zoo
from l2l_kit.errors import UnknownNameError
from l2l_kit.optimizers import Baseline
from l2l_kit.problems import MNIST
from l2l_kit.randomness import generator
from l2l_kit.tensors import pick_device
from l2l_kit.training.rollout import trace
from l2l_kit.widgets.base import BaseExplorer, baselines_for, summary
from l2l_kit.widgets.job import Job, Outcome
from l2l_kit.widgets.live_figure import (
    PREPROCESSINGS,
    described,
    error_message,
    heading,
    labelled,
    message,
    options,
    preprocessing_toggle,
    selection,
    toggle,
)

UNROLLS = (5, 10, 20, 50)
LAYERS = (1, 2, 3, 5)
UNITS = (5, 10, 20, 40, 80)
ACTIVATIONS = ("sigmoid", "relu", "tanh")
INIT_SCALES = (0.001, 0.01, 0.1, 0.3, 1.0)
STEPS = (50, 100, 200)
PAPER = MNIST.name
OF_INTEREST = (3.0, 0.11)
"""Losses that the axis always shows, so that it does not move while the curves grow."""


def network_explorer(
    seed: int = 0,
    unroll: int = 20,
    preprocessing: str = "log-sign",
    architecture: bool = True,
    *,
    fully_trained: bool = True,
    networks: int = 2,
    steps: int = 100,
    digits: data.Variant = "auto",
) -> NetworkExplorer:
    """Compare optimizers on networks that learn digits: end a notebook cell with it.

    The curves are computed in the background and grow meanwhile; a new choice takes effect at once, and what was
    computed before is kept.

    Args:
        seed: of the networks and their minibatches, to begin with.
        unroll: unroll length that the learned optimizer was trained with, to begin with.
        preprocessing: of the learned optimizer, "none", "scale" or "log-sign", to begin with.
        architecture: let the reader change the networks too; otherwise they are the paper's, 784-20-10 with sigmoids.
        fully_trained: begin with the main optimizer, which was trained to the end, instead of one of
            those for each unroll length and preprocessing, whose training was shorter.
        networks: how many the losses are averaged over: a step of the learned optimizer takes some 5 ms for each.
        steps: updates per run, to begin with.
        digits: as in `problems.MNIST`.

    Raises:
        FileNotFoundError: if no tuned learning rates for MNIST are recorded.
        UnknownNameError: for an unroll length or preprocessing that no pretrained optimizer has.
        ValueError: for a number of networks or steps below 1.
        DataError: if the digits asked for cannot be had.
    """
    return NetworkExplorer(seed, unroll, preprocessing, architecture, fully_trained, networks, steps, digits)


class NetworkExplorer(BaseExplorer):
    """See `network_explorer`. Its controls are attributes; setting their `value` does what a reader's hand does."""

    def __init__(
        self,
        seed: int,
        unroll: int,
        preprocessing: str,
        architecture: bool,
        fully_trained: bool,
        networks: int,
        steps: int,
        digits: data.Variant,
    ) -> None:
        if unroll not in UNROLLS:
            raise UnknownNameError("unroll length", unroll, map(str, UNROLLS))
        if preprocessing not in PREPROCESSINGS:
            raise UnknownNameError("preprocessing", preprocessing, PREPROCESSINGS)
        if networks < 1 or steps < 1:
            raise ValueError(f"networks and steps must be at least 1, got networks={networks!r}, steps={steps!r}.")
        self._networks, self._digits = networks, MNIST(digits=digits).digits
        self._runs: dict[tuple[str | Baseline, MNIST, int], _Run] = {}
        self._wanted: dict[str, _Run] = {}
        self._choosing, self._drawing = threading.Lock(), threading.Lock()
        self._job = Job(self._compute, self._show, self._end)
        self._make_controls(seed, unroll, preprocessing, fully_trained, steps)
        lstm = [self.unroll, self.preprocessing, self.fully_trained]
        network = [self.layers, self.units, self.activation, self.init_scale]
        rows = [self.layers, self.units, labelled("Activation", self.activation), self.init_scale]
        super().__init__(
            learned=[self.fully_trained, self.unroll, labelled("Preprocessing", self.preprocessing)],
            task=[heading("Networks"), *(rows if architecture else []), self.steps, self.seed],
            controls=[*lstm, *network, self.steps, self.seed],
            tuned_for="Those with the lowest final loss on 784-20-10 with sigmoids and initial weights of 0.1",
        )
        self.figure.layout.update(height=plots.HEIGHT + 60, margin_t=85)  # room for the second line of the title
        self._update()

    def _make_controls(self, seed: int, unroll: int, preprocessing: str, fully_trained: bool, steps: int) -> None:
        self.fully_trained = ipywidgets.Checkbox(
            fully_trained,
            description="the main one, fully trained",
            tooltip="Otherwise one that was trained as chosen below, and for a shorter time",
            indent=False,
            layout={"width": "auto", "margin": "0 0 0 24px"},
        )
        self.unroll = _slider("Unroll", UNROLLS, unroll, "Steps that it was trained to look ahead")
        self.preprocessing = preprocessing_toggle(list(PREPROCESSINGS), preprocessing)
        self.layers = _slider("Layers", LAYERS, 1, "Hidden layers")
        self.units = _slider("Units", UNITS, 20, "Units of each hidden layer")
        self.activation = toggle(ACTIVATIONS, "sigmoid")
        self.init_scale = _slider(
            "Init scale", INIT_SCALES, 0.1, "Standard deviation of the initial weights and biases"
        )
        self.steps = _slider("Steps", sorted({*STEPS, steps}), steps, "Updates per run; the LSTMs were trained on 100")
        self.seed = ipywidgets.BoundedIntText(seed, 0, 2**31, description="Seed", **described("300px"))

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
    def _tuned_baselines(self) -> Mapping[str, Baseline]:
        return baselines_for(PAPER, self.steps.value)

    @property
    @override
    def _pretrained(self) -> str:
        if self.fully_trained.value:
            return PAPER
        return f"{PAPER}-{self.preprocessing.value}-unroll{self.unroll.value}"

    @property
    def _problem(self) -> MNIST:
        hidden = (self.units.value,) * self.layers.value
        return MNIST(hidden, activation=self.activation.value, init_scale=self.init_scale.value, digits=self._digits)

    @override
    def _redraw(self) -> None:
        """Show at once what is known of the new choice, and compute the rest from now on instead of the old one."""
        with self._choosing:  # a page and a cell may choose at the same time
            self.unroll.disabled = self.preprocessing.disabled = self.fully_trained.value
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
            self._draw(lines, steps, self._title, in_range=[OF_INTEREST])
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

    @property
    def _title(self) -> str:
        problem = self._problem
        widths = "-".join(map(str, (784, *problem.hidden, 10)))
        networks = "1 network" if self._networks == 1 else f"{self._networks} networks"
        return (
            f"Mean loss of {networks} on {problem.images.title}"
            f'<br><span style="font-size: 12px">{widths}, {problem.activation}, initial weights '
            f"{problem.init_scale:g}, minibatches of {problem.batch_size}</span>"
        )


class _Run:
    """One optimizer on the networks of one seed, as far as it was needed.

    It can go on from where it is as long as it is not put to rest, which frees the state of the optimizer.

    Attributes:
        losses: mean over the networks after 0, 1, ... updates.
        error: what went wrong, or None.
    """

    def __init__(self, optimizer: str | Baseline, problem: MNIST, seed: int, networks: int, longest: int) -> None:
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
        for _, losses in trace(rule, networks, self._longest):
            yield losses.mean().nan_to_num(nan=torch.inf).item()


def _slider(label: str, values: Iterable[float], value: float, tooltip: str) -> ipywidgets.SelectionSlider:
    return selection(label, options(values, value), value, tooltip)
