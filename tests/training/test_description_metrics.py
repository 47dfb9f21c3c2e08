"""Measures of descriptions, on texts of which is known what is wrong with them."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.description_metrics import description_metrics, tone


def table(*rows: tuple[str | None, str | None, str | None, float]) -> pd.DataFrame:
    """Of description, prompt, the teacher's description and MOS."""
    return pd.DataFrame(rows, columns=["description", "prompt", "reference", "mos"])


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("The image is sharp and well lit, with clean edges.", 1),
        ("The hands are malformed and the background is blurry.", -1),
        ("It is not sharp.", -1),
        ("There are no artifacts.", 1),
        ("The face lacks detailed skin.", -1),
        ("A dog stands on a table.", 0),
        ("Not only a dog, sharp and clear.", 1),  # a comma ends what "not" turns
    ],
)
def test_the_tone_is_praise_or_blame(text: str, sign: int) -> None:
    assert (tone(text) > 0) - (tone(text) < 0) == sign


@given(st.text())
def test_every_text_has_a_tone(text: str) -> None:
    assert -1 <= tone(text) <= 1


def test_tone_is_compared_with_the_score() -> None:
    texts = ["It is blurry and distorted.", "Sharp, but with a strange hand.", "Sharp and realistic."]
    rows = [(text, None, None, mos) for text, mos in zip(texts, (1.0, 3.0, 5.0), strict=True)]
    assert description_metrics(table(*rows))["tone_srcc"] == pytest.approx(1)


def test_words_of_neither_prompt_nor_teacher_are_made_up() -> None:
    found = description_metrics(
        table(
            ("Dogs are in a garden.", "two dogs", "The dog stands in its garden.", 3.0),
            ("A dog beside a castle.", "a dog", "The dog is fine.", 4.0),
            ("Nobody else has described this castle.", "a dog", None, 2.0),
        )
    )
    assert found["hallucination_rate"] == pytest.approx(1 / 2), "of those that the teacher has described"
    assert found["hallucinated_words"] == pytest.approx(2 / 5), "beside, castle; not dog, garden"


def test_what_the_teacher_often_says_is_not_made_up() -> None:
    told = [("A dog of odd texture.", "a dog", "The texture is fine.", 3.0)] * 3
    found = description_metrics(table(*told, ("A dog of odd texture.", "a dog", "It is odd.", 3.0)))
    assert found["hallucination_rate"] == pytest.approx(3 / 4), "odd, where the teacher has not said it"


def test_loops_and_cut_off_sentences_are_counted() -> None:
    found = description_metrics(
        table(
            ("It is a red house, it is a red house, it is a red house.", None, None, 1.0),
            ("The image shows a (rather “large”) house.", None, None, 2.0),
            ('The sign says "stop."', None, None, 3.0),
            ("The house has a red", None, None, 4.0),
        )
    )
    assert found["loops"] == pytest.approx(1 / 4)
    assert found["cut_off"] == pytest.approx(1 / 4)


def test_the_same_words_again_are_not_distinct() -> None:
    row = ("a red house", None, None, 1.0)
    assert description_metrics(table(row))["distinct_2"] == 1
    assert description_metrics(table(row, row))["distinct_2"] == pytest.approx(1 / 2)


def test_the_teacher_is_measured_alike() -> None:
    found = description_metrics(table(("One house", "a house", "A clean, sharp house.", 4.0)))
    assert (found["cut_off"], found["teacher_cut_off"]) == (1, 0)
    assert "teacher_hallucination_rate" not in found


def test_without_descriptions_there_is_nothing_to_measure() -> None:
    assert description_metrics(table((None, "a house", "A clean house.", 4.0))) == {}
