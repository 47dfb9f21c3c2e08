"""What is taught: only training images, complete conversations, every kind of lesson."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from m3agiqa.aspects import RATING_WORDS, Aspect
from m3agiqa.samples import Sample
from tests.training.teacher_samples import load_teacher
from training.data.distortions import DAMAGE_WORDS
from training.data.nano_teacher import TEACHER_SCALE
from training.stages.curriculum import CurriculumConfig, Lesson, curriculum


@pytest.fixture
def lessons(data: Path) -> list[list[Lesson]]:
    config = CurriculumConfig(warmup_batch=4, epochs=2, batch=2, mismatched=1.0, damaged=1.0)
    return curriculum(load_teacher(data), data, TEACHER_SCALE, config, seed=0)


def test_only_training_images_are_shown(data: Path, lessons: list[list[Lesson]]) -> None:
    held_out = {sample.image for sample in load_teacher(data) if sample.split != "train"}
    shown = {lesson.image for batch in lessons for lesson in batch}
    assert shown and not shown & held_out


def test_a_batch_is_all_images_or_all_text(lessons: list[list[Lesson]]) -> None:
    kinds = {frozenset(lesson.image is None for lesson in batch) for batch in lessons}
    assert kinds == {frozenset([True]), frozenset([False])}


def test_every_conversation_ends_with_an_answer(lessons: list[list[Lesson]]) -> None:
    held = [c for batch in lessons for lesson in batch for c in lesson.conversations]
    assert {c.turns[-1].role for c in held} == {"assistant"}
    described = [c for c in held if c.turns[0].content.startswith("Please closely examine")]
    rated = [c for c in described if len(c.turns) == 4]
    assert {len(c.turns) for c in described} == {2, 4}, "some go on to the rating"
    assert {c.turns[-1].content for c in rated} <= set(RATING_WORDS)
    assert any(len(c.turns) == 2 and c.turns[-1].content in RATING_WORDS for c in held), "one round"


def test_wrong_prompts_and_damage_are_taught_as_bad(data: Path, lessons: list[list[Lesson]]) -> None:
    damaged = [lesson for batch in lessons for lesson in batch if lesson.damage]
    assert damaged
    for lesson in damaged:
        (conversation,) = lesson.conversations
        assert conversation.aspect is Aspect.QUALITY
        assert conversation.turns[1].content in DAMAGE_WORDS[lesson.damage]
        assert lesson.request(Random(0)).image.mode == "RGB"
    whole = [b for batch in lessons for b in batch if b.image and not b.damage and len(b.conversations) > 3]
    assert whole
    prompts = {sample.prompt for sample in load_teacher(data)}
    for lesson in whole:
        right, wrong = (c for c in lesson.conversations if c.aspect is Aspect.CORRESPONDENCE)
        assert right.turns[0] != wrong.turns[0]
        unrelated = wrong.prompt in prompts
        assert not unrelated or wrong.turns[-1].content == "bad" or len(wrong.turns) == 2


def test_half_of_the_wrong_prompts_are_nearly_right(data: Path) -> None:
    samples = [replace(s, mos={**s.mos, Aspect.CORRESPONDENCE: 5.0}) for s in load_teacher(data) if s.prompt]
    kinds = {}
    for share in (0.0, 1.0):
        lessons = taught(samples, replace(EVERYTHING, changed=share, damaged=0.0, warmup_ratings=0))
        held = [c for each in lessons for c in each.conversations if c.aspect is Aspect.CORRESPONDENCE]
        own = {s.prompt for s in samples}
        kinds[share] = {c.turns[-1].content for c in held if c.prompt not in own}
    assert kinds == {0.0: set(), 1.0: {"fair"}}, "half as far from the bottom as the image's own prompt"


EVERYTHING = CurriculumConfig(warmup_batch=4, epochs=2, batch=2, rated=1.0, mismatched=1.0, damaged=1.0)


def taught(samples: list[Sample], config: CurriculumConfig = EVERYTHING) -> list[Lesson]:
    batches = curriculum(samples, None, TEACHER_SCALE, config, seed=0)
    assert all(batches), "an empty batch is no step"
    lessons = [lesson for batch in batches for lesson in batch]
    assert all(lesson.conversations for lesson in lessons), "a lesson says something"
    return lessons


def test_what_has_no_mos_is_described_but_not_rated(data: Path) -> None:
    whole = load_teacher(data)
    for without in Aspect:
        samples = [replace(s, mos={a: mos for a, mos in s.mos.items() if a is not without}) for s in whole]
        told = {(s.image, s.descriptions[without]) for s in samples if without in s.descriptions}
        lessons = taught(samples)
        rated = {
            (lesson.image, c.turns[1].content): len(c.turns) == 4
            for lesson in lessons
            for c in lesson.conversations
            if c.aspect is without and (lesson.image, c.turns[1].content) in told
        }
        assert rated and not any(rated.values()), without
        others = [c for each in lessons for c in each.conversations if c.aspect not in (None, without)]
        assert any(len(c.turns) == 4 for c in others)
        assert any(lesson.damage for lesson in lessons) == (without is not Aspect.QUALITY)


def test_images_of_which_nothing_is_known_are_no_lessons(data: Path) -> None:
    samples = [
        replace(s, **({"mos": {}, "descriptions": {}} if i % 2 else {"descriptions": {}}))
        for i, s in enumerate(load_teacher(data))
    ]
    known = {s.image for s in samples if s.split == "train" and s.mos}
    config = replace(EVERYTHING, mismatched=0.0)
    assert {lesson.image for lesson in taught(samples, config)} == known
    assert taught(samples, replace(config, warmup_captions=0, warmup_ratings=0, damaged=0.0)) == []
