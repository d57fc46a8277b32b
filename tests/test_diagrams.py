"""The diagrams of the lessons: the committed files are what the code draws, and lessons find those that they show."""

import json
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks" / "diagrams"
DIAGRAMS = runpy.run_path(str(FOLDER / "draw.py"))["DIAGRAMS"]
SVG = "{http://www.w3.org/2000/svg}"


def test_every_diagram_is_drawn_by_the_code():
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(DIAGRAMS)


@pytest.mark.parametrize("name", DIAGRAMS)
def test_the_committed_diagram_is_what_the_code_draws(name):
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == DIAGRAMS[name](), "run `make diagrams`"


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_stands_alone_on_any_page(name):
    """It has its own background, words for those who cannot see it, and nothing that a page would have to load."""
    drawing = ET.fromstring(DIAGRAMS[name]())
    background = drawing.find(f"{SVG}rect")
    assert float(background.get("width")) == float(drawing.get("width")) - 2
    assert background.get("fill") != "none"
    assert all(len(drawing.find(SVG + kind).text) > 20 for kind in ("title", "desc"))
    assert not any("href" in attribute for element in drawing.iter() for attribute in element.attrib)


def test_lessons_show_diagrams_that_exist_and_say_what_is_on_them():
    shown = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for words, target in re.findall(r"!\[(.*?)\]\((.*?)\)", "".join(cell["source"])):
                assert len(words) > 20, f"{path.name}: {target} has no text for those who cannot see it"
                assert (path.parent / target).is_file(), f"{path.name}: {target}"
                shown.add(Path(target).stem)
    assert shown == set(DIAGRAMS)
