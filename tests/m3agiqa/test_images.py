"""Every kind of picture file that users bring, made for real."""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from m3agiqa import InputError
from m3agiqa.image_metadata import find_prompt
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


RAMP = np.linspace(0, 1, 64)[None].repeat(64, 0)


@pytest.mark.parametrize(
    "values, brightest",
    [
        (RAMP.astype(np.float32), 255),
        (RAMP.astype(np.float32) * 255, 255),
        (RAMP.astype(np.float32) * 65535, 255),
        (RAMP.astype(np.float32) * 1.4, 255),  # of its own range
        (RAMP.astype(np.float32) / 2, 128),  # a dark picture stays dark
        (np.where(RAMP == 1, np.inf, RAMP).astype(np.float32), 255),
        (np.where(RAMP == 0, np.nan, RAMP).astype(np.float32), 255),
        ((RAMP * 1.02 - 0.02).astype(np.float32), 255),  # an overshoot of resampling
        ((RAMP * 255).astype(np.int32), 255),
        ((RAMP * 65535).astype(np.int32), 255),
        ((RAMP * 128).astype(np.int32), 128),
        ((RAMP * 65535).astype(np.uint16), 255),
        ((RAMP * 255).astype(np.uint8), 255),
    ],
)
@pytest.mark.parametrize("encode", [lambda image: encoded(image, "TIFF"), lambda image: image])
def test_values_of_16_and_32_bits_become_what_they_mean(encode, values: np.ndarray, brightest: int) -> None:
    levels = np.asarray(open_image(encode(Image.fromarray(values))))[5, :, 0].astype(int)
    assert (levels[0], levels[-1]) == (0, brightest)
    assert abs(levels[32] - brightest / 2) <= 4
    assert sorted(levels) == list(levels)


@pytest.mark.parametrize(
    "values, tag, value, new, ends",
    [
        ((RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32), "SAMPLEFORMAT", 2, 1, [0, 255]),  # unsigned
        ((RAMP * 65535).astype(np.uint16), "PHOTOMETRIC_INTERPRETATION", 1, 0, [255, 0]),  # zero is white
        (np.full((64, 64), 65535, np.uint16), "BITSPERSAMPLE", 16, 12, [255, 255]),
    ],
)
def test_numbers_as_the_tags_of_a_tiff_say(
    values: np.ndarray, tag: str, value: int, new: int, ends: list[int]
) -> None:
    before, after = (struct.pack("<HHII", getattr(TiffImagePlugin, tag), 3, 1, x) for x in (value, new))
    data = encoded(Image.fromarray(values), "TIFF")
    assert before in data
    assert np.asarray(open_image(data.replace(before, after)))[5, ::63, 0].tolist() == ends


@pytest.mark.parametrize(
    "values, sentence",
    [
        (RAMP.astype(np.float32) - 1, "have values from -1 to 0; those of a picture start at 0"),
        ((RAMP * 2 - 1).astype(np.float32), "have values from -1 to 1;"),
        (np.full((64, 64), np.nan, np.float32), "None of the image's pixels holds a number"),
    ],
)
def test_numbers_that_are_no_picture_are_refused(values: np.ndarray, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_image(encoded(Image.fromarray(values), "TIFF"))


def test_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (20, 0, 40, 40))
    opened = open_image(encoded(image, "PNG", transparency=0))
    assert (colour(opened, 5, 5), colour(opened, 30, 5)) == (WHITE, BLUE)


@pytest.mark.parametrize(
    "mode, clear, solid", [("RGBA", (255, 0, 0, 0), (*RED, 254)), ("LA", (0, 0), (76, 255))]
)
def test_alpha_becomes_white(mode: str, clear: tuple[int, ...], solid: tuple[int, ...]) -> None:
    image = Image.new(mode, (40, 40), clear)
    image.paste(solid, (20, 0, 40, 40))
    opened = open_image(encoded(image, "PNG"))
    assert (colour(opened, 5, 5), colour(opened, 30, 5)) == (WHITE, (*solid[:-1] * 3,)[:3])


def test_a_fully_transparent_image_is_refused() -> None:
    with pytest.raises(InputError, match="fully transparent: nothing can be seen"):
        open_image(encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "PNG"))


def test_half_transparent_is_mixed_with_white() -> None:
    opened = open_image(encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 128)), "WEBP", lossless=True))
    assert np.allclose(colour(opened, 5, 5), (255, 127, 127), atol=2)


# --- colour profiles -------------------------------------------------------------------------------

# Primaries as X and Z in the profile connection space, where Y is what sums up to 1, and the white of D50.
ADOBE_RGB = (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
DISPLAY_P3 = (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """A matrix profile of version 2, byte by byte: Pillow makes none but sRGB."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249), b"cprt": b"text\0\0\0\0none\0"}
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    for name, primary in zip(b"rgb", primaries, strict=True):
        tags[bytes([name]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*primary)
        tags[bytes([name]) + b"TRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12x4s",
        132 + 12 * len(tags) + len(body),
        b"test",
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
    )
    head += bytes(28) + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


def profile_named(name: str) -> bytes:
    if name == "swapped":
        red, green, blue = ADOBE_RGB
        return rgb_profile((blue, green, red), 2.2)
    return {
        "Adobe RGB": rgb_profile(ADOBE_RGB, 563 / 256),
        "Display P3": rgb_profile(DISPLAY_P3, 2.2),
        "sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "damaged": rgb_profile(ADOBE_RGB, 2.2)[:200],
        "of CMYK": rgb_profile(ADOBE_RGB, 2.2).replace(b"RGB ", b"CMYK"),
        "no profile": b"letters",
    }[name]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    "name, stored, shown",
    [
        # What colour management of any kind says of these: https://www.w3.org/TR/css-color-4/#color-conversion-code
        ("Adobe RGB", (200, 100, 100), (227, 100, 100)),
        ("Display P3", (200, 100, 100), (214, 94, 96)),
        ("swapped", (200, 60, 60), (57, 57, 204)),
        ("sRGB", (200, 100, 30), (200, 100, 30)),
        ("damaged", (200, 100, 30), (200, 100, 30)),
        ("of CMYK", (200, 100, 30), (200, 100, 30)),
        ("no profile", (200, 100, 30), (200, 100, 30)),
    ],
)
def test_colours_are_those_of_the_profile(
    form: str, name: str, stored: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(form, {})
    data = encoded(Image.new("RGB", (40, 40), stored), form, icc_profile=profile_named(name), **options)
    assert np.allclose(colour(open_image(data), 20, 20), shown, atol=4)


def test_profiles_of_transparent_gray_and_cmyk_images() -> None:
    profile = profile_named("Adobe RGB")
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((200, 100, 100, 255), (20, 0, 40, 40))
    opened = open_image(encoded(image, "PNG", icc_profile=profile))
    assert colour(opened, 5, 5) == WHITE
    assert np.allclose(colour(opened, 30, 5), (227, 100, 100), atol=4)
    palette = Image.new("RGB", (40, 40), (200, 100, 100)).quantize(4)
    assert np.allclose(
        colour(open_image(encoded(palette, "PNG", icc_profile=profile)), 5, 5), (227, 100, 100), atol=4
    )
    for mode, fill in (("L", 120), ("CMYK", (0, 255, 255, 0))):  # for which an RGB profile is no help
        image = Image.new(mode, (40, 40), fill)
        expected = image.convert("RGB").getpixel((0, 0))
        opened = open_image(encoded(image, "TIFF", icc_profile=profile))
        assert colour(opened, 5, 5) == expected


def test_a_tiff_in_lab() -> None:
    opened = open_image(encoded(Image.new("LAB", (40, 40), (128, 128 + 60, 128)), "TIFF"))
    red, green, blue = colour(opened, 5, 5)
    assert red > 170 and green < 90 and blue > 80


# --- rotation ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "not an image that can be read. Give a PNG"),
        (b"This is a letter, not a picture.", "not an image that can be read. Give a PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9, "not an image that can be read. Give a PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC picture"),
        (b"\xff\x0a" + bytes(99), "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "a JPEG XL picture"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\0\0\0\x20ftypisom" + bytes(99), "a video"),
        (b"II*\0" + bytes(99), "a TIFF file of a rare kind"),
    ],
)
def test_not_an_image(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data)):
        with pytest.raises(InputError, match=re.escape(sentence)):
            open_image(source)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.png")
    (loop := tmp_path / "loop.png").symlink_to("loop.png")
    for source, sentence in {
        tmp_path / "gone.png": r"There is no file .*gone\.png",
        tmp_path: "is a folder",
        pipe: r"pipe\.png is a pipe or a device",
        "/dev/null": "/dev/null is a pipe or a device",
        loop: r"loop\.png cannot be read: Too many levels of symbolic links",
        "a\0b.png": r"There is no file 'a\\x00b\.png'",
        "https://example.org/a.png": "https://example.org/a.png is a URL; download the image",
    }.items():
        with pytest.raises(InputError, match=sentence):
            open_image(source)


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_metadata_bomb_is_left_out(tmp_path: Path, kind: bytes, place: str) -> None:
    packed = zlib.compress(bytes(2_000_000))
    chunk = {b"iTXt": b"Comment\0\1\0\0\0", b"zTXt": b"Comment\0\0", b"iCCP": b"icc\0\0"}[kind] + packed
    info = PngImagePlugin.PngInfo()
    info.add(kind, chunk, after_idat=place == "behind")
    path = tmp_path / "bomb.png"
    path.write_bytes(data := encoded(Image.new("RGB", (40, 40), RED), "PNG", pnginfo=info))
    for source in (data, path, io.BytesIO(data)):
        assert colour(open_image(source), 5, 5) == RED


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
    """Small files of each format, with all that can stand in one."""
    image = Image.effect_mandelbrot((48, 40), (-2, -1, 1, 1), 20)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + "a mill".encode("utf-16-le")
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a lighthouse\nSteps: 20, Seed: 1", zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    metadata = {"exif": exif, "icc_profile": profile_named("Adobe RGB"), "xmp": XMP}
    colours = image.convert("RGB")
    return [
        encoded(colours, "PNG", pnginfo=info, exif=exif, icc_profile=metadata["icc_profile"]),
        encoded(colours.convert("RGBA"), "PNG"),
        encoded(colours.quantize(8), "PNG", transparency=3),
        *(encoded(colours, form, **metadata) for form in ("JPEG", "WEBP", "TIFF", "AVIF")),
        *(encoded(image.convert(mode), "TIFF") for mode in ("I", "F", "I;16", "CMYK", "LAB")),
        encoded(colours.convert("RGBA"), "WEBP", lossless=True),
        *(encoded(colours, form) for form in ("GIF", "BMP", "PPM", "JPEG2000")),
    ]


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description/></x:xmpmeta>'


@pytest.mark.filterwarnings("ignore")
@settings(deadline=10_000, max_examples=250)
@given(
    data=st.sampled_from(_samples()),
    changes=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 8), st.binary(max_size=12)), min_size=1, max_size=4
    ),
)
def test_hostile_files_give_an_image_or_a_sentence(
    data: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    """Bytes are spliced in, taken out and overwritten; what is metadata is read from all of these too."""
    hostile = bytearray(data)
    for place, removed, new in changes:
        start = place % (len(hostile) + 1)
        hostile[start : start + removed] = new
    with limited_memory():
        try:
            assert open_image(bytes(hostile)).mode == "RGB"
        except InputError as error:
            assert str(error).endswith(".")
        find_prompt(bytes(hostile))


@contextmanager
def limited_memory() -> Iterator[None]:
    """What takes more than 2 GB beside what the process has already fails with a MemoryError."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * 10**9, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", ["a.png", "A.JPG", "b.jpeg", "c.webp", "d.gif", "e.tif", "f.bmp", "g.avif"])
def test_image_names(name: str) -> None:
    assert is_image_name(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "a.pdf", "a.eps", "a.mp4", "png", ".png"])
def test_other_names(name: str) -> None:
    assert not is_image_name(Path(name))
