"""The folder of image files, each named by its content: `ab/abcd….png`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from annotation.store.database import DISK_FULL, StoreError, storable
from m3agiqa.errors import InputError
from m3agiqa.files import flush_to_disk, is_disk_full, write_atomically
from m3agiqa.images import open_image, opened

MAX_FILE = 200 * 2**20  # bytes
MAX_NAME = 255  # characters

# Of files whose suffix is not their format's own name.
FORMAT_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


@dataclass(frozen=True)
class StoredImage:
    """An image in the folder. `width` and `height` are in pixels, upright; `size` is in bytes."""

    sha256: str
    file: str
    """Path within the folder."""
    name: str
    """What its owner calls it."""
    width: int
    height: int
    size: int


class ImageFiles:
    """Images are added and never changed, so any number of processes may use a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, source: Path | bytes, name: str, size: tuple[int, int] | None = None) -> StoredImage:
        """Keep a copy of an image file; once this returns, it is on disk.

        The same content is kept once. `size` (width, height) is that of an image that has been opened
        already; without it, that is done here. Raises InputError for what is no image that can be assessed,
        and StoreError where it cannot be written.
        """
        content = source if isinstance(source, bytes) else _read(source)
        if len(content) > MAX_FILE:
            raise InputError(
                f"The file {name} is larger than {MAX_FILE // 2**20} MB; save it in a smaller format."
            )
        width, height = size or open_image(content).size
        sha256 = hashlib.sha256(content).hexdigest()
        file = f"{sha256[:2]}/{sha256}{_suffix(content)}"
        self._write(file, content)
        return StoredImage(sha256, file, storable(Path(name).name)[-MAX_NAME:], width, height, len(content))

    def path(self, file: str) -> Path:
        """Where a stored image lies."""
        return self.folder / file

    def _write(self, file: str, content: bytes) -> None:
        target = self.path(file)
        if target.is_file() and target.stat().st_size == len(content):
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, content, durable=True)
            flush_to_disk(self.folder)
        except OSError as error:
            if is_disk_full(error):
                raise StoreError(DISK_FULL) from error
            raise StoreError(
                f"The image cannot be kept in {self.folder} ({error.strerror}); nothing was saved. "
                "See that the server may write there."
            ) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"The file {path} cannot be read: {error.strerror}.") from error


def _suffix(content: bytes) -> str:
    """By what the content is, whatever its owner calls it: browsers go by the name."""
    with opened(content) as image:
        form = image.format or ""
        return FORMAT_SUFFIXES.get(form, f".{form.lower()}")
