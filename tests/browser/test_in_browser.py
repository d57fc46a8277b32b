"""What a reader sees and does: the explorers and the live figures in a real page."""

import base64
import io
import re
import statistics

import nbformat
import PIL.Image
import plotly.graph_objects as go
import pytest

from l2l_kit import plots, static

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed").Axe
pytestmark = pytest.mark.timeout(400)

IMPORT = "import l2l_kit as l2l"
LINES = ".js-plotly-plot .scatterlayer path.js-line"
TITLE = "document.querySelector('.js-plotly-plot .gtitle').textContent"
# On a busy machine Lab may miss the kernel's answer to a reloaded page: a reader reloads again, and so do we.
RELOADS = 3
# Notes when a key goes down and when the first line of the figure changes after it.
WATCH = """() => {
    window.redraws = 0;
    window.addEventListener('keydown', () => { window.pressed = performance.now(); window.redrawn = null; }, true);
    new MutationObserver(() => { window.redraws++; window.redrawn ??= performance.now(); }).observe(
        document.querySelector('.js-plotly-plot'), {subtree: true, attributes: true, attributeFilter: ['d']});
}"""


def lines(page):
    return page.eval_on_selector_all(LINES, "paths => paths.map(path => path.getAttribute('d'))")


def slider(page, name):
    return page.get_by_role("slider", name=name).first


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def says(page, text, seconds=30):
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=1000 * seconds)


def finished(page):
    """Until the curves are all there."""
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.wait_for_timeout(300)
    page.wait_for_function("document.querySelector('.l2l-state').innerText.includes('is best')", timeout=90_000)
    page.wait_for_timeout(300)


def press(page, key):
    """Milliseconds from a key press to the redraw that follows."""
    before = page.evaluate("window.redraws")
    page.keyboard.press(key)
    page.wait_for_function(f"window.redraws > {before} && window.redrawn !== null", timeout=20_000, polling=5)
    latency = page.evaluate("window.redrawn - window.pressed")
    page.wait_for_timeout(250)
    return latency


def record(what, latencies, record_property):
    """Times depend on the machine, so they are told and not asserted."""
    text = f"{what}: median {statistics.median(latencies):.0f} ms of {[round(each) for each in latencies]}"
    record_property(what, text)  # tests/conftest.py tells it at the end


def faults(page):
    """What axe-core finds in the explorers that keeps people from using them."""
    found = Axe().run(page, ".l2l").response["violations"]
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    return [(each["help"], node["html"]) for each in grave for node in each["nodes"]]


def check_that_a_keyboard_will_do(page):
    """All that can be moved can be focused, and has a name of its own in its explorer."""
    for explorer in page.locator(".l2l").all():
        names = explorer.locator(".l2l-controls :is(input, select, button)").evaluate_all(
            """all => all.map(each => [each.tabIndex, each.getAttribute('aria-label') || each.textContent
                || each.closest('label')?.textContent || ''])""",
        )
        assert all(index == 0 and name.strip() for index, name in names)
        assert len({name for _, name in names}) == len(names)


def touch(page, *points):
    """Put a finger on the first point, and draw it over the others."""
    devtools = page.context.new_cdp_session(page)
    for number, (x, y) in enumerate(points):
        kind = "touchMove" if number else "touchStart"
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def along(locator, *shares):
    """Points in the middle of an element, at these shares of its width."""
    box = locator.bounding_box()
    return [(box["x"] + share * box["width"], box["y"] + box["height"] / 2) for share in shares]


def set_theme(page, theme):
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    light = str(theme.endswith("Light")).lower()
    page.wait_for_function(f"document.body.dataset.jpThemeLight === '{light}'", timeout=20_000)
    page.wait_for_timeout(1000)


def show_file_browser(page, wanted):
    if page.locator(".jp-FileBrowser").is_visible() != wanted:
        page.evaluate("window.jupyterapp.commands.execute('filebrowser:toggle-main')")


@pytest.fixture
def explorer_page(open_notebook):
    page = open_notebook("explorer.ipynb", IMPORT, "explorer = l2l.widgets.QuadraticsExplorer()\nexplorer")
    finished(page)
    return page


def test_a_slider_moves_the_curve(explorer_page, tmp_path, record_property):
    page = explorer_page
    before = lines(page)
    assert len(before) == 5
    slider(page, "Learning rate of Adam").focus()
    page.evaluate(WATCH)
    record("lr slider, curve computed", [press(page, "ArrowLeft") for _ in range(8)], record_property)
    after = lines(page)
    assert [a == b for a, b in zip(before, after[:5], strict=True)] == [True, True, True, True, False]
    assert len(after) == 6, "the curve before the move is there, too"
    record("lr slider, curves cached", [press(page, "ArrowRight") for _ in range(7)], record_property)
    slider(page, "Dimension").focus()
    record("dimension slider, all curves computed", [press(page, "ArrowLeft") for _ in range(4)], record_property)
    finished(page)
    assert "were tuned for 100 steps in 10 dimensions" in page.locator(".l2l-state").inner_text()
    assert button(page, "Tune for this setting").is_visible()

    box = slider(page, "Dimension").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.evaluate("window.redraws = 0; window.began = performance.now()")
    for k in range(40):
        page.mouse.move(box["x"] + 10 + k * (box["width"] - 20) / 40, box["y"] + box["height"] / 2)
        page.wait_for_timeout(25)
    redraws, seconds = page.evaluate("[window.redraws, (performance.now() - window.began) / 1000]")
    page.mouse.up()
    record_property("drag", f"fast drag, all curves computed: {redraws / seconds:.1f} redraws a second")
    assert redraws > 1
    page.screenshot(path=tmp_path / "explorer_moved.png")


def test_what_a_reader_can_do(explorer_page, tmp_path):
    page = explorer_page
    page.get_by_role("checkbox", name="SGD").click()
    page.wait_for_function(f"document.querySelectorAll('{LINES}').length === 4")
    page.get_by_role("radio", name="median").click()
    page.wait_for_function(f"{TITLE}.startsWith('Median')")
    button(page, "Pin").click()
    seed = page.get_by_role("spinbutton", name="Seed")
    for wrong in ("3.7", "-1", ""):  # none of them is 37
        seed.fill(wrong)
        seed.press("Tab")
        assert seed.evaluate("input => !input.checkValidity()")
    seed.fill("37")
    seed.press("Tab")
    page.wait_for_function(f"document.querySelectorAll('{LINES}').length >= 8")  # now, and the pinned ones
    page.get_by_text("As code").click()
    page.wait_for_function("document.querySelector('.l2l-code pre').innerText.includes('seed=37')")
    assert "seed=3," not in page.locator(".l2l-code pre").inner_text()
    button(page, "Unpin").click()
    finished(page)
    check_that_a_keyboard_will_do(page)
    assert not faults(page)
    page.locator(".l2l-plot").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".js-plotly-plot .hoverlayer .legend, .js-plotly-plot .hoverlayer .hovertext", timeout=5000)

    set_theme(page, "JupyterLab Dark")
    page.screenshot(path=tmp_path / "dark.png")
    svg = page.locator(".js-plotly-plot .main-svg").first
    assert svg.evaluate("svg => getComputedStyle(svg).backgroundColor") == "rgba(0, 0, 0, 0)"
    title = page.locator(".js-plotly-plot .gtitle").first
    red, *_ = title.evaluate("text => getComputedStyle(text).fill.match(/[0-9]+/g).map(Number)")
    assert red > 200, "titles are as bright as the page's text"
    assert not faults(page)
    set_theme(page, "JupyterLab Light")

    before = lines(page)
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(1000)
    for attempt in range(RELOADS):
        page.goto(page.url.replace("&reset", "").replace("?reset", ""), wait_until="domcontentloaded")
        try:
            page.wait_for_selector(LINES, timeout=40_000, state="attached")
            break
        except playwright.TimeoutError:
            if attempt == RELOADS - 1:
                raise
    page.wait_for_function(f"document.querySelectorAll('{LINES}').length === {len(before)}", timeout=20_000)
    assert page.get_by_role("spinbutton", name="Seed").input_value() == "37"
    assert lines(page) == before
    page.screenshot(path=tmp_path / "reloaded.png")


LONG = "print('\\n'.join('a lesson goes on' for _ in range(60)))"  # so that the page has a scroll bar
BUSY = "import ctypes, time\ntime.sleep(1)\nctypes.PyDLL(None).sleep(8)"  # in the end no thread of Python can answer
BREAK = """
works, explorer._view = explorer._view, lambda *_: 1 / 0
explorer.move(dimension=5)
explorer.wait()
explorer._view = works
"""


def test_it_says_what_state_it_is_in(open_notebook, tmp_path):
    page = open_notebook("states.ipynb", IMPORT, "explorer = l2l.widgets.QuadraticsExplorer()\nexplorer", BREAK)
    page.wait_for_selector(".l2l [role=alert]", timeout=30_000)
    assert page.locator(".l2l [role=alert]").inner_text() == "ZeroDivisionError: division by zero"
    slider(page, "Dimension").focus()
    page.keyboard.press("ArrowRight")
    finished(page)
    assert page.locator(".l2l [role=alert]").count() == 0

    page.evaluate(
        "code => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code}); }", BUSY
    )
    before = lines(page)
    slider(page, "Learning rate of Adam").focus()
    page.wait_for_timeout(2000)
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    says(page, "Waits for cell [4]")
    page.screenshot(path=tmp_path / "busy.png")
    page.wait_for_function("!document.body.innerText.includes('Waits for')", timeout=30_000)
    finished(page)
    assert lines(page)[4] != before[4]
    assert page.locator(".l2l-state").inner_text().startswith("After 100 steps")

    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    says(page, "is gone. Run this cell again.")
    assert slider(page, "Dimension").is_disabled()
    assert button(page, "Reset").is_disabled()
    icons = "all => all.filter(each => getComputedStyle(each, '::before').display !== 'none').length"
    assert page.eval_on_selector_all(".jupyter-widgets-disconnected", icons) == 0, "Lab shows broken chains"
    page.screenshot(path=tmp_path / "gone.png")


def test_a_notebook_that_was_not_run_shows_the_picture(lab, page, tmp_path):
    """As it comes from GitHub: with outputs, but with no kernel behind them."""
    picture = base64.b64encode(static.png(go.Figure())).decode()
    view = {"model_id": "0" * 32, "version_major": 2, "version_minor": 0}
    data = {"application/vnd.jupyter.widget-view+json": view, "image/png": picture, "text/plain": "Interactive"}
    address = lab.notebook("picture.ipynb", "1", outputs=[nbformat.v4.new_output("display_data", data)])
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector(".jp-OutputArea-output img", timeout=90_000)
    page.screenshot(path=tmp_path / "picture.png")


def test_a_figure_is_as_wide_as_the_page_and_its_legend_has_room(lab, page, tmp_path):
    curves = {f"optimizer {number}": ([0, 1], [number, 1]) for number in range(9)}
    data = plots.graph(curves, x="step", y="loss", title="Which of nine optimizers is it?")._repr_mimebundle_()
    address = lab.notebook("figure.ipynb", "1", outputs=[nbformat.v4.new_output("display_data", data)])
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("g.legend", timeout=90_000)
    show_file_browser(page, True)
    for width in (1400, 900):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(1500)
        page.screenshot(path=tmp_path / f"figure_{width}.png")
        parts = ".jp-OutputArea-output", ".js-plotly-plot .main-svg", ".gtitle", "g.legend", ".nsewdrag"
        output, figure, title, legend, axes = (page.locator(part).first.bounding_box() for part in parts)
        assert output["width"] - 20 <= figure["width"] <= output["width"]
        assert legend["x"] + legend["width"] <= output["x"] + output["width"]
        assert title["y"] + title["height"] <= legend["y"]
        assert legend["y"] + legend["height"] <= axes["y"] + 1


def test_training_shows_progress_and_cancels(open_notebook, tmp_path, record_property):
    page = open_notebook("trainer.ipynb", IMPORT, "l2l.widgets.QuadraticsExplorer()", "l2l.widgets.Trainer()")
    finished(page)
    trainer = page.locator(".l2l").nth(1)
    count = "document.querySelectorAll('.l2l')[1].querySelectorAll('.scatterlayer path.js-line').length"
    page.wait_for_function(f"{count} === 4")
    button(page, "Train").click()
    page.wait_for_function("document.body.innerText.match(/Epoch 2 of 25.* s left/)", timeout=120_000)
    page.wait_for_function(f"{count} === 5")
    assert slider(page, "Meta rate").is_disabled()
    trainer.screenshot(path=tmp_path / "training.png")
    page.evaluate(WATCH)
    slider(page, "Learning rate of Adam").focus()
    record("lr slider while training", [press(page, "ArrowLeft") for _ in range(4)], record_property)
    button(page, "Cancel").click()
    says(page, "Cancelled. The best weights")
    button(page, "Train").click(trial=True)  # waits until it is enabled
    button(page, "Train").hover()
    behind = button(page, "Train").evaluate("button => getComputedStyle(button).backgroundColor")
    assert max(map(int, re.findall("[0-9]+", behind)[:3])) < 160, "white letters can be read under the pointer, too"
    assert not faults(page)
    check_that_a_keyboard_will_do(page)
    learned = page.get_by_role("combobox", name="Weights")
    learned.select_option(index=1)
    finished(page)
    page.screenshot(path=tmp_path / "trained_here.png")


# What the MNIST widgets need, made here, so that these tests need no recorded ones: the curves' shapes don't matter.
STAND_INS = """
from pathlib import Path
import pandas as pd
import l2l_kit as l2l
from l2l_kit.evaluation import tuning
l2l.zoo.PRETRAINED = Path("stand_ins").resolve()
for name in ("mnist", "mnist-log-sign-unroll20"):
    l2l.save(l2l.LSTMRule(preprocessing="log-sign", output_scale=0.1), l2l.zoo.PRETRAINED / name)
rates = {"sgd": 3.2, "nag": 1.0, "rmsprop": 0.01, "adam": 0.032}
table = pd.DataFrame([{"baseline": name, "step": 100, "lr": lr, "mean": 1, "median": 1} for name, lr in rates.items()])
tuning.read_result = lambda name: table
"""
NETWORKS = "explorer = l2l.widgets.NetworkExplorer(networks=1, steps=50, digits='embedded')\nexplorer"
# From here on the computation takes its time, so that the page can be quicker.
SLOW = """
import time
from l2l_kit.widgets import comparison
def slow(*arguments, trajectory=comparison.trajectory):
    for point in trajectory(*arguments):
        time.sleep(0.05)
        yield point
comparison.trajectory = slow
"""


def test_the_curves_of_networks_follow(open_notebook, tmp_path, record_property):
    page = open_notebook("networks.ipynb", STAND_INS, NETWORKS, SLOW)
    finished(page)
    before = lines(page)
    page.evaluate(WATCH)
    slider(page, "Units").focus()
    record("networks, units slider, first of all curves", [press(page, "ArrowLeft")], record_property)
    page.wait_for_function("document.body.innerText.match(/Computing: step [1-9]/)", timeout=60_000)
    page.screenshot(path=tmp_path / "networks_computing.png")
    title, legend = (page.locator(part).first.bounding_box() for part in (".l2l .gtitle", ".l2l g.legend"))
    assert title["y"] + title["height"] <= legend["y"] + 1, "a title of two lines makes room for itself"
    back = press(page, "ArrowRight")
    record("networks, back to known curves while others are computed", [back], record_property)
    finished(page)
    assert lines(page)[:5] == before
    page.get_by_role("checkbox", name="the main one").click()
    finished(page)
    slider(page, "Unroll").press("ArrowRight")
    page.wait_for_selector(".l2l [role=alert]", timeout=20_000)
    assert "unknown pretrained optimizer 'mnist-log-sign-unroll50'" in page.locator(".l2l [role=alert]").inner_text()
    page.screenshot(path=tmp_path / "networks_error.png")


# A small network, small pictures, and an optimizer and learning rates that are made here.
PAINTER = """
import tempfile
from pathlib import Path
import pandas as pd
import l2l_kit as l2l
from l2l_kit.widgets import painter

l2l.zoo.PRETRAINED = Path(tempfile.mkdtemp())
rule = l2l.LSTMRule(hidden_size=4, preprocessing="log-sign", output_scale=0.1)
l2l.save(rule, l2l.zoo.PRETRAINED / "neural-art-small")
rates = {"SGD": 20.0, "NAG": 5.0, "RMSprop": 0.02, "Adam": 0.2}
painter.read_result = lambda name: pd.DataFrame(
    [{"protocol": "one rate", "step": 128, "optimizer": name, "lr": lr} for name, lr in rates.items()]
)
painter.SWEEPS = {32: "sweeps/neural-art"}
l2l.widgets.Painter(content="cat", style="mosaic", size=32, steps=16, network="small")
"""


def photograph(side):
    """Of noise, which no format makes small."""
    content = io.BytesIO()
    PIL.Image.effect_noise((side, side), 80).convert("RGB").save(content, "PNG")
    return content.getvalue()


def test_pictures_are_painted_and_own_ones_taken(open_notebook, tmp_path):
    page = open_notebook("painter.ipynb", PAINTER)
    page.wait_for_selector(".l2l-pictures img", timeout=30_000)
    assert page.locator(".l2l-pictures img").count() == 2
    button(page, "Paint").click()
    says(page, "After 16 steps, from the lowest loss", 90)
    assert len(lines(page)) == 4
    assert page.locator(".l2l-pictures img").count() == 6
    with page.expect_download() as download:
        page.get_by_role("link", name="Save Adam").click()
    assert PIL.Image.open(download.value.path()).size == (32, 32)
    page.screenshot(path=tmp_path / "painter.png")

    slider(page, "Steps").press("End")
    button(page, "Paint").click()
    page.wait_for_function("document.body.innerText.match(/Painting: step [1-9]/)", timeout=60_000)
    button(page, "Pause").click()
    says(page, "Paused at step")
    button(page, "Cancel").click()
    says(page, "Cancelled at step")
    assert page.get_by_text("Jupyter news").count() == 0

    large = photograph(2600)
    assert len(large) > 12_000_000, "more than the server takes in one message"
    for name, picture, answer in (
        ("notes.png", b"no picture", "notes.png: not a picture that can be read"),
        ("mine.png", static.png(go.Figure()), "mine.png is the content now."),
        ("huge.png", b"0" * 51_000_000, "huge.png: 51 MB are too many."),
        ("large.png", large, "large.png is the content now."),
    ):
        (tmp_path / name).write_bytes(picture)
        page.get_by_label("Own content…").set_input_files(tmp_path / name)
        says(page, answer, 60)
        assert page.locator(".l2l [role=alert]").count() == ("now" not in answer)
    assert page.get_by_role("combobox", name="Content").input_value() == "large.png"
    assert page.get_by_alt_text("Content large.png").is_visible()
    page.screenshot(path=tmp_path / "painter_own.png")


PLAIN = "l2l.plots.graph({'a': ([1, 2], [3, 4])}, x='x', y='y', title='Live')"
SCORE = """races => [...document.querySelectorAll('.gtitle')].some(title => title.textContent.startsWith('Races won')
    && title.textContent.match(/[0-9]+/g).map(Number).reduce((a, b) => a + b) === races)"""


def test_the_race_and_the_playground(open_notebook, tmp_path, record_property):
    cells = [IMPORT, PLAIN, "l2l.widgets.Race()", "l2l.widgets.Playground(start=(-2.0, 1.0), angle=0)"]
    page = open_notebook("played.ipynb", *cells)
    playwright.expect(page.locator(".js-plotly-plot").first).to_contain_text("Live")  # also a plain figure
    page.wait_for_function(SCORE, arg=1, timeout=60_000)  # the first race begins by itself
    button(page, "Another draw").click()
    page.wait_for_function(SCORE, arg=2, timeout=60_000)
    page.screenshot(path=tmp_path / "race.png")
    check_that_a_keyboard_will_do(page)
    assert not faults(page)

    playground = page.locator(".l2l").nth(1)
    playground.get_by_text("As code").click()
    code, plot = playground.locator(".l2l-code pre"), playground.locator(".l2l-plot")
    plot.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = plot.locator(".nsewdrag").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=2), "a circle is a circle"
    at = {where: box["x"] + box["width"] * (where + 3) / 6 for where in (-2.0, 0.0, 2.0)}
    paths = "[...document.querySelectorAll('.js-plotly-plot')].at(-1).querySelectorAll('.scatterlayer path.js-line')"
    ends = f"[...{paths}].slice(-5).map(path => path.getAttribute('d'))"
    before = page.evaluate(ends)
    page.mouse.move(at[-2.0], box["y"] + box["height"] / 3)
    page.mouse.down()
    page.mouse.move(at[0.0], box["y"] + box["height"] / 2, steps=5)
    page.mouse.move(at[2.0], box["y"] + box["height"] / 6, steps=5)
    page.mouse.up()
    playwright.expect(code).to_contain_text(re.compile(r"tensor\(\[\[(1\.9\d?|2\.?0?\d?), (1\.9\d?|2\.?0?\d?)\]\]"))
    assert len({*before, *page.evaluate(ends)}) == 10, "every path begins elsewhere"
    playground.get_by_role("button", name="Reset").click()
    playwright.expect(code).to_contain_text("theta = torch.tensor([[-2.0, 1.0]])")
    plot.focus()
    page.evaluate(WATCH.replace("document.querySelector('.js-plotly-plot')", f"{paths}[0].closest('.js-plotly-plot')"))
    record("playground, start moved by a key", [press(page, "ArrowUp") for _ in range(5)], record_property)
    playwright.expect(code).to_contain_text("theta = torch.tensor([[-2, 1.5]])")
    touch(page, (at[-2.0], box["y"] + box["height"] / 4), (at[0.0], box["y"] + box["height"] / 2))
    playwright.expect(code).to_contain_text(re.compile(r"tensor\(\[\[-?0(\.0\d?)?, -?0(\.0\d?)?\]\]"))
    page.screenshot(path=tmp_path / "playground.png")


INSIDE = """
import torch
import l2l_kit as l2l
draws = torch.Generator().manual_seed(0)
weights = 0.001 * torch.randn(101, 15910, generator=draws)
l2l.widgets.PreprocessingExplorer(weights)
"""
PROPOSALS = """
rules = {"LSTM": l2l.LSTMRule(preprocessing="log-sign", output_scale=0.1), "Adam": l2l.baseline("adam", 0.03)}
l2l.widgets.ProposalExplorer(rules, {"first": weights, "last": 10 * weights[:, :200]})
"""
COORDINATE = """
losses = torch.linspace(2, 0.1, 101)
l2l.widgets.CoordinateExplorer(rules["LSTM"], {"Adam": rules["Adam"]}, {"first": weights}, losses, coordinate=3)
"""
PREDICTION = """
curves = {"LSTM": ([0, 1, 2], [5, 2, 1]), "Adam": ([0, 1, 2], [5, 4, 3])}
curves |= {f"another optimizer whose name is long, {k}": ([0, 1, 2], [5, 4, k]) for k in range(3)}
figure = l2l.plots.graph(curves, x="step", y="loss", title="A figure", markers=0)
l2l.widgets.Prediction(figure, "Where will the LSTM be?", ["above", "below"], hidden=["LSTM"], right="Below.")
"""
EVERY_PATH = "[...document.querySelectorAll('.js-plotly-plot path')].map(path => path.getAttribute('d'))"


def test_the_explorers_of_lesson_7(open_notebook, tmp_path, record_property):
    """Of gradients as many as those of a network, made up here."""
    page = open_notebook("inside.ipynb", INSIDE, PROPOSALS, PREDICTION, COORDINATE)
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.evaluate(WATCH)
    for name, key in (("p: Of appendix A", "ArrowLeft"), ("Step: Of the trajectory", "ArrowRight")):
        before = page.evaluate(EVERY_PATH)
        slider(page, name).focus()
        record(f"preprocessing, {name}", [press(page, key) for _ in range(5)], record_property)
        assert page.evaluate(EVERY_PATH) != before
    proposals = page.locator(".l2l").nth(1)
    step = proposals.get_by_role("slider", name="Step")
    at = step.input_value()
    proposals.get_by_role("button", name="Play Step").press("Enter")
    page.wait_for_timeout(1500)
    proposals.get_by_role("button", name="Pause Step").press("Enter")
    assert int(step.input_value()) > int(at) + 1
    at = int(step.input_value())
    touch(page, *along(proposals.get_by_role("button", name="Step on Step"), 0.5))
    playwright.expect(step).to_have_value(str(at + 1))
    touch(page, *along(step, 0.2, 0.5, 0.9))
    page.wait_for_function("at => document.querySelectorAll('.l2l')[1].innerText.includes(at)", arg="at step 9")
    proposals.get_by_role("combobox", name="Parameter").select_option("last")
    playwright.expect(proposals.locator(".gtitle")).to_have_text(re.compile("^last"))
    page.screenshot(path=tmp_path / "proposals.png")

    prediction = page.locator(".l2l").nth(2)
    reveal, shown = prediction.get_by_role("button", name="Reveal"), prediction.locator(".scatterlayer .trace")
    opacities = "all => all.map(each => Number(getComputedStyle(each).opacity))"
    assert shown.evaluate_all(opacities) == [0, 1, 1, 1, 1]
    assert reveal.is_disabled()
    prediction.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    start, *others = along(prediction.locator(".nsewdrag"), 0.1, 0.3, 0.5)
    page.mouse.move(*start)
    page.mouse.down()  # the pen
    for x, y in others:
        page.mouse.move(x, y + 20, steps=3)
    page.mouse.up()
    drawn = prediction.locator(".shapelayer path")
    playwright.expect(drawn).not_to_have_count(0)
    prediction.get_by_role("radio", name="above").press("Space")
    playwright.expect(reveal).to_be_enabled()
    reveal.press("Enter")
    playwright.expect(prediction).to_contain_text("You expected: above. Below.")
    assert shown.evaluate_all(opacities) == [1, 1, 1, 1, 1]
    playwright.expect(drawn).not_to_have_count(0)
    prediction.screenshot(path=tmp_path / "prediction.png")
    title, legend = (prediction.locator(part).bounding_box() for part in (".gtitle", "g.legend"))
    assert legend["y"] >= title["y"] + title["height"], "a legend of several rows makes room for itself"

    coordinate = page.locator(".l2l").nth(3)
    equations = coordinate.locator(".l2l-lines")
    coordinate.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    page.mouse.click(*along(coordinate.locator(".nsewdrag").first, 0.6)[0])
    playwright.expect(coordinate.get_by_role("slider", name="Step")).to_have_value("60")
    playwright.expect(equations).to_contain_text(re.compile(r"layer 1,.*i, f, o = σ.*unit 1 ", re.DOTALL))
    # The ring on the curve is the first point; then come the squares of the input gate.
    page.mouse.click(*along(coordinate.locator(".scatterlayer path.point").nth(8), 0.5)[0])
    playwright.expect(equations).to_contain_text("unit 8 ")
    curve = "() => document.querySelectorAll('.l2l')[3].querySelectorAll('.xy path.js-line').length"
    assert page.evaluate(curve) == 1, "what is drawn anew in one panel leaves the other as it is"
    coordinate.screenshot(path=tmp_path / "coordinate.png")
    check_that_a_keyboard_will_do(page)
    assert not faults(page)


# Controls of an explorer that hide when they get the focus, or whose figure does.
OUT_OF_SIGHT = """async explorer => {
    const wrong = [], figure = explorer.querySelector('.js-plotly-plot');
    const {top, left, bottom, right} = document.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect();
    for (const control of explorer.querySelectorAll('.l2l-controls :is(input, select, button, summary)')) {
        if (control.disabled || !control.checkVisibility()) continue;
        control.focus();
        await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
        const box = figure.getBoundingClientRect(), {x, y, width, height} = control.getBoundingClientRect();
        const within = Math.min(box.top - top, box.left - left, bottom - box.bottom, right - box.right) > -1;
        const seen = document.elementFromPoint(x + width / 2, y + height / 2);
        if (!within || !(control.closest('label') ?? control).contains(seen)) wrong.push(control.outerHTML);
    }
    return wrong; }"""


def test_a_figure_is_in_sight_of_its_controls(open_notebook, tmp_path):
    widgets = "l2l.widgets.QuadraticsExplorer()", PAINTER, "l2l.widgets.Playground()"
    page = open_notebook("sight.ipynb", LONG, IMPORT, *widgets, LONG)
    finished(page)
    page.wait_for_function("document.querySelectorAll('.l2l .main-svg').length >= 3", timeout=30_000)
    for theme in ("Light", "Dark"):
        set_theme(page, f"JupyterLab {theme}")
        for width, file_browser, beside in ((1400, True, True), (900, False, False), (700, False, False)):
            page.set_viewport_size({"width": width, "height": 900})
            show_file_browser(page, file_browser)
            page.wait_for_timeout(1000)
            for explorer in page.locator(".l2l").all():
                stage, panel = (explorer.locator(each).bounding_box() for each in (".l2l-stage", ".l2l-controls"))
                assert (panel["x"] >= stage["x"] + stage["width"]) == beside
                assert explorer.evaluate(OUT_OF_SIGHT) == []
            assert not faults(page)
            page.screenshot(path=tmp_path / f"sight_{width}_{theme}.png")
