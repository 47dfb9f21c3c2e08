"""The words of a prompt that can be looked for in an image, in their base forms."""

from __future__ import annotations

import re
from collections.abc import Mapping

STOP = frozenset(
    """
    about across after all also and any are away been being between both but can did does down each
    for from get had has have her here him his image into its just like many more most much not off
    only other our out over own photo photograph picture she some such than that the their them then
    there these they this those through under very was were what when where which while who whose
    why will with would you your
    """.split()  # noqa: SIM905 - as a text it can be read
)
UNSPACED = "\u2e80"  # from here on there are scripts without spaces, of about two letters a word
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "persons": "person",
    "kids": "kid",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "leaves": "leaf",
    "knives": "knife",
    "wolves": "wolf",
    "shelves": "shelf",
    "ran": "run",
    "ridden": "ride",
    "riding": "ride",
    "sat": "sit",
    "written": "write",
    "writing": "write",
}


def raw_words(text: str) -> list[str]:
    """All words of a text in the Latin alphabet without accents, in lower case."""
    return re.findall(r"(?<![^\W\d_])[a-z]{3,}(?![^\W\d_])", text.lower())


def foreign_words(text: str) -> int:
    """About how many words there are in other letters than those without accents."""
    runs = [run for run in re.findall(r"[^\W\d_]+", text) if not run.isascii()]
    return sum(max(1, len(run) // 2) if run[0] >= UNSPACED else 1 for run in runs)


def content_words(text: str, common: Mapping[str, float]) -> list[str]:
    """What a text speaks of, each word once and in its base form.

    `common` says how often words are said; a base form must be one of them.
    """
    found = (base_form(word, common) for word in raw_words(text) if word not in STOP)
    return list(dict.fromkeys(word for word in found if word not in STOP))


def base_form(word: str, common: Mapping[str, float]) -> str:
    """Singular of a noun, infinitive of a verb: of the forms that the ending allows, the commonest."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    forms = [form for form in _forms(word) if len(form) > 2 and form in common]
    return max(forms, key=lambda form: (common[form], form), default=word)


def _forms(word: str) -> list[str]:
    if word.endswith("ies"):
        return [word[:-3] + "y", word[:-1]]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return [word[:-1], word[:-2]] if word.endswith("es") else [word[:-1]]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and not word.endswith("eed"):
            stem = word.removesuffix(ending)
            return [stem, stem + "e", stem[:-1] if stem[-2:-1] == stem[-1:] else stem]
    return []
