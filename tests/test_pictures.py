"""People's own pictures: whatever the file, it is read or refused in a sentence; and the styles that are there."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from l2l_kit import data
from l2l_kit.data import pictures, procedural
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


def png(rows, depth, colour):
    """A PNG of 16-bit samples, which Pillow does not write in colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = rows.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def close(pixels, place, colour, by=3):
    return np.abs(pixels[:, place[0], place[1]].numpy().astype(int) - np.array(colour)).max() <= by


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_every_format_gives_the_same_picture(format):
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = data.load_picture(encoded(halves(), format, **options))
    assert pixels.shape == (3, 30, 40)
    assert pixels.dtype == torch.uint8
    assert close(pixels, (15, 5), RED, by=12)
    assert close(pixels, (15, 35), BLUE, by=12)


def test_from_a_file_or_from_its_content(tmp_path):
    path = tmp_path / "halves.png"
    path.write_bytes(encoded(halves()))
    assert torch.equal(data.load_picture(path), data.load_picture(path.read_bytes()))
    assert torch.equal(data.load_picture(str(path)), data.load_picture(path))


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
        ("1", 0, "TIFF", (0, 0, 0)),
        ("L", 200, "PNG", (200, 200, 200)),
        ("P", (10, 20, 30), "PNG", (10, 20, 30)),
        ("LA", (200, 255), "PNG", (200, 200, 200)),
        ("LA", (0, 51), "PNG", (204, 204, 204)),  # a fifth of black on white
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), "TIFF", (10, 20, 30)),
        ("RGBA", (255, 0, 0, 102), "PNG", (255, 153, 153)),  # two fifths of red on white
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("CMYK", (0, 0, 0, 102), "TIFF", (153, 153, 153)),
        ("YCbCr", (76, 85, 255), "TIFF", (254, 0, 0)),
        ("LAB", (255, 0, 0), "TIFF", (255, 255, 255)),
        ("I;16", 0x4040, "PNG", (64, 64, 64)),
        ("I;16", 0x4040, "TIFF", (64, 64, 64)),
        ("I;16", 200, "PNG", (1, 1, 1)),  # 16 bits are 16 bits, however dark
        ("I;16B", 0x4040, "TIFF", (64, 64, 64)),
        ("I", 200, "TIFF", (200, 200, 200)),
        ("I", 0x4040, "TIFF", (64, 64, 64)),
        ("I", 2**30, "TIFF", (255, 255, 255)),
        ("I", -5, "TIFF", (0, 0, 0)),
        ("F", 200.0, "TIFF", (200, 200, 200)),
        ("F", 0.25, "TIFF", (64, 64, 64)),
        ("F", float(0x4040), "TIFF", (64, 64, 64)),
        ("F", 0.0, "TIFF", (0, 0, 0)),
        ("F", float("nan"), "TIFF", (0, 0, 0)),
    ],
)
def test_every_mode_is_read_as_what_it_shows(mode, stored, format, seen):
    content = encoded(flat(mode, stored), format)
    with Image.open(io.BytesIO(content)) as file:
        assert file.mode == mode  # that is what is tested
    assert close(data.load_picture(content), (15, 5), seen, by=1)


class TestUnusualPictures:
    def test_cmyk(self):
        pixels = data.load_picture(encoded(halves("CMYK"), "JPEG", quality=95))
        assert pixels.shape == (3, 30, 40)
        assert close(pixels, (15, 5), RED, by=25)
        assert close(pixels, (15, 35), BLUE, by=25)

    def test_16_bits_in_grey(self):
        rows = np.full((30, 40), 65535 // 4, np.uint16)
        rows[:, 20:] = 65535
        for content in (encoded(Image.fromarray(rows)), png(rows, 16, 0)):
            pixels = data.load_picture(content)
            assert close(pixels, (15, 5), (64, 64, 64))
            assert close(pixels, (15, 35), (255, 255, 255))

    def test_16_bits_in_colour(self):
        rows = np.tile((np.array(RED) * 257).astype(np.uint16), (30, 40, 1))
        assert close(data.load_picture(png(rows, 16, 2)), (15, 5), RED)

    def test_a_palette_with_transparency(self):
        picture = halves("P")
        picture.info["transparency"] = picture.getpixel((35, 15))
        pixels = data.load_picture(encoded(picture, transparency=picture.getpixel((35, 15))))
        assert close(pixels, (15, 5), RED, by=30)
        assert close(pixels, (15, 35), (255, 255, 255))

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_is_put_on_white(self, mode):
        picture = halves("RGBA")
        picture.putalpha(Image.new("L", picture.size, 0))
        assert close(data.load_picture(encoded(picture.convert(mode))), (15, 5), (255, 255, 255))

    @pytest.mark.parametrize("mode", ["1", "L"])
    def test_without_colours(self, mode):
        assert data.load_picture(encoded(halves(mode))).shape == (3, 30, 40)

    @pytest.mark.parametrize(("orientation", "shape", "red"), [(6, (3, 40, 30), (5, 15)), (3, (3, 30, 40), (15, 35))])
    def test_it_is_turned_as_the_camera_says(self, orientation, shape, red):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = data.load_picture(encoded(halves(), exif=exif))
        assert pixels.shape == shape
        assert close(pixels, red, RED)

    def test_16_bits_are_turned_too(self):
        rows = np.full((30, 40), 65535, np.uint16)
        rows[:, 20:] = 0
        exif = Image.Exif()
        exif[0x0112] = 6  # by a quarter
        pixels = data.load_picture(encoded(Image.fromarray(rows), exif=exif))
        assert close(pixels, (5, 15), (255, 255, 255))
        assert close(pixels, (35, 15), (0, 0, 0))

    @pytest.mark.parametrize("format", ["JPEG", "PNG"])
    def test_20_megapixels_are_made_smaller(self, format):
        pixels = data.load_picture(encoded(halves(size=(5477, 3652)), format))
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
            (encoded(Image.new("RGB", (1, 1))), "1 by 1 pixels are too few"),
            (encoded(Image.new("RGB", (400, 3))), "400 by 3 pixels are too few"),
        ],
        ids=["empty", "text", "cut PNG", "cut JPEG", "1x1", "a line"],
    )
    def test_say_what_is_wrong_and_with_which_file(self, content, reason, tmp_path):
        with pytest.raises(DataError, match=f"the picture: {reason}"):
            data.load_picture(content)
        path = tmp_path / "mine.jpg"
        path.write_bytes(content)
        for name, source in (("mine.jpg", path), ("upload", content)):
            with pytest.raises(DataError, match=f"^{name}: {reason}"):
                data.load_picture(source, "" if source is path else "upload")

    def test_what_is_too_large_is_not_decoded(self, monkeypatch):
        monkeypatch.setattr(pictures, "_MOST", 1000)
        monkeypatch.setattr(pictures, "_plain", None)
        with pytest.raises(DataError, match="40 by 30 pixels are too many"):
            data.load_picture(encoded(halves()))

    def test_a_decompression_bomb(self):
        bomb = encoded(halves()).replace(struct.pack(">II", 40, 30), struct.pack(">II", 60000, 60000))
        with pytest.raises(DataError):
            data.load_picture(bomb)

    def test_a_file_that_is_not_there(self, tmp_path):
        for path in (tmp_path / "none.png", tmp_path):
            with pytest.raises(DataError, match="cannot be read"):
                data.load_picture(path)


class TestStyles:
    @pytest.fixture(autouse=True)
    def own(self, monkeypatch, tmp_path):
        monkeypatch.setenv("L2L_DATA_DIR", str(tmp_path))
        (tmp_path / "styles").mkdir()
        return tmp_path / "styles"

    def test_without_a_cache_there_are_those_of_the_kit(self):
        assert data.style_names() == ["bricks", "gravel", "mosaic", "swirls", "tissue", "woodcut"]
        for name in data.style_names():
            style = data.style(name)
            assert style.dtype == torch.uint8
            assert style.shape[0] == 3
            assert min(style.shape[1:]) >= 256
            assert style.float().std() > 15

    def test_an_own_one_goes_before(self, own):
        for name in ("mine", "swirls"):
            (own / f"{name}.PNG").write_bytes(encoded(halves()))
            assert close(data.style(name), (15, 5), RED)
        (own / "notes.txt").write_text("no picture")
        assert set(data.style_names()) == {"bricks", "gravel", "mine", "mosaic", "swirls", "tissue", "woodcut"}

    def test_only_pictures_are_offered_and_none_is_lost(self, own):
        for name in ("one.jpg", "one.png", "two.jpg", "two.jpg.png", "._one.jpg", ".hidden.png"):
            (own / name).write_bytes(encoded(halves()))
        (own / "folder.jpg").mkdir()
        added = set(data.style_names()) - {"bricks", "gravel", "mosaic", "swirls", "tissue", "woodcut"}
        assert added == {"one.jpg", "one.png", "two", "two.jpg.png"}
        for name in added:
            assert data.style(name).shape == (3, 30, 40)

    def test_a_path(self, tmp_path):
        (tmp_path / "mine.png").write_bytes(encoded(halves()))
        assert data.style(tmp_path / "mine.png").shape == (3, 30, 40)
        with pytest.raises(DataError, match=r"other\.png: cannot be read"):
            data.style(str(tmp_path / "other.png"))

    def test_an_unknown_name_gives_the_near_match(self):
        with pytest.raises(UnknownNameError, match="Did you mean 'mosaic'"):
            data.style("mosiac")

    def test_a_file_that_is_no_picture_is_named(self, own):
        (own / "mine.png").write_bytes(b"hello")
        with pytest.raises(DataError, match=r"mine\.png"):
            data.style("mine")

    @pytest.mark.parametrize("name", procedural.STYLES)
    def test_drawn_ones_are_the_same_each_time(self, name):
        assert torch.equal(procedural.STYLES[name](), procedural.STYLES[name]())


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
