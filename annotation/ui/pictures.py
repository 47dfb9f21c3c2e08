"""Image files as browsers can show them: most as they are, a few formats as a PNG made of them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from urllib.parse import quote

from gradio.route_utils import API_PREFIX
from gradio.utils import get_upload_folder

from annotation.store import ImageFiles
from annotation.ui.decoding import opened
from m3agiqa.errors import InputError
from m3agiqa.files import atomic_path

log = logging.getLogger(__name__)

SHOWN_BY_BROWSERS = frozenset({".png", ".jpg", ".webp", ".avif", ".gif", ".bmp"})
FOLDER = "shown"
"""Within the folder of image files; it can be deleted at any time."""


def address(images: ImageFiles, file: str) -> str:
    """Where a browser gets the file to show; it does not tell where on the server the images lie."""
    folder = images.folder.resolve()
    shown = picture(images, file).resolve().relative_to(folder)
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


def picture(images: ImageFiles, file: str) -> Path:
    """The file to show for a stored image; the stored one if no other can be made."""
    stored = images.path(file)
    if stored.suffix in SHOWN_BY_BROWSERS:
        return stored
    shown = images.folder / FOLDER / f"{stored.stem}.png"
    try:
        if not shown.exists():
            shown.parent.mkdir(exist_ok=True)
            with atomic_path(shown) as partial, opened(stored) as image:
                image.save(partial, "PNG", compress_level=1)
    except (InputError, OSError) as error:
        log.warning("%s cannot be made into a PNG: %s", stored.name, error)
        return stored
    return shown
