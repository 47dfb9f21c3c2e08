"""CSV and Excel tables of images: one reader, which takes what spreadsheets write and names what it skips."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import math
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import pandas as pd

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError

TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx")
CSV_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""Spreadsheets write the second in half of Europe, the third as "Unicode text"."""
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "image_path", "image_file", "image_filename", "image_name", "img", "img_path", "img_name"),
        *("file_name", "file", "file_path", "path", "picture", "name"),
    ),
    "prompt": ("prompt", "text_prompt", "prompt_text", "positive_prompt", "caption", "text"),
    Aspect.QUALITY: ("quality", "mos_quality", "quality_mos", "mos", "mean_opinion_score"),
    Aspect.CORRESPONDENCE: (
        *("correspondence", "mos_correspondence", "correspondence_mos"),
        *("alignment", "mos_alignment", "alignment_mos", "mos_align"),
    ),
    Aspect.AUTHENTICITY: (
        *("authenticity", "mos_authenticity", "authenticity_mos"),
        *("realism", "mos_realism", "realism_mos"),
    ),
}
"""What public data sets and users call a column; case, spaces, hyphens and underscores do not count."""
MAX_ROW_LINES = 1000  # a quotation mark that is never closed must not swallow the rest of the file
MAX_NAMES_SHOWN = 10
IMAGE_FILE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|jp2)\s*$", re.IGNORECASE)
URL_START = re.compile(r"\s*([a-z][a-z0-9+.-]*://|data:)", re.IGNORECASE)
OTHER_ALPHABET = re.compile(r"[À-ÿ]{3}|[^\x00-\x7f]{4}|[\x00-\x08\x0e-\x1f]")
"""In a text decoded as Windows-1252: what hardly occurs in the languages that are written in it."""


T = TypeVar("T")


@dataclass(frozen=True)
class Repeatable(Generic[T]):
    """What is read anew each time it is gone through, and so never held as a whole."""

    start: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        return self.start()

    def __bool__(self) -> bool:
        return any(True for _ in self)


@dataclass(frozen=True)
class Record:
    """One row as it stands in a file: the number of its first line, its cells, and what is wrong with it."""

    line: int
    cells: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class TableRow:
    """One row: stripped texts by column."""

    place: str
    """File and line, for error messages."""
    line: int
    cells: dict[str, str]
    """Empty where the row cannot be read at all."""
    problem: str = ""
    """A sentence on why the row cannot be used."""

    def text(self, column: str) -> str | None:
        """The cell's text; None where the cell is empty or the table has no such column."""
        return self.cells.get(column) or None

    def score(self, column: str, scale: MosScale) -> float | None:
        """The cell as a MOS; None where it is empty. Raises InputError if it is not on the scale."""
        text = self.text(column)
        if text is None:
            return None
        return on_scale(decimal_number(text, f"{self.place}: {column}"), scale, f"{self.place}: {column}")


@dataclass(frozen=True)
class Table:
    """A table with a header; empty rows are left out."""

    name: str
    columns: tuple[str, ...]
    """As the file writes them; after `select`, the fields."""
    rows: Repeatable[TableRow]
    notes: tuple[str, ...] = ()
    """Sentences for the user about how it was read."""

    def has(self, column: str) -> bool:
        """Whether there is a column of just this name."""
        return _key(column) in map(_key, self.columns)

    def select(self, fields: Collection[str], needed: Sequence[str] = ("image",)) -> Table:
        """The columns that mean these fields, under the fields' names (COLUMN_NAMES); notes name the others.

        Rows get a problem where the needed image is missing or a URL. Raises InputError where two columns
        mean one field, or none means a needed one.
        """
        if not self.columns:
            raise InputError(f"{self.name} is empty.")
        chosen: dict[str, str] = {}
        for name in fields:
            keys = {_key(known) for known in COLUMN_NAMES.get(name, (name,))}
            there = [column for column in self.columns if _key(column) in keys]
            if len(there) > 1:
                raise InputError(
                    f"{self.name} has several columns for {name}: {some_names(there)}. Keep one, or rename "
                    "the others."
                )
            if there:
                chosen[name] = there[0]
            elif name in needed:
                raise InputError(self._lacking(name))

        def selected(row: TableRow) -> TableRow:
            if not row.cells:
                return row
            cells = {name: row.cells.get(column, "") for name, column in chosen.items()}
            problem = row.problem or (image_problem(cells["image"]) if "image" in needed else "")
            return replace(row, cells=cells, problem=problem)

        rows = Repeatable(lambda: map(selected, self.rows))
        return Table(self.name, tuple(chosen), rows, (*self.notes, *self._unread(chosen, fields)))

    def sound_rows(self) -> tuple[TableRow, ...]:
        """All rows. Raises InputError for the first that has a problem."""
        rows = tuple(self.rows)
        for row in rows:
            if row.problem:
                raise InputError(f"{row.place}: {row.problem}")
        return rows

    def _lacking(self, name: str) -> str:
        if any(map(IMAGE_FILE.search, self.columns)):
            return (
                f"{self.name} does not begin with the names of its columns; put image,prompt above the rows."
            )
        first = next((row.cells for row in self.rows), {})
        files = [column for column, cell in first.items() if name == "image" and IMAGE_FILE.search(cell)]
        which = f"the column {some_names(files)}" if len(files) == 1 else "the column that holds it"
        return (
            f"{self.name} has no column {name}; it has {some_names(self.columns)}. Rename {which} to {name}."
        )

    def _unread(self, chosen: dict[str, str], fields: Collection[str]) -> list[str]:
        read = set(chosen.values())
        unread = [column for column in self.columns if column and column not in read]
        if not unread:
            return []
        free = [name for name in fields if name not in chosen]
        names = []
        for column in unread:
            near = difflib.get_close_matches(_key(column), free, n=1, cutoff=0.8)
            names.append(some_names([column]) + (f" (did you mean {near[0]}?)" if near else ""))
        more = f" and {len(names) - MAX_NAMES_SHOWN:,} more" if len(names) > MAX_NAMES_SHOWN else ""
        which = ", ".join(names[:MAX_NAMES_SHOWN]) + more
        return [f"{self.name}: not read: {which}. Read: {some_names(sorted(read, key=self.columns.index))}."]


def field_of(column: str) -> str:
    """The one of COLUMN_NAMES that a column of this name means; "" for none."""
    key = _key(column)
    return next((name for name, known in COLUMN_NAMES.items() if key in map(_key, known)), "")


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def some_names(names: Sequence[str], most: int = MAX_NAMES_SHOWN) -> str:
    """Names in a message: printable, and not too many."""
    shown = ["".join(c if c.isprintable() else "�" for c in name[:80]) for name in names[:most]]
    return ", ".join(shown) + (" …" if len(names) > most else "")


def image_problem(image: str) -> str:
    """Why the text of an image column names no file; "" if it may."""
    if not image:
        return "The row names no image."
    if URL_START.match(image):
        return f"{image[:80]} is a URL; save the image as a file and give the file's path."
    return ""


def decimal_number(text: str, what: str) -> float:
    """A cell as a number, with a point or a comma before the decimals. Raises InputError; `what` names it."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise InputError(f"{what} is not a number: {text[:40]!r}.") from None


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


# --- reading -----------------------------------------------------------------------------------


def read_table(path: Path, *, short_rows: bool = False) -> Table:
    """The table in a .csv, .tsv or .xlsx file, as parse_table has it. Raises InputError.

    `short_rows`: the last cells may be left out.
    """
    try:
        return _table(lambda: path.open("rb"), str(path), short_rows)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def parse_table(content: bytes, name: str) -> Table:
    """The table in a file's content; rows that cannot be read have a problem.

    Raises InputError for a damaged Excel file.
    """
    return _table(partial(io.BytesIO, content), name, short_rows=False)


def _table(opened: Callable[[], BinaryIO], name: str, short_rows: bool) -> Table:
    records, notes = _records(opened, name, short_rows)
    header = next(iter(records), Record(1))
    if header.problem:
        raise InputError(f"{name}, line {header.line}: {header.problem}")
    columns = tuple(cell.strip() for cell in header.cells)

    def row(record: Record) -> TableRow:
        cells = dict(zip(columns, map(_plain, record.cells), strict=False))
        return TableRow(f"{name}, line {record.line}", record.line, cells, record.problem)

    return Table(name, columns, Repeatable(lambda: map(row, islice(records, 1, None))), tuple(notes))


def read_records(content: bytes, name: str, *, short_rows: bool = False) -> tuple[list[Record], list[str]]:
    """The rows of a CSV or Excel file, the header first, without empty ones; and notes for the user.

    A row that cannot be read, or has not as many cells as the first, is given with its problem, and reading
    goes on in the line after its first one. `short_rows`: the last cells may be left out. Raises InputError
    for a damaged Excel file.
    """
    records, notes = _records(partial(io.BytesIO, content), name, short_rows)
    return list(records), notes


def _records(
    opened: Callable[[], BinaryIO], name: str, short_rows: bool
) -> tuple[Repeatable[Record], list[str]]:
    if name.lower().endswith(".xlsx"):
        with opened() as file:
            records = _excel_records(file.read(), name)
        return Repeatable(lambda: iter(records)), []
    lines, notes = _lines(opened, name)
    return Repeatable(lambda: _csv_records(lines, short_rows)), notes


def _csv_records(lines: Iterable[str | None], short_rows: bool) -> Iterator[Record]:
    source = iter(lines)
    ahead: deque[str | None] = deque()  # the first of them is the one with this number
    number, delimiter, width = 1, "", 0

    def drop(count: int) -> None:
        nonlocal number
        number += count
        for _ in range(count):
            ahead.popleft()

    def is_there(at: int) -> bool:
        if at == len(ahead):
            ahead.extend(islice(source, 1))
        return at < len(ahead)

    def readable() -> Iterator[str]:
        """The lines of one row at most, before the first one that is no text."""
        for at in range(MAX_ROW_LINES):
            if not is_there(at) or (line := ahead[at]) is None:
                return
            yield line

    while is_there(0):
        line = ahead[0]
        if not delimiter:
            is_empty, is_declaration = line is not None and not line.strip(), False
            if not is_empty:
                delimiter, is_declaration = _delimiter(line or "")
            if is_empty or is_declaration:
                drop(1)
                continue
        if line is None:
            yield Record(number, problem="The row is not UTF-8; save the table as “CSV UTF-8”.")
            drop(1)
            continue
        if not line.strip(f"{delimiter} \r\n"):
            drop(1)
            continue
        # Spaces after a delimiter are no part of a cell; kept, they would hide its quotation marks.
        reader = csv.reader(readable(), delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
        try:
            cells = next(reader)
        except csv.Error as error:
            problem = f"The row is no valid CSV ({error}); put texts with quotation marks into double quotes."
            yield Record(number, problem=problem)
            drop(1)
            continue
        lines_read = reader.line_num
        if any(cell.strip() for cell in cells):
            width = width or len(cells)
            padded = (cells + [""] * width)[:width]
            if len(cells) == width or (short_rows and len(cells) < width):
                yield Record(number, padded)
            else:
                count = f"The row has {len(cells)} cells and the header {width}"
                problem = f"{count}; put texts that hold {CSV_DELIMITERS[delimiter]} into double quotes."
                yield Record(number, padded, problem)
                lines_read = 1
        drop(lines_read)


def _lines(opened: Callable[[], BinaryIO], name: str) -> tuple[Repeatable[str | None], list[str]]:
    """Lines with their ends, None for one that is no text; and what the user should know of the encoding."""
    with opened() as file:
        utf16 = _utf16(file.read(4))
    if utf16:
        return Repeatable(lambda: _utf16_lines(opened, utf16)), []
    western, sample = _is_western(_byte_lines(opened))
    if not western:
        return Repeatable(lambda: (_decoded(line, "utf-8") for line in _byte_lines(opened))), []
    word = f", such as “{sample[:40]}”" if sample else ""
    note = f"{name} is not UTF-8 and was read as Windows-1252 (Latin-1){word}. If letters are wrong, "
    lines = Repeatable(lambda: (_decoded(line, "cp1252") for line in _byte_lines(opened)))
    return lines, [f"{note}save it as “CSV UTF-8”."]


def _byte_lines(opened: Callable[[], BinaryIO]) -> Iterator[bytes]:
    with opened() as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        for chunk in file:
            yield from chunk.splitlines(keepends=True)  # old Macs' ends of lines, too


def _utf16_lines(opened: Callable[[], BinaryIO], encoding: str) -> Iterator[str]:
    with opened() as file, io.TextIOWrapper(file, encoding, errors="replace", newline="") as text:
        for line in text:
            yield line.replace("\0", "")


def _is_western(lines: Iterable[bytes]) -> tuple[bool, str]:
    """Whether a table is not UTF-8 and all of it may be Windows-1252; and a word with a letter of that."""
    not_utf8, sample = False, ""
    for line in lines:
        utf8, western = _decoded(line, "utf-8"), _decoded(line, "cp1252")
        if (utf8 and not utf8.isascii()) or western is None or OTHER_ALPHABET.search(western):
            return False, ""
        not_utf8 = not_utf8 or utf8 is None
        if not sample and (letter := re.search(r"[^\x00-\x7f]", western)):
            nearby = western[max(0, letter.start() - 40) : letter.start() + 40]
            sample = "".join(re.findall(r"\w*[^\x00-\x7f]\w*", nearby)[:1])
    return not_utf8, sample


def _decoded(line: bytes, encoding: str) -> str | None:
    try:
        return line.decode(encoding).replace("\0", "")
    except UnicodeDecodeError:
        return None


def _utf16(content: bytes) -> str:
    """The encoding's name by a byte order mark, or by the zero bytes of the ASCII letters of a header.

    Of the first bytes; "" for another encoding.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(content) > 3 and not any(content[1:4:2]) and all(content[0:4:2]):
        return "utf-16-le"
    return "utf-16-be" if len(content) > 3 and not any(content[0:4:2]) and all(content[1:4:2]) else ""


def _delimiter(header: str) -> tuple[str, bool]:
    """Of a table with this first line; and whether that is Excel's `sep=;`, which declares it."""
    declared = re.fullmatch(r'"?sep=(.)"?\s*', header)
    if declared and declared[1] in CSV_DELIMITERS:
        return declared[1], True

    def fit(delimiter: str) -> tuple[int, int]:
        names = [_key(cell.strip(' "\r\n')) for cell in header.split(delimiter)]
        return len(_KNOWN_KEYS.intersection(names)), len(names)

    return max(CSV_DELIMITERS, key=fit), False


_KNOWN_KEYS = {"id", *(_key(name) for names in COLUMN_NAMES.values() for name in names)}


def _excel_records(content: bytes, name: str) -> list[Record]:
    try:
        frame = pd.read_excel(io.BytesIO(content), header=None, dtype=str, keep_default_na=False)
    except ImportError as error:
        raise InputError(
            f"Reading {name} needs openpyxl (pip install openpyxl). Or save the table as CSV UTF-8 beside it."
        ) from error
    except Exception as error:  # openpyxl raises many kinds for files that are no workbooks
        raise InputError(f"{name} is not an Excel file: {error}.") from error
    rows = enumerate(frame.astype(str).to_numpy().tolist(), 1)
    return [Record(number_of_row, cells) for number_of_row, cells in rows if any(map(str.strip, cells))]


# --- what spreadsheets take for formulas -------------------------------------------------------

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that starts so is a formula to a spreadsheet, or may become one."""


def harmless(cell: object) -> object:
    """A text that cannot be taken for a formula; numbers and anything else stay as they are."""
    return f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table with a header, whose lines end as CSV has them, for spreadsheets: its cells are `harmless`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *(map(harmless, row) for row in rows)])
    return text.getvalue()


def _plain(cell: str) -> str:
    """A cell's text, stripped, as it was before `harmless`."""
    text = cell.strip()
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(cell: str) -> bool:
    if not cell.lstrip(" ").startswith(FORMULA_STARTS):
        return False
    with suppress(ValueError):
        return not math.isfinite(float(cell))
    return True
