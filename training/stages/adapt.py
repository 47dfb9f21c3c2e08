"""Stage fit for a predictor that is in service: it moves as far as people's scores carry it, and no further.

new score = gain * old score + level + weights · (what the regression head reads)

Gain and level are shrunk towards 1 and 0 (a prior worth some images), and the weights by a ridge penalty, all
in closed form. Which change is made is decided by cross-validation inside the training images, with whole
prompts and images in one fold: the penalty whose order of the held-out images agrees best with people's, and
that only if it lowers the squared error by more than one standard error, or two with 20 images, as then a
standard error is itself unsure. Otherwise nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from m3agiqa.grouping import MIN_CROSS_VALIDATED_GROUPS, connected_groups, fold_prompt
from m3agiqa.predictor.model import Predictor
from m3agiqa.samples import Sample
from training.data.variants import image_hash
from training.stages.fit import pooled_states
from training.stages.fit_data import Target

Array = NDArray[np.float64]

N_FOLDS = 5
PRIOR_IMAGES = 20.0  # images that the prior of gain and level, and of no change, is worth
HEAD_PENALTIES = (math.inf, 100.0, 30.0, 10.0, 5.0)  # the first leaves the head as it is


@dataclass(frozen=True)
class LinearChange:
    """What is done to the old scores [n], given what the regression head reads, [n, width]."""

    gain: float
    level: float
    weights: Array
    """[width]"""

    def apply(self, old: Array, pooled: Array) -> Array:
        return self.gain * old + self.level + pooled @ self.weights


@dataclass(frozen=True)
class Adapted:
    """The predictor, and how far it was moved."""

    predictor: Predictor
    moved: str
    """For people."""
    errors: list[float]
    """Predicted less true MOS of the training images, each by a model that was fitted without its prompt."""


def adapt(predictor: Predictor, train: Sequence[Target], unit: float = 1.0) -> Adapted:
    """Move a predictor towards the MOS of some images, weighted by the people behind them.

    `unit` is a quarter of the MOS scale, in points.
    """
    read = pooled_states(predictor, [target.states for target in train])
    with torch.inference_mode():
        scores = predictor.regression(read).squeeze(-1)
    pooled, old = read.double().numpy(), scores.double().numpy() / unit
    true = np.array([target.mos for target in train]) / unit
    weights = np.array([float(each.weight) for each in train])
    groups = np.array(connected_groups(group_marks(target.sample) for target in train))
    unchanged = LinearChange(1.0, 0.0, np.zeros(pooled.shape[1]))
    held_out, penalty = old, None
    if len(set(groups)) >= MIN_CROSS_VALIDATED_GROUPS:
        candidates = _out_of_fold(pooled, old, true, weights, groups)
        wrong_order = [
            np.mean((rankdata(each) - rankdata(true)) ** 2) for each in [old, *list(candidates.values())[1:]]
        ]
        best = HEAD_PENALTIES[int(np.argmin(wrong_order))]
        gain = (old - true) ** 2 - (candidates[best] - true) ** 2
        if gain.mean() > (1 + PRIOR_IMAGES / len(train)) * standard_error(gain, groups):
            held_out, penalty = candidates[best], best
    change = unchanged if penalty is None else _fitted(penalty, pooled, old, true, weights)
    errors = (unit * (held_out - true)).tolist()
    if penalty is None:
        moved = f"stays as it was: no change clearly helps on held-out folds of {len(train):,} images"
        return Adapted(predictor, moved, errors)
    head = "" if penalty == math.inf else f" and regression head (penalty {penalty:g})"
    new = predictor.with_linear_change(
        change.gain,
        unit * change.level,
        None if not head else torch.from_numpy(unit * change.weights).float(),
    )
    return Adapted(new, f"level, gain{head} were fitted to {len(train):,} images", errors)


def group_marks(sample: Sample) -> list[tuple[str, str]]:
    """What images have in common that are held out together."""
    prompt = fold_prompt(sample.prompt)
    image = ("image", image_hash(sample.image))
    return [image, ("prompt", prompt)] if prompt else [image]


def fold_of_groups(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fold [n] of each item, the same for all of a group."""
    names = np.random.default_rng(0).permutation(np.unique(groups))
    fold_of = {name: number % N_FOLDS for number, name in enumerate(names)}
    return np.array([fold_of[group] for group in groups])


def _out_of_fold(
    pooled: Array, old: Array, true: Array, weights: Array, groups: NDArray[np.int64]
) -> dict[float, Array]:
    """The scores [n] of each penalty, predicted by changes that were fitted without an image's group."""
    folds = fold_of_groups(groups)
    scores = {penalty: np.empty(len(old)) for penalty in HEAD_PENALTIES}
    for fold in range(N_FOLDS):
        inside, outside = folds != fold, folds == fold
        for penalty, predicted in scores.items():
            change = _fitted(penalty, pooled[inside], old[inside], true[inside], weights[inside])
            predicted[outside] = change.apply(old[outside], pooled[outside])
    return scores


def _fitted(penalty: float, pooled: Array, old: Array, true: Array, weights: Array) -> LinearChange:
    """Gain and level by shrunk least squares, then weights by ridge regression on what these leave."""
    weights = weights / weights.mean()
    gain, level = shrunken_line(old, true, weights)
    if penalty == math.inf:
        return LinearChange(gain, level, np.zeros(pooled.shape[1]))
    left = true - (gain * old + level)
    left = left - np.average(left, weights=weights)
    centre = np.average(pooled, axis=0, weights=weights)
    inputs = pooled - centre
    size = max(
        float(np.average((inputs**2).sum(1), weights=weights)), 1e-12
    )  # so that penalties mean the same
    gram = inputs.T @ (weights[:, None] * inputs) / size + penalty * np.eye(pooled.shape[1])
    direction = np.asarray(np.linalg.solve(gram, inputs.T @ (weights * left)) / size, dtype=np.float64)
    return LinearChange(gain, level - float(centre @ direction), direction)


def shrunken_line(old: Array, true: Array, weights: Array) -> tuple[float, float]:
    """Gain and level that move scores [n] towards true ones; weights have mean 1."""
    error = true - old
    centred = old - np.average(old, weights=weights)
    level = float(np.sum(weights * error) / (len(old) + PRIOR_IMAGES))
    covariance = np.sum(weights * centred * (error - np.average(error, weights=weights)))
    slope = float(covariance / (np.sum(weights * centred**2) + PRIOR_IMAGES))
    return 1 + slope, level - slope * float(np.average(old, weights=weights))


def standard_error(values: Array, groups: NDArray[np.int64]) -> float:
    """Of the mean of values [n] that vary together inside groups."""
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], values - values.mean())
    return float(np.sqrt(np.sum(sums**2)) / len(values))
