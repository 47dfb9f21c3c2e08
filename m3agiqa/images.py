"""Opening what users bring: any picture file becomes an upright 8-bit sRGB image, or a clear error."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from m3agiqa.errors import InputError

# Pillow knows more, some of which start other programs (EPS) or are no images of generators.
IMAGE_FORMATS: tuple[str, ...] = (
    "PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM",
)  # fmt: skip
try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass  # photographs of phones in HEIC are refused by name
else:
    register_heif_opener()
    IMAGE_FORMATS += ("HEIF",)
MIN_SIDE = 32  # pixels
MAX_PIXELS = 64_000_000  # e.g. 8000 x 8000; about 200 MB once decoded

METADATA_LEFT_OUT = "metadata left out"
"""Key in the `info` of an opened image whose metadata was too large to unpack; the value is not empty."""

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


def open_image(source: ImageSource) -> Image.Image:
    """A path, bytes, open file or PIL image -> RGB image, first frame, rotated as EXIF says.

    Colours are brought from the embedded profile to sRGB, transparent parts become white, and values of
    16 or 32 bits are scaled down. Raises InputError for anything that cannot be shown or is outside the
    size limits.
    """
    try:
        with opened(source) as image:
            _check_size(image)
            image.seek(0)
            try:
                image.load()
            except ValueError as error:
                if not is_metadata_bomb(error):
                    raise
                return open_image(_without_metadata(source))  # it stood behind the pixels
            return _on_white(_in_8_bits(_upright(image), image), image.info.get("icc_profile"))
    except InputError:
        raise
    except FileNotFoundError as error:
        url, is_url = re.subn("^(https?):/+", r"\1://", str(error.filename))
        if is_url:
            raise InputError(f"{url} is a URL; download the image and give the file.") from error
        raise InputError(f"There is no file {error.filename}.") from error
    except IsADirectoryError as error:
        raise InputError(f"{error.filename} is a folder, not an image; `score` takes folders.") from error
    except PermissionError as error:
        raise InputError(f"The file {error.filename} may not be read (permission denied).") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"The image has too many pixels. {_SIZE_LIMIT}") from error
    except UnidentifiedImageError as error:
        raise InputError(_unreadable(source)) from error
    except (OSError, RuntimeError, SyntaxError, ValueError, EOFError) as error:  # decoders', on damaged data
        if isinstance(error, OSError) and error.errno:  # the file system's, e.g. links in a circle
            raise InputError(f"The file {error.filename} cannot be read: {error.strerror}.") from error
        raise InputError("The image file is damaged or cut off; save or download it again.") from error


_SIZE_LIMIT = (
    f"At most {MAX_PIXELS / 1e6:.0f} megapixels (for example 8000 × 8000) can be assessed; scale it down."
)


@contextmanager
def opened(source: ImageSource) -> Iterator[Image.Image]:
    """Pillow's image of a source, not decoded yet; an open file is left where it was."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        _check_file(path)
        with path.open("rb") as file, _identified(file) as image:
            yield image
    else:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        position = stream.tell()
        try:
            yield _identified(stream)
        finally:
            stream.seek(position)


def _identified(file: BinaryIO) -> Image.Image:
    position = file.tell()
    try:
        return Image.open(file, formats=IMAGE_FORMATS)
    except ValueError as error:
        if not is_metadata_bomb(error):
            raise
        file.seek(position)
        image = Image.open(io.BytesIO(_without_metadata(file)), formats=IMAGE_FORMATS)
        image.info[METADATA_LEFT_OUT] = "yes"
        return image


def _check_file(path: Path) -> None:
    """Raises InputError for what would block, like a pipe, or that cannot be a name."""
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # NUL
        raise InputError(f"There is no file {str(path)!r}.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is a pipe or a device, not an image file.")


def is_metadata_bomb(error: ValueError) -> bool:
    """Whether Pillow's error says that texts or the profile of a PNG file unpack to more than it allows."""
    return "MAX_TEXT" in str(error)


def _without_metadata(source: ImageSource) -> bytes:
    """The content of a PNG file without texts, EXIF and colour profile."""
    content = _content(source)
    kept, start = [content[:8]], 8
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP"):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _content(source: ImageSource, size: int = -1) -> bytes:
    """The first bytes, or all, of a source that is not decoded; an open file is left where it was."""
    if isinstance(source, Image.Image):
        return b""
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return file.read(size)
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    position = stream.tell()
    try:
        return stream.read(size)
    finally:
        stream.seek(position)


_OTHER_FORMATS = (
    (rb".{4}ftyp(?:hei|hev|mif1|msf1)", _HEIC := "a HEIC picture"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (rb"[^\0]*<svg\b", "an SVG drawing"),
    (rb"%PDF-", "a PDF document"),
    (rb"8BPS", "a Photoshop file"),
    (rb"II[*+]\0|MM\0[*+]", "a TIFF file of a rare kind"),
    (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video"),
)  # fmt: skip
"""How files of other kinds begin, and what people call them."""


def _unreadable(source: ImageSource) -> str:
    """The sentence about a file that Pillow does not know."""
    start = _content(source, 2000)
    for pattern, name in _OTHER_FORMATS:
        if re.match(pattern, start, re.DOTALL):
            if name == _HEIC and "HEIF" in IMAGE_FORMATS:
                return f"This is {name}, which cannot be read: it is damaged or cut off. Save it again."
            plugin = " Where pillow-heif is installed, it can be read." if name == _HEIC else ""
            return f"This is {name}, which cannot be read. Save it as PNG or JPEG.{plugin}"
    return "This is not an image that can be read. Give a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file."


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"The image has {width} × {height} pixels. {_SIZE_LIMIT}")
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"The image has {width} × {height} pixels, which is too small to judge; "
            f"it needs at least {MIN_SIDE} × {MIN_SIDE}."
        )


def _upright(image: Image.Image) -> Image.Image:
    """Rotated as EXIF says; as it is where EXIF makes no sense."""
    try:
        return ImageOps.exif_transpose(image)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, struct.error):
        return image  # Pillow rewrites the other entries on the way, and these are anything but valid


# --- values of 16 and 32 bits ------------------------------------------------------------------

USUAL_WHITES = (255.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
NEGATIVE_TOLERANCE = 0.05  # of white; resampling overshoots by about as much


def _in_8_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Gray values of 16 or 32 bits, or floats, scaled to 0 (black) … 255 (white).

    `file` is the image as it was opened, which knows what its numbers mean.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if (
        image.mode == "I"
        and file.format == "TIFF"
        and _first_value(file, TiffImagePlugin.SAMPLEFORMAT, 1) == 1
    ):
        # Unsigned numbers, which Pillow reads as signed ones.
        values = values.view(np.uint32)
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InputError("None of the image's pixels holds a number; there is nothing to see.")
    low, high = float(finite.min()), float(finite.max())
    white = _white(image.mode, high, file)
    if low < -NEGATIVE_TOLERANCE * white:
        raise InputError(
            f"The image's pixels have values from {low:.4g} to {high:.4g}; those of a picture start at 0, "
            "which is black. Save it as PNG or JPEG."
        )
    values = np.nan_to_num(values, nan=0, posinf=white, neginf=0) / white * 255
    levels = np.rint(values.clip(0, 255)).astype(np.uint8)
    white_is_zero = _first_value(file, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
    return Image.fromarray(255 - levels if white_is_zero else levels)


def _white(mode: str, high: float, file: Image.Image) -> float:
    """The value that is white: what the format says, else the usual one that fits the highest value."""
    if mode.startswith("I;16"):
        return float(2 ** _first_value(file, TiffImagePlugin.BITSPERSAMPLE, 16) - 1)
    if mode == "I" and file.format in ("PNG", "PPM", "JPEG2000"):
        return 65535.0
    if high <= 0 or 1 / 255 <= high <= 1:
        return 1.0
    return next((white for white in USUAL_WHITES if white / 4 <= high <= white), high)


def _first_value(file: Image.Image, tag: int, default: int) -> int:
    """Of a TIFF tag; `default` in other formats too."""
    value = getattr(file, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


# --- colours and transparency ------------------------------------------------------------------

SRGB_PROFILE = ImageCms.createProfile("sRGB")
LAB_PROFILE = ImageCms.createProfile("LAB")
PROFILE_PROBE = Image.fromarray(
    np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(18, -1, 3)
)
"""Colours from all over the cube, to see whether a profile changes any."""
INVISIBLE_DIFFERENCE = 2  # of 255
OPAQUE_ALPHA = 254  # some generators hide texts in the lowest bit, which nobody sees


def _on_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Any 8-bit image -> RGB in sRGB, without transparency."""
    if not image.has_transparency_data:
        return _in_srgb(image, profile)
    alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (0, 0):
        raise InputError("The image is fully transparent: nothing can be seen. Save it with a background.")
    colours = _in_srgb(image.convert("L" if image.mode in ("L", "LA") else "RGB"), profile)
    backdrop = Image.new("RGB", image.size, "white")
    backdrop.paste(colours, mask=alpha.point([*range(OPAQUE_ALPHA), 255, 255]))
    return backdrop


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB with the colours that viewers show; a profile that does not fit the image counts as none.

    One that is sRGB in all but name leaves the values as they are.
    """
    if image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("RGB")
    try:
        if image.mode == "LAB":
            return ImageCms.buildTransform(LAB_PROFILE, SRGB_PROFILE, "LAB", "RGB").apply(image)
        if profile:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            transform = ImageCms.buildTransform(embedded, SRGB_PROFILE, image.mode, "RGB")
            probe = PROFILE_PROBE.convert(image.mode)
            change = ImageChops.difference(transform.apply(probe), probe.convert("RGB"))
            if np.asarray(change).max() > INVISIBLE_DIFFERENCE:
                return transform.apply(image)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        pass
    return image.convert("RGB")


def is_image_name(path: PurePath) -> bool:
    """Whether a file's name says that `open_image` can read it."""
    return Image.registered_extensions().get(path.suffix.lower()) in IMAGE_FORMATS


def data_url(image: Image.Image, kind: str, **options: Any) -> str:
    """An image as a URL that holds it, in one of Pillow's formats (with its options)."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
