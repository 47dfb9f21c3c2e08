"""nano's descriptions: whole sentences, each open to it only where its evidence was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3agiqa.aspects import RATING_WORDS, Aspect, Rating
from m3agiqa.backbones.nano.grounded_text import (
    MAX_SENTENCES,
    MIN_SENTENCES,
    OPENING_TOPIC,
    SENTENCES,
    FirstEstimate,
    GroundedText,
    colour_evidence,
    measured_evidence,
    prompt_evidence,
    read_first_estimates,
    write_first_estimates,
)

END = 0
VALUES = {
    "seen": "“cat”",
    "unseen": "“hat”",
    "colours": "blue and red",
    "asked": "green",
    "lacking": "pink",
}


def encoded(text: str) -> list[int]:
    return list(map(ord, text))


def flat(level: float, side: int = 64) -> Tensor:
    return torch.full((3, side, side), level)


def written(grammar: GroundedText, choose: st.DataObject) -> str:
    ids: list[int] = []
    while True:
        allowed = sorted(grammar.next_tokens(ids))
        token = choose.draw(st.sampled_from(allowed))
        if token == END:
            return "".join(map(chr, ids))
        ids.append(token)


def test_there_is_an_opening_and_enough_to_add_for_every_rating() -> None:
    for aspect in Aspect:
        for rating in RATING_WORDS:
            fitting = [s for s in SENTENCES if s.aspect is aspect and rating in s.ratings]
            openings = [s for s in fitting if s.topic == OPENING_TOPIC]
            assert len(openings) >= 3, (aspect, rating)
            assert {s.evidence for s in openings} <= {"", "unmatched"}
            assert any(not s.evidence and s.topic != OPENING_TOPIC for s in fitting), (aspect, rating)


def test_placeholders_are_filled_by_the_evidence_that_a_sentence_needs() -> None:
    for sentence in SENTENCES:
        assert re.fullmatch(r"[A-Z].*\.", sentence.text), sentence.text
        assert set(re.findall(r"{(\w+)}", sentence.text)) <= {sentence.evidence}, sentence.text


@given(
    choose=st.data(),
    aspect=st.sampled_from(list(Aspect)),
    rating=st.sampled_from(RATING_WORDS),
    names=st.sets(st.sampled_from(sorted({s.evidence for s in SENTENCES if s.evidence}))),
    seed=st.text(max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_model_chooses_is_whole_sentences_with_their_evidence(
    choose: st.DataObject, aspect: Aspect, rating: Rating, names: set[str], seed: str
) -> None:
    evidence = {name: VALUES.get(name, "") for name in names}
    text = written(GroundedText(aspect, rating, evidence, encoded, END, seed), choose)
    possible = {
        s.text.format_map(evidence): s
        for s in SENTENCES
        if s.aspect is aspect and rating in s.ratings and (not s.evidence or s.evidence in evidence)
    }
    spoken = []
    while text:
        one = max((t for t in possible if text.startswith(t)), key=len)
        spoken.append(possible[one])
        text = text[len(one) :].removeprefix(" ")
    topics = [sentence.topic for sentence in spoken]
    assert topics[0] == OPENING_TOPIC and len(set(topics)) == len(topics)
    if "unmatched" in names and aspect is Aspect.CORRESPONDENCE:
        assert topics == [OPENING_TOPIC] and spoken[0].evidence == "unmatched"
        return
    assert MIN_SENTENCES <= len(topics) <= MAX_SENTENCES
    measured = [bool(sentence.evidence) for sentence in spoken[1:]]
    assert measured == sorted(measured, reverse=True), "what was measured goes first"


def test_the_seed_alone_decides_between_wordings() -> None:
    def text(seed: str) -> str:
        grammar = GroundedText(Aspect.QUALITY, Rating.FAIR, {}, encoded, END, seed)
        ids: list[int] = []
        while (token := min(grammar.next_tokens(ids) - {END}, default=END)) != END:
            ids.append(token)
        return "".join(map(chr, ids))

    assert text("a") == text("a")
    assert len({text(str(seed)) for seed in range(20)}) > 4


def ramp() -> Tensor:
    return torch.linspace(0.9, 0.1, 64)[:, None].expand(3, 64, 64).clone()


def checks() -> Tensor:
    board = torch.arange(64)[:, None] + torch.arange(64)
    return (board % 2).float().expand(3, 64, 64)


def in_the_middle() -> Tensor:
    image = flat(0.5)
    image[:, 20:44, 20:44] = checks()[:, :24, :24]
    return image


def tinted(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])[:, None, None].expand(3, 64, 64)


@pytest.mark.parametrize(
    ("image", "holds", "lacks"),
    [
        (flat(0.05), {"dark", "low_contrast", "colourless", "plain"}, {"bright", "busy", "colours"}),
        (flat(0.95), {"bright", "plain"}, {"dark", "symmetric"}),
        (ramp(), {"light_above", "symmetric"}, {"light_below", "dark", "bright"}),
        (ramp().flip(1), {"light_below"}, {"light_above"}),
        (checks(), {"busy", "high_contrast"}, {"plain", "low_contrast"}),
        (in_the_middle(), {"central"}, {"spread"}),
        (tinted(0.9, 0.1, 0.1), {"vivid", "warm", "colours"}, {"cool", "colourless"}),
        (tinted(0.1, 0.2, 0.9), {"vivid", "cool", "colours"}, {"warm"}),
    ],
    ids=["dark", "bright", "light above", "light below", "checks", "in the middle", "red", "blue"],
)
def test_what_is_measured_in_drawn_images(image: Tensor, holds: set[str], lacks: set[str]) -> None:
    evidence = measured_evidence(image, 0.0)
    assert holds <= set(evidence) and not lacks & set(evidence)
    assert not {"soft", "crisp"} & set(evidence)


def test_sharpness_comes_from_the_own_pixels() -> None:
    assert "soft" in measured_evidence(flat(0.5), -2.0) and "crisp" in measured_evidence(flat(0.5), 2.0)


def test_colours_that_a_prompt_names() -> None:
    image = tinted(0.9, 0.1, 0.1)
    assert colour_evidence("a red fox in blue snow", image) == {"asked": "red", "lacking": "blue"}
    assert colour_evidence("a fox", image) == {}
    assert colour_evidence("a golden retriever and a yellow ball", image) == {"lacking": "yellow"}
    assert colour_evidence("a golden retriever in silver moonlight", image) == {}


def test_words_of_a_prompt_that_may_be_named() -> None:
    nearness = {"cat": 2.0, "blue": 3.0, "dance": 3.0, "detailed": 3.0, "hat": -2.0, "sofa": 0.0}
    assert prompt_evidence("a detailed cat dancing, blue hat, sofa", nearness) == {
        "seen": "“cat”",
        "unseen": "“hat”",
    }
    assert prompt_evidence("一只猫", {}) == {"unmatched": ""}


def test_first_estimates_are_kept_and_missing_ones_are_none(tmp_path: Path) -> None:
    assert read_first_estimates(tmp_path) == {}
    estimates = {aspect: FirstEstimate(3.0, 0.5) for aspect in Aspect}
    write_first_estimates(tmp_path, estimates)
    assert read_first_estimates(tmp_path) == estimates
    assert [estimates[Aspect.QUALITY].rating(logit) for logit in (-9.0, 0.0, 9.0)] == [
        Rating.BAD,
        Rating.FAIR,
        Rating.EXCELLENT,
    ]
