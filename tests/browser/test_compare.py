"""The Compare tab as visitors meet it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from app_server import Server
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

NewPage = Callable[..., Page]
# Red is quality, green correspondence, blue authenticity, each from 1 to 5.
COLOURS = {
    "red.png": (255, 0, 51),
    "green.webp": (51, 255, 0),
    "grey.tif": (128, 128, 128),
    "black.png": (20, 20, 20),
}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for name, colour in COLOURS.items():
        image = Image.new("RGB", (1200, 900) if name == "red.png" else (600, 450), colour)
        ImageDraw.Draw(image).rectangle((0, 0, 9, 9), fill="white")
        image.save(tmp_path / name)
        paths.append(tmp_path / name)
    return paths


def compare(page: Page, images: list[Path], prompt: str = "a plain colour") -> None:
    page.set_input_files("#compare-files input[type=file]", images)
    expect(page.locator("#compare-files")).to_contain_text("black")
    expect(page.locator("#compare-message")).to_have_text("")  # whatever was wrong with the images before
    page.fill("#compare-prompt textarea", prompt)
    page.click("#compare")
    expect(page.locator("#compare-status")).to_contain_text("Done")


def order(page: Page) -> list[str]:
    return page.locator(".compared .look img").evaluate_all("images => images.map((each) => each.alt)")


def shown(page: Page) -> str:
    """The image in the view."""
    visible = "images => images.filter((each) => each.style.visibility === 'visible').map((each) => each.alt)"
    [name] = page.locator(".flicker .stage img").evaluate_all(visible)
    return name


def centre(page: Page) -> list[float]:
    """What of the shown image is in the middle of the view, as shares of width and height."""
    return page.evaluate(
        """() => {
          const room = document.querySelector(".flicker .stage").getBoundingClientRect();
          const images = [...document.querySelectorAll(".stage img")];
          const image = images.find((each) => each.style.visibility === "visible");
          const at = image.getBoundingClientRect();
          return [(room.x + room.width / 2 - at.x) / at.width, (room.y + room.height / 2 - at.y) / at.height];
        }"""
    )


def test_four_images_are_ordered_flipped_picked_and_undone(
    new_page: NewPage, scripted_server: Server, images: list[Path]
) -> None:
    page = new_page(url=scripted_server.url, tab="Compare")
    expect(page.locator("#compare-order")).to_be_hidden()  # nothing is there to be ordered
    page.click("#compare")
    expect(page.locator("#compare-message")).to_contain_text("2 to 24 can be compared")
    compare(page, images)
    assert order(page) == ["grey.tif", "red.png", "green.webp", "black.png"]
    page.get_by_role("radio", name="Quality").check()
    expect(page.locator(".compared .look img").first).to_have_attribute("alt", "red.png")
    assert order(page) == ["red.png", "grey.tif", "green.webp", "black.png"]
    page.get_by_role("radio", name="Overall").check()
    expect(page.locator(".compared .look img").first).to_have_attribute("alt", "grey.tif")
    page.locator("#weight-correspondence input[type=number]").fill("5")
    page.locator("#weight-correspondence input[type=number]").press("Tab")
    expect(page.locator(".compared .look img").first).to_have_attribute("alt", "green.webp")

    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text("utf-8-sig").splitlines()))
    assert [row["image"] for row in rows] == order(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download JSON").click()
    assert json.loads(Path(download.value.path()).read_text())["weights"]["correspondence"] == 5

    # Walk with the arrows, then flip two images at the same place in their own pixels.
    page.locator('.compared li:has(img[alt="green.webp"]) .look').focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator('.compared li:has(img[alt="grey.tif"]) .look')).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect(page.locator(".flicker")).to_be_visible()
    assert shown(page) == "red.png"
    page.keyboard.press("Space")
    assert shown(page) == "grey.tif"
    page.keyboard.press("Space")
    assert shown(page) == "red.png"
    page.locator(".flicker .stage").click(position={"x": 500, "y": 200})
    sizes = "images => images.map((each) => [each.width, each.naturalWidth])"
    for width, natural in page.locator(".flicker .stage img").evaluate_all(sizes):
        assert width == natural > 0, "a pixel of the image is one of the screen"
    before = centre(page)
    assert before != pytest.approx([0.5, 0.5], abs=0.05)
    page.keyboard.press("Space")
    assert (shown(page), centre(page)) == ("grey.tif", pytest.approx(before, abs=0.01))

    # By buttons, as on a touch screen.
    view = page.locator(".flicker")
    view.get_by_role("button", name="Next image").click()
    assert shown(page) == "red.png"
    page.keyboard.press("Space")
    assert shown(page) == "grey.tif", "the keys stay those of the view"
    view.get_by_role("button", name="Flip to 3").click()
    view.get_by_role("button", name="Flip to 2").click()
    assert shown(page) == "grey.tif"
    view.get_by_role("button", name="Actual size").press("Enter")  # presses it, and picks nothing
    view.get_by_role("button", name="Pick as best").click()
    expect(page.locator("#compare-grid .verdict")).to_contain_text("You picked grey.tif")
    expect(view.get_by_role("button", name="Your pick")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".flicker")).to_be_hidden()
    expect(page.locator(".compared .picked img")).to_have_attribute("alt", "grey.tif")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#compare-grid .verdict")).to_be_empty()
    expect(page.locator(".compared .picked")).to_have_count(0)
    page.locator('.compared li:has(img[alt="red.png"]) .look').press("Space")
    page.keyboard.press("Enter")  # in the view
    expect(view.get_by_role("button", name="Your pick")).to_be_visible()
    view.get_by_role("button", name="Close").press("Enter")
    expect(view).to_be_hidden()
    expect(page.locator(".compared .picked img")).to_have_attribute("alt", "red.png")


def test_a_phone_shows_two_images_side_by_side_and_no_small_targets(
    new_page: NewPage, scripted_server: Server, images: list[Path]
) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = new_page("/?tab=compare", url=scripted_server.url, **phone)
    expect(page.locator("#compare-files")).to_be_visible()
    compare(page, images)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = "cards => cards.slice(0, 2).map((each) => each.getBoundingClientRect().top)"
    first, second = page.locator(".compared > li").evaluate_all(tops)
    assert first == second
    heights = "parts => parts.map((each) => each.getBoundingClientRect().height)"
    parts = ".html-container button, label:has([type=radio]), [type=number], .tab-like-container"
    targets = page.locator(f"#compare-tab :is({parts}), [role=tab]")
    shown = targets.filter(visible=True).evaluate_all(heights)
    assert len(shown) > 10 and min(shown) >= 40
