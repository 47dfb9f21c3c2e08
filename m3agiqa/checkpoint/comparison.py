"""A new model beside the one that it is to replace, measured on the same held-out images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from m3agiqa.aspects import Aspect
from m3agiqa.json_lines import without_nan
from m3agiqa.metrics import bootstrap_interval

METRIC_NAMES = {"srcc": "SRCC", "plcc": "PLCC", "rmse": "RMSE", "bias": "mean error"}
"""What people call the fields of Agreement."""
PART_NAMES = {"people": "scored by people", "data": "of the data set"}
VISIBLE_GAIN = 0.0005
"""Less is not seen in the digits that are shown."""


MIN_DESCRIBED_IMAGES = 30  # by people, without which words do not learn (MIN_TO_RESAMPLE held out, too)
MIN_TO_RESAMPLE = 5  # images: of fewer, resampling says that the interval is narrow whatever the truth


@dataclass(frozen=True)
class Agreement:
    """How far predictions agree with what people say; a correlation that says nothing is NaN."""

    srcc: float
    plcc: float
    rmse: float
    bias: float
    """Mean of predicted minus true MOS."""


class Change(NamedTuple):
    """One metric for readers, before and after; a dash where there is no number."""

    before: str
    after: str
    verdict: str
    """better, worse, or empty where the shown digits do not tell."""


@dataclass(frozen=True)
class Compared:
    """Two models on the same held-out images of one aspect."""

    part: str
    """Which images: "people" has those that annotators scored, "data" the data set's own test part."""
    aspect: Aspect
    n: int
    before: Agreement | None
    """None where the model before does not judge this aspect."""
    after: Agreement
    rmse_fall: tuple[float, float] | None = None
    """95 % interval of what RMSE loses from before to after, in points; None where that is not known."""

    @property
    def name(self) -> str:
        """Of the row in a table."""
        return f"{self.aspect}, {PART_NAMES.get(self.part, self.part)}"

    def changes(self) -> list[Change]:
        """The cells of the row, by METRIC_NAMES."""
        return [self._change(metric) for metric in METRIC_NAMES]

    def _change(self, metric: str) -> Change:
        before = math.nan if self.before is None else getattr(self.before, metric)
        after = getattr(self.after, metric)
        gain = after - before if metric in ("srcc", "plcc") else abs(before) - abs(after)
        verdict = "" if math.isnan(gain) or abs(gain) < VISIBLE_GAIN else "better" if gain > 0 else "worse"
        return Change(_shown(metric, before), _shown(metric, after), verdict)


@dataclass(frozen=True)
class ComparedOrder:
    """Two models on the same held-out pairs of images, of which people have picked the better one."""

    aspect: Aspect
    n: int
    """Pairs."""
    before: float
    """Share of pairs in people's order."""
    after: float
    rise: tuple[float, float] | None = None
    """95 % interval of what the share gains; None where that is not known."""

    def __str__(self) -> str:
        known = "unknown" if self.rise is None else "{:.2f} to {:.2f}".format(*self.rise)
        shares = f"{self.before:.0%} → {self.after:.0%} in people's order"
        return f"{self.aspect}, {self.n:,} pairs of picks: {shares}, interval of the rise {known}".replace(
            "-", "−"
        )


@dataclass(frozen=True)
class WordMeasures:
    """A model's descriptions beside people's of the same held-out images."""

    loss: float
    """Of people's descriptions, in nats per token."""
    grounded: float
    """Share of content words that the prompt or people's description has."""
    tone_error: float
    """Mean distance of tone and people's score, both from -1 to 1; NaN without scores."""


@dataclass(frozen=True)
class ComparedWords:
    """How a model describes before and after it has learned from people's descriptions."""

    n: int
    """Descriptions by people, all of held-out images."""
    before: WordMeasures
    after: WordMeasures
    worse: str
    """In what the new words were worse, so that those before were kept; "" if the new ones serve."""

    @property
    def sentence(self) -> str:
        """For people."""
        old, new = self.before, self.after
        tones = f", tone error {old.tone_error:.2f} → {new.tone_error:.2f}"
        changes = (
            f"loss per token {old.loss:.2f} → {new.loss:.2f}, grounded words {old.grounded:.0%} → "
            f"{new.grounded:.0%}{'' if math.isnan(old.tone_error) else tones}"
        )
        outcome = f"as before, for {self.worse}" if self.worse else "learned from people"
        return f"Words: {outcome} ({self.n:,} held-out descriptions: {changes})."

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> ComparedWords:
        """Raises ValueError, TypeError or KeyError for what is no such comparison."""
        before, after = (
            WordMeasures(**{k: math.nan if v is None else float(v) for k, v in each.items()})
            for each in (facts["before"], facts["after"])
        )
        return cls(int(facts["n"]), before, after, str(facts["worse"]))


@dataclass(frozen=True)
class ChangedScore:
    """What both models say of one aspect of an image, in points of MOS."""

    aspect: Aspect
    before: float
    after: float
    mos: float | None
    """People's; None where they are too few to learn from, so that the aspect's predictor stayed."""
    words: tuple[str, str]
    """Rating words of the scores before and after."""
    texts: tuple[str, str] | None = None
    """Descriptions before and after; None where they are the same."""

    @property
    def changed_words(self) -> float:
        """How far the descriptions differ, from 0 to 1 for no word in common."""
        if self.texts is None:
            return 0.0
        before, after = (text.split() for text in self.texts)
        return 1 - SequenceMatcher(None, before, after).ratio()


@dataclass(frozen=True)
class ChangedImage:
    """An image of which the two models say something different."""

    image: str
    """Name of its file."""
    prompt: str | None
    is_held_out: bool
    """Whether the new model has not learned from it."""
    scores: tuple[ChangedScore, ...]

    @property
    def change(self) -> tuple[float, float]:
        """The largest change of a score, in the digits that are shown, and then of a description."""
        points = max(abs(score.after - score.before) for score in self.scores)
        return round(points, 1), max(score.changed_words for score in self.scores)


@dataclass(frozen=True)
class Comparison:
    """A model beside the one that it is to replace."""

    before: str
    """Title of the model."""
    after: str
    rows: tuple[Compared, ...]
    changed: tuple[ChangedImage, ...] = ()
    """The images whose scores, and then words, changed most, the most first."""
    words: ComparedWords | None = None
    """None where words were not trained."""
    orders: tuple[ComparedOrder, ...] = ()
    """Of aspects that were learned from people's picks alone."""

    @property
    def sentence(self) -> str:
        """What changed on held-out images that people judged, and whether that is for the better."""
        known = "; ".join(text for _, text in self._evidence)
        return f"Not better: {self.doubt}." if self.doubt else f"Better: {known}."

    @property
    def _evidence(self) -> list[tuple[tuple[float, float] | None, str]]:
        """Intervals of what was gained on what people judged, and what they are told of it."""
        people = [row for row in self.rows if row.part == "people" and row.before is not None]
        scored = [(row.rmse_fall, _fall(row)) for row in people]
        return [*scored, *((order.rise, str(order)) for order in self.orders)]

    @property
    def doubt(self) -> str:
        """Why the new model is not known to be better on held-out people's scores; "" if it is.

        It is where RMSE falls for some aspect, or where picks alone were learned from more pairs come into
        people's order, with the whole 95 % interval, and none gets worse so.
        """
        intervals = [interval for interval, _ in self._evidence if interval is not None]
        if any(low > 0 for low, _ in intervals) and all(high >= 0 for _, high in intervals):
            return ""
        if not self._evidence:
            return "no held-out image was scored by people and judged by both models"
        return "; ".join(text for _, text in self._evidence)

    def __str__(self) -> str:
        """A table for a terminal."""
        heads = "".join(f"{label:>20}" for label in METRIC_NAMES.values())
        lines = [f"Before: {self.before}. After: {self.after}."]
        lines += [f"{'held-out images':34}{'n':>6}{heads}"] if self.rows else []
        for row in self.rows:
            cells = "".join(f"{f'{change.before} → {change.after}':>20}" for change in row.changes())
            lines.append(f"{row.name:34}{row.n:>6}{cells}".replace("−", "-"))
        lines.append(self.sentence)
        if self.words is not None:
            lines.append(self.words.sentence)
        return "\n".join(lines)

    def to_records(self) -> list[dict[str, Any]]:
        """Rows of a CSV: every metric before and after."""
        return [
            {"part": row.part, "aspect": str(row.aspect), "n": row.n}
            | {
                f"{metric}_{when}": None if agreement is None else getattr(agreement, metric)
                for metric in METRIC_NAMES
                for when, agreement in (("before", row.before), ("after", row.after))
            }
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        facts: dict[str, Any] = without_nan(asdict(self))
        return facts

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Comparison:
        """Raises ValueError, TypeError or KeyError for what `to_dict` has not made."""
        rows = [
            Compared(
                **{
                    **row,
                    "aspect": Aspect(row["aspect"]),
                    "before": _agreement(row["before"]),
                    "after": _agreement(row["after"]),
                    "rmse_fall": _interval(row.get("rmse_fall")),
                }
            )
            for row in facts["rows"]
        ]
        changed = [
            ChangedImage(**{**image, "scores": tuple(map(_changed_score, image["scores"]))})
            for image in facts.get("changed", ())
        ]
        words = facts.get("words") and ComparedWords.from_dict(facts["words"])
        orders = [
            ComparedOrder(
                **{**order, "aspect": Aspect(order["aspect"]), "rise": _interval(order.get("rise"))}
            )
            for order in facts.get("orders", ())
        ]
        tuples = {"rows": tuple(rows), "changed": tuple(changed), "orders": tuple(orders)}
        return cls(**{**facts, **tuples, "words": words})


def _shown(metric: str, value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if metric == 'bias' else ''}.3f}".replace("-", "−")


def _fall(row: Compared) -> str:
    assert row.before is not None
    fall = row.before.rmse - row.after.rmse
    known = "unknown" if row.rmse_fall is None else "{:.2f} to {:.2f}".format(*row.rmse_fall)
    change = f"RMSE {'falls' if fall >= 0 else 'rises'} by {abs(fall):.2f}, interval of the fall {known}"
    return f"{row.aspect}, {row.n:,} images: {change}".replace("-", "−")


def rmse_fall(
    before: Sequence[float], after: Sequence[float], true: Sequence[float]
) -> tuple[float, float] | None:
    """95 % interval of RMSE before less after, by bootstrap over the images; None if these are too few.

    All have shape [n], in points of MOS.
    """
    if len(true) < MIN_TO_RESAMPLE:
        return None
    old, new = np.square(np.array([before, after], dtype=float) - np.array(true, dtype=float))
    return bootstrap_interval(lambda b, a: float(np.sqrt(np.mean(b)) - np.sqrt(np.mean(a))), old, new)


def interval_of_rise(gains: ArrayLike, groups: ArrayLike) -> tuple[float, float] | None:
    """95 % interval of the mean of gains [n], by bootstrap over their groups [n]; None for too few."""
    members = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.bincount(members, np.asarray(gains, dtype=float)), np.bincount(members)
    if len(sums) < MIN_TO_RESAMPLE:
        return None
    return bootstrap_interval(lambda gained, n: float(np.sum(gained) / np.sum(n)), sums, counts)


def _interval(facts: Sequence[float] | None) -> tuple[float, float] | None:
    return None if facts is None else (float(facts[0]), float(facts[1]))


def _changed_score(facts: dict[str, Any]) -> ChangedScore:
    words, texts = tuple(facts["words"]), facts.get("texts")
    texts = None if texts is None else tuple(texts)
    return ChangedScore(**{**facts, "aspect": Aspect(facts["aspect"]), "words": words, "texts": texts})


def _agreement(facts: dict[str, Any] | None) -> Agreement | None:
    if facts is None:
        return None
    return Agreement(**{name: math.nan if value is None else float(value) for name, value in facts.items()})
