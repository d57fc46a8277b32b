"""Files: whole or not there, and refused with a clear message."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from l2l_kit import storage
from l2l_kit.errors import WeightsFileError
from l2l_kit.storage import load_weights, read_tensors, write_atomically, write_tensors

TENSORS = {
    "float32": torch.tensor([[1.0, -0.0], [float("inf"), 1e-45]]),
    "float64": torch.tensor([0.1], dtype=torch.float64),
    "bfloat16": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
    "integers": torch.arange(6).view(2, 3),
    "a view": torch.arange(6.0).view(2, 3).requires_grad_().T,
    "a number": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
}
ABOUT = {"text": "θ", "numbers": [1, 0.1, 1e300], "nothing": None, "nested": {"a": True}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_written_is_read_by_this_version_and_newer_ones(path, version):
    write_tensors(path, TENSORS, ABOUT, version=1)
    tensors, found = read_tensors(path, version)
    assert found == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    content = path.read_bytes()
    write_tensors(path, TENSORS, dict(reversed(ABOUT.items())), version=1)
    assert path.read_bytes() == content, "the same content gives the same bytes"


def test_every_truncation_and_every_changed_byte_is_noticed(path):
    """In tensors, their names and the description alike; the file is read as it was written or not at all."""
    tensors = {"one": torch.tensor([1.0, 2.0]), "two": torch.tensor([3])}
    write_tensors(path, tensors, {"scale": 0.25}, version=1)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place])
        with pytest.raises(WeightsFileError, match="truncated"):
            read_tensors(path, version=1)
        for bit in (1, 8):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            try:
                found, about = read_tensors(path, version=1)
            except WeightsFileError as error:
                refused += str(path) in str(error)
            else:  # such as a blank of the padding
                assert about == {"scale": 0.25}
                assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert refused > 1.5 * len(content)


def test_a_file_of_an_earlier_version_has_no_checksum_and_is_read(path):
    save_file({"one": torch.ones(2)}, path, {"l2l_kit": '{"scale": 0.25, "version": 1}'})
    tensors, about = read_tensors(path, version=1)
    assert torch.equal(tensors["one"], torch.ones(2))
    assert about == {"scale": 0.25}


def header(text):
    return lambda path: save_file({"one": torch.ones(2)}, path, {"l2l_kit": text} if text else None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "a folder is there, and no file"),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 40), "not a whole safetensors file"),
        (lambda path: write_tensors(path, TENSORS, {}, version=2), "format version 2; this l2l_kit reads up to 1"),
        *((header(text), "not one of l2l_kit") for text in ("", "[]", "{}", '{"version": null}', "nonsense")),
    ],
)
def test_other_files_are_refused(path, make, message):
    make(path)
    with pytest.raises(WeightsFileError, match=rf"file\.safetensors.*{message}"):
        read_tensors(path, version=1)


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left")], ids=["Ctrl-C", "full"])
def test_what_goes_wrong_leaves_the_old_content_and_no_rubbish(tmp_path, monkeypatch, function, error):
    path = tmp_path / "a" / "file"
    for content in (b"older", b"old"):
        write_atomically(path, content)

    def fails(*_):
        raise error

    monkeypatch.setattr(storage.os, function, fails)
    with pytest.raises(type(error)) as caught:
        write_atomically(path, b"new")
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno 28] No space left: {str(path)!r}"
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_a_file_has_the_permissions_of_any_other(tmp_path, umask):
    """On a shared server others may read what was trained, as far as the umask says."""
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "written", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bias": torch.tensor([0.0, torch.nan, 0.0])}, "bias holds NaN, infinity"),
        ({"bias": torch.tensor([0.0, -torch.inf, 0.0])}, "bias holds NaN, infinity"),
        ({"bias": torch.ones(3).long()}, "bias holds"),
        ({"weight": torch.zeros(3, 4)}, r"weight \(expected \(3, 2\), found \(3, 4\)\)"),
        ({"more": torch.zeros(1)}, r"more \(expected nothing, found \(1,\)\)"),
        ({"bias": None}, r"bias \(expected \(3,\), found nothing\)"),
    ],
)
def test_weights_are_loaded_if_they_fit_and_else_nothing_is(wrong, message):
    module, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    load_weights(module, other.state_dict(), "there")
    weights = {name: tensor for name, tensor in {**module.state_dict(), **wrong}.items() if tensor is not None}
    with pytest.raises(WeightsFileError, match=f"there: .*{message}"):
        load_weights(module, weights, "there")
    assert torch.equal(module.weight, other.weight)
    assert torch.equal(module.bias, other.bias)
