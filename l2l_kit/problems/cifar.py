"""CIFAR-10 (section 3.3 of the paper): small convolutional networks that learn to tell pictures apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, get_args

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from l2l_kit import data
from l2l_kit.errors import UnknownNameError
from l2l_kit.problems.base import Classifiers, Problem, draw_minibatches
from l2l_kit.tensors import Layout, Tensors

LAYERS, CHANNELS, KERNEL, HIDDEN = 3, 16, 5, 32
POOLED = 32 // 2**LAYERS  # height and width after the last pooling
TEST_IMAGES = 1000
"""How many of the test images a network is tested on: enough for two digits, and every test costs a forward pass."""


@dataclass(frozen=True)
class CIFARTasks(Classifiers):
    """``n`` convolutional networks, each with initial weights and an order of minibatches of its own.

    Attributes:
        initial: starting points; the part of a name before the dot says which LSTM looks after the parameter.
        images: what the minibatches are drawn from, as bytes, shape ``(images, 3, 32, 32)``.
        classes: shape ``(images,)``, counted from 0.
        test_images: what `test` looks at, as bytes, shape ``(test images, 3, 32, 32)``.
        test_classes: shape ``(test images,)``.
        batch_size: images per minibatch.
        order: seed of the minibatches.
    """

    initial: Tensors
    images: Tensor
    classes: Tensor
    test_images: Tensor
    test_classes: Tensor
    batch_size: int
    order: int

    @property
    @override
    def initial_params(self) -> Tensors:
        return self.initial

    @override
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Cross entropy, in nats, averaged over each network's minibatch of that step."""
        minibatches = self._minibatches(len(params["fc.bias"]), step)
        return torch.cat(
            [
                self._losses(dict(zip(params, tensors, strict=True)), minibatch)
                for minibatch, *tensors in self._chunks(self.batch_size, minibatches, *params.values())
            ]
        )

    @override
    def losses_and_gradients(self, rows: Tensor, layout: Layout, step: int) -> tuple[Tensor, Tensor]:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for some, minibatch in self._chunks(self.batch_size, rows, self._minibatches(len(rows), step)):
            point, found = self._losses_at(some, layout, minibatch)
            gradients += torch.autograd.grad(found.sum(), point)
            losses.append(found.detach())
        return torch.cat(losses), torch.cat(gradients)

    @override
    def hessian_products(self, rows: Tensor, layout: Layout, step: int, vectors: Tensor) -> Tensor:
        products: list[Tensor] = []
        minibatches = self._minibatches(len(rows), step)
        for some, vector, minibatch in self._chunks(self.batch_size, rows, vectors, minibatches):
            point, losses = self._losses_at(some, layout, minibatch)
            (gradients,) = torch.autograd.grad(losses.sum(), point, create_graph=True)
            products += torch.autograd.grad(gradients, point, vector)
        return torch.cat(products)

    @override
    @torch.no_grad()
    def test(self, params: Tensors) -> tuple[Tensor, Tensor]:
        losses, right = [], []
        for tensors in self._chunks(len(self.test_images), *params.values()):
            n = len(tensors[0])
            classes = self.test_classes.expand(n, -1)
            images = self.test_images.expand(n, *self.test_images.shape)
            logits = self.logits(dict(zip(params, tensors, strict=True)), images)
            losses.append(_cross_entropies(logits, classes))
            right.append((logits.argmax(dim=2) == classes).to(logits.dtype).mean(dim=1))
        return torch.cat(losses), torch.cat(right)

    def logits(self, params: Tensors, images: Tensor) -> Tensor:
        """Outputs of networks on images ``(n, images, 3, 32, 32)`` of their own, shape ``(n, images, classes)``.

        Batch normalisation takes its mean and variance from these very images, in training and test alike.
        """
        n = len(images)
        # The networks side by side, as groups of channels. One network on a CPU is faster with its channels last.
        order = torch.channels_last if n == 1 else torch.contiguous_format
        signal = images.transpose(0, 1).flatten(1, 2).to(params["fc.bias"].dtype, memory_format=order) / 255
        for layer in range(LAYERS):
            kernels = params[f"conv.weight{layer}"].flatten(0, 1).contiguous(memory_format=order)
            signal = functional.conv2d(signal, kernels, padding=KERNEL // 2, groups=n)
            signal = _normalised(signal, params[f"fc.offset{layer}"])
            signal = functional.max_pool2d(signal, 2).relu()  # the same either way round, on a quarter of the values
        hidden = torch.einsum("bni,nij->bnj", signal.reshape(len(signal), n, -1), params["fc.weight0"])
        hidden = _normalised(hidden.flatten(1), params[f"fc.offset{LAYERS}"]).relu().view_as(hidden)
        return torch.einsum("bni,nij->nbj", hidden, params["fc.weight1"]) + params["fc.bias"][:, None]

    @torch.enable_grad()
    def _losses_at(self, rows: Tensor, layout: Layout, minibatches: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters ``(n, coordinates)``, and the losses as a function of them for autograd."""
        point = rows.detach().requires_grad_()
        return point, self._losses(layout.unravel(point), minibatches)

    def _losses(self, params: Tensors, minibatches: Tensor) -> Tensor:
        return _cross_entropies(self.logits(params, self.images[minibatches]), self.classes[minibatches])

    def _minibatches(self, n: int, step: int) -> Tensor:
        return draw_minibatches(self.order, step, n, self.batch_size, len(self.images)).to(self.images.device)

    def _chunks(self, images: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Tensors of all networks, cut into those of as many as run together on so many images each."""
        size = max(1, images_at_once(self.images.device) // images)
        return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def images_at_once(device: torch.device) -> int:
    """How many images networks together may look at, at one time, where there are several networks."""
    # On a CPU every network runs alone: its activations, some 30 MB, are far more than fit into a cache as it is.
    # Elsewhere this bounds those of all networks to some 10 GB.
    return 0 if device.type == "cpu" else 2**15


def _cross_entropies(logits: Tensor, classes: Tensor) -> Tensor:
    """Of each network, from ``(n, images, classes)`` and ``(n, images)``."""
    return functional.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes).mean(1)


def _normalised(signal: Tensor, offsets: Tensor) -> Tensor:
    """Batch normalisation with offsets ``(n, channels)`` and no scale, of a signal ``(images, n · channels, ...)``."""
    # A scale of ones, and not None: torch cannot differentiate twice without one.
    offset = offsets.flatten()
    return functional.batch_norm(signal, None, None, torch.ones_like(offset), offset, training=True)


@dataclass(frozen=True)
class CIFAR(Problem):
    """A convolutional network on CIFAR-10 or some of its labels: cross entropy over minibatches.

    Three times convolution (16 channels, 5×5), batch normalisation, ReLU and max pooling, then a fully connected layer
    of 32 units, batch normalisation and ReLU, and one output for each label.

    The paper (section 3.3) says: three convolutional layers with max pooling, a fully connected layer of 32 units, ReLU
    activations with batch normalisation, two LSTMs. Its authors' published code says the rest: channels and kernel
    size, initial weights and biases from N(0, 0.01²), pixels from 0 to 1, batch normalisation before *every* ReLU, with
    an offset and no scale, and which LSTM looks after which parameters: "conv" after the three kernels and "fc" after
    everything else. Without the batch normalisation of the fully connected layer the gradients of a new network are
    about a tenth as large, and meta-training is slower (lesson 4). The biases that the code adds just before a batch
    normalisation are left out: it subtracts them again.

    Args:
        labels: which classes, 0 … 9; CIFAR-5 and CIFAR-2 of the paper are five and two of them.
        batch_size: images per minibatch; the paper uses 128.
        init_scale: standard deviation of all initial weights and biases; batch normalisation's offsets begin as 0.
        split: which images the minibatches come from, "train" or "test".
        variant: "full" for CIFAR-10, "embedded" for the patches of photographs that stand in for it, "auto" for the
            best there is; after construction it says which one that is.

    Raises:
        UnknownNameError: for an unknown split or variant.
        ValueError: for labels that do not exist, less than two of them, or sizes that are not positive.
    """

    name: ClassVar[str] = "cifar"

    labels: tuple[int, ...] = tuple(range(10))
    batch_size: int = 128
    init_scale: float = 0.01
    split: data.Split = "train"
    variant: data.Source = "auto"

    def __post_init__(self) -> None:
        labels = tuple(self.labels) if isinstance(self.labels, tuple | list) else ()
        if len(set(labels) & set(range(10))) < max(2, len(labels)):
            raise ValueError(f"CIFAR: labels must be two or more different ones of 0 to 9, got {self.labels!r}.")
        if not isinstance(self.batch_size, int) or self.batch_size < 2:
            raise ValueError(
                f"CIFAR: batch_size must be a whole number of at least 2, to normalise over, got {self.batch_size!r}."
            )
        if not (isinstance(self.init_scale, int | float) and 0 < self.init_scale < math.inf):
            raise ValueError(f"CIFAR: init_scale must be a positive number, got {self.init_scale!r}.")
        for kind, value, known in (
            ("split", self.split, get_args(data.Split)),
            ("variant", self.variant, get_args(data.Source)),
        ):
            if value not in known:
                raise UnknownNameError(kind, value, known)
        object.__setattr__(self, "labels", labels)  # from a file it comes as a list
        if self.variant == "auto":
            object.__setattr__(self, "variant", self.images.source)

    @property
    def images(self) -> data.Images:
        """All images, whatever the labels, and where they come from.

        Raises:
            DataError: if "full" was asked for and cannot be had.
        """
        return data.load("cifar10", self.variant)

    @property
    def title(self) -> str:
        """What figures and tables call it: "CIFAR-5", or what stands in for it."""
        if self.variant == "full":
            return f"CIFAR-{len(self.labels)}"
        return f"{len(self.labels)} classes of {self.images.title}"

    @override
    def sample(self, n: int, generator: torch.Generator, device: torch.device | None = None) -> CIFARTasks:
        def gaussian(*shape: int) -> Tensor:
            return (self.init_scale * torch.randn(n, *shape, generator=generator)).to(device)

        initial: Tensors = {}
        for layer in range(LAYERS):
            initial[f"conv.weight{layer}"] = gaussian(CHANNELS, CHANNELS if layer else 3, KERNEL, KERNEL)
            initial[f"fc.offset{layer}"] = torch.zeros(n, CHANNELS, device=device)
        initial["fc.weight0"] = gaussian(CHANNELS * POOLED**2, HIDDEN)
        initial[f"fc.offset{LAYERS}"] = torch.zeros(n, HIDDEN, device=device)
        initial["fc.weight1"] = gaussian(HIDDEN, len(self.labels))
        initial["fc.bias"] = gaussian(len(self.labels))
        order = int(torch.randint(2**62, (), generator=generator))
        images, classes = _labelled(self.variant, self.split, self.labels, device)
        test_images, test_classes = _labelled(self.variant, "test", self.labels, device)
        some = min(TEST_IMAGES, len(test_images))
        # Spread over all: there are packings of the data in which a class comes after the other.
        spread = torch.arange(some, device=device) * len(test_images) // some
        return CIFARTasks(initial, images, classes, test_images[spread], test_classes[spread], self.batch_size, order)


@cache
def _labelled(
    variant: data.Source, split: data.Split, labels: tuple[int, ...], device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Images with these labels, and the place of each one's label among them; they stay on the device."""
    images, classes = data.load("cifar10", variant).split(split)
    places = torch.full((10,), -1)
    places[list(labels)] = torch.arange(len(labels))
    classes = places[classes]
    if len(labels) < 10:
        images, classes = images[classes >= 0], classes[classes >= 0]
    return images.to(device), classes.to(device)
