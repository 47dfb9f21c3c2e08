"""What a researcher looks at: which cases, in which order, and the one that is open; as a link, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from annotation.failures.error_table import Key
from annotation.failures.slices import members_of
from m3agiqa.errors import InputError

TAB_NAME = "failures"
NOT_GIVEN = "(not given)"
"""Stands for cases without a generator."""
LONGEST_TEXT = 2000  # characters of a link's value


class Side(StrEnum):
    """Which way the model errs."""

    ANY = "any"
    OVER = "over"
    UNDER = "under"


class Words(StrEnum):
    """Whether the rating word that the model has generated is the word of the MOS that it predicts."""

    ANY = "any"
    AGREE = "agree"
    DIFFER = "differ"
    FAR = "far"


class Nearer(StrEnum):
    """Which of two models is nearer to people."""

    ANY = "any"
    FIRST = "first"
    OTHER = "other"


class Plot(StrEnum):
    """What is drawn of the cases."""

    SCORES = "scores"
    """Predicted over people's MOS."""
    IMAGES = "images"
    """A map by what the images show."""


class Order(StrEnum):
    """What comes first."""

    WORST = "worst"
    BEST = "best"
    OVER = "over"
    UNDER = "under"
    GAIN = "gain"
    LOSS = "loss"


FILTER_FIELDS = ("aspect", "side", "least", "most", "generator", "text", "tag", "words")
"""Fields of a view that leave cases out, among the filters that are folded on phones."""
CHOICES_OF_FIELDS = {"side": Side, "words": Words, "nearer": Nearer, "order": Order, "plot": Plot}
"""Fields of a view that are one of some choices."""


@dataclass(frozen=True)
class View:
    """Every field has a value that means "all"; links leave those out."""

    data: str = ""
    model: str = ""
    other: str = ""
    """A second model, set beside the first."""
    aspect: str = ""
    side: Side = Side.ANY
    least: float | None = None
    """Smallest size of the error, in points of the scale."""
    most: float | None = None
    generator: str = ""
    text: str = ""
    """Words in the prompt, whatever their case."""
    tag: str = ""
    words: Words = Words.ANY
    nearer: Nearer = Nearer.ANY
    order: Order = Order.WORST
    plot: Plot = Plot.SCORES
    slice: str = ""
    """A group of cases by its name (annotation.failures.slices, annotation.failures.image_map)."""
    case: str = ""
    """The case that is open, as Key has it."""

    def __post_init__(self) -> None:
        """Raises InputError for error limits that are no limits."""
        for limit in (self.least, self.most):
            if limit is not None and not (math.isfinite(limit) and limit >= 0):
                raise InputError("The size of an error is a number from 0 up; leave the field empty for all.")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise InputError(
                f"No error is both at least {self.least:g} and at most {self.most:g}; swap the two."
            )

    @property
    def active_filters(self) -> int:
        """How many of FILTER_FIELDS leave cases out."""
        default = View()
        return sum(getattr(self, name) != getattr(default, name) for name in FILTER_FIELDS)

    def query(self) -> str:
        """The query string of a link to this view."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {
            field.name: values[field.name] for field in fields(self) if values[field.name] != field.default
        }
        return "?" + urlencode({"tab": TAB_NAME, **changed})

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> View:
        """What a link asks for; a value that makes no sense (an old or mistyped link) means all."""
        kinds: dict[str, Any] = {**CHOICES_OF_FIELDS, "least": _limit, "most": _limit}
        values: dict[str, Any] = {}
        for field in fields(cls):
            text = query.get(field.name, "")[:LONGEST_TEXT]
            if text:
                try:
                    values[field.name] = kinds.get(field.name, str)(text)
                except ValueError:
                    continue
        if values.get("least", 0) > values.get("most", math.inf):
            del values["most"]
        return cls(**values)


def _limit(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(text)
    return number


def select(table: pd.DataFrame, view: View, ranks: pd.Series | None = None) -> pd.DataFrame:
    """The cases of a table that a view shows, in its order; ties by item and aspect.

    `ranks` are those of a group of images: they go before the order, and take the place of the slice. What
    compares two models (nearer, and the orders GAIN and LOSS) counts only where the table has two.
    """
    size = table["error"].abs()
    keep = pd.Series(True, index=table.index)
    if view.aspect:
        keep &= table["aspect"] == view.aspect
    if view.side is not Side.ANY:
        keep &= table["error"] > 0 if view.side is Side.OVER else table["error"] < 0
    if view.least is not None:
        keep &= size >= view.least
    if view.most is not None:
        keep &= size <= view.most
    if view.generator:
        keep &= table["generator"].fillna(NOT_GIVEN) == view.generator
    if view.text.strip():
        wanted = view.text.strip().casefold()
        keep &= pd.Series([wanted in (prompt or "").casefold() for prompt in table["prompt"]], table.index)
    if view.tag:
        keep &= pd.Series([view.tag in tags for tags in table["tags"]], table.index)
    match view.words:
        case Words.AGREE:
            keep &= table["words_apart"] == 0
        case Words.DIFFER:
            keep &= table["words_apart"] >= 1
        case Words.FAR:
            keep &= table["words_apart"] >= 2
    if ranks is not None:
        keep &= ranks.notna()
    elif view.slice:
        keep &= members_of(table, view.slice)
    compared = "gain" in table
    if compared and view.nearer is not Nearer.ANY:
        keep &= table["gain"] > 0 if view.nearer is Nearer.OTHER else table["gain"] < 0
    first = {
        Order.WORST: -size,
        Order.BEST: size,
        Order.OVER: -table["error"],
        Order.UNDER: table["error"],
        Order.GAIN: -table["gain"] if compared else -size,
        Order.LOSS: table["gain"] if compared else -size,
    }[view.order]
    ranked = table.assign(rank=0 if ranks is None else ranks, first=first)[keep]
    ranked = ranked.sort_values(["rank", "first", "item", "aspect"], kind="stable")
    return ranked.drop(columns=["rank", "first"]).reset_index(drop=True)


def generators(table: pd.DataFrame) -> list[str]:
    """Those that occur, by name; NOT_GIVEN at the end."""
    known = sorted({name for name in table["generator"] if name is not None})
    return known + [NOT_GIVEN] * bool(table["generator"].isna().any())


def tags(table: pd.DataFrame) -> list[str]:
    """Those that occur, by name."""
    return sorted({tag for tags in table["tags"] for tag in tags})


@dataclass(frozen=True)
class Place:
    """Where a case stands among the selected ones."""

    position: int
    """From 0."""
    previous: Key | None
    next: Key | None


def place(selected: pd.DataFrame, key: Key) -> Place | None:
    """None if the case is not among them."""
    positions = selected.index[(selected["item"] == key.item) & (selected["aspect"] == key.aspect)]
    if not len(positions):
        return None
    at = int(positions[0])
    before = key_at(selected, at - 1) if at else None
    after = key_at(selected, at + 1) if at + 1 < len(selected) else None
    return Place(at, before, after)


def key_at(selected: pd.DataFrame, position: int) -> Key:
    row = selected.iloc[position]
    return Key(row["item"], row["aspect"])
