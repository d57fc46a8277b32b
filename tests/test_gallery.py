"""The gallery: which figures of executed lessons it takes, and the page that shows them."""

import base64
from pathlib import Path

import nbformat
import plotly.graph_objects as go

from l2l_kit import gallery, static
from l2l_kit.reproduce import find_lessons, read_executed


def picture(title=None):
    """What a static figure leaves in a notebook."""
    data = {"image/png": base64.b64encode(static.png(go.Figure(layout={"title": {"text": title}}))).decode()}
    if title:
        data["application/vnd.plotly.v1+json"] = {"data": [], "layout": {"title": {"text": title}}}
    return nbformat.v4.new_output("display_data", data)


def lesson(path, *cells):
    """An executed notebook: texts, and code cells with the titles of their figures, None for one without."""
    made = [
        nbformat.v4.new_markdown_cell(cell)
        if isinstance(cell, str)
        else nbformat.v4.new_code_cell("", outputs=[picture(title) for title in cell])
        for cell in cells
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def test_figures_of_the_paper_by_title_or_heading(tmp_path):
    first = lesson(
        tmp_path / "01_first.ipynb",
        "# 1 · First",
        ["Mean loss (figure 4, left)", "Something else", "Median loss (figure 4, left)"],
        "## Figure 6",
        [None],
    )
    second = lesson(tmp_path / "02_second.ipynb", "# 2 · Second", ["Nothing of the paper"])
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "figure-99.png").write_bytes(b"of an earlier gallery")
    (folder / "map.svg").write_text("not the gallery's")

    made = gallery.write_gallery([first, second], folder)

    assert [path.name for path in made] == ["figure-4-left.png", "figure-6.png"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "figure-4-left.png",
        "figure-6.png",
        "map.svg",
    ]
    mean, *_, sixth = read_executed(first).pictures
    assert made[0].read_bytes() == mean.png  # the first of its name, as it is where it is small
    assert made[1].read_bytes() == sixth.png
    page = (folder / "README.md").read_text()
    assert "## [1 · First](../../notebooks/01_first.ipynb)" in page
    assert "![Mean loss (figure 4, left)](figure-4-left.png)" in page
    assert "![Figure 6](figure-6.png)" in page
    assert "Second" not in page


def test_the_committed_gallery_is_that_of_the_committed_lessons(tmp_path):
    committed = Path(__file__).parents[1] / "docs" / "figures"
    made = gallery.write_gallery(find_lessons(), tmp_path)
    assert {path.name for path in made} == {path.name for path in committed.glob("figure-*.png")}
    assert (tmp_path / "README.md").read_text() == (committed / "README.md").read_text()
