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
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load, save

import l2l_kit as l2l
from l2l_kit import data, storage, zoo
from l2l_kit.data import sources
from l2l_kit.data.labelled import CIFAR10
from l2l_kit.data.vgg import VGG16
from l2l_kit.errors import DataError
from l2l_kit.evaluation import read_result, read_sweep, write_result
from l2l_kit.optimizers import LSTMRule
from l2l_kit.problems import Quadratics
from l2l_kit.training import MetaTrainer, MetaTraining, Recipe, Search, random_search, read_recipes

resource = pytest.importorskip("resource", reason="limits of a process are those of Linux")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are those of Linux")

MUTATIONS = 500
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


sys.addaudithook(hook)


# What is done to a file.


def spot(content, draws):
    """A place where there is something: much of a database is empty."""
    for _ in range(20):
        place = draws.randrange(len(content))
        if content[place]:
            break
    return place


def truncated(content, draws):
    return content[: draws.randrange(len(content))]


def flipped(content, draws):
    changed = bytearray(content)
    for _ in range(draws.choice((1, 1, 2, 8))):
        changed[spot(content, draws)] ^= 1 << draws.randrange(8)
    return bytes(changed)


def swapped(content, draws):
    changed, length = bytearray(content), draws.choice((4, 64, 512))
    one, other = (spot(content, draws) for _ in range(2))
    changed[one : one + length], changed[other : other + length] = (
        content[other : other + length],
        content[one : one + length],
    )
    return bytes(changed)


def blanked(content, draws):
    place, length = spot(content, draws), draws.choice((1, 8, 200))
    return content[:place] + bytes(min(length, len(content) - place)) + content[place + length :]


def noise(content, draws):
    place = spot(content, draws)
    return content[:place] + draws.randbytes(draws.choice((1, 8, 100))) + content[place:]


def longer(content, draws):
    return content + draws.choice((draws.randbytes(draws.randrange(1, 2000)), content, bytes(9)))


def huge(content, draws):
    """A number somewhere becomes the largest of its width."""
    place, width = spot(content, draws), draws.choice((2, 4, 8))
    return content[:place] + b"\xff" * (width - 1) + b"\x7f" + content[place + width :]


BYTES = (truncated, flipped, flipped, swapped, blanked, noise, huge)
NUMBERS = ("-1", "0", "1e400", "9" * 20, "9" * 400, "NaN", "1e-3", "1000000")
VALUES = (*NUMBERS, "null", "true", '"x"', '""', "[]", "{}", "[1, [2]]")


def otherwise(content, draws):
    """A value in a text, or a part of a number, becomes another."""
    text = content.decode("latin1")
    places = list(re.finditer(r"-?\d[\d.e-]*|\"[^\"]*\"|true|false|\[[^\[\]]*\]|\{[^{}]*\}", text))
    place = draws.choice(places)
    return (text[: place.start()] + draws.choice(VALUES) + text[place.end() :]).encode("latin1")


def nested(content, draws):
    text = content.decode("latin1")
    place, depth = draws.choice(list(re.finditer(r"\d+|\"[^\"]*\"", text))), draws.choice((500, 5000, 100_000))
    return (text[: place.start()] + "[" * depth + "]" * depth + text[place.end() :]).encode("latin1")


def without_a_line(content, draws):
    lines = content.split(b"\n")
    del lines[draws.randrange(len(lines))]
    return b"\n".join(lines)


TEXT = (truncated, flipped, swapped, noise, otherwise, otherwise, otherwise, nested, without_a_line)


def in_the_header(change):
    """As `change`, in the header of a safetensors file, which is made as long again as it says that it is."""

    def changed(content, draws):
        (length,) = struct.unpack("<Q", content[:8])
        header = change(content[8 : 8 + length], draws)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]

    return changed


def lying_about_the_header(content, draws):
    return struct.pack("<Q", draws.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))) + content[8:]


TENSORS = (
    *BYTES,
    longer,
    *(in_the_header(change) for change in (otherwise, otherwise, nested)),
    lying_about_the_header,
)


def weights_otherwise(content, draws):
    """Another number, NaN or infinity among the tensors, in a file as earlier versions wrote it: without a checksum."""
    tensors = load(content)
    tensor = tensors[draws.choice(sorted(tensors))]
    tensor.view(-1)[draws.randrange(tensor.numel())] = draws.choice((float("nan"), float("inf"), -float("inf")))
    return save(tensors, {"l2l_kit": description(content)})


def description(content):
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])["__metadata__"]["l2l_kit"]
    return header[header.index("{") :]


def unsealed(content):
    """As earlier versions wrote it."""
    return save(load(content), {"l2l_kit": description(content)})


# What is read. Each makes a file in a folder, and gives how it is read and what must come out of it; None for anything.


def rule(folder):
    path = zoo.save(LSTMRule(3, preprocessing="log-sign"), folder / "mine")

    def read():
        about, optimizer = zoo.card(path), l2l.load(path)
        return json.dumps([about["optimizer"], optimizer.config()]), *(
            w.tolist() for w in optimizer.state_dict().values()
        )

    return path, read, True


def old_rule(folder):
    path, read, _ = rule(folder)
    path.write_bytes(unsealed(path.read_bytes()))

    def finite():
        read()
        assert all(weight.isfinite().all() for weight in l2l.load(path).state_dict().values())

    return path, finite, False


def checkpoint(folder):
    path = folder / "run.safetensors"

    def trainer():
        return MetaTrainer(LSTMRule(3), Quadratics(dim=2), TRAINING, checkpoint=path, device="cpu")

    list(trainer().run())

    def read():
        resumed = trainer()
        weights = [weight.tolist() for weight in resumed.optimizer.state_dict().values()]
        return [record.validation_loss for record in resumed.history.records], weights

    return path, read, True


def old_checkpoint(folder):
    path, read, _ = checkpoint(folder)
    path.write_bytes(unsealed(path.read_bytes()))
    return path, read, False


RECIPE = """
name = "mine-{unroll}"
[problem]
name = "quadratics"
dim = 2
[optimizer]
hidden_size = 3
num_layers = 2
preprocessing = "log-sign"
output_scale = 0.1
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


def recipe(folder):
    path = folder / "mine.toml"
    path.write_text(RECIPE)
    return path, lambda: read_recipes(path), False


SWEEP = """
steps = [5, 10]
num_tasks = 4
tuning_tasks = 3
[problem]
name = "quadratics"
[grid]
dim = [2, 3]
[learned]
LSTM = "quadratics"
[baselines]
SGD = { name = "sgd", learning_rates = [0.01, 0.03] }
"""


def sweep(folder):
    path = folder / "mine.toml"
    path.write_text(SWEEP)
    return path, lambda: read_sweep(path), False


def recorded(suffix):
    def result(folder):
        about = {"problem": {"name": "quadratics"}, "seed": 3, "command": "l2l tune"}
        path = write_result("mine", pd.DataFrame({"lr": [0.1, 1.0], "mean": [1.5, 2.5]}), about, folder)
        return path.with_suffix(suffix), lambda: read_result("mine", folder), False

    return result


DRAWS = np.random.default_rng(0)
ARRAYS = {
    "x_train": DRAWS.integers(0, 256, (4, 8, 8, 3), np.uint8),
    "y_train": np.arange(4, dtype=np.uint8),
    "x_test": DRAWS.integers(0, 256, (2, 8, 8, 3), np.uint8),
    "y_test": np.arange(2, dtype=np.uint8),
}


def cached(data_set, arrays):
    def archive(folder):
        path = folder / f"mine{data_set.suffix}"
        path.write_bytes(sources.packed(arrays, data_set))

        def read():
            found, damage = sources.read(path, data_set)
            if found is None:
                raise DataError(damage)
            return {name: array.tolist() for name, array in found.items()}

        return path, read, True

    return archive


FORMS = {"PNG": {}, "JPEG": {}, "WebP": {}, "GIF": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}}


def picture(form):
    def image(folder):
        path = folder / f"mine.{form.lower()}"
        pixels = DRAWS.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(path, form, **FORMS[form])
        return path, lambda: data.load_picture(path), False

    return image


SEARCH = Recipe(
    "mine",
    {"name": "quadratics", "dim": 2},
    {"hidden_size": 3},
    TRAINING,
    Search(trials=2, epochs=1, meta_lr=(1e-3, 1e-1)),
)


def database(folder):
    path = folder / "search.db"
    random_search(SEARCH, path, device="cpu")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    return path, lambda: random_search(SEARCH, path, device="cpu"), False


FILES = {
    "a learned optimizer": (rule, TENSORS, MUTATIONS),
    "a learned optimizer of an earlier version": (old_rule, (*TENSORS, weights_otherwise), MUTATIONS),
    "a checkpoint": (checkpoint, TENSORS, MUTATIONS),
    "a checkpoint of an earlier version": (old_checkpoint, (*TENSORS, weights_otherwise), MUTATIONS),
    "a recipe": (recipe, TEXT, MUTATIONS),
    "a sweep": (sweep, TEXT, MUTATIONS),
    "the note of a recorded table": (recorded(".json"), TEXT, MUTATIONS),
    "a recorded table": (recorded(".csv"), TEXT, MUTATIONS),
    "images in the cache": (cached(CIFAR10, ARRAYS), (*BYTES, longer), MUTATIONS),
    "weights in the cache": (cached(VGG16, {"features.0.weight": np.ones((2, 3), np.float16)}), TENSORS, MUTATIONS),
    **{f"a {form} picture": (picture(form), (*BYTES, longer), MUTATIONS // 5) for form in FORMS},
    "a search": (database, (truncated, flipped, swapped, blanked, noise), MUTATIONS),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_gives_the_right_value_or_a_clear_error(tmp_path, kind):
    make, changes, mutations = FILES[kind]
    path, read, exactly = make(tmp_path)
    content, value, draws = path.read_bytes(), read(), random.Random(kind)
    outcomes, messages = [], []
    with watched():
        for _, change in zip(range(mutations), itertools.cycle(changes)):
            changed = change(content, draws)
            path.write_bytes(changed)
            signal.alarm(SECONDS)
            try:
                found = read()
            except (ValueError, FileNotFoundError) as error:  # the kit's own errors are ValueErrors
                outcomes.append("refused")
                messages.append(str(error))
            except Exception as error:
                raise AssertionError(f"{change.__name__} gave {error!r}") from error
            else:
                outcomes.append("read")
                assert not exactly or found == value, f"{change.__name__} gave another value"
    path.write_bytes(content)
    assert not STARTED
    assert all(path.stem in message for message in messages)
    assert outcomes.count("refused") > mutations / 10
    read()


class Program:
    def __reduce__(self):
        return (__import__("os").system, ("true",))


def packed_zeros(path):
    """An archive that says of its array that it takes four gigabytes."""
    np.savez_compressed(path, x=np.zeros(12345, np.uint8))
    content = path.read_bytes()
    said = struct.pack("<L", 12345 + 128)
    assert content.count(said) >= 1
    path.write_bytes(content.replace(said, struct.pack("<L", 2**32 - 2)))


def optimizer_file(**config):
    def make(path):
        tensors = LSTMRule(3).state_dict()
        storage.write_tensors(path, tensors, {"optimizer": {**LSTMRule(3).config(), **config}}, 1)

    return make


def text(old, new):
    original = RECIPE if old in RECIPE else SWEEP
    assert old in original
    return lambda path: path.write_text(original.replace(old, new))


GRID = "\n".join(
    f'"training.{key}" = {list(range(1, 100))}' for key in ("unroll", "epochs", "horizon", "seed", "sample")
)
HOSTILE = {
    # an optimizer
    "a billion units": ("mine.safetensors", optimizer_file(hidden_size=10**9), l2l.load),
    "a billion layers": ("mine.safetensors", optimizer_file(num_layers=10**9), l2l.load),
    "a million tiny layers": ("mine.safetensors", optimizer_file(hidden_size=1, num_layers=10**6), l2l.load),
    "a thousand large groups": (
        "mine.safetensors",
        optimizer_file(kind="groups", groups={str(group): {"hidden_size": 1000} for group in range(1000)}),
        l2l.load,
    ),
    "groups that are none": ("mine.safetensors", optimizer_file(kind="groups", groups=[1]), l2l.load),
    "a bias beyond all numbers": ("mine.safetensors", optimizer_file(forget_bias=10**400), l2l.load),
    "pickled weights": (
        "mine.safetensors",
        lambda path: path.write_bytes(pickle.dumps(Program())),
        l2l.load,
    ),
    # a recipe or a sweep
    "a recipe of ten billion": ("mine.toml", text('"training.unroll" = [1, 2]', GRID), read_recipes),
    "a recipe of a billion units": ("mine.toml", text("hidden_size = 3", "hidden_size = 1_000_000_000"), read_recipes),
    "a recipe of a million layers": ("mine.toml", text("num_layers = 2", "num_layers = 1_000_000"), read_recipes),
    "a recipe for another folder": ("mine.toml", text('"mine-{unroll}"', '"../../mine-{unroll}"'), read_recipes),
    "a recipe with a wide name": ("mine.toml", text("{unroll}", "{unroll:>9999999999}"), read_recipes),
    "a recipe that looks around": ("mine.toml", text("{unroll}", "{unroll.__class__}"), read_recipes),
    "a sweep of a trillion": (
        "mine.toml",
        text("dim = [2, 3]", "\n".join(f"x{key} = {list(range(100))}" for key in range(6))),
        read_sweep,
    ),
    # data
    "four gigabytes of zeros": ("mnist.npz", packed_zeros, lambda _: data.load("mnist", "full")),
    "pickled images": (
        "mnist.npz",
        lambda path: np.savez(path, x_train=np.array([Program()], dtype=object)),
        lambda _: data.load("mnist", "full"),
    ),
    # a picture
    "a program for a printer": (
        "mine.jpg",
        lambda path: Image.new("RGB", (20, 20)).save(path, "EPS"),
        data.load_picture,
    ),
    "a picture of a billion pixels": (
        "mine.png",
        lambda path: path.write_bytes(png_of(100_000, 10_000)),
        data.load_picture,
    ),
}


def png_of(width, height):
    """A PNG that says that it is so large, and is not."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore")
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
    assert not STARTED
    assert [each.name for each in tmp_path.iterdir()] == [file]


def test_a_database_of_something_else_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "search.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE studies (something TEXT)")
    connection.close()
    monkeypatch.setattr("l2l_kit.training.search.time.sleep", lambda _: None)
    with pytest.raises(ValueError, match=r"search\.db"):
        random_search(SEARCH, path, device="cpu")
