"""A reading decides which turns the predictor sees; what it is kept under depends on all of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.conversation import Conversation
from m3agiqa.samples import Sample
from training.data.variants import Variant
from training.stages.fit_data import conversations_to_encode, targets, targets_of_conversations
from training.stages.hidden_cache import Entry, HiddenCache
from training.stages.predictor_input import PredictorInput

Q, C, A = Aspect
SCALE = MosScale(1.0, 5.0)
SPOKEN = {
    aspect: Entry("", "s", aspect, "own", None, "a boat", f"About {aspect}.", Rating.GOOD)
    for aspect in Aspect
}
READINGS = {
    "own": PredictorInput(),
    "none": PredictorInput(()),
    "Q": PredictorInput((Q,)),
    "QC": PredictorInput((Q, C)),
    "QCA": PredictorInput((Q, C, A)),
    "full": PredictorInput(rated=True),
    "none, rated": PredictorInput((), rated=True),
    "QCA, rated": PredictorInput((Q, C, A), rated=True),
}


@pytest.fixture
def case(tmp_path: Path) -> Variant:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "image.png")
    sample = Sample("s", tmp_path / "image.png", "a boat", dict.fromkeys(Aspect, 3.0))
    return Variant(sample, "own", tuple(Aspect), "a boat")


@pytest.fixture
def without_prompt(case: Variant) -> Variant:
    mos = {Q: 3.0, A: 2.0}
    return replace(case, sample=replace(case.sample, prompt=None, mos=mos), prompt=None, aspects=(Q, A))


def said(case: Variant, aspect: Aspect, name: str) -> list[str]:
    """What the assistant has said."""
    told = READINGS[name].conversation(case, aspect, SPOKEN)
    assert told.aspect is aspect
    assert [turn.role for turn in told.turns] == (["user", "assistant"] * len(told.turns))[: len(told.turns)]
    return [turn.content for turn in told.turns if turn.role == "assistant"]


@pytest.mark.parametrize("aspect", list(Aspect))
def test_the_assistant_has_generated_what_the_reading_wants(case: Variant, aspect: Aspect) -> None:
    about = {each: f"About {each}." for each in Aspect}
    assert said(case, aspect, "own") == [about[aspect]]
    assert said(case, aspect, "none") == []
    assert said(case, aspect, "Q") == [about[Q]]
    assert said(case, aspect, "QC") == [about[Q], about[C]]
    assert said(case, aspect, "QCA") == [about[Q], about[C], about[A]]
    assert said(case, aspect, "full") == [about[aspect], "good"]
    assert said(case, aspect, "none, rated") == ["good"]
    assert said(case, aspect, "QCA, rated") == [about[Q], about[C], about[A], "good"]


@pytest.mark.parametrize("aspect", list(Aspect))
def test_the_last_question_is_about_the_judged_aspect(case: Variant, aspect: Aspect) -> None:
    for name in ("own", "Q", "QC", "QCA"):
        last = READINGS[name].conversation(case, aspect, SPOKEN).turns[-1]
        assert last == Conversation.open(aspect, "a boat").describe("x").turns[-1]
    assert READINGS["none"].conversation(case, aspect, SPOKEN) == Conversation.one_round(aspect, "a boat")


def test_the_default_is_what_was_generated(case: Variant) -> None:
    assert [name for name, reading in READINGS.items() if reading.is_generated] == ["own"]
    spoken = Conversation.open(C, "a boat").describe("About correspondence.")
    assert PredictorInput().conversation(case, C, SPOKEN) == spoken


def test_without_a_prompt_correspondence_is_left_out(without_prompt: Variant) -> None:
    spoken = {Q: SPOKEN[Q], A: SPOKEN[A]}
    for aspect in (Q, A):
        told = READINGS["QCA"].conversation(without_prompt, aspect, spoken)
        assert [turn.content for turn in told.turns[1::2]] == ["About quality.", "About authenticity."]
        assert not any("prompt" in turn.content for turn in told.turns)
        alone = PredictorInput((C,)).conversation(without_prompt, aspect, spoken)
        assert alone == Conversation.one_round(aspect, None)


def test_needs_is_all_that_must_have_been_generated(case: Variant) -> None:
    for aspect in Aspect:
        for reading in READINGS.values():
            reading.conversation(case, aspect, {each: SPOKEN[each] for each in reading.needs(aspect)})


def test_descriptions_may_come_as_texts() -> None:
    assert PredictorInput(["quality", "correspondence"]) == READINGS["QC"]
    with pytest.raises(ValueError, match="beauty"):
        PredictorInput(["beauty"])


def test_every_reading_and_aspect_has_a_key_of_its_own(case: Variant, without_prompt: Variant) -> None:
    conversations = {
        (aspect, told.turns): about.given_key(told, "nano 1")
        for about, aspects in ((case, Aspect), (without_prompt, (Q, A)))
        for aspect in aspects
        for told in (reading.conversation(about, aspect, SPOKEN) for reading in READINGS.values())
    }
    keys = set(conversations.values())
    assert len(keys) == len(conversations) > 30
    spoken = {case.key(each, "nano 1") for each in Aspect} | {without_prompt.key(Q, "nano 1")}
    assert not keys & spoken, "states of what was spoken and of what was given may differ by rounding"


def test_what_a_conversation_says_is_never_taken_for_another_turn(case: Variant) -> None:
    """No text can be put together so that two conversations have one key."""
    first = Conversation.open(Q, "a boat").describe("a")
    second = Conversation.open(Q, "a boat").describe("a', ('user', 'b")
    assert case.given_key(first, "nano 1") != case.given_key(second, "nano 1")
    assert case.given_key(first, "nano 1") != case.given_key(first, "nano")


# --- targets of a reading ------------------------------------------------------------------------


def fill(cache: HiddenCache, case: Variant, *aspects: Aspect) -> None:
    cache.add(
        [
            (replace(SPOKEN[each], key=case.key(each, "nano 1"), sample=case.sample.id), torch.zeros(3, 4))
            for each in aspects
        ]
    )


def test_tellings_wait_for_all_that_they_need(case: Variant, tmp_path: Path) -> None:
    cache = HiddenCache(tmp_path / "hidden")
    fill(cache, case, Q)
    assert len(conversations_to_encode([case], cache, "nano 1", Q, READINGS["Q"])) == 1
    assert conversations_to_encode([case], cache, "nano 1", Q, READINGS["QC"]) == []
    fill(cache, case, C)
    (conversation,) = conversations_to_encode([case], cache, "nano 1", Q, READINGS["QC"])
    assert conversation.conversation == READINGS["QC"].conversation(case, Q, SPOKEN)
    assert conversations_to_encode([case], cache, "another 1", Q, READINGS["Q"]) == []
    assert conversations_to_encode([replace(case, kind="damaged")], cache, "nano 1", Q, READINGS["Q"]) == []


def test_descriptions_of_aspects_without_scores_can_be_read_too(case: Variant, tmp_path: Path) -> None:
    """Table III on a data set that scores quality alone."""
    scored = replace(case, sample=replace(case.sample, mos={Q: 3.0}), aspects=(Q,))
    cache = HiddenCache(tmp_path / "hidden")
    assert conversations_to_encode([scored], cache, "nano 1", Q, READINGS["QCA"]) == []
    fill(cache, case, Q, C, A)
    (conversation,) = conversations_to_encode([scored], cache, "nano 1", Q, READINGS["QCA"])
    assert conversation.conversation == READINGS["QCA"].conversation(case, Q, SPOKEN)


def test_states_of_an_image_that_has_changed_are_not_used(case: Variant, tmp_path: Path) -> None:
    cache = HiddenCache(tmp_path / "hidden")
    fill(cache, case, Q)
    told = conversations_to_encode([case], cache, "nano 1", Q, READINGS["full"])
    key = told[0].key("nano 1")
    cache.add([(replace(SPOKEN[Q], key=key, kind="told", rating=None), torch.ones(5, 4))])
    (target,) = targets_of_conversations(told, cache, "nano 1")
    assert (target.mos, target.aspect, target.states.shape) == (3.0, Q, (5, 4))
    assert [each.mos for each in targets([case], cache, "nano 1", Q, SCALE)] == [3.0]

    Image.new("RGB", (64, 64), "black").save(case.sample.image)
    changed = replace(case)  # a run that is opened anew
    assert targets([changed], cache, "nano 1", Q, SCALE) == []
    assert conversations_to_encode([changed], cache, "nano 1", Q, READINGS["full"]) == []
    assert targets_of_conversations([replace(told[0], variant=changed)], cache, "nano 1") == []


def test_another_reader_has_states_of_its_own(case: Variant, tmp_path: Path) -> None:
    cache = HiddenCache(tmp_path / "hidden")
    fill(cache, case, Q)
    told = conversations_to_encode([case], cache, "nano 1", Q, READINGS["none"])
    cache.add([(replace(SPOKEN[Q], key=told[0].key("nano 1"), kind="told"), torch.ones(5, 4))])
    assert len(targets_of_conversations(told, cache, "nano 1")) == 1
    assert targets_of_conversations(told, cache, "nano 2") == []
