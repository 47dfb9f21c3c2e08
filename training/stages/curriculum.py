"""What the backbone is taught and in which order: batches of lessons, each about one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import TypeVar

from PIL import Image

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.base import Request
from m3agiqa.conversation import Conversation, Turn
from m3agiqa.images import open_image
from m3agiqa.samples import Sample
from training.data.distortions import (
    DAMAGE_KINDS,
    DAMAGE_WORDS,
    damage,
    damaged_mos,
    depicts_prompt,
    jitter,
    unrelated_description,
    unrelated_mos,
    unrelated_prompt,
)
from training.data.nano_teacher import images_with_captions, images_with_prompts, load_published_conversations
from training.data.prompt_edits import changed, changed_description, changed_mos

Item = TypeVar("Item")

CAPTION_FROM = 0.625  # correspondence, in [0, 1], from which a prompt is as good as a caption
CAPTION_QUESTION = "Describe what this image shows in one sentence."


@dataclass(frozen=True)
class Lesson:
    """Complete conversations about one image (None: text only), which may be damaged on purpose."""

    image: Path | None
    conversations: tuple[Conversation, ...]
    damage: str | None = None
    jitter: bool = True

    def request(self, rng: Random) -> Request:
        """Open the image, slightly changed at random unless `jitter` is off."""
        if self.image is None:
            return Request(None, self.conversations)
        image: Image.Image = open_image(self.image)
        if self.jitter:
            image = jitter(image, rng)
        if self.damage:
            image = damage(image, self.damage, rng, strength=rng.uniform(0.7, 1.5))
        return Request(image, self.conversations)


@dataclass(frozen=True)
class CurriculumConfig:
    """How much of what is taught."""

    warmup_captions: int = 900
    """Images in the warm-up that are only captioned."""
    warmup_ratings: int = 480
    """Labelled images in the warm-up that are rated in one round, without a description."""
    warmup_texts: int = 300
    """Published conversations (text only) in the warm-up; they teach the language model the genre."""
    warmup_batch: int = 12
    """Lessons a step in the warm-up, where each is short."""
    epochs: float = 1.0
    """Passes over the labelled samples after the warm-up; one takes about 35 minutes on 2 cores."""
    batch: int = 3
    """Images a step after the warm-up; each has three to four conversations."""
    rated: float = 0.5
    """Share of conversations that go on to the rating; it is learned from fewer than descriptions are."""
    mismatched: float = 0.35
    """Share of images that also get a conversation about a wrong prompt."""
    changed: float = 0.5
    """Share of wrong prompts that are the image's own with one attribute changed, where it has what was asked
    for; the others are other images' prompts."""
    damaged: float = 0.25
    """Share of images that are also shown as a damaged copy."""
    jitter: bool = True
    """Whether images are mildly rescaled and recompressed at random, so that neither tells anything."""


def curriculum(
    samples: list[Sample], auxiliary_data: Path | None, scale: MosScale, config: CurriculumConfig, seed: int
) -> list[list[Lesson]]:
    """Warm-up (captions, prompts, one-round ratings, texts), then the labelled training samples.

    `auxiliary_data` holds captions, unlabelled images and published conversations; without them the warm-up
    has what the samples give. A sample without MOS is not rated, one without a description not described, and
    one without MOS for quality not shown damaged; where nothing is left to say, there is no lesson.
    """
    rng = Random(seed)
    train = [sample for sample in samples if sample.split == "train"]
    batches: list[list[Lesson]] = []
    for lessons in (
        _captions(samples, auxiliary_data, scale, config, rng),
        _one_round(train, scale, config, rng),
        _texts(auxiliary_data, config, rng),
    ):
        batches += _batches(lessons, config.warmup_batch, rng)
    rng.shuffle(batches)  # each batch is either all images or all text, as their prefixes differ
    remaining = config.epochs
    while remaining > 0:
        chosen = rng.sample(train, round(len(train) * min(remaining, 1.0)))
        lessons_of_samples = [_lessons(sample, train, scale, config, rng) for sample in chosen]
        non_empty = [lessons for lessons in lessons_of_samples if lessons]
        batches += [list(chain.from_iterable(group)) for group in _batches(non_empty, config.batch, rng)]
        remaining -= 1
    return [[replace(lesson, jitter=config.jitter) for lesson in batch] for batch in batches]


def _some(items: list[Item], count: int, rng: Random) -> list[Item]:
    return rng.sample(items, min(count, len(items)))


def _batches(items: list[Item], size: int, rng: Random) -> list[list[Item]]:
    rng.shuffle(items)
    return [items[i : i + size] for i in range(0, len(items), size)]


def _caption(image: Path, caption: str) -> Lesson:
    turns = (Turn("user", CAPTION_QUESTION), Turn("assistant", caption.strip()))
    return Lesson(image, (Conversation(None, turns),))


def _captions(
    samples: list[Sample], auxiliary_data: Path | None, scale: MosScale, config: CurriculumConfig, rng: Random
) -> list[Lesson]:
    photographs = images_with_captions(auxiliary_data, samples)
    lessons = [_caption(image, rng.choice(captions)) for image, captions in photographs]
    lessons += [_caption(sample.image, sample.prompt) for sample in images_with_prompts(auxiliary_data)]
    for sample in samples:
        clean = sample.split == "train" and not sample.distorted
        if clean and depicts_prompt(sample, scale, CAPTION_FROM):
            lessons.append(_caption(sample.image, sample.prompt))
    return _some(lessons, config.warmup_captions, rng)


def _one_round(train: list[Sample], scale: MosScale, config: CurriculumConfig, rng: Random) -> list[Lesson]:
    lessons = []
    for sample in _some([s for s in train if s.prompt and s.mos], config.warmup_ratings, rng):
        held = tuple(
            Conversation.one_round(aspect, sample.prompt).rate(scale.rating(mos))
            for aspect, mos in sample.mos.items()
        )
        lessons.append(Lesson(sample.image, held))
    return lessons


def _texts(auxiliary_data: Path | None, config: CurriculumConfig, rng: Random) -> list[Lesson]:
    lessons = []
    published = load_published_conversations(auxiliary_data) if auxiliary_data else []
    for aspect, turns in _some(published, config.warmup_texts, rng):
        contents = tuple(Turn(turn["role"], turn["content"].replace("<image>", "").strip()) for turn in turns)
        lessons.append(Lesson(None, (Conversation(aspect, contents),)))
    return lessons


def _lessons(
    sample: Sample, pool: list[Sample], scale: MosScale, config: CurriculumConfig, rng: Random
) -> list[Lesson]:
    def answered(aspect: Aspect, prompt: str | None, text: str, mos: float | None) -> Conversation:
        conversation = Conversation.open(aspect, prompt).describe(text)
        if mos is not None and rng.random() < config.rated:
            return conversation.rate(scale.rating(mos))
        return replace(conversation, turns=conversation.turns[:2])

    conversations = [
        answered(aspect, sample.prompt, text, sample.mos.get(aspect))
        for aspect, text in sample.descriptions.items()
    ]
    if sample.prompt and not sample.distorted and rng.random() < config.mismatched:
        conversations.append(answered(Aspect.CORRESPONDENCE, *_mismatch(sample, pool, scale, config, rng)))
    lessons = [Lesson(sample.image, tuple(conversations))] if conversations else []
    quality = sample.mos.get(Aspect.QUALITY)
    if quality is not None and not sample.distorted and rng.random() < config.damaged:
        kind = rng.choice(DAMAGE_KINDS)
        mos = damaged_mos(quality, scale)
        text = rng.choice(DAMAGE_WORDS[kind])
        lessons.append(Lesson(sample.image, (answered(Aspect.QUALITY, sample.prompt, text, mos),), kind))
    return lessons


def _mismatch(
    sample: Sample, pool: list[Sample], scale: MosScale, config: CurriculumConfig, rng: Random
) -> tuple[str, str, float]:
    """A wrong prompt, what can be said about it, and its MOS."""
    change = changed(sample, rng) if rng.random() < config.changed else None
    if change and depicts_prompt(sample, scale, CAPTION_FROM):
        mos = changed_mos(sample.mos[Aspect.CORRESPONDENCE], scale)
        return change.prompt, changed_description(change, rng), mos
    other = unrelated_prompt(sample, pool, rng)
    return other, unrelated_description(sample, other, scale, rng), unrelated_mos(scale)
