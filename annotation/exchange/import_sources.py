"""The images that a folder, a ZIP, a CSV or a single file offers for import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from annotation.exchange.import_csv import Row, read_import_table
from annotation.exchange.import_zip import Archive
from annotation.store.image_files import MAX_FILE
from m3agiqa.errors import InputError
from m3agiqa.images import is_image_name
from m3agiqa.score_inputs import MAX_SIDECAR, folder_images, sidecar
from m3agiqa.tables import TABLE_SUFFIXES


@dataclass(frozen=True)
class Offer:
    """An image and what is said about it; `row.place` tells people which one it is."""

    row: Row
    path: PurePath
    """Where it lies, within the folder or ZIP or on this machine."""
    read: Callable[[], bytes]
    """Its content; raises InputError."""


@dataclass
class Offers:
    """What a source offers."""

    images: list[Offer] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    """Places and reasons of what cannot be read."""
    left_out: list[str] = field(default_factory=list)
    """Names of other files: no images, or not in the table."""
    notes: tuple[str, ...] = ()
    """Sentences about how a table was read."""


@contextmanager
def offers(source: Path, images: Path | None, trusted: bool) -> Iterator[Offers]:
    """What the source offers, readable as long as the context lasts.

    `images` is the folder that the paths of a CSV start from (default: the CSV's own); unless `trusted`,
    the CSV cannot name files outside of it. Raises InputError.
    """
    kind = source.suffix.lower()
    if images is not None and (kind not in TABLE_SUFFIXES or not images.is_dir()):
        raise InputError(
            f"There is no folder {images}."
            if kind in TABLE_SUFFIXES
            else "A folder of images goes with a CSV; folders and ZIP files hold their images themselves."
        )
    if source.is_dir():
        yield _of_folder(source)
    elif not source.exists():
        raise InputError(f"There is no file or folder {source}.")
    elif kind == ".zip":
        with Archive(source) as archive:
            yield _of_archive(archive)
    elif kind in TABLE_SUFFIXES:
        yield _of_table(
            _content(source), source.name, partial(_file, images or source.parent, trusted=trusted)
        )
    elif is_image_name(source):
        yield Offers([Offer(Row(source.name, source.name), source, partial(_content, source))])
    else:
        raise InputError(f"{source.name} is no folder, ZIP, CSV or image; give one of these.")


def _of_folder(folder: Path) -> Offers:
    offered, images = Offers(), dict(folder_images(folder))
    for path, problem in images.items():
        place = str(path.relative_to(folder))
        try:
            if problem:
                raise InputError(problem)
            prompt = sidecar(path)
        except InputError as error:  # the image may have a prompt, and must not come in without
            offered.errors.append((place, str(error)))
        else:
            offered.images.append(Offer(Row(place, place, prompt), path, partial(_content, path)))
    offered.left_out = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path not in images and path.suffix.lower() != ".txt"
        if not path.name.startswith("._")
    ]
    return offered


def _of_archive(archive: Archive) -> Offers:
    tables = [path for path in archive.members if path.suffix.lower() in TABLE_SUFFIXES]
    pictures = [path for path in archive.members if is_image_name(path)]
    if len(tables) > 1:
        names = ", ".join(map(str, tables[:3]))
        raise InputError(f"The ZIP holds several tables ({names}), and one at most can list its images.")
    if tables:
        table = tables[0]
        offered = _of_table(archive.read(table), str(table), partial(_member, archive, table.parent))
        used = {table, *(offer.path for offer in offered.images)}
    else:
        offered, used = Offers(), set(pictures)
        for path in pictures:
            text = path.with_suffix(".txt")
            prompt = ""
            if text in archive.members:
                used.add(text)
                try:
                    prompt = archive.read(text)[: 4 * MAX_SIDECAR].decode("utf-8-sig", errors="replace")
                except InputError as error:  # the image may have a prompt, and must not come in without
                    offered.errors.append((str(text), str(error)))
                    continue
            row = Row(str(path), str(path), prompt)
            offered.images.append(Offer(row, path, partial(archive.read, path)))
    offered.left_out = [str(path) for path in archive.members if path not in used]
    offered.errors += archive.refused
    if not offered.images and not offered.errors:
        raise InputError("There is no image in the ZIP.")
    return offered


Locate = Callable[[str], tuple[PurePath, Callable[[], bytes]]]
"""From an image as a CSV names it to where it lies and how it is read; raises InputError."""


def _of_table(content: bytes, name: str, locate: Locate) -> Offers:
    table = read_import_table(content, name)
    offered = Offers(errors=table.errors, notes=table.notes)
    for row in table.rows:
        try:
            path, read = locate(row.image)
        except InputError as error:
            offered.errors.append((row.place, str(error)))
        else:
            offered.images.append(Offer(row, path, read))
    return offered


def _member(archive: Archive, folder: PurePosixPath, name: str) -> tuple[PurePath, Callable[[], bytes]]:
    """Names in a ZIP's CSV start from the CSV's folder or from the top."""
    path = PurePosixPath(name.replace("\\", "/"))
    for candidate in (folder / path, path):
        if candidate in archive.members:
            return candidate, partial(archive.read, candidate)
    raise InputError(f"There is no file {name} in the ZIP.")


def _file(root: Path, name: str, trusted: bool) -> tuple[PurePath, Callable[[], bytes]]:
    """Names in other CSV files start from a folder; a path of another machine counts by its last part."""
    windows = PureWindowsPath(name)
    names = [name, windows.as_posix()]
    if Path(name).is_absolute() or windows.drive:
        names.append(windows.name)
    try:
        paths = [root / each for each in names]
        if not trusted:
            inside = root.resolve()
            paths = [path for path in paths if path.resolve().is_relative_to(inside)]
            if not paths:
                raise InputError(f"{name} leads out of the CSV's folder; put image and CSV into one ZIP.")
        for path in paths:
            if path.is_file():
                return path, partial(_content, path)
    except OSError as error:
        raise InputError(f"{name[:80]} cannot be read: {error.strerror}.") from error
    except RuntimeError as error:  # as older versions of Python say it
        raise InputError(f"{name[:80]} is a link that leads in a circle.") from error
    raise InputError(f"There is no file {name}.")


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path.name} is a pipe or a device, not a file.")  # reading it might never end
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_FILE:
        raise InputError(f"{path.name} is larger than {MAX_FILE // 2**20} MB, which is the limit.")
    return content
