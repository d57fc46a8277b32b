"""MNIST (section 3.2 of the paper): small multilayer perceptrons that learn to tell digits apart, from minibatches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from l2l_kit import data
from l2l_kit.errors import UnknownNameError
from l2l_kit.problems.base import Classifiers, Problem, draw_minibatches
from l2l_kit.tensors import Tensors

Activation = Literal["sigmoid", "relu", "tanh"]

PIXELS, CLASSES = 28 * 28, 10
_ACTIVATIONS = {"sigmoid": torch.sigmoid, "relu": torch.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class MNISTTasks(Classifiers):
    """``n`` networks of one architecture, each with initial weights and an order of minibatches of its own.

    Attributes:
        initial: starting points: ``weight0`` of shape ``(n, 784, hidden)``, ``bias0`` ``(n, hidden)``, and so on.
        images: what the minibatches are drawn from, as bytes, shape ``(images, 784)``.
        labels: digits 0 … 9, shape ``(images,)``.
        test_images: what `test` looks at, as bytes, shape ``(test images, 784)``.
        test_labels: shape ``(test images,)``.
        batch_size: images per minibatch.
        activation: of the hidden layers.
        order: seed of the minibatches.
    """

    initial: Tensors
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    batch_size: int
    activation: Activation
    order: int

    @property
    @override
    def initial_params(self) -> Tensors:
        return self.initial

    @override
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Cross entropy, in nats, averaged over each network's minibatch of that step."""
        n = len(next(iter(params.values())))
        chosen = draw_minibatches(self.order, step, n, self.batch_size, len(self.images)).to(self.images.device)
        logits = self.logits(params, self.images[chosen])
        losses = functional.cross_entropy(logits.flatten(0, 1), self.labels[chosen].flatten(), reduction="none")
        return losses.view(n, self.batch_size).mean(dim=1)

    @override
    @torch.no_grad()
    def test(self, params: Tensors) -> tuple[Tensor, Tensor]:
        losses, right = [], []
        for one in range(len(next(iter(params.values())))):  # all at once would be n times 10,000 images
            logits = self.logits({name: tensor[one : one + 1] for name, tensor in params.items()}, self.test_images)[0]
            losses.append(functional.cross_entropy(logits, self.test_labels))
            right.append((logits.argmax(dim=1) == self.test_labels).float().mean())
        return torch.stack(losses), torch.stack(right)

    def logits(self, params: Tensors, images: Tensor) -> Tensor:
        """Outputs of the networks, ``(n, images, 10)``, for bytes ``(n, images, 784)`` or ``(images, 784)``."""
        signal = images.to(next(iter(params.values())).dtype) / 255
        layers = len(params) // 2
        for layer in range(layers):
            signal = signal @ params[f"weight{layer}"] + params[f"bias{layer}"][:, None]
            if layer < layers - 1:
                signal = _ACTIVATIONS[self.activation](signal)
        return signal


@dataclass(frozen=True)
class MNIST(Problem):
    """A multilayer perceptron on MNIST digits: cross entropy over minibatches, all parameters drawn from N(0, s²).

    The paper does not give the scale s of the initial parameters, and which optimizer is best depends on it; so it is
    a parameter here, and whatever is measured says which one it used.

    Args:
        hidden: units of each hidden layer; the paper trains its optimizer on one layer of 20.
        activation: "sigmoid" (the paper's), "relu" or "tanh".
        batch_size: images per minibatch; the paper uses 128.
        init_scale: standard deviation s of all initial weights and biases; or bounds ``(low, high)`` between which each
            network's own is drawn, its logarithm uniformly.
        split: which digits the minibatches come from, "train" or "test".
        digits: "full" for the 60,000 and 10,000 digits of MNIST, "embedded" for the 4,000 and 1,000 that come by pip,
            "auto" for the best there is; after construction it says which one that is.

    Raises:
        UnknownNameError: for an unknown activation, split or kind of digits.
        ValueError: for sizes below 1, or a scale that is not positive.
    """

    name: ClassVar[str] = "mnist"

    hidden: tuple[int, ...] = (20,)
    activation: Activation = "sigmoid"
    batch_size: int = 128
    init_scale: float | tuple[float, float] = 0.1
    split: data.Split = "train"
    digits: data.Source = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple | list) or not all(isinstance(u, int) and u > 0 for u in self.hidden):
            raise ValueError(f"MNIST: hidden must be the units of each layer, such as (20,), got {self.hidden!r}.")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"MNIST: batch_size must be a whole number of at least 1, got {self.batch_size!r}.")
        bounds = self.init_scale if isinstance(self.init_scale, tuple | list) else (self.init_scale,) * 2
        if (
            len(bounds) != 2
            or not all(isinstance(bound, int | float) for bound in bounds)
            or not 0 < bounds[0] <= bounds[1] < math.inf
        ):
            raise ValueError(
                f"MNIST: init_scale must be a positive number, or two with low <= high, got {self.init_scale!r}."
            )
        for kind, value, known in (
            ("activation", self.activation, _ACTIVATIONS),
            ("split", self.split, get_args(data.Split)),
            ("kind of digits", self.digits, get_args(data.Source)),
        ):
            if value not in known:
                raise UnknownNameError(kind, value, known)
        object.__setattr__(self, "hidden", tuple(self.hidden))  # from a file it comes as a list
        if isinstance(self.init_scale, list):
            object.__setattr__(self, "init_scale", tuple(self.init_scale))
        if self.digits == "auto":
            object.__setattr__(self, "digits", self.images.source)

    @property
    def images(self) -> data.Images:
        """The digits, and where they come from.

        Raises:
            DataError: if "full" was asked for and cannot be had.
        """
        return data.load("mnist", self.digits)

    @override
    def sample(self, n: int, generator: torch.Generator, device: torch.device | None = None) -> MNISTTasks:
        if isinstance(self.init_scale, tuple):
            low, high = self.init_scale
            scales = low * (high / low) ** torch.rand(n, generator=generator)
        else:
            scales = torch.full((n,), self.init_scale)

        def gaussian(*shape: int) -> Tensor:
            return (scales.view(n, *(1 for _ in shape)) * torch.randn(n, *shape, generator=generator)).to(device)

        widths = (PIXELS, *self.hidden, CLASSES)
        initial: Tensors = {}
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            initial[f"weight{layer}"] = gaussian(inputs, outputs)
            initial[f"bias{layer}"] = gaussian(outputs)
        order = int(torch.randint(2**62, (), generator=generator))
        return MNISTTasks(
            initial,
            *_digits(self.digits, self.split, device),
            *_digits(self.digits, "test", device),
            self.batch_size,
            self.activation,
            order,
        )


@cache
def _digits(digits: data.Source, split: data.Split, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Images ``(images, 784)`` and labels of one split; they stay on the device, for all who sample there."""
    images, labels = data.load("mnist", digits).split(split)
    return images.flatten(1).to(device), labels.to(device)
