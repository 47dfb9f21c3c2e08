"""Image files of the page: what people upload, stored files as browsers can show them, small previews."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradio.route_utils import API_PREFIX
from gradio.utils import get_upload_folder, is_in_or_equal
from PIL import Image

from annotation.store import ImageFiles
from annotation.store.database import storable
from m3agiqa.errors import InputError
from m3agiqa.images import data_url, open_image, opened

log = logging.getLogger(__name__)

MAX_DECODED = 2  # a large image takes hundreds of megabytes
BROWSER_SUFFIXES = frozenset({".png", ".jpg", ".webp", ".avif", ".gif", ".bmp"})
FORMATS_NOT_IN_BROWSERS = frozenset({"TIFF", "JPEG2000", "PPM", "HEIF"})
SHOWN_SUFFIX = ".shown.png"
"""Added to the name of an upload for the PNG that is shown in its place."""
PNG_FOLDER = "shown"
"""Within the folder of image files, for PNG copies; it can be deleted at any time."""
PREVIEW_SIDE = 768  # pixels of the longer one
PREVIEW_QUALITY = 92  # of the JPEG, without chroma subsampling: flaws should be the image's own
CACHED_PREVIEWS = 64  # of about 100 kB

_decoders = threading.BoundedSemaphore(MAX_DECODED)

# --- uploads -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """An image file as it was uploaded: Gradio would re-encode it and lose the prompt inside."""

    path: Path
    name: str
    """As its owner calls it."""

    @classmethod
    def from_payload(cls, payload: Any) -> Upload | None:
        """What an image component sends to an event with `preprocess=False`; None for nothing.

        Any other file of the server counts as nothing: of images Gradio checks that only if the payload asks.
        """
        file = payload.get("path") if isinstance(payload, dict) else None
        if not isinstance(file, str):
            return None
        path = Path(storable(file))
        name = _file_name(payload.get("orig_name")) or path.name
        original = path.parent / path.name.removesuffix(SHOWN_SUFFIX)
        if _is_uploaded(original):
            return cls(original, name.removesuffix(SHOWN_SUFFIX))
        return cls(path, name) if _is_uploaded(path) else None

    def image(self) -> Image.Image:
        """The decoded image, not to be changed: the latest ones are kept, so that each is decoded once.

        Raises InputError if it cannot be assessed.
        """
        try:
            modified = self.path.stat().st_mtime_ns
        except OSError:
            modified = 0
        with _decoders:
            return _decoded(self.path, modified)


def browser_copy(payload: Any) -> str | None:
    """A PNG of what an image component holds, if browsers cannot show that; None if they can or nobody can.

    `Upload.from_payload` takes the PNG for the file it was made of.
    """
    upload = Upload.from_payload(payload)
    if upload is None:
        return None
    png = upload.path.with_name(upload.path.name + SHOWN_SUFFIX)
    try:
        with opened(upload.path) as image:
            if image.format not in FORMATS_NOT_IN_BROWSERS:
                return None
        if not png.exists():
            _write_png(upload.path, png)
    except Exception:  # decoders raise all kinds of errors; the message is that of `Upload.image`
        return None
    return str(png)


@lru_cache(maxsize=MAX_DECODED)
def _decoded(path: Path, modified: int) -> Image.Image:
    return open_image(path)


def _is_uploaded(path: Path) -> bool:
    try:
        return is_in_or_equal(path, get_upload_folder()) and path.is_file()
    except OSError:  # e.g. a longer name than any file has
        return False


def _file_name(original: Any) -> str:
    """A name that a file can have; "" if there is none."""
    name = Path(storable(original)).name if isinstance(original, str) else ""
    return "" if name == ".." else name


# --- stored images in a browser ----------------------------------------------------------------


def image_url(images: ImageFiles, file: str) -> str:
    """Where a browser gets a stored image; it does not tell where on the server the images lie."""
    folder = images.folder.resolve()
    shown = _browser_file(images, file).resolve().relative_to(folder)
    return f"{API_PREFIX}/file={quote((_alias(folder) / shown).as_posix())}"


def _alias(folder: Path) -> Path:
    """Another name of the folder, among Gradio's own files; what may be served is Gradio's to say."""
    alias = Path(get_upload_folder()) / f"images-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    try:
        alias.parent.mkdir(parents=True, exist_ok=True)
        alias.symlink_to(folder, target_is_directory=True)
    except FileExistsError:
        pass
    except OSError as error:  # a file system without links
        log.warning("%s cannot be made, so pages name the folder of images itself: %s", alias, error)
        return folder
    return alias


def _browser_file(images: ImageFiles, file: str) -> Path:
    """The stored file or, for a format that browsers cannot show, a PNG made of it if that is possible."""
    stored = images.path(file)
    if stored.suffix in BROWSER_SUFFIXES:
        return stored
    png = images.folder / PNG_FOLDER / f"{stored.stem}.png"
    try:
        if not png.exists():
            _write_png(stored, png)
    except (InputError, OSError) as error:
        log.warning("%s cannot be made into a PNG: %s", stored.name, error)
        return stored
    return png


def _write_png(stored: Path, png: Path) -> None:
    """Whole or not at all, as two people may ask for it at once."""
    png.parent.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=png.parent, suffix=".png")
    try:
        with os.fdopen(handle, "wb") as file, _decoders:
            open_image(stored).save(file, "PNG", compress_level=1)
        Path(name).replace(png)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# --- previews ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preview:
    """A small copy as a data: URL, as no file of the server is served, whatever a table names."""

    url: str
    width: int
    """Of the original, in pixels."""
    height: int


def preview(path: Path) -> Preview:
    """Raises InputError, without telling where on the server it lies, if the image cannot be shown."""
    try:
        modified = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(
            f"The image {path.name} is no longer where it was when it was assessed. Put it back to see it."
        ) from error
    try:
        return _preview(path, modified)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error


def scaled(path: Path, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """A copy whose longer side has at most so many pixels, and the original's size. Raises InputError."""
    with _decoders:
        image = open_image(path)
        size = image.size
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image, size


@lru_cache(maxsize=CACHED_PREVIEWS)
def _preview(path: Path, modified: int) -> Preview:
    image, (width, height) = scaled(path, PREVIEW_SIDE)
    return Preview(data_url(image, "JPEG", quality=PREVIEW_QUALITY, subsampling=0), width, height)
