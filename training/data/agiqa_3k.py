"""AGIQA-3k (Li et al., arXiv 2306.04717): 2,982 images with quality and correspondence on [0, 5].

Layout of the download: `data.csv` (name, prompt, adj1, adj2, style, mos_quality, std_quality, mos_align,
std_align) with the images beside it or in a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m3agiqa.aspects import MosScale
from training.data.checks import ImageFinder, LocatedSample
from training.data.csv_table import table_entries

MOS_SCALE = MosScale(0.0, 5.0)
IMAGE_FOLDERS = ("images", "image", "Image", "Images", "img", "all", "")


def agiqa_3k_entries(path: Path, images: ImageFinder, scale: MosScale) -> Iterator[LocatedSample]:
    """Samples of `data.csv` (the file or its folder). Raises InputError naming file and line."""
    table = path / "data.csv" if path.is_dir() else path
    return table_entries(table, images, scale, generator=_generator)


def _generator(name: str) -> str:
    """AttnGAN_normal_000.jpg, sd1.5_highcorr_247.jpg, xl2.2_normal_289.jpg: before the first underscore."""
    return Path(name).stem.split("_")[0]
