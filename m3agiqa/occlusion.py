"""Where an image looks bad to a model of any kind: parts of it are covered, one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from m3agiqa.aspects import Aspect
from m3agiqa.errors import raise_if_stopped
from m3agiqa.quality_map import QualityMap, Report, even_parts

PARTS_PER_SIDE = 4
FULL_COLOUR = 0.1  # of the scale of MOS; smaller differences are rather the model's noise
OCCLUSION_METHOD = (
    "Each part in turn is covered with the image's mean colour, and the image is judged again with the same "
    "descriptions: how much of the raw MOS is lost without the part, minus what is lost with the median part."
)


def occlusion_map(
    image: Image.Image,
    judge: Callable[[Image.Image], Mapping[Aspect, float]],
    span: float,
    report: Report,
    stop: Callable[[], bool],
) -> QualityMap:
    """A map by `judge`, which gives the raw MOS of an image; `span` is that of their scale.

    Raises Stopped once `stop`, asked before each part, answers True.
    """
    mean = tuple(np.rint(np.asarray(image, np.float32).mean((0, 1))).astype(int).tolist())
    parts = even_parts(image.size, (PARTS_PER_SIDE, PARTS_PER_SIDE))
    whole, lost = judge(image), []
    for number, (left, top, width, height) in enumerate(parts):
        report(number, len(parts))
        raise_if_stopped(stop)
        covered = image.copy()
        covered.paste(mean, (left, top, left + width, top + height))
        without = judge(covered)
        lost.append({aspect: mos - without[aspect] for aspect, mos in whole.items()})
    raw = {aspect: [each[aspect] for each in lost] for aspect in whole}
    return QualityMap.of(image.size, parts, raw, OCCLUSION_METHOD, FULL_COLOUR * span)
