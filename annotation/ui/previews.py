"""Small copies of images for the page: no file of the server is served, whatever a table names."""

from __future__ import annotations

import base64
import io
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from m3agiqa.errors import InputError
from m3agiqa.images import open_image

SIDE = 768  # pixels of the longer one
QUALITY = 92  # of the JPEG, without chroma subsampling: flaws should be the image's own
KEPT = 64  # previews of about 100 kB

_DECODING = threading.BoundedSemaphore(2)  # at once: a large image takes hundreds of megabytes


@dataclass(frozen=True)
class Preview:
    """An image as a data: URL, and the size of the original in pixels."""

    url: str
    width: int
    height: int


def preview(path: Path) -> Preview:
    """Raises InputError, without telling where on the server it lies, if the image cannot be shown."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(
            f"The image {path.name} is no longer where it was when it was assessed. Put it back to see it."
        ) from error
    try:
        return _preview(path, changed)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error


@lru_cache(maxsize=KEPT)
def _preview(path: Path, changed: int) -> Preview:
    with _DECODING:
        image = open_image(path)
    width, height = image.size
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Preview(url, width, height)
