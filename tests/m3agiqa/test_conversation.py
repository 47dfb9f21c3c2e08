import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3agiqa import Aspect, Assessor, InputError, Rating
from m3agiqa.conversation import Conversation

MARKUP = ("<|im_end|>", "<|im_start|>", "<|im_start|>system\n", "<|endoftext|>", "{prompt}", "{}", "%s", "'")
texts = st.lists(st.sampled_from(MARKUP) | st.text(max_size=8), max_size=6).map("".join)
prompts = texts.filter(str.strip)


def test_wording_is_the_papers() -> None:
    quality = Conversation.open(Aspect.QUALITY, "a red ball").turns[0].content
    assert quality == (
        "Please closely examine this AI-generated image and provide a detailed analysis of its content and "
        "quality. The original prompt for the image was: 'a red ball' What can you deduce about the image "
        "based on this prompt, and how would you assess its overall quality?"
    )
    correspondence = Conversation.open(Aspect.CORRESPONDENCE, "a red ball").describe("Round.")
    assert [turn.content for turn in correspondence.turns] == [
        "Please closely examine this AI-generated image and provide a detailed analysis of how well it "
        "aligns with the original prompt: 'a red ball'.",
        "Round.",
        "Based on your analysis, could you please rate the image's alignment with its original prompt? "
        "Choose one word from the following list: [bad, poor, fair, good, excellent], where the words "
        "indicate the degree of alignment from low to high.",
    ]
    authenticity = Conversation.open(Aspect.AUTHENTICITY, "a red ball").turns[0].content
    assert "The original prompt for the image was: 'a red ball'. How closely does" in authenticity


def test_one_round_asks_for_the_word_at_once() -> None:
    asked, answer = Conversation.one_round(Aspect.CORRESPONDENCE, " a red\nball ").rate(Rating.POOR).turns
    assert asked.content == (
        "Take a close look at this AI-generated image and tell me how well it aligns with the elements and "
        "intent of the original prompt: 'a red ball'. Could you please help to rate the image based on its "
        "correspondence with the prompt? Please give me a result from [bad, poor, fair, good, excellent]. "
        "Please just output one word from the list."
    )
    assert (answer.role, answer.content) == ("assistant", "poor")


def test_one_round_without_a_prompt_does_not_mention_one() -> None:
    for aspect in (Aspect.QUALITY, Aspect.AUTHENTICITY):
        (asked,) = Conversation.one_round(aspect, " ").turns
        assert "prompt" not in asked.content
        assert "{" not in asked.content
        assert asked.content.endswith("Please just output one word from the list.")
    with pytest.raises(InputError, match="no prompt was given"):
        Conversation.one_round(Aspect.CORRESPONDENCE, " ")


def test_several_descriptions_are_asked_for_in_turn_and_rated_by_the_own_aspect() -> None:
    told = ((Aspect.QUALITY, "Sharp."), (Aspect.CORRESPONDENCE, "A ball."), (Aspect.AUTHENTICITY, "Drawn."))
    whole = Conversation.open(Aspect.CORRESPONDENCE, "a ball").describe(*told)
    assert [turn.role for turn in whole.turns] == ["user", "assistant"] * 3 + ["user"]
    asked = [Conversation.open(aspect, "a ball").turns[0] for aspect, _ in told]
    assert list(whole.turns[:6:2]) == asked
    assert [turn.content for turn in whole.turns[1::2]] == [text for _, text in told]
    alone = Conversation.open(Aspect.CORRESPONDENCE, "a ball").describe("A ball.")
    assert whole.turns[-1] == alone.turns[-1]
    assert Conversation.open(Aspect.CORRESPONDENCE, "a ball").describe(told[1]) == alone


@pytest.mark.parametrize("prompt", [None, "", " \n\t "])
def test_without_a_prompt(prompt: str | None) -> None:
    for aspect in (Aspect.QUALITY, Aspect.AUTHENTICITY):
        assert "prompt" not in Conversation.open(aspect, prompt).turns[0].content
    with pytest.raises(InputError, match="no prompt was given"):
        Conversation.open(Aspect.CORRESPONDENCE, prompt)


@given(prompts)
def test_prompt_stands_in_the_question_as_it_is(prompt: str) -> None:
    folded = " ".join(prompt.split())
    for aspect in Aspect:
        content = Conversation.open(aspect, prompt).turns[0].content
        assert f"'{folded}'" in content


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=prompts, description=texts)
def test_what_people_and_models_write_is_never_chat_markup(
    assessor: Assessor, prompt: str, description: str
) -> None:
    chat = assessor.backbone.chat
    start = chat.tokenizer.convert_tokens_to_ids("<|im_start|>")
    opened = Conversation.open(Aspect.QUALITY, prompt)
    whole = opened.describe(description).rate(Rating.GOOD)
    for conversation, headers in ((opened, 1), (opened.describe(description), 3), (whole, 3)):
        ids = chat.tokens(conversation).ids
        assert ids.count(chat.end) == len(conversation.turns)
        assert ids.count(start) == headers
        specials = set(chat.tokenizer.all_special_ids) - {chat.end, start}
        assert not specials & set(ids)


def test_answers_are_numbered_turn_by_turn(assessor: Assessor) -> None:
    chat = assessor.backbone.chat
    tokens = chat.tokens(Conversation.open(Aspect.QUALITY, "a ball").describe("Round.").rate(Rating.GOOD))
    spoken = [
        chat.tokenizer.decode([i for i, answer in zip(tokens.ids, tokens.answer, strict=True) if answer == n])
        for n in (1, 2)
    ]
    assert spoken == ["Round.<|im_end|>", "good<|im_end|>"]
