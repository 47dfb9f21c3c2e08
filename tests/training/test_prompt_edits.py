"""Changed prompts differ from their originals in one word, and descriptions name what is wrong."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3agiqa.aspects import MosScale
from m3agiqa.samples import Sample
from training.data.prompt_edits import CHANGED_WORDS, changed, changed_description, changed_mos, changes

PROMPT = "An owl and two red cars in the forest, near a tower"


def test_every_attribute_is_found() -> None:
    found = {change.attribute: change for change in changes(PROMPT, Random(0))}
    assert set(found) == set(CHANGED_WORDS)
    assert found["number"].old == "two" and found["colour"].old == "red" and found["place"].old == "forest"


@given(st.integers())
def test_one_word_differs(seed: int) -> None:
    for change in changes(PROMPT, Random(seed)):
        assert len(change.prompt.split()) == len(PROMPT.split())
        old, new = (prompt.lower().replace(",", "").split() for prompt in (PROMPT, change.prompt))
        different = {(a, b) for a, b in zip(old, new, strict=True) if a != b} - {("an", "a"), ("a", "an")}
        assert different == {(change.old, change.new)}
        assert change.new not in old


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("three wolves", {"wolves"}),
        ("orange juice", {"orange"}),
        ("an orange", set()),
        ("a scary carpet", set()),
    ],
)
def test_only_whole_words_with_one_meaning_are_changed(prompt: str, words: set[str]) -> None:
    found = {change.old for change in changes(prompt, Random(0)) if change.attribute in ("colour", "object")}
    assert found == words


@pytest.mark.parametrize(
    ("prompt", "unlike"),
    [("two men", {"boys", "knights"}), ("a child", {"babies", "boy", "girl"}), ("some sheep", {"sheeps"})],
)
def test_what_may_show_the_old_word_as_well_is_not_chosen(prompt: str, unlike: set[str]) -> None:
    found = {change.new for seed in range(80) for change in changes(prompt, Random(seed))}
    assert found and found.isdisjoint(unlike | {"fishes"})


def test_articles_fit_the_new_word() -> None:
    seen = {change.prompt for seed in range(60) for change in changes("An owl", Random(seed))}
    assert "A dog" in seen and "An elephant" in seen
    assert not any(text.startswith("An ") and text[3] not in "aeiou" for text in seen)


def test_nothing_to_change() -> None:
    assert changed(Sample("1", Path("x"), "红色的狗"), Random(0)) is None
    assert changed(Sample("1", Path("x"), None), Random(0)) is None


@given(st.integers())
def test_descriptions_name_what_is_asked_for_and_what_is_there(seed: int) -> None:
    change = changed(Sample("1", Path("x"), PROMPT), Random(seed))
    text = changed_description(change, Random(seed))
    assert change.old in text and change.new in text


@given(st.floats(1, 5))
def test_a_changed_prompt_fits_less(mos: float) -> None:
    assert 1 <= changed_mos(mos, MosScale(1, 5)) <= mos
