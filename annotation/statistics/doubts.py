"""What people said that hardly tells anything of an image, or contradicts what others say of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import pandas as pd

from annotation.store.corrections import same_text

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SAME_TEXT_IMAGES = 5  # images; one person's text under so many of them does not describe any
CONTRADICTION_GAP = 3.0  # points between two people's scores of the same, on the common scale
MODELS_LANGUAGE = "en"
LANGUAGE_PROBABILITY = 0.5  # from which a text is taken for another language; short ones stay below


@dataclass(frozen=True)
class Doubts:
    """By correction_id of the responses that they are about."""

    one_word: pd.DataFrame
    """Descriptions of a single word."""
    repeated: pd.DataFrame
    """Descriptions that the same person has written under SAME_TEXT_IMAGES images or more."""
    foreign: pd.DataFrame
    """Descriptions in another language than the models', which would learn to mix them."""
    contradicting: pd.DataFrame
    """Scores of an item's aspect that are CONTRADICTION_GAP or more apart."""

    @property
    def texts(self) -> set[int]:
        """The corrections whose descriptions are not to be learned from."""
        return {*self.one_word.index, *self.repeated.index, *self.foreign.index}


def doubts(responses: pd.DataFrame, model_texts: dict[int, str]) -> Doubts:
    """Of responses on one scale (annotation.store.current_responses); `model_texts`: what each was shown."""
    by_id = responses.set_index("correction_id")
    own = [
        text is not None and not agrees and not same_text(text, model_texts.get(correction))
        for correction, text, agrees in zip(by_id.index, by_id["description"], by_id["agrees"], strict=True)
    ]
    texts = by_id[pd.Series(own, by_id.index, dtype=bool)]
    texts = texts.assign(words=[" ".join(text.casefold().split()) for text in texts["description"]])
    images = texts.groupby(["annotator", "aspect", "words"])["item_id"].transform("nunique")
    scores = by_id.groupby(["item_id", "aspect"])["score"]
    return Doubts(
        one_word=texts[~texts["words"].astype(str).str.contains(" ", regex=False)],
        repeated=texts[images >= SAME_TEXT_IMAGES],
        foreign=texts[texts["description"].map(is_foreign).astype(bool)],
        contradicting=by_id[scores.transform("max") - scores.transform("min") >= CONTRADICTION_GAP],
    )


@lru_cache(maxsize=10_000)
def is_foreign(text: str) -> bool:
    """Whether a text is most probably not in the models' language."""
    language, probability = _language_identifier().classify(text)
    return language != MODELS_LANGUAGE and probability >= LANGUAGE_PROBABILITY


@cache
def _language_identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second to load

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
