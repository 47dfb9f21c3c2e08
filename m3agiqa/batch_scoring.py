"""Scoring many images: rows from a CSV or a folder, results appended to a CSV that can be resumed."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from m3agiqa.aspects import Aspect
from m3agiqa.assessor import Assessment, Assessor
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.image_metadata import find_prompt
from m3agiqa.images import is_image_name
from m3agiqa.tables import column_names, read_records

RESULT_COLUMNS = (
    "image",
    "prompt",
    *(f"{aspect}_mos" for aspect in Aspect),
    *(f"{aspect}_description" for aspect in Aspect),
    *(f"{aspect}_rating" for aspect in Aspect),
    *(f"{aspect}_spoken_rating" for aspect in Aspect),
    *(f"{aspect}_{figure}" for figure in ("low", "high", "percentile") for aspect in Aspect),
    *(f"{aspect}_raw_mos" for aspect in Aspect),
    "scale",
    "model",
    "learned_from",
    "prompt_origin",
    "error",
)

BATCH_SIZE = 8
"""Images; more are hardly faster on few cores, and lost where a run is stopped."""
MAX_SIDECAR = 100_000  # characters; a longer text is no prompt, and csv could not read it back


@dataclass(frozen=True)
class ScoreRow:
    """One image to score; `error` says why it cannot be, if that is known already."""

    image: str  # as the user wrote it
    path: Path
    prompt: str = ""
    prompt_origin: str = ""
    error: str = ""


# --- reading -----------------------------------------------------------------------------------


def read_rows(source: Path, image_root: Path | None = None) -> list[ScoreRow]:
    """Rows of a CSV with the columns image and, optionally, prompt, or of a folder of images.

    Where no prompt is given it comes from a .txt file of the same name (folders only) or from what
    the generator wrote into the image. Raises InputError when nothing can be scored.
    """
    if source.is_dir():
        if image_root:
            raise InputError("--image-root is for the relative paths in a CSV; a folder needs none.")
        return _folder_rows(source)
    if image_root and not image_root.is_dir():
        raise InputError(f"There is no folder {image_root}.")
    return _csv_rows(source, image_root or source.parent)


def _folder_rows(folder: Path) -> list[ScoreRow]:
    paths = sorted(path for path in folder.rglob("*") if is_image_name(path) and path.is_file())
    if not paths:
        raise InputError(f"There is no image file in the folder {folder}.")
    return [_folder_row(folder, path) for path in paths]


def _folder_row(folder: Path, path: Path) -> ScoreRow:
    row = ScoreRow(str(path.relative_to(folder)), path)
    try:
        return _with_prompt(row, sidecar(path))
    except InputError as error:  # the image has a prompt, and must not be judged without
        return replace(row, error=str(error))


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


def _with_prompt(row: ScoreRow, sidecar: str = "") -> ScoreRow:
    """The row with a prompt found beside or inside the image, if there is one."""
    if sidecar.strip():
        return ScoreRow(row.image, row.path, sidecar.strip(), "text file of the same name")
    embedded = find_prompt(row.path)
    return ScoreRow(row.image, row.path, embedded.text, embedded.origin) if embedded else row


def _csv_rows(path: Path, image_root: Path) -> list[ScoreRow]:
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.")
    records = read_records(path, ragged=True)
    names = column_names(records[0]) if records else []
    if "image" not in names:
        raise InputError(
            f"{path} needs the columns image and prompt, separated by commas; "
            f"its first line is {','.join(names)[:80]!r}."
        )
    if len(records) == 1:
        raise InputError(f"{path} has no rows below its header.")
    return [_csv_row(names, record.cells, image_root) for record in records[1:]]


def _csv_row(names: Sequence[str], texts: Sequence[str], image_root: Path) -> ScoreRow:
    cells = dict(zip(names, (text.strip() for text in texts), strict=False))  # empty ones may be left out
    image, prompt = cells.get("image", ""), cells.get("prompt", "")
    path = image_root / image
    if not image:
        return ScoreRow(image, path, prompt, error="The row names no image.")
    if len(texts) > len(names):
        return ScoreRow(
            image,
            path,
            prompt,
            error="The row has more cells than the header; put prompts with commas into double quotes.",
        )
    return ScoreRow(image, path, prompt, "CSV") if prompt else _with_prompt(ScoreRow(image, path))


# --- scoring -----------------------------------------------------------------------------------


def score(rows: Iterable[ScoreRow], output: ScoreFile, assessor: Assessor) -> Iterator[str]:
    """Judge all rows, some at once, append each to the output, and yield its error ("": all went well)."""
    waiting = iter(rows)
    while batch := list(islice(waiting, BATCH_SIZE)):
        good = [row for row in batch if not row.error]
        judged = dict(zip(map(id, good), _judge(good, assessor), strict=True))
        for row in batch:
            cells = {"image": row.image, "prompt": row.prompt, "prompt_origin": row.prompt_origin}
            cells |= {"model": assessor.card.title, "learned_from": assessor.card.learned_from}
            answer = judged.get(id(row), row.error)
            if isinstance(answer, Assessment):
                cells, error = cells | _cells(answer), ""
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


def _cells(assessment: Assessment) -> dict[str, str]:
    results = assessment.aspects.values()
    # With a word between, as spreadsheets take "1-5" for a date.
    scales = {str(r.aspect): f"{r.scale.low:g} to {r.scale.high:g}" for r in results}
    same = len(set(scales.values())) == 1
    cells = {"scale": next(iter(scales.values())) if same else ", ".join(map(" ".join, scales.items()))}
    for result in results:
        cells[f"{result.aspect}_mos"] = f"{result.mos:.3f}"
        cells[f"{result.aspect}_raw_mos"] = f"{result.raw_mos:.3f}"
        cells[f"{result.aspect}_rating"] = str(result.rating)
        cells[f"{result.aspect}_spoken_rating"] = str(result.spoken_rating)
        cells[f"{result.aspect}_description"] = result.description
        figures = {"low": result.low, "high": result.high, "percentile": result.percentile}
        cells |= {f"{result.aspect}_{k}": f"{v:.3f}" for k, v in figures.items() if v is not None}
    return cells


# --- writing -----------------------------------------------------------------------------------


class ScoreFile:
    """The CSV of results. Each row is written at once, so what is there after a crash stays valid."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run has left; nothing is changed yet. Raises InputError."""
        self.path = path
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent} to write {path.name} to.")
        self._check_writable()
        self.records, self._valid_bytes = self._read() if path.exists() else ([], 0)

    def _check_writable(self) -> None:
        existed = self.path.exists()
        try:
            self.path.open("ab").close()
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}.") from error
        if not existed:
            self.path.unlink()

    def _read(self) -> tuple[list[dict[str, str]], int]:
        """Complete records, and how many bytes of the file they and the header take."""
        content = self.path.read_bytes()
        if _HEADER_LINE.startswith(content):  # empty, or stopped within its first line
            return [], 0
        consumed = valid = 0

        def lines() -> Iterator[str]:
            nonlocal consumed
            for line in content.splitlines(keepends=True):
                consumed += len(line)
                yield line.decode("utf-8", errors="surrogateescape")

        table = []
        try:
            for cells in csv.reader(lines(), strict=True):
                if content[consumed - 1 : consumed] != b"\n":
                    break  # the last row is half-written
                table.append(cells)
                valid = consumed
        except csv.Error:
            if consumed < len(content):  # not merely a quoted text that was cut off
                raise self._foreign() from None
        if table[:1] != [list(RESULT_COLUMNS)] or any(len(cells) != len(RESULT_COLUMNS) for cells in table):
            raise self._foreign()
        return [dict(zip(RESULT_COLUMNS, cells, strict=True)) for cells in table[1:]], valid

    def _foreign(self) -> InputError:
        return InputError(
            f"{self.path} exists and is not a score file of this version, so nothing is added to it. "
            "Choose another --out, or delete the file."
        )

    def remaining(self, rows: Sequence[ScoreRow]) -> list[ScoreRow]:
        """The rows that are not in the file yet. A row that failed counts as done."""
        done = Counter((record["image"], record["prompt"]) for record in self.records)
        todo = []
        for row in rows:
            if done[row.image, row.prompt]:
                done[row.image, row.prompt] -= 1
            else:
                todo.append(row)
        return todo

    def start(self, model: str) -> None:
        """Make the file ready for rows of this model. Raises InputError if it holds another model's."""
        others = {record["model"] for record in self.records} - {model}
        if others:
            raise InputError(
                f"{self.path} holds scores of {', '.join(sorted(others))}, and this model is {model}. "
                "Choose another --out, or delete the file."
            )
        with self.path.open("ab") as file:
            file.truncate(self._valid_bytes)  # drops a half-written last row
            if not self._valid_bytes:
                file.write(_HEADER_LINE)

    def append(self, cells: dict[str, str]) -> None:
        """Write one row. Raises InputError when the disk does not take it."""
        try:
            with self.path.open("ab") as file:
                file.write(_line([cells.get(name, "") for name in RESULT_COLUMNS]))
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror}. The rows before are kept; "
                "the same command goes on from there."
            ) from error


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().encode("utf-8", errors="surrogateescape")  # file names may be any bytes


_HEADER_LINE = _line(RESULT_COLUMNS)
