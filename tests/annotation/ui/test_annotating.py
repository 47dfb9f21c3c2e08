"""Annotating without a browser: the queue, the model's answers, blind mode, undo."""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import gradio as gr
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from signed_in import SignedIn
from waiting import wait_until

from annotation.settings import Settings
from annotation.store import Store, queue
from annotation.store.corrections import StaleError, WithdrawnError
from annotation.store.current_responses import current_responses
from annotation.store.items import add_item, latest_assessment, record_assessment
from annotation.store.log import promote
from annotation.ui.access import Access, Person, Role
from annotation.ui.annotate.api import Annotating
from annotation.ui.annotate.prefetch import ITEMS_AHEAD
from annotation.ui.context import Studio
from annotation.ui.model_service import ModelLoader
from annotation.ui.server import build_page
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError, M3AgiqaError, WeightsError

ANN = Person("ann", Role.ANNOTATOR)
BEN = Person("ben", Role.ANNOTATOR)
SECONDS = 10.0  # far more than anything here takes

MakeAnnotating = Callable[..., Annotating]


@pytest.fixture
def make(store: Store, loader: ModelLoader, tmp_path) -> Iterator[MakeAnnotating]:
    made: list[Annotating] = []

    def annotating(loader: ModelLoader = loader, access: Access | None = None, **options) -> Annotating:
        studio = Studio(Settings(data=tmp_path, **options), store, access or Access(), loader)
        made.append(Annotating(studio))
        return made[-1]

    yield annotating
    for one in made:
        one.prefetch.stop()


@pytest.fixture
def annotating(make) -> Annotating:
    return make()


@pytest.fixture
def fill(store, png) -> Callable[..., list[int]]:
    """Puts new images into the queue."""

    def fill(count: int, prompt: str | None = "a fox", overlap: int = 1) -> list[int]:
        def add(session) -> list[int]:
            added = [add_item(session, image, prompt, "import")[0].id for image in images]
            queue.enqueue(session, added, overlap)
            return added

        images = [store.images.add(png(number), f"{number}.png") for number in range(count)]
        return store.database.transact(add)

    return fill


def take(annotating: Annotating, person: Person = ANN, count: int = 2, **options) -> list[dict]:
    given = {"order": "random", "pool": "all", "blind": False, "release": False, **options}
    return annotating.take(person, count, **given)["items"]


def spoken(annotating: Annotating, item: int, person: Person = ANN, blind: bool = False) -> dict:
    """The item's view once the model has an answer or has given up."""
    deadline = time.monotonic() + SECONDS
    while (view := annotating.look(person, item, blind))["model"]["state"] == "coming":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return view


def save(annotating: Annotating, view: dict, said: list[dict], person: Person = ANN, **options) -> dict:
    sent = {
        "token": f"{person.name}-{view['item']}",
        "assessment": view["model"].get("assessment"),
        "seconds": 3.0,
        "blind": False,
        **options,
    }
    return annotating.save(person, view["item"], said, **sent)


def scored(score: float, *aspects: str, **more) -> list[dict]:
    return [{"aspect": aspect, "score": score, **more} for aspect in aspects or ("quality",)]


def said_by(annotating: Annotating, aspect: Aspect = Aspect.QUALITY) -> list[dict]:
    with annotating.studio.store.database.reading() as session:
        return current_responses(session).query("aspect == @aspect").to_dict("records")


def test_a_view_holds_what_it_takes_to_judge(annotating, fill, store):
    [item] = fill(1)
    [view] = take(annotating)
    assert (view["item"], view["prompt"]) == (item, "a fox")
    assert [aspect["aspect"] for aspect in view["aspects"]] == list(Aspect)
    assert view["aspects"][0]["keys"] == [1, 2, 3, 4, 5]
    assert (view["width"], view["height"]) == (64, 48)
    json.dumps(view)
    model = spoken(annotating, item)["model"]
    assert model["aspects"]["quality"]["description"] == "one two three"
    assert model["aspects"]["quality"]["mos"] == 4.0
    assert model["title"] == "scripted 1.0"


def test_without_a_prompt_there_is_no_correspondence(annotating, fill):
    fill(1, prompt=None)
    [view] = take(annotating)
    assert [aspect["aspect"] for aspect in view["aspects"]] == ["quality", "authenticity"]


def test_what_browsers_cannot_show_is_made_into_what_they_can(annotating, store):
    tiff = io.BytesIO()
    Image.new("RGB", (60, 40), "teal").save(tiff, "TIFF")
    image = store.images.add(tiff.getvalue(), "teal.tif")
    item = store.database.transact(lambda session: add_item(session, image, None, "import")[0].id)
    for _ in range(2):
        address = annotating.look(ANN, item, blind=False)["image"]
        assert f"{store.images.folder}/" not in unquote(address), "that is the server's own business"
        shown = Path(unquote(address.partition("=")[2])).resolve()
        assert shown.suffix == ".png"
        assert shown.is_relative_to(store.images.folder.resolve()), "where the app may serve files from"
        with Image.open(shown) as opened:
            assert (opened.format, opened.getpixel((0, 0))) == ("PNG", (0, 128, 128))


def test_what_is_saved_is_there_and_the_next_item_comes(annotating, fill):
    fill(3)
    first, second = take(annotating)
    said = [
        {"aspect": "quality", "score": 2, "description": "Blurred.", "tags": ["my own"], "comment": "Hm."},
        {"aspect": "authenticity", "score": 4.5, "scale": [1, 5]},
    ]
    saved = save(annotating, first, said)
    assert saved["again"] is False
    assert set(saved["corrections"]) == {"quality", "authenticity"}
    [opinion] = said_by(annotating)
    assert (opinion["item_id"], opinion["annotator"], opinion["score"]) == (first["item"], "ann", 2)
    assert (opinion["description"], opinion["tags"], opinion["comment"]) == ("Blurred.", ("my own",), "Hm.")
    assert (opinion["place"], opinion["seconds"], opinion["blind"]) == ("annotate", 3.0, False)
    third, fourth = take(annotating)
    assert third["item"] == second["item"]
    assert fourth["item"] not in (first["item"], second["item"])
    assert annotating.progress(ANN) == {"mine": 1, "left": 2, "done": 1, "total": 3, "skipped": 0}
    assert annotating.take(ANN, 2, pool="demo")["progress"]["left"] == 2, "what is held"


def test_agreement_is_the_models_own_answer_whatever_the_page_says(annotating, fill):
    [item] = fill(1)
    take(annotating)
    view = spoken(annotating, item)
    save(annotating, view, [{"aspect": "quality", "agrees": True, "score": 1, "description": "forged"}])
    [opinion] = said_by(annotating)
    assert (opinion["agrees"], opinion["score"], opinion["description"]) == (True, 4.0, "one two three")


def test_who_agrees_unseen_was_not_blind(annotating, fill):
    fill(1)
    [view] = take(annotating, blind=True)
    view = spoken(annotating, view["item"], blind=True)
    save(annotating, view, [{"aspect": "quality", "agrees": True}], blind=True)
    [opinion] = said_by(annotating)
    assert (opinion["agrees"], opinion["blind"]) == (True, False)


def test_nobody_can_agree_with_what_was_not_said(annotating, fill):
    fill(1)
    [view] = take(annotating)
    with pytest.raises(InputError, match="said nothing on quality"):
        save(annotating, {**view, "model": {}}, [{"aspect": "quality", "agrees": True}])
    assert said_by(annotating) == []


def test_the_same_token_saves_once(annotating, fill):
    fill(2)
    view, _ = take(annotating)
    first = save(annotating, view, scored(4))
    again = save(annotating, view, scored(4))
    assert again == {**first, "again": True}
    assert len(said_by(annotating)) == 1


def test_two_tabs_of_one_person_cannot_overwrite_each_other(annotating, fill):
    fill(1)
    [view] = take(annotating)
    save(annotating, view, scored(4), token="tab 1")
    with pytest.raises(StaleError):
        save(annotating, view, scored(2), token="tab 2")
    [opinion] = said_by(annotating)
    assert opinion["score"] == 4


def test_undo_brings_item_and_older_opinion_back(annotating, fill):
    fill(1)
    [view] = take(annotating)
    saved = save(annotating, view, scored(4))
    back = annotating.undo(ANN, view["item"], saved["submission"], blind=False)
    assert said_by(annotating) == []
    assert back["item"] == view["item"]
    assert back["aspects"][0]["revision"] == 2
    assert [held["item"] for held in take(annotating)] == [view["item"]]
    save(annotating, back, scored(3, revision=2), token="another")
    [opinion] = said_by(annotating)
    assert opinion["score"] == 3


@pytest.mark.parametrize(
    ("person", "image", "sentence"), [(BEN, 0, "somebody else's"), (ANN, 1, "is of another image")]
)
def test_an_undo_is_of_ones_own_and_of_one_image(annotating, fill, person, image, sentence):
    fill(2)
    views = take(annotating)
    saved = save(annotating, views[0], scored(4))
    with pytest.raises(InputError, match=sentence):
        annotating.undo(person, views[image]["item"], saved["submission"], blind=False)
    assert len(said_by(annotating)) == 1


def test_what_is_skipped_goes_to_others_and_comes_back_by_undo(annotating, fill):
    [item] = fill(1)
    take(annotating)
    annotating.skip(ANN, item)
    assert take(annotating) == []
    assert annotating.progress(ANN)["skipped"] == 1
    annotating.undo(ANN, item, None, blind=False)
    assert [view["item"] for view in take(annotating)] == [item]
    annotating.skip(ANN, item)
    assert [view["item"] for view in take(annotating, BEN)] == [item]


def test_only_a_skip_is_taken_back_without_a_submission(annotating, fill):
    fill(2)
    view, other = take(annotating)
    saved = save(annotating, view, scored(4))
    with pytest.raises(InputError, match="saved this image, not skipped it"):
        annotating.undo(ANN, view["item"], None, blind=False)
    assert annotating.progress(ANN)["done"] == 1
    assert [held["item"] for held in take(annotating)] == [other["item"]]
    annotating.undo(ANN, view["item"], saved["submission"], blind=False)
    assert annotating.progress(ANN)["done"] == 0


def test_an_item_stays_done_while_an_older_opinion_stands(annotating, fill):
    fill(1)
    [view] = take(annotating)
    save(annotating, view, scored(4))
    second = save(annotating, view, scored(2, revision=2), token="second thoughts")
    back = annotating.undo(ANN, view["item"], second["submission"], blind=False)
    assert said_by(annotating)[0]["score"] == 4
    assert annotating.progress(ANN)["done"] == 1
    assert take(annotating) == []
    save(annotating, back, scored(3, revision=3), token="third thoughts")
    assert said_by(annotating)[0]["score"] == 3


def test_taking_back_is_no_way_to_pick_an_item_or_to_hold_many(annotating, fill):
    items = fill(queue.MAX_LEASES + 1)
    annotating.undo(ANN, items[0], None, blind=False)
    assert annotating.progress(ANN)["skipped"] == 0
    assert len(take(annotating, BEN, count=10)) == 10
    annotating.studio.store.database.transact(lambda session: queue.release(session, "ben"))
    for item in items:
        annotating.skip(ANN, item)
    for item in items[:-1]:
        annotating.undo(ANN, item, None, blind=False)
    with pytest.raises(InputError, match="10 images in your hands"):
        annotating.undo(ANN, items[-1], None, blind=False)


def test_what_was_taken_back_is_not_said_to_be_saved_when_it_is_sent_again(annotating, fill):
    fill(1)
    [view] = take(annotating)
    saved = save(annotating, view, scored(4))
    annotating.undo(ANN, view["item"], saved["submission"], blind=False)
    with pytest.raises(WithdrawnError, match="save it again"):
        save(annotating, view, scored(4))
    assert said_by(annotating) == []
    assert [held["item"] for held in take(annotating)] == [view["item"]]


def test_release_gives_up_what_is_held(annotating, fill):
    fill(2)
    take(annotating)
    assert take(annotating, BEN) == []
    take(annotating, pool="demo", release=True)
    assert len(take(annotating, BEN)) == 2


# --- blind mode --------------------------------------------------------------------------------


def test_blind_views_hold_nothing_of_the_answer_until_it_is_scored(annotating, fill):
    [item] = fill(1)
    [view] = take(annotating, blind=True)
    assert "one two three" not in json.dumps(view)
    view = spoken(annotating, item, blind=True)
    assert view["model"]["aspects"] == {}
    assert "one two three" not in json.dumps(view)
    view = annotating.reveal(ANN, item, "quality", 2)
    assert set(view["model"]["aspects"]) == {"quality"}
    [view] = take(annotating, blind=True)
    assert set(view["model"]["aspects"]) == {"quality"}, "still shown when the page is opened again"
    assert annotating.look(BEN, item, blind=True)["model"]["aspects"] == {}, "but to nobody else"


def test_who_has_had_the_image_assessed_is_not_blind(annotating, assessor, fill, store):
    [item] = fill(1, overlap=2)
    *_, assessment = assessor.stream("fox.png", "a fox")
    store.database.transact(
        lambda session: record_assessment(session, item, assessment, assessor.card, annotator="ben")
    )
    for person in (ANN, BEN):
        [view] = take(annotating, person, blind=True)
        save(annotating, view, scored(2), person, blind=True)
    assert {opinion["annotator"]: opinion["blind"] for opinion in said_by(annotating)} == {
        "ann": True,
        "ben": False,
    }


@pytest.mark.parametrize(("second", "blind"), [(2, True), (3, False)])
def test_a_score_changed_after_seeing_the_answer_is_not_blind(annotating, fill, second, blind):
    [item] = fill(1)
    take(annotating, blind=True)
    spoken(annotating, item, blind=True)
    view = annotating.reveal(ANN, item, "quality", 2)
    save(annotating, view, scored(second), blind=True)
    assert said_by(annotating)[0]["blind"] is blind


def test_a_score_changed_before_there_is_an_answer_is_blind(annotating, assessor, fill):
    assessor.go.clear()
    [item] = fill(1)
    take(annotating, blind=True)
    assert annotating.reveal(ANN, item, "quality", 2)["model"]["state"] == "coming"
    assessor.go.set()
    assert spoken(annotating, item, blind=True)["model"]["aspects"] == {}
    view = annotating.reveal(ANN, item, "quality", 3)
    assert set(view["model"]["aspects"]) == {"quality"}
    save(annotating, view, scored(3), blind=True)
    assert said_by(annotating)[0]["blind"] is True


def test_who_has_seen_the_answer_already_is_not_blind(annotating, fill):
    [item] = fill(1)
    take(annotating)
    spoken(annotating, item)
    view = annotating.look(ANN, item, blind=True)
    assert view["model"]["aspects"], "what was seen stays visible"
    save(annotating, view, scored(2), blind=True)
    assert said_by(annotating)[0]["blind"] is False


@pytest.mark.parametrize(
    ("first_blind", "second", "blind"), [(False, 2, False), (True, 2, True), (True, 3, False)]
)
def test_what_was_saved_tells_who_knows_the_answer_even_after_a_restart(
    make, fill, first_blind, second, blind
):
    annotating = make()
    [item] = fill(1)
    take(annotating, blind=True)
    view = spoken(annotating, item, blind=True)
    saved = save(annotating, view, scored(2), blind=first_blind)
    annotating.undo(ANN, item, saved["submission"], blind=True)
    restarted = make()
    save(restarted, view, scored(second, revision=2), token="after the restart", blind=True)
    assert said_by(restarted)[0]["blind"] is blind


def test_who_had_scored_before_the_model_spoke_knows_nothing(make, fill, assessor):
    assessor.go.clear()
    annotating = make()
    [item] = fill(1)
    [view] = take(annotating)
    saved = save(annotating, view, scored(2))
    annotating.undo(ANN, item, saved["submission"], blind=True)
    assessor.go.set()
    view = spoken(annotating, item, blind=True)
    save(make(), view, scored(3, revision=2), token="after the restart", blind=True)
    assert said_by(annotating)[0]["blind"] is True


def test_the_item_after_this_one_does_not_count_as_seen(annotating, fill):
    items = fill(2)
    take(annotating)
    for item in items:
        spoken(annotating, item, BEN)
    take(annotating)
    shown, following = take(annotating, blind=True)
    assert shown["model"]["aspects"]
    assert following["model"]["aspects"] == {}


def test_a_server_can_have_everybody_score_blind(make, fill):
    annotating = make(blind=True)
    [item] = fill(1)
    assert annotating.take(ANN, 2, "random", "all", False, False)["blind_always"]
    view = spoken(annotating, item, blind=False)
    assert view["model"]["aspects"] == {}
    save(annotating, view, scored(2), blind=False)
    assert said_by(annotating)[0]["blind"] is True


# --- the model ---------------------------------------------------------------------------------


def test_people_need_not_wait_for_the_model(annotating, assessor, fill):
    assessor.go.clear()
    fill(1)
    [view] = take(annotating)
    assert view["model"]["state"] == "coming"
    save(annotating, view, scored(4))
    assert said_by(annotating)[0]["assessment_id"] is None
    assessor.go.set()


def test_what_comes_next_in_the_queue_is_assessed_before_anybody_takes_it(annotating, assessor, fill):
    items = fill(4)
    [view] = take(annotating, count=1)
    wait_until(lambda: len(assessor.prompts) >= len(items))
    spoken(annotating, view["item"])


def test_a_new_model_says_its_own_of_what_an_older_one_has_assessed(make, assessor, fill, store):
    older = make()
    [item] = fill(1)
    take(older)
    spoken(older, item)
    newer = replace(assessor.card, version="2.0", digest="2" * 64)
    assessor.card = newer
    make().prefetch.want("ann", [item])

    def title() -> str:
        with store.database.reading() as session:
            return latest_assessment(session, item).model_version.title

    wait_until(lambda: title() == newer.title)


def test_for_an_order_by_assessments_more_of_the_queue_is_assessed(annotating, assessor, fill):
    fill(2 * ITEMS_AHEAD + 2)
    take(annotating, count=1)
    wait_until(lambda: len(assessor.prompts) == 1 + ITEMS_AHEAD)
    take(annotating, count=1, order="most informative first")
    wait_until(lambda: len(assessor.prompts) == 2 * ITEMS_AHEAD + 2)


def test_after_a_promotion_it_assesses_what_people_have_scored(make, assessor, fill, store):
    older = make()
    items = fill(3)
    for item in items[:2]:
        save(older, {"item": item, "model": {}}, scored(4.0))
    assessor.card = replace(assessor.card, version="2.0", digest="2" * 64)
    store.database.transact(lambda session: promote(session, "scripted-2.0", "ann"))
    newer = make()
    newer.prefetch.resume()  # as when the server starts again before it was done

    def assessed() -> list[int]:
        with store.database.reading() as session:
            latest = {item: latest_assessment(session, item) for item in items}
        return [item for item, said in latest.items() if said is not None]

    wait_until(lambda: assessed() == items[:2])
    newer.prefetch.stop()
    assert len(assessor.prompts) == 2, "not what is only queued, and nothing twice"


def test_visitors_go_before_the_queue(annotating, assessor, fill):
    assessor.go.clear()
    [item] = fill(1)
    take(annotating)
    line = annotating.studio.line
    wait_until(lambda: assessor.prompts)
    deadline = time.monotonic() + SECONDS
    with line.turn(lambda: time.monotonic() > deadline, lambda place: None):
        pass  # the visitor's turn comes although the model was still speaking of the queue's item
    assessor.go.set()
    assert spoken(annotating, item)["model"]["state"] == "ready"


@pytest.fixture
def patient(assessor, store, monkeypatch) -> list[int]:
    """The images' numbers that the model has taken up; it waits before each word until it may go on."""
    taken_up, stream = [], assessor.stream

    def noted(image, *args, **kwargs):
        with Image.open(image) as opened:
            taken_up.append(opened.getpixel((0, 0))[0])
        return stream(image, *args, **kwargs)

    monkeypatch.setattr(assessor, "stream", noted)
    assessor.go.clear()
    return taken_up


def test_the_model_gives_up_what_is_saved_and_helps_people_quicker_than_itself(make, assessor, fill, patient):
    annotating = make()
    numbers = {item: number for number, item in enumerate(fill(6))}
    first, second = take(annotating)
    wait_until(lambda: patient == [numbers[first["item"]]])
    save(annotating, first, scored(4))
    following, third = take(annotating)
    assert following["item"] == second["item"]
    wait_until(lambda: patient[-1] == numbers[third["item"]])  # in time for when it is on the screen
    save(annotating, second, scored(4))
    take(annotating)
    assessor.go.set()
    assert spoken(annotating, third["item"])["model"]["state"] == "ready"
    with annotating.studio.store.database.reading() as session:
        assert latest_assessment(session, first["item"]) is None, "not in vain"
        assert latest_assessment(session, second["item"]) is None


def test_what_is_on_a_screen_goes_before_what_others_hold_for_later(make, assessor, fill, patient):
    annotating = make()
    numbers = {item: number for number, item in enumerate(fill(6))}
    shown, later = take(annotating)
    wait_until(lambda: patient == [numbers[shown["item"]]])
    [of_ben] = take(annotating, BEN, count=1)
    assert patient == [numbers[shown["item"]]], "a screen's item is not put off for another screen's"
    assessor.go.set()
    assert spoken(annotating, of_ben["item"], BEN)["model"]["state"] == "ready"
    assert spoken(annotating, later["item"])["model"]["state"] == "ready"
    assert patient[:3] == [numbers[view["item"]] for view in (shown, of_ben, later)]


def test_a_model_that_cannot_be_loaded_is_told_and_does_not_stop_the_work(make, fill):
    def load(name, progress):
        raise WeightsError("The weights are away.")

    annotating = make(loader=ModelLoader("broken", load=load))
    [item] = fill(1)
    take(annotating)
    view = spoken(annotating, item)
    assert view["model"] == {"state": "failed", "message": "The weights are away.", "aspects": {}}
    save(annotating, view, scored(4))
    assert len(said_by(annotating)) == 1


def test_the_model_works_in_the_name_of_whoever_asked_last(make, assessor, fill, monkeypatch):
    asking = ContextVar("asking", default="nobody")
    worked_for, spoken_of = [], assessor.stream

    def stream(*args, **kwargs):
        worked_for.append(asking.get())
        return spoken_of(*args, **kwargs)

    def ask(name: str, person: Person) -> None:
        asking.set(name)
        [view] = take(annotating, person, count=1)
        spoken(annotating, view["item"], person)

    monkeypatch.setattr(assessor, "stream", stream)
    annotating = make()
    for name, person in (("ann", ANN), ("ben", BEN)):
        fill(1) if name == "ann" else fill(2)
        copy_context().run(ask, name, person)
    assert worked_for == ["ann", "ben"]


def test_a_model_that_fails_on_one_image_goes_on_with_the_next(make, assessor, fill, monkeypatch):
    spoken_of = assessor.stream
    calls = []

    def stream(image, *args, **kwargs):
        calls.append(image)
        if len(calls) == 1:
            raise ZeroDivisionError
        return spoken_of(image, *args, **kwargs)

    monkeypatch.setattr(assessor, "stream", stream)
    annotating = make()
    fill(2)
    views = take(annotating)
    states = [spoken(annotating, view["item"])["model"]["state"] for view in views]
    assert states == ["failed", "ready"]


def test_the_worker_ends_in_the_middle_of_a_word(annotating, assessor, fill):
    assessor.go.clear()
    fill(1)
    take(annotating)
    wait_until(lambda: assessor.prompts)
    began = time.monotonic()
    annotating.prefetch.stop()
    assert time.monotonic() - began < 3
    assert len(annotating.studio.line) == 0


# --- what is sent ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SAID = st.fixed_dictionaries(
    {"aspect": JSON | st.sampled_from(list(Aspect))},
    optional=dict.fromkeys(("score", "scale", "description", "agrees", "tags", "comment", "revision"), JSON),
)


@given(
    item=JSON | st.integers(0, 2),
    said=JSON | st.lists(SAID, max_size=2),
    rest=st.lists(JSON, min_size=4, max_size=4),
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_is_refused_with_a_sentence(annotating, item, said, rest):
    token, assessment, seconds, blind = rest
    with pytest.raises(M3AgiqaError) as refusal:
        annotating.save(ANN, item, said, token, assessment, seconds, blind)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ([], "Nothing has been scored"),
        (scored(6), "give one from 1 to 5"),
        (scored(float("nan")), "give one from 1 to 5"),
        (scored("4"), "must be a number"),
        (scored(10**400), "score of quality is too large a number"),
        (scored(4, description=" "), "description of quality is empty"),
        (scored(4, "beauty"), "There is no aspect 'beauty'"),
        (scored(4, scale=[5, 1]), "low end below its high one"),
        (scored(4, tags="blurred"), "must be a list"),
        (scored(4, "quality", "quality"), "given twice"),
    ],
)
def test_nothing_wrong_is_saved(annotating, fill, said, sentence):
    fill(1)
    [view] = take(annotating)
    with pytest.raises(InputError, match=sentence):
        save(annotating, view, said)
    assert said_by(annotating) == []
    assert [held["item"] for held in take(annotating)] == [view["item"]]


def test_unknown_choices_are_told(annotating):
    with pytest.raises(InputError, match="random, uncertain first, most informative first, least annotated"):
        take(annotating, order="alphabetical")
    with pytest.raises(InputError, match="There is no pool 7"):
        take(annotating, pool=7)


# --- the endpoints -----------------------------------------------------------------------------


CALLS = {
    "take": (),
    "look": (1,),
    "reveal": (1, "quality", 3),
    "save": (1, scored(3), "token"),
    "skip": (1,),
    "undo": (1,),
    "progress": (),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_endpoint_works_for_viewers(make, fill, name):
    fill(1)
    annotating = make(access=SignedIn(Role.VIEWER, ""))
    with pytest.raises(gr.Error, match="Sign in as an annotator"):
        annotating.endpoint(getattr(annotating, name))(SimpleNamespace(username=None), *CALLS[name])
    assert said_by(annotating) == []


def test_endpoints_answer_for_whoever_is_signed_in(annotating, fill):
    [item] = fill(1)
    request = SimpleNamespace(username=None)
    assert [view["item"] for view in annotating.endpoint(annotating.take)(request)["items"]] == [item]
    annotating.endpoint(annotating.save)(request, item, scored(3), "token")
    assert said_by(annotating)[0]["annotator"] == "local"
    assert annotating.endpoint(annotating.progress)(request)["mine"] == 1


def test_endpoints_are_published_under_their_names(annotating):
    published = build_page(annotating.studio).get_api_info(all_endpoints=True)["named_endpoints"]
    assert set(published) >= {f"/{name}" for name in CALLS}
    arguments = [argument["parameter_name"] for argument in published["/save"]["parameters"]]
    assert arguments == ["item", "said", "token", "assessment", "seconds", "blind"]
    assert all(len(published[f"/{name}"]["returns"]) == 1 for name in CALLS)
