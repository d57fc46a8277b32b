"""Features of pictures: what convolutional networks that were trained to recognise things make of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from l2l_kit.errors import check_names
from l2l_kit.storage import load_weights

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512,))
"""Channels of the convolutions in VGG-16's blocks, up to the deepest one that neural art looks at."""
SMALL = ((16, 16), (32, 32), (64, 64), (128,))  # the same of the kit's own small network


class FeatureNetwork(nn.Module):
    """The convolutions of a VGG network: blocks of 3×3 convolutions and ReLUs, with max pooling between them.

    `blocks` has the channels of the convolutions in each block, and `scale` is a factor on the input. Layers are called
    as in Gatys et al., "conv1_1" being the first convolution of the first block, and give what comes out of their ReLU;
    parameters are called as in torchvision ("features.0.weight"). Weights are constants.
    """

    def __init__(self, blocks: tuple[tuple[int, ...], ...], scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self._names = [f"conv{b}_{n}" for b, widths in enumerate(blocks, 1) for n in range(1, len(widths) + 1)]
        layers: list[nn.Module] = []
        channels = 3
        for widths in blocks:
            layers += [nn.MaxPool2d(2)] if layers else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.requires_grad_(False)

    @classmethod
    def of(cls, blocks: tuple[tuple[int, ...], ...], scale: float, weights: Mapping[str, Tensor]) -> FeatureNetwork:
        """The network with these weights, which may be those of a deeper one."""
        with torch.device("meta"):  # no initial weights are drawn
            network = cls(blocks, scale)
        network.to_empty(device="cpu")
        load_weights(network, {name: weights[name] for name in network.state_dict()}, "feature network")
        return network

    def forward(self, pixels: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Features ``(n, channels, height, width)`` of pictures ``(n, 3, height, width)`` in the layers so named.

        An UnknownNameError for a layer that the network does not have.
        """
        check_names("layer", layers, self._names)
        found: dict[str, Tensor] = {}
        signal, names = self.scale * pixels, iter(self._names)
        for layer in self.features:
            signal = layer(signal)
            if isinstance(layer, nn.ReLU) and (name := next(names)) in layers:
                found[name] = signal
            if len(found) == len(layers):
                break
        return found
