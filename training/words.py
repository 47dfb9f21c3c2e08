"""Stage words: fine-tune a backbone on people's corrected descriptions, if that makes its own better.

Both are measured on held-out images that people have described. What got worse is not taken over.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import torch

from m3agiqa.aspects import COMMON_SCALE, Aspect, MosScale
from m3agiqa.backbones.base import Request
from m3agiqa.backbones.loading import backbone_class, load_backbone
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.backbones.nano.grounded_text import write_first_estimates
from m3agiqa.backbones.nano.head_adapter import HEAD_ADAPTER_FILE
from m3agiqa.checkpoint.comparison import MIN_TO_RESAMPLE, ComparedWords, WordMeasures
from m3agiqa.conversation import Conversation
from m3agiqa.files import replace_folder, stamp_or_empty
from m3agiqa.images import open_image
from m3agiqa.json_lines import without_nan, write_json
from m3agiqa.metrics import bootstrap_interval
from m3agiqa.samples import Sample
from training.data.human_feedback import Annotated
from training.data.variants import Variant, own_variants
from training.evaluation.description_metrics import grounded_shares, tone
from training.nano.fit_words import (
    DescriptionTokens,
    WordsConfig,
    fit_head_adapter,
    mean_token_loss,
    moved_first_estimate,
)
from training.parallel import progress_bar
from training.run import WORDS_FILE, RunFolder
from training.ship import copy_backbone
from training.stages.curriculum import Lesson
from training.stages.describe import describe
from training.stages.finetune import finetune, mean_loss
from training.stages.hidden_cache import backbone_id

MIN_SCORES = 20  # of an aspect, without which its first estimate stays
VISION_EPOCHS, VISION_BATCH = 3, 2  # passes over the images, and images a step, of other backbones
SECONDS_AN_IMAGE = 5  # on two cores, for describing it twice and learning from it, at most


@dataclass(frozen=True)
class Description:
    """What people have written of one aspect of an image, and what the model writes."""

    sample: Sample
    aspect: Aspect
    own: str
    """The model's, before it has learned from people."""
    by_people: str | None
    """None where nobody has described this aspect."""

    def key(self, identity: str) -> str:
        """Of what a model writes, in the cache."""
        return Variant(self.sample, "own", (self.aspect,), self.sample.prompt).key(self.aspect, identity)

    def request(self) -> Request:
        """The whole conversation about the image."""
        return Request(open_image(self.sample.image), (self.conversation(),))

    def conversation(self) -> Conversation:
        """With people's description, or else the model's own."""
        opened = Conversation.open(self.aspect, self.sample.prompt)
        return opened.describe(self.own if self.by_people is None else self.by_people)


def lacking(run: RunFolder, samples: Sequence[Sample], annotated: Annotated | None) -> str:
    """Why words cannot be trained; "" if they can."""
    config, name = run.config.words, run.config.backbone
    assert config is not None
    if run.config.server is not None:
        return "a server writes the descriptions"
    if not hasattr(backbone_class(name), "for_training"):
        return f"{name} cannot be fine-tuned"
    if run.init_from is not None and any((run.init_from / aspect).is_dir() for aspect in Aspect):
        return f"{run.init_from} has an adapter of its own for each aspect"
    described = annotated.described if annotated else {}
    parts = [sample.split for sample in samples if sample.id in described]
    test = parts.count("test")
    train = len(parts) - test
    if train < config.min_texts:
        return (
            f"{config.min_texts:,} images with descriptions by people are needed beside held-out ones, and "
            f"there are {train:,}"
        )
    if test < MIN_TO_RESAMPLE:
        return f"{MIN_TO_RESAMPLE:,} held-out images with descriptions are needed, and there are {test:,}"
    return ""


def plan_text(run: RunFolder, samples: Sequence[Sample], annotated: Annotated | None) -> str:
    """What the stage will do, or why not."""
    reason = lacking(run, samples, annotated)
    if reason:
        return f"stay as they are: {reason}"
    assert annotated is not None
    count = sum(len(aspects) for aspects in annotated.described.values())
    minutes = math.ceil(len(annotated.described) * SECONDS_AN_IMAGE / 60)
    return f"learn from {count:,} descriptions by people; at most about {minutes:,} minutes on two cores"


def train_words(run: RunFolder) -> None:
    """Fine-tune on people's descriptions, compare on held-out ones, and say in WORDS_FILE which serve."""
    if not run.config.learns_words or run.has_words:
        return
    reason = lacking(run, run.samples, run.annotated)
    stamp_or_empty(run.words_folder, *run.words_from)
    if reason:
        run.log(f"words stay as they are: {reason}")
        sys.stdout.write(f"words stay as they are: {reason}\n")
        write_json(run.words_folder / WORDS_FILE, {})
        return
    descriptions = _descriptions(run)
    train = [each for each in descriptions if each.sample.split != "test"]
    test = [each for each in descriptions if each.sample.split == "test" and each.by_people is not None]
    new = run.words_folder / "backbone"
    nano = load_backbone(run.config.backbone, run.tuned_folder)
    if isinstance(nano, NanoBackbone):
        losses = _teach_nano(nano, train, test, run, new)
    else:
        del nano
        losses = _teach(run, train, test, new)
    describe(own_variants(_samples(test), [*run.trained, *run.kept]), run.config.backbone, new, run.cache)
    identity = backbone_id(run.config.backbone, new)
    after = [run.cache.entries[each.key(identity)].description for each in test]
    compared = _compared(test, after, losses, run.scale)
    run.log(compared.sentence)
    sys.stdout.write(f"{compared.sentence}\n")
    write_json(run.words_folder / WORDS_FILE, without_nan(asdict(compared)))


def _compared(
    test: Sequence[Description], after: Sequence[str], losses: tuple[float, float], scale: MosScale
) -> ComparedWords:
    """Held-out descriptions before and after; `after`: the new ones."""
    grounds = [f"{each.sample.prompt or ''} {each.by_people}" for each in test]
    shares = [grounded_shares(texts, grounds) for texts in ([each.own for each in test], after)]
    scored = [number for number, each in enumerate(test) if each.aspect in each.sample.mos]
    errors = [
        [_tone_error(text[number], test[number], scale) for number in scored]
        for text in ([each.own for each in test], after)
    ]
    old, new = (
        WordMeasures(loss, fmean(share), fmean(error) if error else math.nan)
        for loss, share, error in zip(losses, shares, errors, strict=True)
    )
    worse = []
    if losses[1] > losses[0]:
        worse.append("people's descriptions became less likely")
    if _falls(*shares):
        worse.append("they are less grounded")
    if _falls(errors[1], errors[0]):
        worse.append("their tone is farther from people's scores")
    return ComparedWords(len(test), old, new, " and ".join(worse))


def _tone_error(text: str, of: Description, scale: MosScale) -> float:
    """How far a description's tone is from people's score, both from -1 to 1."""
    return abs(tone(text) - (2 * scale.to_unit(of.sample.mos[of.aspect]) - 1))


def _falls(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether values [n] fall, with the whole 95 % interval of the mean change."""
    if len(before) < MIN_TO_RESAMPLE:
        return False
    return bootstrap_interval(lambda b, a: float(np.mean(a) - np.mean(b)), before, after)[1] < 0


def _samples(descriptions: Sequence[Description]) -> list[Sample]:
    return list({each.sample.id: each.sample for each in descriptions}.values())


def _descriptions(run: RunFolder) -> list[Description]:
    """Of all aspects of the images that people have described; the model describes them first."""
    assert run.annotated is not None
    described = run.annotated.described
    samples = [sample for sample in run.samples if sample.id in described]
    variants = own_variants(samples, [*run.trained, *run.kept])
    describe(variants, run.config.backbone, run.tuned_folder, run.cache)
    identity = backbone_id(run.config.backbone, run.tuned_folder)
    return [
        Description(
            variant.sample,
            aspect,
            run.cache.entries[variant.key(aspect, identity)].description,
            variant.sample.descriptions[aspect] if aspect in described[variant.sample.id] else None,
        )
        for variant in variants
        for aspect in variant.aspects
    ]


# --- learning ------------------------------------------------------------------------------------


def _teach_nano(
    nano: NanoBackbone, train: Sequence[Description], test: Sequence[Description], run: RunFolder, out: Path
) -> tuple[float, float]:
    """Leave nano with a new head adapter and first estimates in `out`; losses of the test descriptions."""
    config = run.config.words
    assert config is not None
    learned, logits = _read(nano, train, config)
    held_out, _ = _read(nano, test, config)
    head = nano.head.float()
    adapter = fit_head_adapter(head, nano.head_adapter, learned, config)
    estimates = dict(nano.first_estimates)
    for aspect, estimate in nano.first_estimates.items():
        scored = [n for n, each in enumerate(train) if each.aspect is aspect and aspect in each.sample.mos]
        if len(scored) >= MIN_SCORES:
            units = [run.scale.to_unit(train[n].sample.mos[aspect]) for n in scored]
            scores = [COMMON_SCALE.from_unit(unit) for unit in units]
            estimates[aspect] = moved_first_estimate(estimate, [logits[n] for n in scored], scores)

    def write(folder: Path) -> None:
        copy_backbone(run.tuned_folder, folder)
        (folder / HEAD_ADAPTER_FILE).unlink(missing_ok=True)
        if adapter is not None:
            adapter.write(folder)
        if estimates:
            write_first_estimates(folder, estimates)

    replace_folder(out, write)
    before, after = (mean_token_loss(head, each, held_out) for each in (nano.head_adapter, adapter))
    return before, after


def _read(
    nano: NanoBackbone, descriptions: Sequence[Description], config: WordsConfig
) -> tuple[DescriptionTokens, list[float]]:
    """The tokens of all descriptions, of which the model's own weigh less than people's; and what its first
    estimate is made of, for each description."""
    numbers: dict[str, int] = {}
    parts, logits = [], []
    with progress_bar(None, "words", total=len(descriptions), start=0) as progress:  # type: ignore[var-annotated]
        for each in descriptions:
            request = each.request()
            answers = nano.answer_states([request])
            logits += nano.first_estimate_logits(request)
            weight = config.rehearsal if each.by_people is None else 1.0
            number = numbers.setdefault(each.sample.id, len(numbers))
            states = answers.logits.float()
            weights, images = torch.full((len(states),), weight), torch.full_like(answers.ids, number)
            tokens = nano.chat.tokens(replace(each, by_people=None).conversation())
            own = torch.tensor([i for i, answer in zip(tokens.ids, tokens.answer, strict=True) if answer])
            rejected = torch.full_like(answers.ids, -1)
            length = min(len(own), len(rejected))
            departures = (own[:length] != answers.ids[:length]).nonzero()[:1, 0]
            rejected[departures] = own[departures]
            parts.append(DescriptionTokens(states, answers.ids, rejected, weights, images))
            progress.update()
    return DescriptionTokens.join(parts), logits


def _teach(
    run: RunFolder, train: Sequence[Description], test: Sequence[Description], out: Path
) -> tuple[float, float]:
    """Leave another backbone with LoRA in its vision encoder in `out`; losses of the test descriptions."""
    config = run.config.words
    assert config is not None
    lessons = [
        Lesson(sample.image, tuple(e.conversation() for e in train if e.sample.id == sample.id), jitter=False)
        for sample in _samples(train)
    ]
    batches = []
    for epoch in range(VISION_EPOCHS):
        Random(f"{config.seed} {epoch}").shuffle(lessons)
        batches += [lessons[i : i + VISION_BATCH] for i in range(0, len(lessons), VISION_BATCH)]
    start = run.tuned_folder if run.tuned_folder.exists() else None
    finetune(batches, start, out, config.finetune, run.config.backbone)
    held_out = [Lesson(each.sample.image, (each.conversation(),), jitter=False) for each in test]
    before, after = (mean_loss(held_out, each, config.finetune, run.config.backbone) for each in (start, out))
    return before, after
