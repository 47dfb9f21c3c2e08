"""Fits nano's quality regressor in closed form, and measures it on held-out sources.

Scores correlate with the source and the generator of an image, and a regressor that merely recognises these
fails on new ones: what counts is how it does on sources that it was fitted without.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from m3agiqa.aspects import MosScale
from m3agiqa.backbones.nano.connector import ImageFeatures
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS, STATISTICS_BLOCKS, QualityRegressor
from m3agiqa.samples import Sample
from training.stages.leave_source_out import leave_one_group_out, within_source

PENALTY = 0.3  # of the ridge regression, in mean squared lengths of a row
MIN_IMAGES_TO_TRUST_ENCODER = (
    500  # images of a source, for the encoder's fine-tuning to hold on others like them
)
GATE_RANGE = (
    0.25,
    0.75,
)  # of the regression of 0 and 1 on statistics: where the gate begins to open, and is open
MIN_IMAGES_PER_SOURCE = 15  # images of a source; the order of fewer is chance


@dataclass(frozen=True)
class RegressionData:
    """Image statistics and scores of N images."""

    statistics: Tensor
    """[N, N_STATISTICS]."""
    appearance: Tensor
    """[N, N_APPEARANCE]."""
    encoder_scores: Tensor
    """[N, JUDGED_ASPECTS], of the quality encoder."""
    scores: Tensor
    """[N, JUDGED_ASPECTS] in [0, 1], NaN where unknown."""
    sources: Sequence[str | None]

    def part(self, rows: Sequence[int]) -> RegressionData:
        some = list(rows)
        return RegressionData(
            self.statistics[some],
            self.appearance[some],
            self.encoder_scores[some],
            self.scores[some],
            [self.sources[row] for row in some],
        )


def regression_data(samples: Sequence[Sample], scale: MosScale, features: ImageFeatures) -> RegressionData:
    """Of samples and their image features, row by row."""
    scores = [[scale.to_unit(s.mos[a]) if a in s.mos else math.nan for a in JUDGED_ASPECTS] for s in samples]
    unit_scores = torch.tensor(scores).reshape(-1, len(JUDGED_ASPECTS))
    sources = [sample.source for sample in samples]
    return RegressionData(
        features.statistics, features.appearance, features.encoder_scores, unit_scores, sources
    )


def fit_quality_regressor(regressor: QualityRegressor, examples: RegressionData) -> None:
    """Set its mean, standard deviation, weights and biases by ridge regression; those of the gate, too.

    Weights of an aspect whose scores never differ are 0, and so are its logits.
    """
    together = torch.cat([examples.statistics, examples.appearance], dim=1).double()
    regressor.mean.copy_(together.mean(0))
    regressor.std.copy_(together.std(0, correction=0) + 1e-6)
    x = regressor.standardize(examples.statistics, examples.appearance)
    weights = torch.stack([_weights(x, scores) for scores in examples.scores.T.double()], dim=1)
    ridge_scale = _inverse_std(x @ weights)
    regressor.weight.copy_(weights * ridge_scale)
    regressor.bias.copy_(-(x @ weights).mean(0) * ridge_scale)
    known = ~examples.scores.isnan().all(0)
    regressor.encoder_weight.copy_(_inverse_std(examples.encoder_scores.double()) * known)
    _fit_gate(regressor, x, examples.sources)
    scale = _inverse_std(regressor(examples.statistics, examples.appearance, examples.encoder_scores))
    for buffer in (regressor.weight, regressor.bias, regressor.encoder_weight):
        buffer.mul_(scale)


def _fit_gate(regressor: QualityRegressor, x: Tensor, sources: Sequence[str | None]) -> None:
    """Ridge regression on whether an image is of a large source; without such a source the gate is closed."""
    sizes = Counter(sources)
    large = torch.tensor([sizes[source] >= MIN_IMAGES_TO_TRUST_ENCODER for source in sources]).double()
    regressor.gate_weight.zero_()
    regressor.gate_bias.zero_()
    if large.any():
        weights, (closed, opened) = _weights(x, large), GATE_RANGE
        bias = large.mean() - (x @ weights).mean()
        regressor.gate_weight.copy_(weights / (opened - closed))
        regressor.gate_bias.copy_((bias - closed) / (opened - closed))


def _inverse_std(x: Tensor) -> Tensor:
    """Of the columns [C] of [N, C]; 0 for one that never differs."""
    std = x.std(0, correction=0)
    return torch.where(std > 0, 1 / std, 0.0)


def _weights(x: Tensor, scores: Tensor) -> Tensor:
    """Weights [C] of the statistics [N, C] for scores [N], which may be NaN; in the dual form, as C > N."""
    known = ~scores.isnan()
    x, target = x[known], scores[known]
    if not len(target):
        return x.new_zeros(x.shape[1])
    covariance = x @ x.T
    covariance.diagonal().add_(PENALTY * len(STATISTICS_BLOCKS))
    dual: Tensor = torch.linalg.solve(covariance, target - target.mean())
    return x.T @ dual


def held_out_quality_logits(examples: RegressionData, groups: Sequence[str | None] | None = None) -> Tensor:
    """Quality logits [N, JUDGED_ASPECTS] on each group's images by regressors that were fitted without it.

    Without the quality encoder, which has learned from images of all groups. `groups` says which group each
    image is of; without it these are the sources.
    """

    examples = replace(examples, encoder_scores=torch.zeros_like(examples.encoder_scores))

    def fit(train: list[int], _: list[int]) -> QualityRegressor | None:
        if not train:
            return None
        regressor = QualityRegressor()
        fit_quality_regressor(regressor, examples.part(train))
        return regressor

    def predict(regressor: QualityRegressor, rows: list[int]) -> Tensor:
        part = examples.part(rows)
        logits = regressor(part.statistics, part.appearance, part.encoder_scores)
        return logits.to(examples.scores.dtype)

    groups = examples.sources if groups is None else groups
    return leave_one_group_out(fit, predict, groups, torch.full_like(examples.scores, torch.nan))


def agreement_by_aspect(logits: Tensor, scores: Tensor, samples: Sequence[Sample]) -> dict[str, dict]:
    """SRCC with scores inside each source, per aspect, for all images and for clean AI-generated ones.

    `mean` weighs sources by their images, `plain` does not. Sources of few images are left out.
    """
    clean = [is_clean(sample) for sample in samples]
    by_aspect: dict[str, dict] = {}
    for column, aspect in enumerate(JUDGED_ASPECTS):
        frame = pd.DataFrame(
            {
                "source": [str(sample.source) for sample in samples],
                "mos": scores[:, column].numpy(),
                "predicted": logits[:, column].numpy(),
            }
        )
        by_aspect[str(aspect)] = {
            "all": in_sources(frame.dropna()),
            "clean": in_sources(frame[clean].dropna()),
        }
    return by_aspect


def is_clean(sample: Sample) -> bool:
    """Whether it is as its generator left it: no damaged copy, and no photograph."""
    return not sample.distorted and sample.generator != "camera"


def in_sources(frame: pd.DataFrame) -> dict[str, float]:
    """SRCC of `predicted` with `mos` inside each `source` of enough images, and their means."""
    enough = frame[frame.groupby("source")["mos"].transform("size") >= MIN_IMAGES_PER_SOURCE]
    by_source = within_source(enough)
    each = [value for source, value in by_source.items() if source != "mean"]
    return {**by_source, "plain": float(np.mean(each))} if each else {}


def ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights [C, 1] of rows [N, C] for [N, 1]."""
    inner = x.T @ x
    inner.diagonal().add_(penalty * inner.diagonal().sum() / len(x) + 1e-9)
    return torch.linalg.solve(inner, x.T @ y)
