"""What a reader sees and does: the widgets and the live figures in a real page."""

import base64
import io
import statistics

import nbformat
import PIL.Image
import plotly.graph_objects as go
import pytest

from l2l_kit import static

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.timeout(400)

RUN_ALL = """milliseconds => Promise.race([
    window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 'done'),
    new Promise(resolve => setTimeout(() => resolve('timeout'), milliseconds))])"""
IMPORT = "import l2l_kit as l2l"
LINES = ".js-plotly-plot .scatterlayer path.js-line"
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


def handle(page, tooltip):
    return page.locator(f".widget-slider:has([title='{tooltip}']) .noUi-handle").first


def press(page, key):
    """Milliseconds from a key press to the redraw that follows."""
    before = page.evaluate("window.redraws")
    page.keyboard.press(key)
    page.wait_for_function(f"window.redraws > {before} && window.redrawn !== null", timeout=20_000, polling=5)
    latency = page.evaluate("window.redrawn - window.pressed")
    page.wait_for_timeout(250)
    return latency


@pytest.fixture
def explorer_page(open_notebook):
    page = open_notebook("explorer.ipynb", IMPORT, "explorer = l2l.widgets.explorer()\nexplorer")
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    return page


def test_a_slider_moves_the_curve(explorer_page, tmp_path, record_property):
    page = explorer_page
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "explorer.png")
    assert len(lines(page)) == 5
    before = lines(page)
    handle(page, "Learning rate of Adam").focus()
    page.evaluate(WATCH)
    latencies = [press(page, "ArrowLeft") for _ in range(10)]
    after = lines(page)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, True, False]
    record("lr slider, curves computed", latencies, record_property)
    record("lr slider, curves cached", [press(page, "ArrowRight") for _ in range(8)], record_property)
    handle(page, "Number of parameters").focus()
    record("dimension slider, all curves computed", [press(page, "ArrowLeft") for _ in range(8)], record_property)
    page.screenshot(path=tmp_path / "explorer_moved.png")


def record(what, latencies, record_property):
    """Times depend on the machine, so they are told and not asserted."""
    text = f"{what}: median {statistics.median(latencies):.0f} ms of {[round(each) for each in latencies]}"
    record_property(what, text)  # tests/conftest.py tells it at the end


def test_ticking_and_choosing(explorer_page, tmp_path):
    page = explorer_page
    page.get_by_label("SGD").click()
    page.wait_for_function(f"document.querySelectorAll('{LINES}').length === 4")
    page.get_by_role("button", name="median", exact=True).click()
    page.wait_for_function("document.querySelector('.js-plotly-plot .gtitle').textContent.startsWith('Median')")
    page.wait_for_function("document.body.innerText.includes('is best: median loss')")
    page.screenshot(path=tmp_path / "median.png")


def save_and_reload(page, curves):
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
    page.wait_for_function(f"document.querySelectorAll('{LINES}').length === {curves}", timeout=20_000)


def test_a_reload_shows_the_present_state(explorer_page, tmp_path):
    page = explorer_page
    for _ in range(3):  # a reader runs a cell more than once, and all its widgets live on
        assert page.evaluate(RUN_ALL, 60_000) == "done"
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.get_by_label("RMSprop").click()
    page.get_by_role("button", name="median", exact=True).click()
    page.wait_for_function("document.querySelector('.js-plotly-plot .gtitle').textContent.startsWith('Median')")
    before = lines(page)
    save_and_reload(page, curves=4)
    page.screenshot(path=tmp_path / "reloaded.png")
    assert page.locator(".js-plotly-plot .gtitle").first.text_content().startswith("Median")
    assert lines(page) == before


def test_a_notebook_that_was_not_run_shows_the_picture(lab, page, tmp_path):
    """As it comes from GitHub: with outputs, but with no kernel behind them."""
    picture = base64.b64encode(static.png(go.Figure())).decode()
    view = {"model_id": "0" * 32, "version_major": 2, "version_minor": 0}
    data = {"application/vnd.jupyter.widget-view+json": view, "image/png": picture, "text/plain": "Interactive"}
    address = lab.notebook("picture.ipynb", "1", outputs=[nbformat.v4.new_output("display_data", data)])
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector(".jp-OutputArea-output img", timeout=90_000)
    page.screenshot(path=tmp_path / "picture.png")


def test_an_error_is_shown(open_notebook):
    page = open_notebook("error.ipynb", IMPORT, "explorer = l2l.widgets.explorer()\nexplorer", BREAK)
    page.wait_for_selector(".js-plotly-plot [role=alert], .widget-html [role=alert]", timeout=20_000)
    assert "no such optimizer" in page.locator("[role=alert]").first.inner_text()


BREAK = """
def broken(*_):
    raise ValueError("no such optimizer")
explorer._run = broken
explorer.dimension.value = 5
"""


def test_training_shows_progress_and_cancels(open_notebook, tmp_path):
    cells = [IMPORT, "trainer = l2l.widgets.trainer()\ntrainer"]
    page = open_notebook("trainer.ipynb", *cells)
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "trainer.png")
    assert len(lines(page)) == 4
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_function("document.body.innerText.match(/Epoch 2 of 25/)", timeout=120_000)
    assert len(lines(page)) == 5
    curve = lines(page)
    page.screenshot(path=tmp_path / "training.png")
    page.wait_for_function("document.body.innerText.match(/Epoch 4 of 25/)", timeout=120_000)
    assert lines(page) != curve
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_function("document.body.innerText.includes('Cancelled. The best weights')", timeout=20_000)
    assert page.get_by_role("button", name="Train", exact=True).is_enabled()
    page.screenshot(path=tmp_path / "cancelled.png")


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
TITLE = "document.querySelector('.js-plotly-plot .gtitle').textContent"


def wait_until_finished(page, title):
    """Until the curves of these networks are all there; title and status follow a choice one after the other."""
    page.wait_for_function(f"{TITLE}.includes('{title}')", timeout=20_000)
    page.wait_for_timeout(300)
    page.wait_for_function("document.body.innerText.includes('is best: mean loss')", timeout=60_000)
    page.wait_for_timeout(300)


NETWORKS = "explorer = l2l.widgets.network_explorer(networks=1, steps=50, digits='embedded')\nexplorer"
# From here on the computation takes its time, so that the page can be quicker.
SLOW = """
import sys, time
module = sys.modules["l2l_kit.widgets.running_explorer"]
def slow(*arguments, trajectory=module.trajectory):
    for point in trajectory(*arguments):
        time.sleep(0.05)
        yield point
module.trajectory = slow
"""


@pytest.fixture
def networks_page(open_notebook, request):
    page = open_notebook("networks.ipynb", STAND_INS, NETWORKS, *getattr(request, "param", []))
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    wait_until_finished(page, "784-20-10, sigmoid")
    return page


def test_the_curves_of_networks_follow(networks_page, tmp_path, record_property):
    page = networks_page
    page.screenshot(path=tmp_path / "networks.png")
    before = lines(page)
    assert len(before) == 5
    page.evaluate(WATCH)
    handle(page, "Learning rate of Adam").focus()
    record("networks, lr slider, first of a curve", [press(page, "ArrowLeft") for _ in range(4)], record_property)
    record("networks, lr slider, known curves", [press(page, "ArrowRight") for _ in range(4)], record_property)
    assert lines(page) == before
    handle(page, "Units of each hidden layer").focus()
    record("networks, units slider, first of all curves", [press(page, "ArrowLeft")], record_property)
    wait_until_finished(page, "784-10-10")
    assert all(now != then for now, then in zip(lines(page), before, strict=True))
    record("networks, units slider, known curves", [press(page, "ArrowRight")], record_property)
    assert lines(page) == before


@pytest.mark.parametrize("networks_page", [[SLOW]], indirect=True, ids=["slow"])
def test_a_choice_while_networks_are_computed(networks_page, tmp_path, record_property):
    page = networks_page
    handle(page, "Hidden layers").focus()
    page.keyboard.press("End")
    page.wait_for_function("document.body.innerText.match(/Computing: step [1-9]/)", timeout=60_000)
    page.evaluate(WATCH)
    latencies = [press(page, "Home")]
    record("networks, back to known curves while others are computed", latencies, record_property)
    wait_until_finished(page, "784-20-10, sigmoid")
    unroll = "Steps that it was trained to look ahead"
    page.get_by_label("the main one, fully trained").click()
    page.wait_for_selector(f".widget-slider:has([title='{unroll}']) .noUi-target:not([disabled])")
    handle(page, unroll).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("[role=alert]", timeout=20_000)
    assert "unknown pretrained optimizer 'mnist-log-sign-unroll50'" in page.locator("[role=alert]").first.inner_text()
    page.wait_for_function(f"document.querySelectorAll('{LINES}').length === 4")
    page.screenshot(path=tmp_path / "networks_error.png")


def test_a_reload_shows_the_present_networks(networks_page, tmp_path):
    page = networks_page
    page.get_by_label("RMSprop").click()
    page.get_by_role("button", name="tanh", exact=True).click()
    wait_until_finished(page, "tanh")
    before = lines(page)
    save_and_reload(page, curves=4)
    wait_until_finished(page, "784-20-10, tanh")
    page.screenshot(path=tmp_path / "networks_reloaded.png")
    assert lines(page) == before


def test_training_on_digits_shows_each_episode_and_cancels(open_notebook, tmp_path, record_property):
    cell = (
        "settings = l2l.MetaTraining(horizon=20, unroll=10, epochs=50, episodes_per_epoch=5, batch_size=1,"
        " validation_tasks=2)\n"
        "trainer = l2l.widgets.trainer(l2l.problems.MNIST(source='embedded'), settings)\ntrainer"
    )
    page = open_notebook("digits.ipynb", STAND_INS, cell)
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.get_by_role("button", name="Train", exact=True).click()
    for episode in (1, 2, 7):
        page.wait_for_function(f"document.body.innerText.includes('episode {episode} of 250')", timeout=60_000)
    assert len(lines(page)) == 5
    page.screenshot(path=tmp_path / "digits_training.png")
    pressed = page.evaluate("performance.now()")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_function("document.body.innerText.includes('Cancelled. The best weights')", timeout=30_000)
    record("digits, cancel", [page.evaluate("performance.now()") - pressed], record_property)
    assert page.get_by_role("button", name="Train", exact=True).is_enabled()


# A small network, small pictures, and an optimizer and learning rates that are made here.
PAINTER = """
import sys, tempfile
from pathlib import Path
import pandas as pd
import l2l_kit as l2l

l2l.zoo.PRETRAINED = Path(tempfile.mkdtemp())
rule = l2l.LSTMRule(hidden_size=4, preprocessing="log-sign", output_scale=0.1)
l2l.save(rule, l2l.zoo.PRETRAINED / "neural-art-small")
module = sys.modules[l2l.widgets.painter.__module__]
rates = {"SGD": 20.0, "NAG": 5.0, "RMSprop": 0.02, "Adam": 0.2}
module.read_result = lambda name: pd.DataFrame(
    [{"protocol": "one rate", "step": 128, "optimizer": name, "lr": lr} for name, lr in rates.items()]
)
module.SWEEPS = {32: "sweeps/neural-art"}
painter = l2l.widgets.painter(content="cat", style="mosaic", size=32, steps=16, network="small")
painter
"""
CANVASES = "[...document.querySelectorAll('img.widget-image')].map(image => image.src)"


def test_pictures_are_painted_and_own_ones_taken(open_notebook, tmp_path):
    page = open_notebook("painter.ipynb", PAINTER)
    page.wait_for_selector("img.widget-image", timeout=30_000)
    *canvases, content, style = page.evaluate(CANVASES)
    assert len(canvases) == 4
    assert len(set(canvases)) == 4  # blank, but each an image of its own
    page.get_by_role("button", name="Paint", exact=True).click()
    page.wait_for_function("document.body.innerText.includes('After 16 steps, from the lowest loss')", timeout=90_000)
    page.screenshot(path=tmp_path / "painter.png")
    assert len(lines(page)) == 4
    painted = page.evaluate(CANVASES)
    assert painted[-2:] == [content, style]
    assert not set(painted[:-2]) & set(canvases)

    handle(page, "Updates; the LSTM was trained on 128").focus()
    page.keyboard.press("End")
    page.get_by_role("button", name="Paint", exact=True).click()
    page.wait_for_function("document.body.innerText.match(/Painting: step [1-9]/)", timeout=60_000)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.wait_for_function("document.body.innerText.includes('Paused at step')", timeout=30_000)
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.wait_for_function("document.body.innerText.includes('Cancelled.')", timeout=30_000)

    for name, picture, answer in (
        ("mine.png", static.png(go.Figure()), "mine.png is the content now."),
        ("notes.png", b"no picture", "notes.png: not a picture that can be read"),
    ):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Own (").first.click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": picture})
        page.wait_for_function(f"document.body.innerText.includes('{answer}')", timeout=30_000)
    page.screenshot(path=tmp_path / "painter_own.png")
    assert page.evaluate(CANVASES)[-2] != content
    assert page.locator("[role=alert]").count() == 1
    assert (
        page.locator(".widget-dropdown select").first.evaluate("choice => choice.selectedOptions[0].text") == "mine.png"
    )


def test_a_large_photograph_arrives(open_notebook, tmp_path):
    """Of 12 MB, which is more than the server takes if it is not told otherwise; and nothing pops up over the page."""
    page = open_notebook("large.ipynb", PAINTER)
    page.wait_for_selector(".js-plotly-plot", timeout=30_000)
    before = page.evaluate(CANVASES)
    content = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((2000, 2000)).convert("RGB").save(content, "BMP")
    assert len(content.getvalue()) > 12_000_000
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Own (").first.click()
    chooser.value.set_files({"name": "large.bmp", "mimeType": "image/bmp", "buffer": content.getvalue()})
    page.wait_for_function("document.body.innerText.includes('large.bmp is the content now.')", timeout=60_000)
    page.screenshot(path=tmp_path / "large.png")
    assert page.evaluate(CANVASES)[-2] != before[-2]
    assert page.get_by_text("Jupyter news").count() == 0


def test_play_moves_along_the_landscape(open_notebook, tmp_path):
    cells = [
        IMPORT,
        "from l2l_kit.evaluation import trajectories\n"
        "optimizers = {'LSTM': l2l.load('quadratics-none-unroll20'), **l2l.tuned_baselines('quadratics')}\n"
        "l2l.plots.landscape(trajectories(optimizers, l2l.problems.Quadratics(2), steps=60, seed=4))",
    ]
    page = open_notebook("landscape.ipynb", *cells)
    page.screenshot(path=tmp_path / "landscape_picture.png")
    picture = page.locator(".jp-RenderedPlotly img").bounding_box()
    page.mouse.move(picture["x"] + 20, picture["y"] + 20)
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "landscape.png")
    label = page.locator(".js-plotly-plot .slider-label").first
    *contours, lstm, sgd, nag, rmsprop, adam = lines(page)
    page.locator(".js-plotly-plot .updatemenu-button").first.click()
    page.wait_for_function("document.querySelector('.js-plotly-plot .slider-label').textContent === 'step 8'")
    page.screenshot(path=tmp_path / "landscape_playing.png")
    moved = lines(page)
    assert moved[:-5] == contours
    assert all(now != whole for now, whole in zip(moved[-5:], (lstm, sgd, nag, rmsprop, adam), strict=True))
    page.locator(".js-plotly-plot .updatemenu-button").nth(1).click()
    page.wait_for_timeout(300)
    paused = label.text_content()
    page.wait_for_timeout(500)
    assert label.text_content() == paused


def test_the_explorers_of_lesson_7(open_notebook, tmp_path, record_property):
    """Of gradients as many as those of a network, made up here."""
    page = open_notebook("preprocessing.ipynb", INSIDE, "l2l.widgets.preprocessing_explorer(weights)")
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.evaluate(WATCH)
    for tooltip in ("Of appendix A", "Of the trajectory"):
        before = page.evaluate(EVERY_PATH)
        handle(page, tooltip).focus()
        record(f"preprocessing, {tooltip}", [press(page, "ArrowRight") for _ in range(8)], record_property)
        assert page.evaluate(EVERY_PATH) != before
    page.screenshot(path=tmp_path / "preprocessing.png")

    page = open_notebook("proposals.ipynb", INSIDE, PROPOSALS)
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.evaluate(WATCH)
    before = lines(page)
    handle(page, "Of the trajectory").focus()
    record("proposals, step slider", [press(page, "ArrowRight") for _ in range(8)], record_property)
    assert lines(page) != before
    page.locator(".widget-dropdown select").select_option("last")
    page.wait_for_function(f"{TITLE}.startsWith('last')", timeout=20_000)
    page.screenshot(path=tmp_path / "proposals.png")


INSIDE = """
import torch
import l2l_kit as l2l
draws = torch.Generator().manual_seed(0)
weights = 0.001 * torch.randn(101, 15910, generator=draws)
"""
PROPOSALS = """
rules = {"LSTM": l2l.LSTMRule(preprocessing="log-sign", output_scale=0.1), "Adam": l2l.baseline("adam", 0.03)}
rules |= {"NAG": l2l.baseline("nag", 0.5), "RMSprop": l2l.baseline("rmsprop", 0.01)}
l2l.widgets.proposal_explorer(rules, {"first": weights, "last": 10 * weights[:, :200]})
"""
EVERY_PATH = "[...document.querySelectorAll('.js-plotly-plot path')].map(path => path.getAttribute('d'))"


# Whether an element is wholly within the visible part of the notebook.
IN_SIGHT = """element => {
    const box = element.getBoundingClientRect();
    const page = document.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect();
    return Math.min(box.top - page.top, box.left - page.left, page.bottom - box.bottom, page.right - box.right)
        > -1; }"""
LONG = "print('\\n'.join('a lesson goes on' for _ in range(60)))"  # so that the page has a scroll bar


@pytest.mark.parametrize(("width", "file_browser"), [(1400, True), (900, False)])
def test_a_figure_is_in_sight_of_its_controls(open_notebook, tmp_path, width, file_browser):
    page = open_notebook("sight.ipynb", LONG, IMPORT, "l2l.widgets.explorer()", PAINTER, LONG)
    page.set_viewport_size({"width": width, "height": 900})
    if page.locator(".jp-FileBrowser").is_visible() != file_browser:
        page.evaluate("window.jupyterapp.commands.execute('filebrowser:toggle-main')")
    page.wait_for_selector(LINES, timeout=30_000, state="attached")
    page.wait_for_selector("img.widget-image", timeout=30_000)
    plots = page.locator(".js-plotly-plot")
    for name, control, plot in (
        ("explorer", page.locator(".widget-checkbox input").first, plots.first),
        ("painter", page.locator(".widget-dropdown select").first, plots.last),
    ):
        control.focus()
        plot.evaluate("element => element.scrollIntoView({block: 'nearest'})")
        page.wait_for_timeout(500)
        page.screenshot(path=tmp_path / f"{name}_{width}.png")
        assert plot.evaluate(IN_SIGHT)
        assert control.evaluate(IN_SIGHT)


def test_dark_theme(explorer_page, tmp_path):
    page = explorer_page
    change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
    page.evaluate(change, "JupyterLab Dark")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'", timeout=20_000)
    page.wait_for_timeout(1500)
    page.screenshot(path=tmp_path / "dark.png")
    page.evaluate(change, "JupyterLab Light")
    background = page.locator(".js-plotly-plot .main-svg").first.evaluate(
        "svg => getComputedStyle(svg).backgroundColor"
    )
    assert background == "rgba(0, 0, 0, 0)"
