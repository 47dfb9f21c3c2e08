"""Small copies of images for the page: no file of the server is served, whatever a table names."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from annotation.ui.decoding import opened
from m3agiqa.errors import InputError

SIDE = 768  # pixels of the longer one
QUALITY = 92  # of the JPEG, without chroma subsampling: flaws should be the image's own
KEPT = 64  # previews of about 100 kB


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
    buffer = io.BytesIO()
    with opened(path) as image:
        width, height = image.size
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Preview(url, width, height)
