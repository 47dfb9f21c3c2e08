"""The model before and the new one on the same held-out images: those that people scored, and the data's.

Beside that, the images whose scores, then words, changed most, also those that the new model learned from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.checkpoint.card import Card, read_card
from m3agiqa.checkpoint.comparison import (
    Agreement,
    ChangedImage,
    ChangedScore,
    Compared,
    ComparedOrder,
    Comparison,
    interval_of_rise,
    rmse_fall,
)
from m3agiqa.checkpoint.predictor_weights import load_predictor
from m3agiqa.metrics import plcc, rmse, srcc
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample
from training.data.variants import Variant, own_variants
from training.run import RunFolder
from training.stages.adapt_to_preferences import in_order, pair_groups
from training.stages.describe import describe
from training.stages.fit import predict
from training.stages.fit_data import Target, preferred_targets
from training.stages.hidden_cache import backbone_id

MOST_CHANGED = 10  # images that are shown

Said = dict[str, tuple[float, str | None]]
"""MOS and description by the samples' ids."""


def compare(run: RunFolder) -> Comparison:
    """Both models on the run's test split, in points of its scale.

    If the model before has another backbone than the run, that generates its descriptions first. Raises
    WeightsError where it is damaged.
    """
    card = read_card(run.baseline)
    scored = run.annotated.scored if run.annotated else {}
    identity = backbone_id(card.backbone, run.baseline)
    rows, changed = [], defaultdict(list)
    for aspect in run.aspects:
        shown = [
            target
            for target in run.targets(aspect)
            if target.sample.split == "test"
            or (
                aspect in scored.get(target.sample.id, ())
                and own_variants([target.sample], [aspect])[0].key(aspect, identity) in run.cache
            )
        ]
        raw = predict(run.best(aspect), [target.states for target in shown])
        after: Said = {
            target.sample.id: (run.scale.clamp(value), target.description)
            for target, value in zip(shown, raw, strict=True)
        }
        before = _said_before(run, card, aspect, [target.sample for target in shown])
        test = [target for target in shown if target.sample.split == "test"]
        parts = {
            "people": [t for t in test if aspect in scored.get(t.sample.id, ())],
            "data": [t for t in test if aspect not in scored.get(t.sample.id, ())],
        }
        for part, members in parts.items():
            ids, true = [t.sample.id for t in members], [t.mos for t in members]
            if ids:
                new_scores = [after[each][0] for each in ids]
                old, fall = None, None
                if before is not None:
                    old_scores = [before[each][0] for each in ids]
                    old, fall = _agreement(old_scores, true), rmse_fall(old_scores, new_scores, true)
                rows.append(Compared(part, aspect, len(ids), old, _agreement(new_scores, true), fall))
        if before is not None:
            for target in shown:
                name = target.sample.id
                changed[name].append(_changed(aspect, target.mos, before[name], after[name], run.scale))
    rows.sort(key=lambda row: row.part != "people")
    samples = {sample.id: sample for sample in run.samples}
    most = _most_changed(samples, changed)
    for name, score in _changed_though_kept(run, card, [samples[name] for name in most]):
        changed[name].append(score)
    images = _most_changed(samples, {name: changed[name] for name in most}).values()
    title = f"{run.config.name} {run.version}"
    orders = tuple(order for aspect in run.by_picks if (order := _order(run, card, aspect)) is not None)
    return Comparison(card.title, title, tuple(rows), tuple(images), run.words_compared, orders)


def _order(run: RunFolder, card: Card, aspect: Aspect) -> ComparedOrder | None:
    """Held-out pairs in people's order; None where the model before, or a pair, cannot be judged by it."""
    after = run.preferred(aspect, "test")
    if aspect not in card.predictors or not after:
        return None
    pairs, identity = run.pairs("test"), backbone_id(card.backbone, run.baseline)
    named = {name for pair in pairs for name in pair}
    variants = own_variants([sample for sample in run.samples if sample.id in named], [aspect])
    describe(variants, card.backbone, run.baseline, run.cache)
    predictor = load_predictor(run.baseline, aspect, card.predictors[aspect])
    old = _in_order(predictor, preferred_targets(variants, pairs, run.cache, identity, aspect))
    new = _in_order(run.best(aspect), after)
    groups = pair_groups((each.sample, each.worse.sample) for each in after if each.worse)
    return ComparedOrder(
        aspect, len(new), float(old.mean()), float(new.mean()), interval_of_rise(new - old, groups)
    )


def _in_order(predictor: Predictor, pairs: Sequence[Target]) -> NDArray[np.float64]:
    worse = predict(predictor, [each.worse.states for each in pairs if each.worse])
    return in_order(np.array(predict(predictor, [each.states for each in pairs])) - np.array(worse))


def _said_before(run: RunFolder, card: Card, aspect: Aspect, samples: list[Sample]) -> Said | None:
    """What the model before says of some images; None where it does not judge the aspect."""
    if aspect not in card.predictors:
        return None
    variants = own_variants(samples, [aspect])
    describe(variants, card.backbone, run.baseline, run.cache)
    predictor = load_predictor(run.baseline, aspect, card.predictors[aspect])
    said = _said(run, variants, aspect, backbone_id(card.backbone, run.baseline), predictor)
    own = card.scales[aspect]
    return {name: (run.scale.from_unit(own.to_unit(value)), text) for name, (value, text) in said.items()}


def _said(
    run: RunFolder, variants: Sequence[Variant], aspect: Aspect, identity: str, predictor: Predictor
) -> Said:
    """By a predictor on the hidden states of images that a backbone has described."""
    keys = {variant.sample.id: variant.key(aspect, identity) for variant in variants}
    states = run.cache.states(keys.values())
    scores = predict(predictor, [states[key] for key in keys.values()])
    texts = [run.cache.entries[key].description for key in keys.values()]
    return dict(zip(keys, zip(scores, texts, strict=True), strict=True))


def _changed_though_kept(
    run: RunFolder, card: Card, samples: list[Sample]
) -> Iterator[tuple[str, ChangedScore]]:
    """What new words change of aspects that keep their predictor, by the samples' ids."""
    if run.backbone_identity == backbone_id(card.backbone, run.baseline):
        return
    run.describe(own_variants(samples, [*run.kept]), run.cache)
    for aspect in run.kept:
        variants = own_variants(samples, [aspect])
        after = _said(run, variants, aspect, run.identity, run.start_predictor(aspect))
        for name, old in (_said_before(run, card, aspect, samples) or {}).items():
            score, text = after[name]
            yield name, _changed(aspect, None, old, (run.scale.clamp(score), text), run.scale)


def _changed(
    aspect: Aspect,
    mos: float | None,
    before: tuple[float, str | None],
    after: tuple[float, str | None],
    scale: MosScale,
) -> ChangedScore:
    words = str(scale.rating(before[0])), str(scale.rating(after[0]))
    texts = None if before[1] == after[1] else (before[1] or "", after[1] or "")
    return ChangedScore(aspect, scale.clamp(before[0]), after[0], mos, words, texts)


def _most_changed(
    samples: Mapping[str, Sample], scores: Mapping[str, Sequence[ChangedScore]]
) -> dict[str, ChangedImage]:
    """MOST_CHANGED images by their samples' ids, the most changed first."""
    images = {
        name: ChangedImage(sample.image.name, sample.prompt, sample.split == "test", tuple(scores[name]))
        for name, sample in samples.items()
        if name in scores
    }
    ordered = sorted(images, key=lambda name: images[name].change, reverse=True)
    return {name: images[name] for name in ordered[:MOST_CHANGED]}


def _agreement(predicted: Sequence[float], true: Sequence[float]) -> Agreement:
    bias = fmean(p - t for p, t in zip(predicted, true, strict=True))
    return Agreement(srcc(predicted, true), plcc(predicted, true), rmse(predicted, true), bias)
