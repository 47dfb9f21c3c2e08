"""Samples with people's opinions: their mean per aspect, and the description that stands for it best."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

import pandas as pd
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.statistics.doubts import doubts
from annotation.statistics.mos import mean_opinions, on_one_scale
from annotation.store import Store
from annotation.store.corrections import model_texts, same_text
from annotation.store.current_responses import current_responses
from annotation.store.models import Image, Item, Prompt
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.errors import InputError
from m3agiqa.grouping import connected_groups, fold_prompt
from m3agiqa.samples import Sample

Method = Literal["p910", "mean"]
MOS_METHODS: dict[Method, str] = {
    "p910": "ITU-T P.910 (biases removed, consistent annotators count more), outliers screened by BT.500",
    "mean": "plain mean of all scores",
}
"""How several people's scores become one."""

TEST_EVERY = 5
"""One prompt in about so many is held out: four parts for training to one for test, as in the paper."""
MOS_DIGITS = 4  # of a MOS, so that the order of additions does not make another file


@dataclass(frozen=True)
class Filters:
    """Which opinions are wanted."""

    aspects: tuple[Aspect, ...] = tuple(Aspect)
    min_raters: int = 1
    """Fewer people say too little about an aspect of an image."""
    generators: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    """Names of imports, or "demo"."""
    gold: bool = False
    """Whether calibration images are wanted, too."""
    all_texts: bool = False
    """Whether descriptions of one word, under many images or in another language are wanted, too."""

    def __post_init__(self) -> None:
        if self.min_raters < 1:
            raise InputError(f"At least {self.min_raters} annotators makes no sense; give 1 or more.")
        if not self.aspects:
            raise InputError("No aspect was chosen; choose one at least.")


@dataclass(frozen=True)
class HumanSamples:
    """Samples whose images lie in the store, and the opinions behind them.

    `opinions` has the columns of annotation.store.current_responses, and `sample`, `file` (of the image) and
    `common_score` (on COMMON_SCALE).
    """

    samples: list[Sample]
    opinions: pd.DataFrame
    texts_left_out: int
    """Descriptions that tell nothing of their image (annotation.statistics.doubts)."""


def human_samples(
    store: Store, filters: Filters, method: Method = "p910", *, may_be_unscored: bool = False
) -> HumanSamples:
    """What people think of the wanted images, in the order of the samples' ids.

    A MOS rests on all opinions in the database, whatever is wanted of them here, for they all tell of the
    annotators' habits. Raises InputError if nothing is left; where nobody has scored anything, unless this
    may be.
    """
    if method not in MOS_METHODS:
        raise InputError(f"There is no MOS method {method!r}; there are {', '.join(MOS_METHODS)}.")
    with store.database.reading() as session:
        responses = current_responses(session)
        part_of = split_of_items(session)
        shown = model_texts(session)
        files = dict(session.execute(select(Image.sha256, Image.file)).tuples().all())
    doubtful = set() if filters.all_texts else doubts(responses, shown).texts
    responses["common_score"] = on_one_scale(responses)["score"]
    responses["file"] = responses["image_sha256"].map(files)
    responses["sample"] = [
        _sample_id(image, prompt)
        for image, prompt in zip(responses["image_sha256"], responses["prompt"], strict=True)
    ]
    wanted = responses[_wanted(responses, filters)].sort_values(
        ["sample", "aspect", "annotator"], kind="stable"
    )
    means = {aspect: _means(responses[responses["aspect"] == aspect], method) for aspect in filters.aspects}

    samples, kept = [], []
    for sample_id, of_item in groupby(wanted.itertuples(), key=attrgetter("sample")):
        rows: list[Any] = list(of_item)
        mos, raters, descriptions = {}, {}, {}
        for aspect in filters.aspects:
            of_aspect = [row for row in rows if row.aspect == aspect]
            mean = means[aspect].get(rows[0].item_id)
            if not of_aspect or mean is None or mean.raters < filters.min_raters:
                continue
            kept += [row.Index for row in of_aspect]
            mos[aspect], raters[aspect] = round(COMMON_SCALE.clamp(mean.mos), MOS_DIGITS), mean.raters
            described = [row for row in of_aspect if row.correction_id not in doubtful]
            text = _best_description(described, mean.mos, shown)
            if text is not None:
                descriptions[aspect] = text
        if mos:
            samples.append(
                Sample(
                    id=sample_id,
                    image=store.images.path(rows[0].file),
                    prompt=rows[0].prompt or None,
                    mos=mos,
                    descriptions=descriptions,
                    split=part_of[rows[0].item_id],
                    generator=rows[0].generator,
                    source=rows[0].source,
                    raters=raters,
                )
            )
    if not samples and not (may_be_unscored and responses.empty):
        raise InputError(_nothing(responses, filters))
    opinions = wanted.loc[kept]
    return HumanSamples(samples, opinions, int(opinions["correction_id"].isin(doubtful).sum()))


def _sample_id(image_sha256: str, prompt: str) -> str:
    """The same for the same image and prompt, in whatever database."""
    return f"{image_sha256[:16]}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def _wanted(responses: pd.DataFrame, filters: Filters) -> pd.Series:
    wanted = responses["aspect"].isin([str(aspect) for aspect in filters.aspects])
    wanted &= (responses["prompt"] != "") | (responses["aspect"] != Aspect.CORRESPONDENCE)
    if filters.generators is not None:
        wanted &= responses["generator"].isin(filters.generators)
    if filters.sources is not None:
        wanted &= responses["source"].isin(filters.sources)
    return wanted if filters.gold else wanted & ~responses["gold"]


def _nothing(responses: pd.DataFrame, filters: Filters) -> str:
    if responses.empty:
        return "There are no annotations yet: nobody has scored an image."
    people = "an annotator" if filters.min_raters == 1 else f"{filters.min_raters} annotators"
    return (
        f"None of the images asked for was scored by {people}; ask for fewer annotators, "
        "or for other aspects, generators or sources."
    )


# --- means -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mean:
    mos: float
    raters: int


def _means(of_aspect: pd.DataFrame, method: Method) -> dict[int, _Mean]:
    """By item, on COMMON_SCALE."""
    scores = of_aspect[["item_id", "annotator"]].assign(score=of_aspect["common_score"])
    if method == "p910":
        return {item: _Mean(each.mos, each.raters) for item, each in mean_opinions(scores).items()}
    plain = scores.groupby("item_id")["score"].agg(["mean", "count"])
    return {int(item): _Mean(float(mean), int(count)) for item, mean, count in plain.itertuples(name=None)}


# --- descriptions ------------------------------------------------------------------------------


def _best_description(responses: Iterable[Any], mos: float, shown: dict[int, str]) -> str | None:
    """The text that goes with a MOS; None if nobody wrote or confirmed one.

    What people wrote themselves goes before a model's text that they confirmed ("this is right"); then counts
    whose own score is nearest to the MOS, then who said it last. A model's text that was merely left standing
    beside another score is nobody's opinion.
    """
    candidates = []
    for row in responses:
        models = shown.get(row.correction_id)
        text = row.description or (models if row.agrees else None)
        own = text is not None and not row.agrees and not same_text(text, models)
        if text is not None and (own or row.agrees):
            candidates.append(((not own, abs(row.common_score - mos), -row.correction_id), text))
    return min(candidates)[1] if candidates else None


# --- training and test -------------------------------------------------------------------------


def split_of_items(session: Session) -> dict[int, str]:
    """ "train" or "test" for every item, by id, and ever the same one for the same database.

    Images of one prompt are in one part, and so are all prompts of one image. A hash of the prompt decides;
    of prompts that share an image, the earliest in the database decides for all of them.
    """
    statement = select(Item.id, Item.image_sha256, Prompt.text).join(Item.prompt).order_by(Item.id)
    keys, images = {}, []
    for item_id, image, text in session.execute(statement):
        prompt = fold_prompt(text)
        keys[item_id] = f"prompt {prompt}" if prompt else f"image {image}"
        images.append(f"image {image}")
    groups = connected_groups(zip(keys.values(), images, strict=True))
    names = list(keys.values())
    return {item_id: _part(names[first]) for item_id, first in zip(keys, groups, strict=True)}


def _part(key: str) -> str:
    digest = hashlib.sha256(key.encode()).digest()
    return "train" if int.from_bytes(digest[:8]) % TEST_EVERY else "test"
