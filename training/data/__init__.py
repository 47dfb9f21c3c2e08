"""Data sets of images with MOS: one reader a format, and `load` for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from training.data import agiqa_3k, aigciqa2023, aigciqa_20k, conversations
from training.data.checks import ImageFinder, LocatedSample, checked, sample_entries
from training.data.csv_table import table_entries
from training.data.nano_scores import FIVE_LEVELS, nano_entries
from training.data.nano_teacher import TEACHER_SCALE, teacher_entries
from training.data.splits import SplitConfig, apportion, assign, shuffled


@dataclass(frozen=True)
class DataConfig:
    """Which data set is used, and how much of it."""

    format: str
    """A name in DATA_FORMATS."""
    path: Path
    """The data set's folder or file, as the format's reader says."""
    images: Path | None = None
    """Folder of the images, where they are not where the download has them."""
    scale: tuple[float, float] | None = None
    """Lowest and highest possible MOS (default: the format's own; tables and samples have none)."""
    aspects: tuple[Aspect, ...] | None = None
    """Leave out other aspects, and samples with none of these."""
    mos: Path | None = None
    """Table with the true scores of conversations (name, mos_quality and the like)."""
    limit: int | None = None
    """Only so many samples, drawn by the split's seed, with the shares of the parts kept."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Which samples are for training, validation and test."""


@dataclass(frozen=True)
class Dataset:
    """Samples with unique ids and existing images, and the scale of their MOS."""

    samples: list[Sample]
    scale: MosScale


@dataclass(frozen=True)
class Format:
    """How data of one form is read."""

    read: Callable[[DataConfig, ImageFinder, MosScale], Iterable[LocatedSample]]
    scale: MosScale | None = None
    """Of the MOS, where it is always the same."""
    image_folders: tuple[str, ...] = ("",)
    """Where its images may be, below the data set's folder."""
    parts_are_wished: bool = False
    """Whether parts in the data are its owner's wish, which a drawn split must not pass over in silence;
    public data sets and conversation files have theirs whether one wants them or not."""


DATA_FORMATS = {
    "agiqa_3k": Format(
        lambda c, images, scale: agiqa_3k.agiqa_3k_entries(c.path, images, scale),
        agiqa_3k.MOS_SCALE,
        agiqa_3k.IMAGE_FOLDERS,
    ),
    "aigciqa2023": Format(
        lambda c, images, scale: aigciqa2023.aigciqa2023_entries(c.path, images, scale),
        aigciqa2023.MOS_SCALE,
        aigciqa2023.IMAGE_FOLDERS,
    ),
    "aigciqa_20k": Format(
        lambda c, images, scale: aigciqa_20k.aigciqa_20k_entries(c.path, images, scale),
        aigciqa_20k.MOS_SCALE,
        aigciqa_20k.IMAGE_FOLDERS,
    ),
    "table": Format(lambda c, images, scale: table_entries(c.path, images, scale), parts_are_wished=True),
    "conversations": Format(
        lambda c, images, scale: conversations.conversation_entries(c.path, c.aspects, images, scale, c.mos),
        conversations.MOS_SCALE,
        conversations.IMAGE_FOLDERS,
    ),
    "samples": Format(lambda c, images, scale: sample_entries(c.path), parts_are_wished=True),
    "nano": Format(lambda c, images, scale: nano_entries(c.path), FIVE_LEVELS),
    "teacher": Format(lambda c, images, scale: teacher_entries(c.path), TEACHER_SCALE),
}
"""Every format that `load` knows."""


def load(config: DataConfig) -> Dataset:
    """Read, check, split and limit a data set; images are looked for, not opened.

    Raises InputError that names file and row of what is wrong, or how many images are missing.
    """
    images, mos = (Path(path) if path else None for path in (config.images, config.mos))
    config = replace(config, path=Path(config.path), images=images, mos=mos)
    form = DATA_FORMATS.get(config.format)
    if form is None:
        raise InputError(f"There is no data format {config.format!r}; there are {', '.join(DATA_FORMATS)}.")
    if config.mos is not None and config.format != "conversations":
        raise InputError("A table of scores (`mos`) goes with conversations only.")
    if not config.path.exists():
        raise InputError(f"There is no data set {config.path}.")
    scale = _scale(config, form)
    folder = config.path if config.path.is_dir() else config.path.parent
    finder = ImageFinder(config.images or folder, form.image_folders)
    samples = checked(form.read(config, finder, scale), finder, scale, config.path)
    if form.parts_are_wished:
        _heed_parts(samples, config)
    samples = assign(_only(samples, config), config.split)
    return Dataset(_limited(samples, config.limit, config.split.seed), scale)


def fingerprint(samples: list[Sample]) -> str:
    """SHA-256 over ids, prompts, scores, raters, descriptions and splits: which data a model learned from."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.id):
        facts: list[Any] = [sample.id, sample.prompt, sample.mos, sample.descriptions, sample.split]
        facts += [sample.raters] if sample.raters else []  # else hashes are as before there were raters
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _scale(config: DataConfig, form: Format) -> MosScale:
    if config.scale is None:
        if form.scale is None:
            raise InputError(
                f"Set the scale that the scores of {config.path} are on, low and high, such as 1, 5."
            )
        return form.scale
    try:
        low, high = config.scale
        return MosScale(float(low), float(high))
    except (TypeError, ValueError) as error:
        raise InputError(f"The scale of {config.path} is not low and high: {error}.") from error


def _heed_parts(samples: list[Sample], config: DataConfig) -> None:
    """Raises InputError where a split would be drawn over parts that the data has."""
    parts = {sample.split for sample in samples}
    if parts != {"train"} and config.split.by != "given" and config.split.file is None:
        raise InputError(
            f"{config.path} has parts of its own ({', '.join(sorted(parts))}). Set data.split.by to given to "
            "use them, or remove the column split."
        )


def _only(samples: list[Sample], config: DataConfig) -> list[Sample]:
    """The samples with nothing but the wanted aspects; without those that then have nothing."""
    if not config.aspects:
        return samples
    left = []
    for sample in samples:
        mos = {aspect: value for aspect, value in sample.mos.items() if aspect in config.aspects}
        descriptions = {
            aspect: text for aspect, text in sample.descriptions.items() if aspect in config.aspects
        }
        if mos or descriptions:
            left.append(replace(sample, mos=mos, descriptions=descriptions))
    if not left:
        raise InputError(f"{config.path} has nothing about {', '.join(config.aspects)}.")
    return left


def _limited(samples: list[Sample], limit: int | None, seed: int) -> list[Sample]:
    if limit is None or limit >= len(samples):
        return samples
    if limit < 1:
        raise InputError(f"A data set cannot be limited to {limit} samples.")
    parts: dict[str, list[str]] = {}
    for sample in sorted(samples, key=lambda sample: sample.split):
        parts.setdefault(sample.split, []).append(sample.id)
    shares = apportion(limit, [len(ids) for ids in parts.values()])
    kept: set[str] = set()
    for ids, share in zip(parts.values(), shares, strict=True):
        kept |= set(shuffled(ids, seed)[:share])
    return [sample for sample in samples if sample.id in kept]
