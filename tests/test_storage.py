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
    "a number": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def test_tensors_are_read_as_they_were_written(path):
    about = {"text": "θ", "numbers": [1, 0.1, 1e300], "nothing": None, "nested": {"a": True}}
    write_tensors(path, TENSORS, about, version=3)
    tensors, found = read_tensors(path, version=3)
    assert found == about
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_tensors_may_be_views_and_require_gradients(path):
    base = torch.arange(6.0).view(2, 3).requires_grad_()
    write_tensors(path, {"base": base, "turned": base.T}, {}, version=1)
    tensors, _ = read_tensors(path, version=1)
    assert torch.equal(tensors["turned"], base.detach().T)


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS, {"a": 1, "b": 2}, version=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_older_version_is_read(path):
    write_tensors(path, TENSORS, {}, version=1)
    assert read_tensors(path, version=2)[0].keys() == TENSORS.keys()


def test_a_newer_version_is_refused(path):
    write_tensors(path, TENSORS, {}, version=2)
    with pytest.raises(WeightsFileError, match="written in format version 2; this l2l_kit reads up to 1"):
        read_tensors(path, version=1)


def test_every_truncation_is_refused(path):
    write_tensors(path, TENSORS, {"about": "me"}, version=1)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsFileError, match="truncated"):
            read_tensors(path, version=1)


def test_every_changed_byte_is_noticed(path):
    """In tensors, their names and the description alike; the file is read as it was written or not at all."""
    tensors = {"one": torch.tensor([1.0, 2.0]), "two": torch.tensor([3])}
    write_tensors(path, tensors, {"scale": 0.25}, version=1)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
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


def test_a_missing_file_is_named(path):
    with pytest.raises(WeightsFileError, match=r"file\.safetensors: there is no such file"):
        read_tensors(path, version=1)


class TestWriteAtomically:
    def test_replaces_what_was_there_and_makes_folders(self, tmp_path):
        path = tmp_path / "a" / "b"
        write_atomically(path, b"old")
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new"
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("function", ["replace", "fsync"])
    def test_an_interruption_leaves_the_old_content_and_no_rubbish(self, tmp_path, monkeypatch, function):
        path = tmp_path / "file"
        write_atomically(path, b"old")

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(storage.os, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_the_new_content_is_whole_before_it_takes_the_place_of_the_old(self, tmp_path, monkeypatch):
        path, seen = tmp_path / "file", []

        def replace(source, target, original=os.replace):
            with open(source, "rb") as file:
                seen.append(file.read())
            original(source, target)

        monkeypatch.setattr(storage.os, "replace", replace)
        write_atomically(path, b"x" * 100_000)
        assert seen == [b"x" * 100_000]

    @pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
    @pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
    def test_has_the_permissions_of_any_other_file(self, tmp_path, umask):
        """On a shared server others may read what was trained, as far as the umask says."""
        before = os.umask(umask)
        try:
            write_atomically(tmp_path / "written", b"")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == 0o666 & ~umask


class TestLoadWeights:
    def test_loads_what_fits(self):
        module, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        load_weights(module, other.state_dict(), "there")
        assert torch.equal(module.weight, other.weight)

    def test_names_all_that_differs(self):
        module = torch.nn.Linear(2, 3)
        before = module.weight.detach().clone()
        with pytest.raises(WeightsFileError) as caught:
            load_weights(module, {"weight": torch.zeros(3, 4), "extra": torch.zeros(1)}, "there")
        assert str(caught.value) == (
            "there: weights of another optimizer: bias (expected (3,), found nothing); "
            "extra (expected nothing, found (1,)); weight (expected (3, 2), found (3, 4))."
        )
        assert torch.equal(module.weight, before)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_is_refused(self, value):
        module = torch.nn.Linear(2, 3)
        before = module.weight.detach().clone()
        wrong = {**torch.nn.Linear(2, 3).state_dict(), "bias": torch.tensor([0.0, value, 0.0])}
        with pytest.raises(WeightsFileError, match="there: bias holds NaN, infinity"):
            load_weights(module, wrong, "there")
        assert torch.equal(module.weight, before)

    def test_whole_numbers_are_refused(self):
        with pytest.raises(WeightsFileError, match="there: bias holds"):
            load_weights(torch.nn.Linear(2, 3), {"weight": torch.ones(3, 2), "bias": torch.ones(3).long()}, "there")
