"""Commands that are killed at random moments, whole process group: what is taken up again ends with the same bits."""

import os
import random
import signal
import sys
import time

import nbformat
import psutil
import pytest
from test_data import Official, small_data_set
from workers import finish, start

from l2l_kit import data, zoo
from l2l_kit.evaluation import read_result
from l2l_kit.making import lessons, search
from l2l_kit.making.recipes import Recipe, Search
from l2l_kit.making.report import write_report
from l2l_kit.making.runs import record_tuning
from l2l_kit.making.sweeps import Sweep, run_sweep
from l2l_kit.making.train import train_recipe
from l2l_kit.optimizers import BASELINES
from l2l_kit.problems import Quadratics
from l2l_kit.training import MetaTraining

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

TRAINING = MetaTraining(horizon=6, unroll=3, epochs=8, episodes_per_epoch=2, batch_size=4, validation_tasks=5)
RECIPE = Recipe(
    "mine",
    {"name": "quadratics", "dim": 3},
    {"hidden_size": 4},
    TRAINING,
    Search(trials=2, epochs=1, meta_lr=(1e-3, 1e-1)),
)
SWEEP = Sweep(
    name="mine",
    problem={"name": "quadratics"},
    grid={"dim": [2, 3]},
    learned={"LSTM": "quadratics"},
    baselines={BASELINES[name]: {"name": name, "learning_rates": [0.01, 0.03, 0.1]} for name in ("sgd", "adam")},
    steps=[2, 5],
    num_tasks=5,
    tuning_tasks=5,
)


# What is run in a worker, in a folder of its own; and what it must end with.


def train(folder, _):
    search.HEARTBEAT = 1  # a killed trial is taken up again after twice as long
    train_recipe(RECIPE, folder, device="cpu")


def trained(folder):
    tables = [read_result(name, folder / "results") for name in ("training/mine", "search/mine")]
    card = zoo.card(folder / "pretrained" / "mine")
    card["trained"].pop("seconds")
    weights = {name: tensor.tolist() for name, tensor in zoo.load(folder / "pretrained" / "mine").state_dict().items()}
    return [table.drop(columns="seconds").to_csv() for table in tables], card, weights


def fetch(folder, url):
    os.environ["L2L_DATA_DIR"] = str(folder)
    os.environ["TQDM_DISABLE"] = "1"
    data.DATA_SETS["small"] = small_data_set(url)
    data.fetch("small")


def fetched(folder):
    return (folder / "small.npz").read_bytes()


def tune(folder, _):
    record_tuning(Quadratics(dim=3), folder, steps=(2, 5), num_tasks=9, rates=3, device="cpu")


def tuned(folder):
    return contents(folder / "results"), contents(folder / "cache")


def sweep(folder, _):
    run_sweep(SWEEP, folder, device="cpu")


def contents(folder):
    """All files but what a kill has left of one, which nobody takes for it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def reproduce(folder, _):
    lessons.NOTEBOOKS = folder.parent / "notebooks"
    done = lessons.execute_lessons(lessons.find_lessons(), folder / "notebooks", {"seed": "5"})
    write_report(done, {}, folder, folder / "results")


def reproduced(folder):
    return (folder / "claims.md").read_text()


COMMANDS = {
    "train": (train, trained, 6),
    "fetch": (fetch, fetched, 16),
    "tune": (tune, tuned, 8),
    "sweep": (sweep, tuned, 12),
    "reproduce": (reproduce, reproduced, 1),
}
"""How each is run, what must come out of it, and how often it is killed."""


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """From now on a process starts at once."""
    log = tmp_path_factory.mktemp("workers") / "log"
    finish(start(log, int), log)


@pytest.fixture(scope="module")
def official():
    """A server that takes its time."""
    import threading

    with Official() as server:
        answer = server.answer
        server.answer = lambda name: (time.sleep(0.05), answer(name))[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def kill(process):
    """The worker and all that it has started, at once."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it has come to its end just now
        family = []
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # before it had a group of its own
        process.kill()
    process.join()
    psutil.wait_procs(family, timeout=60)  # kernels have a group of their own, and end when their parent does


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("workers")
def test_what_is_taken_up_again_ends_with_the_same_bits(tmp_path, monkeypatch, official, command):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if command == "reproduce":
        write_lessons(tmp_path / "notebooks")
    run, outcome, kills = COMMANDS[command]
    folders = (tmp_path / f"{number}" for number in range(100))

    def begun(folder):
        folder.mkdir(exist_ok=True)
        return start(folder / "log", run, folder, official)

    def finished(process, folder):
        finish(process, folder / "log")
        return outcome(folder)

    began, whole = time.monotonic(), next(folders)
    expected = finished(begun(whole), whole)
    seconds, draws = time.monotonic() - began, random.Random(command)
    killed, folder = 0, next(folders)
    while killed < kills:
        process = begun(folder)
        process.join(draws.uniform(0, seconds))
        if process.is_alive():
            kill(process)
            killed += 1
        else:  # it was taken up often enough to get to its end
            assert finished(process, folder) == expected
            folder = next(folders)
    assert finished(begun(folder), folder) == expected


# A claim needs no l2l_kit here, so that a kernel is ready at once.
LESSON = """
import time

def claim(number):
    fields = {"group": "ours", "source": f"figure {number}", "text": f"claim of {name}", "measured": str(seed + number)}
    fields |= {"verdict": "holds" if number % 2 == 0 else "refuted", "effect": number / 3}
    display({"text/plain": ""}, raw=True, metadata={"l2l_claim": fields})
    time.sleep(0.1)
"""


def write_lessons(folder):
    folder.mkdir()
    for number in (1, 2):
        parameters = nbformat.v4.new_code_cell("seed: int = 0")
        parameters.metadata["tags"] = ["parameters"]
        code = [LESSON.replace("{name}", str(number)), "claim(1)", "claim(2)", "claim(3)"]
        notebook = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, code)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{number:02}_lesson.ipynb")
