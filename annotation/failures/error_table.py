"""The one form of cases, wherever they come from: an image, one aspect, what people and the model say."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale
from m3agiqa.metrics import plcc, srcc

INPUT_COLUMNS = (
    "item",  # an item's id or a sample's, as text
    "aspect",
    "image",  # path of the file
    "original_file",  # what its first owner called it, where that is not the path's name
    "prompt",
    "generator",
    "source",
    "mos",  # of people, on the model's scale
    "mos_low",  # ... with its 95 % interval and how many people are behind it, where that is known
    "mos_high",
    "raters",
    "predicted",
    "scale_low",
    "scale_high",
    "spoken_rating",  # the rating word that the model has generated
    "description",  # the model's
    "reference",  # a teacher's
    "tags",  # kinds of error that people have seen, a tuple
)
SAME_CASE = ["item", "aspect", "image"]


@dataclass(frozen=True)
class Key:
    """Which case: the text that links and pages know it by."""

    item: str
    aspect: str

    def __str__(self) -> str:
        return f"{self.item}|{self.aspect}"

    @classmethod
    def parse(cls, text: object) -> Key | None:
        item, bar, aspect = str(text or "").rpartition("|")
        return cls(item, aspect) if bar and item and aspect in list(Aspect) else None


def cases(given: pd.DataFrame) -> pd.DataFrame:
    """A table with INPUT_COLUMNS and what follows from them, by item and aspect; None where unknown.

    `error` is predicted less MOS, in points of the scale, `rating` the word of the predicted MOS, and
    `words_apart` the steps between this and the spoken word; NaN where none was generated.
    """
    table = given.reindex(columns=list(INPUT_COLUMNS)).astype({"predicted": float, "mos": float})
    texts = ["original_file", "prompt", "generator", "source", "spoken_rating", "description", "reference"]
    table[texts] = table[texts].astype(object).where(table[texts].notna(), None)
    table["tags"] = [tags if isinstance(tags, tuple) else () for tags in table["tags"]]
    table["error"] = table["predicted"] - table["mos"]
    scores = zip(table["predicted"], table["scale_low"], table["scale_high"], strict=True)
    table["rating"] = [str(MosScale(low, high).rating(predicted)) for predicted, low, high in scores]
    words = zip(table["spoken_rating"], table["rating"], strict=True)
    table["words_apart"] = pd.Series([_words_apart(*pair) for pair in words], table.index, dtype=float)
    return table.sort_values(["item", "aspect"], kind="stable", ignore_index=True)


def _words_apart(spoken: str | None, rating: str) -> float:
    return abs(RATING_WORDS.index(spoken) - RATING_WORDS.index(rating)) if spoken else np.nan


def beside(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Cases that both models have judged; people's MOS is the first table's.

    Columns `other_…` are what the second model says, on the first one's scale; `gain` is by how much it is
    nearer to people.
    """
    judged = ["predicted", "rating", "spoken_rating", "description", "scale_low", "scale_high"]
    other = second[[*SAME_CASE, *judged]].rename(columns={name: f"other_{name}" for name in judged})
    both = first.merge(other, on=SAME_CASE, validate="one_to_one")
    both["other_predicted"] = rescaled(
        both["other_predicted"],
        (both.pop("other_scale_low"), both.pop("other_scale_high")),
        (both["scale_low"], both["scale_high"]),
    )
    both["other_error"] = both["other_predicted"] - both["mos"]
    both["gain"] = both["error"].abs() - both["other_error"].abs()
    return both


def rescaled(
    scores: pd.Series,
    old: tuple[pd.Series, pd.Series] | tuple[float, float],
    new: tuple[pd.Series, pd.Series] | tuple[float, float],
) -> pd.Series:
    """Scores from one (low, high) to another."""
    return new[0] + (scores - old[0]) / (old[1] - old[0]) * (new[1] - new[0])


@dataclass(frozen=True)
class CaseAgreement:
    """How far a model and people agree on some cases of one aspect; NaN where that has no value."""

    count: int
    srcc: float
    plcc: float
    bias: float
    """Mean of predicted less MOS."""
    over: int
    """How many are overestimated."""


def agreements(table: pd.DataFrame, predicted: str = "predicted") -> dict[str, CaseAgreement]:
    """Of each aspect that occurs, in the order of Aspect."""
    by_aspect = {}
    for aspect in Aspect:
        part = table[table["aspect"] == aspect]
        if len(part):
            scores, mos = part[predicted].to_numpy(), part["mos"].to_numpy()
            error = scores - mos
            over = int((error > 0).sum())
            by_aspect[str(aspect)] = CaseAgreement(
                len(part), srcc(scores, mos), plcc(scores, mos), float(error.mean()), over
            )
    return by_aspect


# --- where cases come from ---------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """A model that has judged images of a data set."""

    key: str
    """Its source's prefix, a colon, and what the source knows it by."""
    title: str


@dataclass(frozen=True)
class DataSet:
    """Images with scores of people, and the models that have judged them."""

    key: str
    title: str
    versions: tuple[Version, ...]
    mos_label: str
    """Whose scores these are."""

    def with_version(self, version: Version) -> DataSet:
        return replace(self, versions=(*self.versions, version))


@dataclass(frozen=True)
class Judged:
    """What a model has judged: each an aspect of an image."""

    cases: pd.DataFrame
    """Those with a score of people, in the form of annotation.failures.error_table."""
    waiting: int
    """How many have none yet."""


@dataclass(frozen=True)
class Opinion:
    """What one person says of one aspect of an image."""

    aspect: Aspect
    annotator: str
    score: float
    low: float
    high: float
    description: str | None
    agrees: bool
    """Whether they confirm the model's own answer."""
    tags: tuple[str, ...]
    comment: str | None


class Source(Protocol):
    """Where cases come from."""

    prefix: str

    def data_sets(self) -> list[DataSet]: ...

    def stamp(self, version: str) -> Hashable:
        """A value that changes whenever `judged` would answer something else."""

    def judged(self, version: str) -> Judged:
        """What a model version has judged. Raises InputError if that cannot be read."""

    def opinions(self, item: str) -> list[Opinion]:
        """What single people say of an image, where the source knows."""
