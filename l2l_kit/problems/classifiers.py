"""What networks that put images into classes share: minibatches, losses, and how they are tested."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from l2l_kit import data
from l2l_kit.errors import check_fields
from l2l_kit.problems.base import Problem, StoredTasks
from l2l_kit.randomness import generator as make_generator
from l2l_kit.tensors import Layout, Tensors


@dataclass(frozen=True)
class ClassifierTasks(StoredTasks):
    """``n`` networks of one architecture, each with initial weights and an order of minibatches of its own."""

    images: Tensor  # what the minibatches are drawn from, as bytes, (images, *shape)
    labels: Tensor  # classes, counted from 0, (images,)
    test_images: Tensor  # what `test` looks at
    test_labels: Tensor
    batch_size: int  # images per minibatch
    order: int  # seed of the minibatches

    @abstractmethod
    def logits(self, params: Tensors, images: Tensor) -> Tensor:
        """Outputs ``(n, images, classes)`` of networks on images ``(n, images, *shape)`` of their own, as bytes."""

    @property
    def images_at_once(self) -> int:
        """How many images networks together look at, at one time, where there are several networks."""
        # What fits into a cache is fastest on a CPU. Elsewhere this bounds the memory to some 10 GB.
        return 2**14 if self.images.device.type == "cpu" else 2**20

    def losses(self, params: Tensors, step: int) -> Tensor:
        """Cross entropy, in nats, averaged over each network's minibatch of that step."""
        minibatches = self._minibatches(len(next(iter(params.values()))), step)
        parts = self._parts(self.batch_size, minibatches, *params.values())
        return torch.cat([self._losses(dict(zip(params, some, strict=True)), batch) for batch, *some in parts])

    def points_and_losses(self, rows: Tensor, layout: Layout, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for some, minibatch in self._parts(self.batch_size, rows, self._minibatches(len(rows), step)):
            point = some.detach().requires_grad_()
            yield point, self._losses(layout.unravel(point), minibatch)

    @torch.no_grad()
    def test(self, params: Tensors) -> tuple[Tensor, Tensor]:
        """Mean loss and share of right answers of every network on all test images, both of shape ``(n,)``."""
        losses, right = [], []
        for some in self._parts(len(self.test_images), *params.values()):
            images, labels = (each.expand(len(some[0]), *each.shape) for each in (self.test_images, self.test_labels))
            logits = self.logits(dict(zip(params, some, strict=True)), images)
            losses.append(_cross_entropies(logits, labels))
            right.append((logits.argmax(dim=2) == labels).to(logits.dtype).mean(dim=1))
        return torch.cat(losses), torch.cat(right)

    def _minibatches(self, num_tasks: int, step: int) -> Tensor:
        """Which images the networks see at a step, ``(n, batch_size)``, drawn with replacement."""
        draws, shape = make_generator(self.order, "minibatch", step), (num_tasks, self.batch_size)
        return torch.randint(len(self.images), shape, generator=draws).to(self.images.device)

    def _losses(self, params: Tensors, minibatches: Tensor) -> Tensor:
        images = self.images.index_select(0, minibatches.flatten())  # of bytes ten times as fast as images[minibatches]
        return _cross_entropies(
            self.logits(params, images.view(*minibatches.shape, *images.shape[1:])), self.labels[minibatches]
        )

    def _parts(self, images: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Tensors of all networks, cut into those of as many as run together on so many images each."""
        size = max(1, self.images_at_once // images)
        return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each network, from ``(n, images, classes)`` and ``(n, images)``."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)


class ClassifierProblem(Problem):
    """A problem on one of the data sets of `l2l_kit.data`. Subclasses are dataclasses with these fields, and others."""

    data_set: ClassVar[str]
    tested: ClassVar[int] = sys.maxsize  # how many of the test images a network is tested on
    labels: tuple[int, ...]
    batch_size: int
    split: data.Split
    source: data.Source

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list | tuple):  # a file has lists for tuples, and JSON does not know numpy's numbers
                object.__setattr__(self, name, tuple(map(_plain, value)))
        check_fields(self)
        self._check()  # before anything is downloaded
        if self.source == "auto":
            object.__setattr__(self, "source", self.images.source)

    @abstractmethod
    def _check(self) -> None:
        """Refuse by a ValueError what the fields' types do not exclude."""

    @property
    def images(self) -> data.Images:
        """All images, and where they come from; a `DataError` if "full" was asked for and is not available."""
        return data.load(self.data_set, self.source)

    def _tasks(
        self, initial: Tensors, generator: torch.Generator, device: torch.device | None
    ) -> tuple[Tensors, Tensor, Tensor, Tensor, Tensor, int, int]:
        """The fields of `ClassifierTasks`, on a device; `initial` is on the CPU."""
        initial = {name: tensor.to(device) for name, tensor in initial.items()}
        order = int(torch.randint(2**62, (), generator=generator))
        train, test = (
            _labelled(self.data_set, self.source, split, self.labels, most, device)
            for split, most in ((self.split, sys.maxsize), ("test", self.tested))
        )
        return initial, *train, *test, self.batch_size, order


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value.item() if isinstance(value, np.generic) else value


@cache
def _labelled(
    data_set: str, source: data.Source, split: data.Split, labels: tuple[int, ...], most: int, on: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Images with these labels, and the place of each one's among them; they stay on the device for all who sample."""
    images, classes = data.load(data_set, source).split(split)
    places = torch.full((10,), -1)
    places[list(labels)] = torch.arange(len(labels))
    classes = places[classes]
    chosen = (classes >= 0).nonzero()[:, 0]
    if len(chosen) > most:  # spread over all: there are packings of the data in which a class comes after the other
        chosen = chosen[torch.arange(most) * len(chosen) // most]
    if len(chosen) < len(images):
        images, classes = images[chosen], classes[chosen]
    return images.to(on), classes.to(on)
