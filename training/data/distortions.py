"""Changes whose effect on the score is known: damaged copies, and prompts of other images."""

from __future__ import annotations

import io
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample

DAMAGE_WORDS = {
    "blur": (
        "The whole picture is badly out of focus. Edges smear into each other, and all fine texture is gone.",
        "Heavy blur covers everything, so that only rough shapes and colours remain and no detail is sharp.",
        "Nothing here is in focus. Contours dissolve into soft patches, and surfaces have lost their texture.",
    ),
    "noise": (
        "Strong coloured grain covers the whole picture and drowns fine detail. Even smooth areas are speckled.",
        "The picture is buried under heavy noise. Grainy speckles break up edges and dirty every flat surface.",
        "Random speckle lies over everything, so that textures are lost and the picture looks harsh and dirty.",
    ),
    "jpeg": (
        "Harsh compression breaks the picture into square blocks. Edges ring, and gradients fall apart in steps.",
        "Blocky compression artefacts are everywhere. Fine detail is gone, and colours bleed in coarse squares.",
    ),
    "pixelate": (
        "The picture is reduced to coarse square pixels. Shapes turn into staircases, and no detail survives.",
        "Large visible pixels cover everything, as if a tiny picture had been blown up far beyond its size.",
    ),
}
DAMAGE_KINDS = tuple(DAMAGE_WORDS)
DAMAGE_REVISION = 1  # raised whenever `damage` gives other pictures; part of cache keys

UNRELATED_WORDS = (
    "The picture does not match the prompt at all. It shows {own}, and nothing of the request can be found.",
    "None of what was asked for is here. Instead of {other}, the picture shows {own}.",
    "There is no sign of {other} anywhere; what can be seen instead is {own}.",
    "The request was {other}, but the picture shows {own}, which has nothing to do with it.",
)


def damage(image: Image.Image, kind: str, rng: Random, strength: float = 1.0) -> Image.Image:
    """A heavily damaged copy of an RGB image; strength 1 is unmistakable at a glance."""
    side = min(image.size)
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength * side / 100))
    if kind == "noise":
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 45 * strength, (*image.size[::-1], 3))
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    if kind == "jpeg":
        return recompress(image, max(2, round(8 / strength)))
    if kind == "pixelate":
        small = [max(1, round(length * 45 / side / strength)) for length in image.size]
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    raise ValueError(f"unknown damage {kind!r}; known are {', '.join(DAMAGE_KINDS)}")


def damaged_mos(mos: float, scale: MosScale) -> float:
    """MOS for quality that a damaged copy is given in training: low, yet in the order of the originals."""
    return scale.low + 0.2 * (mos - scale.low)


def unrelated_mos(scale: MosScale) -> float:
    """MOS for correspondence that an image is given in training with another image's prompt."""
    return scale.from_unit(0.025)


def recompress(image: Image.Image, quality: int) -> Image.Image:
    """Through JPEG and back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def jitter(image: Image.Image, rng: Random) -> Image.Image:
    """Mild random rescaling and recompression, so that resolution and file format tell nothing."""
    if rng.random() < 0.5:
        scale = rng.uniform(0.6, 1.0)
        size = [max(64, round(length * scale)) for length in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        image = recompress(image, rng.randint(70, 95))
    return image


def unrelated_prompt(sample: Sample, pool: list[Sample], rng: Random) -> str:
    """The prompt of another sample of the pool. Raises InputError if all have the same."""
    if all(each.prompt in (None, "", sample.prompt) for each in pool):
        raise InputError(f"No other sample of the split {sample.split} has another prompt than {sample.id}.")
    while True:
        other = rng.choice(pool).prompt
        if other and other != sample.prompt:
            return other


def depicts_prompt(sample: Sample, scale: MosScale, at_least: float) -> bool:
    """Whether the image's correspondence, in [0, 1], is known to reach `at_least`."""
    mos = sample.mos.get(Aspect.CORRESPONDENCE)
    return bool(sample.prompt) and mos is not None and scale.to_unit(mos) >= at_least


def unrelated_description(sample: Sample, other: str, scale: MosScale, rng: Random) -> str:
    """What can be said when `other` is not the image's prompt; names the image's own content if known."""
    own = f"'{_start(sample.prompt or '')}'" if depicts_prompt(sample, scale, 0.5) else "something else"
    return rng.choice(UNRELATED_WORDS).format(own=own, other=f"'{_start(other)}'")


def _start(prompt: str, words: int = 12) -> str:
    parts = prompt.strip(" .,").split()
    return " ".join(parts[:words]).rstrip(" .,;:")
