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

from annotation.store.image_files import MAX_FILE
from m3agiqa.errors import InputError

BYTES_PER_MB = 2**20
MAX_MEMBERS = 100_000
MAX_MEMBER = MAX_FILE  # bytes of one file, unpacked
MAX_TOTAL = 50_000 * BYTES_PER_MB  # bytes of all files, unpacked
MAX_DIRECTORY = 32 * BYTES_PER_MB  # bytes of the table of contents, which is read at once
MAX_RATIO = 200  # unpacked to packed; drawings reach some hundred, but not when they are large
RATIO_COUNTS_FROM = 10 * BYTES_PER_MB

UTF8_NAME_FLAG = 0x800
ENCRYPTED_FLAG = 0x1


class Archive:
    """The files of a ZIP by their names; those of the Mac's own bookkeeping are left out."""

    def __init__(self, path: Path) -> None:
        """Check the archive as a whole. Raises InputError."""
        try:
            self._file = _GuardedFile(path)
            try:
                self._zip = zipfile.ZipFile(self._file)
            except BaseException:
                self._file.close()
                raise
            self._file.opening = False
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
        if any(info.flag_bits & ENCRYPTED_FLAG for info in infos):
            raise InputError(f"{archive} is encrypted; make it anew without a password.")
        total = sum(info.file_size for info in infos)
        if total > MAX_TOTAL:
            raise InputError(
                f"{archive} would unpack to {total / BYTES_PER_MB:,.0f} MB; "
                f"at most {MAX_TOTAL / BYTES_PER_MB:,.0f} MB are read. Divide it."
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
        self._file.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _GuardedFile(io.BufferedReader):
    """A file whose table of contents zipfile reads at once: `read` refuses an excessively large one."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.opening = True

    def read(self, size: int | None = -1, /) -> bytes:
        if self.opening and size is not None and size > MAX_DIRECTORY:
            raise InputError(
                f"{Path(str(self.name)).name} has a table of contents of {size / BYTES_PER_MB:,.0f} MB; "
                f"at most {MAX_DIRECTORY / BYTES_PER_MB:.0f} MB are read (about {MAX_MEMBERS:,} files). "
                "Divide it."
            )
        return super().read(size)


def _name(info: zipfile.ZipInfo) -> str:
    """The member's name with forward slashes; old programs on Windows write the others."""
    name = info.filename
    if not info.flag_bits & UTF8_NAME_FLAG:
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
        size = f"{info.file_size / BYTES_PER_MB:,.0f} MB"
        return f"The file has {size}; at most {MAX_MEMBER // BYTES_PER_MB} MB are read."
    if info.file_size > RATIO_COUNTS_FROM and info.file_size > MAX_RATIO * max(1, info.compress_size):
        return f"The file unpacks to more than {MAX_RATIO} times its size, as images do not; it is not read."
    return None


def _is_bookkeeping(path: PurePosixPath) -> bool:
    return "__MACOSX" in path.parts or path.name.startswith(("._", ".DS_Store"))
