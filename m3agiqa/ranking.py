"""Several images of one prompt, in order of their scores, and which of the differences are sure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from m3agiqa.aspects import COMMON_SCALE, Aspect, MosScale, aspects_text
from m3agiqa.assessment import ASPECT_COLUMNS, MOS_DIGITS, Assessment
from m3agiqa.checkpoint.calibration import INTERVAL_LEVEL
from m3agiqa.errors import InputError, M3AgiqaError, raise_if_stopped
from m3agiqa.images import ImageSource, open_image
from m3agiqa.plurals import counted
from m3agiqa.tables import csv_text, decimal_number

MIN_IMAGES, MAX_IMAGES = 2, 24  # that can be compared at once
BATCH_SIZE = 8  # images that are assessed together; the first one alone, so that it is there soon
OVERALL = "overall"
"""The order by the weighted mean of the aspects; the others are by one aspect."""
RANKING_COLUMNS = (
    *("prompt", "order", "place", "image", "to_first", "to_next"),
    *(f"overall{figure}" for figure in ("", "_low", "_high")),
    *ASPECT_COLUMNS,
    *("scale", "weights", "model", "learned_from", "error"),
)
DIFFERENCE_NOTE = (
    f"Clearly better: the difference is larger than the {INTERVAL_LEVEL:.0%} interval of the difference "
    "between two images of one prompt. About equal: it is smaller, so people may well see it the other way."
).replace("%", " %")
"""What the verdicts mean, for readers."""


class Difference(StrEnum):
    """How sure it is that the better of two images is better."""

    CLEAR = "clearly better"
    EQUAL = "about equal"
    UNKNOWN = "not known"
    """The model has no intervals."""


@dataclass(frozen=True)
class Figure:
    """A score with its interval, on a scale; `paired` is the half width around differences."""

    mos: float
    scale: MosScale
    half_width: float | None = None
    paired: float | None = None

    @property
    def low(self) -> float | None:
        """Lower end of the interval; None without calibration."""
        return None if self.half_width is None else self.scale.clamp(self.mos - self.half_width)

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.scale.clamp(self.mos + self.half_width)

    def over(self, other: Figure) -> Difference:
        """Of this one, which is not lower than the other."""
        if self.paired is None:
            return Difference.UNKNOWN
        return Difference.CLEAR if self.mos - other.mos > self.paired else Difference.EQUAL


@dataclass(frozen=True)
class RankedImage:
    """One of the images that are compared."""

    index: int
    """Among the images that were given, from 0."""
    name: str
    assessment: Assessment

    def figure(self, order: str, weights: Mapping[Aspect, float]) -> Figure:
        """Its score in an order.

        The overall score is the weighted mean of the aspects that are judged, on their scale or, if they
        have several, on that from 1 to 5. Its intervals are weighted means, too: as if the aspects' errors
        went together, so rather too wide.
        """
        figures = {
            aspect: Figure(
                result.mos,
                result.scale,
                result.calibration.half_width if result.calibration else None,
                result.calibration.paired_half_width(result.scale) if result.calibration else None,
            )
            for aspect, result in self.assessment.aspects.items()
        }
        if order != OVERALL:
            return figures[Aspect(order)]
        scales = {figure.scale for figure in figures.values()}
        scale = scales.pop() if len(scales) == 1 else COMMON_SCALE
        shares = _shares(weights, figures)

        def mean(values: Mapping[Aspect, float | None]) -> float | None:
            if any(values[aspect] is None for aspect in shares):
                return None
            unit = sum(
                share * (values[a] or 0.0) / (figures[a].scale.high - figures[a].scale.low)
                for a, share in shares.items()
            )
            return unit * (scale.high - scale.low)

        above_low = mean({a: f.mos - f.scale.low for a, f in figures.items()}) or 0.0
        return Figure(
            round(scale.low + above_low, MOS_DIGITS),
            scale,
            mean({a: f.half_width for a, f in figures.items()}),
            mean({a: f.paired for a, f in figures.items()}),
        )


@dataclass(frozen=True)
class Standing:
    """A image's place in one order."""

    place: int
    """From 1; images with the same score share one."""
    image: RankedImage
    figure: Figure
    to_first: Difference | None
    """How sure it is that the first is better; None for the first itself."""
    to_next: Difference | None
    """How sure it is that this one is better than the next; None for the last."""


@dataclass(frozen=True)
class LeftOut:
    """An image that is not ranked, and a sentence on why."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """Images of one prompt that were assessed by one model."""

    prompt: str | None
    images: tuple[RankedImage, ...] = ()
    """In the order in which they were given."""
    left_out: tuple[LeftOut, ...] = ()
    weights: Mapping[Aspect, float] = field(default_factory=lambda: dict.fromkeys(Aspect, 1.0))
    """Of the aspects in the overall score."""

    @property
    def orders(self) -> tuple[str, ...]:
        """What it can be ordered by: OVERALL, and the aspects that are judged."""
        aspects = self.images[0].assessment.aspects if self.images else ()
        return (OVERALL, *map(str, aspects))

    def places(self, order: str = OVERALL) -> list[Standing]:
        """The images, the best first. Raises InputError for an aspect that is not judged, or weights
        that leave nothing."""
        if not self.images:
            return []
        if order not in self.orders:
            without = "" if self.prompt else " without a prompt"
            raise InputError(f"There is no order by {order}{without}; there are {', '.join(self.orders)}.")
        figures = {each.index: each.figure(order, self.weights) for each in self.images}
        ordered = sorted(self.images, key=lambda each: (-figures[each.index].mos, each.index))
        best = figures[ordered[0].index]
        places: list[Standing] = []
        for number, image in enumerate(ordered, 1):
            figure = figures[image.index]
            following = figures[ordered[number].index] if number < len(ordered) else None
            same = bool(places) and places[-1].figure.mos == figure.mos
            places.append(
                Standing(
                    places[-1].place if same else number,
                    image,
                    figure,
                    best.over(figure) if number > 1 else None,
                    figure.over(following) if following else None,
                )
            )
        return places

    def to_dict(self, order: str = OVERALL) -> dict[str, Any]:
        """Plain values, for JSON."""
        places = self.places(order)
        return {
            "prompt": self.prompt,
            "order": order,
            "weights": {str(aspect): weight for aspect, weight in self.weights.items()},
            "interval_level": INTERVAL_LEVEL,
            "images": [
                {
                    "place": each.place,
                    "image": each.image.name,
                    "to_first": each.to_first,
                    "to_next": each.to_next,
                    "overall": _rounded(self._overall(each.image)),
                    "aspects": {
                        str(result.aspect): result.to_dict()
                        for result in each.image.assessment.aspects.values()
                    },
                }
                for each in places
            ],
            "left_out": [{"image": each.name, "reason": each.reason} for each in self.left_out],
            "model": places[0].image.assessment.model if places else None,
            "learned_from": places[0].image.assessment.learned_from if places else None,
        }

    def to_rows(self, order: str = OVERALL) -> list[dict[str, str]]:
        """Texts for a table, by RANKING_COLUMNS; those that are left out come last, with `error`."""
        shared = {"prompt": self.prompt or "", "order": order}
        shared["weights"] = ", ".join(f"{aspect} {weight:g}" for aspect, weight in self.weights.items())
        rows = []
        for each in self.places(order):
            overall = _rounded(self._overall(each.image))
            rows.append(
                shared
                | {
                    "place": str(each.place),
                    "image": each.image.name,
                    "to_first": each.to_first or "",
                    "to_next": each.to_next or "",
                    "model": each.image.assessment.model,
                    "learned_from": each.image.assessment.learned_from,
                    "overall": f"{overall['mos']:.3f}",
                }
                | {f"overall_{end}": f"{overall[end]:.3f}" for end in ("low", "high") if end in overall}
                | each.image.assessment.to_cells()
            )
        return rows + [shared | {"image": each.name, "error": each.reason} for each in self.left_out]

    def _overall(self, image: RankedImage) -> Figure:
        return image.figure(OVERALL, self.weights)


def rankings_csv(rankings: Sequence[Ranking], order: str = OVERALL) -> str:
    """A table of all images, with a header."""
    rows = (row for ranking in rankings for row in ranking.to_rows(order))
    return csv_text(RANKING_COLUMNS, ([row.get(name, "") for name in RANKING_COLUMNS] for row in rows))


# --- assessing ---------------------------------------------------------------------------------


class AssessesAll(Protocol):
    """What m3agiqa.assessor.Assessor does here."""

    def assess_all(
        self, subjects: Sequence[tuple[ImageSource, str | None]], stop: Callable[[], bool] = ...
    ) -> list[Assessment | M3AgiqaError]: ...


def check_count(count: int) -> None:
    """Raises InputError for too few images to compare, or too many."""
    if not MIN_IMAGES <= count <= MAX_IMAGES:
        given = f"{counted(count, 'image was', 'images were')} given"
        advice = " Compare them in groups, then the best of each group." if count > MAX_IMAGES else ""
        raise InputError(f"{given}; {MIN_IMAGES} to {MAX_IMAGES} can be compared at once.{advice}")


def ranked_as_assessed(
    assessor: AssessesAll,
    images: Sequence[ImageSource],
    prompt: str | None,
    weights: Mapping[Aspect, float] | None = None,
    names: Sequence[str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Ranking]:
    """The ranking as it grows with every batch of images, the whole one last.

    `names` are those of the images, by default their paths or numbers. An image that cannot be read, or shows
    pixel by pixel what another one does, is left out. Raises InputError for a number of images that cannot be
    compared, for wrong weights, and where no image can be judged; Stopped once `stop` answers True.
    """
    check_count(len(images))
    names = names or [_name(image, index) for index, image in enumerate(images)]
    ranking = Ranking(prompt, weights=checked_weights(weights))
    waiting, left_out = _distinct(images, names)
    ranking = replace(ranking, left_out=tuple(left_out))
    size = 1
    while waiting:
        batch, waiting, size = waiting[:size], waiting[size:], BATCH_SIZE
        raise_if_stopped(stop)
        judged = assessor.assess_all([(images[index], prompt) for index in batch], stop)
        for index, answer in zip(batch, judged, strict=True):
            if isinstance(answer, Assessment):
                one = RankedImage(index, names[index], answer)
                ranking = replace(ranking, images=(*ranking.images, one))
            else:
                failed = LeftOut(index, names[index], str(answer))
                ranking = replace(ranking, left_out=(*ranking.left_out, failed))
        if ranking.images:
            ranking.places()  # wrong weights are told with the first image
        yield ranking
    if not ranking.images:
        reasons = " ".join(f"{each.name}: {each.reason}" for each in ranking.left_out[:3])
        raise InputError(f"None of the {len(images)} images can be judged. {reasons}")


def _distinct(images: Sequence[ImageSource], names: Sequence[str]) -> tuple[list[int], list[LeftOut]]:
    """The numbers of the images to assess, and those that cannot be read or come twice."""
    first: dict[bytes, int] = {}
    left_out: list[LeftOut] = []
    for index, source in enumerate(images):
        try:
            image = open_image(source)
        except InputError as error:
            left_out.append(LeftOut(index, names[index], str(error)))
            continue
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        other = first.setdefault(pixels, index)
        if other != index:
            reason = f"The same picture as {names[other]}, pixel by pixel; it is ranked once."
            left_out.append(LeftOut(index, names[index], reason))
    return list(first.values()), left_out


def checked_weights(weights: Mapping[Any, float] | None) -> dict[Aspect, float]:
    """Equal ones for None. Raises InputError for weights that are negative, no numbers, or of no aspect."""
    if weights is None:
        return dict.fromkeys(Aspect, 1.0)
    checked: dict[Aspect, float] = {}
    for name, weight in weights.items():
        if name not in list(Aspect):
            raise InputError(f"There is no aspect {name!r} to give a weight; there are {', '.join(Aspect)}.")
        if not 0 <= weight < float("inf"):
            raise InputError(f"The weight of {name} is {weight:g}; give a number from 0 up.")
        checked[Aspect(name)] = float(weight)
    return checked


def parse_weights(text: str | None) -> dict[Aspect, float]:
    """From a text such as "quality=2,correspondence=1"; equal ones for none. Raises InputError."""
    if not (text or "").strip():
        return checked_weights(None)
    weights = {}
    for part in str(text).split(","):
        name, _, number = part.partition("=")
        weights[name.strip().lower()] = decimal_number(number.strip(), f"The weight of {name.strip()}")
    return checked_weights(weights)


def _shares(weights: Mapping[Aspect, float], judged: Mapping[Aspect, object]) -> dict[Aspect, float]:
    """Of the judged aspects in the overall score; aspects without a weight do not count."""
    own = {aspect: weights.get(aspect, 0.0) for aspect in judged if weights.get(aspect, 0.0) > 0}
    if not own:
        raise InputError(
            f"Nothing is left of the overall score; give {aspects_text(judged, 'or')} a weight above 0."
        )
    return {aspect: weight / sum(own.values()) for aspect, weight in own.items()}


def _name(image: ImageSource, index: int) -> str:
    return str(image) if isinstance(image, str | Path) else f"image {index + 1}"


def _rounded(figure: Figure) -> dict[str, float]:
    figures = {"mos": figure.mos, "low": figure.low, "high": figure.high}
    return {name: round(value, MOS_DIGITS) for name, value in figures.items() if value is not None}
