"""The grid of images of the Data tab, with the page's style sheets alone: no server is needed."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from annotation.failures.export_and_queue import Queued
from annotation.ui import messages, theme
from annotation.ui.data.images import UNTICK_IMAGES
from annotation.ui.failures.cards import queued_html

TILE = '<li><label><input type="checkbox"></label><button type="button"><img alt=""></button></li>'


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Three images on a phone."""
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with browser.new_context(**phone) as context:
        page = context.new_page()
        grid = f'<ul class="image-grid">{TILE * 3}</ul>'
        html = (
            f'<div class="gradio-container"><div class="html-container" id="data-images">{grid}</div></div>'
        )
        page.set_content(html)
        for sheet in theme.launch_options()["css_paths"]:
            page.add_style_tag(path=sheet)
        yield page


def ticked(page: Page) -> list[bool]:
    return [each.is_checked() for each in page.locator("input").all()]


def test_a_finger_ticks_an_image_beside_its_small_box(page: Page) -> None:
    box = page.locator("label").nth(1).bounding_box()
    assert min(box["width"], box["height"]) >= 40
    page.touchscreen.tap(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
    assert ticked(page) == [False, True, False]


def test_ticks_go_once_their_images_are_queued(page: Page) -> None:
    page.locator("input").nth(2).check()
    page.evaluate(UNTICK_IMAGES, messages.message("None of the ticked images matches any more."))
    assert ticked(page) == [False, False, True]
    page.evaluate(UNTICK_IMAGES, queued_html(Queued(1, 1, ()), 2))
    assert ticked(page) == [False, False, False]
