"""A predictor in service follows the picks of people: which of two images of one prompt is the better one.

Logistic regression (Bradley-Terry): the log odds of a pick are a slope times the difference of two scores.
What is added to a score is linear in what the regression head reads, under a ridge penalty, and zero in the
mean over the scored images (without any, over the compared ones). It is added only if pairs of prompts and
images that it was not fitted to come into the right order clearly more often, by more than one standard error
as in training.stages.adapt, and the scored images do not come clearly further from people's scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from m3agiqa.grouping import MIN_CROSS_VALIDATED_GROUPS, connected_groups
from m3agiqa.samples import Sample
from training.stages.adapt import (
    PRIOR_IMAGES,
    Adapted,
    Array,
    fold_of_groups,
    group_marks,
    standard_error,
)
from training.stages.fit import pooled_states, predict
from training.stages.fit_data import Target

PREFERENCE_PENALTIES = (30.0, 10.0, 3.0, 1.0)
SLOPE_PENALTY = 0.01  # so that there is an end to it where all pairs are in order
LEAST_SLOPE = 0.5  # log odds for a quarter of the MOS scale: unsure picks must not blow up scores


def adapt_to_preferences(
    adapted: Adapted, preferred: Sequence[Target], train: Sequence[Target], unit: float = 1.0
) -> Adapted:
    """Move an adapted predictor on towards the order of pairs, each an image and its `worse` one.

    `train` are the scored images that it was adapted to, if any, and `unit` a quarter of the MOS scale, in
    points.
    """
    predictor = adapted.predictor
    pairs = f"{len(preferred):,} pairs of picks"
    groups = pair_groups((each.sample, each.worse.sample) for each in preferred if each.worse)
    if len(set(groups)) < MIN_CROSS_VALIDATED_GROUPS:
        return _moved(adapted, f"{pairs} are too few to follow, of {len(set(groups))} prompts")
    better = [target.states for target in preferred]
    worse = [target.worse.states for target in preferred if target.worse]
    old = (np.array(predict(predictor, better)) - np.array(predict(predictor, worse))) / unit
    inputs = (pooled_states(predictor, better) - pooled_states(predictor, worse)).double().numpy()
    level_images = [target.states for target in train] or [*better, *worse]
    scored = pooled_states(predictor, level_images).double().numpy()

    folds = fold_of_groups(groups)
    held_out = {penalty: np.empty(len(old)) for penalty in PREFERENCE_PENALTIES}
    for fold in set(folds):
        inside, outside = folds != fold, folds == fold
        for penalty, differences in held_out.items():
            weights = _fitted(inputs[inside], old[inside], penalty)
            differences[outside] = old[outside] + inputs[outside] @ weights
    penalty = max(held_out, key=lambda each: float(in_order(held_out[each]).mean()))
    gain = in_order(held_out[penalty]) - in_order(old)
    before, after = in_order(old).mean(), in_order(held_out[penalty]).mean()
    shares = f"{before:.0%} → {after:.0%} of held-out pairs in people's order"
    if gain.mean() <= (1 + PRIOR_IMAGES / len(gain)) * standard_error(gain, groups):
        return _moved(adapted, f"{pairs} change nothing, as that would not clearly help ({shares})")

    weights = _fitted(inputs, old, penalty)
    errors = np.array(adapted.errors)
    if train:
        added = unit * (scored - scored.mean(0)) @ weights
        further = (errors + added) ** 2 - errors**2
        of_scored = np.array(connected_groups(group_marks(target.sample) for target in train))
        if further.mean() > standard_error(further, of_scored):
            return _moved(adapted, f"{pairs} change nothing, as scores would come further from people's")
        errors = errors + added
    new = predictor.with_linear_change(
        1.0, -unit * float(scored.mean(0) @ weights), torch.from_numpy(unit * weights).float()
    )
    return Adapted(new, f"{adapted.moved}; {pairs} are followed ({shares})", errors.tolist())


def _moved(adapted: Adapted, why: str) -> Adapted:
    return Adapted(adapted.predictor, f"{adapted.moved}; {why}", adapted.errors)


def pair_groups(pairs: Iterable[tuple[Sample, Sample]]) -> NDArray[np.int64]:
    """The group [n] of each pair: those that share a prompt or an image are held out together."""
    marks = [[mark for sample in pair for mark in group_marks(sample)] for pair in pairs]
    return np.array(connected_groups(marks), dtype=np.int64)


def in_order(differences: Array) -> Array:
    """1 for pairs [n] whose better one has the higher score, by the difference; a half for equal scores."""
    return (np.sign(differences) + 1) / 2


def _fitted(inputs: Array, old: Array, penalty: float) -> Array:
    """Weights [width] that are added to differences [n] of scores, from differences [n, width] of inputs."""
    size = max(float((inputs**2).sum(1).mean()), 1e-12) ** 0.5  # so that penalties mean the same
    columns = np.column_stack([old, inputs / size])
    penalties = np.array([SLOPE_PENALTY, *[penalty] * inputs.shape[1]])

    def loss(weights: Array) -> tuple[float, Array]:
        odds = columns @ weights
        value = np.logaddexp(0, -odds).sum() + penalties @ weights**2 / 2
        return float(value), penalties * weights - columns.T @ expit(-odds)

    start = np.array([1.0, *[0.0] * inputs.shape[1]])
    bounds = [(LEAST_SLOPE, None), *[(None, None)] * inputs.shape[1]]
    slope, *added = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.array(added) / slope / size
