"""Prompts with one attribute changed: hard to tell from the image's own, and wrong all the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from m3agiqa.aspects import MosScale
from m3agiqa.backbones.nano.text import IRREGULAR_FORMS, NUMBER_WORDS, read_lexicon, read_words
from m3agiqa.samples import Sample

Attribute = Literal["colour", "number", "object", "place"]

LEXICON_FOLDER = Path(__file__).with_name("lexicons")
COLOUR_WORDS = read_words(LEXICON_FOLDER / "colours.txt")
"""What a colour is changed into."""
OTHER_COLOURS = read_words(LEXICON_FOLDER / "other_colours.txt")
COUNT_WORDS = frozenset(NUMBER_WORDS[1:8])
PLACE_WORDS = read_words(LEXICON_FOLDER / "places.txt")
OBJECT_KINDS = tuple(map(frozenset, read_lexicon(LEXICON_FOLDER / "object_kinds.txt")))
"""Objects of one kind may stand for each other in a sentence."""
LOOKALIKE_PAIRS = tuple(map(set, read_lexicon(LEXICON_FOLDER / "lookalike_pairs.txt")))
"""An image of the one may well show the other."""
IRREGULAR_PLURALS = {base: form for form, base in IRREGULAR_FORMS.items()}

CHANGED_WORDS: dict[Attribute, tuple[str, ...]] = {
    "colour": (
        "The scene is close to the request, but one colour is wrong: {new} was asked for, {old} is shown.",
        "Most of it fits. What should be {new} is {old} here, so the prompt is met only in part.",
    ),
    "number": (
        "The right kind of thing is there, but the count is off: the prompt says {new}, there are {old}.",
        "Subject and setting fit, yet {old} can be seen where {new} were asked for.",
    ),
    "object": (
        "There is no {new} anywhere; in its place the picture shows {old}. The rest follows the prompt.",
        "The setting fits, but a main thing does not: {new} was asked for, and {old} is what appears.",
    ),
    "place": (
        "The subject fits, but the setting does not: it is {old} rather than {new}.",
        "What was asked for is there, only not in the {new}; the surroundings are {old} instead.",
    ),
}


@dataclass(frozen=True)
class PromptEdit:
    """One word put in place of another."""

    attribute: Attribute
    prompt: str
    """With the new word."""
    old: str
    new: str


def changes(prompt: str, rng: Random) -> list[PromptEdit]:
    """All that can be changed about a prompt, each into one thing drawn at random."""
    words = list(dict.fromkeys(re.findall(r"[a-z]+", prompt.lower())))
    possible = []
    for word in words:
        for attribute, others in _others(word, prompt.lower()):
            allowed = sorted(other for other in others if not _overlap(other, word, words))
            if not allowed:
                continue
            new = rng.choice(allowed)
            possible.append(PromptEdit(attribute, _replaced(prompt, word, new), word, new))
    return possible


def changed(sample: Sample, rng: Random) -> PromptEdit | None:
    """One change of the sample's prompt; attributes that can be changed have equal chances."""
    possible = changes(sample.prompt or "", rng)
    if not possible:
        return None
    attribute = rng.choice(sorted({change.attribute for change in possible}))
    return rng.choice([change for change in possible if change.attribute == attribute])


def changed_description(change: PromptEdit, rng: Random) -> str:
    """What can be said of an image of the old prompt."""
    return rng.choice(CHANGED_WORDS[change.attribute]).format(old=change.old, new=change.new)


def changed_mos(mos: float, scale: MosScale) -> float:
    """MOS for correspondence of an image with a changed prompt in training; `mos`: with its own prompt."""
    return scale.low + 0.5 * (mos - scale.low)


def _replaced(prompt: str, old: str, new: str) -> str:
    """With the article that the new word needs, which would give it away otherwise."""
    pattern = re.compile(rf"\b(?:(an?)(\s+))?{old}\b", re.IGNORECASE)

    def put(match: re.Match[str]) -> str:
        article, gap = match.groups()
        if not article:
            return new
        return article[0] + ("n" if new[0] in "aeiou" else "") + gap + new

    return pattern.sub(put, prompt, count=1)


def _others(word: str, prompt: str) -> list[tuple[Attribute, frozenset[str]]]:
    """Attributes that a word may tell, with the words to choose from."""
    if word == "orange":  # a colour and a fruit
        return [("colour", COLOUR_WORDS)] if re.search(r"\borange [a-z]", prompt) else []
    if word in COLOUR_WORDS | OTHER_COLOURS:
        return [("colour", COLOUR_WORDS)]
    if word in COUNT_WORDS:
        return [("number", COUNT_WORDS)]
    if word in PLACE_WORDS:
        return [("place", PLACE_WORDS)]
    for kind in OBJECT_KINDS:
        for others in (kind, frozenset(map(_plural, kind))):
            if word in others:
                return [("object", others)]
    return []


def _overlap(other: str, word: str, words: list[str]) -> bool:
    """Whether the new word stands in the prompt already, or an image of the old one may show it."""
    pair = {SINGULAR_FORMS.get(other, other), SINGULAR_FORMS.get(word, word)}
    return other in words or len(pair) == 1 or pair in LOOKALIKE_PAIRS


def _plural(word: str) -> str:
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


SINGULAR_FORMS = {_plural(word): word for kind in OBJECT_KINDS for word in kind}
