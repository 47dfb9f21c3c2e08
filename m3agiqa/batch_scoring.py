"""Scoring many images: rows from a CSV or a folder, results appended to a CSV that can be resumed."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from m3agiqa.assessment import ASPECT_COLUMNS, Assessment
from m3agiqa.assessor import Assessor
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.files import lock
from m3agiqa.image_metadata import find_prompt
from m3agiqa.images import is_image_name
from m3agiqa.tables import TableRow, harmless, read_table

RESULT_COLUMNS = (
    *("image", "prompt", *ASPECT_COLUMNS),
    *("scale", "model", "learned_from", "prompt_origin", "error"),
)
BATCH_SIZE = 8
"""Images; more are hardly faster on few cores, and lost where a run is stopped."""
OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".jxl", ".svg", ".svgz", ".psd", ".tga", ".exr"),
    *(".hdr", ".dng", ".cr2", ".nef", ".arw", ".ico", ".eps", ".qoi"),
)
"""Pictures that a folder may hold and that cannot be read; each is told in the results."""
MAX_SIDECAR = 100_000  # characters; a longer text is no prompt, and csv could not read it back


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

    def complete(self) -> ScoreRow:
        """The row with a prompt found beside or inside the image, if none is given and there is one."""
        if self.prompt or self.error:
            return self
        try:
            beside = sidecar(self.path).strip() if self.sidecar else ""
        except InputError as error:  # the image has a prompt, and must not be judged without
            return replace(self, error=str(error))
        if beside:
            return replace(self, prompt=beside, prompt_origin="text file of the same name")
        embedded = find_prompt(self.path)
        return replace(self, prompt=embedded.text, prompt_origin=embedded.origin) if embedded else self


# --- reading -----------------------------------------------------------------------------------


def read_rows(
    source: Path, image_root: Path | None = None, note: Callable[[str], object] = lambda sentence: None
) -> list[ScoreRow]:
    """Rows of a table with the columns image and, optionally, prompt, or of a folder of images.

    No image is opened yet: where no prompt is given, `ScoreRow.complete` looks for one in a .txt file of the
    same name (folders only) or in what the generator wrote into the image. `note` is given sentences on how
    the table was read. Raises InputError when nothing can be scored.
    """
    if source.is_dir():
        if image_root:
            raise InputError("--image-root is for the relative paths in a CSV; a folder needs none.")
        return _folder_rows(source)
    if image_root and not image_root.is_dir():
        raise InputError(f"There is no folder {image_root}.")
    return _csv_rows(source, image_root or source.parent, note)


def _folder_rows(folder: Path) -> list[ScoreRow]:
    return [
        ScoreRow(str(path.relative_to(folder)), path, error=problem, sidecar=True)
        for path, problem in folder_images(folder).items()
    ]


def folder_images(folder: Path) -> dict[Path, str]:
    """What a folder and those within hold that is an image by its name, and folders that are not looked into.

    Each with why it cannot be read ("": to be tried), in the order of names. Raises InputError where there is
    no image.
    """
    unread: dict[Path, str] = {}

    def unreadable(error: OSError) -> None:
        unread[Path(error.filename)] = f"The folder cannot be read: {error.strerror}."

    images: list[Path] = []
    for within, folders, files in os.walk(folder, onerror=unreadable):
        links = (Path(within, name) for name in folders if Path(within, name).is_symlink())
        unread |= dict.fromkeys(links, "This is a link to another folder; give that folder itself.")
        images += (Path(within, name) for name in files if not name.startswith("._"))  # the Mac's bookkeeping
    images = [p for p in images if is_image_name(p) or p.suffix.lower() in OTHER_IMAGE_SUFFIXES]
    if not images:
        raise InputError(next(iter(unread.values()), f"There is no image file in the folder {folder}."))
    return {path: unread.get(path, "") for path in sorted([*images, *unread])}


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


def _csv_rows(path: Path, image_root: Path, note: Callable[[str], object]) -> list[ScoreRow]:
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.")
    if is_image_name(path):
        raise InputError(f"{path} is an image, which `assess` judges; `score` needs a CSV or a folder.")
    table = read_table(path, short_rows=True).select(("image", "prompt"))
    for sentence in table.notes:
        note(sentence)
    if not table.rows:
        raise InputError(f"{path} has no rows below its header.")
    return [_csv_row(row, image_root) for row in table.rows]


def _csv_row(row: TableRow, image_root: Path) -> ScoreRow:
    if not row.cells:
        raise InputError(f"{row.place}: {row.problem}")
    image, prompt = row.cells["image"], row.text("prompt") or ""
    path = image_root / image
    if row.problem:
        return ScoreRow(image, path, prompt, error=row.problem)
    return ScoreRow(image, path, prompt, "CSV" if prompt else "")


# --- scoring -----------------------------------------------------------------------------------


def score(rows: Iterable[ScoreRow], output: ScoreFile, assessor: Assessor) -> Iterator[str]:
    """Judge all rows, some at once, append each to the output, and yield its error ("": all went well)."""
    waiting = iter(rows)
    while batch := [row.complete() for row in islice(waiting, BATCH_SIZE)]:
        good = [row for row in batch if not row.error]
        judged = dict(zip(map(id, good), _judge(good, assessor), strict=True))
        for row in batch:
            cells = {"image": row.image, "prompt": row.prompt, "prompt_origin": row.prompt_origin}
            cells |= {"model": assessor.card.title, "learned_from": assessor.card.learned_from}
            answer = judged.get(id(row), row.error)
            if isinstance(answer, Assessment):
                cells, error = cells | answer.to_cells(), ""
                for read in filter(None, (each.read_characters for each in answer.aspects.values())):
                    cells["prompt_origin"] = f"{row.prompt_origin}, its first {read:,} characters"
            else:
                error = str(answer)
            output.append({**cells, "error": error})
            yield error


def _judge(rows: Sequence[ScoreRow], assessor: Assessor) -> list[Assessment | M3AgiqaError | str]:
    """An assessment or what is wrong, row by row."""
    try:
        return list(assessor.assess_all([(row.path, row.prompt) for row in rows]))
    except Exception as problem:  # one odd file must not end a night's run
        if len(rows) == 1:
            return [f"Unexpected {type(problem).__name__}: {problem}"]
        return [answer for row in rows for answer in _judge([row], assessor)]


# --- writing -----------------------------------------------------------------------------------


class ScoreFile:
    """The CSV of results. Each row is written at once, so what is there after a crash stays valid.

    It belongs to one process from its making to `close`; that of another one is refused.
    """

    def __init__(self, path: Path) -> None:
        """Read what an earlier run has left; nothing is changed yet. Raises InputError."""
        self.path = path
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} to write {path.name} to.")
        self._made = not path.exists()
        if not (self._made or path.is_file()):
            raise InputError(f"{path} cannot be written: it is no ordinary file. Give --out a file's name.")
        try:
            self._file = path.open("a+b", buffering=0)
            free = lock(self._file)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from error
        if not (free and path.exists()):  # or the other process ended just now, and took its empty file away
            self._file.close()
            raise InputError(
                f"Another process is writing to {path}. Wait until it has ended, or choose another --out."
            )
        try:
            self._rows, self._models, self._valid_bytes = self._read()
        except InputError:
            self._file.close()
            raise

    def __enter__(self) -> ScoreFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write; a file that was made here and got nothing is taken away."""
        if self._made and not os.fstat(self._file.fileno()).st_size:
            with suppress(OSError):  # Windows keeps open files
                self.path.unlink()
        self._file.close()

    def _read(self) -> tuple[Counter[tuple[str, str]], set[str], int]:
        """Images with prompts of complete rows, their models, and the bytes that they and the header take."""
        self._file.seek(0)
        content = self._file.read()
        body = content.removeprefix(codecs.BOM_UTF8)  # files of earlier versions begin without
        if _HEADER_LINE.startswith(content) or _line(RESULT_COLUMNS).startswith(body):
            return Counter(), set(), 0  # empty, or stopped within its first line
        consumed = valid = len(content) - len(body)

        def lines() -> Iterator[str]:
            nonlocal consumed
            for line in body.splitlines(keepends=True):
                consumed += len(line)
                yield line.decode("utf-8", errors="surrogateescape")

        rows: Counter[tuple[str, str]] = Counter()
        models = set()
        header: list[str] = []
        try:
            for cells in csv.reader(lines(), strict=True):
                if content[consumed - 1 : consumed] != b"\n":
                    break  # the last row is half-written
                valid = consumed
                if not header:
                    header = cells
                    continue
                row = dict(zip(RESULT_COLUMNS, cells, strict=True))
                rows[_row_key(row["image"], row["prompt"])] += 1
                models.add(row["model"])
        except csv.Error:
            if consumed < len(content):  # not merely a quoted text that was cut off
                raise self._foreign() from None
        except ValueError:  # another number of cells
            raise self._foreign() from None
        if header != list(RESULT_COLUMNS):
            raise self._foreign()
        return rows, models, valid

    def _foreign(self) -> InputError:
        return InputError(
            f"{self.path} exists and is not a score file of this version, so nothing is added to it. "
            "Choose another --out, or delete the file."
        )

    def remaining(self, rows: Sequence[ScoreRow]) -> list[ScoreRow]:
        """The rows that are not in the file yet. A row that failed counts as done."""
        done = self._rows.copy()
        images = {image for image, _ in done}
        todo = []
        for row in rows:
            if str(harmless(row.image)) in images:
                row = row.complete()
            key = _row_key(row.image, row.prompt)
            if done[key]:
                done[key] -= 1
            else:
                todo.append(row)
        return todo

    def start(self, model: str) -> None:
        """Make the file ready for rows of this model. Raises InputError if it holds another model's."""
        others = self._models - {model}
        if others:
            raise InputError(
                f"{self.path} holds scores of {', '.join(sorted(others))}, and this model is {model}. "
                "Choose another --out, or delete the file."
            )
        self._file.truncate(self._valid_bytes)  # drops a half-written last row
        if not self._valid_bytes:
            self._write(_HEADER_LINE)

    def append(self, cells: dict[str, str]) -> None:
        """Write one row. Raises InputError when the disk does not take it."""
        self._write(_line([str(harmless(cells.get(name, ""))) for name in RESULT_COLUMNS]))

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror}. The rows before are kept; "
                "the same command goes on from there."
            ) from error


def _row_key(image: str, prompt: str) -> tuple[str, str]:
    """As both stand in the file."""
    return str(harmless(image)), str(harmless(prompt))


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode("utf-8", errors="surrogateescape")  # file names may be any bytes


_HEADER_LINE = codecs.BOM_UTF8 + _line(RESULT_COLUMNS)  # without the mark, Excel takes it for Latin-1
