"""Stage transfer: how far a predictor agrees on sources of images that it was fitted without."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from torch import Tensor

from m3agiqa.aspects import MosScale
from m3agiqa.metrics import srcc
from m3agiqa.samples import Sample
from training.stages.fit import FitConfig, fit, predict
from training.stages.fit_data import Target

BOOTSTRAP_DRAWS = 500  # resamples of an interval
TRANSFER_COLUMNS = ("sample", "source", "mos", "predicted")

Model = TypeVar("Model")


def source_groups(samples: Sequence[Sample], large: float = 0.1) -> list[list[str]]:
    """Sources to leave out together: each with a large share of the images alone, the others at once."""
    shares = pd.Series([sample.source for sample in samples]).value_counts(normalize=True)
    alone = [[source] for source, share in shares.items() if share >= large]
    together = [source for source, share in shares.items() if share < large]
    return [*alone, together] if together else alone


def leave_one_group_out(
    fit: Callable[[list[int], list[int]], Model | None],
    predict: Callable[[Model, list[int]], Tensor],
    groups: Sequence[Hashable],
    out: Tensor,
) -> Tensor:
    """`out` [N, ...] with the rows of each group predicted by a model that was fitted without the group.

    `fit` is given the rows of all other groups and the held-out ones; where it returns None, rows of `out`
    stay as they are. `predict` is given the model and the held-out rows.
    """
    for group in dict.fromkeys(groups):
        held_out = [row for row, other in enumerate(groups) if other == group]
        model = fit([row for row, other in enumerate(groups) if other != group], held_out)
        if model is not None:
            out[held_out] = predict(model, held_out)
    return out


def leave_source_out(
    targets: Sequence[Target],
    groups: list[list[str]],
    config: FitConfig,
    scale: MosScale,
    state: Path,
    label: str,
    head: Tensor | None = None,
) -> pd.DataFrame:
    """Refit the predictor without a group of sources, and predict just those.

    Returns one row an image, with the columns TRANSFER_COLUMNS, for images outside the training split only. A
    group is skipped if it has none of those, or if without it no image is left for training or none for
    validation. The backbone was trained on other images of all sources (nano's quality regressor on their
    scores, too), so this measures how the predictor transfers; training.nano.held_out_groups leaves more out.
    `head` is the backbone's output matrix [vocab, d], for projection="vocab".
    """
    rows = []
    for group in groups:
        inside = [target for target in targets if target.sample.source not in group]
        left_out = [target for target in targets if target.sample.source in group]
        outside = [target for target in left_out if target.sample.split != "train"]
        train = [target for target in inside if target.sample.split == "train"]
        validation = [target for target in inside if target.sample.split != "train"]
        if not (train and validation and outside):
            continue
        name = "+".join(group)
        unit = (scale.high - scale.low) / 4
        predictor, _ = fit(train, validation, config, state / name, f"{label} without {name}", head, unit)
        if config.projection == "vocab":
            predictor = predictor.fuse(head)
        predicted = predict(predictor, [target.states for target in outside])
        rows += [
            {"sample": t.sample.id, "source": t.sample.source, "mos": t.mos, "predicted": scale.clamp(p)}
            for t, p in zip(outside, predicted, strict=True)
        ]
    return pd.DataFrame(rows, columns=list(TRANSFER_COLUMNS))


def within_source(frame: pd.DataFrame) -> dict[str, float]:
    """SRCC inside each left-out source, and their mean weighted by images.

    A source of too few images has no SRCC; where none has one, there is no mean either.
    """
    parts = {str(source): part for source, part in frame.groupby("source")}
    correlations = {source: srcc(part["predicted"], part["mos"]) for source, part in parts.items()}
    correlations = {source: value for source, value in correlations.items() if not math.isnan(value)}
    if not correlations:
        return {}
    weights = [len(parts[source]) for source in correlations]
    return {**correlations, "mean": float(np.average(list(correlations.values()), weights=weights))}


def with_interval(frame: pd.DataFrame) -> dict[str, float]:
    """What `within_source` says, and the 95 % interval of the mean, `mean_low` to `mean_high`."""
    correlations = within_source(frame)
    if not correlations:
        return {}
    parts = [part for source, part in frame.groupby("source") if str(source) in correlations]
    _, low, high = mean_inside([(part["predicted"].to_numpy(), part["mos"].to_numpy()) for part in parts])
    return {**correlations, "mean_low": low, "mean_high": high}


def mean_inside(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Mean SRCC inside parts (predicted, true), weighted by their images, and its 95 % interval.

    Images are resampled inside the parts; parts without SRCC do not count.
    """
    weights = [len(true) for _, true in parts]

    def mean(each: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        values = np.array([srcc(predicted, true) for predicted, true in each])
        known = ~np.isnan(values)
        return float(np.average(values[known], weights=np.array(weights)[known])) if known.any() else math.nan

    rng = np.random.default_rng(0)
    draws = []
    for _ in range(BOOTSTRAP_DRAWS):
        picks = [rng.integers(0, size, size) for size in weights]
        draws.append(mean([(p[pick], t[pick]) for (p, t), pick in zip(parts, picks, strict=True)]))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return mean(parts), float(low), float(high)
