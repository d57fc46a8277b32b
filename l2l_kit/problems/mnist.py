"""MNIST (section 3.2 of the paper): small multilayer perceptrons that learn to tell digits apart, from minibatches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from l2l_kit import data
from l2l_kit.errors import Count
from l2l_kit.problems.classifiers import ClassifierProblem, ClassifierTasks
from l2l_kit.tensors import Tensors


@dataclass(frozen=True)
class MNISTTasks(ClassifierTasks):
    """``n`` perceptrons on images ``(28, 28)``, with ``weight0`` of shape ``(n, 784, hidden)``, ``bias0`` and so on."""

    activation: str

    def logits(self, params: Tensors, images: Tensor) -> Tensor:
        signal = images.flatten(2).to(params["weight0"].dtype) / 255
        last = len(params) // 2 - 1
        for layer in range(last + 1):
            signal = signal @ params[f"weight{layer}"] + params[f"bias{layer}"][:, None]
            if layer < last:
                signal = getattr(torch, self.activation)(signal)
        return signal


@dataclass(frozen=True)
class MNIST(ClassifierProblem):
    """A multilayer perceptron on MNIST digits: cross entropy over minibatches, all parameters drawn from N(0, s²).

    The paper does not give the scale s of the initial parameters, and which optimizer is best depends on it.

    Args:
        hidden: units of each hidden layer; the paper trains its optimizer on one layer of 20 sigmoid units. Or several
            such tuples, a mixture of architectures: each batch has one of them, and training validates on the last.
        activation: "sigmoid", "relu" or "tanh".
        batch_size: images per minibatch; the paper uses 128.
        init_scale: s, or bounds ``(low, high)`` between which each network's own is drawn, its logarithm uniformly.
        split: which digits the minibatches come from, "train" or "test".
        source: "full" for the 60,000 and 10,000 digits of MNIST, "embedded" for the 4,000 and 1,000 that come by pip,
            "auto" for the best there is; after construction it says which one that is.

    Raises:
        ValueError: for an unknown word (`UnknownNameError`) or a number that makes no sense.
    """

    name = "mnist"
    data_set = "mnist"
    labels = tuple(range(10))

    hidden: tuple[int, ...] | tuple[tuple[int, ...], ...] = (20,)
    activation: Literal["sigmoid", "relu", "tanh"] = "sigmoid"
    batch_size: Count = 128
    init_scale: float | tuple[float, float] = 0.1
    split: data.Split = "train"
    source: data.Source = "auto"

    def _check(self) -> None:
        for hidden in self.architectures:
            if not isinstance(hidden, tuple) or not all(isinstance(units, int) and units > 0 for units in hidden):
                wanted = "the units of each layer, such as (20,), or several such tuples"
                raise ValueError(f"MNIST: hidden must be {wanted}, got {self.hidden!r}.")
        scales = self.init_scale if isinstance(self.init_scale, tuple) else (self.init_scale,) * 2
        numbers = len(scales) == 2 and all(isinstance(scale, int | float) for scale in scales)
        if not numbers or not 0 < scales[0] <= scales[1] < math.inf:
            wanted = "a positive number, or two with low <= high"
            raise ValueError(f"MNIST: init_scale must be {wanted}, got {self.init_scale!r}.")

    @property
    def architectures(self) -> tuple[tuple[int, ...], ...]:
        """The units of each hidden layer, of every architecture that there may be."""
        mixture = isinstance(self.hidden, tuple) and any(isinstance(each, tuple) for each in self.hidden)
        return cast(tuple[tuple[int, ...], ...], self.hidden if mixture else (self.hidden,))

    def validation_problem(self) -> MNIST:
        return replace(self, hidden=self.architectures[-1])

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> MNISTTasks:
        if isinstance(self.init_scale, tuple):
            low, high = self.init_scale
            scales = low * (high / low) ** torch.rand(num_tasks, generator=generator)
        else:
            scales = torch.full((num_tasks,), self.init_scale)

        def gaussian(*shape: int) -> Tensor:
            return scales.view(-1, *(1 for _ in shape)) * torch.randn(num_tasks, *shape, generator=generator)

        which = (
            int(torch.randint(len(self.architectures), (), generator=generator)) if len(self.architectures) > 1 else 0
        )
        initial: Tensors = {}
        for layer, (inputs, outputs) in enumerate(pairwise((28 * 28, *self.architectures[which], len(self.labels)))):
            initial[f"weight{layer}"] = gaussian(inputs, outputs)
            initial[f"bias{layer}"] = gaussian(outputs)
        return MNISTTasks(*self._tasks(initial, generator, device), self.activation)
