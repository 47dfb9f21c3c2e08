"""The images that a report shows: where predictions are furthest from the true scores, and nearest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from m3agiqa.aspects import MosScale, Rating
from m3agiqa.errors import InputError
from m3agiqa.images import data_url, open_image

THUMBNAIL_SIDE = 320  # pixels of the longer side
JPEG_QUALITY = 78  # of the JPEG


@dataclass(frozen=True)
class ReportExample:
    """One image of one aspect, as Table VIII of the paper shows it."""

    sample: str
    image: str | None
    """Its thumbnail as a data: URL."""
    lacking: str | None
    """Why there is no thumbnail."""
    prompt: str | None
    about: str
    """Generator and source, as far as they are known."""
    mos: float
    predicted: float
    rating: Rating
    """The word for the true MOS."""
    predicted_rating: Rating
    """The word for the predicted MOS."""
    spoken_rating: str | None
    description: str | None
    reference: str | None

    @property
    def error(self) -> float:
        """Predicted less true, in units of the MOS scale."""
        return self.predicted - self.mos


@dataclass(frozen=True)
class ExampleGroup:
    """Cases with something in common, the most telling first."""

    title: str
    cases: list[ReportExample]


def example_groups(part: pd.DataFrame, scale: MosScale, count: int) -> list[ExampleGroup]:
    """The most overestimated, most underestimated and best predicted images of an aspect's table.

    At most `count` each, and none twice. Ties are in the order of the samples' names.
    """
    ranked = part.assign(error=part["predicted"] - part["mos"]).sort_values("sample", ignore_index=True)
    over = ranked[ranked["error"] > 0].nlargest(count, "error")
    under = ranked[ranked["error"] < 0].nsmallest(count, "error")
    rest = ranked.drop([*over.index, *under.index])
    best = rest.loc[rest["error"].abs().nsmallest(count).index]
    titles = "Most overestimated", "Most underestimated", "Best predicted"
    chosen = zip(titles, (over, under, best), strict=True)
    return [
        ExampleGroup(title, [_example(row, scale) for _, row in rows.iterrows()]) for title, rows in chosen
    ]


def _example(row: pd.Series, scale: MosScale) -> ReportExample:
    known = {name: None if pd.isna(value) else value for name, value in row.items()}
    image, lacking = thumbnail(known["image"])
    return ReportExample(
        sample=str(known["sample"]),
        image=image,
        lacking=lacking,
        prompt=known["prompt"],
        about=", ".join(str(value) for name in ("generator", "source") if (value := known[name])),
        mos=known["mos"],
        predicted=known["predicted"],
        rating=scale.rating(known["mos"]),
        predicted_rating=scale.rating(known["predicted"]),
        spoken_rating=known["spoken_rating"],
        description=known["description"],
        reference=known["reference"],
    )


def thumbnail(path: str) -> tuple[str | None, str | None]:
    """A small JPEG as a data: URL, or why there is none."""
    try:
        image = open_image(Path(path))
    except InputError as error:
        return None, str(error)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return data_url(image, "JPEG", quality=JPEG_QUALITY, optimize=True), None
