"""What is judged (aspects), in which words (ratings) and on which scale (MOS)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Aspect(StrEnum):
    """The three aspects of M3-AGIQA; each has its own function f(image, prompt) -> MOS."""

    QUALITY = "quality"
    CORRESPONDENCE = "correspondence"
    AUTHENTICITY = "authenticity"

    @property
    def needs_prompt(self) -> bool:
        """Correspondence compares image and prompt, so it has no meaning without a prompt."""
        return self is Aspect.CORRESPONDENCE


def aspects_text(aspects: Iterable[Aspect], conjunction: str = "and") -> str:
    """A list for readers, e.g. "quality, correspondence and authenticity"; "" for none."""
    *others, last = [str(aspect) for aspect in aspects] or [""]
    return f"{', '.join(others)} {conjunction} {last}" if others else last


class Rating(StrEnum):
    """The five words of the second round, from low to high."""

    BAD = "bad"
    POOR = "poor"
    FAIR = "fair"
    GOOD = "good"
    EXCELLENT = "excellent"

    @classmethod
    def parse(cls, answer: str) -> Rating | None:
        """The word, if an answer is nothing but one."""
        word = answer.strip(" \t\r\n.,;:!'\"`*[]()").lower()
        return cls(word) if word in set(cls) else None


RATING_WORDS = tuple(Rating)


@dataclass(frozen=True)
class MosScale:
    """Range of a data set's mean opinion scores; higher is better."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a MOS scale needs low < high, got {self.low} and {self.high}")

    def clamp(self, mos: float) -> float:
        """The nearest value within the scale."""
        return min(max(mos, self.low), self.high)

    def to_unit(self, mos: float) -> float:
        """MOS -> [0, 1] (clamped)."""
        return (self.clamp(mos) - self.low) / (self.high - self.low)

    def from_unit(self, unit: float) -> float:
        """[0, 1] -> MOS."""
        return self.low + unit * (self.high - self.low)

    def rating(self, mos: float) -> Rating:
        """The word for a MOS: five equal ranges of the scale (paper, section III-A)."""
        return RATING_WORDS[min(int(self.to_unit(mos) * len(RATING_WORDS)), len(RATING_WORDS) - 1)]


COMMON_SCALE = MosScale(1, 5)
"""Of people's scores where no model or data set has another one, and of scores from several."""
