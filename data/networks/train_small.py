"""Trains small.safetensors, whose features stand in for VGG-16's: a network that tells the classes of CIFAR-10 apart.

``python data/networks/train_small.py`` writes it and its record, data/results/training/small-network.csv. (The record
calls this `l2l train-features`, which it was once.)
"""

import os
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from l2l_kit import data
from l2l_kit.data.vgg import SMALL as PATH
from l2l_kit.evaluation import machine, write_result
from l2l_kit.problems.features import SMALL as BLOCKS
from l2l_kit.problems.features import FeatureNetwork
from l2l_kit.problems.neural_art import to_pixels
from l2l_kit.randomness import generator
from l2l_kit.storage import write_tensors

BATCH, EPOCHS, SEED, LR = 128, 3, 0, 0.01


def train(
    images: data.Images, blocks: tuple[tuple[int, ...], ...], epochs: int
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Train a VGG-like network with batch normalisation, which is then folded into the weights of the convolutions.

    Half of the training images are mirrored. Returns the weights in half precision, by torchvision's names, and a
    table: epoch, training_loss (mean cross entropy, in nats), test_accuracy (share of right answers).
    """
    draws = generator(SEED, "network for features")
    classifier = make_classifier(blocks, len(images.classes), draws)
    batches = len(images.x_train) // BATCH
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * batches)
    rows = []
    for epoch in range(1, epochs + 1):
        classifier.train()
        order = torch.randperm(len(images.x_train), generator=draws)[: batches * BATCH].view(batches, BATCH)
        total = 0.0
        for batch in tqdm(order, f"epoch {epoch} of {epochs}", disable=bool(os.environ.get("TQDM_DISABLE"))):
            pictures = images.x_train[batch]
            mirrored = torch.rand(BATCH, 1, 1, 1, generator=draws) < 0.5
            logits = classifier(to_pixels(torch.where(mirrored, pictures.flip(3), pictures).float()))
            loss = functional.cross_entropy(logits, images.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        classifier.eval()
        with torch.no_grad():
            answers = torch.cat([classifier(to_pixels(some.float())).argmax(dim=1) for some in images.x_test.chunk(20)])
        rows.append((epoch, total / batches, (answers == images.y_test).float().mean().item()))
    return fold(classifier, blocks), pd.DataFrame(rows, columns=["epoch", "training_loss", "test_accuracy"])


def make_classifier(blocks: tuple[tuple[int, ...], ...], classes: int, draws: torch.Generator) -> nn.Sequential:
    """The blocks of convolutions, each followed by batch normalisation, and a linear layer on their averages."""
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


def fold(classifier: nn.Sequential, blocks: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
    """Weights and biases of the convolutions, with batch normalisation in them."""
    pairs = [pair for pair in pairwise(classifier.eval()) if isinstance(pair[1], nn.BatchNorm2d)]
    tensors = [each.detach().half() for pair in pairs for each in fuse_conv_bn_eval(*pair).parameters()]
    return dict(zip(FeatureNetwork(blocks).state_dict(), tensors, strict=True))


if __name__ == "__main__":
    cifar = data.load("cifar10", "full")
    weights, table = train(cifar, BLOCKS, EPOCHS)
    about = {"command": "python data/networks/train_small.py", "blocks": BLOCKS}
    about |= {"trained_on": f"{cifar.title} ({cifar.origin})", **machine(torch.device("cpu"))}
    print(write_result("training/small-network", table, about))
    write_tensors(PATH, weights, about, 1)
