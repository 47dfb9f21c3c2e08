import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import gradio as gr
import pytest
from signed_in import SignedIn
from sqlalchemy import func, select
from waiting import run_async

from annotation.store.current_responses import current_corrections
from annotation.store.database import StoreError
from annotation.store.models import Correction, Item, Submission
from annotation.store.queue import take
from annotation.ui.access import Access, Forbidden, Role
from annotation.ui.assess.correct import SIGN_IN, AssessedImage, CorrectHandlers
from annotation.ui.assess.tab import AssessHandlers
from m3agiqa.aspects import Aspect

NASTY = '<img src=x onerror="alert(1)"> & so on'
TOKENS = count()


@pytest.fixture
def assess(studio, upload) -> Callable[..., AssessedImage]:
    """Assess the image once more, as in a tab of one's own."""

    def run(access: Access | None = None, keep: bool = True) -> AssessedImage:
        settings = replace(studio.settings, keep=keep)
        handlers = AssessHandlers(replace(studio, access=access or studio.access, settings=settings))

        async def last() -> tuple:
            image = {"path": str(upload.path), "orig_name": upload.name}
            *_, shown = [shown async for shown in handlers.assess(image, "teal", request())]
            return shown

        return run_async(last(), 10)[0]

    return run


@pytest.fixture
def handlers(studio) -> CorrectHandlers:
    return CorrectHandlers(studio.access)


@pytest.fixture
def standing(studio) -> Callable[[], list[Correction]]:
    """The current corrections."""

    def query() -> list[Correction]:
        with studio.store.database.reading() as session:
            return list(session.scalars(current_corrections()))

    return query


def request() -> SimpleNamespace:
    return SimpleNamespace(session_hash="ann")


def event(**data: object) -> gr.EventData:
    """What a card sends; each with a token of its own unless there is one."""
    return gr.EventData(None, {"aspect": "quality", "token": f"token-{next(TOKENS)}", "seconds": 3.5, **data})


def form(**changes: object) -> gr.EventData:
    said = {"description": "Blurred.", "score": 2.3, "tags": ["missed flaw"], "comment": "look left"}
    return event(**{**said, **changes})


def quality(cards: tuple) -> str:
    """The card that has changed; the others must not have, or what is being typed there is lost."""
    assert cards[1:] == (gr.skip(), gr.skip())
    return cards[0]


def number(card: str) -> int:
    return int(re.search(r"Saved as correction #(\d+)", card)[1])


def test_a_correction_is_saved_shown_and_undone(handlers, assess, standing, studio):
    assessed = assess()
    card = quality(handlers.save(assessed, form(), request()))
    with studio.store.database.reading() as session:
        correction = session.get(Correction, number(card))
        assert (correction.aspect, correction.score, correction.agrees) == (Aspect.QUALITY, 2.3, False)
        assert (correction.description, correction.comment) == ("Blurred.", "look left")
        assert [tag.tag for tag in correction.tags] == ["missed flaw"]
        submission = correction.submission
        assert (submission.annotator.name, submission.place, submission.seconds) == ("local", "assess", 3.5)
        assert submission.assessment.item_id == correction.item_id
    assert "Blurred." in card
    assert 'data-mode="read"' in card
    assert "<strong>2.3</strong>" in card

    undone = quality(handlers.undo(assessed, event(correction=correction.id), request()))
    assert standing() == []
    assert 'data-do="agree"' in undone
    assert "<strong>4.0</strong>" in undone
    assert "one two three" in undone


def test_one_click_agrees_with_the_models_own_answer(handlers, assess, standing):
    card = quality(handlers.agree(assess(), event(), request()))
    [correction] = standing()
    assert correction.id == number(card)
    assert correction.agrees
    assert (correction.score, correction.description) == (4.0, "one two three")
    assert "You agree." in card


def test_editing_again_supersedes_and_undo_restores(handlers, assess, standing):
    assessed = assess()
    first = number(quality(handlers.save(assessed, form(), request())))
    card = quality(handlers.save(assessed, form(description="Very blurred.", score=1.2), request()))
    assert [(c.score, c.revision) for c in standing()] == [(1.2, 2)]
    restored = quality(handlers.undo(assessed, event(correction=number(card)), request()))
    assert number(restored) == first
    assert "Blurred." in restored
    assert [c.id for c in standing()] == [first]
    again = quality(handlers.save(assessed, form(score=3.3), request()))
    assert [(c.score, c.revision) for c in standing()] == [(3.3, 3)]
    assert number(again) > first


def test_who_has_corrected_all_aspects_is_not_asked_again_in_the_queue(handlers, assess, standing, studio):
    def offered() -> list[int]:
        return studio.store.database.transact(lambda session: take(session, "local", 1, gold_every=0))

    assessed = assess()
    handlers.agree(assessed, event(aspect="quality"), request())
    [item] = {correction.item_id for correction in standing()}
    handlers.agree(assessed, event(aspect="correspondence"), request())
    handlers.agree(assessed, event(aspect="authenticity"), request())
    assert offered() == []
    handlers.undo(assessed, event(correction=standing()[0].id), request())
    assert offered() == [item]


def test_undo_pressed_twice_undoes_once(handlers, assess, standing):
    assessed = assess()
    first = number(quality(handlers.save(assessed, form(), request())))
    second = number(quality(handlers.save(assessed, form(score=1.2), request())))
    for _ in range(2):
        quality(handlers.undo(assessed, event(correction=second), request()))
    assert [c.id for c in standing()] == [first]


def test_what_is_sent_twice_is_saved_once(handlers, assess, studio):
    assessed = assess()
    sent = form(token="the same")
    first, again = (number(quality(handlers.save(assessed, sent, request()))) for _ in range(2))
    assert first == again
    with studio.store.database.reading() as session:
        assert session.scalar(select(func.count(Submission.id))) == 1
    quality(handlers.undo(assessed, event(correction=first), request()))
    assert assessed.saved(Aspect.QUALITY) is None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"description": " \n"}, "The description of quality is empty"),
        ({"score": 5.1}, "The score of quality is 5.1; give one from 1 to 5."),
        ({"score": float("nan")}, "The score of quality is nan"),
        ({"score": "high"}, "The score of quality must be a number"),
        ({"comment": "x" * 2001}, "comment"),
        ({"tags": ["x" * 61]}, "tag"),
        ({"scale": [0, 100], "score": 50}, "give one from 1 to 5"),
        ({"scale": [0, 100], "score": 0, "agrees": True}, "give one from 1 to 5"),
        ({"token": ""}, "token"),
        ({"token": None}, "token"),
    ],
)
def test_what_cannot_be_saved_is_told_in_the_card_and_the_form_stays(
    handlers, assess, standing, wrong, sentence
):
    card = quality(handlers.save(assess(), form(**wrong), request()))
    problem = re.search(r'<p class="problem"[^>]*>([^<]*)</p>', card)[1]
    assert sentence in problem
    assert 'data-mode="edit"' in card
    assert standing() == []


def test_a_store_that_fails_is_told_in_the_card(handlers, assess, studio, monkeypatch):
    assessed = assess()

    def fail(work):
        raise StoreError("The database is locked by another program; try again.")

    with monkeypatch.context() as patch:
        patch.setattr(studio.store.database, "transact", fail)
        for act, mode in ((handlers.save, "edit"), (handlers.agree, "read")):
            card = quality(act(assessed, form(), request()))
            assert "The database is locked by another program; try again.</p>" in card
            assert f'data-mode="{mode}"' in card
            assert "Saved as" not in card
    assert number(quality(handlers.save(assessed, form(), request())))


def test_a_bug_is_a_sentence_and_loses_nothing(handlers, assess, studio, monkeypatch, caplog):
    assessed = assess()
    monkeypatch.setattr(studio.store.database, "transact", lambda work: 1 / 0)
    card = quality(handlers.save(assessed, form(), request()))
    assert "Something unexpected went wrong, and this was not saved" in card
    assert "ZeroDivisionError" not in card
    assert "ZeroDivisionError" in caplog.text


def test_a_second_tab_is_told_and_may_then_go_before(handlers, assess, standing):
    one, other = assess(), assess()
    quality(handlers.save(one, form(score=2.0), request()))
    card = quality(handlers.save(other, form(score=4.5), request()))
    assert "You have saved another correction of this image&#x27;s quality meanwhile" in card
    assert 'data-mode="edit"' in card
    assert [c.score for c in standing()] == [2.0]
    assert "Saved as" in quality(handlers.save(other, form(score=4.5), request()))
    assert [c.score for c in standing()] == [4.5]


def test_without_keeping_the_first_correction_brings_its_assessment_along(handlers, assess, studio):
    assessed = assess(keep=False)
    quality(handlers.save(assessed, form(), request()))
    cards = handlers.agree(assessed, event(aspect="authenticity"), request())
    assert "Saved as" in cards[2]
    with studio.store.database.reading() as session:
        assert session.scalar(select(func.count(Item.id))) == 1
        assert {len(s.assessment.aspects) for s in session.scalars(select(Submission))} == {3}


def test_a_failed_first_correction_leaves_nothing_half_saved(handlers, assess, studio):
    quality(handlers.save(assess(keep=False), form(description=""), request()))
    with studio.store.database.reading() as session:
        assert session.scalar(select(func.count(Item.id))) == 0


def test_text_is_escaped(handlers, assess):
    assessed = assess()
    card = quality(
        handlers.save(
            assessed, form(description=f"</textarea>{NASTY}", comment=NASTY, tags=['"><b>']), request()
        )
    )
    assert "<img" not in card
    assert "<b>" not in card
    assert card.count("</textarea>") == 2


def test_the_form_begins_with_what_was_said_last(handlers, assess):
    assessed = assess()
    before = handlers.card(Aspect.QUALITY, assessed)
    assert re.search(r"<textarea[^>]*>\none two three</textarea>", before)
    assert 'value="4.0"' in before
    card = quality(handlers.save(assessed, form(tags=["missed flaw", "too dark"]), request()))
    assert re.search(r"<textarea[^>]*>\nBlurred.</textarea>", card)
    assert 'value="2.3"' in card
    assert 'value="missed flaw" checked' in card
    assert 'value="too dark"' in card
    version = re.compile(r'data-version="([^"]+)"')
    assert version.search(before)[1] != version.search(card)[1], "the page must begin the form anew"


def test_viewers_see_no_buttons_but_how_to_get_them(assess):
    access = SignedIn(Role.VIEWER, "vera")
    card = CorrectHandlers(access).card(Aspect.QUALITY, assess(access))
    assert SIGN_IN in card
    assert "data-do" not in card
    assert "<form" not in card


def test_viewers_cannot_save_whatever_they_send(assess, standing):
    assessed = assess(SignedIn(Role.ANNOTATOR, "ann"))
    handlers = CorrectHandlers(SignedIn(Role.VIEWER, "vera"))
    for act, data in (
        (handlers.save, form()),
        (handlers.agree, event()),
        (handlers.undo, event(correction=1)),
    ):
        with pytest.raises(gr.Error, match="vera is signed in as a viewer") as error:
            act(assessed, data, request())
        assert isinstance(error.value.__cause__, Forbidden)
    assert standing() == []


def test_another_person_on_the_same_page_assesses_anew(assess, standing):
    assessed = assess(SignedIn(Role.ANNOTATOR, "ann"))
    card = quality(CorrectHandlers(SignedIn(Role.ANNOTATOR, "ben")).save(assessed, form(), request()))
    assert "signed in as somebody else" in card
    assert standing() == []


@pytest.mark.parametrize("data", [None, "text", {}, {"aspect": "beauty"}, {"aspect": ["quality"]}])
def test_nonsense_from_outside_is_refused_with_a_sentence(handlers, assess, data):
    with pytest.raises(gr.Error, match="There is no aspect"):
        handlers.save(assess(), gr.EventData(None, data), request())


def test_without_an_assessment_there_is_nothing_to_correct(handlers):
    with pytest.raises(gr.Error, match="assess the image again"):
        handlers.agree(None, event(), request())
