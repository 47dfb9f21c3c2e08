"""What conversations are held about: the images themselves, and variants that must score lower."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

from PIL import Image

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError
from m3agiqa.files import sha256
from m3agiqa.images import open_image
from m3agiqa.samples import Sample
from training.data.distortions import (
    DAMAGE_KINDS,
    DAMAGE_REVISION,
    damage,
    damaged_mos,
    unrelated_mos,
    unrelated_prompt,
)
from training.data.prompt_edits import changed, changed_mos
from training.data.splits import shuffled

Kind = Literal["own", "unrelated", "changed", "damaged"]
SANITY_DAMAGES = ("blur", "noise")
MAX_SANITY_IMAGES = 100  # of the test split, each with four variants; a share is then known to 5 points
WRONG_SHARE = 0.35  # of the training images, with a wrong prompt; each costs one more conversation
CHANGED_SHARE = 0.5  # of those, with one attribute of their prompt changed where there is one
DAMAGED_SHARE = 0.25  # likewise, and one more image


def image_hash(path: Path) -> str:
    """SHA-256 of an image file, which is read again only once it has changed."""
    stat = path.stat()
    return _hash(path, stat.st_mtime_ns, stat.st_size)


@cache
def _hash(path: Path, changed: int, size: int) -> str:
    return sha256(path)


@dataclass(frozen=True)
class Variant:
    """A sample's image (perhaps damaged) with a prompt (perhaps a wrong one), for some aspects."""

    sample: Sample
    kind: Kind
    aspects: tuple[Aspect, ...]
    prompt: str | None
    damage: str | None = None

    def image(self) -> Image.Image:
        """As it is shown. Raises InputError naming sample and file."""
        try:
            image = open_image(self.sample.image)
        except InputError as error:
            raise InputError(f"Sample {self.sample.id}, {self.sample.image}: {error}") from error
        if self.damage:
            image = damage(image, self.damage, Random(self.sample.id))
        return image

    def conversations(self) -> tuple[Conversation, ...]:
        """To be generated: opened with the question of round 1."""
        return tuple(Conversation.open(aspect, self.prompt) for aspect in self.aspects)

    def mos(self, aspect: Aspect, scale: MosScale) -> float | None:
        """The sample's, or what is made up for a damaged image or a wrong prompt; None where not known."""
        own = self.sample.mos.get(aspect)
        if own is None or self.kind == "own":
            return own
        if self.kind == "unrelated":
            return unrelated_mos(scale)
        return (damaged_mos if self.kind == "damaged" else changed_mos)(own, scale)

    def key(self, aspect: Aspect, identity: str) -> str:
        """Hash of all that a generated conversation and its hidden states depend on.

        `identity` is the backbone's (training.stages.hidden_cache.backbone_id).
        """
        question = Conversation.open(aspect, self.prompt).turns[0].content
        return self._hash(identity, question, None)

    def given_key(self, conversation: Conversation, identity: str) -> str:
        """The same for a conversation whose turns are given."""
        turns = tuple((turn.role, turn.content) for turn in conversation.turns)
        return self._hash(identity, str(conversation.aspect), turns)

    def _hash(self, identity: str, *parts: object) -> str:
        damaged = (self.damage, DAMAGE_REVISION, self.sample.id) if self.damage else None
        return hashlib.sha256(
            repr((identity, image_hash(self.sample.image), damaged, *parts)).encode()
        ).hexdigest()


def own_variants(samples: list[Sample], aspects: Sequence[Aspect]) -> list[Variant]:
    """The samples' own images and prompts, for those of the aspects that can be asked about."""
    asked = [(sample, tuple(a for a in aspects if sample.prompt or not a.needs_prompt)) for sample in samples]
    return [Variant(sample, "own", about, sample.prompt) for sample, about in asked if about]


def all_variants(samples: list[Sample], aspects: Sequence[Aspect], seed: int) -> list[Variant]:
    """Own variants of all samples; wrong prompts and damaged copies of undistorted ones.

    MAX_SANITY_IMAGES test images get every variant of the sanity check. A share of the training images gets
    such variants for the losses, with any kind of damage; validation images need none.
    """
    pools: dict[str, list[Sample]] = {}
    for sample in samples:
        pools.setdefault(sample.split, []).append(sample)
    test = [sample.id for sample in samples if sample.split == "test" and not sample.distorted]
    unchecked = set(shuffled(test, seed)[MAX_SANITY_IMAGES:])
    worse = (
        variant
        for sample in samples
        if sample.id not in unchecked
        for variant in _worse(sample, pools[sample.split], seed)
    )
    about = set(aspects)
    return own_variants(samples, aspects) + [variant for variant in worse if set(variant.aspects) <= about]


def _worse(sample: Sample, pool: list[Sample], seed: int) -> list[Variant]:
    """Variants of a sample with a wrong prompt or a damaged image; `pool` is all samples of its split."""
    rng = Random(f"{seed} {sample.id}")
    train = sample.split == "train"
    if sample.distorted or sample.split == "validation":
        return []
    variants = []
    if sample.prompt and (not train or rng.random() < WRONG_SHARE):
        change = changed(sample, rng) if not train or rng.random() < CHANGED_SHARE else None
        if change:
            variants.append(Variant(sample, "changed", (Aspect.CORRESPONDENCE,), change.prompt))
        if not train or not change:
            other = unrelated_prompt(sample, pool, rng)
            variants.append(Variant(sample, "unrelated", (Aspect.CORRESPONDENCE,), other))
    if not train or rng.random() < DAMAGED_SHARE:
        kinds = (rng.choice(DAMAGE_KINDS),) if train else SANITY_DAMAGES
        variants += [Variant(sample, "damaged", (Aspect.QUALITY,), sample.prompt, kind) for kind in kinds]
    return variants


def sanity_variants(samples: list[Sample], aspects: Sequence[Aspect], seed: int) -> list[Variant]:
    """The part of `all_variants` that the sanity check needs."""
    return [variant for variant in all_variants(samples, aspects, seed) if variant.sample.split == "test"]
