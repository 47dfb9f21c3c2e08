"""Tables with one image a row: the generic CSV of users, and the form that the public data sets share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from m3agiqa.tables import Table, read_table
from training.data.checks import ImageFinder, LocatedSample

TABLE_FIELDS = (
    *("id", "image", "prompt", "generator", "source", "split"),
    *Aspect,
    *(f"{aspect}_description" for aspect in Aspect),
)

log = logging.getLogger(__name__)


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
    `quality_description` and the like. Other names of columns: m3agiqa.tables.COLUMN_NAMES. A warning names
    the columns that are not read. `generator` tells it from the image's name where there is no
    such column; `qualities` gives scores by file name for a table without any; `split` is for rows that
    name none. Raises InputError naming file and line.
    """
    whole = read_table(path)
    table = whole.select(TABLE_FIELDS)
    for note in table.notes:
        log.warning(note)
    if not has_scores(table) and qualities is None:
        raise _without_scores(whole)
    for row in table.sound_rows():
        image, prompt = row.cells["image"], row.text("prompt")
        scores = {aspect: row.score(aspect, scale) for aspect in Aspect}
        if not has_scores(table):
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


def has_scores(table: Table) -> bool:
    """Whether a table of TABLE_FIELDS has scores of any aspect."""
    return any(aspect in table.columns for aspect in Aspect)


def read_scores(path: Path, scale: MosScale) -> dict[str, dict[Aspect, float]]:
    """File name of an image -> its scores, from a table with a column of images and columns of scores.

    Raises InputError naming file and line.
    """
    whole = read_table(path)
    table = whole.select(("image", *Aspect))
    if not has_scores(table):
        raise _without_scores(whole)
    scores: dict[str, dict[Aspect, float]] = {}
    for row in table.sound_rows():
        name = Path(row.cells["image"]).name
        if name in scores:
            raise InputError(f"{row.place}: {name} was given before.")
        row_scores = {aspect: row.score(aspect, scale) for aspect in Aspect}
        scores[name] = {aspect: value for aspect, value in row_scores.items() if value is not None}
    return scores


def _without_scores(table: Table) -> InputError:
    return InputError(
        f"{table.name} has no column with scores (quality, correspondence or authenticity); it has "
        f"{', '.join(table.columns)}. Rename those that are scores."
    )
