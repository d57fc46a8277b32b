"""The site as a reader sees it who opens it from a folder, with the network off."""

import nbformat
import pytest

from l2l_kit.making import site

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
pytestmark = pytest.mark.timeout(400)

FIGURE = {"data": [{"type": "scatter", "x": [0, 1], "y": [1, 3]}], "layout": {"title": {"text": "A line"}}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg=="
CELL = """from base64 import b64decode
from l2l_kit import widgets
from l2l_kit.widgets.explorer import Picture

class Tiny(widgets.Playground):
    recorded = {"angle": (0, 45), "condition": (1, 20), "step": (0, 20, 40)}

    def draw(self, values):
        return super().draw(values)._replace(pictures=[Picture("A pixel", b64decode("PIXEL"))])

Tiny()""".replace("PIXEL", PIXEL)
# Notes when a key goes down, and when something in the figure changes after it.
WATCH = """() => {
    window.addEventListener('keydown', () => { window.pressed = performance.now(); window.redrawn = null; }, true);
    new MutationObserver(() => window.redrawn ??= performance.now()).observe(
        document.querySelector('.l2l-plot'), {subtree: true, attributes: true, childList: true});
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A site of one small lesson, with the parts that lessons have."""
    root, new = tmp_path_factory.mktemp("site"), nbformat.v4
    outputs = [
        {site.WIDGET: {}, "image/png": PIXEL, "text/plain": "a figure"},
        {site.PLOTLY: FIGURE, "image/jpeg": PIXEL, "text/plain": "a figure"},
        {"text/html": "<table><tr><th>a</th></tr><tr><td>1</td></tr></table>", "text/plain": "a 1"},
    ]
    sources = [CELL, "figure", "table"]
    cells = [
        new.new_code_cell(
            source, execution_count=1, outputs=[new.new_output("execute_result", data, execution_count=1)]
        )
        for source, data in zip(sources, outputs, strict=True)
    ]
    words = new.new_markdown_cell("# 0 · Small\n\nThe rule is $g = -\\alpha \\nabla f(\\theta)$.\n\n## A part")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new.new_notebook(cells=[words, *cells], metadata={"kernelspec": kernel})
    lesson = root / "00_small.ipynb"
    nbformat.write(notebook, lesson)
    site.write_site([lesson], root / "site", root / "records", repository="https://github.com/owner/name")
    return root / "site"


@pytest.fixture(params=["light", "dark"])
def reader(request, browser, folder):
    """Opens a page of the site, 390 pixels wide in the dark; there must be no request elsewhere and no error."""
    width = {"light": 1400, "dark": 390}[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, color_scheme=request.param, reduced_motion="reduce"
    )
    page, wrong = context.new_page(), []
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or wrong.append(asked.url))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def opened(name):
        page.goto(f"{folder.as_uri()}/{name}")
        return page

    yield opened
    context.close()
    assert wrong == []


def test_every_slider_moves_the_figure(reader, record_property):
    page, times = reader("notebooks/00_small.html"), []
    page.wait_for_selector(".l2l-plot .main-svg", timeout=60_000)
    page.evaluate(WATCH)
    sliders = page.get_by_role("slider").all()
    assert [each.get_attribute("aria-label").partition(":")[0] for each in sliders] == ["Turn", "Stretch", "Step"]
    for slider in sliders:
        before = page.locator(".l2l-plot").inner_html()
        page.wait_for_timeout(300)
        slider.focus()
        page.keyboard.press("ArrowLeft" if slider.input_value() == slider.get_attribute("max") else "ArrowRight")
        page.wait_for_function("window.redrawn", timeout=20_000)
        page.wait_for_timeout(300)
        assert page.locator(".l2l-plot").inner_html() != before
        times.append(round(page.evaluate("window.redrawn - window.pressed")))
    record_property("site", f"a recorded explorer follows a key after {times} ms")


def test_figures_and_pictures_are_alive_mathematics_is_set_and_axe_finds_no_serious_fault(reader):
    page = reader("notebooks/00_small.html")
    page.wait_for_selector(".l2l-figure .main-svg", timeout=60_000)
    page.wait_for_selector("mjx-container svg", timeout=60_000)
    page.wait_for_selector(".l2l-plot .main-svg", timeout=60_000)
    page.wait_for_function("document.querySelector('.l2l-recorded img')?.naturalWidth === 1")
    found = axe.Axe().run(page, options={"preload": False}).response["violations"]
    assert [each["id"] + each["nodes"][0]["html"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_search_finds_a_lesson(reader):
    page = reader("search.html?q=small")
    page.get_by_role("link", name="0 · Small").first.wait_for(timeout=60_000)


def test_links_lead_to_binder_and_colab_only_where_the_repository_is_named(folder):
    page = (folder / "notebooks" / "00_small.html").read_text()
    assert "https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/notebooks/00_small.ipynb" in page
    assert "https://colab.research.google.com/github/owner/name/blob/main/notebooks/00_small.ipynb" in page


def test_only_what_an_explorer_needs_is_run():
    cells = [
        "import os\nletters = [name for name in 'ab']",
        "raise ValueError",
        "def twice(text):\n    other = 2 * text\n    return other",
        "for name in 'c':\n    other = 1",
        "letters[0] = 'x'",
        "made = twice(letters[0])\nmade",
    ]
    space = {}
    exec(site.needed(cells), space)
    assert space["made"] == "xx"
    assert not {"os", "name", "other"} & space.keys()
