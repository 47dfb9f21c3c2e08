"""CSV files of images to import: each row stands alone, so that a bad one spoils no other."""

from __future__ import annotations

from dataclasses import dataclass, field

from annotation.store.items import MAX_GENERATOR
from annotation.store.people import MAX_NAME
from m3agiqa.aspects import COMMON_SCALE, Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.tables import Record, column_names, csv_records

DEFAULT_TOLERANCE = 1.0
TOLERANCE_RANGE = MosScale(0.0, COMMON_SCALE.high - COMMON_SCALE.low)
MAX_LINES = 300_000  # all of them are held in memory
CSV_COLUMNS = frozenset(
    ["image", "prompt", "generator", "annotator", "gold_tolerance", *Aspect, *(f"gold_{a}" for a in Aspect)]
)


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


def read_table(content: bytes, name: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """The good rows, and places and reasons of the bad ones.

    Raises InputError where the table as a whole makes no sense.
    """
    count = max(content.count(b"\n"), content.count(b"\r"))
    if count > MAX_LINES:
        raise InputError(f"{name} has {count:,} lines; at most {MAX_LINES:,} are read. Divide it.")
    records = csv_records(content)
    columns = _columns(next(records, None), name)
    rows: list[Row] = []
    errors: list[tuple[str, str]] = []
    for record in records:
        place = f"line {record.line}"
        try:
            if record.problem:
                raise InputError(record.problem)
            rows.append(_row(place, dict(zip(columns, record.cells, strict=True))))
        except InputError as error:
            errors.append((place, str(error)))
    if not rows and not errors:
        raise InputError(f"{name} has no rows below its header.")
    return rows, errors


def _columns(header: Record | None, name: str) -> list[str]:
    columns = column_names(header)
    if "image" not in columns:
        raise InputError(
            f"{name} needs a column image, and has {','.join(columns)[:80]!r} as its first line. "
            "Save it as “CSV UTF-8” with the names of the columns on top."
        )
    twice = {column for column in columns if column in CSV_COLUMNS and columns.count(column) > 1}
    if twice:
        raise InputError(f"{name} has the column {min(twice)} twice; keep one.")
    scored = [str(aspect) for aspect in Aspect if aspect in columns]
    if scored and "annotator" not in columns:
        raise InputError(
            f"{name} has scores ({', '.join(scored)}) but no column annotator, which says who gave them. "
            "Add it, or take the columns of scores out."
        )
    return columns


def _row(place: str, cells: dict[str, str]) -> Row:
    texts = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
    image = texts.get("image")
    if image is None:
        raise InputError("The row names no image.")
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
    return Row(place, image, texts.get("prompt", ""), generator, gold, scores, annotator)


def _scores(texts: dict[str, str], prefix: str) -> dict[Aspect, float]:
    names = {aspect: f"{prefix}{aspect}" for aspect in Aspect}
    return {
        aspect: _number(texts[name], name, COMMON_SCALE) for aspect, name in names.items() if name in texts
    }


def _number(text: str, column: str, scale: MosScale) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise InputError(f"{column} is {text[:40]!r}; give a number.") from None
    if not scale.low <= value <= scale.high:
        raise InputError(f"{column} is {text[:40]}; give a number from {scale.low:g} to {scale.high:g}.")
    return value
