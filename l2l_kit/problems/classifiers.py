"""What networks that put images into classes share: minibatches, losses, and how they are tested."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from l2l_kit import data
from l2l_kit.problems.base import Problem, StoredTasks
from l2l_kit.problems.checks import check_choice, check_number
from l2l_kit.randomness import generator
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
        return 2**14

    @override
    def losses(self, params: Tensors, step: int) -> Tensor:
        """Cross entropy, in nats, averaged over each network's minibatch of that step."""
        minibatches = self._minibatches(len(next(iter(params.values()))), step)
        parts = self._parts(self.batch_size, minibatches, *params.values())
        return torch.cat([self._losses(dict(zip(params, some, strict=True)), batch) for batch, *some in parts])

    @override
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
        draws = generator(self.order, "minibatch", step)
        chosen = torch.randint(len(self.images), (num_tasks, self.batch_size), generator=draws)
        return chosen.to(self.images.device)

    def _losses(self, params: Tensors, minibatches: Tensor) -> Tensor:
        return _cross_entropies(self.logits(params, self.images[minibatches]), self.labels[minibatches])

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
    batch_size: int
    split: data.Split
    source: data.Source

    def _settle(self, smallest_batch: int) -> None:
        """Refuse fields that make no sense, and find out what "auto" means."""
        check_number(self, "batch_size", int, smallest_batch)
        check_choice(self, "split", data.Split)
        check_choice(self, "source", data.Source)
        if self.source == "auto":
            object.__setattr__(self, "source", self.images.source)

    @property
    def images(self) -> data.Images:
        """All images, and where they come from; a `DataError` if "full" was asked for and cannot be had."""
        return data.load(self.data_set, self.source)

    def _images(self, labels: tuple[int, ...], device: torch.device | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images with these labels and their classes, to train on and to test on."""
        train, test = (_labelled(self.data_set, self.source, split, labels, device) for split in (self.split, "test"))
        return *train, *test


@cache
def _labelled(
    data_set: str, source: data.Source, split: data.Split, labels: tuple[int, ...], device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Images with these labels, and the place of each one's among them; they stay on the device for all who sample."""
    images, classes = data.load(data_set, source).split(split)
    places = torch.full((10,), -1)
    places[list(labels)] = torch.arange(len(labels))
    classes = places[classes]
    if len(labels) < 10:
        images, classes = images[classes >= 0], classes[classes >= 0]
    return images.to(device), classes.to(device)
