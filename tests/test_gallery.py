"""The gallery: which figures of executed lessons it takes, and the page that shows them."""

import base64
import io
import runpy
from pathlib import Path

import nbformat
import PIL.Image
import pytest

from l2l_kit.making.lessons import find_lessons, read_executed

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
write_gallery = runpy.run_path(str(FOLDER / "make.py"))["write_gallery"]


def lesson(path, *cells):
    """An executed notebook: texts, and code cells with the titles of their figures, None for one without."""
    made = [nbformat.v4.new_markdown_cell(each) if isinstance(each, str) else figures(*each) for each in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def figures(*titles):
    cell = nbformat.v4.new_code_cell("")
    for number, title in enumerate(titles):
        buffer = io.BytesIO()
        kind = "jpeg" if title else "png"  # plotly's figures come with a JPEG
        PIL.Image.new("RGB", (10 + number, 10)).save(buffer, kind)
        data = {f"image/{kind}": base64.b64encode(buffer.getvalue()).decode()}
        if title:
            data["application/vnd.plotly.v1+json"] = {"data": [], "layout": {"title": {"text": title}}}
        cell.outputs.append(nbformat.v4.new_output("display_data", data))
    return cell


def test_figures_of_the_paper_by_title_or_heading(tmp_path):
    titles = ["Mean loss (figure 4, left)", "Something else", "Median loss (figure 4, left)"]
    first = lesson(tmp_path / "01_first.ipynb", "# 1 · First", titles, "## Figure 6", [None])
    second = lesson(tmp_path / "02_second.ipynb", "# 2 · Second", ["Nothing of the paper"])
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "figure-99.png").write_bytes(b"of an earlier gallery")
    (folder / "map.svg").write_text("not the gallery's")
    made = write_gallery([first, second], folder)
    assert [path.name for path in made] == ["figure-4-left.png", "figure-6.png"]
    assert {path.name for path in folder.iterdir()} == {"README.md", "map.svg", *(path.name for path in made)}
    shown = [PIL.Image.open(path) for path in made]
    assert [(picture.format, picture.size) for picture in shown] == [("PNG", (10, 10))] * 2  # the first of its name
    assert made[1].read_bytes() == read_executed(first).pictures[-1].png  # as it is, where it is small
    page = (folder / "README.md").read_text()
    assert "## [1 · First](../../notebooks/01_first.ipynb)" in page
    assert "![Mean loss (figure 4, left)](figure-4-left.png)" in page
    assert "![Figure 6](figure-6.png)" in page
    assert "Second" not in page
    with pytest.raises(ValueError, match="execute them first"):
        write_gallery([second], folder)


def test_the_committed_gallery_is_that_of_the_committed_lessons(tmp_path):
    made = write_gallery(find_lessons(), tmp_path)
    assert {path.name for path in made} == {path.name for path in FOLDER.glob("figure-*.png")}
    assert (tmp_path / "README.md").read_text() == (FOLDER / "README.md").read_text()
