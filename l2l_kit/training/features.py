"""Training the kit's own small network for features, on CIFAR-10: it stands in for VGG-16."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from l2l_kit import data
from l2l_kit.problems.features import FeatureNetwork
from l2l_kit.problems.neural_art import to_pixels
from l2l_kit.randomness import generator

_BATCH = 128
_LR = 0.01


@dataclass(frozen=True)
class TrainedFeatures:
    """A network for features, and how well it told pictures apart.

    Attributes:
        weights: of its convolutions, in half precision, by torchvision's names.
        losses: cross entropy on training images, in nats, averaged over each epoch.
        accuracy: share of right answers on test images after each epoch.
        trained_on: title and source of the images.
    """

    weights: dict[str, Tensor]
    losses: list[float]
    accuracy: list[float]
    trained_on: str


def train_features(
    blocks: tuple[tuple[int, ...], ...], epochs: int, *, variant: data.Source = "full", seed: int = 0
) -> TrainedFeatures:
    """Train a VGG-like network to tell the classes of CIFAR-10 apart, and keep its convolutions.

    While it is trained each convolution is followed by batch normalisation. Afterwards that is folded into the
    weights, so that the network is convolutions and ReLUs alone, as VGG-16.

    Args:
        blocks: channels of the convolutions in each block.
        epochs: passes over the training images, half of which are mirrored.
        variant: of CIFAR-10, see `data.load`.
        seed: of initial weights and the order of images.
    """
    images = data.load("cifar10", variant)
    draws = generator(seed, "network for features")
    classifier = _classifier(blocks, len(images.classes), draws)
    batches = len(images.x_train) // _BATCH
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=epochs * batches)
    losses, accuracy = [], []
    for epoch in range(1, epochs + 1):
        classifier.train()
        order = torch.randperm(len(images.x_train), generator=draws)[: batches * _BATCH].view(batches, _BATCH)
        total = 0.0
        for batch in tqdm(order, f"epoch {epoch} of {epochs}", disable=bool(os.environ.get("TQDM_DISABLE"))):
            pictures = images.x_train[batch]
            mirrored = torch.rand(_BATCH, 1, 1, 1, generator=draws) < 0.5
            logits = classifier(to_pixels(torch.where(mirrored, pictures.flip(3), pictures).float()))
            loss = functional.cross_entropy(logits, images.y_train[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / batches)
        accuracy.append(_accuracy(classifier, images))
    weights = _folded(classifier, FeatureNetwork(blocks))
    return TrainedFeatures(weights, losses, accuracy, f"{images.title} ({images.origin})")


def _classifier(blocks: tuple[tuple[int, ...], ...], classes: int, draws: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for widths in blocks:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for width in widths:
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=draws)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    head = nn.Linear(channels, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@torch.no_grad()
def _accuracy(classifier: nn.Sequential, images: data.Images) -> float:
    classifier.eval()
    answers = [classifier(to_pixels(some.float())).argmax(dim=1) for some in images.x_test.chunk(20)]
    return (torch.cat(answers) == images.y_test).float().mean().item()


def _folded(classifier: nn.Sequential, network: FeatureNetwork) -> dict[str, Tensor]:
    """Weights and biases of the convolutions, with batch normalisation in them."""
    classifier.eval()
    modules = list(classifier)
    plain = [
        fuse_conv_bn_eval(convolution, norm)
        for convolution, norm in pairwise(modules)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ]
    tensors = [tensor.detach().half() for layer in plain for tensor in (layer.weight, layer.bias) if tensor is not None]
    return dict(zip(network.state_dict(), tensors, strict=True))
