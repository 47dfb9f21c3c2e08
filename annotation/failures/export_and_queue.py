"""What is done with chosen cases: a CSV table for other programs, and a place in the annotation queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from sqlalchemy.orm import Session

from annotation.store import Store
from annotation.store.image_files import StoredImage
from annotation.store.items import add_item
from annotation.store.log import log_action
from annotation.store.queue import enqueue
from m3agiqa.errors import InputError
from m3agiqa.tables import harmless

EXPORT_COLUMNS = (
    *("item", "image", "original_file", "aspect", "prompt", "generator", "source"),
    *("mos", "mos_low", "mos_high", "raters"),
    *("predicted", "error", "rating", "spoken_rating", "words_apart", "description", "reference", "tags"),
    *("other_predicted", "other_error", "other_rating", "other_spoken_rating", "other_description", "gain"),
)


def to_csv(selected: pd.DataFrame) -> str:
    """The table as CSV, safe to open in a spreadsheet; images by name, tags separated by semicolons."""
    table = selected[[column for column in EXPORT_COLUMNS if column in selected]].copy()
    table["image"] = [Path(path).name for path in table["image"]]
    table["original_file"] = table["original_file"].fillna(table["image"])
    table["tags"] = ["; ".join(tags) for tags in table["tags"]]
    for column in table:
        if not pd.api.types.is_numeric_dtype(table[column]):
            table[column] = [harmless(value) for value in table[column]]
    return table.to_csv(index=False, lineterminator="\r\n", float_format="%.4f")


@dataclass(frozen=True)
class Queued:
    """What became of cases that were to be annotated."""

    items: int
    """Images that the queue holds now."""
    new: int
    """Those of them that it did not hold before."""
    left_out: tuple[str, ...]
    """Why images could not be taken over, a sentence each."""


def queue_items(store: Store, ids: Sequence[int], overlap: int, annotator: str) -> Queued:
    """Queue items of the annotation database."""

    def work(session: Session) -> int:
        new = enqueue(session, ids, overlap)
        log_action(session, annotator, "queued images", items=len(ids), new=new, overlap=overlap)
        return new

    return Queued(len(ids), store.database.transact(work), ())


def queue_samples(
    store: Store,
    selected: pd.DataFrame,
    overlap: int,
    annotator: str,
    source: str,
) -> Queued:
    """Copy images of a training run into the store, and queue them; unreadable ones are left out.

    `source` is where the items are said to come from. Raises InputError if no image can be read.
    """
    samples = selected.drop_duplicates("item").to_dict("records")
    copied: list[tuple[StoredImage, dict]] = []
    left_out = []
    for sample in samples:
        path = Path(sample["image"])
        try:
            copied.append((store.images.add(path, path.name), sample))
        except InputError as error:
            left_out.append(f"{path.name}: {error}".replace(str(path), path.name))
    if not copied:
        raise InputError(f"None of the images can be read, so nothing was queued. {left_out[0]}")

    def work(session: Session) -> tuple[int, int]:
        ids = {
            add_item(session, image, sample["prompt"], source, sample["generator"])[0].id
            for image, sample in copied
        }
        new = enqueue(session, sorted(ids), overlap)
        log_action(session, annotator, "queued images", items=len(ids), new=new, overlap=overlap)
        return len(ids), new

    return Queued(*store.database.transact(work), tuple(left_out))
