"""CSV and Excel tables: the one reader, whose rows know their lines for error messages."""

from __future__ import annotations

import codecs
import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from m3agiqa.aspects import MosScale
from m3agiqa.errors import InputError

CSV_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""Spreadsheets write the second in half of Europe, the third as "Unicode text"."""
HEADER_NAMES = frozenset({"image", "name", "id"})
"""One of them stands in the header of every table of images, and tells the delimiter."""
MAX_ROW_LINES = 200  # a quotation mark that is never closed must not swallow the rest of the file


@dataclass(frozen=True)
class Record:
    """One row as it stands in a file: the number of its first line, and its cells or what is wrong."""

    line: int
    cells: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class TableRow:
    """One row: stripped texts by column."""

    place: str
    """File and line, for error messages."""
    cells: dict[str, str]

    def text(self, column: str) -> str | None:
        """The cell's text; None where the cell is empty or the table has no such column."""
        return self.cells.get(column) or None

    def needed(self, column: str) -> str:
        """The cell's text. Raises InputError where it is empty."""
        text = self.text(column)
        if text is None:
            raise InputError(f"{self.place}: the column {column} is empty.")
        return text

    def score(self, column: str, scale: MosScale) -> float | None:
        """The cell as a MOS; None where it is empty. Raises InputError if it is not on the scale."""
        text = self.text(column)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError as error:
            raise InputError(f"{self.place}: {column} is not a number: {text!r}.") from error
        return on_scale(value, scale, f"{self.place}: {column}")


@dataclass(frozen=True)
class Table:
    """A table with a header; empty rows are left out."""

    path: Path
    columns: tuple[str, ...]
    """Names in lower case."""
    rows: tuple[TableRow, ...]

    def column(self, names: Sequence[str], what: str) -> str | None:
        """The column that has one of the names. Raises InputError where several do; `what` they hold."""
        there = [name for name in names if name in self.columns]
        if len(there) > 1:
            raise InputError(f"{self.path} has several columns for {what}: {', '.join(there)}. Keep one.")
        return there[0] if there else None

    def needed_column(self, names: Sequence[str], what: str) -> str:
        """The same. Raises InputError also where there is none."""
        name = self.column(names, what)
        if name is None:
            raise InputError(
                f"{self.path} has no column {' or '.join(names)} ({what}); it has {', '.join(self.columns)}."
            )
        return name


def on_scale(value: float, scale: MosScale, what: str) -> float:
    """The value itself. Raises InputError if it is no number on the scale; `what` names place and column."""
    if not isinstance(value, (int, float)):
        raise InputError(f"{what} is not a number: {value!r}.")
    if not (math.isfinite(value) and scale.low <= value <= scale.high):
        raise InputError(
            f"{what} is {value:g}, outside the scale from {scale.low:g} to {scale.high:g}. "
            "Correct it, or set the scale that the scores are on."
        )
    return value


def read_table(path: Path) -> Table:
    """A table from a .csv or .xlsx file, read as by read_records. Raises InputError naming file and line."""
    records = read_records(path)
    if not records:
        raise InputError(f"{path} is empty.")
    names = column_names(records[0])
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]} more than once.")
    rows = [
        TableRow(
            f"{path}, line {record.line}",
            dict(zip(names, (cell.strip() for cell in record.cells), strict=True)),
        )
        for record in records[1:]
    ]
    return Table(path, tuple(names), tuple(rows))


def read_records(path: Path, *, ragged: bool = False) -> list[Record]:
    """All rows of a .csv or .xlsx file, as csv_records has them. Raises InputError for the first bad one."""
    if path.suffix.lower() == ".xlsx":
        return _excel_records(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    records = list(csv_records(content, ragged=ragged))
    for record in records:
        if record.problem:
            raise InputError(f"{path}, line {record.line}: {record.problem}")
    return records


def column_names(header: Record | None) -> list[str]:
    """Names of a table's columns by its first record, in lower case."""
    return [name.strip().lower() for name in header.cells] if header else []


def csv_records(content: bytes, *, ragged: bool = False) -> Iterator[Record]:
    """The rows of a CSV in UTF-8 or UTF-16, the header first; rows without any text are left out.

    A row that cannot be read, or has not as many cells as the first (unless `ragged`), is given with its
    problem, and reading goes on in the line after its first one.
    """
    lines = _lines(content)
    delimiter = _delimiter(lines)
    width = None
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at]
        at += 1
        if line is None:
            yield Record(number, problem="The row is not UTF-8; save the table as “CSV UTF-8”.")
            continue
        if not line.strip(f"{delimiter} \r\n"):
            continue
        reader = csv.reader(
            _readable(lines[at - 1 : at - 1 + MAX_ROW_LINES]), delimiter=delimiter, strict=True
        )
        try:
            cells = next(reader)
        except csv.Error as error:
            problem = f"The row is no valid CSV ({error}); put texts with quotation marks into double quotes."
            yield Record(number, problem=problem)
            continue
        if not any(cell.strip() for cell in cells):
            at += reader.line_num - 1
            continue
        width = width or len(cells)
        if len(cells) == width or ragged:
            yield Record(number, cells)
            at += reader.line_num - 1
        else:
            count = f"The row has {len(cells)} cells and the header {width}"
            problem = f"{count}; put texts that hold {CSV_DELIMITERS[delimiter]} into double quotes."
            yield Record(number, problem=problem)


def _lines(content: bytes) -> list[str | None]:
    """Lines with their ends; None for one that is no text in UTF-8."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace").replace("\0", "")
        return list(io.StringIO(text, newline=""))  # str.splitlines would split at more than ends of lines
    lines: list[str | None] = []
    for line in content.removeprefix(codecs.BOM_UTF8).splitlines(keepends=True):
        try:
            lines.append(line.decode("utf-8").replace("\0", ""))
        except UnicodeDecodeError:
            lines.append(None)
    return lines


def _readable(lines: Sequence[str | None]) -> Iterator[str]:
    """The lines before the first one that is no text."""
    for line in lines:
        if line is None:
            return
        yield line


def _delimiter(lines: Sequence[str | None]) -> str:
    header = next((line for line in lines if line is None or line.strip()), None) or ""
    for delimiter in CSV_DELIMITERS:
        if HEADER_NAMES & {cell.strip(' "\r\n').lower() for cell in header.split(delimiter)}:
            return delimiter
    return ","


def _excel_records(path: Path) -> list[Record]:
    try:
        frame = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ImportError as error:
        raise InputError(
            f"Reading {path} needs openpyxl (pip install openpyxl). Or save the table as CSV UTF-8 beside it."
        ) from error
    except Exception as error:  # openpyxl raises many kinds for files that are no workbooks
        raise InputError(f"{path} is not an Excel file: {error}.") from error
    rows = enumerate(frame.astype(str).to_numpy().tolist(), 1)
    return [Record(number, cells) for number, cells in rows if any(cell.strip() for cell in cells)]
