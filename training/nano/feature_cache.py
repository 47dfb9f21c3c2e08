"""Nano's features of images as they are trained on: computed once, kept in files, and resumed from there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from m3agiqa.aspects import MosScale
from m3agiqa.backbones.cpu_precision import fast_autocast
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.backbones.nano.connector import ImageFeatures
from m3agiqa.backbones.nano.efficientnet_lite import views
from m3agiqa.backbones.nano.image_encoder import ImageEncoder
from m3agiqa.files import atomic_path, stamp_or_empty
from m3agiqa.images import open_image
from m3agiqa.samples import Sample
from training.data.distortions import damage, depicts_prompt, jitter
from training.data.nano_teacher import images_with_captions, images_with_prompts
from training.data.variants import image_hash
from training.parallel import progress_bar
from training.stages.curriculum import CAPTION_FROM

VIEWS_PER_FILE = 128  # views whose features are kept in one file; as many are lost at most when interrupted
# of the fields of ImageFeatures, in their order
FILE_KEYS = ("places", "statistics", "appearance", "colours", "encoder_scores")
ENCODER_BATCH_SIZE = 8  # views in one forward pass of the vision encoder


@dataclass(frozen=True)
class ImageView:
    """An image as it is shown, and what was said about it."""

    image: Path
    texts: tuple[str, ...] = ()
    seed: str = ""
    """Of its random changes; empty: shown unchanged."""
    damage: str | None = None

    def open(self) -> Image.Image:
        image = open_image(self.image)
        if self.seed:
            rng = Random(self.seed)
            image = jitter(image, rng)
            if self.damage:
                image = damage(image, self.damage, rng, strength=rng.uniform(0.5, 1.5))
        return image


def view_of(sample: Sample, scale: MosScale, seed: str = "") -> ImageView:
    prompts = [sample.prompt] if sample.prompt and depicts_prompt(sample, scale, CAPTION_FROM) else []
    return ImageView(sample.image, (*prompts, *sample.descriptions.values()), seed)


def prompted_views(extras: Path | None) -> list[ImageView]:
    return [
        ImageView(sample.image, (sample.prompt or "",), sample.id) for sample in images_with_prompts(extras)
    ]


def captioned_views(extras: Path | None, samples: Iterable[Sample]) -> list[ImageView]:
    return [
        ImageView(image, tuple(texts), image.name) for image, texts in images_with_captions(extras, samples)
    ]


def cached_features(backbone: NanoBackbone, shown: Sequence[ImageView], folder: Path) -> ImageFeatures:
    """Features of the views, computed once and kept in `folder`; those of grid cells in 16 bit.

    What was kept there of other views, or by another version of nano, is deleted.
    """
    files = [image_hash(view.image) for view in shown]
    stamp_or_empty(folder, list(zip(shown, files, strict=True)), backbone.revision)
    parts = []
    with progress_bar(None, "look", total=len(shown)) as progress:
        for start in range(0, len(shown), VIEWS_PER_FILE):
            shard = shown[start : start + VIEWS_PER_FILE]
            path = folder / f"{start:06}.safetensors"
            if not path.exists():
                with atomic_path(path) as partial:
                    save_file(
                        dict(zip(FILE_KEYS, _features(backbone.image_encoder, shard), strict=True)), partial
                    )
            tensors = load_file(path)
            parts.append(ImageFeatures(*(tensors[key] for key in FILE_KEYS)))
            progress.update(len(shard))
    return _concatenated(parts)


def select_features(features: ImageFeatures, rows: list[int]) -> ImageFeatures:
    """The features of some images."""
    return ImageFeatures(*(field[rows] for field in features))


@torch.inference_mode()
def _features(image_encoder: ImageEncoder, shown: Sequence[ImageView]) -> ImageFeatures:
    batches = []
    for start in range(0, len(shown), ENCODER_BATCH_SIZE):
        images = [view.open() for view in shown[start : start + ENCODER_BATCH_SIZE]]
        with fast_autocast():
            features = image_encoder.features(views(images))
        batches.append(features._replace(grid_cells=features.grid_cells.bfloat16()))
    return _concatenated(batches)


def _concatenated(parts: list[ImageFeatures]) -> ImageFeatures:
    return ImageFeatures(*map(torch.cat, zip(*parts, strict=True)))
