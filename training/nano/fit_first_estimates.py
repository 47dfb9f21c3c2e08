"""Fits nano's first estimates: lines from each aspect's logit to scores, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from m3agiqa.aspects import COMMON_SCALE, Aspect, MosScale
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.backbones.nano.connector import ImageFeatures
from m3agiqa.backbones.nano.grounded_text import FirstEstimate
from m3agiqa.backbones.nano.prompt_alignment import correspondence_logit
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS
from m3agiqa.samples import Sample
from training.nano.feature_cache import select_features

MIN_SCORES = 20  # of an aspect, without which there is no line


@torch.no_grad()
def fit_first_estimates(
    backbone: NanoBackbone, samples: Sequence[Sample], features: ImageFeatures, scale: MosScale
) -> dict[Aspect, FirstEstimate]:
    """Least squares on validation images, whose logits are as those of new images; else on training images.

    `features` are those of the samples, row by row. Aspects with fewer than MIN_SCORES scores have none.
    """
    estimates = {}
    for aspect in Aspect:
        for split in ("validation", "train"):
            rows = [
                row
                for row, sample in enumerate(samples)
                if sample.split == split
                and aspect in sample.mos
                and (sample.prompt or not aspect.needs_prompt)
            ]
            logits = _logits(
                backbone, aspect, [samples[row] for row in rows], select_features(features, rows)
            )
            if len(rows) >= MIN_SCORES and np.ptp(logits) > 0:
                scores = [COMMON_SCALE.from_unit(scale.to_unit(samples[row].mos[aspect])) for row in rows]
                slope, intercept = np.polyfit(logits, scores, 1)
                estimates[aspect] = FirstEstimate(float(intercept), max(float(slope), 0.0))
                break
    return estimates


def _logits(
    backbone: NanoBackbone, aspect: Aspect, samples: Sequence[Sample], features: ImageFeatures
) -> list[float]:
    if not samples:
        return []
    image_encoder = backbone.image_encoder
    quality_logits = image_encoder.connector.quality_logits(features).float()
    if aspect in JUDGED_ASPECTS:
        return quality_logits[:, JUDGED_ASPECTS.index(aspect)].tolist()
    aligned = image_encoder.prompt_aligners.align(features)
    logits = []
    for row, sample in enumerate(samples):
        own = [each.of(row) for each in aligned]
        match = image_encoder.prompt_aligners.match(own, sample.prompt or "", backbone.word_states)[0]
        logits.append(float(correspondence_logit(match, quality_logits[row])))
    return logits
