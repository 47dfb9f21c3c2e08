"""The images of the Data tab: searching, looking, queuing."""

import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from seeded_cases import add, say
from signed_in import SignedIn
from sqlalchemy import select

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.models import QueueEntry
from annotation.store.queue import enqueue, finish
from annotation.ui.access import Role
from annotation.ui.context import Studio
from annotation.ui.data.images import PAGE_SIZE, ImagesHandlers
from annotation.ui.model_service import ModelLoader
from m3agiqa.aspects import Aspect

REQUEST = SimpleNamespace(query_params={}, username="ann")


@pytest.fixture
def studio(store: Store, loader: ModelLoader, tmp_path: Path) -> Studio:
    return Studio(Settings(data=tmp_path), store, SignedIn(Role.ANNOTATOR, "ann"), loader)


@pytest.fixture
def handlers(studio: Studio) -> ImagesHandlers:
    return ImagesHandlers(studio)


def ids(grid: str) -> list[int]:
    return [int(number) for number in re.findall(r'data-item="(\d+)"', grid)]


@pytest.fixture
def items(store: Store) -> list[int]:
    """Not queued; wanted by two people, of whom one is through; a prompt with wildcards of SQL."""
    made = [add(store, 1, "a <b>cat</b>", "dalle"), add(store, 2, "a dog", "vq"), add(store, 3, "100 %_")]
    store.database.transact(lambda session: enqueue(session, [made[1]], 2))
    score(store, made[1], "kim")
    return made


def score(store: Store, item: int, person: str) -> None:
    say(store, item, {Aspect.QUALITY: 3.0}, person)
    store.database.transact(lambda session: finish(session, item, person))


@pytest.mark.parametrize(
    ("text", "state", "places"),
    [
        ("", "all", [2, 1, 0]),
        ("CAT", "all", [0]),
        ("vq", "all", [1]),
        ("%_", "all", [2]),
        ("an import", "not queued", [2, 0]),
        ("", "open", [1]),
        ("", "done", []),
        ("no such text", "all", []),
    ],
)
def test_images_are_searched(
    handlers: ImagesHandlers, items: list[int], text: str, state: str, places: list[int]
) -> None:
    _, grid, _ = handlers.show(REQUEST, text, state)
    assert ids(grid) == [items[place] for place in places]
    assert "<b>cat" not in grid


def test_an_image_is_done_when_as_many_as_wanted_are_through(
    handlers: ImagesHandlers, items: list[int], store: Store
) -> None:
    assert "scored by 1, 2 wanted" in handlers.show(REQUEST, "", "open")[1]
    score(store, items[1], "lee")
    assert ids(handlers.show(REQUEST, "", "done")[1]) == [items[1]]


def test_pages_lead_through_all_images(handlers: ImagesHandlers, store: Store) -> None:
    made = [add(store, number) for number in range(PAGE_SIZE + 3)]
    _, first, page = handlers.show(REQUEST, "", "all")
    assert ids(first) == made[:2:-1] and f"of {len(made)} images" in first
    older = SimpleNamespace(step="1")
    _, second, page, _ = handlers.choose(REQUEST, older, "", "all", page)
    assert ids(second) == made[2::-1] and page == 1
    assert handlers.show(REQUEST, "", "all", 9)[2] == 0, "there is no such page"


def test_an_image_is_opened_without_anybody_s_answers(handlers: ImagesHandlers, items: list[int]) -> None:
    event = SimpleNamespace(item=str(items[0]))
    message, grid, page, detail = handlers.choose(REQUEST, event, "", "all", 0)
    assert (grid, page) == (gr.skip(), gr.skip()) and "dalle" in detail and "data:image/jpeg" in detail
    message, *_ = handlers.choose(REQUEST, SimpleNamespace(item="99"), "", "all", 0)
    assert "no longer there" in message


def test_ticked_images_or_all_that_match_are_queued(
    handlers: ImagesHandlers, items: list[int], store: Store
) -> None:
    def queue() -> dict[int, int]:
        with store.database.reading() as session:
            return dict(session.execute(select(QueueEntry.item_id, QueueEntry.overlap)).tuples().all())

    handlers.queue(REQUEST, f"{items[2]} 99", "", "all", 1)
    assert queue() == {items[1]: 2, items[2]: 1}
    assert "1 image is" in handlers.queue(REQUEST, "", "dalle", "all", 3)
    assert queue() == {items[0]: 3, items[1]: 2, items[2]: 1}
    assert "nothing to queue" in handlers.queue(REQUEST, "", "no such text", "all", 1)
    assert "tick images anew" in handlers.queue(REQUEST, str(items[2]), "dalle", "all", 5), "not all others"
    assert "whole number" in handlers.queue(REQUEST, "", "", "all", 0)


def test_what_visitors_have_uploaded_is_for_admins_until_it_is_queued(
    studio: Studio, handlers: ImagesHandlers, store: Store
) -> None:
    upload = add(store, 9, "a holiday photo", source="demo")
    admin = ImagesHandlers(Studio(studio.settings, store, SignedIn(Role.ADMIN, "boss"), studio.loader))
    event = SimpleNamespace(item=str(upload))
    assert ids(admin.show(REQUEST, "", "all")[1]) == [upload]
    assert ids(handlers.show(REQUEST, "", "all")[1]) == []
    assert "no longer there" in handlers.choose(REQUEST, event, "", "all", 0)[0]
    assert "nothing to queue" in handlers.queue(REQUEST, str(upload), "", "all", 1)
    admin.queue(REQUEST, "", "", "all", 1)
    assert ids(handlers.show(REQUEST, "", "all")[1]) == [upload]


def test_who_may_not_annotate_sees_no_image(studio: Studio, items: list[int]) -> None:
    visitor = Studio(studio.settings, studio.store, SignedIn(Role.VIEWER, "eve"), studio.loader)
    message, grid, _ = ImagesHandlers(visitor).show(REQUEST, "", "all")
    assert "annotator" in message and grid == ""
