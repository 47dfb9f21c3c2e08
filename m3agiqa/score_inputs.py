"""What `score` reads, row by row: tables, Parquet files, folders of images and WebDataset tars."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

from m3agiqa.errors import InputError
from m3agiqa.image_metadata import find_prompt
from m3agiqa.images import ImageSource, is_image_name
from m3agiqa.tables import Repeatable, Table, TableRow, field_of, read_table

OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".svg", ".svgz", ".psd", ".tga", ".exr"),
    *(".hdr", ".dng", ".cr2", ".nef", ".arw", ".ico", ".eps", ".qoi"),
)
"""Pictures that a folder may hold and that cannot be read; each is told in the results."""
MAX_SIDECAR = 100_000  # characters; a longer text is no prompt, and csv could not read it back
MAX_TEXT_FILE = 10_000_000  # bytes of a .txt or .json in a tar
SHARD_SUFFIXES = (".tar", ".parquet")
"""Of inputs that may be given in several files."""
NUMBER_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
SAMPLE_KEY = re.compile(r"((?:.*/)?[^/.]+)\.?[^/]*")
"""WebDataset's: files of a tar belong together whose paths are the same up to the first dot of the name."""
PARQUET_BATCH = 1000  # rows
NO_PYARROW = 'Parquet files need pyarrow, which is not installed: pip install "m3agiqa[scale]".'


@dataclass(frozen=True)
class ScoreRow:
    """One image to score; `error` says why it cannot be, if that is known already.

    Where no prompt is given, `complete` looks for one.
    """

    image: str  # as the user wrote it
    path: Path
    prompt: str = ""
    prompt_origin: str = ""
    error: str = ""
    sidecar: bool = False
    """Whether a prompt may stand in a .txt file of the same name."""
    span: tuple[int, int] | None = None
    """First byte and number of bytes of the image within the file; None: the whole file."""

    def source(self) -> ImageSource:
        """What `open_image` takes. Raises InputError where a part of a file cannot be read."""
        if self.span is None:
            return self.path
        offset, size = self.span
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.") from error

    def complete(self) -> ScoreRow:
        """The row with a prompt found beside or inside the image, if none is given and there is one."""
        if self.prompt or self.error:
            return self
        try:
            if self.sidecar and (beside := sidecar(self.path).strip()):
                return replace(self, prompt=beside, prompt_origin="text file of the same name")
            embedded = find_prompt(self.source())
        except InputError as error:  # the image may have a prompt, and must not be judged without
            return replace(self, error=str(error))
        return replace(self, prompt=embedded.text, prompt_origin=embedded.origin) if embedded else self

    def to_json(self) -> bytes:
        """One line, which machines with the same file system can read back."""
        return json.dumps(vars(self) | {"path": str(self.path.absolute())}).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> ScoreRow:
        """The row of a line of `to_json`."""
        values = json.loads(line)
        span = tuple(values["span"]) if values["span"] else None
        return cls(**values | {"path": Path(values["path"]), "span": span})


def read_rows(
    *sources: Path,
    image_root: Path | None = None,
    note: Callable[[str], object] = lambda sentence: None,
) -> Repeatable[ScoreRow]:
    """Rows of a table with the columns image and, optionally, prompt, of a folder of images, or of tars.

    Several sources are tars or Parquet files, where `{000..099}` in a name stands for numbers. No row is held
    and no image is opened: where no prompt is given, `ScoreRow.complete` looks for one in a .txt file of the
    same name (folders only) or in what the generator wrote into the image. `note` is given sentences on how
    the table was read. Raises InputError when nothing can be scored, and for an unreadable row once it comes.
    """
    if image_root and not image_root.is_dir():
        raise InputError(f"There is no folder {image_root}.")
    files = [file for source in sources for file in _numbered(source)]
    if len(files) == 1 and files[0].is_dir():
        folder = files[0]
        files = _shards(folder)
        if not files:
            if image_root:
                raise InputError("--image-root is for the relative paths in a table; a folder needs none.")
            return Repeatable(partial(_folder_rows, folder))
    kinds = {file.suffix.lower() for file in files}
    if len(files) > 1 and (len(kinds) > 1 or not kinds.issubset(SHARD_SUFFIXES)):
        raise InputError("Give one table or one folder, or several .tar or several .parquet files.")
    for file in files:
        if not file.exists():
            raise InputError(f"There is no file or folder {file}.")
        if is_image_name(file):
            raise InputError(f"{file} is an image, which `assess` judges; `score` needs a table or a folder.")
    if kinds == {".tar"}:
        return Repeatable(lambda: (row for file in files for row in _tar_rows(file)))
    tables = []
    for file in files:
        table = (read_parquet if kinds == {".parquet"} else partial(read_table, short_rows=True))(file)
        table = table.select(("image", "prompt"))
        for sentence in table.notes:
            note(sentence)
        if not table.rows:
            raise InputError(f"{file} has no rows below its header.")
        tables.append((table, image_root or file.parent))
    origin = "Parquet" if kinds == {".parquet"} else "CSV"
    return Repeatable(lambda: (_table_row(row, root, origin) for table, root in tables for row in table.rows))


def _numbered(source: Path) -> Iterator[Path]:
    """The files whose numbers a name gives as `{000..099}`. Raises InputError where one is missing."""
    numbers = NUMBER_RANGE.search(str(source))
    if not numbers or source.exists():
        yield source
        return
    first, last = numbers.groups()
    for number in range(int(first), int(last) + 1):
        digits = str(number).zfill(len(first))
        path = Path(f"{str(source)[: numbers.start()]}{digits}{str(source)[numbers.end() :]}")
        if not path.exists():
            raise InputError(f"There is no file {path}, which {source.name} asks for.")
        yield path


# --- folders -----------------------------------------------------------------------------------


def _shards(folder: Path) -> list[Path]:
    """The tars, or else the Parquet files, of a folder without images; none for a folder of images."""
    try:
        next(folder_images(folder))
        return []
    except InputError:
        for suffix in SHARD_SUFFIXES:
            if shards := sorted(path for path in folder.glob("*") if path.suffix.lower() == suffix):
                return shards
        raise


def _folder_rows(folder: Path) -> Iterator[ScoreRow]:
    for path, problem in folder_images(folder):
        yield ScoreRow(str(path.relative_to(folder)), path, error=problem, sidecar=True)


def folder_images(folder: Path) -> Iterator[tuple[Path, str]]:
    """What a folder and those within hold that is an image by its name, and folders that are not looked into.

    Each with why it cannot be read ("": to be tried), in the order of names. Raises InputError where there is
    no image.
    """
    unread: list[tuple[Path, str]] | None = []  # before the first image
    for path, problem in _walk(folder):
        if unread is None:
            yield path, problem
            continue
        unread.append((path, problem))
        if not problem:
            yield from unread
            unread = None
    if unread is not None:
        problem = unread[0][1] if unread else f"There is no image file in the folder {folder}."
        raise InputError(problem)


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"The folder cannot be read: {error.strerror}."
        return
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path)
        elif entry.is_symlink() and path.is_dir():
            yield path, "This is a link to another folder; give that folder itself."
        elif _is_image(path) and not entry.name.startswith("._"):  # the Mac's bookkeeping
            yield path, ""


def _is_image(path: PurePath) -> bool:
    return is_image_name(path) or path.suffix.lower() in OTHER_IMAGE_SUFFIXES


def sidecar(image: Path) -> str:
    """The text of the .txt file of the same name; "" if there is none. Raises InputError."""
    path = image.with_suffix(".txt")
    if not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(MAX_SIDECAR)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


# --- tables ------------------------------------------------------------------------------------


def _table_row(row: TableRow, image_root: Path, origin: str) -> ScoreRow:
    if not row.cells:
        raise InputError(f"{row.place}: {row.problem}")
    image, prompt = row.cells["image"], row.text("prompt") or ""
    path = image_root / image
    if row.problem:
        return ScoreRow(image, path, prompt, error=row.problem)
    return ScoreRow(image, path, prompt, origin if prompt else "")


def pyarrow_parquet() -> Any:
    """The module that reads and writes Parquet. Raises InputError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(NO_PYARROW) from error
    return pyarrow.parquet


def read_parquet(path: Path) -> Table:
    """The table in a Parquet file, of which no more than PARQUET_BATCH rows are held. Raises InputError."""
    parquet = pyarrow_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise InputError(f"{path} cannot be read as Parquet: {str(error).rstrip('.')}.") from error
    read = [name for name in schema.names if field_of(name) in ("image", "prompt")]
    for name in read:
        if "binary" in str(schema.field(name).type):
            raise InputError(
                f"{path} holds images themselves in the column {name}; it needs their paths. Write the "
                "images as files or WebDataset tars."
            )

    def rows() -> Iterator[TableRow]:
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(PARQUET_BATCH, columns=read):
                    for values in batch.to_pylist():
                        number += 1
                        cells = {name: "" if cell is None else str(cell) for name, cell in values.items()}
                        yield TableRow(f"{path}, row {number}", number, cells)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged after row {number}: {error}.") from error

    return Table(str(path), tuple(schema.names), Repeatable(rows))


# --- WebDataset tars ---------------------------------------------------------------------------


def _tar_rows(path: Path) -> Iterator[ScoreRow]:
    """A row for each sample; the last one has an error where the tar breaks off or is none."""
    key = ""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in groupby(_members(tar), _sample_key):
                sample = list(members)  # of the last one, files may be missing
                yield _sample_row(path, key, sample, tar)
    except (tarfile.TarError, OSError) as error:
        if key:
            problem = f"The tar breaks off at or after {key}; fetch it again. The images before are scored."
        else:
            problem = f"The file is damaged, compressed or no tar ({error}); `score` reads plain .tar files."
        yield ScoreRow(f"{path}/{key}".rstrip("/"), path, error=problem)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of a tar. Raises tarfile.ReadError where its end is missing."""
    while member := tar.next():
        tar.members.clear()  # type: ignore[attr-defined]  # all would be kept
        if member.isreg() and not PurePath(member.name).name.startswith("._"):
            yield member
    assert tar.fileobj
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(
        tarfile.BLOCKSIZE
    ):  # tarfile takes a damaged header for it
        raise tarfile.ReadError("unexpected end of data")


def _sample_key(member: tarfile.TarInfo) -> str:
    match = SAMPLE_KEY.fullmatch(member.name)
    return match[1] if match else member.name


def _sample_row(path: Path, key: str, members: Sequence[tarfile.TarInfo], tar: tarfile.TarFile) -> ScoreRow:
    files = {member.name[len(key) :].lower(): member for member in members}
    images = [member for suffix, member in files.items() if _is_image(PurePath(f"image{suffix}"))]
    images = [member for member in images if member.name.count(".", len(key)) == 1]  # and no mask.png
    if len(images) != 1:
        which = "several image files" if images else "no image file"
        return ScoreRow(f"{path}/{key}", path, error=f"The sample {key} has {which}; it needs one.")
    row = ScoreRow(f"{path}/{images[0].name}", path, span=(images[0].offset_data, images[0].size))
    if ".txt" in files and (text := _clean(_text(tar, files[".txt"]))):
        return replace(row, prompt=text, prompt_origin="text file of the same name")
    if ".json" not in files:
        return row
    try:
        values = json.loads(_text(tar, files[".json"]))
    except ValueError as error:
        return replace(row, error=f"{files['.json'].name} is not JSON: {error}.")
    fields = values.items() if isinstance(values, dict) else ()
    texts = (value for name, value in fields if isinstance(value, str) and field_of(name) == "prompt")
    prompt = _clean(next(texts, ""))
    return replace(row, prompt=prompt, prompt_origin="JSON file of the same name") if prompt else row


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file  # it is a regular one
    return file.read(MAX_TEXT_FILE).decode("utf-8-sig", errors="replace")


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON can spell but no file can hold."""
    return text[:MAX_SIDECAR].encode("utf-8", "replace").decode().strip()
