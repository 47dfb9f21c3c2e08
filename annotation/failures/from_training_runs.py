"""Cases of training runs: the tables of predictions in their reports, read by their file format."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from annotation.failures.error_table import DataSet, Judged, Opinion, Version, cases
from m3agiqa.aspects import COMMON_SCALE, RATING_WORDS, Aspect, MosScale
from m3agiqa.errors import InputError

REQUIRED_COLUMNS = ("sample", "image", "aspect", "mos", "predicted")
TEXT_COLUMNS = (
    *("sample", "image", "prompt", "generator", "source", "aspect"),
    *("rating", "spoken_rating", "description", "reference"),
)
DEFAULT_TABLE = "predictions"
METRICS_FILE = "metrics.json"

Files = tuple[tuple[Path, int, int], ...]
"""Paths with the time of their last change and their size."""


class RunReports:
    """All reports `*/report/*.csv` below a folder; a run is known by its path in there."""

    prefix = "run"
    mos_label = "MOS of the data set"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data_sets(self) -> list[DataSet]:
        """Runs on the same data (by its fingerprint) together."""
        return list(_data_sets(self.folder, self._files()))

    def stamp(self, version: str) -> Hashable:
        """Changes when the table does."""
        path = self._path(version)
        return _stamp(path), _stamp(path.with_name(METRICS_FILE))

    def judged(self, version: str) -> Judged:
        """The table of one run, in which every prediction has its MOS.

        Raises InputError naming the file if it is gone or broken.
        """
        path = self._path(version)
        name = path.relative_to(self.folder).as_posix()
        try:
            read = pd.read_csv(
                path,
                dtype=dict.fromkeys(TEXT_COLUMNS, str),
                keep_default_na=False,
                na_values=[""],
                encoding="utf-8-sig",
            )
        except OSError as error:
            raise InputError(f"The report {name} cannot be read: {error.strerror}.") from error
        except ValueError as error:  # pandas' parser errors and text that is not UTF-8
            raise InputError(f"The report {name} is not a CSV table: {error}".rstrip(".") + ".") from error
        return Judged(cases(_checked(read, name).merge(_scales(path), on="aspect", how="left")), 0)

    def opinions(self, item: str) -> list[Opinion]:
        """A data set tells its mean scores only."""
        return []

    def _files(self) -> Files:
        """All files of reports, with what changes when they do."""
        paths = sorted(
            path for suffix in ("csv", "json") for path in self.folder.glob(f"*/report/*.{suffix}")
        )
        return tuple((path, *stamp) for path in paths if (stamp := _stamp(path)) is not None)

    def _path(self, version: str) -> Path:
        wanted = version.removeprefix(f"{self.prefix}:")
        for path in _tables(self._files()):
            if path.relative_to(self.folder).as_posix() == wanted:
                return path
        raise InputError(f"There is no report {wanted} any more; choose another model version.")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time of the last change and size; None for a file that is gone, perhaps since a moment ago."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4)
def _data_sets(folder: Path, files: Files) -> tuple[DataSet, ...]:
    by_key: dict[str, DataSet] = {}
    for path in _tables(files):
        run, facts = path.parents[1].name, _facts(path)
        report = facts["facts"] if isinstance(facts.get("facts"), dict) else {}
        fingerprint = str(report.get("data fingerprint") or "")
        key = f"{RunReports.prefix}:{fingerprint[:12] or run}"
        table = "" if path.stem == DEFAULT_TABLE else f", {path.stem}"
        version = Version(
            f"{RunReports.prefix}:{path.relative_to(folder).as_posix()}",
            f"{facts.get('title') or 'untitled'} (run {run}{table})",
        )
        title = f"Runs on {report['data']} ({fingerprint[:6]})" if report.get("data") else f"Run {run}"
        known = by_key.get(key, DataSet(key, title, (), RunReports.mos_label))
        by_key[key] = known.with_version(version)
    return tuple(by_key.values())


@lru_cache(maxsize=4)
def _tables(files: Files) -> tuple[Path, ...]:
    """Those with predictions; the usual ones also if they are broken, for the reader is to be told."""
    tables = [path for path, *_ in files if path.suffix == ".csv"]
    return tuple(
        path for path in tables if path.stem == DEFAULT_TABLE or set(REQUIRED_COLUMNS) <= _columns(path)
    )


def _columns(path: Path) -> set[str]:
    try:
        return set(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
    except (OSError, ValueError):
        return set()


def _facts(table: Path) -> dict:
    """What the report says of itself; nothing if it has been written by something else."""
    try:
        facts = json.loads(table.with_name(METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _scales(table: Path) -> pd.DataFrame:
    scales = _facts(table).get("scales") or {}
    rows = []
    for aspect in Aspect:
        try:
            low, high = scales[aspect]
            scale = MosScale(float(low), float(high))
        except (KeyError, TypeError, ValueError):
            scale = COMMON_SCALE
        rows.append({"aspect": str(aspect), "scale_low": scale.low, "scale_high": scale.high})
    return pd.DataFrame(rows)


def _checked(read: pd.DataFrame, name: str) -> pd.DataFrame:
    """With numbers as numbers, and every row a case. Raises InputError naming the row."""
    lacking = [column for column in REQUIRED_COLUMNS if column not in read]
    if lacking:
        raise InputError(f"The report {name} lacks the columns {', '.join(lacking)}.")
    read = read.rename(columns={"sample": "item"})
    for column in ("mos", "predicted"):
        numbers = pd.to_numeric(read[column], errors="coerce")
        _all(np.isfinite(numbers), f"{column} is no number", name)
        read[column] = numbers
    for column in ("item", "image"):
        _all(read[column].notna(), f"{column} is empty", name)
    _all(read["aspect"].isin(list(Aspect)), f"aspect is none of {', '.join(Aspect)}", name)
    _all(~read.duplicated(["item", "aspect"]), "sample and aspect have been there before", name)
    if "spoken_rating" not in read:  # what older reports call a rating
        read["spoken_rating"] = read.get("rating")
    # A word that is none of the five is no answer.
    read["spoken_rating"] = read["spoken_rating"].where(read["spoken_rating"].isin(list(RATING_WORDS)))
    return read


def _all(right: pd.Series, what: str, name: str) -> None:
    if not right.all():
        row = int(np.argmin(right.to_numpy())) + 1
        raise InputError(f"The report {name} is broken in row {row} below its header: {what}.")
