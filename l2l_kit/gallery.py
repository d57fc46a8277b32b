"""The gallery: those figures of the lessons that reproduce one of the paper's, as PNG files and a page that shows them.

A figure belongs to it if its title, or the heading above it, names a figure of the paper, such as "(figure 4, left)".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from l2l_kit.report import smaller
from l2l_kit.reproduce import read_executed
from l2l_kit.storage import write_atomically

FIGURE = re.compile(r"\bfigure (\d+)(?:, (left|centre|right))?", re.IGNORECASE)
PICTURE_BYTES = 100_000


def write_gallery(lessons: Sequence[Path], folder: Path) -> list[Path]:
    """Write the pictures of executed notebooks and ``README.md``, which shows them, into a folder.

    Args:
        lessons: executed notebooks, in reading order.
        folder: it is cleared of earlier pictures.

    Returns:
        The pictures, in the order of the page.

    Raises:
        ValueError: if the lessons show no figure of the paper, since they were not executed.
    """
    pictures: dict[str, bytes] = {}
    page = ["# Figures of the paper, as the lessons show them", "", "Made from the notebooks by `l2l gallery`.", ""]
    for path in lessons:
        lesson = read_executed(path)
        titled = False
        for picture in lesson.pictures:
            found = FIGURE.search(picture.caption)
            name = found and "-".join(["figure", *(part for part in found.groups() if part)]) + ".png"
            if not name or name in pictures:
                continue
            if not titled:
                page += [f"## [{lesson.title}](../../notebooks/{path.name})", ""]
                titled = True
            pictures[name] = smaller(picture.png, PICTURE_BYTES)
            page += [f"![{picture.caption}]({name})", "", f"*{picture.caption}*", ""]
    if not pictures:
        raise ValueError("these lessons show no figure of the paper: execute them first.")
    for earlier in folder.glob("figure-*.png"):
        earlier.unlink()
    for name, png in pictures.items():
        write_atomically(folder / name, png)
    write_atomically(folder / "README.md", "\n".join(page).encode())
    return [folder / name for name in pictures]
