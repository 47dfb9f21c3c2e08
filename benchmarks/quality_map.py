"""Does the map show where an image is damaged? `python benchmarks/quality_map.py FOLDER`.

One quarter of each image is blurred, smeared or pixelated, and the worst part of the map should lie in it: by
chance it does in a quarter of the cases. Damage that changes next to nothing, as smearing does where
there is no texture, is left out. Images may look worst elsewhere anyway, so 100 % is not the aim.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter, ImageStat
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Aspect, Assessor  # noqa: E402
from m3agiqa.images import is_image_name, open_image  # noqa: E402
from m3agiqa.quality_map import MapPart  # noqa: E402

EXAMPLES_FOLDER = ROOT / "annotation" / "ui" / "assess" / "examples"
PIXELS_ACROSS = 90  # of a pixelated image's shorter side
MIN_CHANGE = 4.0  # of 255 levels, mean over the damaged quarter; less is hardly to be seen


def blurred(piece: Image.Image, side: int) -> Image.Image:
    return piece.filter(ImageFilter.GaussianBlur(side / 100))


def smeared(piece: Image.Image, side: int) -> Image.Image:
    return piece.filter(ImageFilter.MedianFilter(9 if side < 700 else 15))


def pixelated(piece: Image.Image, side: int) -> Image.Image:
    factor = max(4, side // PIXELS_ACROSS)
    small = piece.resize((piece.width // factor, piece.height // factor), Image.Resampling.BOX)
    return small.resize(piece.size, Image.Resampling.NEAREST)


DAMAGES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "blurred": blurred,
    "smeared": smeared,
    "pixelated": pixelated,
}
"""Each takes a piece of an image, and the shorter side of the whole image in pixels."""


def damaged(image: Image.Image, quarter: int, damage: str) -> Image.Image:
    """A copy of which one quarter (0 to 3, in rows) is damaged."""
    width, height = (length // 2 for length in image.size)
    left, top = quarter % 2 * width, quarter // 2 * height
    piece = image.crop((left, top, left + width, top + height))
    image = image.copy()
    image.paste(DAMAGES[damage](piece, min(image.size)), (left, top))
    return image


def change(image: Image.Image, other: Image.Image) -> float:
    """Mean difference of two images in the quarter in which they differ, in levels of 255."""
    return 4 * float(np.mean(ImageStat.Stat(ImageChops.difference(image, other)).mean))


def quarter_of(part: MapPart, size: tuple[int, int]) -> int:
    """Of the image, in which the middle of a part lies."""
    right = 2 * part.left + part.width > size[0]
    lower = 2 * part.top + part.height > size[1]
    return 2 * lower + right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[EXAMPLES_FOLDER], metavar="FOLDER")
    parser.add_argument("--images", type=int, default=40, help="to take of each folder, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and quarters")
    parser.add_argument("--model", default="nano", help="shipped name or checkpoint folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    assessor, random = Assessor.from_pretrained(args.model), Random(args.seed)
    chosen: list[Path] = []
    for folder in args.folders:
        images = sorted(path for path in folder.rglob("*") if is_image_name(path))
        chosen += random.sample(images, min(args.images, len(images)))
    hits: dict[tuple[str, Aspect], list[bool]] = {}
    for path in tqdm(chosen, unit="image"):
        image, quarter = open_image(path), random.randrange(4)
        for damage in DAMAGES:
            shown = damaged(image, quarter, damage)
            if change(image, shown) < MIN_CHANGE:
                continue
            found = assessor.quality_map(shown)
            for aspect in found.scores:
                hit = quarter_of(found.worst(aspect), image.size) == quarter
                hits.setdefault((damage, aspect), []).append(hit)
    print(f"Worst part in the damaged quarter, {len(chosen)} images:")
    for (damage, aspect), each in hits.items():
        print(f"  {damage:<10} {aspect:<13} {100 * sum(each) / len(each):3.0f} % of {len(each)}")


if __name__ == "__main__":
    main()
