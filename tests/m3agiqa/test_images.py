"""Every kind of picture file that users bring, made for real."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from m3agiqa import InputError
from m3agiqa.images import is_image_name, open_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A black 1-bit PNG, written row by row: Pillow would need a byte for each pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_common_formats(form: str) -> None:
    image = open_image(encoded(Image.new("RGB", (40, 50), RED), form))
    assert image.size == (40, 50)
    assert np.allclose(colour(image, 20, 20), RED, atol=12)


def test_sources(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (40, 50), RED), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    stream = io.BytesIO(data)
    for source in (path, str(path), data, stream, stream, Image.new("RGB", (40, 50), RED)):
        assert colour(open_image(source), 3, 3) == RED


def test_cmyk_jpeg() -> None:
    image = open_image(encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.allclose(colour(image, 20, 20), RED, atol=12)


def test_16_bit_png_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    image = open_image(encoded(Image.fromarray(ramp), "PNG"))
    levels = [colour(image, x, 0)[0] for x in range(64)]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 255)
    assert abs(levels[32] - 128) <= 3


def test_float_tiff() -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    values[0, 0] = np.nan
    image = open_image(encoded(Image.fromarray(values), "TIFF"))
    assert colour(image, 63, 5) == WHITE
    assert abs(colour(image, 32, 5)[0] - 129) <= 2


def test_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (20, 0, 40, 40))
    opened = open_image(encoded(image, "PNG", transparency=0))
    assert (colour(opened, 5, 5), colour(opened, 30, 5)) == (WHITE, BLUE)


@pytest.mark.parametrize("mode, clear", [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))])
def test_alpha_becomes_white(mode: str, clear: tuple[int, ...]) -> None:
    opened = open_image(encoded(Image.new(mode, (40, 40), clear), "PNG"))
    assert colour(opened, 5, 5) == WHITE


def test_half_transparent_is_mixed_with_white() -> None:
    opened = open_image(encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 128)), "WEBP", lossless=True))
    assert np.allclose(colour(opened, 5, 5), (255, 127, 127), atol=2)


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (60, 40), BLUE)
    image.paste(RED, (0, 0, 60, 10))  # top edge
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn right to see it upright
    opened = open_image(encoded(image, "JPEG", quality=95, exif=exif))
    assert opened.size == (40, 60)
    assert np.allclose(colour(opened, 36, 30), RED, atol=12)  # now the right edge
    assert np.allclose(colour(opened, 5, 30), BLUE, atol=12)


def test_exif_that_makes_no_sense_is_no_obstacle() -> None:
    # Orientation 6, and a resolution that is text instead of a ratio
    entries = struct.pack("<H", 2) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    entries += struct.pack("<HHI4s", 0x11A, 2, 3, b"72\0\0") + struct.pack("<I", 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries
    opened = open_image(encoded(Image.new("RGB", (60, 40), BLUE), "JPEG", exif=exif))
    assert np.allclose(colour(opened, 20, 20), BLUE, atol=12)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (40, 40), rgb) for rgb in (RED, BLUE)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    assert np.allclose(colour(open_image(data), 20, 20), RED, atol=12)
    moved_on = Image.open(io.BytesIO(data))
    moved_on.seek(1)
    assert np.allclose(colour(open_image(moved_on), 20, 20), RED, atol=12)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_file(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    with pytest.raises(InputError, match=r"damaged or cut off|not an image"):
        open_image(data[: int(len(data) * share)])


def test_avif_without_its_main_item() -> None:
    data = encoded(Image.new("RGB", (64, 64)), "AVIF").replace(b"pitm", b"PITM")
    with pytest.raises(InputError, match="damaged or cut off"):
        open_image(data)


@pytest.mark.parametrize("data", [b"", b"This is a letter, not a picture.", b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9])
def test_not_an_image(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"not an image that can be read\. Give a PNG"):
        open_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file .*gone\.png"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (31, 500), (500, 31)])
def test_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="{} × {} pixels, .* at least 32 × 32".format(*size)):
        open_image(encoded(Image.new("RGB", size), "PNG"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # our limit is the lower one
@pytest.mark.parametrize("side", [20_000, 10_000, 8_001])
def test_too_large(side: int) -> None:
    with pytest.raises(InputError, match="At most 64 megapixels"):
        open_image(png_of_size(side, side))


def test_smallest_size() -> None:
    assert open_image(png_of_size(32, 32)).size == (32, 32)


def _samples() -> list[bytes]:
    image = Image.effect_mandelbrot((48, 40), (-2, -1, 1, 1), 20).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    return [encoded(image, form, exif=exif) for form in ("PNG", "JPEG", "WEBP", "TIFF")] + [
        encoded(image, form) for form in ("GIF", "BMP", "PPM")
    ]


@pytest.mark.filterwarnings("ignore")
@settings(deadline=None, max_examples=300)
@given(
    data=st.sampled_from(_samples()),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=4)), max_size=4),
)
def test_damaged_files_give_an_image_or_a_clear_error(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(data)
    for place, new in changes:
        start = place % len(damaged)
        damaged[start : start + len(new)] = new
    try:
        assert open_image(bytes(damaged)).mode == "RGB"
    except InputError as error:
        assert str(error).endswith(".")


@pytest.mark.parametrize("name", ["a.png", "A.JPG", "b.jpeg", "c.webp", "d.gif", "e.tif", "f.bmp", "g.avif"])
def test_image_names(name: str) -> None:
    assert is_image_name(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.eps", "a.mp4", "png", ".png"])
def test_other_names(name: str) -> None:
    assert not is_image_name(Path(name))
