"""Does the map show where an image is damaged? `python benchmarks/quality_map.py FOLDER`.

One quarter of each image is damaged, and the worst part of the map should lie in it: by chance it does in a
quarter of the cases. Damage that changes next to nothing, as smearing does where there is no texture, is left
out. Images may look worst elsewhere anyway, so 100 % is not the aim. How often the worst part is deeper than
that of an undamaged image (area under the ROC curve) says whether depth tells damage from what is shown, and
how often the worst part of undamaged images is among their smoothest quarter, whether sky counts as damage.

Nano's weights come from `--weights`: from half of the images, which are damaged as a whole. The figures are
of the other half, and of further kinds of damage that the weights do not know.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageChops, ImageFilter, ImageStat
from scipy.ndimage import uniform_filter1d
from scipy.optimize import nnls
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Assessor  # noqa: E402
from m3agiqa.backbones.nano.efficientnet_lite import N_STATISTICS, views  # noqa: E402
from m3agiqa.backbones.nano.image_encoder import ImageEncoder  # noqa: E402
from m3agiqa.backbones.nano.nss_features import Map, texture_signs, windows  # noqa: E402
from m3agiqa.backbones.nano.quality_regressor import JUDGED_ASPECTS  # noqa: E402
from m3agiqa.backbones.nano.window_scores import departures  # noqa: E402
from m3agiqa.images import is_image_name, open_image  # noqa: E402
from m3agiqa.quality_map import MapPart  # noqa: E402

EXAMPLES_FOLDER = ROOT / "annotation" / "ui" / "assess" / "examples"
PIXELS_ACROSS = 90  # of a pixelated image's shorter side
SMOOTH_SHARE = 0.25  # of an image's parts
MIN_CHANGE = 4.0  # of 255 levels, mean over the damaged quarter; less is hardly to be seen


def blurred(piece: Image.Image, side: int) -> Image.Image:
    return piece.filter(ImageFilter.GaussianBlur(side / 100))


def smeared(piece: Image.Image, side: int) -> Image.Image:
    return piece.filter(ImageFilter.MedianFilter(9 if side < 700 else 15))


def pixelated(piece: Image.Image, side: int) -> Image.Image:
    factor = max(4, side // PIXELS_ACROSS)
    small = piece.resize((piece.width // factor, piece.height // factor), Image.Resampling.BOX)
    return small.resize(piece.size, Image.Resampling.NEAREST)


def slightly_blurred(piece: Image.Image, side: int) -> Image.Image:
    return piece.filter(ImageFilter.GaussianBlur(side / 250))


def shaken(piece: Image.Image, side: int) -> Image.Image:
    pixels = uniform_filter1d(np.asarray(piece, np.float32), max(5, side // 40), axis=1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def enlarged(piece: Image.Image, side: int) -> Image.Image:
    small = piece.resize((piece.width // 4, piece.height // 4), Image.Resampling.LANCZOS)
    return small.resize(piece.size, Image.Resampling.BICUBIC)


def compressed(piece: Image.Image, side: int) -> Image.Image:
    file = io.BytesIO()
    piece.save(file, "JPEG", quality=10)
    return Image.open(file).convert("RGB")


def noisy(piece: Image.Image, side: int) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 15, (piece.height, piece.width, 3))
    return Image.fromarray((np.asarray(piece) + noise).clip(0, 255).astype(np.uint8))


Damage = Callable[[Image.Image, int], Image.Image]
"""Takes a piece of an image, and the shorter side of the whole image in pixels."""
DAMAGES: dict[str, Damage] = {"blurred": blurred, "smeared": smeared, "pixelated": pixelated, "noisy": noisy}
OTHER_DAMAGES: dict[str, Damage] = {
    "slightly blurred": slightly_blurred,
    "shaken": shaken,
    "enlarged": enlarged,
    "compressed": compressed,
}
"""Nothing is fitted on these."""
UNDAMAGED = "undamaged"


def damaged(image: Image.Image, quarter: int, damage: str) -> Image.Image:
    """A copy of which one quarter (0 to 3, in rows) is damaged."""
    width, height = (length // 2 for length in image.size)
    left, top = quarter % 2 * width, quarter // 2 * height
    piece = image.crop((left, top, left + width, top + height))
    image = image.copy()
    image.paste((DAMAGES | OTHER_DAMAGES)[damage](piece, min(image.size)), (left, top))
    return image


def change(image: Image.Image, other: Image.Image) -> float:
    """Mean difference of two images in the quarter in which they differ, in levels of 255."""
    return 4 * float(np.mean(ImageStat.Stat(ImageChops.difference(image, other)).mean))


def quarter_of(part: MapPart, size: tuple[int, int]) -> int:
    """Of the image, in which the middle of a part lies."""
    right = 2 * part.left + part.width > size[0]
    lower = 2 * part.top + part.height > size[1]
    return 2 * lower + right


def is_reported(path: Path) -> bool:
    """Whether an image is of the half on which nothing is fitted."""
    return sha256(path.name.encode()).digest()[-1] % 2 == 1


def smoothest(image: Image.Image, parts: Sequence[MapPart]) -> list[MapPart]:
    """The SMOOTH_SHARE of the parts in which neighbouring pixels differ least."""
    grey = np.asarray(image.convert("L"), np.float32)

    def roughness(part: MapPart) -> float:
        piece = grey[part.top : part.top + part.height, part.left : part.left + part.width]
        return float(np.abs(np.diff(piece, axis=0)).mean() + np.abs(np.diff(piece, axis=1)).mean())

    return sorted(parts, key=roughness)[: round(SMOOTH_SHARE * len(parts))]


def print_weights(encoder: ImageEncoder, images: Sequence[Image.Image]) -> None:
    """DEPARTURE_WEIGHTS by least squares, none below 0: what damage of whole images takes from the logits
    without the share of own pixels.
    """
    departed: list[Map] = []
    falls: list[Map] = []
    for image in tqdm(images, unit="image"):
        usual, before = image_signs(encoder, image)
        for damage in DAMAGES.values():
            signs, after = image_signs(encoder, damage(image, min(image.size)))
            departed.append(departures(signs, usual))
            falls.append(before - after)
    print(f"Weights of {len(images)} images:")
    for aspect, fall in zip(JUDGED_ASPECTS, np.array(falls).T, strict=True):
        weights, _ = nnls(np.array(departed), fall)
        names = ("more autocorrelation", "pixelation", "less autocorrelation")
        print(
            f"  {aspect:<13}", *(f"{name} {weight:.2f}" for name, weight in zip(names, weights, strict=True))
        )


@torch.inference_mode()
def image_signs(encoder: ImageEncoder, image: Image.Image) -> tuple[Map, Map]:
    """Of a whole image: signs of texture, and logits without the share of own pixels [JUDGED_ASPECTS]."""
    features = encoder.features(views([image]))
    share = encoder.connector.quality_regressor.of_own_pixels(features.statistics[:, N_STATISTICS:])
    rest = encoder.connector.quality_logits(features) - share
    return np.mean([texture_signs(window) for window in windows(image)], axis=0), rest[0].float().numpy()


def measured(assessor: Assessor, image: Image.Image, quarter: int) -> Iterator[dict[str, Any]]:
    """Where the worst part lies and how deep it is: a row for each aspect and damage, if it is to be seen."""
    smooth: list[MapPart] = []
    for damage in (UNDAMAGED, *DAMAGES, *OTHER_DAMAGES):
        shown = image if damage == UNDAMAGED else damaged(image, quarter, damage)
        if damage != UNDAMAGED and change(image, shown) < MIN_CHANGE:
            continue
        found = assessor.quality_map(shown)
        smooth = smooth or smoothest(image, found.parts)
        for aspect, scores in found.scores.items():
            worst = found.worst(aspect)
            hit = quarter_of(worst, image.size) == quarter
            yield {
                "damage": damage,
                "aspect": str(aspect),
                "in quarter": hit,
                "in smoothest": worst in smooth,
                "depth": min(scores),
            }


def print_hits(assessor: Assessor, images: Sequence[Image.Image], random: Random) -> None:
    rows = [
        row for image in tqdm(images, unit="image") for row in measured(assessor, image, random.randrange(4))
    ]
    print(f"Worst part of {len(images)} images' maps:")
    print(f"{'':<31} images  in quarter  in smoothest  median  deeper than undamaged")
    undamaged: dict[str, Any] = {}
    for (damage, aspect), group in pd.DataFrame(rows).groupby(["damage", "aspect"], sort=False):
        depths = group["depth"].to_numpy()
        deeper = np.less.outer(depths, undamaged.setdefault(aspect, depths)).mean()
        print(
            f"{damage:<17} {aspect:<13} {len(group):6} {group['in quarter'].mean():11.0%} "
            f"{group['in smoothest'].mean():13.0%} {np.median(depths):+7.2f} {deeper:22.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[EXAMPLES_FOLDER], metavar="FOLDER")
    parser.add_argument("--images", type=int, default=16, help="to take of each folder's half, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and quarters")
    parser.add_argument("--model", default="nano", help="shipped name or checkpoint folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--weights", action="store_true", help="fit nano's on the other half instead")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    assessor, random = Assessor.from_pretrained(args.model), Random(args.seed)
    chosen: list[Path] = []
    for folder in args.folders:
        names = sorted(path for path in folder.rglob("*") if is_image_name(path))
        half = [path for path in names if is_reported(path) != args.weights]
        chosen += random.sample(half, min(args.images, len(half)))
    if not chosen:
        parser.error("There is no image of this half; give a folder with more of them.")
    images = [open_image(path) for path in chosen]
    if args.weights:
        print_weights(assessor.backbone.image_encoder, images)
    else:
        print_hits(assessor, images, random)


if __name__ == "__main__":
    main()
