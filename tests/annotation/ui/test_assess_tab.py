import asyncio
from dataclasses import dataclass, replace
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sqlalchemy import select
from waiting import run_async

from annotation.store.database import StoreError
from annotation.store.models import Assessment, QueueEntry
from annotation.ui.assess.correct import AssessedImage
from annotation.ui.assess.examples import EXAMPLE_IMAGES
from annotation.ui.assess.tab import NO_IMAGE, AssessHandlers
from annotation.ui.images import Upload
from m3agiqa.aspects import Aspect
from m3agiqa.image_metadata import EmbeddedPrompt


@dataclass
class Shown:
    """What the page is given, by name."""

    assessed: AssessedImage | None
    quality: str
    correspondence: str
    authenticity: str
    status: str
    message: str
    provenance: str
    banner: str
    assess: dict
    stop: dict

    @property
    def cards(self) -> str:
        return self.quality + self.correspondence + self.authenticity


@pytest.fixture
def handlers(studio) -> AssessHandlers:
    return AssessHandlers(studio)


def payload(upload: Upload) -> dict:
    """What Gradio sends for an uploaded file."""
    return {"path": str(upload.path), "orig_name": upload.name}


def press(handlers: AssessHandlers, image: dict | None, prompt: str | None) -> list[Shown]:
    async def collect() -> list[Shown]:
        request = SimpleNamespace(session_hash="ann")
        return [Shown(*shown) async for shown in handlers.assess(image, prompt, request)]

    return run_async(collect(), 10)


@pytest.fixture
def with_prompt(tmp_path) -> dict:
    info = PngInfo()
    info.add_text("parameters", "a red fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1")
    path = tmp_path / "fox.png"
    Image.new("RGB", (64, 64), "red").save(path, pnginfo=info)
    return {"path": str(path), "orig_name": "fox.png"}


def test_without_an_image_it_says_so(handlers):
    [shown] = press(handlers, None, "a fox")
    assert NO_IMAGE in shown.message
    assert shown.assess["interactive"]
    assert not shown.stop["visible"]


def test_assess_shows_cards_result_and_model(handlers, upload):
    *_, shown = press(handlers, payload(upload), "teal")
    assert shown.cards.count("<p>one two three</p>") == 3
    assert shown.cards.count('role="meter"') == 3
    assert "Done" in shown.status
    assert 'role="alert"></p>' in shown.message
    assert "teal square.m3agiqa.json" in shown.provenance
    assert "scripted 1.0" in shown.banner
    assert shown.assess["interactive"]
    assert not shown.stop["visible"]


def test_an_assessment_is_kept_and_queued(handlers, studio, upload):
    *_, shown = press(handlers, payload(upload), "teal")
    assert "kept on this server" in shown.provenance
    with studio.store.database.reading() as session:
        [kept] = session.scalars(select(Assessment))
        assert kept.item.prompt.text == "teal"
        assert kept.item.image.name == "teal square.png"
        assert kept.model_version.title == "scripted 1.0"
        assert {row.aspect: row.description for row in kept.aspects} == dict.fromkeys(Aspect, "one two three")
        assert session.get(QueueEntry, kept.item_id).overlap == studio.settings.overlap
        stored = studio.store.images.path(kept.item.image.file)
    assert stored.read_bytes() == upload.path.read_bytes()


def test_nothing_is_kept_where_the_settings_say_so(studio, upload):
    handlers = AssessHandlers(replace(studio, settings=replace(studio.settings, keep=False)))
    *_, shown = press(handlers, payload(upload), "teal")
    assert "kept" not in shown.provenance
    assert 'data-do="agree"' in shown.quality
    with studio.store.database.reading() as session:
        assert session.scalars(select(Assessment)).all() == []
    assert not any(studio.store.images.folder.glob("*"))


def test_a_store_that_fails_spoils_nothing_but_is_told(handlers, studio, upload, monkeypatch):
    def fail(work):
        raise StoreError("The disk is full.")

    monkeypatch.setattr(studio.store.database, "transact", fail)
    *_, shown = press(handlers, payload(upload), "teal")
    assert shown.cards.count('role="meter"') == 3
    assert "could not be kept for annotation. The disk is full." in shown.message
    assert "kept" not in shown.provenance


def test_another_image_takes_the_judgement_off_the_page(handlers, upload):
    *_, shown = press(handlers, payload(upload), "teal")
    same = handlers.clear_other(shown.assessed, payload(upload))
    assert all(update == gr.skip() for update in same)
    for other in (None, {"path": "/elsewhere.png"}):
        assessed, *cards, provenance = handlers.clear_other(shown.assessed, other)
        assert assessed is None
        assert not any("one two three" in card for card in cards)
        assert provenance == ""


def test_buttons_swap_while_it_runs(handlers, assessor, upload):
    assessor.go.clear()

    async def first_then_stop() -> list[Shown]:
        request = SimpleNamespace(session_hash="ann")
        shown = handlers.assess(payload(upload), "teal", request)
        states = [await anext(shown)]
        await handlers.stop(request)
        return [Shown(*state) for state in states + [state async for state in shown]]

    first, *_, last = run_async(first_then_stop(), 10)
    assert not first.assess["interactive"]
    assert first.stop["visible"]
    assert "Stopped." in last.quality
    assert last.assessed is None
    assert last.assess["interactive"]
    assert not last.stop["visible"]


def test_closing_the_page_ends_the_run(handlers, assessor, upload):
    assessor.go.clear()

    async def leave() -> None:
        shown = handlers.assess(payload(upload), "teal", SimpleNamespace(session_hash="ann"))
        while len(handlers.runs.line) == 0:
            await anext(shown)
        await shown.aclose()
        while len(handlers.runs.line):
            await asyncio.sleep(0.01)

    run_async(leave(), 5)


def test_the_prompt_of_the_file_is_offered(handlers, with_prompt):
    found, message = handlers.read_upload(with_prompt)
    prompt, origin, filled = handlers.offer_prompt("", found, "")
    assert prompt == filled == "a red fox"
    assert "Prompt read from the image file: <b>A1111" in origin
    assert 'role="alert"></p>' in message


def test_a_typed_prompt_stays(handlers):
    found = EmbeddedPrompt("a red fox", "A1111")
    assert handlers.offer_prompt("my own words", found, "") == (gr.skip(), "", "")
    assert handlers.offer_prompt("a red fox, edited", found, "a red fox") == (gr.skip(), "", "")


def test_the_prompt_of_the_image_before_goes_with_it(handlers):
    assert handlers.offer_prompt("a red fox", None, "a red fox") == ("", "", "")


def test_an_empty_box_that_stays_empty_is_not_updated(handlers):
    assert handlers.offer_prompt("", None, "") == (gr.skip(), "", "")


def test_no_image_and_no_prompt_are_nothing_to_tell(handlers, upload):
    for image in (None, payload(upload)):
        assert handlers.read_upload(image) == (None, '<p role="alert"></p>')


def test_an_unreadable_file_is_told_at_once(handlers, tmp_path):
    path = tmp_path / "x.png"
    path.write_text("hello")
    found, message = handlers.read_upload({"path": str(path), "orig_name": "x.png"})
    assert found is None
    assert "This is not an image" in message


def test_examples_put_image_and_prompt_in(handlers):
    event = SimpleNamespace(index="1")
    image, prompt, origin, filled, _ = handlers.choose_example(event)
    assert image == str(EXAMPLE_IMAGES[1].path)
    assert prompt == filled == EXAMPLE_IMAGES[1].prompt
    assert origin == ""


@pytest.mark.parametrize("nothing", [None, {}, {"path": None, "url": "data:image/png;base64,AAAA"}])
def test_no_payload_is_no_upload(nothing):
    assert Upload.from_payload(nothing) is None


def test_an_uploads_name_never_holds_a_folder(upload):
    assert Upload.from_payload({"path": str(upload.path), "orig_name": "../../b.png"}).name == "b.png"


def test_no_other_file_of_the_server_is_an_upload(handlers, tmp_path):
    other = tmp_path.with_name(f"{tmp_path.name} of the server.png")
    Image.new("RGB", (64, 64), "red").save(other)
    link = tmp_path / "link.png"
    link.symlink_to(other)
    for path in (other, link, tmp_path / ".." / other.name):
        [shown] = press(handlers, {"path": str(path)}, "a fox")
        assert NO_IMAGE in shown.message
