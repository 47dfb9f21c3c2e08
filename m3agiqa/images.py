"""Opening what users bring: any picture file becomes an upright 8-bit RGB image, or a clear error."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from m3agiqa.errors import InputError

# Pillow knows more, some of which start other programs (EPS) or are no images of generators.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
MIN_SIDE = 32  # pixels
MAX_PIXELS = 64_000_000  # e.g. 8000 x 8000; about 200 MB once decoded

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


def open_image(source: ImageSource) -> Image.Image:
    """A path, bytes, open file or PIL image -> RGB image, first frame, rotated as EXIF says.

    Transparent parts become white and 16-bit values are scaled down. Raises InputError for anything
    that cannot be shown or is outside the size limits.
    """
    try:
        with opened(source) as image:
            _check_size(image)
            image.seek(0)
            image.load()
            return _to_rgb(_upright(image))
    except FileNotFoundError as error:
        raise InputError(f"There is no file {error.filename}.") from error
    except IsADirectoryError as error:
        raise InputError(f"{error.filename} is a folder, not an image; `score` takes folders.") from error
    except PermissionError as error:
        raise InputError(f"The file {error.filename} may not be read (permission denied).") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"The image has too many pixels. {_SIZE_LIMIT}") from error
    except UnidentifiedImageError as error:
        raise InputError(
            "This is not an image that can be read. Give a PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF file."
        ) from error
    except (OSError, RuntimeError, SyntaxError, ValueError, EOFError) as error:  # decoders', on damaged data
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
        with Image.open(source, formats=IMAGE_FORMATS) as image:
            yield image
    else:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        position = file.tell()
        try:
            yield Image.open(file, formats=IMAGE_FORMATS)
        finally:
            file.seek(position)


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel
        values = np.asarray(image).astype(np.float32)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(np.nanmax(values)))
        scaled = np.nan_to_num(values / top * 255).clip(0, 255)
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(backdrop, image)
    return image.convert("RGB")


def is_image_name(path: Path) -> bool:
    """Whether a file's name says that `open_image` can read it."""
    return Image.registered_extensions().get(path.suffix.lower()) in IMAGE_FORMATS
