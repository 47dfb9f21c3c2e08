"""The Annotate tab as annotators meet it, with a quick model that follows a script."""

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pandas as pd
import pytest
from app_server import Server, serve_team
from playwright.sync_api import Page, Response, expect
from seeded_cases import picture
from sqlalchemy import delete

from annotation.store import Store, queue
from annotation.store.current_responses import current_responses
from annotation.store.items import add_item
from annotation.store.models import Assignment, QueueEntry
from annotation.users import Role

MODEL_SAYS = "What a script says of the quality of this image."

SignIn = Callable[..., Page]


@pytest.fixture(scope="module")
def team_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app for a team: ann and ben annotate, vera looks."""
    roles = {"ann": Role.ANNOTATOR, "ben": Role.ANNOTATOR, "vera": Role.VIEWER}
    with serve_team(tmp_path_factory.mktemp("team"), **roles) as running:
        yield running


@pytest.fixture
def team(team_server: Server) -> Server:
    """The same, with nothing in its queue."""
    with opened(team_server) as store:
        for table in (Assignment, QueueEntry):
            store.database.transact(lambda session, table=table: session.execute(delete(table)))
    return team_server


@pytest.fixture
def sign_in(new_page: Callable[..., Page], team: Server) -> SignIn:
    """Opens the Annotate tab for one of the team, in a browser of their own."""

    def open_tab(name: str = "ann", **options: object) -> Page:
        page = new_page(url=team.url, login=name, tab="Annotate", **options)
        expect(page.locator(".annotate")).to_be_visible()
        return page

    return open_tab


@contextmanager
def opened(server: Server) -> Iterator[Store]:
    """The running server's own database and images."""
    store = Store.open(f"sqlite:///{server.data / 'annotations.db'}", server.data / "images")
    try:
        yield store
    finally:
        store.close()


_numbers = count(1)


def png(size: tuple[int, int] = (320, 240)) -> bytes:
    """An image that no test has had before."""
    number = next(_numbers)
    return picture((number % 256, number * 97 % 256, 120), size)


def fill(
    server: Server, count: int, prompt: str | None = "a plain colour", size: tuple[int, int] = (320, 240)
) -> list[int]:
    """Put new images into the queue; their items."""
    with opened(server) as store:
        images = [store.images.add(png(size), "colour.png") for _ in range(count)]

        def add(session) -> list[int]:
            items = [add_item(session, image, prompt, "test")[0].id for image in images]
            queue.enqueue(session, items, overlap=1)
            return items

        return store.database.transact(add)


def said(server: Server, items: list[int]) -> pd.DataFrame:
    """What people say of these items."""
    with opened(server) as store, store.database.reading() as session:
        everything = current_responses(session)
    return everything[everything.item_id.isin(items)]


def shown(page: Page, other_than: int | None = None) -> int:
    """The item on show, once there is one (other than the one before)."""
    number = "" if other_than is None else f':not([data-item="{other_than}"])'
    tab = page.locator(f'.annotate[data-item]:not([data-item=""]){number}')
    expect(tab).to_be_visible()
    return int(tab.get_attribute("data-item"))


def spoken(page: Page) -> None:
    """Until the model's answer is there."""
    expect(page.locator(".annotate .model-score .rating").first).to_be_visible()


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def text_of(page: Page, aspect: str) -> str:
    return page.locator(f'[data-aspect="{aspect}"] [name=description]').input_value()


def test_the_whole_image_is_in_sight_and_zooms(sign_in: SignIn, team: Server):
    sizes = {fill(team, 1, size=size)[0]: size for size in ((300, 900), (1200, 200), (512, 512))}
    page = sign_in(viewport={"width": 1366, "height": 768})
    item = None
    for _ in range(3):
        item = shown(page, other_than=item)
        size = sizes.pop(item)
        place, image = page.locator(".annotate .picture"), page.locator(".annotate .picture img")
        image.evaluate("image => image.decode()")
        room, taken = place.bounding_box(), image.bounding_box()
        assert taken["width"] <= room["width"] + 1 and taken["height"] <= room["height"] + 1
        assert image.evaluate("image => getComputedStyle(image).objectFit") == "contain"
        press(page, "z")
        expect(page.locator(".annotate.zoomed")).to_be_visible()
        zoomed = image.bounding_box()
        fitting = min(room["width"] / size[0], room["height"] / size[1])
        assert zoomed["width"] >= 1.99 * fitting * size[0] and zoomed["width"] >= size[0] - 1
        press(page, "z")
        expect(page.locator(".annotate.zoomed")).to_have_count(0)
        press(page, "s")


def test_ten_images_by_keyboard_only(sign_in: SignIn, team: Server):
    items = fill(team, 10)
    page = sign_in()
    before = None
    order = []
    for turn in range(10):
        order.append(before := shown(page, other_than=before))
        spoken(page)
        press(page, str(turn % 5 + 1), "ArrowRight" if turn % 5 < 4 else "ArrowLeft")
        press(page, "ArrowDown", "a", "ArrowDown", "3", "e")
        page.keyboard.type(" My own words: 1 2 3 s u a.")
        press(page, "Control+Enter" if turn % 2 else "Escape")
        if turn % 2 == 0:
            press(page, "Enter")
    expect(page.locator(".annotate .empty")).to_contain_text("Nothing is waiting for you")
    expect(page.locator(".progress")).to_contain_text("10 of 10 annotations in all")
    assert sorted(order) == items

    opinions = said(team, items)
    assert len(opinions) == 30
    assert set(opinions.annotator) == {"ann"}
    for turn, item in enumerate(order):
        of = opinions[opinions.item_id == item].set_index("aspect")
        assert of.score["quality"] == pytest.approx(turn % 5 + (1.1 if turn % 5 < 4 else 0.9))
        assert of.description["quality"] == MODEL_SAYS
        assert of.agrees.to_dict() == {"quality": False, "correspondence": True, "authenticity": False}
        assert of.score["authenticity"] == 3
        assert of.description["authenticity"].endswith("My own words: 1 2 3 s u a.")
        assert 0 < of.seconds["quality"] < 60


def test_keys_count_by_their_place_where_a_layout_has_other_letters(sign_in: SignIn, team: Server):
    """On French, numeric, Arabic and Russian keyboards."""
    fill(team, 2)
    page = sign_in()
    first = shown(page)
    tab, score = page.locator(".annotate"), page.locator('[data-aspect="quality"] output')
    for code, key in (("Digit4", "'"), ("Digit4", "4"), ("Numpad4", "4"), ("Digit4", "٤")):
        press(page, "1")
        expect(score).to_have_text("1.0")
        tab.dispatch_event("keydown", {"code": code, "key": key, "bubbles": True})
        expect(score).to_have_text("4.0")
    tab.dispatch_event("keydown", {"code": "KeyS", "key": "ы", "bubbles": True})
    shown(page, other_than=first)


def test_the_slider_stands_nowhere_until_it_is_moved_and_the_guideline_is_a_key_away(
    sign_in: SignIn, team: Server
):
    fill(team, 2)
    page = sign_in(viewport={"width": 1366, "height": 768})
    shown(page)
    expect(page.locator(".progress")).to_contain_text("2 images left for you")
    card = page.locator('[data-aspect="quality"]')
    slider, output = card.get_by_role("slider"), card.locator("output")
    before = slider.screenshot()
    slider.press("ArrowRight")
    expect(output).to_have_text("–")
    room = slider.bounding_box()
    page.mouse.click(room["x"] + 1, room["y"] + room["height"] / 2)  # where it stands out of sight
    expect(output).to_have_text("1.0")
    assert slider.screenshot() != before, "its thumb is shown now"

    guideline = page.get_by_role("region", name="Guideline")
    expect(guideline).to_be_hidden()
    press(page, "g")
    expect(guideline.get_by_role("heading", name="Quality")).to_be_visible()
    expect(guideline.locator("section:visible li img")).to_have_count(5)
    press(page, "2", "ArrowDown", "3")  # one scores beside it
    expect(output).to_have_text("2.0")
    expect(guideline.locator("section:visible li q")).to_have_count(5)
    expect(page.locator('[data-aspect="correspondence"] output')).to_have_text("3.0")
    for closing in ("g", "Escape"):
        press(page, closing)
        expect(guideline).to_be_hidden()
        press(page, "g")
        expect(guideline).to_be_visible()


def test_tags_comment_slider_and_buttons_by_mouse(sign_in: SignIn, team: Server):
    items = fill(team, 1, prompt=None)
    page = sign_in()
    shown(page)
    spoken(page)
    assert page.locator(".aspect").count() == 2, "no correspondence without a prompt"
    card = page.locator('[data-aspect="authenticity"]')
    card.locator("h3").click()
    card.get_by_role("slider").fill("2.4")
    card.get_by_label("wrong anatomy").check()
    card.get_by_label("score too high").check()
    card.get_by_label("score too high").uncheck()
    expect(page.locator(".annotate .keys .typing").first).to_be_hidden()
    for field in ("others", "comment"):  # what the keys do there is told
        card.locator(f"[name={field}]").focus()
        expect(page.locator(".annotate .keys .typing").first).to_be_visible()
    card.locator("[name=comment]").fill("Six fingers <b>again</b>.")
    page.get_by_role("button", name="Save and go on").click()
    expect(page.locator(".annotate [role=alert]")).to_contain_text("There is no score for quality yet")
    assert said(team, items).empty
    page.get_by_role("button", name="Save and go on").click()
    expect(page.locator(".annotate .report")).to_contain_text("Saved")
    [opinion] = said(team, items).to_dict("records")
    assert (opinion["aspect"], opinion["score"], opinion["tags"]) == ("authenticity", 2.4, ("wrong anatomy",))
    assert opinion["comment"] == "Six fingers <b>again</b>."


def test_blind_mode_really_hides(sign_in: SignIn, team: Server):
    page = sign_in()
    expect(page.locator(".annotate .empty")).to_be_visible()
    with page.expect_response(lambda answer: "/run/take" in answer.url):  # the queue is still empty
        page.get_by_label("Blind").check()
    answers: list[Response] = []
    page.on("response", lambda response: answers.append(response))
    items = fill(team, 2)
    page.get_by_role("button", name="Look again").click()
    first = shown(page)
    with page.expect_response(lambda answer: '"state":"ready"' in answer.text(), timeout=20_000):
        pass  # the model has spoken, and the page has been told
    page.wait_for_timeout(300)

    def sent() -> list[str]:
        return [answer.text() for answer in answers if "/run/" in answer.url]

    assert sent(), "the page asks the server"
    for secret in ("What a script says", '"rating"', '"mos"'):
        assert not any(secret in text for text in sent()), secret
    assert "What a script says" not in page.content()
    assert page.locator(".annotate .rating").count() == 0
    assert text_of(page, "quality") == ""
    press(page, "a")
    expect(page.locator(".annotate [role=alert]")).to_contain_text("give your own score first")

    press(page, "2")
    expect(page.locator('[data-aspect="quality"] .rating')).to_be_visible()
    assert text_of(page, "quality") == MODEL_SAYS
    assert text_of(page, "authenticity") == text_of(page, "correspondence") == ""
    assert page.locator(".annotate .rating").count() == 1
    assert not any("says of the authenticity" in text for text in sent())
    page.reload()
    page.get_by_role("tab", name="Annotate").click()
    assert shown(page) == first
    expect(page.locator('[data-aspect="quality"] output')).to_have_text("2.0")
    assert text_of(page, "authenticity") == ""
    press(page, "ArrowDown", "3", "ArrowDown", "4", "Enter")
    second = shown(page, other_than=first)
    press(page, "2")
    expect(page.locator('[data-aspect="quality"] .rating')).to_be_visible()
    press(page, "5", "Enter", "Enter")  # changed after the answer was seen; the rest is left out
    expect(page.locator(".annotate .empty")).to_be_visible()
    expect(page.locator(".progress")).to_contain_text("2 of 2 annotations in all")
    blind = said(team, items).groupby("item_id").blind.agg(set)
    assert blind.to_dict() == {first: {True}, second: {False}}


def test_a_zip_is_imported_through_the_page_and_what_cannot_be_is_told(sign_in: SignIn, tmp_path: Path):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK no archive")
    archive = tmp_path / "two colours.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a.png", png())
        content.writestr("a.txt", "a colour of its own")
        content.writestr("b.png", png())
        content.writestr("notes.doc", b"no image")
    page = sign_in()
    expect(page.locator(".annotate .empty")).to_contain_text("The queue is empty")
    page.get_by_text("Add images to the queue").click()
    page.click("#import-start")
    expect(page.locator("#import-result")).to_contain_text("Choose images")
    page.set_input_files("#import-files input[type=file]", broken)
    expect(page.locator("#import-files")).to_contain_text("broken")
    page.click("#import-start")
    expect(page.locator("#import-result [role=alert]")).to_contain_text("ZIP")
    page.locator("#import-files").get_by_role("button", name="Clear").click()
    page.set_input_files("#import-files input[type=file]", archive)
    expect(page.locator("#import-files")).to_contain_text("two colours")
    page.click("#import-start")
    expect(page.locator("#import-result")).to_contain_text("2 images added")
    shown(page)
    page.keyboard.press("4")  # the button that was pressed last takes no keys away
    expect(page.locator(".annotate output").first).to_have_text("4.0")
    expect(page.locator(".progress")).to_contain_text("0 of 2 annotations in all")
    page.click("#import-start")
    expect(page.locator("#import-result")).to_contain_text("0 images added, 2 known already")


def test_skip_and_undo(sign_in: SignIn, team: Server):
    items = fill(team, 3)
    page = sign_in()
    first = shown(page)
    press(page, "s")
    second = shown(page, other_than=first)
    press(page, "4", "ArrowDown", "2", "c")
    page.keyboard.type("a comment")
    press(page, "Escape", "Enter", "Enter")
    third = shown(page, other_than=second)
    assert sorted((first, second, third)) == items
    expect(page.locator(".annotate .report")).to_contain_text("Saved")
    page.reload()  # undo outlasts it
    page.get_by_role("tab", name="Annotate").click()
    assert shown(page) == third
    press(page, "u")
    assert shown(page, other_than=third) == second
    expect(page.locator('[data-aspect="quality"] output')).to_have_text("4.0")
    expect(page.locator('[data-aspect="correspondence"] [name=comment]')).to_have_value("a comment")
    assert said(team, items).empty
    press(page, "5", "Enter", "Enter")
    shown(page, other_than=second)
    expect(page.locator(".annotate .report")).to_contain_text("Saved")
    assert sorted(said(team, items).score) == [2, 5]
    press(page, "u", "u")
    expect(page.locator(f'.annotate[data-item="{first}"]')).to_be_visible()
    assert said(team, items).empty


def test_two_people_never_get_the_same_item(sign_in: SignIn, team: Server):
    items = fill(team, 8)
    pages = {"ann": sign_in("ann"), "ben": sign_in("ben")}
    before = dict.fromkeys(pages)
    saved = dict.fromkeys(pages, 0)
    for page in pages.values():
        shown(page)
    end = time.monotonic() + 60
    while sum(saved.values()) < len(items):
        assert time.monotonic() < end, "an item is held by nobody, or by a page that does not show it"
        for name, page in pages.items():
            # How many each gets is a matter of who asks first: either may be left without any for now.
            other = "" if before[name] is None else f':not([data-item="{before[name]}"])'
            item = page.locator(f'.annotate[data-item]:not([data-item=""]){other}')
            expect(item.or_(page.locator(".annotate .empty")).first).to_be_visible()
            if item.count():
                before[name] = int(item.get_attribute("data-item"))
                press(page, "3", "Enter", "Enter")
                saved[name] += 1
    for name, page in pages.items():
        expect(page.locator(".annotate .empty")).to_be_visible()
        expect(page.locator(".progress")).to_contain_text(f"{saved[name]} by you")
    opinions = said(team, items)
    assert sorted(opinions.item_id) == items, "each once"
    assert opinions.annotator.value_counts().to_dict() == saved
    assert all(saved.values()), "both had something to do"


def test_a_save_that_fails_brings_the_annotator_back_and_a_lost_answer_doubles_nothing(
    sign_in: SignIn, team: Server
):
    items = fill(team, 3)
    page = sign_in()
    first = shown(page)
    spoken(page)
    refusal = {"error": "The disk is full."}
    page.route("**/run/save", lambda route: route.fulfill(status=500, body=json.dumps(refusal)))
    press(page, "4", "e")
    page.keyboard.type(" Words that must not be lost.")
    press(page, "Control+Enter", "Control+Enter")
    expect(page.locator(".annotate [role=alert]")).to_have_text("Not saved: The disk is full.")
    assert shown(page) == first
    assert text_of(page, "quality").endswith(" Words that must not be lost.")
    page.unroute("**/run/save")
    page.reload()
    page.get_by_role("tab", name="Annotate").click()
    assert shown(page) == first
    assert text_of(page, "quality").endswith(" Words that must not be lost.")
    press(page, "Enter", "Enter")
    second = shown(page, other_than=first)
    expect(page.locator(".annotate .report")).to_contain_text("Saved")
    [opinion] = said(team, items).to_dict("records")
    assert opinion["score"] == 4
    assert opinion["description"].endswith(" Words that must not be lost.")

    lost = []

    def lose(route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch())
            route.abort()

    page.route("**/run/save", lose)
    with page.expect_response("**/run/save"):  # the first of them never arrives
        press(page, "4", "Enter", "Enter")
    shown(page, other_than=second)
    expect(page.locator(".annotate .report")).to_contain_text("Saved")
    assert lost[0].ok
    assert len(said(team, items)) == 2


def test_a_viewer_cannot(sign_in: SignIn, team: Server):
    [item] = items = fill(team, 1)
    page = sign_in("vera")
    expect(page.locator(".annotate [role=alert]")).to_contain_text("vera is signed in as a viewer")
    assert page.locator(".aspect").count() == 0
    expect(page.get_by_role("button", name="Add images to the queue")).to_be_hidden()
    for name, data in {
        "take": [2, "random", "all", False, False],
        "look": [item, False],
        "save": [item, [{"aspect": "quality", "score": 3}], "token", None, 1, False],
        "skip": [item],
        "undo": [item, None, False],
        "progress": [],
    }.items():
        answer = page.request.post(f"{team.url}/gradio_api/run/{name}", data={"data": data})
        assert answer.status == 500, name
        assert "vera is signed in as a viewer" in answer.json()["error"]
    assert said(team, items).empty


def test_it_fits_on_one_screen(sign_in: SignIn, team: Server):
    fill(team, 2, prompt="a long prompt " * 30)
    page = sign_in(viewport={"width": 1366, "height": 768})
    shown(page)
    spoken(page)
    for aspect in range(3):
        work = page.locator(".annotate").bounding_box()
        assert work["y"] + work["height"] <= 768
        aspects = page.locator(".aspects")
        assert aspects.evaluate("part => part.scrollHeight - part.clientHeight") <= 0, aspect
        for article in page.locator(".aspect").all():
            assert article.evaluate("part => part.scrollHeight - part.clientHeight") <= 0, aspect
        press(page, "ArrowDown")
    picture = page.locator(".picture").bounding_box()
    assert picture["width"] > 600
    assert picture["height"] > 380
    page.evaluate("""() => document.querySelector("#model .html-container").insertAdjacentHTML(
        "beforeend", `<p role="alert">${"There is more to say of the model. ".repeat(12)}</p>`)""")
    page.wait_for_function(
        """() => document.querySelector("[data-part=save]").getBoundingClientRect().bottom <= innerHeight"""
    )


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desktop", "phone"])
def test_one_press_scores_each_aspect(sign_in: SignIn, team: Server, screen: dict):
    """Though another aspect opens with it, and what is below moves."""
    [item] = fill(team, 1)
    page = sign_in(**screen)
    shown(page)
    spoken(page)
    width = page.viewport_size["width"]  # nothing is beside it
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in page.locator(".annotate :is(button, [type=range], [type=text], textarea):visible").all():
        box = part.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["height"] >= 40 or not screen, "a finger is not a mouse"
    for card in page.locator(".aspect").all():
        key = card.get_by_role("button", name="4", exact=True)
        key.tap() if screen else key.click()
        expect(card.locator("output")).to_have_text("4.0")
    page.get_by_role("button", name="Save and go on").click()
    expect(page.locator(".annotate .report")).to_contain_text("Saved as corrections #")
    saved = said(team, [item])
    assert (saved.score.tolist(), saved.tags.tolist()) == ([4.0] * 3, [()] * 3)


def test_nobody_is_torn_away_while_typing(sign_in: SignIn, team: Server):
    fill(team, 2)
    page = sign_in()
    first = shown(page)
    spoken(page)
    waiting = []
    page.route("**/run/save", lambda route: waiting.append(route))
    press(page, "4", "Enter", "Enter")
    second = shown(page, other_than=first)
    press(page, "e")
    page.keyboard.type("sausage")
    waiting[0].fulfill(status=500, body='{"error": "Full."}')
    expect(page.locator(".annotate [role=alert]")).to_have_text("Not saved: Full.")
    page.keyboard.type(" and us")
    assert shown(page) == second
    assert text_of(page, "quality").endswith("sausage and us")
    page.unroute("**/run/save")
    press(page, "Escape", "2", "Enter", "Enter")
    assert shown(page, other_than=second) == first
    expect(page.locator('[data-aspect="quality"] output')).to_have_text("4.0")
