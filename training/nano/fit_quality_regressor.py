"""Fits nano's quality regressor in closed form, and measures it on held-out sources.

Scores correlate with the source and the generator of an image. A regressor that recognises these fails on
new ones, so features and scores are centred inside each source first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.nano.connector import ImageFeatures
from m3agiqa.backbones.nano.nss_features import N_BRISQUE
from m3agiqa.backbones.nano.quality_regressor import (
    JUDGED_ASPECTS,
    N_LANDMARKS,
    ClampedStandardization,
    QualityRegressor,
    kernel,
)
from m3agiqa.samples import Sample
from training.stages.leave_source_out import leave_one_group_out, within_source

LOOK_PENALTY, STAGE_PENALTY = 0.3, 0.5  # of ridge and kernel ridge, in mean squared lengths of a row
BRISQUE_SHARES = {
    Aspect.QUALITY: 0.25,
    Aspect.AUTHENTICITY: 0.5,
}  # beside 1 for each of the other two regressions
# Pixels show less of authenticity than of quality, so its regressor takes over a part of quality's output.
QUALITY_SHARE_IN_AUTHENTICITY = 0.2
SPREAD_FLOOR = 0.0375  # of the scale; sources whose scores hardly differ are not blown up beyond this
MIN_IMAGES_PER_SOURCE = 15  # images of a source; the order of fewer is chance


@dataclass(frozen=True)
class RegressionData:
    """Image statistics and scores of N images."""

    statistics: Tensor
    """[N, N_STATISTICS]."""
    appearance: Tensor
    """[N, N_APPEARANCE]."""
    scores: Tensor
    """[N, JUDGED_ASPECTS] in [0, 1], NaN where unknown."""
    sources: Sequence[str | None]

    def part(self, rows: Sequence[int]) -> RegressionData:
        some = list(rows)
        sources = [self.sources[row] for row in some]
        return RegressionData(self.statistics[some], self.appearance[some], self.scores[some], sources)


def regression_data(samples: Sequence[Sample], scale: MosScale, features: ImageFeatures) -> RegressionData:
    """Of samples and their image features, row by row."""
    scores = [[scale.to_unit(s.mos[a]) if a in s.mos else math.nan for a in JUDGED_ASPECTS] for s in samples]
    unit_scores = torch.tensor(scores).reshape(-1, len(JUDGED_ASPECTS))
    return RegressionData(
        features.statistics, features.appearance, unit_scores, [sample.source for sample in samples]
    )


def fit_quality_regressor(regressor: QualityRegressor, examples: RegressionData, seed: int = 0) -> None:
    """Set the weights of its three regressions.

    Those of an aspect whose scores never differ inside a source are 0, and so are its logits.
    """
    statistics, appearance, groups = examples.statistics, examples.appearance, _SourceGroups(examples.sources)
    _scale(regressor.look, appearance, groups)
    _scale(regressor.stage, statistics, groups)
    chosen = torch.randperm(len(appearance), generator=torch.Generator().manual_seed(seed))[:N_LANDMARKS]
    regressor.landmarks.zero_()[: len(chosen)] = regressor.look(appearance[chosen])
    landmarks = regressor.landmarks[: len(chosen)].double()
    directions = _whitening(landmarks)
    inputs = (
        kernel(regressor.look(appearance), landmarks) @ directions,
        regressor.stage(statistics),
        regressor.brisque(appearance[:, :N_BRISQUE]),
    )
    each = [
        _weights(inputs, scores, groups, BRISQUE_SHARES[a])
        for a, scores in zip(JUDGED_ASPECTS, examples.scores.T, strict=True)
    ]
    look, stage, brisque = (torch.cat(columns, dim=1) for columns in zip(*each, strict=True))
    mixture = torch.eye(len(JUDGED_ASPECTS), dtype=look.dtype)
    if brisque.all():  # both aspects have scores
        mixture = torch.tensor(
            [[1.0, QUALITY_SHARE_IN_AUTHENTICITY], [0.0, 1.0 - QUALITY_SHARE_IN_AUTHENTICITY]],
            dtype=look.dtype,
        )
    regressor.look_weight.zero_()[: len(chosen)] = directions @ look @ mixture
    regressor.stage_weight.copy_(stage @ mixture)
    regressor.brisque_weight.copy_(brisque @ mixture)
    regressor.bias.zero_()
    _standardize(regressor, regressor(statistics, appearance), groups)


def _weights(
    inputs: tuple[Tensor, Tensor, Tensor], scores: Tensor, groups: _SourceGroups, brisque_share: float
) -> list[Tensor]:
    """Weights [C, 1] for the inputs [N, C] of each regression.

    Inside sources, the standard deviation of each output is then the share that the regression shall have.
    """
    known = ~scores.isnan()
    inside = groups.of(known)
    target = inside.differences(scores[known, None].double())
    if not target.any():
        return [torch.zeros(each.shape[1], 1, dtype=each.dtype) for each in inputs]
    target = target / (inside.spreads(target) + SPREAD_FLOOR)
    similarities, stage, brisque = (each[known] for each in inputs)
    fits = (
        (similarities, ridge(inside.differences(similarities), target, LOOK_PENALTY), 1.0),
        (stage, ridge(inside.differences(stage), target, STAGE_PENALTY), 1.0),
        (brisque, torch.ones(1, 1, dtype=brisque.dtype), brisque_share),
    )
    return [share * weight / inside.spread(x @ weight).clamp_min(1e-9) for x, weight, share in fits]


def held_out_quality_logits(
    examples: RegressionData, seed: int = 0, groups: Sequence[str | None] | None = None
) -> Tensor:
    """Quality logits [N, JUDGED_ASPECTS] on each group's images by regressors that were fitted without it.

    `groups` says which group each image is of; without it these are the sources.
    """

    def fit(train: list[int], _: list[int]) -> QualityRegressor | None:
        if not train:
            return None
        regressor = QualityRegressor()
        fit_quality_regressor(regressor, examples.part(train), seed)
        return regressor

    def predict(regressor: QualityRegressor, rows: list[int]) -> Tensor:
        return regressor(examples.statistics[rows], examples.appearance[rows]).to(examples.scores.dtype)

    groups = examples.sources if groups is None else groups
    return leave_one_group_out(fit, predict, groups, torch.full_like(examples.scores, torch.nan))


def agreement(logits: Tensor, scores: Tensor, samples: Sequence[Sample]) -> dict[str, dict]:
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


class _SourceGroups:
    """Which rows are of one source."""

    def __init__(self, sources: Sequence[str | None]) -> None:
        numbers = {source: i for i, source in enumerate(dict.fromkeys(sources))}
        self.rows = torch.tensor([numbers[source] for source in sources])

    def of(self, chosen: Tensor) -> _SourceGroups:
        some = _SourceGroups([])
        some.rows = self.rows[chosen].unique(return_inverse=True)[1]
        return some

    def means(self, x: Tensor) -> Tensor:
        """Of its group, for each row of [N, C]."""
        count = int(self.rows.max()) + 1 if len(self.rows) else 0
        total = x.new_zeros(count, x.shape[1]).index_add_(0, self.rows, x)
        return (total / torch.bincount(self.rows, minlength=count)[:, None])[self.rows]

    def differences(self, x: Tensor) -> Tensor:
        """From the group's mean."""
        return x - self.means(x)

    def spreads(self, differences: Tensor) -> Tensor:
        """Standard deviation in its group, for each row."""
        return self.means(differences**2).sqrt()

    def spread(self, x: Tensor) -> Tensor:
        """Standard deviation [C] inside the groups."""
        return self.differences(x).pow(2).mean(0).sqrt()


def _scale(scaling: ClampedStandardization, x: Tensor, groups: _SourceGroups) -> None:
    x = x.double()
    scaling.mean.copy_(x.mean(0))
    scaling.spread.copy_(groups.spread(x) + 1e-6)


def _standardize(regressor: QualityRegressor, logits: Tensor, groups: _SourceGroups) -> None:
    """Make the mean of the logits 0, and their standard deviation inside sources 1."""
    spread = groups.spread(logits)
    spread = torch.where(spread > 0, spread, 1.0)
    regressor.bias.copy_(-logits.mean(0) / spread)
    for weight in (regressor.look_weight, regressor.stage_weight, regressor.brisque_weight):
        weight /= spread


def ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights [C, 1] of rows [N, C] for [N, 1]."""
    inner = x.T @ x
    inner.diagonal().add_(penalty * inner.diagonal().sum() / len(x) + 1e-9)
    return torch.linalg.solve(inner, x.T @ y)


def _whitening(landmarks: Tensor) -> Tensor:
    """[M, M] that makes of kernels with the landmarks coordinates whose products are kernels (Nyström)."""
    values, vectors = torch.linalg.eigh(kernel(landmarks, landmarks))
    return vectors / values.clamp_min(1e-6).sqrt()
