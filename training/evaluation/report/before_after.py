"""The model before and the new one on the same held-out images: those that people scored, and the data's."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import Card, load_predictor, read_card
from m3agiqa.checkpoint.comparison import Agreement, Compared, Comparison, rmse_fall
from m3agiqa.metrics import plcc, rmse, srcc
from training.data.variants import own_variants
from training.run import RunFolder
from training.stages.describe import describe
from training.stages.fit import predict
from training.stages.fit_data import targets
from training.stages.hidden_cache import backbone_id


def compare(run: RunFolder) -> Comparison:
    """Both models on the run's test split, in points of its scale.

    If the model before has another backbone than the run, that generates its descriptions first. Raises
    WeightsError where it is damaged.
    """
    card = read_card(run.baseline)
    scored = run.annotated.scored if run.annotated else {}
    rows = []
    for aspect in run.aspects:
        test = run.targets(aspect, "test")
        raw = predict(run.best(aspect), [target.states for target in test])
        after = {t.sample.id: run.scale.clamp(value) for t, value in zip(test, raw, strict=True)}
        before = _predicted_before(run, card, aspect)
        parts = {
            "people": [t for t in test if aspect in scored.get(t.sample.id, ())],
            "data": [t for t in test if aspect not in scored.get(t.sample.id, ())],
        }
        for part, members in parts.items():
            ids, true = [t.sample.id for t in members], [t.mos for t in members]
            if ids:
                new_scores = [after[each] for each in ids]
                old, fall = None, None
                if before is not None:
                    old_scores = [before[each] for each in ids]
                    old, fall = _agreement(old_scores, true), rmse_fall(old_scores, new_scores, true)
                rows.append(Compared(part, aspect, len(ids), old, _agreement(new_scores, true), fall))
    rows.sort(key=lambda row: row.part != "people")
    return Comparison(card.title, f"{run.config.name} {run.version}", tuple(rows))


def _predicted_before(run: RunFolder, card: Card, aspect: Aspect) -> dict[str, float] | None:
    """What the model before predicts of the test images, by id; None where it does not judge the aspect."""
    if aspect not in card.predictors:
        return None
    scored = [sample for sample in run.samples if sample.split == "test" and aspect in sample.mos]
    variants = own_variants(scored, [aspect])
    describe(variants, card.backbone, run.baseline, run.cache)
    cached = targets(variants, run.cache, backbone_id(card.backbone, run.baseline), aspect, run.scale)
    predictor = load_predictor(run.baseline, aspect, card.predictors[aspect])
    raw, scale = predict(predictor, [target.states for target in cached]), card.scales[aspect]
    moved = [run.scale.from_unit(scale.to_unit(value)) for value in raw]
    return {target.sample.id: value for target, value in zip(cached, moved, strict=True)}


def _agreement(predicted: Sequence[float], true: Sequence[float]) -> Agreement:
    bias = fmean(p - t for p, t in zip(predicted, true, strict=True))
    return Agreement(srcc(predicted, true), plcc(predicted, true), rmse(predicted, true), bias)
