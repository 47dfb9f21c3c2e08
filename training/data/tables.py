"""CSV and Excel tables whose rows know their place for error messages."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from m3agiqa.aspects import MosScale
from m3agiqa.errors import InputError


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
    """A table from a .csv (UTF-8, with or without byte order mark) or .xlsx file.

    Raises InputError naming file and line.
    """
    lines = read_cells(path)
    if not lines:
        raise InputError(f"{path} is empty.")
    names = [name.strip().lower() for name in lines[0][1]]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(f"{path} has the column {twice[0]} more than once.")
    rows = []
    for number, cells in lines[1:]:
        place = f"{path}, line {number}"
        if len(cells) != len(names):
            raise InputError(
                f"{place} has {len(cells)} cells where the header has {len(names)}. "
                "Put texts that hold commas in double quotes."
            )
        rows.append(TableRow(place, dict(zip(names, (cell.strip() for cell in cells), strict=True))))
    return Table(path, tuple(names), tuple(rows))


def read_cells(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and cells of a .csv or .xlsx file, without lines that are empty.

    A cell may span lines; the number is that of its row's last. Raises InputError naming file and line.
    """
    lines = _excel_cells(path) if path.suffix.lower() == ".xlsx" else _csv_cells(path)
    return [(number, cells) for number, cells in lines if any(cell.strip() for cell in cells)]


def _csv_cells(path: Path) -> list[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                return [(reader.line_num, cells) for cells in reader]
            except csv.Error as error:
                raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a UTF-8 text file: {error.reason}. Save it as CSV UTF-8.") from error


def _excel_cells(path: Path) -> list[tuple[int, list[str]]]:
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
    return list(enumerate(frame.astype(str).to_numpy().tolist(), 1))
