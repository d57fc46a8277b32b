"""Pictures: whatever the file, it is read or refused in a sentence; contents and styles by name."""

import io
import os
import runpy
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from l2l_kit import data
from l2l_kit.data import pictures
from l2l_kit.errors import DataError, UnknownNameError

RED, BLUE = (200, 30, 40), (20, 60, 180)


def halves(mode="RGB", size=(40, 30)):
    """Red on the left and blue on the right."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, *size))
    return picture.convert(mode)


def encoded(picture, format="PNG", **options):
    content = io.BytesIO()
    picture.save(content, format, **options)
    return content.getvalue()


def close(pixels, place, colour, by=3):
    return np.abs(pixels[:, place[0], place[1]].numpy().astype(int) - np.array(colour)).max() <= by


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_every_format_gives_the_same_picture_from_a_file_or_its_content(format, tmp_path):
    content = encoded(halves(), format, **({"lossless": True} if format == "WEBP" else {}))
    pixels = data.load_picture(content)
    assert (pixels.shape, pixels.dtype) == ((3, 30, 40), torch.uint8)
    assert close(pixels, (15, 5), RED, by=12)
    assert close(pixels, (15, 35), BLUE, by=12)
    (tmp_path / "halves").write_bytes(content)
    assert torch.equal(data.load_picture(tmp_path / "halves"), pixels)


def flat(mode, values):
    """30 by 40 pixels of one colour, given as the numbers that are stored."""
    array = np.broadcast_to(np.array(values), (30, 40, *np.shape(values)))
    if mode == "1":
        return Image.fromarray(array.astype(np.uint8)).convert("1")
    if mode == "P":
        picture = Image.new("P", (40, 30), 1)
        picture.putpalette([0, 0, 0, *values])
        return picture
    if mode == "I;16B":
        picture = Image.new(mode, (40, 30))
        picture.putdata([values] * (30 * 40))
        return picture
    dtype = {"F": np.float32, "I": np.int32, "I;16": np.uint16}.get(mode, np.uint8)
    return Image.frombytes(mode, (40, 30), np.ascontiguousarray(array, dtype=dtype).tobytes())


@pytest.mark.parametrize(
    ("mode", "stored", "format", "seen"),
    [
        ("1", 255, "PNG", (255, 255, 255)),
        ("L", 200, "PNG", (200, 200, 200)),
        ("P", (10, 20, 30), "PNG", (10, 20, 30)),
        ("LA", (0, 51), "PNG", (204, 204, 204)),  # a fifth of black on white
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30)),
        ("RGBA", (255, 0, 0, 102), "PNG", (255, 153, 153)),  # two fifths of red on white
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("YCbCr", (76, 85, 255), "TIFF", (254, 0, 0)),
        ("LAB", (255, 0, 0), "TIFF", (255, 255, 255)),
        ("I;16", 0x4040, "PNG", (64, 64, 64)),
        ("I;16", 200, "PNG", (1, 1, 1)),  # 16 bits are 16 bits, however dark
        ("I;16B", 0x4040, "TIFF", (64, 64, 64)),
        ("I", 2**30, "TIFF", (255, 255, 255)),
        ("F", 0.25, "TIFF", (255, 255, 255)),
        ("F", float("nan"), "TIFF", (0, 0, 0)),
    ],
)
def test_every_mode_is_read_as_what_it_shows(mode, stored, format, seen):
    content = encoded(flat(mode, stored), format)
    with Image.open(io.BytesIO(content)) as file:
        assert file.mode == mode  # that is what is tested
    assert close(data.load_picture(content), (15, 5), seen, by=1)


class TestUnusualPictures:
    @pytest.mark.parametrize("white", [1.0, 7e4])
    def test_of_floating_point_the_brightest_pixel_is_white(self, white):
        rows = np.full((30, 40), white, np.float32)
        rows[:, 20:] /= 4
        pixels = data.load_picture(encoded(Image.fromarray(rows), "TIFF"))
        assert close(pixels, (15, 5), (255, 255, 255))
        assert close(pixels, (15, 35), (64, 64, 64))

    def test_a_palette_with_transparency(self):
        picture = halves("P")
        pixels = data.load_picture(encoded(picture, transparency=picture.getpixel((35, 15))))
        assert close(pixels, (15, 5), RED, by=30)
        assert close(pixels, (15, 35), (255, 255, 255))

    @pytest.mark.parametrize(("orientation", "shape", "left"), [(6, (3, 40, 30), (5, 15)), (3, (3, 30, 40), (15, 35))])
    def test_it_is_turned_as_the_camera_says(self, orientation, shape, left):
        rows = np.zeros((30, 40), "uint16")
        rows[:, :20] = 2**16 - 1
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = data.load_picture(encoded(Image.fromarray(rows), exif=exif))
        assert pixels.shape == shape
        assert close(pixels, left, (255, 255, 255))

    def test_20_megapixels_are_made_smaller(self):
        pixels = data.load_picture(encoded(halves(size=(5477, 3652)), "JPEG"))
        assert max(pixels.shape) == pictures.LARGEST
        assert close(pixels, (100, 100), RED)
        assert pixels.shape[1] / pixels.shape[2] == pytest.approx(3652 / 5477, abs=0.01)

    def test_of_an_animation_the_first_picture(self):
        content = encoded(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30))])
        assert close(data.load_picture(content), (15, 5), RED, by=12)


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "not a picture"),
            (b"hello, world", "not a picture"),
            (encoded(halves())[:80], "not a picture"),
            (encoded(halves(), "JPEG")[:-300], "not a picture"),
            (encoded(Image.new("RGB", (400, 3))), "400 by 3 pixels are too few"),
        ],
        ids=["empty", "text", "cut PNG", "cut JPEG", "a line"],
    )
    def test_say_what_is_wrong_and_with_which_file(self, content, reason, tmp_path):
        path = tmp_path / "mine.jpg"
        path.write_bytes(content)
        for arguments, name in (((content,), "the picture"), ((path,), "mine.jpg"), ((content, "upload"), "upload")):
            with pytest.raises(DataError, match=f"^{name}: {reason}"):
                data.load_picture(*arguments)

    def test_what_is_too_large_is_not_decoded(self, monkeypatch):
        monkeypatch.setattr(pictures, "_plain", None)
        huge = encoded(halves()).replace(struct.pack(">II", 40, 30), struct.pack(">II", 60000, 60000))
        with pytest.raises(DataError):  # Pillow sees it
            data.load_picture(huge)
        monkeypatch.setattr(pictures, "_MOST", 1000)
        with pytest.raises(DataError, match="40 by 30 pixels are too many"):
            data.load_picture(encoded(halves()))


KINDS = {
    "styles": (data.style_names, data.style, ["bricks", "gravel", "mosaic", "swirls", "tissue", "woodcut"]),
    "contents": (
        *(data.content_names, data.content),
        ["astronaut", "cat", "coffee", "flower", "motorcycle", "palace", "rocket"],
    ),
}


@pytest.mark.parametrize(("kind", "names", "get", "embedded"), [(kind, *how) for kind, how in KINDS.items()], ids=KINDS)
class TestContentsAndStyles:
    @pytest.fixture
    def own(self, monkeypatch, tmp_path, kind):
        monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
        (tmp_path / kind).mkdir()
        return tmp_path / kind

    def test_without_a_cache_there_are_those_of_the_kit_all_different(self, own, names, get, embedded):
        own.rmdir()
        assert names() == embedded
        found = [get(name) for name in names()]
        assert {(picture.dtype, picture.shape[0]) for picture in found} == {(torch.uint8, 3)}
        pictures._embedded.cache_clear()
        assert all(torch.equal(get(name), picture) for name, picture in zip(names(), found, strict=True))
        assert all(min(picture.shape[1:]) >= 256 and picture.float().std() > 15 for picture in found)
        assert len({picture.float().mean().item() for picture in found}) == len(found)

    def test_own_ones_go_before_and_only_pictures_are_offered(self, own, names, get, embedded):
        files = ("one.jpg", "one.png", "two.jpg", "two.jpg.png", "._one.jpg", ".hidden.png", f"{embedded[0]}.PNG")
        for name in files:
            (own / name).write_bytes(encoded(halves()))
        (own / "folder.jpg").mkdir()
        (own / "notes.txt").write_text("no picture")
        assert names() == sorted([*embedded, "one.jpg", "one.png", "two", "two.jpg.png"])
        for name in ("one.jpg", "one.png", "two", "two.jpg.png", embedded[0], own / "two.jpg"):
            assert close(get(name), (15, 5), RED)

    def test_a_picture_that_was_replaced_is_read_again(self, own, names, get, embedded):
        for day, (picture, colour) in enumerate([(halves(), RED), (halves().rotate(180), BLUE)]):
            (own / "mine.png").write_bytes(encoded(picture))
            os.utime(own / "mine.png", (day, day))
            assert close(get("mine"), (15, 5), colour)

    def test_what_is_no_picture_or_is_not_there_is_named(self, own, names, get, embedded):
        (own / "mine.png").write_bytes(b"hello")
        with pytest.raises(DataError, match=r"mine\.png: not a picture"):
            get("mine")
        with pytest.raises(DataError, match=r"other\.png: cannot be read"):
            get(str(own / "other.png"))
        near = embedded[2]
        with pytest.raises(UnknownNameError, match=f"unknown {own.name[:-1]} '{near[1:]}'. Did you mean '{near}'"):
            get(near[1:])


class TestFitted:
    def test_is_the_middle_square(self):
        wide = torch.zeros(1, 3, 8, 20)
        wide[..., 6:14] = 100
        assert torch.equal(data.fitted(wide, 8), torch.full((1, 3, 8, 8), 100.0))
        assert torch.equal(data.fitted(wide.transpose(2, 3), 8), torch.full((1, 3, 8, 8), 100.0))

    def test_halving_keeps_means_and_constants(self):
        noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
        small = data.fitted(noise, 16)
        assert small.shape == (2, 3, 16, 16)
        torch.testing.assert_close(small.mean(), noise.mean(), rtol=0.01, atol=0)
        assert small.std() < noise.std()  # antialiased
        torch.testing.assert_close(data.fitted(torch.full((1, 3, 20, 20), 7.0), 9), torch.full((1, 3, 9, 9), 7.0))


def test_the_styles_of_the_kit_are_what_the_code_draws():
    """Nearly: arithmetic differs by a shade between machines."""
    folder = Path(__file__).parents[1] / "data" / "styles"
    styles = runpy.run_path(str(folder / "draw.py"))["STYLES"]
    assert {path.stem for path in folder.glob("*.png")} == set(styles)
    for name, draw in styles.items():
        assert (draw().int() - data.load_picture(folder / f"{name}.png").int()).abs().float().mean() < 0.1
