"""What is said of an image: one result for each aspect, and all of them together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.checkpoint.calibration import INTERVAL_LEVEL, Calibration
from m3agiqa.prompt_elements import CheckedElement

MOS_DIGITS = 3  # after the point, everywhere, so that the word of a MOS is that of the written number
ASPECT_COLUMNS = (
    *(f"{aspect}_mos" for aspect in Aspect),
    *(f"{aspect}_description" for aspect in Aspect),
    *(f"{aspect}_rating" for aspect in Aspect),
    *(f"{aspect}_spoken_rating" for aspect in Aspect),
    *(f"{aspect}_{figure}" for figure in ("low", "high", "percentile") for aspect in Aspect),
    *(f"{aspect}_raw_mos" for aspect in Aspect),
    "elements",
)
"""Of a table with a row for each image."""
VISIBLE_DIFFERENCE = 0.005  # below it, raw value and MOS read the same

LIKELY_NOTE = (
    f"Likely: {INTERVAL_LEVEL:.0%} of mean opinion scores lie in this range, as measured on images held out "
    "of training. Better than: the share of training images with a lower score."
).replace("%", " %")
"""What the figures beside a MOS mean, for readers."""


@dataclass(frozen=True)
class DescriptionDelta:
    """Some more text of one aspect's description."""

    aspect: Aspect
    text: str


@dataclass(frozen=True)
class AspectResult:
    """One aspect, judged. `mos` lies within `scale`; `raw_mos` is what the predictor said."""

    aspect: Aspect
    description: str
    spoken_rating: Rating
    """The language model's own word, which need not be that of the MOS."""
    mos: float
    raw_mos: float
    scale: MosScale
    spread: float | None = None
    """Standard deviation over predictors trained with other seeds, in points of MOS; None with one alone."""
    calibration: Calibration | None = field(default=None, repr=False)
    """Where interval and percentile come from; None for checkpoints that have none."""
    unknown_prompt: bool = False
    """Whether the model does not know the prompt's words, so that its MOS of correspondence says little."""
    read_characters: int | None = None
    """Of a prompt that is too long for the model: how many characters of its beginning were read."""
    elements: tuple[CheckedElement, ...] = ()
    """Of the prompt, where the model tells them apart."""
    pooled: tuple[float, ...] = field(default=(), repr=False, compare=False)
    """What the regression head has read, by which images can be compared; not in JSON or tables."""

    @property
    def rating(self) -> Rating:
        """The word of the MOS."""
        return self.scale.rating(self.mos)

    @property
    def low(self) -> float | None:
        """Lower end of the interval, in which 80 % of mean opinion scores lie; None without calibration."""
        return None if self.calibration is None else self.calibration.interval(self.mos, self.scale)[0]

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.calibration is None else self.calibration.interval(self.mos, self.scale)[1]

    @property
    def percentile(self) -> float | None:
        """Share of the training images with a lower MOS, from 0 to 100; None too for an unknown prompt."""
        if self.calibration is None or self.unknown_prompt:
            return None
        return self.calibration.percentile(self.mos)

    @property
    def limited(self) -> bool:
        """Whether the raw value lies visibly outside the scale."""
        return abs(self.raw_mos - self.mos) >= VISIBLE_DIFFERENCE

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what is not known is left out."""
        known = {"low": self.low, "high": self.high, "percentile": self.percentile, "spread": self.spread}
        return {
            "description": self.description,
            "rating": str(self.rating),
            "spoken_rating": str(self.spoken_rating),
            "mos": round(self.mos, MOS_DIGITS),
            "raw_mos": round(self.raw_mos, MOS_DIGITS),
            "scale": [self.scale.low, self.scale.high],
            **{name: round(value, MOS_DIGITS) for name, value in known.items() if value is not None},
            **({} if self.calibration is None else {"training_images": self.calibration.training_images}),
            **({"unknown_prompt": True} if self.unknown_prompt else {}),
            **({} if self.read_characters is None else {"read_characters": self.read_characters}),
            **({"elements": [each.to_dict() for each in self.elements]} if self.elements else {}),
        }


@dataclass(frozen=True)
class Assessment:
    """All aspects of one image, and what they were judged by."""

    image: str | None
    prompt: str | None
    aspects: dict[Aspect, AspectResult]
    model: str
    learned_from: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "image": self.image,
            "prompt": self.prompt,
            "aspects": {str(result.aspect): result.to_dict() for result in self.aspects.values()},
            "model": self.model,
            "learned_from": self.learned_from,
            "seconds": round(self.seconds, 2),
        }

    def to_cells(self) -> dict[str, str]:
        """Texts for a table, by ASPECT_COLUMNS and "scale"."""
        results = self.aspects.values()
        # With a word between, as spreadsheets take "1-5" for a date.
        scales = {str(r.aspect): f"{r.scale.low:g} to {r.scale.high:g}" for r in results}
        same = len(set(scales.values())) == 1
        cells = {"scale": next(iter(scales.values())) if same else ", ".join(map(" ".join, scales.items()))}
        for result in results:
            cells[f"{result.aspect}_mos"] = f"{result.mos:.3f}"
            cells[f"{result.aspect}_raw_mos"] = f"{result.raw_mos:.3f}"
            cells[f"{result.aspect}_rating"] = str(result.rating)
            cells[f"{result.aspect}_spoken_rating"] = str(result.spoken_rating)
            cells[f"{result.aspect}_description"] = result.description
            figures = {"low": result.low, "high": result.high, "percentile": result.percentile}
            cells |= {f"{result.aspect}_{k}": f"{v:.3f}" for k, v in figures.items() if v is not None}
            if result.elements:
                elements = [each.to_dict() for each in result.elements]
                cells["elements"] = json.dumps(elements, ensure_ascii=False)
        return cells


Event = DescriptionDelta | AspectResult | Assessment
