"""What can be painted: photographs that come by pip, and people's own pictures."""

import pytest
import torch
from PIL import Image

from l2l_kit import data
from l2l_kit.errors import DataError, UnknownNameError


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
    path = tmp_path / "contents"
    path.mkdir()
    return path


def test_the_photographs_of_pip_are_square_and_all_different():
    pictures = torch.stack([data.content(name) for name in data.content_names()])
    assert pictures.shape == (7, 3, 256, 256)
    assert pictures.dtype == torch.uint8
    assert len(pictures.flatten(1).unique(dim=0)) == 7


def test_own_pictures_are_offered_and_may_take_a_name(folder):
    Image.new("RGB", (40, 30), (1, 2, 3)).save(folder / "mine.png")
    Image.new("RGB", (40, 30), (1, 2, 3)).save(folder / "cat.png")
    assert "mine" in data.content_names()
    assert data.content_names().count("cat") == 1
    for name in ("mine", "cat", folder / "mine.png"):
        assert data.content(name)[:, 0, 0].tolist() == [1, 2, 3]


def test_what_is_no_picture_or_is_not_there_is_named(folder):
    (folder / "broken.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"broken\.png: not a picture"):
        data.content("broken")
    with pytest.raises(UnknownNameError, match=r"unknown content 'cofee'\. Did you mean 'coffee'"):
        data.content("cofee")
    with pytest.raises(DataError, match="cannot be read"):
        data.content(folder / "none.png")
