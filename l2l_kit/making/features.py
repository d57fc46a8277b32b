"""Training the kit's own small network for features, on CIFAR-10: it stands in for VGG-16."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from l2l_kit import data
from l2l_kit.data.features import SMALL, FeatureNetwork
from l2l_kit.evaluation import machine, write_result
from l2l_kit.paths import DATA
from l2l_kit.problems.neural_art import to_pixels
from l2l_kit.randomness import generator
from l2l_kit.storage import write_tensors

if TYPE_CHECKING:
    import pandas as pd

_BATCH = 128
_LR = 0.01


def make_features(epochs: int = 3, seed: int = 0, folder: Path = DATA) -> tuple[Path, Path, float]:
    """Train the network that the kit ships and keep it in a folder's ``networks/`` and ``results/``.

    Returns where the weights and the record are, and the share of right answers on test images.
    """
    images = data.load("cifar10", "full")
    weights, table = train_features(images, SMALL, epochs, seed)
    about = {"command": f"l2l train-features --epochs {epochs} --seed {seed}", "blocks": SMALL}
    about |= {"trained_on": f"{images.title} ({images.origin})", **machine(torch.device("cpu"))}
    path = folder / "networks" / "small.safetensors"
    recorded = write_result("training/small-network", table, about, folder / "results")
    write_tensors(path, weights, about, 1)
    return path, recorded, float(table["test_accuracy"].iloc[-1])


def train_features(
    images: data.Images, blocks: tuple[tuple[int, ...], ...], epochs: int, seed: int = 0
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Train a VGG-like network to tell classes of images apart, and keep its convolutions.

    While it is trained each convolution is followed by batch normalisation. Afterwards that is folded into the
    weights, so that the network is convolutions and ReLUs alone, as VGG-16. Half of the training images are mirrored.

    Args:
        blocks: channels of the convolutions in each block.

    Returns:
        The weights in half precision, by torchvision's names, and a table: epoch, training_loss (mean cross entropy, in
        nats), test_accuracy (share of right answers).
    """
    import pandas as pd

    draws = generator(seed, "network for features")
    classifier = _classifier(blocks, len(images.classes), draws)
    batches = len(images.x_train) // _BATCH
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=epochs * batches)
    rows = []
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
        classifier.eval()
        with torch.no_grad():
            answers = torch.cat([classifier(to_pixels(some.float())).argmax(dim=1) for some in images.x_test.chunk(20)])
        rows.append((epoch, total / batches, (answers == images.y_test).float().mean().item()))
    table = pd.DataFrame(rows, columns=["epoch", "training_loss", "test_accuracy"])
    return _folded(classifier, FeatureNetwork(blocks)), table


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


def _folded(classifier: nn.Sequential, network: FeatureNetwork) -> dict[str, Tensor]:
    """Weights and biases of the convolutions, with batch normalisation in them."""
    classifier.eval()
    plain = [
        fuse_conv_bn_eval(convolution, norm)
        for convolution, norm in pairwise(classifier)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    ]
    tensors = [tensor.detach().half() for layer in plain for tensor in (layer.weight, layer.bias) if tensor is not None]
    return dict(zip(network.state_dict(), tensors, strict=True))
