"""AIGCIQA-20k (AIGIQA-20K, Li et al., arXiv 2404.03407; NTIRE 2024): 20,000 images with quality on [0, 5].

Layouts, known from documentation and from public code that reads them, not from the files themselves:
- `info_train`, `info_val` and `info_test` (.csv or .xlsx; name, prompt, mos) beside the folders train, val
  and test (14,000, 2,000 and 4,000 images). The challenge gave out val and test without scores; these are
  then taken from `data.csv` or `info_merge.csv` (name, mos).
- One table for all images: `data.csv`, `info_merge.csv` or `AIGCIQA*20K*.csv` (name, prompt, mos), with one
  folder of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.tables import read_table
from training.data.checks import ImageFinder, LocatedSample
from training.data.csv_table import TABLE_FIELDS, has_scores, read_scores, table_entries

MOS_SCALE = MosScale(0.0, 5.0)
IMAGE_FOLDERS = ("images", "train", "val", "test", "all", "")
PART_NAMES = ("train", "val", "test")
WHOLE_SET_TABLES = ("data.csv", "info_merge.csv", "AIGCIQA*20[Kk]*.csv", "AIGIQA*20[Kk]*.csv")


def aigciqa_20k_entries(path: Path, images: ImageFinder, scale: MosScale) -> Iterator[LocatedSample]:
    """Samples of all parts, each with the official part as its split; or of one table (a file).

    Raises InputError naming file and line.
    """
    tables = {name: table for name in PART_NAMES if (table := _part_table(path, name)) is not None}
    whole = path if path.is_file() else _whole_table(path)
    if not tables:
        if whole is None:
            raise InputError(
                f"{path} has neither info_train.csv (info_val.csv, info_test.csv) nor data.csv, "
                "with the columns name, prompt and mos."
            )
        yield from table_entries(whole, images, scale, generator=_generator)
    for name, table in tables.items():
        qualities = None
        if not has_scores(read_table(table).select(TABLE_FIELDS)):
            if whole is None:
                raise InputError(
                    f"{table} has no column mos, and {path} has no data.csv or info_merge.csv with scores. "
                    f"Add one, or move {table.name} away to do without that part."
                )
            scores = read_scores(whole, scale).items()
            qualities = {image: mos[Aspect.QUALITY] for image, mos in scores if Aspect.QUALITY in mos}
        yield from table_entries(table, images, scale, generator=_generator, qualities=qualities, split=name)


def _part_table(folder: Path, name: str) -> Path | None:
    tables = [folder / f"info_{name}{suffix}" for suffix in (".csv", ".xlsx")]
    return next((table for table in tables if table.is_file()), None)


def _whole_table(folder: Path) -> Path | None:
    return next((table for pattern in WHOLE_SET_TABLES for table in sorted(folder.glob(pattern))), None)


def _generator(name: str) -> str:
    """DALLE3_0119.png, LCM_SD1.5_0001.png: before the last underscore."""
    return Path(name).stem.rsplit("_", 1)[0]
