"""What a predicted MOS means: an interval around it, and its place among the training scores."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from m3agiqa.aspects import MosScale

INTERVAL_LEVEL = 0.8
"""Share of mean opinion scores that lie within the intervals around predicted ones."""
MIN_SOURCE_SIZE = 50
"""Held-out images that a source needs for intervals of its own."""
SCORE_DIGITS = 4


@dataclass(frozen=True)
class Calibration:
    """Of one aspect of a checkpoint, made when it is shipped."""

    half_width: float
    """Of the interval, by split-conformal prediction from errors on held-out images; in points of MOS."""
    held_out: int
    """How many images these were."""
    quantiles: tuple[float, ...]
    """Of the training images' MOS: the lowest, 99 percentiles, the highest."""
    training_images: int
    by_source: dict[str, float] = field(default_factory=dict)
    """Half widths for images of a known source, for sources with enough held-out images."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.half_width) and self.half_width >= 0):
            raise ValueError(f"half_width must be a number from 0 up, not {self.half_width}")
        if len(self.quantiles) < 2 or list(self.quantiles) != sorted(self.quantiles):
            raise ValueError("quantiles must rise")

    @classmethod
    def fitted(
        cls,
        errors: Sequence[float],
        training_mos: Sequence[float],
        scale: MosScale,
        sources: Sequence[str | None] = (),
        level: float = INTERVAL_LEVEL,
    ) -> Calibration:
        """From predicted less true MOS of held-out images, whose `sources` may be given."""
        by_source = defaultdict(list)
        for source, error in zip(sources, errors, strict=False):
            by_source[source].append(error)
        quantiles = np.quantile(training_mos, np.linspace(0, 1, 101)).round(SCORE_DIGITS)
        return cls(
            half_width=conformal_half_width(errors, scale, level),
            held_out=len(errors),
            quantiles=tuple(quantiles.tolist()),
            training_images=len(training_mos),
            by_source={
                source: conformal_half_width(own, scale, level)
                for source, own in by_source.items()
                if source is not None and len(own) >= MIN_SOURCE_SIZE
            },
        )

    def on_scale(self, own: MosScale, wanted: MosScale) -> Calibration:
        """The same for scores of another scale."""
        gain = (wanted.high - wanted.low) / (own.high - own.low)
        return replace(
            self,
            half_width=gain * self.half_width,
            quantiles=tuple(wanted.from_unit(own.to_unit(mos)) for mos in self.quantiles),
            by_source={source: gain * width for source, width in self.by_source.items()},
        )

    def interval(self, mos: float, scale: MosScale, source: str | None = None) -> tuple[float, float]:
        """Lowest and highest score, within the scale."""
        half_width = self.by_source.get(source or "", self.half_width)
        return scale.clamp(mos - half_width), scale.clamp(mos + half_width)

    def paired_half_width(self, scale: MosScale) -> float:
        """Half width of the interval around the difference of two images' scores, in points of MOS.

        √2 times that of one image: exact if their errors had nothing in common. Images of one prompt share
        a part of them, which cancels, so that at least INTERVAL_LEVEL of true differences lie within.
        """
        return min(math.sqrt(2) * self.half_width, scale.high - scale.low)

    def percentile(self, mos: float) -> float:
        """Share of the training images with a lower MOS, from 0 to 100."""
        rank, steps = bisect_left(self.quantiles, mos), len(self.quantiles) - 1
        if rank > 0 and rank <= steps:
            low, high = self.quantiles[rank - 1 : rank + 1]
            return 100 * (rank - 1 + (mos - low) / (high - low)) / steps
        return 100.0 if rank else 0.0


def conformal_half_width(errors: Sequence[float], scale: MosScale, level: float = INTERVAL_LEVEL) -> float:
    """Half width of intervals that hold a new image's score with at least this probability.

    It is the k-th smallest absolute error of n, with k = ⌈(n + 1) level⌉. Too few errors tell nothing: then
    the interval is the whole scale.
    """
    rank = math.ceil((len(errors) + 1) * level)
    if rank > len(errors):
        return scale.high - scale.low
    return round(sorted(map(abs, errors))[rank - 1], SCORE_DIGITS)
