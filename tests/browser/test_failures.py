"""The Failure cases tab as researchers meet it."""

import csv
import io
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_server import Server, serve_scripted
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect
from seeded_cases import add, judge, say, write_run

from annotation.settings import Settings
from annotation.store import Store
from m3agiqa.aspects import Aspect, Rating

NewPage = Callable[..., Page]

# Item: colour, prompt, generator, MOS of people, of the first model and of the second.
ITEMS = {
    1: ((200, 30, 30), "a red square", "dalle", 1.5, 4.5, 2.0),
    2: ((30, 160, 40), "a green square", "dalle", 4.0, 3.0, 3.5),
    3: ((30, 60, 200), "a blue circle", None, 3.0, 3.2, 4.6),
    4: ((220, 200, 40), "a yellow circle", None, 2.0, 2.1, 2.2),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app with four items that two models and people have scored, and one run."""
    folder = tmp_path_factory.mktemp("failures")
    settings = Settings(data=folder / "data", runs=folder / "runs")
    store = Store.open(settings.database_url, settings.images)
    for colour, prompt, generator, mos, first, second in ITEMS.values():
        item = add(store, colour, prompt, generator)
        judge(store, item, {Aspect.QUALITY: first}, "first 1.0", Rating.FAIR)
        judge(store, item, {Aspect.QUALITY: second}, "second 1.0", Rating.FAIR)
        say(store, item, {Aspect.QUALITY: mos}, "Ann", tags=("missed flaw",) if mos < 2 else ())
    store.close()
    path = folder / "run.png"
    Image.new("RGB", (60, 60), (120, 0, 120)).save(path)
    row = {"sample": "s1", "image": path, "prompt": "a purple square", "aspect": "quality"}
    write_run(settings.runs, "one", [{**row, "mos": 2.0, "predicted": 3.0, "reference": "Flat."}])
    environment = {"M3AGIQA_DATA": str(settings.data), "M3AGIQA_RUNS": str(settings.runs)}
    with serve_scripted(folder / "log.txt", **environment) as running:
        yield running


def open_tab(new_page: NewPage, app: Server, query: str = "", **options: object) -> Page:
    """By a link; by the tab itself without one."""
    page = new_page("/" + query, url=app.url, **options)
    if not query:
        page.get_by_role("tab", name="Failure cases").click()
    expect(page.locator("#failures-detail img")).to_be_visible()
    return page


def colour(page: Page) -> tuple[int, ...]:
    """Of the middle of the open case's image, as the browser has drawn it."""
    return tuple(
        page.locator("#failures-detail img").evaluate(
            """async (image) => {
                await image.decode();
                const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
                canvas.drawImage(image, 0, 0);
                const at = [image.naturalWidth / 2, image.naturalHeight / 2];
                return [...canvas.getImageData(...at, 1, 1).data].slice(0, 3);
            }"""
        )
    )


def shows(page: Page, item: int) -> None:
    """The open case is this item, with its own image, and is marked among the points and in the list."""
    expect(page.locator(f'#failures-detail [data-case="{item}|quality"].failure')).to_be_visible()
    assert colour(page) == pytest.approx(ITEMS[item][0], abs=6)
    expect(page.locator("#failures-detail")).to_contain_text(ITEMS[item][1])
    for part in ("#failures-scatter", "#failures-list"):
        expect(page.locator(f"{part} [aria-current]")).to_have_attribute("data-case", f"{item}|quality")


def point(page: Page, item: int) -> Locator:
    return page.locator(f'#failures-scatter [data-case="{item}|quality"]')


def choose(page: Page, control: str, option: str) -> None:
    page.click(f"#failures-{control} input")
    page.get_by_role("option", name=option, exact=True).click()


def lists(page: Page, *items: int) -> None:
    """The list has these items, in this order."""
    rows = page.locator("#failures-list li button")
    expect(rows).to_have_count(len(items))
    for index, item in enumerate(items):
        expect(rows.nth(index)).to_have_attribute("data-case", f"{item}|quality")


def test_the_second_of_two_quick_clicks_is_the_one_that_counts(new_page: NewPage, app: Server) -> None:
    page = open_tab(new_page, app)
    shows(page, 3)
    held: list[Route] = []
    release = False
    page.route("**/queue/join*", lambda route: route.continue_() if release else held.append(route))
    with page.expect_request("**/queue/join*"):
        point(page, 3).click()
    point(page, 2).click()
    page.wait_for_timeout(300)  # a second request may come now, or only after the answer to the first
    release = True
    for route in held:
        with page.expect_response("**/queue/join*"):
            route.continue_()
    shows(page, 2)


def test_a_key_that_is_held_down_asks_for_the_neighbour_once(new_page: NewPage, app: Server) -> None:
    page = open_tab(new_page, app)
    shows(page, 3)
    held: list[Route] = []
    page.route("**/queue/join*", lambda route: held.append(route))
    page.locator("#failures-scatter svg").focus()
    for _ in range(5):
        page.keyboard.down("ArrowRight")
    page.keyboard.up("ArrowRight")
    page.wait_for_timeout(300)
    assert len(held) == 1
    held[0].continue_()
    expect(page.locator("#failures-detail .failure")).not_to_have_attribute("data-case", "3|quality")


def test_a_click_on_a_point_shows_the_right_image(new_page: NewPage, app: Server) -> None:
    page = open_tab(new_page, app)
    shows(page, 3)  # the largest error of the latest model
    choose(page, "model", "first 1.0")
    expect(page.locator("#failures-agreement")).to_contain_text("first 1.0")
    shows(page, 3)  # the same image, as the other model sees it
    lists(page, 1, 2, 3, 4)
    for item in (3, 2, 4, 1):
        point(page, item).click()
        shows(page, item)
    # Between points, the nearest one counts.
    box = point(page, 2).bounding_box()
    page.mouse.click(box["x"] - 3, box["y"] - 3)
    shows(page, 2)
    # Without a mouse: rows with the arrows and Enter, neighbours with left and right.
    page.locator("#failures-list li button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    shows(page, 3)
    page.keyboard.press("ArrowRight")
    shows(page, 4)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").focus()
    for item in (3, 2):  # the button keeps the focus
        page.keyboard.press("Enter")
        shows(page, item)
    page.locator("#failures-scatter svg").focus()
    page.keyboard.press("ArrowLeft")
    shows(page, 1)
    expect(page.locator("#failures-agreement")).to_contain_text("SRCC")


def test_filters_and_a_link_that_reopens_the_same_view(new_page: NewPage, app: Server) -> None:
    page = open_tab(new_page, app, permissions=["clipboard-read", "clipboard-write"])
    choose(page, "model", "first 1.0")
    expect(page.locator("#failures-agreement")).to_contain_text("first 1.0")  # the filters follow the model
    choose(page, "generator", "dalle")
    expect(page.locator("#failures-list li")).to_have_count(2)
    page.get_by_role("radio", name="Under").check()
    expect(page.locator("#failures-list li")).to_have_count(1)
    shows(page, 2)
    page.get_by_role("radio", name="Any").check()
    choose(page, "generator", "All")
    page.fill("#failures-most input", "2")
    choose(page, "order", "Smallest error first")
    lists(page, 4, 3, 2)
    page.fill("#failures-text input, #failures-text textarea", "CIRCLE")
    expect(page.locator("#failures-list li")).to_have_count(2)
    point(page, 3).click()
    shows(page, 3)
    page.fill("#failures-view-name input, #failures-view-name textarea", "round ones")
    page.click("#failures-save-view")
    expect(page.locator("#failures-views")).to_contain_text("round ones")
    page.click("#failures-link button")
    expect(page.locator("#failures-link [role=status]")).to_have_text("Copied")
    address = page.evaluate("navigator.clipboard.readText()")
    assert address.startswith(app.url)

    again = open_tab(new_page, app, address.removeprefix(app.url + "/"))
    shows(again, 3)
    lists(again, 4, 3)
    expect(again.locator("#failures-model input")).to_have_value("first 1.0")
    expect(again.locator("#failures-most input")).to_have_value("2")
    expect(again.locator("#failures-order input")).to_have_value("Smallest error first")
    expect(again.locator("#failures-text input, #failures-text textarea")).to_have_value("CIRCLE")
    other = open_tab(new_page, app)
    other.get_by_role("button", name="round ones", exact=True).click()
    lists(other, 4, 3)
    expect(other.locator("#failures-order input")).to_have_value("Smallest error first")
    again.fill("#failures-text input, #failures-text textarea", "nowhere")
    expect(again.locator("#failures-scatter")).to_contain_text("No case matches")
    expect(again.locator("#failures-detail img")).to_have_count(0)


def test_two_models_side_by_side_out_as_csv_and_into_the_queue(new_page: NewPage, app: Server) -> None:
    page = open_tab(new_page, app, "?tab=failures&model=db:1&data=db")
    choose(page, "other", "second 1.0")
    expect(page.locator("#failures-agreement")).to_contain_text("second 1.0 is nearer to people in 2 of 4")
    chosen = page.locator("#failures-aspect input:checked")
    chosen.hover()
    background = chosen.evaluate("button => getComputedStyle(button).backgroundColor")
    assert background != "rgb(255, 255, 255)", "its white dot is seen under the mouse, too"
    choose(page, "nearer", "The second model is")
    choose(page, "order", "Second model nearer by most")
    lists(page, 1, 2)
    expect(page.locator("#failures-detail .says.first")).to_contain_text("first 1.0 on quality")
    expect(page.locator("#failures-detail .says.other")).to_contain_text("second 1.0 on quality")
    expect(page.locator("#failures-detail .says.people")).to_contain_text("missed flaw")

    page.locator("#failures-list input").first.check()
    expect(page.locator("#failures-export")).to_have_text("Download 1 ticked case as CSV")
    page.locator("#failures-list input").first.uncheck()
    expect(page.locator("#failures-enqueue")).to_have_text("Queue the images of all 2 matching cases")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all 2 matching cases as CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"), newline="")))
    assert download.value.suggested_filename == "failure-cases.csv"
    assert [(row["item"], float(row["gain"]), row["tags"]) for row in rows] == [
        ("1", 2.5, "missed flaw"),
        ("2", 0.5, ""),
    ]

    page.fill("#failures-overlap input", "3")
    page.click("#failures-enqueue")
    expect(page.locator("#failures-queued")).to_contain_text(
        re.compile("2 images are in .* 3 annotators each")
    )
    with sqlite3.connect(app.data / "annotations.db") as database:
        queued = database.execute("SELECT item_id, overlap FROM queue_entries ORDER BY item_id").fetchall()
    assert queued == [(1, 3), (2, 3)]

    choose(page, "data", "Runs on drawings (ffffff)")
    expect(page.locator("#failures-detail")).to_contain_text("a purple square")
    expect(page.locator("#failures-detail .says.reference")).to_contain_text("Flat.")
    assert colour(page) == pytest.approx((120, 0, 120), abs=6)


def test_images_are_chosen_on_their_map_and_by_likeness(new_page: NewPage, app: Server) -> None:
    page = open_tab(new_page, app, "?tab=failures&model=db:1&data=db")
    page.get_by_role("radio", name="Images").check()
    expect(page.locator("#failures-scatter .map circle")).to_have_count(4)  # nano has looked at them
    point(page, 2).click()
    shows(page, 2)
    plot = page.locator("#failures-scatter svg")
    plot.scroll_into_view_if_needed()
    around, box = plot.bounding_box(), point(page, 3).bounding_box()
    left, right = max(around["x"] + 2, box["x"] - 20), min(around["x"] + around["width"] - 2, box["x"] + 30)
    top, bottom = max(around["y"] + 2, box["y"] - 20), min(around["y"] + around["height"] - 2, box["y"] + 30)
    page.mouse.move(left, top)
    page.mouse.down()
    for corner in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    lists(page, 3)
    shows(page, 3)
    expect(page.locator("#failures-list")).to_contain_text("Shown: the area marked on the map")
    address = page.locator("#failures-link a").get_attribute("href")
    page.get_by_role("button", name="Similar images").click()
    expect(page.locator("#failures-list")).to_contain_text("Shown: images like 3")
    expect(page.locator("#failures-list li")).to_have_count(4)
    expect(page.locator("#failures-list li button").first).to_have_attribute("data-case", "3|quality")
    page.get_by_role("button", name="Show all cases").click()
    lists(page, 1, 2, 3, 4)
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    address += "&most=4"
    again = open_tab(new_page, app, address.removeprefix("/"), **phone)  # where the tab is in a menu
    lists(again, 3)
    expect(again.locator("#failures-filters")).to_be_hidden()
    expect(again.locator("#failures-fold")).to_have_text("Show filters (1 active)")
    assert again.locator("#failures-list .cases li").first.bounding_box()["y"] < 844
    again.get_by_label("Show filters").tap()
    expect(again.locator("#failures-filters")).to_be_visible()
    # Far below the list one is told what is shown, and a point that is touched brings its case into sight.
    expect(again.locator("#failures-agreement").get_by_role("button", name="Show all cases")).to_be_visible()
    again.get_by_role("link", name="To the cases").tap()
    expect(again.locator("#failures-list .cases")).to_be_in_viewport()
    assert address.removeprefix(app.url) in again.url, "the page was not loaded anew"
    again.locator("#failures-list").get_by_role("button", name="Show all cases").tap()
    lists(again, 1, 2, 3, 4)
    point(again, 2).tap()
    shows(again, 2)
    expect(again.locator("#failures-detail h3")).to_be_in_viewport()
