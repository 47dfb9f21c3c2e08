"""CSV files of images to import: each row stands alone, so that a bad one spoils no other."""

from __future__ import annotations

from dataclasses import dataclass, field

from annotation.store.items import MAX_GENERATOR
from annotation.store.people import MAX_NAME
from m3agiqa.aspects import COMMON_SCALE, Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.tables import decimal_number, parse_table

DEFAULT_TOLERANCE = 1.0
TOLERANCE_RANGE = MosScale(0.0, COMMON_SCALE.high - COMMON_SCALE.low)
MAX_LINES = 300_000  # all of them are held in memory
CSV_COLUMNS = (
    *("image", "prompt", "generator", "annotator", "gold_tolerance"),
    *(f"gold_{aspect}" for aspect in Aspect),
)
"""Beside the columns of scores."""


@dataclass(frozen=True)
class Gold:
    """The known answer about an aspect, on COMMON_SCALE: scores within `tolerance` of `score` are right."""

    aspect: Aspect
    score: float
    tolerance: float


@dataclass(frozen=True)
class Row:
    """One image as a CSV tells of it; `place` is its line. Scores are on COMMON_SCALE."""

    place: str
    image: str
    prompt: str = ""
    generator: str | None = None
    gold: tuple[Gold, ...] = ()
    scores: dict[Aspect, float] = field(default_factory=dict)
    annotator: str | None = None


@dataclass(frozen=True)
class ImportTable:
    """The good rows of a table, and what is to be said about the others and about the whole."""

    rows: list[Row]
    errors: list[tuple[str, str]]
    """Places and reasons of the bad rows."""
    notes: tuple[str, ...]


def read_import_table(content: bytes, name: str) -> ImportTable:
    """The table in a file's content. Raises InputError where it makes no sense as a whole."""
    count = max(content.count(b"\n"), content.count(b"\r"))
    if count > MAX_LINES:
        raise InputError(f"{name} has {count:,} lines; at most {MAX_LINES:,} are read. Divide it.")
    table = parse_table(content, name)
    scored = [str(aspect) for aspect in Aspect if table.has(aspect)]
    # A mean opinion score under another name is nobody's own: it is read only beside who gave it.
    by_person = table.has("annotator")
    table = table.select((*CSV_COLUMNS, *Aspect) if scored or by_person else CSV_COLUMNS)
    if scored and not by_person:
        raise InputError(
            f"{name} has scores ({', '.join(scored)}) but no column annotator, which says who gave them. "
            "Add it, or take the columns of scores out."
        )
    if not table.rows:
        raise InputError(f"{name} has no rows below its header.")
    rows: list[Row] = []
    errors: list[tuple[str, str]] = []
    for row in table.rows:
        place = f"line {row.line}"
        try:
            if row.problem:
                raise InputError(row.problem)
            rows.append(_row(place, row.cells))
        except InputError as error:
            errors.append((place, str(error)))
    return ImportTable(rows, errors, table.notes)


def _row(place: str, cells: dict[str, str]) -> Row:
    texts = {name: cell for name, cell in cells.items() if cell}
    scores = _scores(texts, "")
    annotator, generator = texts.get("annotator"), texts.get("generator")
    if scores and annotator is None:
        raise InputError("The row has scores but names no annotator.")
    for what, text, longest in (("annotator", annotator, MAX_NAME), ("generator", generator, MAX_GENERATOR)):
        if text is not None and len(text) > longest:
            raise InputError(f"The name of the {what} is longer than {longest} characters; shorten it.")
    tolerance = DEFAULT_TOLERANCE
    if "gold_tolerance" in texts:
        tolerance = _number(texts["gold_tolerance"], "gold_tolerance", TOLERANCE_RANGE)
    gold = tuple(Gold(aspect, score, tolerance) for aspect, score in _scores(texts, "gold_").items())
    return Row(place, texts["image"], texts.get("prompt", ""), generator, gold, scores, annotator)


def _scores(texts: dict[str, str], prefix: str) -> dict[Aspect, float]:
    names = {aspect: f"{prefix}{aspect}" for aspect in Aspect}
    return {
        aspect: _number(texts[name], name, COMMON_SCALE) for aspect, name in names.items() if name in texts
    }


def _number(text: str, column: str, scale: MosScale) -> float:
    value = decimal_number(text, column)
    if not scale.low <= value <= scale.high:
        raise InputError(f"{column} is {text[:40]}; give a number from {scale.low:g} to {scale.high:g}.")
    return value
