"""Which conversations are spoken and encoded: the images themselves, and copies with known effect."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Literal

from PIL import Image

from m3agiqa.aspects import Aspect
from m3agiqa.conversation import Conversation
from m3agiqa.images import open_image
from m3agiqa.samples import Sample
from m3agiqa.weights import sha256
from training.augment import DAMAGE_REVISION, DAMAGES, damage, unrelated_prompt

Kind = Literal["own", "unrelated", "damaged"]
SANITY_DAMAGES = ("blur", "noise")
UNRELATED_SHARE = 0.35  # of the training images; each costs one more conversation
DAMAGED_SHARE = 0.25  # likewise, and one more image


@dataclass(frozen=True)
class Case:
    """A sample's image (perhaps damaged) with a prompt (perhaps another sample's), for some aspects."""

    sample: Sample
    kind: Kind
    aspects: tuple[Aspect, ...]
    prompt: str | None
    damage: str | None = None

    def image(self) -> Image.Image:
        image = open_image(self.sample.image)
        if self.damage:
            image = damage(image, self.damage, Random(self.sample.id))
        return image

    def conversations(self) -> tuple[Conversation, ...]:
        """To be spoken: opened with round 1."""
        return tuple(Conversation.open(aspect, self.prompt) for aspect in self.aspects)

    @cached_property
    def _image_hash(self) -> str:
        return sha256(Path(self.sample.image))

    def key(self, aspect: Aspect, identity: str, description: str | None = None) -> str:
        """Hash of all that the conversation and its hidden states depend on.

        `identity` is the backbone's (training.describe.backbone_id); no description: spoken by it.
        """
        question = Conversation.open(aspect, self.prompt).turns[0].content
        damaged = (self.damage, DAMAGE_REVISION, self.sample.id) if self.damage else None
        facts = (identity, self._image_hash, damaged, question, description)
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def all_cases(samples: list[Sample], seed: int) -> list[Case]:
    """Own cases of all samples; unrelated prompts and damaged copies of undistorted ones.

    Test images get every sanity case. A share of the training images gets the like to be fitted with,
    with any damage; validation images need none.
    """
    own = [Case(sample, "own", _aspects(sample), sample.prompt) for sample in samples]
    return own + [case for sample in samples for case in _worse(sample, samples, seed)]


def _worse(sample: Sample, samples: list[Sample], seed: int) -> list[Case]:
    rng = Random(f"{seed} {sample.id}")
    train = sample.split == "train"
    if sample.distorted or sample.split == "validation":
        return []
    cases = []
    if sample.prompt and (not train or rng.random() < UNRELATED_SHARE):
        other = unrelated_prompt(sample, [each for each in samples if each.split == sample.split], rng)
        cases.append(Case(sample, "unrelated", (Aspect.CORRESPONDENCE,), other))
    if not train or rng.random() < DAMAGED_SHARE:
        kinds = (rng.choice(DAMAGES),) if train else SANITY_DAMAGES
        cases += [Case(sample, "damaged", (Aspect.QUALITY,), sample.prompt, kind) for kind in kinds]
    return cases


def sanity_cases(samples: list[Sample], seed: int) -> list[Case]:
    """The part of `all_cases` that the sanity check needs."""
    return [case for case in all_cases(samples, seed) if case.sample.split == "test"]


def _aspects(sample: Sample) -> tuple[Aspect, ...]:
    return tuple(aspect for aspect in Aspect if sample.prompt or not aspect.needs_prompt)
