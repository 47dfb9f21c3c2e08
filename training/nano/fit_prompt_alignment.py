"""Fits nano's alignment of images and prompts in closed form, and measures it on held-out sources.

It is trained on texts about images: prompts and descriptions of scored images, prompts of unscored images,
captions of photographs, and the names of the vision encoder's classes (ImageNet). Scores are not targets;
they only weight the prompts, which count more for images that show what was asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.backbones.nano.connector import ImageFeatures
from m3agiqa.backbones.nano.prompt_alignment import (
    HEAD_CHANNELS,
    MAX_MATCH,
    MIN_DIVISOR,
    WHOLE_CELLS,
    PromptAligner,
    PromptAligners,
    length_class,
    unfitted_weights,
)
from m3agiqa.backbones.nano.text import content_words, raw_words, read_words
from m3agiqa.backbones.nano.word_states import WordStates
from m3agiqa.samples import Sample
from training.data.nano_teacher import images_with_captions, images_with_prompts
from training.data.prompt_edits import LEXICON_FOLDER, changes
from training.nano.feature_cache import select_features
from training.nano.fit_quality_regressor import in_sources, is_clean
from training.stages.leave_source_out import leave_one_group_out

CLASS_NAMES_FILE = Path(__file__).with_name("imagenet_classes.tsv")
DEFINITION_SHARE = 0.5  # of a class's definition beside its name
CLASS_NORM = 0.7  # of the typical image of a class, in lengths of a usual image
PROMPT_SHARE = 0.3  # of an image's prompt beside its description
MIN_WEIGHT = 0.3  # of an image that does not show what was asked for
UNSCORED_WEIGHT = 0.5
MIN_TEXTS_PER_WORD = 2  # texts that a word of the dictionary stands in
JUDGING_SHARE = 0.09  # of the descriptions; a word in more of them speaks of judging, not of what is there
JUDGING_WORDS = read_words(LEXICON_FOLDER / "judging.txt")
WORD_DIMENSIONS = 200  # dimensions in which words are told apart
N_FOLDS = 3
SHARED_DIMENSIONS = 128  # dimensions of the common space
IMAGE_PENALTY, TEXT_PENALTY = 6.0, 0.006  # of the correlations, in units of the images' weight
POOLING_BATCH_SIZE = 256  # images taken at once
N_REFERENCES = 48  # images that tell how near a word usually is to some grid cell
# The weights that are kept in 16 bit.
HALF_PRECISION_KEYS = ("state_map", "text_map", "image_maps", "references")
N_PAIRED_IMAGES = 300  # images, and half as many prompts, whose pairs tell what is usual


@dataclass(frozen=True)
class ImageTexts:
    """What was said about an image: texts with their shares."""

    row: int
    texts: tuple[tuple[float, str], ...]
    weight: float
    prompt: str | None = None
    """That the image was generated for."""
    judged: bool = False
    """Whether the last text is a description for the sake of judging."""


@dataclass(frozen=True)
class AlignmentData:
    """What a prompt aligner is fitted to."""

    features: ImageFeatures
    image_texts: Sequence[ImageTexts]
    classes: Tensor
    """[1000, C], how the vision encoder tells ImageNet's classes apart."""
    word_states: WordStates

    def without(self, rows: set[int], prompts: set[str]) -> AlignmentData:
        """Nothing about images in these rows, and nothing that says one of these prompts of any image."""
        left = [
            entry
            for entry in self.image_texts
            if entry.row not in rows and not any(text.strip() in prompts for _, text in entry.texts)
        ]
        return replace(self, image_texts=left)

    def without_length(self, number: int) -> AlignmentData:
        """Nothing about images whose prompts are judged by the aligner of this number."""
        left = [s for s in self.image_texts if s.prompt is None or length_class(s.prompt, N_FOLDS) != number]
        return replace(self, image_texts=left)


def fit_and_hold_out(
    backbone: NanoBackbone,
    samples: Sequence[Sample],
    extras: Path | None,
    scale: MosScale,
    features: ImageFeatures,
    rows: Mapping[Path, int],
) -> tuple[PromptAligners, HeldOutAlignment]:
    """The aligners of the training split, and how samples of all splits match with their source left out.

    `extras` holds captions and unlabelled images; `rows` has the row in `features` of each file. Texts that
    are a prompt of another split are not fitted to.
    """
    prompted = [sample for sample in samples if sample.prompt and sample.image in rows]
    data = alignment_data(backbone, prompted, extras, scale, features, rows)
    held_out = hold_out_groups(data, prompted, [rows[sample.image] for sample in prompted])
    held = {sample.prompt.strip() for sample in samples if sample.prompt and sample.split != "train"}
    prompt_aligners = fit_prompt_aligners(data.without(set(), held))
    for prompt_aligner in prompt_aligners.each:
        prompt_aligner.usual = held_out.usual.clone()
    return prompt_aligners, held_out


def alignment_data(
    backbone: NanoBackbone,
    asked: Sequence[Sample],
    extras: Path | None,
    scale: MosScale,
    features: ImageFeatures,
    rows: Mapping[Path, int],
    prompted_too: bool = True,
) -> AlignmentData:
    """Of samples with prompts, of captioned photographs, and of images with prompts and without scores."""
    image_texts = [texts_of_sample(sample, rows[sample.image], scale) for sample in asked]
    if prompted_too:
        others = images_with_prompts(extras)
        image_texts += [
            ImageTexts(rows[s.image], ((1.0, s.prompt or ""),), UNSCORED_WEIGHT, prompt=s.prompt)
            for s in others
        ]
    photographs = images_with_captions(extras, asked)
    image_texts += [
        texts_of_captions(captions, rows[image]) for image, captions in photographs if image in rows
    ]
    return AlignmentData(
        features, image_texts, backbone.image_encoder.vision._fc.weight.detach().float(), backbone.word_states
    )


def texts_of_sample(sample: Sample, row: int, scale: MosScale) -> ImageTexts:
    """Of a sample with a prompt."""
    prompt = sample.prompt or ""
    mos = sample.mos.get(Aspect.CORRESPONDENCE)
    weight = UNSCORED_WEIGHT if mos is None else max(MIN_WEIGHT, scale.to_unit(mos))
    description = sample.descriptions.get(Aspect.CORRESPONDENCE)
    if description is None:
        return ImageTexts(row, ((1.0, prompt),), weight, prompt)
    texts = ((PROMPT_SHARE, prompt), (1 - PROMPT_SHARE, description))
    return ImageTexts(row, texts, weight, prompt, judged=True)


def texts_of_captions(captions: Sequence[str], row: int) -> ImageTexts:
    return ImageTexts(row, tuple((1 / len(captions), caption) for caption in captions), 1.0)


def fit_prompt_aligners(material: AlignmentData) -> PromptAligners:
    return PromptAligners([fit_prompt_aligner(material.without_length(number)) for number in range(N_FOLDS)])


def fit_prompt_aligner(material: AlignmentData) -> PromptAligner:
    """An aligner with mean and spread (`usual_parts`) of the parts of a match, but not yet of their sum."""
    words = _Vocabulary.of(material.image_texts)
    vectors = _TextVectors(words, material.word_states)
    image_texts = [
        entry for entry in material.image_texts if any(words.of_text(text) for _, text in entry.texts)
    ]
    if len(image_texts) < 2:  # one alone has no spread
        return PromptAligner(unfitted_weights(vectors.width))
    texts = torch.stack([vectors.of_image(entry) for entry in image_texts])
    weights = torch.tensor([entry.weight for entry in image_texts])
    rows = [entry.row for entry in image_texts]
    pooled = torch.cat(
        [
            _mean_pooled(material.features.grid_cells[part])
            for part in torch.tensor(rows).split(POOLING_BATCH_SIZE)
        ],
        dim=1,
    )
    looks = pooled.log1p()
    mean, spread = looks.mean(1, keepdim=True), looks.std(1, keepdim=True) + 1e-3
    images = ((looks - mean) / spread).mean(0)
    usual_image = (weights @ images) / weights.sum()
    usual_text = (weights @ texts) / weights.sum()
    typical = _class_prototypes(images, pooled.mean(0), material.classes)
    names = vectors.of_classes()
    root = torch.cat([weights, torch.ones(len(names))]).sqrt()[:, None]
    image_map, text_map = _canonical_correlation(
        root * torch.cat([images - usual_image, typical]),
        root * torch.cat([texts - usual_text, names - names.mean(0)]),
        weights.sum().item(),
    )
    maps = image_map / spread.transpose(1, 2) / 2
    centres = (mean / spread / 2)[:, 0] @ image_map + (usual_image @ image_map) / 2
    colours = material.features.colours[rows].float()
    state = {
        **unfitted_weights(vectors.width),
        "letters": torch.tensor(list("\n".join(words.rarities).encode()), dtype=torch.uint8),
        "rarity": torch.tensor(list(words.rarities.values())),
        "state_centre": vectors.centre,
        "state_map": vectors.map,
        "text_map": text_map,
        "text_centre": usual_text @ text_map,
        "image_maps": maps,
        "image_centres": centres,
        "usual_colours": torch.stack([colours.mean(0), colours.std(0) + 1e-3]),
    }
    some = _evenly_spaced(rows, N_REFERENCES)
    state["references"] = PromptAligner(state).align(select_features(material.features, some)).grid_cells
    state["usual_parts"] = _part_statistics(PromptAligner(state), material, image_texts)
    kept = {name: value.half() if name in HALF_PRECISION_KEYS else value for name, value in state.items()}
    return PromptAligner({name: value.contiguous() for name, value in kept.items()})


def _mean_pooled(grid_cells: Tensor) -> Tensor:
    """[N, T, .] -> [2, N, C], the means of the head over the grid cells of both resolutions."""
    head = grid_cells[..., :HEAD_CHANNELS].float()
    return torch.stack([head[:, :WHOLE_CELLS].mean(1), head[:, WHOLE_CELLS:].mean(1)])


def _part_statistics(
    prompt_aligner: PromptAligner, material: AlignmentData, image_texts: Sequence[ImageTexts]
) -> Tensor:
    """[3, 2]: mean and spread over pairs of images with others' texts."""
    aligned_images = prompt_aligner.align(
        select_features(
            material.features, _evenly_spaced([entry.row for entry in image_texts], N_PAIRED_IMAGES)
        )
    )
    prompts = _evenly_spaced(
        list(dict.fromkeys(entry.texts[0][1] for entry in image_texts)), N_PAIRED_IMAGES // 2
    )
    parts = torch.stack(
        [prompt_aligner.parts(aligned_images, prompt, material.word_states) for prompt in prompts]
    )
    usual = []
    for part in parts.unbind(1):
        known = part[part != 0]
        usual.append(
            [known.mean().item(), known.std().item() + MIN_DIVISOR] if len(known) > 1 else [0.0, 1.0]
        )
    return torch.tensor(usual)


def _evenly_spaced(items: list, count: int) -> list:
    return items[:: max(1, len(items) // count)][:count]


def _class_prototypes(images: Tensor, pooled: Tensor, classes: Tensor) -> Tensor:
    """[1000, C]: how an image of each class differs from the usual one, read off the encoder's classifier."""
    scores = (pooled - pooled.mean(0)) @ (classes - classes.mean(0)).T
    scores = scores / (scores.std(0) + 1e-6)
    typical = (images - images.mean(0)).T @ scores / len(images)
    return F.normalize(typical.T, dim=1) * CLASS_NORM * images.norm(dim=1).median()


def _canonical_correlation(images: Tensor, texts: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Maps [C, K] and [D, K] into the space of the regularised canonical correlations, scaled by these."""
    images, texts = images.double(), texts.double()
    inner = images.T @ images + IMAGE_PENALTY * weight * torch.eye(images.shape[1]).double()
    outer = texts.T @ texts + TEXT_PENALTY * weight * torch.eye(texts.shape[1]).double()
    left, right = torch.linalg.cholesky(inner), torch.linalg.cholesky(outer)
    between = torch.linalg.solve_triangular(left, images.T @ texts, upper=False)
    between = torch.linalg.solve_triangular(right, between.T, upper=False).T
    u, s, v = torch.linalg.svd(between, full_matrices=False)
    u, s, v = u[:, :SHARED_DIMENSIONS], s[:SHARED_DIMENSIONS], v[:SHARED_DIMENSIONS].T
    image_map = torch.linalg.solve_triangular(left.T, u, upper=True) * s
    text_map = torch.linalg.solve_triangular(right.T, v, upper=True) * s
    return image_map.float(), text_map.float()


class _Vocabulary:
    """Words in texts about images, and how rare each is: minus the log of its share of texts."""

    def __init__(self, rarities: dict[str, float], judging: set[str]) -> None:
        self.rarities = rarities
        self.judging = judging
        self.common = {word: -rarity for word, rarity in rarities.items()}

    @classmethod
    def of(cls, image_texts: Sequence[ImageTexts]) -> _Vocabulary:
        names = [name for name, _ in _classes()]
        texts = [text for entry in image_texts for _, text in entry.texts]
        counts = Counter(word for text in [*texts, *names] for word in raw_words(text))
        text_counts: Counter[str] = Counter()
        judging: Counter[str] = Counter()
        for entry in image_texts:
            inside = [set(content_words(text, counts)) for _, text in entry.texts]
            text_counts.update(set().union(*inside))
            if entry.judged:
                judging.update(inside[-1])
        described = sum(entry.judged for entry in image_texts)
        named = {word for name in names for word in content_words(name, counts)}
        known = sorted(named | {word for word, count in text_counts.items() if count >= MIN_TEXTS_PER_WORD})
        rarities = {word: math.log((len(image_texts) + 1) / (text_counts[word] + 1)) for word in known}
        often = {word for word, count in judging.items() if count > JUDGING_SHARE * described}
        return cls(rarities, often | JUDGING_WORDS)

    def of_text(self, text: str) -> list[str]:
        return [word for word in content_words(text, self.common) if word in self.rarities]


class _TextVectors:
    """Texts as vectors [D] of what their words mean."""

    def __init__(self, words: _Vocabulary, word_states: WordStates) -> None:
        self.words = words
        vocabulary = list(words.rarities)
        states = word_states.states(vocabulary)
        self.width = states.shape[1]
        self.centre = states.mean(0)
        _, spreads, axes = torch.linalg.svd(states - self.centre, full_matrices=False)
        self.map = (axes[:WORD_DIMENSIONS].T * spreads[:WORD_DIMENSIONS].clamp_min(1e-6).rsqrt()).contiguous()
        self.rows = {word: row for row, word in enumerate(vocabulary)}
        self.vectors = F.normalize((states - self.centre) @ self.map, dim=1)
        self.rarity = torch.tensor(list(words.rarities.values()))

    def of(self, words: Iterable[str]) -> Tensor:
        rows = [self.rows[word] for word in words]
        rarity = self.rarity[rows]
        return rarity @ self.vectors[rows] / rarity.norm().clamp_min(1e-6)

    def of_image(self, entry: ImageTexts) -> Tensor:
        total = torch.zeros(self.vectors.shape[1])
        for i, (share, text) in enumerate(entry.texts):
            words = self.words.of_text(text)
            if entry.judged and i == len(entry.texts) - 1:
                words = [word for word in words if word not in self.words.judging]
            total += share * self.of(words)
        return total

    def of_classes(self) -> Tensor:
        """[1000, D], of unit length."""
        named = torch.stack([self.of(self.words.of_text(name)) for name, _ in _classes()])
        defined = torch.stack([self.of(self.words.of_text(definition)) for _, definition in _classes()])
        return F.normalize(named + DEFINITION_SHARE * defined, dim=1)


@cache
def _classes() -> list[tuple[str, str]]:
    """Name and definition of each of ImageNet's classes."""
    lines = CLASS_NAMES_FILE.read_text(encoding="utf-8").splitlines()
    cells = (line.split("\t") for line in lines if not line.startswith("#"))
    return [(name, definition) for name, definition in cells]


# --- on sources left out ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOutAlignment:
    """How samples match their own prompts and wrong ones, by aligners fitted without their source."""

    samples: Sequence[Sample]
    own: Tensor
    """[N], the match with the own prompt (PromptAligner.match)."""
    usual: Tensor
    """[2], mean and spread in the training split of the sums that `own` was standardized from."""
    unrelated: list[float]
    """Share of the other prompts of its source that match worse, for each sample that has some."""
    changed: dict[str, list[bool]]
    """Whether the own prompt matches better than with one attribute changed, by attribute."""

    @property
    def facts(self) -> dict[str, Any]:
        """Share of wrong prompts that match worse: unrelated ones, and by the attribute that was changed."""
        changed = {name: sum(worse) / len(worse) for name, worse in self.changed.items()}
        shares: dict[str, Any] = {"changed_below": changed}
        if self.unrelated:
            shares["unrelated_below"] = sum(self.unrelated) / len(self.unrelated)
        return shares

    def agreement(self, predicted: Tensor) -> dict[str, dict[str, float]]:
        """SRCC of predictions [N] with correspondence inside sources."""
        frame = pd.DataFrame(
            {
                "source": [str(sample.source) for sample in self.samples],
                "mos": [sample.mos.get(Aspect.CORRESPONDENCE, math.nan) for sample in self.samples],
                "predicted": predicted.numpy(),
            }
        )
        clean = [is_clean(sample) for sample in self.samples]
        return {"all": in_sources(frame.dropna()), "clean": in_sources(frame[clean].dropna())}


def hold_out_groups(
    material: AlignmentData,
    samples: Sequence[Sample],
    rows: Sequence[int],
    groups: Sequence[str | None] | None = None,
    prompts_too: bool = True,
) -> HeldOutAlignment:
    """How samples that have prompts match, each group by aligners fitted without it.

    `rows` are the samples' rows in the features. `groups` has the group of each sample (default: its source).
    With `prompts_too`, no text that is a prompt of the group is fitted to either.
    """
    groups = [sample.source for sample in samples] if groups is None else groups
    own_prompts = [sample.prompt or "" for sample in samples]
    unrelated: list[float] = []
    changed: dict[str, list[bool]] = {}

    def fit(_: list[int], held_out: list[int]) -> PromptAligners:
        prompts = {own_prompts[i].strip() for i in held_out} if prompts_too else set()
        return fit_prompt_aligners(material.without({rows[i] for i in held_out}, prompts))

    def predict(prompt_aligners: PromptAligners, held_out: list[int]) -> Tensor:
        aligned_images = prompt_aligners.align(
            select_features(material.features, [rows[i] for i in held_out])
        )

        def matches(prompt: str) -> Tensor:
            number = length_class(prompt, N_FOLDS)
            return prompt_aligners.each[number].total(aligned_images[number], prompt, material.word_states)

        held_out_prompts = [own_prompts[i] for i in held_out]
        table = {prompt: matches(prompt) for prompt in dict.fromkeys(held_out_prompts)}
        own = torch.stack([table[prompt][row] for row, prompt in enumerate(held_out_prompts)])
        for row, prompt in enumerate(held_out_prompts):
            others = [scores[row] < own[row] for other, scores in table.items() if other != prompt]
            if others:
                unrelated.append(sum(map(float, others)) / len(others))
        for prompt, right in table.items():
            images = [row for row, each in enumerate(held_out_prompts) if each == prompt]
            for change in changes(prompt, Random(prompt)):
                wrong = matches(change.prompt)
                changed.setdefault(change.attribute, []).extend(bool(wrong[i] < right[i]) for i in images)
        return own

    sums = leave_one_group_out(fit, predict, groups, torch.full((len(samples),), math.nan))
    usual = torch.tensor([0.0, 1.0])
    learned = sums[[sample.split == "train" for sample in samples]]
    if len(learned) > 1 and learned.std() > 0:
        usual = torch.stack([learned.mean(), learned.std()])
    own = ((sums - usual[0]) / usual[1]).clamp(-MAX_MATCH, MAX_MATCH)
    return HeldOutAlignment(samples, own, usual, unrelated, changed)
