"""Where an image looks bad: the part of the quality regressor that windows of own pixels decide.

Of the regressor's terms those of the vision encoder's early stages at own pixels are means over windows, so
that every window has its share of them. They show best where an image is damaged (benchmarks/quality_map.py);
terms of natural scene statistics and of the window as a whole rather follow what is shown there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image

from m3agiqa.backbones.nano.efficientnet_lite import (
    N_STATISTICS_STAGES,
    EfficientNetLite0,
    encoder_input,
    statistics,
)
from m3agiqa.backbones.nano.nss_features import WINDOW_SIDE
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS, QualityRegressor
from m3agiqa.errors import InputError, Stopped
from m3agiqa.quality_map import QualityMap, Report, even_parts

MIN_MAP_SIDE = 128  # pixels; windows must be larger than the coarsest map's stride
MIN_WINDOWS, MAX_WINDOWS = 4, 8  # a side; more only where windows would leave gaps
WINDOWS_AT_ONCE = 4
FULL_COLOUR = 0.4  # of a logit; undamaged images have less, damaged ones about as much (medians 0.2 and 0.45)
WINDOW_METHOD = (
    "How the score of the image's own pixels, in standard deviations over images, would differ if all of the "
    "image were as this window, beside the median window."
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
    parts, logits = even_parts(image.size, (columns, rows), side), []
    for first in range(0, len(parts), WINDOWS_AT_ONCE):
        report(first, len(parts))
        if stop():
            raise Stopped("Stopped on request.")
        windows = [
            encoder_input(image.crop((left, top, left + width, top + height)))
            for left, top, width, height in parts[first : first + WINDOWS_AT_ONCE]
        ]
        maps = vision(torch.stack(windows).to(next(vision.parameters())), N_STATISTICS_STAGES)
        logits.append(regressor.of_own_pixels(statistics(maps)))
    scores = dict(zip(JUDGED_ASPECTS, torch.cat(logits).T.tolist(), strict=True))
    return QualityMap.of(image.size, parts, scores, WINDOW_METHOD, FULL_COLOUR)
