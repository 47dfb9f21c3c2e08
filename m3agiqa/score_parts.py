"""Results in a folder of parts, each a CSV or Parquet file that is there once all of its rows are judged."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from m3agiqa.batch_scoring import BATCH_SIZE, RESULT_COLUMNS
from m3agiqa.errors import InputError
from m3agiqa.files import lock
from m3agiqa.score_inputs import ScoreRow, pyarrow_parquet

DEFAULT_PART_SIZE = 64 * BATCH_SIZE
"""Rows; with whole batches a row has the neighbours that it has in one process."""
NUMBER_COLUMNS = [name for name in RESULT_COLUMNS if name.endswith(("_mos", "_low", "_high", "_percentile"))]
PARTS_ARE_KEPT = "Finished parts are kept; the same command goes on from there."


@dataclass(frozen=True)
class PartedScores:
    """A folder of results in parts, which all machines of a cluster can read and write."""

    folder: Path
    suffix: str = ".parquet"
    """Or .csv"""
    part_size: int = DEFAULT_PART_SIZE
    """Rows"""
    retry: bool = False
    """Whether parts with failed rows, or of other rows than now, are scored again."""

    @property
    def rows(self) -> Path:
        """The file of all rows to score, while a run lasts."""
        return self.folder / ".rows.jsonl"

    def part(self, number: int) -> Path:
        """The file of a part, which is there once the part is finished."""
        return self.folder / f"part-{number:06}{self.suffix}"

    @contextmanager
    def locked(self, rows: Iterable[ScoreRow]) -> Iterator[list[tuple[int, int]]]:
        """Keep other runs out, write the rows down, and give byte offset and number of rows of each part.

        Raises InputError for a row that cannot be read, where another process is writing to the folder, or
        where it holds something else or, unless it is to retry, parts of other rows.
        """
        made_from = self.folder / ".made_from.json"
        try:
            self.folder.mkdir(exist_ok=True)
            if not made_from.exists() and any(self.folder.iterdir()):
                raise InputError(f"{self.folder} holds other files. Give --out a new folder.")
            made_from.touch()
            with made_from.open("r+") as file:
                if not lock(file):
                    raise InputError(f"Another process is writing to {self.folder}. Wait until it has ended.")
                try:
                    parts, facts = self._write_rows(rows)
                    text = file.read()
                    former = json.loads(text) if text else facts
                    others = {name for name in facts.keys() & former.keys() if former[name] != facts[name]}
                    if others - ({"sha256", "parts"} if self.retry else set()):
                        raise InputError(
                            f"{self.folder} was begun with other rows, --part-size or --format, so nothing "
                            "is added to it. Choose another --out, delete the folder, or, if only rows are "
                            "others, have their parts scored again with --retry."
                        )
                    if "sha256" in others:
                        self._remove_parts(former.get("parts", []), facts["parts"])
                    if former != facts or not text:
                        file.seek(0)
                        file.truncate()
                        file.write(json.dumps(facts))
                        file.flush()
                    yield parts
                finally:
                    self.rows.unlink(missing_ok=True)
                    for scratch in self.folder.glob(".part-*"):  # of workers that died
                        shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be written: {error.strerror or error}. {PARTS_ARE_KEPT}"
            ) from error

    def unfinished(self, parts: int) -> list[int]:
        """The numbers of those parts that are to be scored.

        A part with failed rows that is to be scored again stays until then. Those come last, the newest at
        the very end, so that a run that was interrupted goes on with the others.
        """
        found = {number: self.part(number) for number in range(parts) if self.part(number).exists()}
        again = [number for number in found if self.retry and any(self._column(found[number], "error"))]
        again.sort(key=lambda number: found[number].stat().st_mtime_ns)
        return [*(number for number in range(parts) if number not in found), *again]

    def _remove_parts(self, former: Sequence[str], now: Sequence[str]) -> None:
        """Those of other rows than now."""
        for number, (before, after) in enumerate(zip_longest(former, now)):
            if before != after:
                self.part(number).unlink(missing_ok=True)

    def _write_rows(self, rows: Iterable[ScoreRow]) -> tuple[list[tuple[int, int]], dict[str, Any]]:
        """Byte offset and number of rows of each part, and what a folder has to be begun with to go on."""
        parts, digests, of_all, waiting = [], [], hashlib.sha256(), iter(rows)
        with self.rows.open("wb") as file:
            while lines := [row.to_json() for row in islice(waiting, self.part_size)]:
                parts.append((file.tell(), len(lines)))
                content = b"".join(lines)
                of_all.update(content)
                digests.append(hashlib.sha256(content).hexdigest())
                file.write(content)
        facts = {"sha256": of_all.hexdigest(), "part_size": self.part_size, "format": self.suffix}
        return parts, {**facts, "parts": digests}

    @property
    def model(self) -> str:
        """What the parts that are there were judged by; "" while there are none."""
        part = next(self.folder.glob(f"part-*{self.suffix}"), None)
        return next(self._column(part, "model")) if part else ""

    def _column(self, part: Path, name: str) -> Iterator[str]:
        """The texts in a column of a finished part."""
        if self.suffix == ".parquet":
            yield from pyarrow_parquet().read_table(part, columns=[name])[name].to_pylist()
            return
        with part.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for row in csv.DictReader(file):
                yield row[name]


class ParquetPart:
    """Takes rows as ScoreFile does; they go into a Parquet file at the end, MOS and intervals as numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def start(self, model: str) -> None:
        """There is nothing to be made ready."""

    def append(self, cells: dict[str, str]) -> None:
        """Take texts by RESULT_COLUMNS."""
        self.rows.append(cells)

    def close(self) -> None:
        """Write the file."""
        import pyarrow

        columns = {}
        for name in RESULT_COLUMNS:
            texts = [row.get(name, "").encode("utf-8", "replace").decode() for row in self.rows]
            numbers = [float(text) if text else None for text in texts] if name in NUMBER_COLUMNS else None
            columns[name] = pyarrow.array(
                texts if numbers is None else numbers, "string" if numbers is None else "float64"
            )
        pyarrow_parquet().write_table(pyarrow.table(columns), self.path)
