"""Pairs of images of which people have picked the better one, as an export of annotations holds them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from m3agiqa.errors import InputError
from m3agiqa.files import is_file
from m3agiqa.samples import Sample
from m3agiqa.tables import TableRow, read_table
from training.data.splits import part

PREFERENCES_FILE = "preferences.csv"
PREFERENCE_FIELDS = ("preferred", "other", "prompt", "split")


@dataclass(frozen=True)
class PreferencePair:
    """Two images of one prompt; neither has scores here."""

    preferred: Sample
    other: Sample


def read_preferences(folder: Path) -> list[PreferencePair]:
    """Those of an export; none where nobody has picked any.

    Raises InputError for a table without their columns, and for images that are not there.
    """
    path = folder / PREFERENCES_FILE
    if not path.is_file():
        return []
    rows = read_table(path).select(PREFERENCE_FIELDS, needed=("preferred", "other")).sound_rows()
    return [PreferencePair(_sample(row, "preferred", folder), _sample(row, "other", folder)) for row in rows]


def _sample(row: TableRow, side: str, folder: Path) -> Sample:
    name = row.text(side)
    if name is None or not is_file(folder / name):
        raise InputError(f"{row.place}: there is no image {name or 'named'} ({side}). Export again.")
    prompt, split = row.text("prompt"), part(row.text("split") or "train", row.place)
    prompt_hash = hashlib.sha256((prompt or "").encode()).hexdigest()[:8]
    return Sample(f"{Path(name).stem}-{prompt_hash}", folder / name, prompt, split=split)
