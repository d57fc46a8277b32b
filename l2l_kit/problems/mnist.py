"""MNIST (section 3.2 of the paper): small multilayer perceptrons that learn to tell digits apart, from minibatches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from l2l_kit import data
from l2l_kit.problems.checks import check_choice
from l2l_kit.problems.classifiers import ClassifierProblem, ClassifierTasks
from l2l_kit.tensors import Tensors

Activation = Literal["sigmoid", "relu", "tanh"]

PIXELS, CLASSES = 28 * 28, 10


@dataclass(frozen=True)
class MNISTTasks(ClassifierTasks):
    """``n`` perceptrons on images ``(784,)``, with ``weight0`` of shape ``(n, 784, hidden)``, ``bias0`` and so on."""

    activation: Activation

    @override
    def logits(self, params: Tensors, images: Tensor) -> Tensor:
        signal = images.to(params["weight0"].dtype) / 255
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
        hidden: units of each hidden layer; the paper trains its optimizer on one layer of 20 sigmoid units.
        activation: "sigmoid", "relu" or "tanh".
        batch_size: images per minibatch; the paper uses 128.
        init_scale: s, or bounds ``(low, high)`` between which each network's own is drawn, its logarithm uniformly.
        split: which digits the minibatches come from, "train" or "test".
        source: "full" for the 60,000 and 10,000 digits of MNIST, "embedded" for the 4,000 and 1,000 that come by pip,
            "auto" for the best there is; after construction it says which one that is.

    Raises:
        ValueError: for an unknown word (`UnknownNameError`), sizes below 1, or a scale that is not positive.
    """

    name = "mnist"
    data_set = "mnist"

    hidden: tuple[int, ...] = (20,)
    activation: Activation = "sigmoid"
    batch_size: int = 128
    init_scale: float | tuple[float, float] = 0.1
    split: data.Split = "train"
    source: data.Source = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple | list) or not all(isinstance(u, int) and u > 0 for u in self.hidden):
            raise ValueError(f"MNIST: hidden must be the units of each layer, such as (20,), got {self.hidden!r}.")
        for name in ("hidden", "init_scale"):  # from a file they come as lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        scales = self.init_scale if isinstance(self.init_scale, tuple) else (self.init_scale,) * 2
        numbers = all(isinstance(scale, int | float) for scale in scales)
        if not numbers or len(scales) != 2 or not 0 < scales[0] <= scales[1] < math.inf:
            wanted = "a positive number, or two with low <= high"
            raise ValueError(f"MNIST: init_scale must be {wanted}, got {self.init_scale!r}.")
        check_choice(self, "activation", Activation)
        self._settle(smallest_batch=1)

    @override
    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> MNISTTasks:
        if isinstance(self.init_scale, tuple):
            low, high = self.init_scale
            scales = low * (high / low) ** torch.rand(num_tasks, generator=generator)
        else:
            scales = torch.full((num_tasks,), self.init_scale)

        def gaussian(*shape: int) -> Tensor:
            numbers = torch.randn(num_tasks, *shape, generator=generator)
            return (scales.view(-1, *(1 for _ in shape)) * numbers).to(device)

        initial: Tensors = {}
        for layer, (inputs, outputs) in enumerate(pairwise((PIXELS, *self.hidden, CLASSES))):
            initial[f"weight{layer}"] = gaussian(inputs, outputs)
            initial[f"bias{layer}"] = gaussian(outputs)
        order = int(torch.randint(2**62, (), generator=generator))
        images, labels, tested, answers = self._images(tuple(range(CLASSES)), device)
        some = images.flatten(1), labels, tested.flatten(1), answers
        return MNISTTasks(initial, *some, self.batch_size, order, self.activation)
