"""Descriptions that claim only what was measured: the language model chooses among sentences that fit.

A language model of this size names things that are not there. So it writes within a grammar: sentences of a
lexicon (lexicons/sentences.tsv), each of which is open to it where the first estimate of the score has one of
the sentence's rating words and where its evidence was measured in the image. What is said, in which order and
how much is up to the language model; one of several wordings is drawn, with a seed made of the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3agiqa.aspects import COMMON_SCALE, RATING_WORDS, Aspect, Rating
from m3agiqa.backbones.base import Request
from m3agiqa.backbones.nano.colors import COLOUR_NAMES, named_colours, named_pixels
from m3agiqa.backbones.nano.image_encoder import EncodedImages, ImageEncoder
from m3agiqa.backbones.nano.language_model import NanoChat
from m3agiqa.backbones.nano.text import LEXICON_FOLDER, base_form, raw_words, read_words
from m3agiqa.backbones.nano.word_states import WordStates

FIRST_ESTIMATES_FILE = "first-estimates.safetensors"
OPENING_TOPIC = "overall"
MIN_SENTENCES, MAX_SENTENCES = 2, 3
MAX_NAMED_COLOURS = 2
MAX_NAMED_WORDS = 2  # of the prompt
UNNAMED_ENDINGS = ("ing", "ed", "ly")
# Nearness of a prompt's word to the image, in standard deviations over images. Of words of an image's own
# prompt 30 % are at least as near as the first and 4 % at most as near as the second; of words of another
# image's prompt these are 10 % and 16 %.
SEEN_NEARNESS, UNSEEN_NEARNESS = 1.4, -0.9
NAMED_COLOUR_SHARE = 0.25  # share of an image's pixels from which a colour is named
PRESENT_COLOUR_SHARE, ABSENT_COLOUR_SHARE = 0.04, 0.005  # of a colour that the prompt asks for
LUMINANCE_WEIGHTS = (0.2125, 0.7154, 0.0721)
# About the lowest and highest 10 to 20 % of the AI-generated images in the training data:
AMBIGUOUS_COLOURS = {"gold", "golden", "silver"}  # a golden retriever is not yellow, nor is a golden hour
DARK_LUMINANCE, BRIGHT_LUMINANCE = 0.22, 0.68  # mean luminance
LOW_CONTRAST, HIGH_CONTRAST = 0.13, 0.30  # standard deviation of luminance
COLOURLESS_RANGE, VIVID_RANGE = 0.05, 0.33  # mean range of the three channels
COOL_BALANCE, WARM_BALANCE = -0.05, 0.2  # mean of red minus blue
SOFT_DETAIL, CRISP_DETAIL = -0.9, 0.6  # of the finest octave, in standard deviations from the mean image
LIGHT_BELOW, LIGHT_ABOVE = -0.15, 0.2  # mean luminance of the upper third minus that of the lower one
SPREAD_RATIO, CENTRAL_RATIO = 0.95, 2.2  # mean gradient in the middle quarter of the area over that outside
FLAT_GRADIENT, STEEP_GRADIENT = 0.015, 0.1  # change of luminance from a pixel to its neighbours
PLAIN_SHARE, BUSY_SHARE = 0.65, 0.3  # share of pixels with such gradients
SYMMETRIC_CORRELATION = 0.7  # correlation of luminance with its mirror image
MIN_VARIATION = 1e-3  # sum of squares of what differs from the mean luminance; less is rounding

JUDGING_WORDS = read_words(LEXICON_FOLDER / "judging_words.txt")
"""Of prompts: they ask for a manner, and name nothing that could be found in an image."""


@dataclass(frozen=True)
class Sentence:
    """What may be said about an aspect, and when."""

    aspect: Aspect
    topic: str
    ratings: tuple[Rating, ...]
    """Rating words of the first estimate."""
    evidence: str
    """Key of `Evidence` without which it may not be said; empty: none is needed."""
    text: str


Evidence = dict[str, str]
"""What was measured in an image; the values fill the placeholders of the same name."""


def read_sentences(path: Path = LEXICON_FOLDER / "sentences.tsv") -> list[Sentence]:
    """Of the lexicon: a sentence a line, five columns separated by tabs."""
    sentences = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        aspect, topic, words, evidence, text = line.split("\t")
        low, _, high = words.partition("-")
        first, last = RATING_WORDS.index(Rating(low)), RATING_WORDS.index(Rating(high or low))
        sentences.append(Sentence(Aspect(aspect), topic, RATING_WORDS[first : last + 1], evidence, text))
    return sentences


SENTENCES = read_sentences()


@dataclass(frozen=True)
class FirstEstimate:
    """MOS from an aspect's logit before anything is written: intercept + slope * logit, on five levels."""

    intercept: float
    slope: float

    def rating(self, logit: float) -> Rating:
        return COMMON_SCALE.rating(self.intercept + self.slope * logit)


def read_first_estimates(folder: Path) -> dict[Aspect, FirstEstimate]:
    """Of a checkpoint; empty if it has none, and then descriptions are written freely."""
    path = folder / FIRST_ESTIMATES_FILE
    if not path.exists():
        return {}
    return {Aspect(aspect): FirstEstimate(*line.tolist()) for aspect, line in load_file(path).items()}


def write_first_estimates(folder: Path, estimates: Mapping[Aspect, FirstEstimate]) -> None:
    lines = {str(aspect): torch.tensor([each.intercept, each.slope]) for aspect, each in estimates.items()}
    save_file(lines, folder / FIRST_ESTIMATES_FILE)


def measured_evidence(pixels: Tensor, detail: float) -> Evidence:
    """Of an RGB image [3, S, S] in [0, 1]. detail: of its finest octave, in standard deviations."""
    luminance = torch.einsum("c,chw->hw", torch.tensor(LUMINANCE_WEIGHTS), pixels)
    brightness, contrast = float(luminance.mean()), float(luminance.std())
    colourfulness = float((pixels.amax(0) - pixels.amin(0)).mean())
    warmth = float((pixels[0] - pixels[2]).mean())
    side = len(luminance)
    top_light = float(luminance[: side // 3].mean() - luminance[-(side // 3) :].mean())
    corner = luminance[1:, 1:]
    gradient = (corner - luminance[1:, :-1]).abs() + (corner - luminance[:-1, 1:]).abs()
    plain = float((gradient < FLAT_GRADIENT).float().mean())
    centrality = _centrality(gradient)
    holds = {
        "dark": brightness < DARK_LUMINANCE,
        "bright": brightness > BRIGHT_LUMINANCE,
        "low_contrast": contrast < LOW_CONTRAST,
        "high_contrast": contrast > HIGH_CONTRAST,
        "colourless": colourfulness < COLOURLESS_RANGE,
        "vivid": colourfulness > VIVID_RANGE,
        "cool": warmth < COOL_BALANCE,
        "warm": warmth > WARM_BALANCE,
        "soft": detail < SOFT_DETAIL,
        "crisp": detail > CRISP_DETAIL,
        "light_above": top_light > LIGHT_ABOVE,
        "light_below": top_light < LIGHT_BELOW,
        "plain": plain > PLAIN_SHARE,
        "busy": float((gradient > STEEP_GRADIENT).float().mean()) > BUSY_SHARE,
        "central": centrality > CENTRAL_RATIO,
        "spread": centrality < SPREAD_RATIO,
        "symmetric": _symmetry(luminance) > SYMMETRIC_CORRELATION,
    }
    evidence = {name: "" for name, true in holds.items() if true}
    shares = _colour_shares(pixels)
    names = [
        colour
        for colour in sorted(shares, key=shares.__getitem__)[::-1]
        if shares[colour] >= NAMED_COLOUR_SHARE
    ]
    if names and "colourless" not in evidence:
        evidence["colours"] = " and ".join(names[:MAX_NAMED_COLOURS])
    return evidence


def colour_evidence(prompt: str, pixels: Tensor) -> Evidence:
    """Which of the colours that a prompt names an RGB image [3, S, S] has, and which it lacks."""
    shares = _colour_shares(pixels)
    plain = " ".join(word for word in raw_words(prompt) if word not in AMBIGUOUS_COLOURS)
    asked = [COLOUR_NAMES[i] for i in named_colours(plain)]
    present = [colour for colour in asked if shares[colour] >= PRESENT_COLOUR_SHARE]
    absent = [colour for colour in asked if shares[colour] <= ABSENT_COLOUR_SHARE]
    parts = {
        "asked": " and ".join(present[:MAX_NAMED_COLOURS]),
        "lacking": " or ".join(absent[:MAX_NAMED_COLOURS]),
    }
    return {name: text for name, text in parts.items() if text}


def prompt_evidence(prompt: str, nearness: Mapping[str, float]) -> Evidence:
    """Which of a prompt's words are seen and which are not; `nearness` is by base form (prompt_alignment).

    Without any nearness, as of words in another script, nothing can be said of the prompt. Colours are not
    named here, nor words that judge ("detailed"), nor what people do and how they are ("dancing", "happily").
    """
    if not nearness:
        return {"unmatched": ""}
    spelled = {base_form(word, dict.fromkeys(nearness, 1.0)): word for word in raw_words(prompt)}
    unnamed = JUDGING_WORDS | set(COLOUR_NAMES)
    named = [
        word
        for word in nearness
        if word in spelled and word not in unnamed and not spelled[word].endswith(UNNAMED_ENDINGS)
    ]
    by_nearness = sorted(named, key=lambda word: -nearness[word])
    seen = [spelled[word] for word in by_nearness if nearness[word] >= SEEN_NEARNESS][:MAX_NAMED_WORDS]
    unseen = [spelled[word] for word in by_nearness[::-1] if nearness[word] <= UNSEEN_NEARNESS]
    quoted = {"seen": _listed(seen, "and"), "unseen": _listed(unseen[:MAX_NAMED_WORDS], "or")}
    return {name: text for name, text in quoted.items() if text}


def _listed(words: Sequence[str], joined: str) -> str:
    return f" {joined} ".join(f"“{word}”" for word in words)


def _colour_shares(pixels: Tensor) -> dict[str, float]:
    shares = named_pixels(pixels[None])[0].float().mean((1, 2))
    return dict(zip(COLOUR_NAMES, shares.tolist(), strict=True))


def _centrality(gradient: Tensor) -> float:
    """How much more there is in the middle, which is a quarter of the area, than around it."""
    edge = len(gradient) // 4
    middle = gradient[edge:-edge, edge:-edge]
    around = (gradient.sum() - middle.sum()) / (gradient.numel() - middle.numel())
    return float((middle.mean() + 1e-6) / (around + 1e-6))


def _symmetry(luminance: Tensor) -> float:
    """Correlation with the mirror image; 0 for an image of one tone."""
    tones = luminance - luminance.mean()
    square = tones.square().sum()
    return float((tones * tones.flip(1)).sum() / square) if float(square) > MIN_VARIATION else 0.0


class GroundedText:
    """The grammar of one description: an opening, then one or two sentences about other topics.

    What was measured goes before what needs no evidence. An opening that needs evidence stands alone.
    """

    def __init__(
        self,
        aspect: Aspect,
        rating: Rating,
        evidence: Evidence,
        encode: Callable[[str], list[int]],
        end: int,
        seed: str,
    ) -> None:
        """rating: word of the first estimate. encode: text -> tokens. end: the token that ends the text.
        seed: draws one of several wordings."""
        wordings: dict[tuple[str, str], list[str]] = {}
        for sentence in SENTENCES:
            is_open = sentence.aspect is aspect and rating in sentence.ratings
            if is_open and (not sentence.evidence or sentence.evidence in evidence):
                wordings.setdefault((sentence.topic, sentence.evidence), []).append(sentence.text)
        rng = Random(f"{seed} {aspect}")
        drawn = {key: rng.choice(texts).format_map(evidence) for key, texts in wordings.items()}
        self.end = end
        self.openings = [(key, encode(text)) for key, text in drawn.items() if key[0] == OPENING_TOPIC]
        self.others = [(key, encode(f" {text}")) for key, text in drawn.items() if key[0] != OPENING_TOPIC]
        alone = [opening for opening in self.openings if opening[0][1]]
        if alone:
            self.openings, self.others = alone, []

    def next_tokens(self, written: Sequence[int]) -> set[int]:
        """Tokens that may follow."""
        topics: list[str] = []
        options, rest = self.openings, list(written)
        while whole := [(key, ids) for key, ids in options if rest[: len(ids)] == ids]:
            (topic, _), ids = max(whole, key=lambda pair: len(pair[1]))
            topics.append(topic)
            rest = rest[len(ids) :]
            options = [(key, ids) for key, ids in self.others if key[0] not in topics]
            options = [(key, ids) for key, ids in options if key[1]] or options
        if len(topics) == MAX_SENTENCES:
            return {self.end}
        tokens = {ids[len(rest)] for _, ids in options if ids[: len(rest)] == rest and len(ids) > len(rest)}
        if not rest and (len(topics) >= MIN_SENTENCES or not tokens):
            tokens.add(self.end)
        return tokens


def grounded_texts(
    encoder: ImageEncoder,
    images: EncodedImages | None,
    requests: Sequence[Request],
    estimates: Mapping[Aspect, FirstEstimate],
    words: WordStates,
    chat: NanoChat,
) -> list[GroundedText]:
    """The grammar of each conversation's description, by what was measured in its image.

    None where descriptions are written freely: of text alone, and without an estimate for each aspect.
    """
    if images is None or set(estimates) != set(Aspect):
        return []
    grammars = []
    for owner, request in enumerate(requests):
        pixels = images.pixels[owner]
        measured = measured_evidence(pixels, float(images.detail[owner]))
        seed = hashlib.blake2b(pixels.numpy().tobytes()).hexdigest()
        for conversation in request.conversations:
            aspect, prompt, evidence = conversation.aspect, conversation.prompt, measured
            assert aspect is not None, "descriptions are of an aspect"
            if prompt and aspect.needs_prompt:
                aligned = images.aligned_with(owner)
                nearness = encoder.prompt_aligners.nearness_of_words(aligned, prompt, words)
                of_prompt = prompt_evidence(prompt, nearness)
                evidence = {**measured, **colour_evidence(prompt, pixels), **of_prompt}
            rating = estimates[aspect].rating(float(encoder.logit(images, owner, conversation, words)))
            grammars.append(GroundedText(aspect, rating, evidence, chat.encode_text, chat.end, seed))
    return grammars
