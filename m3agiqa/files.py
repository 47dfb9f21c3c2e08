"""Files and folders that appear whole or not at all, their SHA-256, and stamps of what made them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from m3agiqa.errors import InputError

STAMP_FILE = "made_from.sha256"
SEAL_FILE = "sha256.json"
LOCKED_BYTE = 2**31 - 2  # Windows locks bytes, for readers too: one that no file here reaches


def is_file(path: Path) -> bool:
    """Whether there is a file; there is none of a name that no file can have."""
    try:
        return path.is_file()
    except OSError:  # e.g. too long
        return False


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- atomic writes -----------------------------------------------------------------------------


def is_disk_full(error: BaseException) -> bool:
    """Whether something failed because a disk or quota is full; libraries say so in their own errors."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


@contextmanager
def atomic_path(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write a file to, alone in a scratch folder; at the end the file is moved to `target`.

    After an error, `target` is as it was. `durable`: once this returns, the file survives a power cut.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:100]}-") as scratch:
        partial = Path(scratch) / target.name
        yield partial
        if durable:
            flush_to_disk(partial)
        partial.replace(target)
    if durable:
        flush_to_disk(target.parent)


def write_atomically(target: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Replace a file as a whole; texts are written as UTF-8."""
    with atomic_path(target, durable=durable) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def flush_to_disk(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside `target` and move it into place, so that a kill leaves the old or the new one."""
    fresh, stale = _hidden_sibling(target, "new"), _hidden_sibling(target, "old")

    def tidy() -> None:
        if stale.exists() and not target.exists():  # interrupted between the two moves below
            stale.replace(target)
        for leftover in (fresh, stale):
            shutil.rmtree(leftover, ignore_errors=True)

    tidy()
    try:
        fresh.mkdir(parents=True)
        write(fresh)
        if target.exists():
            target.replace(stale)
        fresh.replace(target)
    finally:
        tidy()


def latest_folder(target: Path) -> Path | None:
    """The newest whole version of a folder written by replace_folder, if any."""
    versions = (target, _hidden_sibling(target, "old"))
    return next((folder for folder in versions if folder.is_dir()), None)


def _hidden_sibling(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Write a folder that appears at `target` at the end; a folder that is there by then stays as it is."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:100]}-") as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise


@contextmanager
def sealed_folder(target: Path) -> Iterator[Path]:
    """As new_folder, but `is_intact` can check the folder later; a damaged one is replaced."""
    with new_folder(target) as folder:
        yield folder
        hashes = {path.name: sha256(path) for path in folder.iterdir()}
        (folder / SEAL_FILE).write_text(json.dumps(hashes))
        if not is_intact(target):
            shutil.rmtree(target, ignore_errors=True)


def is_intact(folder: Path) -> bool:
    """Whether a sealed folder is there and nothing in it has changed."""
    try:
        hashes = json.loads((folder / SEAL_FILE).read_text())
        return all(sha256(folder / name) == expected for name, expected in hashes.items())
    except (OSError, ValueError):
        return False


def lock(file: IO[Any]) -> bool:
    """Keep other processes from locking an open file until it is closed or this process ends.

    False if another one has locked it already. Where the disk knows no locks, nothing is locked.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
    return True


# --- stamps ------------------------------------------------------------------------------------


def stamp(folder: Path, *facts: object) -> None:
    """Mark a folder as made from these data and settings, before anything is put into it.

    Raises InputError if it is marked as made from others: continuing there would mix the two.
    """
    path = folder / STAMP_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _digest(facts))
    elif not is_stamped(folder, *facts):
        raise InputError(
            f"{folder} was made from other data or settings. Delete that folder to make it anew, or give "
            "another --run."
        )


def is_stamped(folder: Path, *facts: object) -> bool:
    """Whether a folder is marked as made from these data and settings."""
    path = folder / STAMP_FILE
    return path.exists() and path.read_text() == _digest(facts)


def stamp_or_empty(folder: Path, *facts: object) -> None:
    """As stamp, but a folder made from other data or settings is emptied first."""
    if folder.exists() and not is_stamped(folder, *facts):
        shutil.rmtree(folder)
    stamp(folder, *facts)


def _digest(facts: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
