"""Scoring many images: rows of m3agiqa.score_inputs, results appended to a CSV that can be resumed."""

from __future__ import annotations

import codecs
import csv
import io
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from m3agiqa.assessment import ASPECT_COLUMNS, Assessment
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.files import lock
from m3agiqa.score_inputs import ScoreRow
from m3agiqa.tables import harmless

if TYPE_CHECKING:
    from m3agiqa.assessor import Assessor

RESULT_COLUMNS = (
    *("image", "prompt", *ASPECT_COLUMNS),
    *("scale", "model", "learned_from", "prompt_origin", "error"),
)
BATCH_SIZE = 8
"""Images; more are hardly faster on few cores, and lost where a run is stopped."""


# --- scoring -----------------------------------------------------------------------------------


class ScoreOutput(Protocol):
    """What takes one row after another."""

    def append(self, cells: dict[str, str]) -> None:
        """Texts by RESULT_COLUMNS; those of columns without a text may be missing."""


def score(rows: Iterable[ScoreRow], output: ScoreOutput, assessor: Assessor) -> Iterator[str]:
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
        return list(assessor.assess_all([(row.source(), row.prompt) for row in rows]))
    except Exception as problem:  # one odd file must not end a night's run
        if len(rows) == 1:
            if isinstance(problem, M3AgiqaError):
                return [problem]
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
            self._done, self._models = _DoneRows(), set[str]()
            self._valid_bytes = self._read()
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

    def _read(self) -> int:
        """Take in complete rows and their models; gives the number of bytes of these rows and the header."""
        consumed = valid = 0
        header: list[str] = []
        with self.path.open("rb") as file:
            start = file.read(len(_HEADER_LINE))
            body = start.removeprefix(codecs.BOM_UTF8)  # files of earlier versions begin without
            if not file.read(1) and (
                _HEADER_LINE.startswith(start) or _line(RESULT_COLUMNS).startswith(body)
            ):
                return 0  # empty, or stopped within its first line
            consumed = valid = len(start) - len(body)
            file.seek(consumed)
            line = b""

            def lines() -> Iterator[str]:
                nonlocal consumed, line
                for line in file:
                    consumed += len(line)
                    yield line.decode("utf-8", errors="surrogateescape")

            try:
                for cells in csv.reader(lines(), strict=True):
                    if not line.endswith(b"\n"):
                        break  # the last row is half-written
                    valid = consumed
                    if not header:
                        header = cells
                        continue
                    row = dict(zip(RESULT_COLUMNS, cells, strict=True))
                    self._done.add(_row_key(row["image"], row["prompt"]))
                    self._models.add(row["model"])
            except csv.Error:
                if file.read(1):  # not merely a quoted text that was cut off
                    raise self._foreign() from None
            except ValueError:  # another number of cells
                raise self._foreign() from None
        if header != list(RESULT_COLUMNS):
            raise self._foreign()
        return valid

    def _foreign(self) -> InputError:
        return InputError(
            f"{self.path} exists and is not a score file of this version, so nothing is added to it. "
            "Choose another --out, or delete the file."
        )

    def remaining(self, rows: Iterable[ScoreRow]) -> RemainingRows:
        """The rows that are not in the file yet. A row that failed counts as done.

        Raises InputError for a row that cannot be read, and when the disk does not take them.
        """
        try:
            todo = RemainingRows(self.path.parent)
            for row in rows:
                todo.total += 1
                if self._done.has_image(row.image):
                    row = row.complete()
                if not self._done.take(_row_key(row.image, row.prompt)):
                    todo.append(row)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"The list of the rows to score cannot be kept on the disk: {error}.") from error
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


class RemainingRows:
    """Rows to be scored, which may be gone through once; they wait in a temporary file, not in memory."""

    def __init__(self, folder: Path) -> None:
        self.total = 0
        """Of all rows, those that are scored already included."""
        self._count = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def append(self, row: ScoreRow) -> None:
        self._file.write(row.to_json())
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ScoreRow]:
        with self._file:
            self._file.seek(0)
            yield from map(ScoreRow.from_json, self._file)


class _DoneRows:
    """How often each image with its prompt is in a score file; on disk, as there may be millions."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)  # "": a temporary file
        self._database.execute(
            "create table done (image blob, prompt blob, times int, primary key (image, prompt))"
        )

    def add(self, key: tuple[bytes, bytes]) -> None:
        self._database.execute(
            "insert into done values (?, ?, 1) on conflict do update set times = times + 1", key
        )

    def take(self, key: tuple[bytes, bytes]) -> bool:
        """Whether it is there, once more than it was taken."""
        taken = "update done set times = times - 1 where image = ? and prompt = ? and times > 0"
        return self._database.execute(taken, key).rowcount == 1

    def has_image(self, image: str) -> bool:
        there = self._database.execute("select 1 from done where image = ? limit 1", _row_key(image, "")[:1])
        return there.fetchone() is not None


def _row_key(image: str, prompt: str) -> tuple[bytes, bytes]:
    """As both stand in the file."""
    as_written = (str(harmless(text)).encode("utf-8", errors="surrogateescape") for text in (image, prompt))
    return next(as_written), next(as_written)


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode("utf-8", errors="surrogateescape")  # file names may be any bytes


_HEADER_LINE = codecs.BOM_UTF8 + _line(RESULT_COLUMNS)  # without the mark, Excel takes it for Latin-1
