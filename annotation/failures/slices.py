"""Slices: groups of cases on which a model errs more than elsewhere, found by trying every attribute.

So many groups are compared that some are worse by chance; the intervals allow for it (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import norm

from m3agiqa.aspects import MosScale
from m3agiqa.prompt_elements import prompt_elements

MIN_CASES = 15
"""Of a slice, and of all cases outside of it."""
ERROR_RATE = 0.05
"""Chance that any slice at all is found where the model errs everywhere alike."""
MAX_SLICES = 8
PAIR_SEPARATOR = " and "
"""Between the names of two slices in that of what they have in common."""
PROMPT_WORDS = ((0, "none"), (5, "up to 5 words"), (15, "6 to 15 words"), (40, "16 to 40 words"))
LONG_PROMPT = "over 40 words"
IMAGE_SIDES = ((511, "below 512 px"), (1023, "512 to 1023 px"))
LARGE_IMAGE = "1024 px and more"


@dataclass(frozen=True)
class ErrorSlice:
    """Cases that have one or two attribute values in common, by the size of their errors in points of MOS."""

    name: str
    """`attribute: value`, two of them joined by " and "; links know the slice by it."""
    count: int
    mean_error: float
    """Mean size of the error inside."""
    mean_error_outside: float
    low: float
    """The interval of the difference between the two, which allows for all slices that were tried."""
    high: float
    bias: float
    """Mean of predicted less MOS, inside."""


def attributes(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each case; its columns are attributes, and None is an unknown value."""
    prompts = [prompt or "" for prompt in table["prompt"]]
    of_cases = {
        "generator": table["generator"],
        "source": table["source"],
        "prompt": [_band(len(prompt.split()), PROMPT_WORDS, LONG_PROMPT) for prompt in prompts],
        "image": [_image_size(path) for path in table["image"]],
        "people say": [
            str(MosScale(low, high).rating(mos))
            for mos, low, high in zip(table["mos"], table["scale_low"], table["scale_high"], strict=True)
        ],
    }
    asked = [_asked_for(prompt) for prompt in prompts]
    for kind in sorted(set().union(*asked)):
        of_cases[f"asks for {kind}"] = ["yes" if kind in kinds else None for kinds in asked]
    frame = pd.DataFrame(of_cases, index=table.index, dtype=object)
    return frame.where(frame.notna(), None)


def _band(number: int, bands: tuple[tuple[int, str], ...], beyond: str) -> str:
    return next((name for last, name in bands if number <= last), beyond)


@lru_cache(maxsize=20_000)
def _asked_for(prompt: str) -> frozenset[str]:
    """Kinds of elements in a prompt."""
    return frozenset(str(element.kind) for element in prompt_elements(prompt))


@lru_cache(maxsize=20_000)
def _image_size(path: str) -> str | None:
    """By the longer side, which is in the file's header; None for a file that cannot be read."""
    try:
        with Image.open(Path(path)) as image:
            return _band(max(image.size), IMAGE_SIDES, LARGE_IMAGE)
    except Exception:  # decoders raise all kinds of errors
        return None


def error_slices(table: pd.DataFrame) -> list[ErrorSlice]:
    """Where the model errs more than elsewhere beyond doubt, the surest first; at most MAX_SLICES.

    Two attributes together count where they are worse than either of them alone.
    """
    size = table["error"].abs().to_numpy()
    singles, pairs = _candidates(attributes(table), len(table))
    if not singles:
        return []
    quantile = float(norm.ppf(1 - ERROR_RATE / 2 / (len(singles) + len(pairs))))
    single = {name: _compared(name, table, size, inside, quantile) for name, inside in singles.items()}
    worse = list(single.values())
    for parts, inside in pairs.items():
        both = _compared(PAIR_SEPARATOR.join(parts), table, size, inside, quantile)
        if all(both.low > single[part].low and both.mean_error > single[part].mean_error for part in parts):
            worse.append(both)
    return sorted((each for each in worse if each.low > 0), key=lambda each: -each.low)[:MAX_SLICES]


def _candidates(
    known: pd.DataFrame, count: int
) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], np.ndarray]]:
    """Members of every slice that is large enough: by name, and by both names of two together."""

    def is_large_enough(inside: np.ndarray) -> bool:
        return MIN_CASES <= inside.sum() <= count - MIN_CASES

    singles = {name: inside for name, inside in _single_slices(known).items() if is_large_enough(inside)}
    pairs = {}
    for first, second in combinations(singles, 2):
        both = singles[first] & singles[second]
        if is_large_enough(both) and both.sum() < min(singles[first].sum(), singles[second].sum()):
            pairs[first, second] = both
    return singles, pairs


def _single_slices(known: pd.DataFrame) -> dict[str, np.ndarray]:
    """Members of every value of an attribute, by `attribute: value`."""
    return {
        f"{attribute}: {value}": (known[attribute] == value).to_numpy()
        for attribute in known
        for value in known[attribute].dropna().unique()
    }


def _compared(
    name: str, table: pd.DataFrame, size: np.ndarray, inside: np.ndarray, quantile: float
) -> ErrorSlice:
    """By Welch's standard error of a difference between two means."""
    within, outside = size[inside], size[~inside]
    difference = within.mean() - outside.mean()
    width = quantile * np.sqrt(within.var(ddof=1) / len(within) + outside.var(ddof=1) / len(outside))
    return ErrorSlice(
        name=name,
        count=len(within),
        mean_error=float(within.mean()),
        mean_error_outside=float(outside.mean()),
        low=float(difference - width),
        high=float(difference + width),
        bias=float(table["error"].to_numpy()[inside].mean()),
    )


def members_of(table: pd.DataFrame, name: str) -> pd.Series:
    """Which cases are in a slice; none for a name that is no slice of these."""
    singles = _single_slices(attributes(table))
    if name in singles:
        return pd.Series(singles[name], table.index)
    pieces = name.split(PAIR_SEPARATOR)
    for cut in range(1, len(pieces)):  # a generator's own name may have the word
        first, second = PAIR_SEPARATOR.join(pieces[:cut]), PAIR_SEPARATOR.join(pieces[cut:])
        if first in singles and second in singles:
            return pd.Series(singles[first] & singles[second], table.index)
    return pd.Series(False, table.index)
