"""ZIP files from people: read in memory, member by member, under limits; nothing is unpacked by its name."""

from __future__ import annotations

import io
import lzma
import stat
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from annotation.store.image_files import MAX_FILE
from m3agiqa.errors import InputError

MEGABYTE = 2**20
MAX_MEMBERS = 100_000
MAX_MEMBER = MAX_FILE  # bytes of one file, unpacked
MAX_TOTAL = 50_000 * MEGABYTE  # bytes of all files, unpacked
MAX_DIRECTORY = 32 * MEGABYTE  # bytes of the table of contents, which is read at once
MAX_RATIO = 200  # unpacked to packed; drawings reach some hundred, but not when they are large
RATIO_COUNTS_FROM = 10 * MEGABYTE

_END, _END_SIZE = b"PK\5\6", 22
_LOCATOR, _LOCATOR_SIZE = b"PK\6\7", 20
_END64, _END64_SIZE = b"PK\6\6", 56
_UTF8_NAME = 0x800
_ENCRYPTED = 0x1


class Archive:
    """The files of a ZIP by their names; those of the Mac's own bookkeeping are left out."""

    def __init__(self, path: Path) -> None:
        """Check the archive as a whole. Raises InputError."""
        try:
            _check_directory(path)
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error
        except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError) as error:
            raise InputError(
                f"{path.name} is damaged or no ZIP file; make it anew or upload it again."
            ) from error
        self.members: dict[PurePosixPath, zipfile.ZipInfo] = {}
        self.refused: list[tuple[str, str]] = []
        """Names of members that are not read, and why."""
        try:
            self._take_in(path.name, [info for info in self._zip.infolist() if not info.is_dir()])
        except BaseException:
            self.close()
            raise

    def _take_in(self, archive: str, infos: list[zipfile.ZipInfo]) -> None:
        if len(infos) > MAX_MEMBERS:
            raise InputError(
                f"{archive} holds {len(infos):,} files; at most {MAX_MEMBERS:,} are read. Divide it."
            )
        if any(info.flag_bits & _ENCRYPTED for info in infos):
            raise InputError(f"{archive} is encrypted; make it anew without a password.")
        total = sum(info.file_size for info in infos)
        if total > MAX_TOTAL:
            raise InputError(
                f"{archive} would unpack to {total / MEGABYTE:,.0f} MB; "
                f"at most {MAX_TOTAL / MEGABYTE:,.0f} MB are read. Divide it."
            )
        for info in infos:
            name = _name(info)
            path = PurePosixPath(name)
            reason = _refusal(info, path)
            if reason:
                self.refused.append((name, reason))
            elif not _is_bookkeeping(path):
                self.members[path] = info

    def read(self, name: PurePosixPath) -> bytes:
        """A member's content. Raises InputError if it is damaged."""
        try:
            with self._zip.open(self.members[name]) as file:
                content = file.read(MAX_MEMBER + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            OSError,
            RuntimeError,
            NotImplementedError,
            ValueError,
            struct.error,
        ) as error:
            raise InputError("The file is damaged within the ZIP; make the ZIP anew.") from error
        return content

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _check_directory(path: Path) -> None:
    """Raises InputError if the table of contents, which zipfile reads as a whole, is excessively large."""
    with path.open("rb") as file:
        length = file.seek(0, io.SEEK_END)
        file.seek(max(0, length - _END_SIZE - _LOCATOR_SIZE - 0xFFFF))
        tail = file.read()
        at = tail.rfind(_END)
        if at < 0:
            raise zipfile.BadZipFile
        sizes = [struct.unpack_from("<I", tail, at + 12)[0]]
        locator = at - _LOCATOR_SIZE
        if tail[locator:at].startswith(_LOCATOR):  # ZIP64, whose record some readers look for just before it
            before = max(0, length - len(tail) + locator - _END64_SIZE)
            (told,) = struct.unpack_from("<Q", tail, locator + 8)
            records = [_size64(file, where) for where in (before, min(told, length))]
            sizes = [size for size in records if size is not None] or sizes
        size = max(sizes)
    if size > MAX_DIRECTORY:
        raise InputError(
            f"{path.name} has a table of contents of {size / MEGABYTE:,.0f} MB; at most "
            f"{MAX_DIRECTORY / MEGABYTE:.0f} MB are read (about {MAX_MEMBERS:,} files). Divide it."
        )


def _size64(file: BinaryIO, where: int) -> int | None:
    """Size of the table of contents by the ZIP64 record that begins at `where`; None if there is none."""
    file.seek(where)
    record = file.read(_END64_SIZE)
    if len(record) < _END64_SIZE or not record.startswith(_END64):
        return None
    return struct.unpack_from("<Q", record, 40)[0]


def _name(info: zipfile.ZipInfo) -> str:
    """The member's name with forward slashes; old programs on Windows write the others."""
    name = info.filename
    if not info.flag_bits & _UTF8_NAME:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")  # UTF-8 that the archive does not own up to
    return name.replace("\\", "/")


def _refusal(info: zipfile.ZipInfo, path: PurePosixPath) -> str | None:
    first = path.parts[0] if path.parts else ""
    if path.is_absolute() or ".." in path.parts or first.endswith(":"):
        return "The name leads out of the ZIP; such files are not read."
    if stat.S_ISLNK(info.external_attr >> 16):
        return "This is a link to another file; links are not followed."
    if info.file_size > MAX_MEMBER:
        return (
            f"The file has {info.file_size / MEGABYTE:,.0f} MB; at most {MAX_MEMBER // MEGABYTE} MB are read."
        )
    if info.file_size > RATIO_COUNTS_FROM and info.file_size > MAX_RATIO * max(1, info.compress_size):
        return f"The file unpacks to more than {MAX_RATIO} times its size, as images do not; it is not read."
    return None


def _is_bookkeeping(path: PurePosixPath) -> bool:
    return "__MACOSX" in path.parts or path.name.startswith(("._", ".DS_Store"))
