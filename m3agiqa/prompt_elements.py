"""A prompt taken apart: things, their attributes and colours, counts, relations, style and requested text.

By rules and word lists, for the kinds of prompts that people write: sentences, lists of tags, and tags with
weights and other commands to a generator, which are no elements.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

MAX_NESTING = 20  # brackets within brackets
MAX_ELEMENTS = 40  # of a prompt; later ones are left out


class ElementKind(StrEnum):
    """What an element asks for."""

    THING = "thing"
    ATTRIBUTE = "attribute"
    COLOUR = "colour"
    COUNT = "count"
    RELATION = "relation"
    STYLE = "style"
    TEXT = "text"


@dataclass(frozen=True)
class PromptElement:
    """One thing that can be seen in an image or not, in the prompt's words."""

    kind: ElementKind
    text: str


class Presence(StrEnum):
    """Whether an image shows an element."""

    SEEN = "seen"
    NOT_SURE = "not sure"
    NOT_SEEN = "not seen"
    NOT_JUDGED = "not judged by this model"


@dataclass(frozen=True)
class CheckedElement:
    """An element, and whether a model sees it in an image."""

    element: PromptElement
    presence: Presence
    comparison: str
    """What was compared with what, and with which result, for readers."""
    probability: float | None = None
    """Of the answer yes, where a language model was asked."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        known = {} if self.probability is None else {"probability": round(self.probability, 3)}
        return {
            "kind": str(self.element.kind),
            "text": self.element.text,
            "presence": str(self.presence),
            **known,
            "comparison": self.comparison,
        }


def _word_list(name: str) -> frozenset[str]:
    """Lines of a file beside this module, without comments (#)."""
    path = Path(__file__).with_name("prompt_words") / f"{name}.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


KNOWN_ADJECTIVES, STYLE_WORDS, BOOSTER_WORDS = map(_word_list, ("adjectives", "styles", "boosters"))
COLOUR_WORDS, NUMBER_NAMES, NOUNS_IN_ING = map(_word_list, ("colours", "numbers", "nouns_in_ing"))
NOUNS_LIKE_ADJECTIVES, DESCRIBING_NOUNS = map(_word_list, ("nouns_like_adjectives", "describing_nouns"))
LEADING_BOOSTER = re.compile(
    rf"^(?:(?:{'|'.join(sorted((w for w in BOOSTER_WORDS if ' ' in w), key=len, reverse=True))})\s+)+"
)
STOP_WORDS = _word_list("stop_words")
"""They end a noun phrase and are no part of one."""
ADJECTIVE_ENDINGS = (
    "ful", "ous", "less", "ish", "ly", "ed", "al", "ic", "ive", "-like", "-style", "-colored", "-coloured",
)  # fmt: skip
BEFORE_A_NOUN = frozenset({"a", "an", "the", "with", "of"})
SINGLE_COUNT_WORDS = frozenset({"one", "single", "1"})
RELATION_WORDS = (
    "standing in front of", "sitting in front of", "standing next to", "sitting next to", "standing behind",
    "in front of", "on top of", "next to", "close to", "to the left of", "to the right of", "left of",
    "right of", "sitting on", "sitting in", "sitting at", "standing on", "standing in", "standing at",
    "lying on", "lying in", "resting on", "leaning on", "leaning against", "looking at", "floating in",
    "floating above", "walking on", "walking in", "walking through", "running through", "surrounded by",
    "covered in", "covered with", "filled with", "made of", "on", "in", "inside", "under", "underneath",
    "beneath", "above", "over", "below", "behind", "beside", "between", "among", "against", "near", "around",
    "across", "through", "playing in", "playing on", "playing with", "holding", "wearing", "riding",
    "carrying", "eating", "drinking", "playing", "chasing", "hugging", "watching", "reading",
    "overlooking", "printed with", "populated with",
)  # fmt: skip
"""Longer ones first where one begins with another."""
ABOUT_THE_SUBJECT = re.compile(
    r"\s*(?:(?:he|she|they|it) (?:is |are )?)?"
    r"(?=(?:holding|wearing|riding|carrying|eating|drinking|hugging|reading|"
    r"surrounded by|covered (?:in|with)|filled with|made of|printed with|populated with)\s)"
)
"""So begins what is told of the thing before: "He is wearing"."""
SAME_SUBJECT = re.compile(rf"{ABOUT_THE_SUBJECT.pattern}|\s*(?:he|she|they|it|his|her|their|its)\b")
FRAMING_PHRASE = re.compile(
    r"^(?:an?|the)?\s*((?:[\w-]+\s){0,4}?(?:photo(?:graph)?|picture|image|painting|illustration|drawing|sketch|"
    r"portrait|render(?:ing)?|shot|art|still|sticker|poster|logo|screenshot|view|sculpture|watercolou?r|"
    r"footage|photography))\s+(?:of|from)\s+",
    re.IGNORECASE,
)
INSTRUCTION = re.compile(
    r"^(?:(?:please|help me|(?:can|could) you|i want you to)\s+)*"
    r"(?:create|depict|design|draw|generate|illustrate|imagine|make|paint|place|produce|render|show|sketch|use)\s+(?:me\s+)?"
    r"(?=(?:an?|the|some|one|two|three|\d+)\s)",
    re.IGNORECASE,
)
"""An instruction such as "create" or "draw me": it is no element of the image."""
TEXT_BEFORE = (
    r"(?:text|words?|letters?|caption|title|titled|label(?:l?ed)?|sign|banner|logo|saying|says?|reads?|reading|"
    r"written|writing|spell(?:s|ing)|inscription|headline|slogan|that says)[\s:,]*"
)
QUOTED_TEXT = re.compile(
    rf"[“\"]([^”\"]{{1,200}})[”\"]|(?<=\s)‘([^’]{{1,200}})’|{TEXT_BEFORE}'([^']{{1,200}})'"
    r"|(?<=\s)'([^'\n]{2,200})'(?!\w)",
    re.I,
)
QUOTED_PROMPT = re.compile(r"^\s*(?:“([^”]{60,})”|\"([^\"]{60,})\")")
"""The prompt itself, pasted with its quotation marks: it is no text to be written."""
STYLE_PHRASE = re.compile(r"\s+in (?:an? |the )?((?:[\w-]+ ){1,3}style)\b")
STYLE_NOUNS = (
    "style|aesthetic|art|lighting|shot|view|lens|render|rendering|photography|photo|photograph|illustration|"
    "advertisement|composition|atmosphere|mood|vibe|feel|feeling|finish|layout|styling|branding|focus|perspective|"
    "grading|scattering|occlusion|effects?|colou?rs?"
)


def prompt_elements(prompt: str | None) -> tuple[PromptElement, ...]:
    """The elements in the order of the prompt, each once; none of a prompt in another alphabet."""
    elements: dict[PromptElement, None] = {}
    plain = without_commands(QUOTED_PROMPT.sub(lambda quoted: quoted[1] or quoted[2], prompt or ""))
    for quoted in QUOTED_TEXT.finditer(plain):
        text = " ".join(next(filter(None, quoted.groups()), "").split())
        if text:
            elements[PromptElement(ElementKind.TEXT, text.strip(" ,."))] = None
    subject = ""  # of the sentence before: "a man in a park. He is wearing a hat"
    for segment in re.split(
        r"[,;\n|]|\.(?=\s|,|$)|:\s|\s-\s|—", _adjectives_joined(QUOTED_TEXT.sub(" , ", plain))
    ):
        told = list(_of_segment(" ".join(segment.split()), subject))
        elements.update(dict.fromkeys(told))
        if not SAME_SUBJECT.match(segment.lower()):
            subject = next((each.text for each in told if each.kind == ElementKind.THING), subject)
    return tuple(elements)[:MAX_ELEMENTS]


def without_commands(prompt: str) -> str:
    """The prompt without what is meant for the generator's machinery: weights, LoRA tags, parameters."""
    text = re.sub(r"<[a-z]+:[^<>]*>", " , ", prompt, flags=re.IGNORECASE)
    text = re.sub(r"(?:^|\s)--[a-z]+(?:\s+(?!--)[^\s,]+)*", " ", text)
    text = re.sub(r"\bembedding:[\w.-]+", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(?:BREAK|AND)\b", " , ", text)
    text = re.sub(r"\bscore_\d+(?:_up)?\b", " , ", text)
    text = text.replace(r"\(", "\x01").replace(r"\)", "\x02")  # brackets that are meant
    text = re.sub(r"\)\s+(?=\()", ") , ", text)  # each a tag of its own
    for _ in range(MAX_NESTING):  # from within: ((red:1.2) dress:0.9)
        text = re.sub(r"\[([^\[\]:|]*):([^\[\]:|]*):[\d.]+\]", r" \1 , \2 ", text)
        text = re.sub(r"\[([^\[\]|]*)\|([^\[\]]*)\]", r" \1 , \2 ", text)
        text = re.sub(r"[(\[{]([^()\[\]{}]*?)(?::\s*[\d.]+)?[)\]}]", r"\1", text)
    text = re.sub(r"::\s*[\d.]*", " , ", text)
    text = re.sub(r"(?<=\w):[\d.]+\b", " ", text)
    text = re.sub(r"\x01[^\x02]*\x02?", " ", text)  # of tags, a note such as \(series\)
    return re.sub(r"(?<=\w)_(?=\w)", " ", text)


def _adjectives_joined(text: str) -> str:
    """Adjectives of one noun without what stands between them: "dark and stormy night", "long, wavy hair"."""

    def joined(match: re.Match[str]) -> str:
        both = _describes(match[1].lower()) and _describes(match[2].lower())
        return f"{match[1]} " if both else match[0]

    def without_comma(match: re.Match[str]) -> str:
        return f"{match[1]} {match[2]} " if _describes(match[2].lower()) else match[0]

    text = re.sub(r"\b([\w-]+) (?:and|or) (?=([\w-]+))", joined, text)
    return re.sub(r"\b(an?|the|of|with|has|have|\w+ing) ([\w-]+), (?=[\w-])", without_comma, text)


def _of_segment(segment: str, subject: str) -> Iterator[PromptElement]:
    lowered = INSTRUCTION.sub("", segment.lower().strip(" .!?'\""))
    lowered = re.sub(
        r"(?:^|\s+)in (?:the )?(?:back|fore)ground\b", "", LEADING_BOOSTER.sub("", lowered)
    ).strip()
    if not lowered or _bare(lowered) in BOOSTER_WORDS:
        return
    if _names_a_colour(lowered.split()):
        yield PromptElement(ElementKind.COLOUR, lowered)
        return
    if (style := _style(lowered)) is not None:
        yield PromptElement(ElementKind.STYLE, style)
        return
    if frame := FRAMING_PHRASE.match(lowered):
        yield PromptElement(ElementKind.STYLE, _bare(frame[1]))
        lowered = lowered[frame.end() :]
    lowered, *styles = re.split(r"\s+(?=in (?:the )?style of\b|by artist\b)", lowered)
    styles += [found[1] for found in STYLE_PHRASE.finditer(lowered)]
    yield from _things(STYLE_PHRASE.sub(" , ", lowered), subject)
    for style in styles:
        yield PromptElement(
            ElementKind.STYLE, _bare(re.sub(r"^in (?:the style of )?(?:an? |the )?", "", style))
        )


def _names_a_colour(words: list[str]) -> bool:
    """Whether they are no more than a colour, such as "sapphire blue"."""
    others = STOP_WORDS | NUMBER_NAMES | SINGLE_COUNT_WORDS
    return 1 < len(words) <= 3 and words[-1] in COLOUR_WORDS and not others & {*words}


def _style(segment: str) -> str | None:
    """The segment, if all of it is about the style."""
    bare = _bare(segment)
    if bare in STYLE_WORDS or re.match(
        r"(?:(?:art |painted |drawn |illustrated |photographed )?by|shot on) [a-z]", bare
    ):
        return bare
    start = r"^(?:and )?(?:in the |in an? |in |an? )?"
    if (found := re.match(rf"{start}((?:[\w-]+ ){{1,4}})(?:{STYLE_NOUNS})$", segment)) and not any(
        word in STOP_WORDS or word in RELATION_WORDS or _is_verb(word) for word in found[1].split()
    ):
        return re.sub(start, "", segment)
    is_adjective = _adjective_by_ending(bare) and not bare.endswith(("ed", "ly"))
    return bare if is_adjective or bare.endswith("-style") else None


def _things(phrase: str, last_subject: str) -> Iterator[PromptElement]:
    """Noun phrases and the relations between them."""
    pattern = "|".join(map(re.escape, RELATION_WORDS))
    subject = before = relation = ""
    if about := ABOUT_THE_SUBJECT.match(phrase):
        subject = before = last_subject
        phrase = phrase[about.end() :]
    for part in re.split(rf"\s+({pattern})\s+", f" {phrase} "):
        part = part.strip()
        if part in RELATION_WORDS:
            relation = part
            continue
        last = ""
        for number, noun_phrase in enumerate(_noun_phrases(part)):
            words = noun_phrase.split()
            yield from _noun_phrase(words)
            last = _head(words) or last
            doer = subject if "ing" in relation else before  # who holds something is in front of all
            if number == 0 and relation and doer and last:
                yield PromptElement(ElementKind.RELATION, f"{doer} {relation} {last}")
            subject = subject or last
        before, relation = last or before, ""


def _noun_phrases(text: str) -> list[str]:
    phrases: list[list[str]] = [[]]
    before = ""
    for word in re.findall(r"[a-z0-9à-öø-ÿ][a-z0-9à-öø-ÿ'’-]*", text):
        describes = before in BEFORE_A_NOUN or (  # "with flying cars"
            phrases[-1] and _describes(before) and not before.endswith("ly")
        )
        if word in STOP_WORDS or (_is_verb(word) and not describes):
            phrases.append([])
        else:
            phrases[-1].append(word)
        before = word
    return [" ".join(phrase) for phrase in phrases if phrase]


def _noun_phrase(words: list[str]) -> Iterator[PromptElement]:
    if tag := re.fullmatch(r"(\d+)\+?(girl|boy|other)s?", words[-1]):
        words = [*words[:-1], tag[1], tag[2] if tag[1] == "1" else f"{tag[2]}s"]
    head = _head(words)
    if not head:
        return
    start = next(index for index in range(len(words)) if words[index:][: len(head.split())] == head.split())
    after = [word for word in words[start + len(head.split()) :] if word in COLOUR_WORDS | KNOWN_ADJECTIVES]
    yield PromptElement(ElementKind.THING, head)
    for word in words[:start] + after:
        if word in COLOUR_WORDS or word.endswith(("-colored", "-coloured")):
            yield PromptElement(ElementKind.COLOUR, f"{word} {head}")
        elif word in NUMBER_NAMES or word in SINGLE_COUNT_WORDS or word.isdigit():
            yield PromptElement(ElementKind.COUNT, f"{word} {head}")
        elif word not in BOOSTER_WORDS and (word in KNOWN_ADJECTIVES or not word.endswith("ly")):
            yield PromptElement(ElementKind.ATTRIBUTE, f"{word} {head}")


def _head(words: list[str]) -> str:
    """The noun with what makes a compound of it; "" if there is none."""
    end = len(words)
    while end and (_describes(words[end - 1])):
        end -= 1
    if end == 0:  # "made of metal", "an alien"
        return words[-1] if words[-1] in DESCRIBING_NOUNS else ""
    start = end - 1
    while start and not _describes(words[start - 1]):
        start -= 1
    return " ".join(words[start:end])  # without what stands behind the noun: "eyes closed", "a jar buried"


def _describes(word: str) -> bool:
    return (
        word in KNOWN_ADJECTIVES
        or word in DESCRIBING_NOUNS
        or word in COLOUR_WORDS
        or word in NUMBER_NAMES
        or word in SINGLE_COUNT_WORDS
        or word in BOOSTER_WORDS
        or word.isdigit()
        or _is_verb(word)
        or _adjective_by_ending(word)
    )


def _adjective_by_ending(word: str) -> bool:
    ends_so = len(word) > 5 and " " not in word and word.endswith(ADJECTIVE_ENDINGS)
    return ends_so and word not in NOUNS_LIKE_ADJECTIVES


def _is_verb(word: str) -> bool:
    return (
        len(word) > 5 and word.endswith("ing") and word not in KNOWN_ADJECTIVES and word not in NOUNS_IN_ING
    )


def _bare(text: str) -> str:
    return re.sub(r"^(?:an?|the)\s+", "", text.strip(" .!?"))
