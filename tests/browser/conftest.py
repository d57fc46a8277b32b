"""A real JupyterLab on the loopback interface and a headless Chromium to look at it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
KERNEL_IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN_ALL = """milliseconds => Promise.race([
    window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 'done'),
    new Promise(resolve => setTimeout(() => resolve('timeout'), milliseconds))])"""

# What a busy machine needs more of. anywidget gives up on a figure whose 5 MB of script are not ready within two
# seconds, which then misses all changes; ipywidgets gives a kernel four to tell a reloaded page of its widgets.
PATIENCE = """const timeout = AbortSignal.timeout.bind(AbortSignal), later = window.setTimeout.bind(window);
AbortSignal.timeout = milliseconds => timeout(Math.max(milliseconds, 60_000));
window.setTimeout = (call, wait, ...rest) => later(call, wait === 4000 ? 60_000 : wait, ...rest);
"""


def find_chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("L2L_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Lab:
    url: str
    root: Path

    def notebook(self, name, *cells, outputs=()):
        """Write a throw-away notebook, its cells with these outputs; returns the address at which Lab shows it."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell, outputs=list(outputs)) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.root / name)
        return f"{self.url}/lab/tree/{name}?token=t&reset"


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """JupyterLab as `make lab` starts it, with its settings and runtime files in a throw-away folder."""
    tmp = tmp_path_factory.mktemp("lab")
    root = tmp / "root"
    root.mkdir()
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "share",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, **{name: str(tmp / folder) for name, folder in folders.items()}}
    env["JUPYTER_CONFIG_PATH"] = str(ROOT / ".jupyter")
    port = free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *("--IdentityProvider.token=t", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True"),
    ]
    with open(tmp / "lab.log", "w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token=t", process, tmp / "lab.log")
        yield Lab(f"http://127.0.0.1:{port}", root)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def wait_for(url, process, log, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium in the path and none named by $L2L_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser):
    """What the pages of all tests share: a cache, in which JupyterLab's scripts are compiled already."""
    context = browser.new_context()
    context.add_init_script(PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(context, tmp_path):
    """A page that notes every request that leaves this machine, and fails the test if there was one."""
    page = context.new_page()
    page.set_viewport_size({"width": 1400, "height": 1000})
    outside = []
    inside = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(inside) else outside.append(request.url))
    yield page
    page.screenshot(path=tmp_path / "end.png")
    page.close()
    assert not outside, f"requests that left 127.0.0.1: {outside}"


@pytest.fixture
def open_notebook(lab, page):
    """Opens a notebook made of these cells and runs them; returns the page. Its kernel ends with the test."""

    def open_and_run(name, *cells):
        page.goto(lab.notebook(name, *cells), wait_until="domcontentloaded")
        page.wait_for_function("window.jupyterapp !== undefined", timeout=90_000)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        page.wait_for_function(KERNEL_IDLE, timeout=90_000)
        assert page.evaluate(RUN_ALL, 180_000) == "done"
        return page

    yield open_and_run
    page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll()")
