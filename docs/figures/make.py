"""Makes the gallery: the figures of the lessons that reproduce one of the paper's, as PNG files and a page of them.

``python docs/figures/make.py``, after the lessons were executed in place.

A figure belongs to it if its title, or the heading above it, names a figure of the paper, such as "(figure 4, left)".
"""

import re
from collections.abc import Sequence
from pathlib import Path

from l2l_kit.making.lessons import find_lessons, read_executed
from l2l_kit.making.report import smaller
from l2l_kit.storage import write_atomically

FIGURE = re.compile(r"\bfigure (\d+)(?:, (left|centre|right))?", re.IGNORECASE)
PICTURE_BYTES = 100_000


def write_gallery(lessons: Sequence[Path], folder: Path) -> list[Path]:
    """Write the pictures of executed notebooks and ``README.md``, which shows them, into a folder.

    Earlier pictures in the folder are deleted. Returns the new ones, in the order of the lessons.

    Raises:
        ValueError: if the lessons show no figure of the paper, since they were not executed.
    """
    pictures: dict[str, bytes] = {}
    page = "# Figures of the paper, as the lessons show them\n\nMade from the notebooks by `make gallery`.\n"
    for lesson in map(read_executed, lessons):
        heading = f"\n## [{lesson.title}](../../notebooks/{lesson.path.name})\n"
        for caption, png in lesson.pictures:
            found = FIGURE.search(caption)
            name = "-".join(["figure", *filter(None, found.groups())]) + ".png" if found else ""
            if name and name not in pictures:
                pictures[name] = smaller(png, PICTURE_BYTES)
                page += f"{heading}\n![{caption}]({name})\n\n*{caption}*\n"
                heading = ""
    if not pictures:
        raise ValueError("these lessons show no figure of the paper: execute them first.")
    for earlier in folder.glob("figure-*.png"):
        earlier.unlink()
    for name, png in pictures.items():
        write_atomically(folder / name, png)
    write_atomically(folder / "README.md", page.encode())
    return [folder / name for name in pictures]


if __name__ == "__main__":
    for path in write_gallery(find_lessons(), Path(__file__).parent):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
