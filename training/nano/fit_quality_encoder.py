"""Fine-tunes nano's quality encoder: the later stages of its vision encoder, on images and their scores.

Scores correlate with the source of an image. Beside the plain error there is one of differences inside each
source, so that recognising a source is worth little. Early stages are frozen, so that their maps are computed
once: about 0.8 MB an image, all of which are kept in memory.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m3agiqa.backbones.cpu_precision import fast_autocast
from m3agiqa.backbones.nano.efficientnet_lite import (
    WHOLE_PIXELS,
    EfficientNetLite0,
    encoder_input,
    reduced,
    squashed,
)
from m3agiqa.backbones.nano.image_encoder import ImageEncoder
from m3agiqa.backbones.nano.nss_features import WINDOW_SIDE, windows
from m3agiqa.backbones.nano.quality_encoder import ENCODED_ASPECTS, N_EARLY_STAGES, QualityEncoder, early_maps
from m3agiqa.files import atomic_path, stamp_or_empty
from m3agiqa.images import open_image
from m3agiqa.samples import Sample
from training.data.variants import image_hash
from training.nano.epochs import Stateful, train_in_epochs
from training.parallel import progress_bar

MAPS_FOLDER = "state-early-maps"  # by these names they are no part of what was made
TRAINING_FOLDER = "state-quality-encoder"
IMAGES_PER_FILE = 64  # images whose maps are kept in one file; as many are lost at most when interrupted
N_WINDOWS = 4  # windows of an image's own pixels at their usual places, and as many at random ones, mirrored
HEAD_LR = 1e-3  # learning rate of the layers after the encoder
ENCODER_DECAY, HEAD_DECAY = 0.02, 0.05  # weight decay
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of the optimiser."""

    epochs: int = 4
    batch: int = 16
    lr: float = 3e-4
    plain: float = 0.5
    """Weight of the plain squared error."""
    within: float = 1.0
    """Weight of the error of differences inside a source."""


@dataclass(frozen=True)
class EarlyMaps:
    """Maps of N images, in 16 bit."""

    whole: Tensor
    """[N, 2, C, h, w]: the whole image, and mirrored."""
    windows: Tensor
    """[N, 2 N_WINDOWS, C, h, w]: its own pixels."""


def fit_quality_encoder(
    image_encoder: ImageEncoder, samples: Sequence[Sample], out: Path, config: EncoderConfig, seed: int
) -> None:
    """Fine-tune the quality encoder on the training split; resumes from `out`, epoch by epoch."""
    torch.manual_seed(seed)
    train = [sample for sample in samples if sample.split == "train" and sample.mos]
    maps_of = cache(lambda: cached_maps(image_encoder.vision, train, out / MAPS_FOLDER))  # not if all is done
    encoder, loss_of = image_encoder.quality_encoder.train(), _Loss(train, config)
    optimizer = _optimizer(encoder, config)
    steps = max(1, len(train) // config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [config.lr, HEAD_LR], total_steps=config.epochs * steps, pct_start=0.15
    )

    def epoch(number: int) -> float:
        rng = np.random.default_rng([seed, number])  # so that resuming changes nothing
        torch.manual_seed(1000 * seed + number)
        maps, order, losses = maps_of(), rng.permutation(len(train)), []
        for rows in np.array_split(order[: steps * config.batch], steps):
            whole = maps.whole[rows, rng.integers(0, 2, len(rows))]
            near = maps.windows[rows, rng.integers(0, 2 * N_WINDOWS, len(rows))]
            with fast_autocast():
                scores = encoder(whole.float(), near.float().split(1))
            loss = loss_of(scores.float(), torch.from_numpy(rows))
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    parts: dict[str, Stateful] = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    train_in_epochs(epoch, config.epochs, parts, out / TRAINING_FOLDER, "quality encoder")
    encoder.eval().requires_grad_(False)
    shutil.rmtree(out / MAPS_FOLDER, ignore_errors=True)


def unlearned(encoder: QualityEncoder) -> set[str]:
    """Names of parameters that stay as published: those of depthwise convolutions."""
    return {name for name, _ in encoder.named_parameters() if ".depthwise." in name}


def learned_weights(encoder: QualityEncoder) -> dict[str, Tensor]:
    """What differs from the published weights, in 16 bit."""
    fixed = unlearned(encoder)
    return {
        name: value.bfloat16().contiguous()
        for name, value in encoder.state_dict().items()
        if name not in fixed
    }


def cached_maps(vision: EfficientNetLite0, samples: Sequence[Sample], folder: Path) -> EarlyMaps:
    """Early maps of the samples' images, computed once and kept in `folder`."""
    stamp_or_empty(folder, [(sample.id, image_hash(sample.image)) for sample in samples])
    parts = []
    with progress_bar(None, "early maps", total=len(samples)) as progress:  # type: ignore[var-annotated]
        for start in range(0, len(samples), IMAGES_PER_FILE):
            shard = samples[start : start + IMAGES_PER_FILE]
            path = folder / f"{start:06}.safetensors"
            if not path.exists():
                each = [_maps(vision, sample) for sample in shard]
                with atomic_path(path) as partial:
                    save_file(
                        {
                            "whole": torch.stack([maps.whole for maps in each]),
                            "windows": torch.stack([maps.windows for maps in each]),
                        },
                        partial,
                    )
            parts.append(load_file(path))
            progress.update(len(shard))
    return EarlyMaps(*(torch.cat([part[key] for part in parts]) for key in ("whole", "windows")))


@torch.inference_mode()
def _maps(vision: EfficientNetLite0, sample: Sample) -> EarlyMaps:
    image, rng = open_image(sample.image), Random(sample.id)
    smaller, own = reduced(image), windows(image)
    whole = torch.stack([squashed(smaller, WHOLE_PIXELS), squashed(_mirrored(smaller), WHOLE_PIXELS)])
    usual = [encoder_input(own[i % len(own)]) for i in range(N_WINDOWS)]
    others = [encoder_input(_mirrored(_random_window(image, rng))) for _ in range(N_WINDOWS)]

    def early(pixels: Tensor) -> Tensor:
        with fast_autocast():
            return early_maps(vision(pixels, N_EARLY_STAGES)).bfloat16()

    return EarlyMaps(early(whole), early(torch.stack([*usual, *others])))


def _random_window(image: Image.Image, rng: Random) -> Image.Image:
    """Of an image's own pixels; a smaller image is enlarged."""
    shorter = min(image.size)
    if shorter < WINDOW_SIDE:
        sides = [max(WINDOW_SIDE, round(side * WINDOW_SIDE / shorter)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    x, y = (rng.randint(0, side - WINDOW_SIDE) for side in image.size)
    return image.crop((x, y, x + WINDOW_SIDE, y + WINDOW_SIDE))


def _mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _optimizer(encoder: QualityEncoder, config: EncoderConfig) -> torch.optim.Optimizer:
    """Of the 1 x 1 convolutions, and of the layers after them, which begin from nothing and learn faster."""
    encoder.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in unlearned(encoder):
        encoder.get_parameter(name).requires_grad_(False)
    convolutions = [*encoder.blocks.parameters(), *encoder.head.parameters()]
    known = {id(parameter) for parameter in convolutions}
    layers_after = [parameter for parameter in encoder.parameters() if id(parameter) not in known]
    tuned = [parameter for parameter in convolutions if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": tuned, "lr": config.lr, "weight_decay": ENCODER_DECAY},
            {"params": layers_after, "lr": HEAD_LR, "weight_decay": HEAD_DECAY},
        ]
    )


class _Loss:
    """Mean squared error of scores, and of their differences inside each source."""

    def __init__(self, train: Sequence[Sample], config: EncoderConfig) -> None:
        self.config = config
        scores = pd.DataFrame([[sample.mos.get(a, math.nan) for a in ENCODED_ASPECTS] for sample in train])
        standardized = (scores - scores.mean()) / scores.std(ddof=0).replace(0, 1)
        self.known = torch.tensor(scores.notna().to_numpy())
        self.targets = torch.tensor(standardized.fillna(0).to_numpy(), dtype=torch.float32)
        self.sources = torch.tensor(pd.factorize(pd.Series([str(sample.source) for sample in train]))[0])

    def __call__(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Of the scores [B, ENCODED_ASPECTS] of some training images."""
        error = torch.where(self.known[rows], scores - self.targets[rows], 0.0)
        known = self.known[rows].float()
        plain = error.square().sum() / known.sum().clamp_min(1)
        same_source = (self.sources[rows][:, None] == self.sources[rows][None])[..., None]
        pairs = same_source * known[:, None] * known[None]
        within = ((error[:, None] - error[None]).square() * pairs).sum() / pairs.sum().clamp_min(1) / 2
        return self.config.plain * plain + self.config.within * within
