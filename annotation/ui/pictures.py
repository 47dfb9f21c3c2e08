"""Image files as browsers can show them: most as they are, a few formats as a PNG made of them."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path

from annotation.store import ImageFiles
from m3agiqa.errors import InputError
from m3agiqa.images import open_image

log = logging.getLogger(__name__)

SHOWN_BY_BROWSERS = frozenset({".png", ".jpg", ".webp", ".avif", ".gif", ".bmp"})
FOLDER = "shown"
"""Within the folder of image files; it can be deleted at any time."""

_DECODING = threading.BoundedSemaphore(2)  # at once: a large image takes hundreds of megabytes


def picture(images: ImageFiles, file: str) -> Path:
    """The file to show for a stored image; the stored one if no other can be made."""
    stored = images.path(file)
    if stored.suffix in SHOWN_BY_BROWSERS:
        return stored
    shown = images.folder / FOLDER / f"{stored.stem}.png"
    try:
        if not shown.exists():
            _make(stored, shown)
    except (InputError, OSError) as error:
        log.warning("%s cannot be made into a PNG: %s", stored.name, error)
        return stored
    return shown


def _make(stored: Path, shown: Path) -> None:
    """Whole or not at all, as two people may ask for it at once."""
    shown.parent.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=shown.parent, suffix=".png")
    try:
        with os.fdopen(handle, "wb") as file, _DECODING:
            open_image(stored).save(file, "PNG", compress_level=1)
        Path(name).replace(shown)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
