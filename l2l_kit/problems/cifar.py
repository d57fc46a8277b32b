"""CIFAR-10 (section 3.3 of the paper): small convolutional networks that learn to tell pictures apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from l2l_kit import data
from l2l_kit.errors import AtLeast, Positive
from l2l_kit.problems.classifiers import ClassifierProblem, ClassifierTasks
from l2l_kit.tensors import Tensors

LAYERS, CHANNELS, KERNEL, HIDDEN = 3, 16, 5, 32
POOLED = 32 // 2**LAYERS  # height and width after the last pooling


@dataclass(frozen=True)
class CIFARTasks(ClassifierTasks):
    """``n`` convolutional networks on images ``(3, 32, 32)``, with parameters for two LSTMs, "conv" and "fc"."""

    @property
    def images_at_once(self) -> int:
        # On a CPU every network runs alone: its activations, some 30 MB, are far more than fit into a cache as it is.
        # Elsewhere this bounds those of all networks to some 10 GB.
        return 0 if self.images.device.type == "cpu" else 2**15

    def logits(self, params: Tensors, images: Tensor) -> Tensor:
        """As `ClassifierTasks.logits`; batch normalisation takes its mean and variance from these very images."""
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


def _normalised(signal: Tensor, offsets: Tensor) -> Tensor:
    """Batch normalisation with offsets ``(n, channels)`` and no scale, of a signal ``(images, n · channels, ...)``."""
    # A scale of ones, and not None: torch cannot differentiate twice without one.
    offset = offsets.flatten()
    return functional.batch_norm(signal, None, None, torch.ones_like(offset), offset, training=True)


@dataclass(frozen=True)
class CIFAR(ClassifierProblem):
    """A convolutional network on CIFAR-10 or some of its labels: cross entropy over minibatches (section 3.3).

    Three times convolution (16 channels, 5×5), batch normalisation, ReLU and max pooling, then a fully connected layer
    of 32 units, batch normalisation and ReLU, and one output for each label.

    What the paper does not say is as in its authors' published code: channels and kernel size, initial weights and
    biases from N(0, 0.01²), pixels from 0 to 1, batch normalisation before *every* ReLU, with an offset and no scale,
    and which LSTM looks after which parameters: "conv" after the three kernels, "fc" after everything else. The biases
    that the code adds just before a batch normalisation are left out: it subtracts them again.

    Args:
        labels: which classes, 0 … 9, two or more; CIFAR-5 and CIFAR-2 of the paper are five and two of them.
        batch_size, split: as in `MNIST`.
        init_scale: standard deviation of all initial weights and biases; batch normalisation's offsets begin as 0.
        source: "full" for CIFAR-10, "embedded" for the patches of photographs that stand in for it, "auto" for the
            best there is; after construction it says which one that is.

    Raises:
        ValueError: for an unknown word (`UnknownNameError`) or a value that makes no sense.
    """

    name = "cifar"
    data_set = "cifar10"
    tested = 1000  # enough for two digits, and every test costs a forward pass

    labels: tuple[int, ...] = tuple(range(10))
    batch_size: Annotated[int, AtLeast(2)] = 128
    init_scale: Positive = 0.01
    split: data.Split = "train"
    source: data.Source = "auto"

    def _check(self) -> None:
        labels = self.labels if isinstance(self.labels, tuple) else ()
        if len({label for label in labels if type(label) is int and 0 <= label < 10}) < max(2, len(labels)):
            raise ValueError(f"CIFAR: labels must be two or more different ones of 0 to 9, got {self.labels!r}.")

    @property
    def title(self) -> str:
        """What figures and tables call it: "CIFAR-5", or what stands in for it."""
        if self.source == "full":
            return f"CIFAR-{len(self.labels)}"
        return f"{len(self.labels)} classes of {self.images.title}"

    def sample(self, num_tasks: int, generator: torch.Generator, device: torch.device | None = None) -> CIFARTasks:
        def gaussian(*shape: int) -> Tensor:
            return self.init_scale * torch.randn(num_tasks, *shape, generator=generator)

        initial: Tensors = {}
        for layer in range(LAYERS):
            initial[f"conv.weight{layer}"] = gaussian(CHANNELS, CHANNELS if layer else 3, KERNEL, KERNEL)
            initial[f"fc.offset{layer}"] = torch.zeros(num_tasks, CHANNELS)
        initial["fc.weight0"] = gaussian(CHANNELS * POOLED**2, HIDDEN)
        initial[f"fc.offset{LAYERS}"] = torch.zeros(num_tasks, HIDDEN)
        initial["fc.weight1"] = gaussian(HIDDEN, len(self.labels))
        initial["fc.bias"] = gaussian(len(self.labels))
        return CIFARTasks(*self._tasks(initial, generator, device))
