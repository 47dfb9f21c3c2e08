"""Stage evaluate: how far predictions agree with the true scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from m3agiqa.aspects import RATINGS, MosScale
from m3agiqa.metrics import accuracy, bootstrap_interval, krcc, plcc, rmse, rough_accuracy, srcc
from m3agiqa.predictor import Predictor
from m3agiqa.samples import Sample
from training.fit import FitConfig, fit, predict
from training.targets import Target


def evaluate(predictor: Predictor, targets: Sequence[Target], scale: MosScale) -> dict[str, float]:
    """SRCC (with 95 % interval), PLCC, KRCC and RMSE of one predictor on some images.

    `spoken_…`: what the rating words that the backbone has spoken are worth by themselves, and how often
    they are the word for the predicted MOS, or at most next to it.
    """
    predicted = [scale.clamp(raw) for raw in predict(predictor, [target.states for target in targets])]
    found = agreement(predicted, [target.mos for target in targets], scale)
    words = [target.rating for target in targets]
    if None not in words:
        own = [scale.rating(mos) for mos in predicted]
        ranks = [RATINGS.index(word) for word in words]
        found["spoken_srcc"] = srcc(ranks, [target.mos for target in targets])
        found["spoken_is_predicted"] = accuracy(words, own)
        found["spoken_is_near_predicted"] = rough_accuracy(words, own)
    return found


def agreement(predicted: Sequence[float], true: Sequence[float], scale: MosScale) -> dict[str, float]:
    """The same for scores at hand, with accuracy over the five rating words."""
    low, high = bootstrap_interval(srcc, predicted, true)
    words = [scale.rating(p) for p in predicted], [scale.rating(t) for t in true]
    return {
        "n": len(true),
        "srcc": srcc(predicted, true),
        "srcc_low": low,
        "srcc_high": high,
        "plcc": plcc(predicted, true),
        "krcc": krcc(predicted, true),
        "rmse": rmse(predicted, true),
        "accuracy": accuracy(*words),
        "rough_accuracy": rough_accuracy(*words),
    }


def source_groups(samples: Sequence[Sample], large: float = 0.1) -> list[list[str]]:
    """Sources to leave out together: each with a large share of the images alone, the others at once."""
    shares = pd.Series([sample.source for sample in samples]).value_counts(normalize=True)
    alone = [[source] for source, share in shares.items() if share >= large]
    together = [source for source, share in shares.items() if share < large]
    return [*alone, together] if together else alone


def leave_source_out(
    targets: Sequence[Target],
    groups: list[list[str]],
    config: FitConfig,
    scale: MosScale,
    state: Path,
    label: str,
) -> pd.DataFrame:
    """Refit the predictor without a group of sources, and predict just those.

    Returns one row an image (sample, source, mos, predicted), for images outside the training split
    only. The backbone has seen other images of all sources, so this measures how the predictor transfers.
    """
    rows = []
    for group in groups:
        inside = [target for target in targets if target.sample.source not in group]
        left_out = [target for target in targets if target.sample.source in group]
        outside = [target for target in left_out if target.sample.split != "train"]
        train = [target for target in inside if target.sample.split == "train"]
        validation = [target for target in inside if target.sample.split != "train"]
        name = "+".join(group)
        predictor, _ = fit(train, validation, config, state / name, f"{label} without {name}")
        predicted = predict(predictor, [target.states for target in outside])
        rows += [
            {"sample": t.sample.id, "source": t.sample.source, "mos": t.mos, "predicted": scale.clamp(p)}
            for t, p in zip(outside, predicted, strict=True)
        ]
    return pd.DataFrame(rows)


def within_source(frame: pd.DataFrame) -> dict[str, float]:
    """SRCC inside each left-out source, and their mean weighted by images."""
    parts = dict(list(frame.groupby("source")))
    found = {str(source): srcc(part["predicted"], part["mos"]) for source, part in parts.items()}
    found = {source: value for source, value in found.items() if not math.isnan(value)}  # too few images
    weights = [len(parts[source]) for source in found]
    return {**found, "mean": float(np.average(list(found.values()), weights=weights))}


def share_lower(pairs: Sequence[tuple[float, float]]) -> float:
    """Share of (original, worse) scores in the right order."""
    return sum(worse < original for original, worse in pairs) / len(pairs)
