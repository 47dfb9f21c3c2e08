"""The model before and the new one on the same held-out images: those that people scored, and the data's."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import Card, load_predictor, read_card
from m3agiqa.checkpoint.registry import METRIC_NAMES, Agreement, Compared, Comparison
from m3agiqa.metrics import plcc, rmse, srcc
from training.data.variants import own_variants
from training.run import RunFolder
from training.stages.describe import describe
from training.stages.fit import predict
from training.stages.fit_data import targets
from training.stages.identity import backbone_id


def compare(run: RunFolder) -> Comparison:
    """Both models on the run's test split, in points of its scale.

    What the model before says is spoken first where its backbone is another one than the run's. Raises
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
                old = None if before is None else _agreement([before[each] for each in ids], true)
                new = _agreement([after[each] for each in ids], true)
                rows.append(Compared(part, aspect, len(ids), old, new))
    rows.sort(key=lambda row: row.part != "people")
    return Comparison(card.title, f"{run.config.name} {run.version}", tuple(rows))


def as_frame(comparison: Comparison) -> pd.DataFrame:
    """One row for each part and aspect; every metric before and after."""
    rows = [
        {"part": row.part, "aspect": str(row.aspect), "n": row.n}
        | {
            f"{metric}_{when}": None if found is None else getattr(found, metric)
            for metric in METRIC_NAMES
            for when, found in (("before", row.before), ("after", row.after))
        }
        for row in comparison.rows
    ]
    names = [f"{metric}_{when}" for metric in METRIC_NAMES for when in ("before", "after")]
    return pd.DataFrame(rows, columns=["part", "aspect", "n", *names])


def as_text(comparison: Comparison) -> str:
    """A table for a terminal."""
    lines = [f"Before: {comparison.before}. After: {comparison.after}."]
    heads = "".join(f"{label:>20}" for label in METRIC_NAMES.values())
    lines.append(f"{'held-out images':34}{'n':>6}{heads}")
    for row in comparison.rows:
        whose = {"people": "scored by people", "data": "of the data"}[row.part]
        cells = [f"{_shown(row.before, metric)} → {_shown(row.after, metric)}" for metric in METRIC_NAMES]
        name = f"{row.aspect}, {whose}"
        lines.append(f"{name:34}{row.n:>6}{''.join(f'{cell:>20}' for cell in cells)}")
    if not any(row.part == "people" for row in comparison.rows):
        lines.append("No held-out image was scored by people, so nothing is known about agreement with them.")
    return "\n".join(lines)


def _predicted_before(run: RunFolder, card: Card, aspect: Aspect) -> dict[str, float] | None:
    """What the model before predicts of the test images, by id; None where it does not judge the aspect."""
    if aspect not in card.predictors:
        return None
    scored = [sample for sample in run.samples if sample.split == "test" and aspect in sample.mos]
    cases = own_variants(scored, [aspect])
    describe(cases, card.backbone, run.baseline, run.cache)
    found = targets(cases, run.cache, backbone_id(card.backbone, run.baseline), aspect, run.scale)
    predictor = load_predictor(run.baseline, aspect, card.predictors[aspect])
    raw, scale = predict(predictor, [target.states for target in found]), card.scales[aspect]
    moved = [run.scale.from_unit(scale.to_unit(value)) for value in raw]
    return {target.sample.id: value for target, value in zip(found, moved, strict=True)}


def _agreement(predicted: Sequence[float], true: Sequence[float]) -> Agreement:
    bias = fmean(p - t for p, t in zip(predicted, true, strict=True))
    return Agreement(srcc(predicted, true), plcc(predicted, true), rmse(predicted, true), bias)


def _shown(found: Agreement | None, metric: str) -> str:
    return "–" if found is None else f"{getattr(found, metric):{'+' if metric == 'bias' else ''}.3f}"
