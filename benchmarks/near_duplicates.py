"""How well near-duplicates are told from images that are merely alike, by nano's vision encoder.

    python benchmarks/near_duplicates.py FOLDER [--images 600] [--changed 100]

Prints the dot products of different images, and of images with changed copies of themselves.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from annotation.failures.image_map import IMAGES_AT_ONCE, MIN_DUPLICATE_SIMILARITY, nano_encoder
from m3agiqa.images import open_image


def _jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return open_image(file.getvalue())


def _cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: ImageOps.crop(image, int(share * min(image.size)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": _jpeg,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "5 % cropped on each side": _cropped(0.05),
    "10 % cropped on each side": _cropped(0.1),
    "mirrored": ImageOps.mirror,
    "15 % brighter": lambda image: image.point(lambda value: min(255, int(1.15 * value))),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--changed", type=int, default=100)
    args = parser.parse_args(argv)
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    chosen = paths[:: max(1, len(paths) // args.images)][: args.images]
    encode = nano_encoder()

    def vectors(files: Sequence[Path], change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
        parts = (files[start : start + IMAGES_AT_ONCE] for start in range(0, len(files), IMAGES_AT_ONCE))
        return np.concatenate([encode([change(open_image(file)) for file in part]) for part in parts])

    own = vectors(chosen, lambda image: image)
    likeness = own @ own.T
    first, second = np.triu_indices(len(own), 1)
    pairs = likeness[first, second]
    sys.stdout.write(
        f"{len(pairs):,} pairs of different images: 99.9 % below {np.quantile(pairs, 0.999):.2f}\n"
    )
    for pair in np.flatnonzero(pairs >= MIN_DUPLICATE_SIMILARITY):
        sys.stdout.write(f"  {pairs[pair]:.3f} {chosen[first[pair]].name} {chosen[second[pair]].name}\n")
    for name, change in CHANGES.items():
        products = (vectors(chosen[: args.changed], change) * own[: args.changed]).sum(axis=1)
        found = (products >= MIN_DUPLICATE_SIMILARITY).mean()
        sys.stdout.write(f"{name}: {found:.0%} found, median {np.median(products):.2f}\n")


if __name__ == "__main__":
    main()
