"""What the descriptions are worth as texts: their tone beside the score, hallucinations, variety.

Counted without any model, so that the numbers mean the same for every backbone and every version of it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from m3agiqa.backbones.nano.grounded_text import SENTENCES
from m3agiqa.backbones.nano.text import base_form, content_words, raw_words, read_words
from m3agiqa.metrics import srcc
from training.data.prompt_edits import LEXICON_FOLDER

PRAISE_WORDS = read_words(LEXICON_FOLDER / "praise.txt")
BLAME_WORDS = read_words(LEXICON_FOLDER / "blame.txt")
NEGATION_WORDS = read_words(LEXICON_FOLDER / "negations.txt")
NEGATION_REACH = 3  # words after one of them that it turns into their opposite
LOOP_LENGTH = 4  # words; so many in a row that come LOOP_REPEATS times are a loop
LOOP_REPEATS = 3
JUDGING_SHARE, MIN_JUDGING_TEXTS = 0.05, 2
"""A word in more of the teacher's texts than this share, and in more than MIN_JUDGING_TEXTS, speaks of
judging, not of what is there, so it is no hallucination."""
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s*$")


def description_metrics(part: pd.DataFrame) -> dict[str, float]:
    """Measures of the column `description` of one aspect's table of predictions; nothing if it is empty.

    tone_srcc           SRCC of their tone with the MOS, unless all have the same
    hallucination_rate  share of descriptions with a content word neither in the prompt nor in the teacher's,
                        that does not just speak of judging
    hallucinated_words  share of all content words that are such
    distinct_2          share of pairs of neighbouring words that are different ones (of all descriptions)
    loops, cut_off      shares that repeat LOOP_LENGTH words LOOP_REPEATS times, and that end in mid-sentence
    words               mean length

    Where the teacher has described the same images, also `teacher_…` of these texts, as far as this means
    something. Hallucinations can only be counted where the teacher has described the image.
    """
    described = part[part["description"].notna()]
    if described.empty:
        return {}
    measures = _texts(list(described["description"]), described["mos"].to_numpy())
    referenced = described[described["reference"].notna()]
    if referenced.empty:
        return measures
    grounds = [
        f"{prompt if isinstance(prompt, str) else ''} {text}"
        for prompt, text in zip(referenced["prompt"], referenced["reference"], strict=True)
    ]
    teacher = _texts(list(referenced["reference"]), referenced["mos"].to_numpy())
    return {
        **measures,
        **_hallucinations(list(referenced["description"]), grounds),
        **{f"teacher_{name}": value for name, value in teacher.items()},
    }


def _texts(texts: Sequence[str], mos: np.ndarray) -> dict[str, float]:
    words = [re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower()) for text in texts]
    pairs = [pair for each in words for pair in pairwise(each)]
    agreement = srcc([tone(text) for text in texts], mos)
    return {
        **({} if math.isnan(agreement) else {"tone_srcc": agreement}),
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        "loops": float(np.mean([_loops(each) for each in words])),
        "cut_off": float(np.mean([not SENTENCE_END.search(text) for text in texts])),
        "words": float(np.mean([len(each) for each in words])),
    }


def tone(text: str) -> float:
    """From -1 (all blame) to 1 (all praise); 0 where there is neither. "Not sharp" is blame."""
    praise = blame = 0
    for sentence in re.split(r"[.!?;:,]|\bbut\b|\bhowever\b", text.lower()):
        words = re.findall(r"[a-z]+", sentence)
        for place, word in enumerate(words):
            if word in PRAISE_WORDS or word in BLAME_WORDS:
                turned = any(
                    before in NEGATION_WORDS for before in words[max(0, place - NEGATION_REACH) : place]
                )
                if (word in PRAISE_WORDS) != turned:
                    praise += 1
                else:
                    blame += 1
    return (praise - blame) / max(1, praise + blame)


def _hallucinations(texts: Sequence[str], grounds: Sequence[str]) -> dict[str, float]:
    counts = _unfounded(texts, grounds)
    return {
        "hallucination_rate": float(np.mean([unfounded > 0 for unfounded, _ in counts])),
        "hallucinated_words": sum(unfounded for unfounded, _ in counts) / max(1, sum(n for _, n in counts)),
    }


def grounded_shares(texts: Sequence[str], grounds: Sequence[str]) -> list[float]:
    """Of each text's content words the share that its ground has, or that just speaks of judging.

    All words of nano's sentences do: it says them only where they were measured (grounded_text).
    """
    judging = [sentence.text for sentence in SENTENCES]
    return [1 - unfounded / max(1, words) for unfounded, words in _unfounded(texts, grounds, judging)]


def _unfounded(
    texts: Sequence[str], grounds: Sequence[str], known_judging: Sequence[str] = ()
) -> list[tuple[int, int]]:
    """Of each text the number of content words that are hallucinated, and of all content words."""
    common = Counter(word for text in [*texts, *grounds, *known_judging] for word in raw_words(text))
    used = Counter(word for ground in grounds for word in content_words(ground, common))
    judging = {
        word for word, count in used.items() if count > max(MIN_JUDGING_TEXTS, JUDGING_SHARE * len(grounds))
    }
    judging |= {base_form(word, common) for text in known_judging for word in raw_words(text)}
    counts = []
    for text, ground in zip(texts, grounds, strict=True):
        known = {base_form(word, common) for word in raw_words(ground)}
        words = content_words(text, common)
        counts.append((sum(word not in known and word not in judging for word in words), len(words)))
    return counts


def _loops(words: Sequence[str]) -> bool:
    runs = Counter(tuple(words[start : start + LOOP_LENGTH]) for start in range(len(words) - LOOP_LENGTH + 1))
    return max(runs.values(), default=0) >= LOOP_REPEATS
