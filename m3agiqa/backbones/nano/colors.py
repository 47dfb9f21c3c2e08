"""Which of eleven colours an image shows, from its pixels: the vision encoder rather sees shapes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m3agiqa.backbones.nano.text import raw_words

COLOUR_NAMES = (
    "red",
    "blue",
    "green",
    "yellow",
    "purple",
    "orange",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
)
"""The basic colour terms of English."""
OTHER_NAMES = {"gray": "grey", "violet": "purple", "golden": "yellow", "gold": "yellow", "silver": "grey"}
REDUCED_SIDE = 48  # pixels to which the image is reduced
CELLS_PER_SIDE = 6  # cells, in each of which the share of a colour is measured
N_BEST_CELLS = 3  # cells with the largest shares
MIN_SHARE = 0.02  # of pixels; smaller shares count as none


def colours(pixels: Tensor) -> Tensor:
    """RGB [N, 3, S, S] in [0, 1] -> [N, 11]: how much there is of each colour, overall and at most.

    The mean of two logarithms of shares: of all pixels, and of those in the best cells.
    """
    reduced = F.interpolate(pixels.float(), (REDUCED_SIDE, REDUCED_SIDE), mode="area")
    shown = named_pixels(reduced).float()  # [N, 11, REDUCED_SIDE, REDUCED_SIDE]
    cells = F.avg_pool2d(shown, REDUCED_SIDE // CELLS_PER_SIDE).flatten(2)
    best = cells.topk(N_BEST_CELLS, dim=2).values.mean(2)
    return ((MIN_SHARE + cells.mean(2)).log() + (MIN_SHARE + best).log()) / 2


def named_colours(text: str) -> list[int]:
    """Numbers of the colours that a text names."""
    names = [OTHER_NAMES.get(word, word) for word in raw_words(text)]
    return [i for i, colour in enumerate(COLOUR_NAMES) if colour in names]


def named_pixels(pixels: Tensor) -> Tensor:
    """[N, 3, S, S] -> [N, 11, S, S], true where a pixel has that name; some have two."""
    high, low = pixels.amax(1), pixels.amin(1)
    chroma = high - low
    red, green, blue = pixels.unbind(1)
    turn = torch.where(
        high == red,
        (green - blue) / chroma % 6,
        torch.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    hue = (60 * turn).nan_to_num()  # degrees
    pale, dark = chroma / high.clamp_min(1e-6), high  # saturation and value
    black = dark < 0.2
    white = (pale < 0.15) & (dark > 0.8)
    grey = (pale < 0.15) & ~black & ~white
    vivid = ~(black | white | grey)

    def between(start: float, end: float) -> Tensor:
        return vivid & (hue >= start) & (hue < end)

    reddish = between(345, 361) | between(0, 12)
    pink = between(305, 345) | (reddish & (pale < 0.5) & (dark > 0.65))
    brown = between(10, 45) & (dark < 0.65)
    orange = between(15, 42) & (dark >= 0.65) & (pale > 0.5)
    red = (between(345, 361) | between(0, 15)) & ~pink & ~brown
    purple = between(255, 320) & ~pink
    named = {
        "red": red,
        "blue": between(165, 255),
        "green": between(68, 165),
        "yellow": between(42, 68),
        "purple": purple,
        "orange": orange,
        "pink": pink,
        "brown": brown,
        "black": black,
        "white": white,
        "grey": grey,
    }
    return torch.stack([named[name] for name in COLOUR_NAMES], dim=1)
