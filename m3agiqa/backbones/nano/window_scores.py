"""Where an image looks bad: what of the quality regressor can be told of windows of own pixels.

Of the regressor's terms those of the vision encoder's stages at own pixels are means over windows, so that
every window has its share of them. The other terms rather follow what a window shows. In their place stands
how far a window's texture departs from that of the image, where it departs by more than windows of undamaged
images do: detail is lost, or noise was added.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from m3agiqa.backbones.nano.efficientnet_lite import (
    N_STATISTICS_STAGES,
    EfficientNetLite0,
    encoder_input,
    statistics,
)
from m3agiqa.backbones.nano.nss_features import WINDOW_SIDE, Map, texture_signs
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS, QualityRegressor
from m3agiqa.errors import InputError, raise_if_stopped
from m3agiqa.quality_map import QualityMap, Report, even_parts

MIN_MAP_SIDE = 128  # pixels; windows must be larger than the coarsest map's stride
MIN_WINDOWS, MAX_WINDOWS = 4, 8  # a side; more only where windows would leave gaps
WINDOWS_AT_ONCE = 4
FULL_COLOUR = 0.6  # of a logit; undamaged images have less, damaged ones more (medians 0.2 and 0.9)
USUAL_DIFFERENCE = 0.1  # of signs of texture, from the median window; undamaged images have a spread of 0.07
DEPARTURE_WEIGHTS = np.array([[1.7, 0.7, 1.8], [1.0, 1.0, 0.7]])
"""[JUDGED_ASPECTS, 3], logits: how far the regressor's other terms fall where whole images are blurred,
smeared, pixelated or noisy (`python benchmarks/quality_map.py FOLDER --weights`, 30 images)."""
WINDOW_METHOD = (
    "How the score of the image's own pixels, in standard deviations over images, would differ if all of the "
    "image were as this window, beside the median window. Detail that is lost there, and noise, count by "
    "how much the score of whole images falls with them."
)


@torch.inference_mode()
def window_scores(
    vision: EfficientNetLite0,
    regressor: QualityRegressor,
    image: Image.Image,
    report: Report,
    stop: Callable[[], bool],
) -> QualityMap:
    """Raises InputError for an image that is too small, and Stopped once `stop` answers True."""
    if min(image.size) < MIN_MAP_SIDE:
        raise InputError(
            f"The image has {image.width} × {image.height} pixels; to tell where it looks bad, it takes at "
            f"least {MIN_MAP_SIDE} a side."
        )
    columns, rows = (
        min(MAX_WINDOWS, max(MIN_WINDOWS, math.ceil(length / WINDOW_SIDE))) for length in image.size
    )
    side = min(WINDOW_SIDE, *(length // 2 for length in image.size))
    parts, logits, signs = even_parts(image.size, (columns, rows), side), [], []
    for first in range(0, len(parts), WINDOWS_AT_ONCE):
        report(first, len(parts))
        raise_if_stopped(stop)
        windows = [
            image.crop((left, top, left + width, top + height))
            for left, top, width, height in parts[first : first + WINDOWS_AT_ONCE]
        ]
        inputs = torch.stack([encoder_input(window) for window in windows])
        maps = vision(inputs.to(next(vision.parameters())), N_STATISTICS_STAGES)
        logits.append(regressor.of_own_pixels(statistics(maps)))
        signs += [texture_signs(window) for window in windows]
    is_judged = regressor.weight.any(dim=0).cpu().numpy()
    weights = DEPARTURE_WEIGHTS.T * is_judged
    own_share = torch.cat(logits).cpu().numpy()
    scores = (own_share - departures(np.stack(signs), np.median(signs, axis=0)) @ weights).T.tolist()
    return QualityMap.of(
        image.size, parts, dict(zip(JUDGED_ASPECTS, scores, strict=True)), WINDOW_METHOD, FULL_COLOUR
    )


def departures(signs: Map, usual: Map) -> Map:
    """Texture signs [..., 2], and usual ones -> [..., 3], how far they differ by more than
    USUAL_DIFFERENCE: more autocorrelation, more pixelation, less autocorrelation.
    """
    more, less = signs - usual, usual[..., :1] - signs[..., :1]
    return (np.concatenate([more, less], axis=-1) - USUAL_DIFFERENCE).clip(0)
