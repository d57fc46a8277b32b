"""Data sets: the right one or a clear word, whatever happened to the file, the network or the disk.

Nothing here needs the network: a server on this machine plays the official one, with a few small images.
"""

import gzip
import hashlib
import io
import socket
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from l2l_kit import cli, data, storage
from l2l_kit.data import images, sources, vgg
from l2l_kit.errors import DataError, UnknownNameError

DRAWS = np.random.default_rng(0)
ARRAYS = {
    f"{axis}_{split}": DRAWS.integers(0, 10, (count, *shape), dtype=np.uint8)
    for split, count in (("train", 5), ("test", 3))
    for axis, shape in (("x", (3, 2)), ("y", ()))
}
STAND_IN = {name: array[:2] for name, array in ARRAYS.items()}


def idx(array):
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes(), mtime=0)


FILES = dict(zip(images.MNIST.files, map(idx, ARRAYS.values()), strict=True))
FIRST = next(iter(FILES))


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


def small_data_set(url, **changes):
    return replace(
        images.MNIST,
        title="Small",
        file="small.npz",
        copies={sources.checksum(ARRAYS): ""},
        url=url,
        files={name: md5(content) for name, content in FILES.items()},
        stand_in="Smaller",
        embedded=lambda: STAND_IN,
        **changes,
    )


class Official(ThreadingHTTPServer):
    """A server with the official files. `answer(path)` gives what it sends, and may be replaced to be a bad one."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.downloads = []
        self.files = dict(FILES)
        self.answer = self.files.get

    def handle_error(self, *_):
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        name = self.path.strip("/")
        self.server.downloads.append(name)
        content = self.server.answer(name)
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(self.server.files[name])))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def official():
    with Official() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def put(monkeypatch, tmp_path, official):
    """An empty cache, no proxy, no waiting between tries, and a data set "small"; gives how to add others."""

    def add(name, data_set, **served):
        official.files.update(served)
        monkeypatch.setitem(data.DATA_SETS, name, data_set)

    add("small", small_data_set(official.url))
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield add
    forget()


def forget():
    """As a new process."""
    data._full.cache_clear()
    data._embedded.cache_clear()


@pytest.fixture
def cached(tmp_path):
    """A whole file in the cache."""
    path = tmp_path / "cache" / "small.npz"
    path.parent.mkdir()
    np.savez(path, **ARRAYS)
    return path


@pytest.fixture
def disconnected(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "_unreachable", lambda url: asked.append(url) or "offline")
    return asked


def same(arrays, others):
    return arrays.keys() == others.keys() and all(np.array_equal(arrays[key], others[key]) for key in others)


def holds(found, source, title, arrays):
    (x, y), (x_test, y_test) = found.split("train"), found.split("test")
    assert (x.dtype, y.dtype, y_test.dtype) == (torch.uint8, torch.int64, torch.int64)  # what torch can index with
    tensors = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    return (found.source, found.title) == (source, title) and same(tensors, arrays)


def is_whole(found):
    return holds(found, "full", "Small", ARRAYS)


def is_stand_in(found):
    return holds(found, "embedded", "Smaller", STAND_IN)


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def downloaded_and_cached(official, load, file):
    """What is loaded from the server, and then from the cache."""
    before = len(official.downloads)
    for origin in (official.url, f"cache, {file}"):
        found = load()
        assert (found.source, found.origin) == ("full", origin)
        yield found
        forget()
    assert sorted(official.downloads[before:]) == sorted(set(official.downloads[before:])), "downloaded once"


class TestSources:
    def test_what_is_missing_is_downloaded_once_and_then_read_from_the_cache(self, official, tmp_path):
        for found in downloaded_and_cached(official, lambda: data.load("small"), "small.npz"):
            assert is_whole(found)
            assert data.load("small", "full") is found
            assert files_below(tmp_path) == [tmp_path / "cache" / "small.npz"]
        assert official.downloads == list(FILES)

    def test_a_cached_one_needs_no_network(self, cached, disconnected):
        assert is_whole(data.load("small"))
        assert data.fetch("small") == cached
        assert is_stand_in(data.load("small", "embedded"))
        assert not disconnected

    def test_an_unknown_name_gives_the_near_match(self):
        with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
            data.load("smal")
        with pytest.raises(UnknownNameError, match="Did you mean 'full'"):
            data.load("small", "ful")


def changed(**members):
    """Another file, with other members."""

    def change(path):
        with np.load(path) as file:
            np.savez(path, **{**file, **members})

    return change


def cut(length):
    return lambda path: path.write_bytes(path.read_bytes()[:length])


DAMAGES = {
    "cut by a byte": cut(-1),
    "another image": changed(x_train=ARRAYS["x_train"] ^ 1),
    "one more member": changed(more=np.arange(3)),
}


class TestDamage:
    @pytest.fixture(params=["known", "sealed"])
    def cached(self, request, cached, official, put):
        if request.param == "sealed":
            put("small", sealed := replace(data.DATA_SETS["small"], copies={}))
            sources.write_cached(sealed, ARRAYS)
        assert data.status("small") == (True, "")
        return cached

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_is_never_used_but_named_and_fetched_anew(self, cached, official, monkeypatch, damage):
        DAMAGES[damage](cached)
        whole, remark = data.status("small")
        assert not whole
        assert str(cached) in remark
        with monkeypatch.context() as patched:
            patched.setattr(sources, "_unreachable", lambda url: "offline")
            with pytest.warns(UserWarning, match=r"small\.npz"):
                assert is_stand_in(data.load("small"))
        forget()
        with pytest.warns(UserWarning, match=r"small\.npz.*fetched anew") as caught:
            assert is_whole(data.load("small"))
        assert [warning.filename for warning in caught] == [__file__]
        assert official.downloads == list(FILES)
        assert data.status("small") == (True, "")
        assert files_below(cached.parent) == [cached]

    def test_a_known_copy_is_taken_and_named(self, cached, put):
        copy = {**ARRAYS, "x_train": ARRAYS["x_train"] ^ 1}
        put("small", replace(data.DATA_SETS["small"], copies={sources.checksum(copy): "near copy, from JPEG"}))
        np.savez(cached, **copy)
        found = data.load("small", "full")
        assert found.origin == "cache, small.npz (near copy, from JPEG)"
        assert found.x_train.tolist() == copy["x_train"].tolist()
        assert data.status("small") == (True, "near copy, from JPEG")


@pytest.fixture(params=["refused", "silent", "name", "proxy silent", "proxy nonsense"])
def offline(request, monkeypatch, put):
    """Each way of not being connected."""
    monkeypatch.setattr(sources, "_ANSWER_SECONDS", 0.2)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as listening:  # it takes calls and says nothing
        if "silent" in request.param:
            port = listening.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        if request.param == "name":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
        elif request.param.startswith("proxy"):
            monkeypatch.setenv("http_proxy", "http://.nonsense:1" if "nonsense" in request.param else url)
        direct = request.param in ("refused", "silent")
        put("small", small_data_set(f"{url}/" if direct else "http://official.invalid/"))
        yield
        over.set()


class TestOffline:
    def test_is_noticed_once(self, offline, monkeypatch, tmp_path):
        asked, ask = [], sources._unreachable
        monkeypatch.setattr(sources, "_unreachable", lambda url: asked.append(url) or ask(url))
        for _ in range(3):
            assert is_stand_in(data.load("small"))
            with pytest.raises(DataError) as caught:
                data.load("small", "full")
        assert len(asked) == 1
        for part in ("Small", "cannot be reached", str(tmp_path / "cache"), "`l2l fetch small`", "L2L_DATA_DIR"):
            assert part in str(caught.value)
        assert files_below(tmp_path) == []

    def test_fetch_looks_again(self, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(sources, "_unreachable", lambda url: "offline")
            assert is_stand_in(data.load("small"))
            with pytest.raises(DataError, match=r"cannot be reached \(offline\)"):
                data.fetch("small")
        data.fetch("small")
        assert is_whole(data.load("small"))


BAD_ANSWERS = {
    "wrong content": lambda name: bytes(len(FILES[name])),
    "cut short": lambda name: FILES[name][:-5],
    "not there": lambda name: None,
}


class TestDownload:
    @pytest.mark.parametrize("answer", BAD_ANSWERS)
    def test_a_bad_one_is_tried_again_and_then_refused(self, official, tmp_path, answer):
        official.answer = BAD_ANSWERS[answer]
        for _ in range(2):
            assert is_stand_in(data.load("small"))
        with pytest.raises(DataError, match=f"could not be downloaded from {official.url}"):
            data.load("small", "full")
        assert official.downloads == [FIRST] * 3
        assert files_below(tmp_path) == []
        official.answer = lambda name: (FILES.get if official.downloads.count(name) > 5 else BAD_ANSWERS[answer])(name)
        official.downloads = [*FILES] * 4
        data.fetch("small")  # one that succeeds in the end is as good
        assert is_whole(data.load("small", "full"))


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    before = files_below(tmp_path)
    with pytest.warns(UserWarning, match=r"small\.npz: cannot be written .*L2L_DATA_DIR.* not kept") as caught:
        assert is_whole(data.load("small"))
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(DataError, match=r"small\.npz: cannot be written .*L2L_DATA_DIR"):
        data.fetch("small")
    assert data.status("small") == (False, "")
    assert files_below(tmp_path) == before


def test_the_command_names_what_is_damaged_fetches_it_and_then_leaves_it_alone(official, cached, put, monkeypatch):
    monkeypatch.setattr(cli, "console", Console(width=500))  # no line is broken

    def fetch():
        result = CliRunner().invoke(cli.app, ["fetch", "small"])
        assert result.exit_code == 0, result.output
        return result.output

    cut(100)(cached)
    output = fetch()
    for part in (f"{cached}: truncated, damaged", f"Downloading from {official.url}", f"whole, in {cached}"):
        assert part in output
    put("small", replace(data.DATA_SETS["small"], copies={sources.checksum(ARRAYS): "near copy"}))
    assert fetch().strip() == f"small: whole, in {cached} (near copy)"
    assert official.downloads == list(FILES)


def test_the_command_goes_on_to_the_others_if_one_place_cannot_be_reached(official, cached, put, monkeypatch):
    monkeypatch.setattr(cli, "console", Console(width=500))
    unreachable = replace(data.DATA_SETS["small"])
    monkeypatch.setattr(data, "DATA_SETS", {"gone": unreachable, **data.DATA_SETS})
    fetch = data.fetch

    def fail_for_one(name):
        if name == "gone":
            raise DataError("gone: cannot be reached")
        fetch(name)

    monkeypatch.setattr(data, "fetch", fail_for_one)
    cached.unlink(missing_ok=True)
    result = CliRunner().invoke(cli.app, ["fetch"])
    assert result.exit_code == 2
    assert "gone: cannot be reached" in result.stderr
    assert f"small: whole, in {cached}" in result.stdout


def test_the_embedded_digits_are_a_balanced_part_of_mnist():
    found = data.load("mnist", "embedded")
    assert found.title == "MNIST subset (5,000 digits)"
    assert found.classes == tuple("0123456789")
    assert (found.x_train.shape, found.x_test.shape) == ((4000, 28, 28), (1000, 28, 28))
    assert torch.bincount(found.y_train).tolist() == [400] * 10
    assert torch.bincount(found.y_test).tolist() == [100] * 10
    assert found.x_train.max() == found.x_test.max() == 255
    # No digit is in both, and none is there twice.
    assert len(torch.cat([found.x_train, found.x_test]).flatten(1).unique(dim=0)) == 5000


def tar(members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        for name, member in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(member)
            file.addfile(about, io.BytesIO(member))
    return content.getvalue()


def pickled(pixels, labels):
    """A batch as Python 2 pickled it, which Python 3 cannot: its strings are bytes."""
    size = b"".join(b"J" + length.to_bytes(4, "little") for length in pixels.shape)
    return (
        b"\x80\x02}(U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        b"U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + size + b"\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + pixels.size.to_bytes(4, "little") + pixels.tobytes() + b"tbu."
    )


def test_the_archive_of_cifar10_is_read_once_and_then_the_sealed_cache(official, put, tmp_path):
    batches = {
        name: (DRAWS.integers(0, 256, (2, 3072), dtype=np.uint8), DRAWS.integers(0, 10, 2).tolist())
        for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    }
    # In no order, as in the official one.
    members = {f"cifar-10-batches-py/{name}": pickled(*batch) for name, batch in reversed(batches.items())}
    archive = tar({**members, "cifar-10-batches-py/readme.html": b"<html>"})
    name = "cifar-10-python.tar.gz"
    put("tiny", replace(images.CIFAR10, file="tiny.npz", url=official.url, files={name: md5(archive)}))
    official.files[name] = archive
    for found in downloaded_and_cached(official, lambda: data.load("tiny"), "tiny.npz"):
        assert found.title == "CIFAR-10"
        assert (found.classes[0], found.classes[9]) == ("airplane", "truck")
        # Of the third image the green of row 5, column 7; and then all of them.
        assert found.x_train[2, 1, 5, 7] == batches["data_batch_2"][0][0, 1024 + 5 * 32 + 7]
        for split, some in (("train", list(batches.values())[:5]), ("test", [batches["test_batch"]])):
            x, y = found.split(split)
            assert x.shape == (2 * len(some), 3, 32, 32)
            assert np.array_equal(x.flatten(1), np.concatenate([pixels for pixels, _ in some]))
            assert y.tolist() == [label for _, labels in some for label in labels]


class TestPhotoPatches:
    def test_they_are_balanced_and_never_called_cifar(self):
        found = data.load("cifar10", "embedded")
        assert found.title == "photo patches (10 photographs of scikit-image and scikit-learn)"
        assert len(set(found.classes)) == 10
        assert "cifar" not in " ".join([found.title, found.origin, *found.classes]).lower()
        assert (found.x_train.shape, found.x_test.shape) == ((5000, 3, 32, 32), (1000, 3, 32, 32))
        assert torch.bincount(found.y_train).tolist() == [500] * 10
        assert torch.bincount(found.y_test).tolist() == [100] * 10
        means = torch.stack([found.x_train[found.y_train == label].float().mean(dim=(0, 2, 3)) for label in range(10)])
        assert torch.pdist(means).min() > 1, "each photograph is another one"

    def test_no_pixel_is_both_in_training_and_in_testing(self, monkeypatch):
        """Of photographs whose pixels are their own row and column."""
        rows, columns = np.mgrid[:184, :288]
        monkeypatch.setattr(images, "photograph", lambda *_: np.stack([rows, columns, rows], axis=2))
        arrays = images._embedded_cifar10()
        assert arrays["x_train"][..., 1].max() < arrays["x_test"][..., 1].min()
        for patches in (arrays["x_train"][:500], arrays["x_test"][:100]):
            assert len(np.unique(patches[:, 0, 0], axis=0)) == len(patches)
            assert (patches[:, 31, 31] - patches[:, 0, 0] == 31).all()


class TestPhotographs:
    def test_the_archive_is_read_once_and_then_the_sealed_cache(self, official, put):
        def picture(number):
            """Its colour tells its number."""
            content = io.BytesIO()
            Image.new("RGB", (20, 16), (number % 251, number // 251, 100)).save(content, "PNG")
            return content.getvalue()

        archive = tar(
            {
                f"imagenette2-160/{part}/n{label:02}/{number:04}.JPEG": picture(label * 201 + number)
                for part, count in (("val", 1), ("train", 201))
                for label in range(10)
                for number in range(count)
            }
        )
        name = "imagenette2-160.tgz"
        put("photos", replace(images.PHOTOS, url=official.url, files={name: md5(archive)}))
        official.files[name] = archive
        seen = []
        for found in downloaded_and_cached(official, lambda: data.photographs("full"), "photos.npz"):
            parts = found.train, found.validation, found.test
            assert [tuple(part.shape) for part in parts] == [(count, 3, 128, 128) for count in (1800, 20, 100)]
            numbers = [part[:, 0, 64, 64].int() + 251 * part[:, 1, 64, 64].int() for part in parts]
            assert len(torch.cat(numbers).unique()) == 1920  # none is in two parts
            # Spread over all, not the first ones; the last of each class is not among them.
            assert all(part.float().mean().sub(1005).abs() < 300 for part in numbers)
            assert not (torch.cat(numbers) % 201 == 200).any()
            seen.append(torch.cat(parts))
        assert torch.equal(*seen)

    def test_the_stand_ins_are_crops_and_no_pixel_is_in_two_parts(self, monkeypatch):
        found = data.photographs("embedded")
        assert found.title == "photo crops (7 photographs of scikit-image and scikit-learn)"
        assert [len(part) for part in (found.train, found.validation, found.test)] == [7 * 81, 7 * 3, 7 * 9]
        assert len(found.train.flatten(1).float().mean(dim=1).unique()) > 500
        forget()
        rows, columns = np.mgrid[:256, :512]
        whole = np.stack([rows, columns // 2, columns // 2], axis=2).astype(np.uint8)
        monkeypatch.setattr(images, "photograph", lambda *_: whole)
        found = data.photographs("embedded")
        assert found.train[:, 1].max() < found.validation[:, 1].min()
        assert found.validation[:, 1].max() < found.test[:, 1].min()


class TestVGG16:
    """Its file in the cache is for blue, green and red; the official one is for RGB."""

    FIRST = torch.arange(27.0).reshape(1, 3, 3, 3)

    @pytest.fixture(autouse=True)
    def tiny(self, put, official, monkeypatch):
        content = io.BytesIO()
        weights = {"features.0.weight": self.FIRST, "features.0.bias": torch.tensor([0.5])}
        torch.save({**weights, "classifier.0.weight": torch.full((2, 2), torch.nan)}, content)
        name = f"vgg16_features-amdegroot-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
        monkeypatch.setattr(vgg, "_OFFICIAL", name)
        put("vgg16", replace(vgg.VGG16, url=official.url, files={name: None}), **{name: content.getvalue()})

    def test_the_official_file_is_read_once_and_then_the_sealed_cache(self, official):
        for found in downloaded_and_cached(official, lambda: data.feature_weights("full"), "vgg16.safetensors"):
            assert found.weights.keys() == {"features.0.weight", "features.0.bias"}
            assert torch.equal(found.weights["features.0.weight"], self.FIRST)
            assert found.weights["features.0.bias"].dtype == torch.float32

    def test_damage_is_noticed(self, official, tmp_path):
        path = data.fetch("vgg16")
        content = path.read_bytes()
        for damaged in (content[:100], content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(damaged)
            assert not data.status("vgg16")[0]
        path.unlink()
        official.answer = lambda name: official.files[name][:-1] + b"?"
        with pytest.raises(DataError, match="truncated or damaged"):
            data.fetch("vgg16")
        assert files_below(tmp_path) == []

    def test_without_a_network_the_small_one_stands_in(self, disconnected):
        assert data.feature_weights().title == "the kit's own small network"
        with pytest.raises(DataError, match="`l2l fetch vgg16`"):
            data.feature_weights("full")
