"""Damaged and hostile files: the right value or an error of the kit's own, whatever is done to a file.

Never another exception, a hang, a program that is started, or gigabytes that are taken.
"""

import itertools
import json
import pickle
import random
import re
import signal
import sqlite3
import struct
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load, save

import l2l_kit as l2l
from l2l_kit import data, storage, zoo
from l2l_kit.data import sources
from l2l_kit.evaluation import read_result, write_result
from l2l_kit.making.recipes import Recipe, Search, read_recipes
from l2l_kit.making.search import random_search
from l2l_kit.making.sweeps import read_sweep
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.training import MetaTrainer, MetaTraining

resource = pytest.importorskip("resource", reason="limits of a process are those of Linux")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are those of Linux"),
    pytest.mark.filterwarnings("ignore"),
]

SECONDS = 20
"""That one file may take, before it counts as a hang."""
MEMORY = 2**30
"""Bytes of address space that reading a file may take."""
TRAINING = MetaTraining(horizon=2, unroll=2, epochs=1, episodes_per_epoch=1, batch_size=2, validation_tasks=2)

STARTED = []
"""What was started or connected to while `watched` was on."""
_WATCHED = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect", "shutil.rmtree")
_on = False


def hook(event, arguments):
    if _on and event in _WATCHED:
        STARTED.append(event)


sys.addaudithook(hook)


@contextmanager
def watched():
    """Bounds memory and time, and notes programs that are started."""
    global _on
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)

    def too_long(*_):
        raise AssertionError(f"it took more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    _on = True
    try:
        yield
    finally:
        _on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert not STARTED


# What is done to a file.


def spot(content, draws):
    """A place where there is something: much of a database is empty."""
    places = (draws.randrange(len(content)) for _ in range(20))
    return next((place for place in places if content[place]), 0)


def replaced(content, place, new):
    return content[:place] + new + content[place + len(new) :]


def truncated(content, draws):
    return content[: draws.randrange(len(content))]


def flipped(content, draws):
    for _ in range(draws.choice((1, 1, 2, 8))):
        place = spot(content, draws)
        content = replaced(content, place, bytes([content[place] ^ 1 << draws.randrange(8)]))
    return content


def copied_over(content, draws):
    one, other, length = spot(content, draws), spot(content, draws), draws.choice((4, 64, 512))
    return replaced(content, one, content[other : other + length])


def noise(content, draws):
    """New bytes, zeros or a number of the largest of its width, in place of what was there or before it."""
    new = draws.choice((draws.randbytes(draws.choice((1, 8, 100))), bytes(draws.choice((1, 8, 200))), HUGE))
    place = spot(content, draws)
    return replaced(content, place, new) if draws.random() < 0.5 else content[:place] + new + content[place:]


def longer(content, draws):
    return content + draws.choice((draws.randbytes(draws.randrange(1, 2000)), content, bytes(9)))


HUGE = b"\xff" * 3 + b"\x7f"
VALUES = ("-1", "0", "1e400", "9" * 20, "9" * 400, "NaN", "1e-3", "1000000")
VALUES += ("null", "true", '"x"', '""', "[]", "{}", "[1, [2]]", "[" * 500 + "]" * 500, "[" * 100_000 + "]" * 100_000)


def otherwise(content, draws):
    """A value in a text, or a part of a number, becomes another."""
    text = content.decode("latin1")
    place = draws.choice(list(re.finditer(r"-?\d[\d.e-]*|\"[^\"]*\"|true|false|\[[^\[\]]*\]|\{[^{}]*\}", text)))
    return (text[: place.start()] + draws.choice(VALUES) + text[place.end() :]).encode("latin1")


def without_a_line(content, draws):
    lines = content.split(b"\n")
    del lines[draws.randrange(len(lines))]
    return b"\n".join(lines)


def otherwise_in_the_header(content, draws):
    """Of a safetensors file, which is made as long again as it says that it is."""
    (length,) = struct.unpack("<Q", content[:8])
    header = otherwise(content[8 : 8 + length], draws)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def lying_about_the_header(content, draws):
    return struct.pack("<Q", draws.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))) + content[8:]


def not_finite(content, draws):
    """NaN or infinity among the tensors."""
    tensors = load(content)
    tensor = tensors[draws.choice(sorted(tensors))]
    tensor.view(-1)[draws.randrange(tensor.numel())] = draws.choice((float("nan"), float("inf"), -float("inf")))
    return unsealed(content, tensors)


def unsealed(content, tensors=None):
    """As earlier versions wrote it, without a checksum."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])["__metadata__"]["l2l_kit"]
    return save(tensors or load(content), {"l2l_kit": header[header.index("{") :]})


BYTES = (truncated, flipped, flipped, copied_over, noise, noise)
TEXT = (truncated, flipped, copied_over, noise, otherwise, otherwise, otherwise, otherwise, without_a_line)
TENSORS = (*BYTES, longer, otherwise_in_the_header, otherwise_in_the_header, lying_about_the_header)


# What is read. Each makes a file in a folder, and gives how it is read.


def rule(folder):
    path = zoo.save(LSTMRule(3, preprocessing="log-sign"), folder / "mine")

    def read():
        about, optimizer = zoo.card(path), l2l.load(path)
        assert all(weight.isfinite().all() for weight in optimizer.state_dict().values())
        return about["optimizer"], optimizer.config(), [w.tolist() for w in optimizer.state_dict().values()]

    return path, read


def checkpoint(folder):
    path = folder / "run.safetensors"

    def trainer():
        return MetaTrainer(LSTMRule(3), Quadratics(dim=2), TRAINING, checkpoint=path, device="cpu")

    list(trainer().run())

    def read():
        resumed = trainer()
        weights = [weight.tolist() for weight in resumed.rule.state_dict().values()]
        return [record.validation_loss for record in resumed.history.records], weights

    return path, read


def earlier(make):
    def made(folder):
        path, read = make(folder)
        path.write_bytes(unsealed(path.read_bytes()))
        return path, read

    return made


RECIPE = """
name = "mine-{unroll}"
problem = { name = "quadratics", dim = 2 }
[optimizer]
hidden_size = 3
num_layers = 2
preprocessing = "log-sign"
[training]
horizon = 4
epochs = 9
meta_lr = 0.01
[search]
trials = 8
epochs = 1
meta_lr = [1e-3, 1e-1]
optimizer = { forget_bias = [0.0, 4.0] }
[grid]
"training.unroll" = [1, 2]
"""
SWEEP = """
steps = [5, 10]
num_tasks = 4
tuning_tasks = 3
problem = { name = "quadratics" }
[grid]
dim = [2, 3]
[learned]
LSTM = "quadratics"
[baselines]
SGD = { name = "sgd", learning_rates = [0.01, 0.03] }
"""


def written(text, reader):
    def made(folder):
        path = folder / "mine.toml"
        path.write_text(text)
        return path, lambda: reader(path)

    return made


def recorded(suffix):
    def made(folder):
        about = {"problem": {"name": "quadratics"}, "seed": 3, "command": "l2l tune"}
        path = write_result("mine", pd.DataFrame({"lr": [0.1, 1.0], "mean": [1.5, 2.5]}), about, folder)
        return path.with_suffix(suffix), lambda: read_result("mine", folder)

    return made


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def picture(form):
    def made(folder):
        path = folder / f"mine.{form.lower()}"
        Image.fromarray(PIXELS).save(path, form)
        return path, lambda: data.load_picture(path)

    return made


SEARCH = Search(trials=2, epochs=1, meta_lr=(1e-3, 1e-1))
SEARCHED = Recipe("mine", {"name": "quadratics", "dim": 2}, {"hidden_size": 3}, TRAINING, SEARCH)


def database(folder):
    path = folder / "search.db"

    def read():
        return random_search(SEARCHED, SEARCH, path, device="cpu")

    read()
    return path, read


def cache(file):
    def made(folder):
        whole = replace(data.DATA_SETS["mnist"], file=file, copies={})
        sources.write_cached(whole, {"x": PIXELS, "y": np.arange(20, dtype=np.uint8)})

        def read():
            arrays, remark = sources.read_cached(whole)
            if arrays is None:
                raise ValueError(remark)
            return {name: array.tolist() for name, array in arrays.items()}

        return folder / file, read

    return made


FORMS = ("PNG", "JPEG", "WebP", "GIF", "TIFF", "BMP")
FILES = {  # how it is made and read, what is done to it, how often, and whether anything but itself may be read
    "a learned optimizer": (rule, TENSORS, 500, False),
    "a learned optimizer of an earlier version": (earlier(rule), (*TENSORS, not_finite), 500, True),
    "a checkpoint": (checkpoint, TENSORS, 500, False),
    "a checkpoint of an earlier version": (earlier(checkpoint), (*TENSORS, not_finite), 500, True),
    "a recipe": (written(RECIPE, read_recipes), TEXT, 500, True),
    "a sweep": (written(SWEEP, read_sweep), TEXT, 500, True),
    "the note of a recorded table": (recorded(".json"), TEXT, 500, True),
    "a recorded table": (recorded(".csv"), TEXT, 500, True),
    **{f"a {form} picture": (picture(form), (*BYTES, longer), 100, True) for form in FORMS},
    "cached images": (cache("mine.npz"), (*BYTES, longer), 500, False),
    "cached weights": (cache("mine.safetensors"), TENSORS, 500, False),
    "a search": (database, BYTES, 500, True),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_gives_the_right_value_or_a_clear_error(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
    make, changes, mutations, anything = FILES[kind]
    path, read = make(tmp_path)
    content, value, draws, messages = path.read_bytes(), read(), random.Random(kind), []
    with watched():
        for _, change in zip(range(mutations), itertools.cycle(changes)):
            path.write_bytes(change(content, draws))
            signal.alarm(SECONDS)
            try:
                found = read()
            except (ValueError, FileNotFoundError) as error:  # the kit's own errors are ValueErrors
                messages.append(str(error))
            except Exception as error:
                raise AssertionError(f"{change.__name__} gave {error!r}") from error
            else:
                assert anything or found == value, f"{change.__name__} gave another value"
    assert all(path.stem in message for message in messages)
    assert len(messages) > mutations / 10
    path.write_bytes(content)
    read()


class Program:
    def __reduce__(self):
        return (__import__("os").system, ("true",))


def packed_zeros(path):
    """An archive that says of its array that it takes four gigabytes."""
    np.savez_compressed(path, x=np.zeros(12345, np.uint8))
    content, said = path.read_bytes(), struct.pack("<L", 12345 + 128)
    assert said in content
    path.write_bytes(content.replace(said, struct.pack("<L", 2**32 - 2)))


def large_picture(path):
    """That says that it is a thousand times as large as it is."""
    Image.fromarray(PIXELS).save(path, "BMP")
    path.write_bytes(replaced(path.read_bytes(), 18, struct.pack("<ii", 100_000, 10_000)))


def optimizer_file(**config):
    about = {"optimizer": {**LSTMRule(3).config(), **config}}
    return lambda path: storage.write_tensors(path, LSTMRule(3).state_dict(), about, 1)


def text(old, new):
    original = RECIPE if old in RECIPE else SWEEP
    assert old in original
    return lambda path: path.write_text(original.replace(old, new))


def load_mnist(_):
    return data.load("mnist", "full")


LONG = "\n".join(
    f'"training.{key}" = {list(range(1, 100))}' for key in ("unroll", "epochs", "horizon", "seed", "sample")
)
WIDE = "\n".join(f"x{key} = {list(range(100))}" for key in range(6))
MANY = {str(group): {"hidden_size": 1000} for group in range(1000)}
HOSTILE = {
    "a billion units": ("mine.safetensors", optimizer_file(hidden_size=10**9), l2l.load),
    "a billion layers": ("mine.safetensors", optimizer_file(num_layers=10**9), l2l.load),
    "a million tiny layers": ("mine.safetensors", optimizer_file(hidden_size=1, num_layers=10**6), l2l.load),
    "a thousand large groups": ("mine.safetensors", optimizer_file(kind="groups", groups=MANY), l2l.load),
    "groups that are none": ("mine.safetensors", optimizer_file(kind="groups", groups=[1]), l2l.load),
    "a bias beyond all numbers": ("mine.safetensors", optimizer_file(forget_bias=10**400), l2l.load),
    "pickled weights": ("mine.safetensors", lambda path: path.write_bytes(pickle.dumps(Program())), l2l.load),
    "a recipe of ten billion": ("mine.toml", text('"training.unroll" = [1, 2]', LONG), read_recipes),
    "a recipe of a billion units": ("mine.toml", text("hidden_size = 3", "hidden_size = 1_000_000_000"), read_recipes),
    "a recipe of a million layers": ("mine.toml", text("num_layers = 2", "num_layers = 1_000_000"), read_recipes),
    "a recipe for another folder": ("mine.toml", text('"mine-{unroll}"', '"../../mine-{unroll}"'), read_recipes),
    "a recipe with a wide name": ("mine.toml", text("{unroll}", "{unroll:>9999999999}"), read_recipes),
    "a recipe that looks around": ("mine.toml", text("{unroll}", "{unroll.__class__}"), read_recipes),
    "a sweep of a trillion": ("mine.toml", text("dim = [2, 3]", WIDE), read_sweep),
    "four gigabytes of zeros": ("mnist.npz", packed_zeros, load_mnist),
    "pickled images": ("mnist.npz", lambda path: np.savez(path, x_train=np.array([Program()], object)), load_mnist),
    "a program for a printer": ("mine.jpg", lambda path: Image.fromarray(PIXELS).save(path, "EPS"), data.load_picture),
    "a picture of a billion pixels": ("mine.bmp", large_picture, data.load_picture),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_before_it_does_harm(tmp_path, monkeypatch, name):
    file, make, read = HOSTILE[name]
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sources, "_unreachable", lambda _: "offline")
    path = tmp_path / file
    make(path)
    data._full.cache_clear()
    with watched():
        signal.alarm(SECONDS)
        with pytest.raises(ValueError, match=path.stem):
            read(path)
    data._full.cache_clear()
    assert [each.name for each in tmp_path.iterdir()] == [file]


def test_a_database_of_something_else_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "search.db") as connection:
        connection.execute("CREATE TABLE studies (something TEXT)")
    connection.close()
    with pytest.raises(ValueError, match=r"search\.db"):
        database(tmp_path)
