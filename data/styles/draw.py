"""Draws the styles that the kit ships, as no painting comes by pip: ``python data/styles/draw.py`` writes the files."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from l2l_kit.randomness import generator

SIDE = 256


def _grid() -> tuple[Tensor, Tensor]:
    """Row and column of every pixel, each in 0 … 1 and of shape ``(SIDE, SIDE)``."""
    line = (torch.arange(SIDE) + 0.5) / SIDE
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return rows, columns


def _coloured(values: Tensor, colours: list[tuple[int, int, int]]) -> Tensor:
    """Values 0 … 1 as bytes ``(3, SIDE, SIDE)``, along a ramp of colours."""
    ramp = torch.tensor(colours, dtype=torch.float32).T
    place = values.clamp(0, 1) * (ramp.shape[1] - 1)
    below = place.floor().long().clamp(max=ramp.shape[1] - 2)
    share = place - below
    return (ramp[:, below] * (1 - share) + ramp[:, below + 1] * share).round().to(torch.uint8)


def swirls() -> Tensor:
    """Brush strokes that follow whirls, in blue and yellow: noise, averaged along the lines of a flow."""
    draws = generator(0, "style", "swirls")
    rows, columns = _grid()
    field = torch.stack([torch.full_like(rows, 0.5), torch.zeros_like(rows)], dim=-1)
    glow = torch.zeros_like(rows)
    for _ in range(9):
        row, column, turn, size = torch.rand(4, generator=draws).tolist()
        down, right = rows - row, columns - column
        near = torch.exp(-(down**2 + right**2) / (0.05 + 0.1 * size) ** 2)
        whirl = torch.stack([-down, right], dim=-1)
        field += math.copysign(12, turn - 0.5) * near[..., None] * whirl / (0.1 + size / 5)
        glow += near**2 * (size > 0.4)
    step = field / field.norm(dim=-1, keepdim=True).clamp(min=1e-6) * (2 / SIDE)
    flow = step.permute(2, 0, 1)[None]
    noise = torch.rand(1, 1, SIDE // 2, SIDE // 2, generator=draws)
    strokes = torch.zeros_like(rows)
    for way in (1, -1):
        place = torch.stack([columns, rows], dim=-1) * 2 - 1
        for _ in range(12):
            strokes += functional.grid_sample(noise, place[None], padding_mode="reflection", align_corners=False)[0, 0]
            here = functional.grid_sample(flow, place[None], padding_mode="border", align_corners=False)
            place = place + way * here[0].permute(1, 2, 0)
    strokes = (strokes - strokes.mean()) / strokes.std()
    inks = [(12, 20, 60), (30, 62, 140), (70, 120, 190), (160, 190, 200), (240, 220, 120), (250, 190, 40)]
    return _coloured(0.33 + 0.17 * strokes + 0.5 * glow, inks)


def mosaic() -> Tensor:
    """Tiles of stained glass with leads between them: every pixel has the colour of the nearest of many points."""
    draws = generator(0, "style", "mosaic")
    points = torch.rand(180, 2, generator=draws)
    inks = torch.tensor([(200, 40, 45), (240, 170, 40), (30, 90, 160), (30, 130, 90), (235, 225, 200), (110, 50, 120)])
    tiles = inks[torch.randint(len(inks), (len(points),), generator=draws)]
    distances, nearest = torch.cdist(torch.stack(_grid(), dim=-1).flatten(0, 1), points).topk(2, largest=False)
    lead = (distances[:, 1] - distances[:, 0] < 0.012)[:, None]
    shade = 1 - 2 * distances[:, :1]
    pixels = torch.where(lead, torch.tensor([20.0, 20.0, 25.0]), tiles[nearest[:, 0]] * shade)
    return pixels.T.reshape(3, SIDE, SIDE).round().clamp(0, 255).to(torch.uint8)


def woodcut() -> Tensor:
    """Printed lines that swell and bend, in ink, red and cream: stripes of a phase that is itself a sum of waves."""
    draws = generator(0, "style", "woodcut")
    rows, columns = _grid()
    bend = torch.zeros_like(rows)
    for number in range(1, 6):
        angle, shift = (2 * math.pi * torch.rand(2, generator=draws)).tolist()
        bend += torch.sin(2 * math.pi * number * (math.cos(angle) * rows + math.sin(angle) * columns) + shift) / number
    stripes = torch.sigmoid(12 * (torch.sin(2 * math.pi * (14 * rows + 1.6 * bend)) + 0.5 * bend))
    inks = [(24, 28, 48), (238, 226, 196), (238, 226, 196), (196, 60, 44)]
    return _coloured((stripes + 0.6 * (bend > 0.9)) / 1.6, inks)


STYLES: dict[str, Callable[[], Tensor]] = {"swirls": swirls, "mosaic": mosaic, "woodcut": woodcut}

if __name__ == "__main__":
    for name, style in STYLES.items():
        Image.fromarray(style().permute(1, 2, 0).contiguous().numpy()).save(Path(__file__).with_name(f"{name}.png"))
