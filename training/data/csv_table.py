"""Tables with one image a row: the generic CSV of users, and the form that the public data sets share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from m3agiqa.tables import Table, read_table
from training.data.checks import ImageFinder, LocatedSample

IMAGE_COLUMNS = ("image", "name")
SCORE_COLUMNS = {
    Aspect.QUALITY: ("quality", "mos_quality", "quality_mos", "mos"),
    Aspect.CORRESPONDENCE: (
        "correspondence",
        "alignment",
        "mos_correspondence",
        "mos_align",
        "mos_alignment",
        "correspondence_mos",
    ),
    Aspect.AUTHENTICITY: ("authenticity", "realism", "mos_authenticity", "mos_realism", "authenticity_mos"),
}
"""What public data sets and users call the columns of scores."""


def table_entries(
    path: Path,
    images: ImageFinder,
    scale: MosScale,
    *,
    generator: Callable[[str], str | None] = lambda name: None,
    qualities: Mapping[str, float] | None = None,
    split: str = "train",
) -> Iterator[LocatedSample]:
    """Samples of a table: `image,prompt,quality,correspondence,authenticity`, any subset of the three scores.

    Optional columns: `id` (default: the image as written), `generator`, `source`, `split`, and
    `quality_description` and the like. Other names of columns: SCORE_COLUMNS, and `name` for `image`.
    Columns not named here are left alone. `generator` tells it from the image's name where there is no
    such column; `qualities` gives scores by file name for a table without any; `split` is for rows that
    name none. Raises InputError naming file and line.
    """
    table = read_table(path)
    image_column = table.needed_column(IMAGE_COLUMNS, "the image's file")
    columns = score_columns(table)
    if not columns and qualities is None:
        raise InputError(
            f"{path} has no column with scores (quality, correspondence or authenticity); "
            f"it has {', '.join(table.columns)}."
        )
    for row in table.rows:
        image, prompt = row.needed(image_column), row.text("prompt")
        scores = {aspect: row.score(column, scale) for aspect, column in columns.items()}
        if not columns:
            scores[Aspect.QUALITY] = (qualities or {}).get(Path(image).name)
        mos = {aspect: value for aspect, value in scores.items() if value is not None}
        if not mos:
            raise InputError(f"{row.place}: {image} has no score. Give one, or leave the row out.")
        if Aspect.CORRESPONDENCE in mos and prompt is None:
            raise InputError(f"{row.place}: {image} has a correspondence score but no prompt.")
        described = {aspect: row.text(f"{aspect}_description") for aspect in Aspect}
        sample = Sample(
            id=row.text("id") or image,
            image=images.path(image),
            prompt=prompt,
            mos=mos,
            descriptions={aspect: text for aspect, text in described.items() if text is not None},
            split=row.text("split") or split,
            generator=row.text("generator") or generator(image),
            source=row.text("source"),
        )
        yield LocatedSample(row.place, sample)


def score_columns(table: Table) -> dict[Aspect, str]:
    """Which column holds the scores of which aspect. Raises InputError where several could."""
    columns = {aspect: table.column(names, aspect) for aspect, names in SCORE_COLUMNS.items()}
    return {aspect: column for aspect, column in columns.items() if column is not None}


def read_scores(path: Path, scale: MosScale) -> dict[str, dict[Aspect, float]]:
    """File name of an image -> its scores, from a table with a column of images and columns of scores.

    Raises InputError naming file and line.
    """
    table = read_table(path)
    image_column = table.needed_column(IMAGE_COLUMNS, "the image's file")
    columns = score_columns(table)
    if not columns:
        raise InputError(
            f"{path} has no column with scores, such as mos_quality; it has {', '.join(table.columns)}."
        )
    scores: dict[str, dict[Aspect, float]] = {}
    for row in table.rows:
        name = Path(row.needed(image_column)).name
        if name in scores:
            raise InputError(f"{row.place}: {name} was given before.")
        row_scores = {aspect: row.score(column, scale) for aspect, column in columns.items()}
        scores[name] = {aspect: value for aspect, value in row_scores.items() if value is not None}
    return scores
