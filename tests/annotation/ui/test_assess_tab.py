import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sqlalchemy import select
from waiting import run_async

from annotation.store.database import StoreError
from annotation.store.models import Assessment, QueueEntry
from annotation.ui import messages
from annotation.ui.assess.correct import AssessedImage
from annotation.ui.assess.examples import EXAMPLE_IMAGES
from annotation.ui.assess.tab import NO_IMAGE, AssessHandlers, ShownImage
from annotation.ui.images import Upload, browser_copy
from m3agiqa.aspects import Aspect
from m3agiqa.assessment import DescriptionDelta
from m3agiqa.errors import Stopped

ANN = SimpleNamespace(session_hash="ann")


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
        return [Shown(*shown) async for shown in handlers.assess(image, prompt, ANN)]

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


@pytest.fixture
def slow_to_stop(assessor, monkeypatch) -> Iterator[threading.Event]:
    """The model heeds Stop once this is set."""
    go = threading.Event()

    def stream(*_: object, **__: object) -> Iterator[DescriptionDelta]:
        yield DescriptionDelta(Aspect.QUALITY, "one")
        assert go.wait(10)
        raise Stopped("Stopped on request.")

    monkeypatch.setattr(assessor, "stream", stream)
    yield go
    go.set()


def test_stop_is_seen_before_the_model_heeds_it(handlers, upload, slow_to_stop):
    async def stop() -> list[str]:
        run = handlers.assess(payload(upload), "teal", ANN)
        while "one" not in Shown(*await anext(run)).cards:
            pass
        await handlers.stop(ANN)
        stopping = Shown(*await anext(run)).status
        slow_to_stop.set()
        return [stopping, [Shown(*state).status async for state in run][-1]]

    stopping, stopped = run_async(stop(), 5)
    assert "Stopping" in stopping and "Stopped" in stopped


def test_another_image_need_not_wait_for_a_model_that_is_slow_to_stop(handlers, box, upload, slow_to_stop):
    """The page takes no press of Assess as long as the run before is followed."""
    box.put(payload(upload))

    async def change() -> Shown:
        run = handlers.assess(payload(upload), "teal", ANN)
        while "one" not in Shown(*await anext(run)).cards:
            pass
        box.put(None)
        return Shown(*[state async for state in run][-1])

    assert is_blank(run_async(change(), 5))


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


# --- another image ------------------------------------------------------------------------------


class Box:
    """The image and prompt boxes of a page, and what the page shows of them."""

    def __init__(self, handlers: AssessHandlers) -> None:
        self.handlers = handlers
        self.shown, self.prompt, self.below, self.page = ShownImage(), "", "", None

    def put(self, image: dict | None, typed_meanwhile: str | None = None) -> None:
        shown, *page = self.handlers.change_image(image, self.prompt, self.shown, ANN)
        self.page = Shown(*page)
        if shown == gr.skip():
            return
        self.prompt = self.prompt if typed_meanwhile is None else typed_meanwhile
        prompt, self.below, self.shown = self.handlers.offer_prompt(self.prompt, shown)
        if prompt != gr.skip():
            self.prompt = prompt


@pytest.fixture
def box(handlers: AssessHandlers) -> Box:
    return Box(handlers)


def is_blank(shown: Shown) -> bool:
    return shown.assessed is None and shown.status == messages.status(None) and "one" not in shown.cards


def test_an_image_that_is_changed_during_a_run_leaves_nothing_of_it(handlers, assessor, box, upload):
    box.put(payload(upload))
    assessor.go.clear()

    async def change() -> Shown:
        run = handlers.assess(payload(upload), "teal", ANN)
        while "one" not in Shown(*await anext(run)).cards:
            pass
        box.put(None)
        *_, last = [state async for state in run]
        return Shown(*last)

    last = run_async(change(), 10)
    assert is_blank(box.page) and is_blank(last)
    assert last.message == gr.skip(), "a sentence about the next image stays"
    assert last.assess["interactive"] and not last.stop["visible"]


def test_another_image_takes_the_judgement_off_the_page(box, upload, with_prompt):
    box.put(payload(upload))
    box.put(payload(upload))
    assert box.page.status == gr.skip(), "the same one changes nothing"
    box.put(with_prompt)
    assert is_blank(box.page)


def test_the_prompt_of_the_file_is_offered_and_goes_with_it(box, with_prompt):
    box.put(with_prompt)
    assert box.prompt == "a red fox" and "Prompt read from the image file: <b>A1111" in box.below
    box.put(None)
    assert (box.prompt, box.below) == ("", "")


@pytest.mark.parametrize("cleared", [False, True])
@pytest.mark.parametrize("has_own", [False, True])
def test_a_prompt_that_was_typed_for_another_image_is_taken_out_and_offered(
    box, upload, with_prompt, cleared, has_own
):
    first, second = (payload(upload), with_prompt) if has_own else (with_prompt, payload(upload))
    box.put(first)
    box.prompt = "my own words"
    if cleared:
        box.put(None)
        assert box.prompt == "my own words", "until there is another image"
    box.put(second)
    assert box.prompt == ("a red fox" if has_own else "")
    assert 'data-use-prompt="my own words"' in box.below


@pytest.mark.parametrize("when", ["before the first image", "without an image", "while the file is read"])
def test_a_prompt_that_was_typed_for_this_image_stays(box, upload, with_prompt, when):
    meanwhile = None
    if when == "without an image":
        box.put(payload(upload))
        box.prompt = "old words"
        box.put(None)
    if when == "while the file is read":
        box.put(payload(upload))
        meanwhile = "my own words"
    else:
        box.prompt = "my own words"
    box.put(with_prompt, meanwhile)
    assert box.prompt == "my own words"
    assert 'data-use-prompt="a red fox"' in box.below, "the file's is offered"


def test_an_unreadable_file_is_told_at_once(box, tmp_path):
    path = tmp_path / "x.png"
    path.write_text("hello")
    box.put({"path": str(path), "orig_name": "x.png"})
    assert "This is not an image" in box.page.message
    box.put(None)
    assert box.page.message == messages.message("")


def test_examples_put_image_and_prompt_in(handlers, box, tmp_path):
    image, box.prompt = handlers.choose_example(SimpleNamespace(index="1"))
    assert (image, box.prompt) == (str(EXAMPLE_IMAGES[1].path), EXAMPLE_IMAGES[1].prompt)
    copy = tmp_path / EXAMPLE_IMAGES[1].image
    copy.write_bytes(EXAMPLE_IMAGES[1].path.read_bytes())
    box.put({"path": str(copy)})
    assert (box.prompt, box.below) == (EXAMPLE_IMAGES[1].prompt, "")
    box.put(None)
    assert box.prompt == "", "it goes with its image"


@pytest.mark.parametrize("nothing", [None, {}, {"path": None, "url": "data:image/png;base64,AAAA"}])
def test_no_payload_is_no_upload(nothing):
    assert Upload.from_payload(nothing) is None


def test_an_uploads_name_never_holds_a_folder(upload):
    assert Upload.from_payload({"path": str(upload.path), "orig_name": "../../b.png"}).name == "b.png"


@pytest.mark.parametrize("name", ["x.tiff", "x.jp2", "x.ppm", "x.jpg", "x.png"])
def test_what_browsers_cannot_show_gets_a_copy_that_they_can(upload, name):
    path = upload.path.with_name(name)
    Image.new("RGB", (64, 48), "red").save(path)
    copy = browser_copy({"path": str(path), "orig_name": name})
    if name in ("x.jpg", "x.png"):
        assert copy is None
        return
    with Image.open(copy) as image:
        assert (image.format, image.size, image.getpixel((5, 5))) == ("PNG", (64, 48), (255, 0, 0))
    assert Upload.from_payload({"path": copy, "orig_name": Path(copy).name}) == Upload(path, name)


def test_what_is_refused_gets_no_copy(upload):
    path = upload.path.with_name("x.tiff")
    path.write_bytes(b"II*\0 and no image")
    assert browser_copy({"path": str(path)}) is browser_copy(None) is None


def test_no_other_file_of_the_server_is_an_upload(handlers, tmp_path):
    other = tmp_path.with_name(f"{tmp_path.name} of the server.png")
    Image.new("RGB", (64, 64), "red").save(other)
    link = tmp_path / "link.png"
    link.symlink_to(other)
    for path in (other, link, tmp_path / ".." / other.name):
        [shown] = press(handlers, {"path": str(path)}, "a fox")
        assert NO_IMAGE in shown.message
