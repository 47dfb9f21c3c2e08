"""Where an image looks bad: how its parts score, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3agiqa.aspects import Aspect

MAP_DIGITS = 3  # after the point
OVERLAY_SIDE = 256  # pixels of the longer one; browsers enlarge it smoothly
OVERLAY_COLOUR = (213, 94, 0)  # vermilion, which colour-blind people tell from most images' colours
MAX_OPACITY = 0.75  # of the worst part, so that the image shows through
MIN_TENT = 1e-3  # weight of a part at its edge

Report = Callable[[int, int], object]
"""Is told how many parts are done, of how many."""


class MapPart(NamedTuple):
    """A rectangle of the image, in its pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class QualityMap:
    """Scores of an image's parts: differences from the median part, below 0 where the image looks worse."""

    size: tuple[int, int]
    """Width and height of the image, in pixels."""
    parts: tuple[MapPart, ...]
    """In rows from the top, each from the left; they may overlap."""
    scores: Mapping[Aspect, tuple[float, ...]]
    """One a part."""
    method: str
    """A sentence on how a part is scored, and in which unit."""
    full_colour: float
    """A difference from the median that is shown in full colour, if none is larger."""

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        parts: Sequence[MapPart],
        raw: Mapping[Aspect, Sequence[float]],
        method: str,
        full_colour: float,
    ) -> QualityMap:
        """From scores that need not be differences yet; higher ones are better."""
        scores = {
            aspect: tuple((np.asarray(values) - np.median(values)).tolist()) for aspect, values in raw.items()
        }
        return cls(size, tuple(parts), scores, method, full_colour)

    def worst(self, aspect: Aspect) -> MapPart:
        """The part with the lowest score."""
        return self.parts[int(np.argmin(self.scores[aspect]))]

    def worst_place(self, aspect: Aspect) -> str:
        """Where the worst part lies, such as "upper left"."""
        part, (width, height) = self.worst(aspect), self.size
        across = 3 * (part.left + part.width / 2) / width
        down = 3 * (part.top + part.height / 2) / height
        row = ("upper", "middle", "lower")[min(int(down), 2)]
        column = ("left", "middle", "right")[min(int(across), 2)]
        return "middle" if row == column else f"{row} {column}"

    def smooth(self, aspect: Aspect) -> NDArray[np.float32]:
        """[height, width], at most OVERLAY_SIDE a side: mean over the parts that cover a pixel.

        Those count most in whose middle it is.
        """
        scale = OVERLAY_SIDE / max(self.size)
        width, height = (max(1, round(scale * length)) for length in self.size)
        total, weights = np.zeros((2, height, width), np.float32)
        for part, score in zip(self.parts, self.scores[aspect], strict=True):
            down = _tent(height, scale * part.top, scale * part.height)
            across = _tent(width, scale * part.left, scale * part.width)
            weight = down[:, None] * across
            total += weight * score
            weights += weight
        smooth: NDArray[np.float32] = total / weights.clip(1e-9)
        return smooth

    def opacity(self, aspect: Aspect) -> NDArray[np.float32]:
        """[height, width] in [0, MAX_OPACITY], of the overlay: none from the median part on."""
        worst = max(self.full_colour, -min(self.scores[aspect]))
        return (MAX_OPACITY * (-self.smooth(aspect) / worst).clip(0, 1)).astype(np.float32)

    def overlay(self, aspect: Aspect) -> Image.Image:
        """RGBA, in the image's proportions, to be laid over it."""
        opacity = self.opacity(aspect)
        overlay = Image.new("RGB", opacity.shape[::-1], OVERLAY_COLOUR)
        overlay.putalpha(Image.fromarray(np.rint(255 * opacity).astype(np.uint8)))
        return overlay

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "method": self.method,
            "parts": [
                {
                    "box": list(part),
                    **{str(aspect): round(values[i], MAP_DIGITS) for aspect, values in self.scores.items()},
                }
                for i, part in enumerate(self.parts)
            ],
            "worst": {str(aspect): list(self.worst(aspect)) for aspect in self.scores},
        }


def even_parts(size: tuple[int, int], per_side: tuple[int, int], side: int | None = None) -> list[MapPart]:
    """Columns and rows of parts that begin at even distances from edge to edge.

    Squares of `side` pixels, which may overlap or leave gaps, or rectangles that fill the image.
    """
    (width, height), (columns, rows) = size, per_side
    if side is None:
        edges = [
            [round(i * length / n) for i in range(n + 1)] for length, n in zip(size, per_side, strict=True)
        ]
        return [
            MapPart(left, top, right - left, bottom - top)
            for top, bottom in zip(edges[1], edges[1][1:], strict=False)
            for left, right in zip(edges[0], edges[0][1:], strict=False)
        ]
    tops = [round(i * (height - side) / (rows - 1)) for i in range(rows)]
    lefts = [round(i * (width - side) / (columns - 1)) for i in range(columns)]
    return [MapPart(left, top, side, side) for top in tops for left in lefts]


def _tent(length: int, start: float, extent: float) -> NDArray[np.float32]:
    """[length]: 1 in the middle of an interval, MIN_TENT at its ends and 0 outside."""
    distance = np.abs(np.arange(length, dtype=np.float32) + 0.5 - (start + extent / 2)) / (extent / 2)
    return np.where(distance <= 1, (1 - distance).clip(MIN_TENT), 0).astype(np.float32)
