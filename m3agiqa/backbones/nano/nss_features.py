"""How an image looks, whatever it shows: statistics of its pixels that are regular in natural pictures.

Photographs obey simple laws: luminance that is divided by its local contrast is nearly Gaussian, products of
neighbours are skewed in a known way, and residuals of a high-pass filter are seldom equal in a row. Blur,
noise, compression and the upsampling of generators break these laws, each in its own way. Sources:

- BRISQUE: Mittal, Moorthy and Bovik, "No-reference image quality assessment in the spatial domain", 2012
- the same fits on further maps (chroma, contrast, edges): Ghadiyaram and Bovik, FRIQUEE, 2017
- SRM: Fridrich and Kodovsky, "Rich models for steganalysis of digital images", 2012
- colourfulness: Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003

Most numbers are taken at one scale and after one compression, as sharpness and noise mean nothing where
the scale is not known, and as a file's format says nothing about the image. The others are of windows at the
image's own pixels, and of how much detail each octave holds: an upscaled, smeared or over-sharpened picture
differs there and nowhere else.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate1d
from scipy.special import gamma

Map = NDArray[np.float32]
"""One channel [height, width]; luminance and colours are in [0, 1]."""

CANONICAL_SIDE = 448  # pixels of a square with the area that images are resized to
LONGEST_SIDE = 512  # larger images are reduced to this first, as when the quality regressor was fitted
JPEG_QUALITY = 92  # JPEG quality, likewise; PNG and JPEG then differ by 0.01 spreads instead of 0.09
LUMINANCE_WEIGHTS = np.array([0.2125, 0.7154, 0.0721], np.float32)
CONTRAST_EPS = 1 / 255  # local contrast that counts as none
GAUSSIAN_WINDOW = np.exp(-(np.arange(-3.0, 4.0) ** 2) / (2 * (7 / 6) ** 2))
GAUSSIAN_WINDOW /= GAUSSIAN_WINDOW.sum()
HALVING_FILTER = np.array([-0.09375, 0.59375, 0.59375, -0.09375])  # bicubic, for every other pixel

WINDOW_SIDE = 256  # pixels, of windows at the image's own pixels
MAX_OCTAVE_SIDE = (
    1024  # pixels, of the middle of an image in which detail is measured, so that cost is bounded
)
MIN_OCTAVE_SIDE = 16  # pixels
N_OCTAVES = 5  # halvings of the size at which detail is measured

AUTOCORRELATION_LAGS = (1, 2)  # pixels at half size; by longer ones textures differ, too
FLAT_VARIANCE = 0.02  # of normalized luminance, about 0.25 in most images and 0 where nothing is shown
MIN_STEP = 6.0  # of 255 levels between neighbours
EQUAL_LEVELS = 0.5  # of 255 levels; neighbours with a smaller difference are equal
FEW_STEPS = 100  # of an image; so few say nothing

SHAPE_GRID = np.arange(0.2, 10.001, 0.001)  # of a generalised Gaussian: 2 is the usual one
SHAPE_RATIOS = gamma(2 / SHAPE_GRID) ** 2 / (gamma(1 / SHAPE_GRID) * gamma(3 / SHAPE_GRID))

RESIDUAL_STEP = 3.0  # of 255 levels; residuals are counted in steps from -2 to 2
RESIDUAL_LEVELS = 5


def canonical(image: Image.Image) -> Image.Image:
    """An RGB image of any size -> the same at an area of 448 x 448 pixels, in its own proportions."""
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, comment=b"")  # not what came with the image
    image = Image.open(file).convert("RGB")
    scale = CANONICAL_SIDE / np.sqrt(image.width * image.height)
    width, height = (max(32, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def windows(image: Image.Image) -> list[Image.Image]:
    """An RGB image -> 1, 2 or 4 squares of its own pixels; one that is smaller is continued by mirroring."""
    width, height = image.size
    if min(width, height) < WINDOW_SIDE:
        missing = [(0, max(0, WINDOW_SIDE - length)) for length in (height, width)]
        image = Image.fromarray(np.pad(np.asarray(image), (*missing, (0, 0)), mode="symmetric"))
        width, height = image.size
    corners = [(x, y) for y in _starts(height) for x in _starts(width)]
    return [image.crop((x, y, x + WINDOW_SIDE, y + WINDOW_SIDE)) for x, y in corners]


def _starts(length: int) -> list[int]:
    """Where windows begin on a side: in the middle of each half, or at both ends of a short side."""
    if length >= 2 * WINDOW_SIDE:
        return [(length - 2 * WINDOW_SIDE) // 4, (3 * length - 2 * WINDOW_SIDE) // 4]
    return sorted({0, length - WINDOW_SIDE})


def appearance(image: Image.Image) -> Map:
    """An RGB image -> its statistics [N_APPEARANCE], in APPEARANCE_BLOCKS: at one scale, of windows of its
    own pixels, and detail by octave: its own, that at one scale, and their difference.
    """
    own = windows(image)
    ends = own if len(own) == 1 else [own[0], own[-1]]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy and SciPy let other threads run
        at_one_scale, own_octaves = pool.submit(_at_one_scale, image), pool.submit(_octaves, image)
        of_windows = np.mean(list(pool.map(_statistics, ends)), axis=0)
    (of_shown, octaves_shown), octaves = at_one_scale.result(), own_octaves.result()
    return np.concatenate(
        [of_shown, of_windows, octaves, octaves_shown, octaves - octaves_shown], dtype=np.float32
    )


def _at_one_scale(image: Image.Image) -> tuple[Map, Map]:
    """Statistics and detail by octave of the canonical image."""
    shown = canonical(image)
    return _statistics(shown), _octaves(shown)


def _statistics(image: Image.Image) -> Map:
    """[N_CANONICAL]."""
    return np.array([number for block in _blocks(image) for number in block], np.float32)


def _blocks(image: Image.Image) -> Iterator[list[float]]:
    rgb = np.asarray(image, np.float32) / 255
    grey = rgb @ LUMINANCE_WEIGHTS
    half = _halved(grey)
    normal, contrast = _normalized(grey)
    normal_half, contrast_half = _normalized(half)
    normal_quarter, contrast_quarter = _normalized(_halved(half))
    yield _naturalness(normal)
    yield _naturalness(normal_half)
    yield _naturalness(normal_quarter)
    for each in (contrast, contrast_half, contrast_quarter):
        yield _distribution(each)
    yield _shape_and_variance(_normalized(contrast)[0])
    yield _shape_and_variance(_normalized(contrast_half)[0])
    yield [float(each.std() / (each.mean() + 1e-4)) for each in (contrast, contrast_half)]
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    for each in (red_green, yellow_blue, grey - _blurred(_blurred(grey)), _slopes(grey)):
        yield _naturalness(_normalized(each)[0])
    yield _sharpness(grey)
    yield _sharpness(half)
    yield _residuals(grey)
    yield _colour(rgb, red_green, yellow_blue)


# --- natural scene statistics ----------------------------------------------------------------------


def _blurred(channel: Map) -> Map:
    return correlate1d(
        correlate1d(channel, GAUSSIAN_WINDOW, 0, mode="reflect"), GAUSSIAN_WINDOW, 1, mode="reflect"
    )


def _halved(channel: Map) -> Map:
    """At half the size."""
    rows = correlate1d(channel, HALVING_FILTER, 0, origin=-1, mode="nearest")[::2]
    return correlate1d(rows, HALVING_FILTER, 1, origin=-1, mode="nearest")[:, ::2]


def _normalized(channel: Map) -> tuple[Map, Map]:
    """The channel without its local mean, divided by its local contrast; and that contrast."""
    mean = _blurred(channel)
    contrast = np.sqrt(np.abs(_blurred(channel * channel) - mean * mean))
    return (channel - mean) / (contrast + CONTRAST_EPS), contrast


def _naturalness(normal: Map) -> list[float]:
    """BRISQUE's 18 numbers: how a normalized map is distributed, and how products of neighbours are."""
    neighbours = (
        normal[:, :-1] * normal[:, 1:],
        normal[:-1] * normal[1:],
        normal[:-1, :-1] * normal[1:, 1:],
        normal[1:, :-1] * normal[:-1, 1:],
    )
    return [*_shape_and_variance(normal), *(number for each in neighbours for number in _fit(each))]


def _shape_and_variance(normal: Map) -> list[float]:
    shape, _, left, right = _fit(normal)
    return [shape, (left + right) / 2]


def _fit(values: Map) -> tuple[float, float, float, float]:
    """Shape, mean, and variances to the left and right of an asymmetric generalised Gaussian.

    By moments, as BRISQUE fits it.
    """
    flat = values.ravel()
    below = np.minimum(flat, 0)
    count = np.count_nonzero(below)
    squares, squares_below = float(flat @ flat), float(below @ below)
    left = squares_below / count if count else 1e-8
    right = (squares - squares_below) / (len(flat) - count) if count < len(flat) else 1e-8
    sigma_left, sigma_right = np.sqrt(left), np.sqrt(right)
    skew = sigma_left / max(sigma_right, 1e-8)
    mean_size = (float(flat.sum()) - 2 * float(below.sum())) / len(flat)
    ratio = mean_size**2 / max(squares / len(flat), 1e-12)
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = SHAPE_GRID[min(np.searchsorted(SHAPE_RATIOS, ratio), len(SHAPE_GRID) - 1)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape)) * gamma(2 / shape) / gamma(1 / shape)
    return float(shape), float((sigma_right - sigma_left) * scale), left, right


def texture_signs(image: Image.Image) -> Map:
    """[2]: autocorrelation and pixelation of an RGB image, which hardly depend on what it shows.

    Autocorrelation: how far normalized luminance at half size is like that of its neighbours, summed over
    AUTOCORRELATION_LAGS. Blur, smearing and enlargement raise it, noise lowers it; where nothing is shown it
    is about 0. Pixelation: the share of steps in luminance that have equal pixels on both sides.
    """
    level = np.asarray(image, np.float32) @ LUMINANCE_WEIGHTS
    normal = _normalized(_halved(level / 255))[0]
    alike = sum(
        float((normal[:, lag:] * normal[:, :-lag]).mean() + (normal[lag:] * normal[:-lag]).mean()) / 2
        for lag in AUTOCORRELATION_LAGS
    )
    steps = between_equals = 0
    for lines in (level, level.T):
        change = np.abs(np.diff(lines, axis=1))
        is_step, equal = change[:, 1:-1] > MIN_STEP, change < EQUAL_LEVELS
        steps += np.count_nonzero(is_step)
        between_equals += np.count_nonzero(is_step & equal[:, :-2] & equal[:, 2:])
    return np.array(
        [alike / (float((normal**2).mean()) + FLAT_VARIANCE), between_equals / (steps + FEW_STEPS)],
        np.float32,
    )


# --- sharpness and noise -------------------------------------------------------------------------------


def _distribution(strengths: Map) -> list[float]:
    """Five percentiles, mean and spread of the logarithm of something positive."""
    logarithms = np.log(strengths.ravel() + CONTRAST_EPS)
    shares = np.percentile(logarithms, (5, 25, 50, 75, 95))
    return [*shares.tolist(), float(logarithms.mean()), float(logarithms.std())]


def _slopes(grey: Map) -> Map:
    return np.hypot(np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1])


def _sharpness(grey: Map) -> list[float]:
    """Of the slopes their distribution and greatest; curvature; and noise, by diagonal differences."""
    slopes = _slopes(grey)
    curved = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    height, width = (length - length % 2 for length in grey.shape)
    even = grey[:height, :width]
    diagonal = np.abs(even[::2, ::2] - even[1::2, ::2] - even[::2, 1::2] + even[1::2, 1::2]) / 2
    low, median = np.percentile(diagonal, (20, 50))
    return [
        *_distribution(slopes),
        float(np.log((curved**2).mean() + 1e-7)),
        float(np.log(median + 1e-4)),
        float(np.log(low + 1e-4)),
        float(slopes.max()),
    ]


def _octaves(image: Image.Image) -> Map:
    """[N_OCTAVES]: logarithm of the Laplacian's standard deviation, from the finest octave on.

    An image that is too small for more octaves has what its last one has in all others.
    """
    left, top = (max(0, length - MAX_OCTAVE_SIDE) // 2 for length in image.size)
    middle = image.crop(
        (left, top, left + min(image.width, MAX_OCTAVE_SIDE), top + min(image.height, MAX_OCTAVE_SIDE))
    )
    grey = np.asarray(middle, np.float32) @ LUMINANCE_WEIGHTS / 255
    energies: list[float] = []
    for _ in range(N_OCTAVES):
        if min(grey.shape) >= MIN_OCTAVE_SIDE or not energies:
            padded = np.pad(grey, 1, mode="edge")
            curved = padded[1:-1, :-2] + padded[1:-1, 2:] + padded[:-2, 1:-1] + padded[2:, 1:-1] - 4 * grey
            energies.append(float(np.log(curved.std() + 1e-4)))
            grey = _halved(grey)
        else:
            energies.append(energies[-1])
    return np.array(energies, np.float32)


def _residuals(grey: Map) -> list[float]:
    """SRM: how often residuals of the 3 x 3 "KB" filter follow each other, three in a row or column."""
    level = grey * 255
    smooth = correlate1d(correlate1d(level, [1, -2, 1], 0), [1, -2, 1], 1)[1:-1, 1:-1]
    most = RESIDUAL_LEVELS // 2
    steps = (np.clip(np.rint(-smooth / RESIDUAL_STEP), -most, most) + most).astype(np.int64)
    triples = [
        (steps[:, :-2] * RESIDUAL_LEVELS + steps[:, 1:-1]) * RESIDUAL_LEVELS + steps[:, 2:],
        (steps[:-2] * RESIDUAL_LEVELS + steps[1:-1]) * RESIDUAL_LEVELS + steps[2:],
    ]
    counts = sum(np.bincount(each.ravel(), minlength=RESIDUAL_LEVELS**3) for each in triples)
    cube = counts.astype(float).reshape((RESIDUAL_LEVELS,) * 3)
    cube = cube + cube.transpose(2, 1, 0)
    cube = cube + cube[::-1, ::-1, ::-1]
    return np.log(cube[_DISTINCT_TRIPLES] / cube.sum() + 1e-5).tolist()


def _distinct() -> tuple[list[int], ...]:
    """Triples of steps of which none is another one's mirror image or negative."""
    last = RESIDUAL_LEVELS - 1
    triples = {
        min((i, j, k), (k, j, i), (last - i, last - j, last - k), (last - k, last - j, last - i))
        for i, j, k in np.ndindex((RESIDUAL_LEVELS,) * 3)
    }
    return tuple(map(list, zip(*sorted(triples), strict=True)))


_DISTINCT_TRIPLES = _distinct()


# --- colour ------------------------------------------------------------------------------------------


def _colour(rgb: NDArray[np.float32], red_green: Map, yellow_blue: Map) -> list[float]:
    """Colourfulness, saturation and exposure."""
    high, low = rgb.max(-1), rgb.min(-1)
    saturation = (high - low) / (high + 1e-3)
    light = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    shares = np.histogram(light, 32, (0, 1))[0] / light.size
    spread = np.hypot(red_green.std(), yellow_blue.std())
    numbers = [
        red_green.mean(),
        red_green.std(),
        yellow_blue.mean(),
        yellow_blue.std(),
        spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()),
        saturation.mean(),
        saturation.std(),
        np.percentile(saturation, 95),
        light.mean(),
        light.std(),
        *np.percentile(light, (1, 10, 50, 90, 99)),
        (light > 0.98).mean(),
        (light < 0.02).mean(),
        -(shares * np.log(shares + 1e-9)).sum(),
        (high > 0.98).mean(),
        ((light - light.mean()) ** 3).mean() / (light.std() ** 3 + 1e-6),
    ]
    return [float(number) for number in numbers]


N_CANONICAL = len(_statistics(Image.new("RGB", (64, 64))))
APPEARANCE_BLOCKS = (N_CANONICAL, N_CANONICAL, 3 * N_OCTAVES)
N_APPEARANCE = sum(APPEARANCE_BLOCKS)
FINEST_OCTAVE = 2 * N_CANONICAL  # column of the finest octave's detail at the image's own pixels
