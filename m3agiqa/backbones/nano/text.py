"""The content words of a prompt, in their base forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

LEXICON_FOLDER = Path(__file__).with_name("lexicons")


def read_lexicon(path: Path) -> list[list[str]]:
    """The words of each line of a text file, without comments (#)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def read_words(path: Path) -> frozenset[str]:
    """All words of a lexicon."""
    return frozenset(word for line in read_lexicon(path) for word in line)


STOP_WORDS = read_words(LEXICON_FOLDER / "stop_words.txt")
IRREGULAR_FORMS: dict[str, str] = dict(read_lexicon(LEXICON_FOLDER / "irregular_forms.txt"))
"""Base forms by irregular plurals and verb forms."""
FIRST_UNSPACED_LETTER = "\u2e80"  # from here on there are scripts without spaces, of about two letters a word
NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def raw_words(text: str) -> list[str]:
    """All words of a text in the Latin alphabet without accents, in lower case."""
    return re.findall(r"(?<![^\W\d_])[a-z]{3,}(?![^\W\d_])", text.lower())


def foreign_words(text: str) -> int:
    """About how many words there are in other letters than those without accents."""
    runs = [run for run in re.findall(r"[^\W\d_]+", text) if not run.isascii()]
    return sum(max(1, len(run) // 2) if run[0] >= FIRST_UNSPACED_LETTER else 1 for run in runs)


def content_words(text: str, common: Mapping[str, float]) -> list[str]:
    """Each content word once, in its base form.

    `common`: how frequent words are; a base form must be one of them.
    """
    words = (base_form(word, common) for word in raw_words(text) if word not in STOP_WORDS)
    return list(dict.fromkeys(word for word in words if word not in STOP_WORDS))


def base_form(word: str, common: Mapping[str, float]) -> str:
    """Singular of a noun, infinitive of a verb: of the forms that the ending allows, the commonest."""
    if word in IRREGULAR_FORMS:
        return IRREGULAR_FORMS[word]
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
