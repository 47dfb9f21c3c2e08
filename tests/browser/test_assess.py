"""The Assess tab as visitors meet it."""

import base64
import json
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from app_server import PATIENCE, Server, serve_scripted
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, expect

from m3agiqa.checkpoint.card import CARD_FILE, find_checkpoint, read_card

NewPage = Callable[..., Page]

ASPECTS = ("quality", "correspondence", "authenticity")
PROMPT = "a red tent on a green meadow in the sun"


@pytest.fixture
def scripted_page(new_page: NewPage, scripted_server: Server) -> NewPage:
    """Opens pages of the app with the scripted model."""
    return partial(new_page, url=scripted_server.url)


def put_in(page: Page, image: Path, prompt: str | None = PROMPT) -> None:
    """Upload an image and wait until the page shows it, then type the prompt."""
    page.set_input_files("#image input[type=file]", image)
    expect(page.locator("#image img")).to_be_visible()
    if prompt is not None:
        page.fill("#prompt textarea", prompt)


def assess(page: Page, image: Path, prompt: str | None = PROMPT) -> None:
    put_in(page, image, prompt)
    page.click("#assess")


def descriptions(page: Page) -> list[str]:
    return [page.locator(f"#card-{aspect} .description").inner_text().strip() for aspect in ASPECTS]


def wait_for_text(page: Page) -> None:
    """Until the model is in the middle of its descriptions."""
    expect(page.locator("#card-quality .description")).to_have_text(re.compile(r"\w+ \w+"))


def wait_for_turn(page: Page) -> None:
    """Until the model works for this page: from then on others wait in line, for as long as that takes."""
    page.wait_for_function("() => /Looking|Writing/.test(document.querySelector('#status').innerText)")


def stop(page: Page) -> None:
    page.click("#stop")
    expect(page.locator("#assess")).to_be_enabled()


def test_three_cards_fill_side_by_side_and_end_with_scores_and_maps(new_page: NewPage, picture: Path):
    page = new_page(requests=(requests := []))
    choice, buttons = page.locator("#map-choice"), page.get_by_role("button", name="Upload file")
    expect(choice).to_be_hidden()
    put_in(page, picture)
    expect(buttons).to_be_visible()
    page.click("#assess")
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#assess")).to_be_disabled()
    wait_for_text(page)
    assert all(descriptions(page)), "all three speak at once"
    assert page.locator(".rating").count() == 0, "no card is finished yet"
    tops = {page.locator(f"#card-{aspect}").bounding_box()["y"] for aspect in ASPECTS}
    assert len(tops) == 1, "side by side"

    expect(page.locator("#download")).to_be_visible()
    expect(page.locator("#assess")).to_be_enabled()
    expect(page.locator("#stop")).to_be_hidden()
    assert re.fullmatch(r"\d+\.\d s", page.locator("#elapsed").inner_text())
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "red tent.m3agiqa.json"
    result = json.loads(Path(download.value.path()).read_text())
    card = read_card(find_checkpoint("nano"))
    assert (result["image"], result["prompt"]) == ("red tent.png", PROMPT)
    assert (result["model"], result["learned_from"]) == (card.title, card.learned_from)
    assert card.title in page.locator(".provenance").inner_text()
    assert card.learned_from in page.locator(".provenance").inner_text()
    for aspect in ASPECTS:
        judged = result["aspects"][aspect]
        low, high = judged["scale"]
        assert low <= judged["mos"] <= high
        box = page.locator(f"#card-{aspect}")
        assert box.locator(".description").inner_text().strip() == judged["description"]
        assert box.locator(".rating").inner_text() == judged["rating"]
        assert box.locator(".mos").inner_text().startswith(f"{judged['mos']:.1f} of {low:g}–{high:g}")
        gauge = box.locator(".gauge")
        assert float(gauge.get_attribute("aria-valuenow")) == pytest.approx(judged["mos"], abs=0.006)
        gauge.locator(".fill").evaluate("bar => Promise.all(bar.getAnimations().map(a => a.finished))")
        filled = gauge.locator(".fill").bounding_box()["width"] / gauge.bounding_box()["width"]
        assert filled == pytest.approx((judged["mos"] - low) / (high - low), abs=0.05)
    _chips_explain_themselves(page)
    _maps_lie_over_the_image(page)
    local = (page.url, "data:", "blob:")
    assert [url for url in requests if not url.startswith(local)] == [], "no request to another server"
    assert len(requests) > 10


def _chips_explain_themselves(page: Page) -> None:
    chip = page.locator("#card-correspondence details", has_text="tent").first
    expect(chip.locator("p")).to_be_hidden()
    chip.locator("summary").press("Enter")
    expect(chip.locator("p")).to_contain_text("The words “tent”, with the image as a whole")


def _maps_lie_over_the_image(page: Page) -> None:
    choice, buttons = page.locator("#map-choice"), page.get_by_role("button", name="Upload file")
    expect(choice).to_be_visible()
    expect(buttons).to_be_hidden()  # the choice takes their place
    page.get_by_role("radio", name="Quality").check()
    page.get_by_role("radio", name="Off").check()
    page.wait_for_load_state("networkidle")  # both have been answered, and the last choice counts
    expect(page.locator("#quality-map")).to_have_text("")
    place = "document.querySelector('#cards').getBoundingClientRect().top + scrollY"
    top = page.evaluate(place)
    page.get_by_role("radio", name="Quality").check()
    overlay = page.get_by_role("img", name=re.compile("Map of quality: worst at the"))
    expect(overlay).to_be_visible()
    expect(page.locator("#quality-map")).to_contain_text(re.compile("Worst: (upper|middle|lower)"))
    assert page.evaluate(place) == top, "nothing moves"
    shown, over = page.locator("#image img").bounding_box(), overlay.bounding_box()
    for start, extent in (("x", "width"), ("y", "height")):
        assert over[extent] == pytest.approx(256, abs=1), "as the image, which is not enlarged"
        middle = shown[start] + shown[extent] / 2
        assert over[start] + over[extent] / 2 == pytest.approx(middle, abs=1.5)
    page.get_by_role("radio", name="Authenticity").check()
    expect(page.get_by_role("img", name=re.compile("Map of authenticity"))).to_be_visible()
    page.get_by_role("radio", name="Off").check()
    expect(overlay).to_be_hidden()
    page.get_by_role("radio", name="Quality").check()
    expect(overlay).to_be_visible()
    page.get_by_role("button", name="Remove Image").click()
    expect(overlay).to_be_hidden()
    expect(choice).to_be_hidden()


def again(page: Page) -> None:
    """Until the model is in the middle of its descriptions, and those of the run before are gone."""
    page.click("#assess")
    expect(page.locator(".ended")).to_have_count(0)
    wait_for_text(page)


def _busy(server: Server, seconds: float) -> float:
    """The share of a core that the server uses now."""
    before, began = server.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / (time.monotonic() - began)


def _busy_after_a_run(server: Server) -> float:
    """A second later; a run goes on for several times as long as this looks at it."""
    time.sleep(1)
    return _busy(server, 2)


def test_stop_and_closing_the_page_end_a_run_and_no_other(new_page: NewPage, server: Server, picture: Path):
    page, other = new_page(), new_page()
    put_in(other, picture)
    put_in(page, picture)
    page.press("#prompt textarea", "Control+Enter")
    wait_for_turn(page)
    other.dispatch_event("#assess", "click")  # at once: a click waits for the button to stand still
    expect(other.locator("#status")).to_contain_text("You are number 2 in the queue")
    wait_for_text(page)
    page.click("#stop")
    expect(page.locator(".ended").first).to_have_text("Stopped.", timeout=5000)
    expect(page.locator("#assess")).to_be_enabled()
    assert page.locator(".rating").count() < 3
    so_far = page.locator(".description p").first.inner_text()
    assert len(so_far.split()) >= 2

    # The other visitor's run was not touched: it goes on, and takes its turn.
    wait_for_turn(other)
    # Nor did Stop leave anything behind: the same visitor asks again, and waits behind the other.
    page.dispatch_event("#assess", "click")
    expect(page.locator("#status")).to_contain_text("You are number 2 in the queue")
    stop(page)  # in the line, too
    expect(other.locator("#stop")).to_be_visible()
    wait_for_text(other)
    working = _busy(server, 0.3)
    stop(other)
    idle = _busy_after_a_run(server)
    assert idle < min(0.25, working / 2), "the model's own work has ended, too"
    assert other.locator(".ended").first.inner_text() == "Stopped."

    again(other)
    other.close()
    assert _busy_after_a_run(server) < 0.25
    again(page)  # and nobody waits behind it
    stop(page)


def test_two_visitors_at_once_get_both_their_answers(new_page: NewPage, picture: Path):
    first, second = new_page(), new_page()
    put_in(second, picture, "a blue whale in the deep sea")
    assess(first, picture)
    wait_for_turn(first)
    second.dispatch_event("#assess", "click")
    expect(second.locator("#status")).to_contain_text("You are number 2 in the queue")
    for page, prompt in ((first, PROMPT), (second, "a blue whale in the deep sea")):
        expect(page.locator("#download")).to_be_visible(timeout=2 * PATIENCE * 1000)
        assert page.locator(".gauge").count() == 3
        href = page.locator("#download").get_attribute("href")
        assert json.loads(base64.b64decode(href.partition(",")[2]))["prompt"] == prompt


def test_no_image_and_one_that_cannot_be_read_are_told_in_a_sentence(scripted_page: NewPage, tmp_path: Path):
    """The sentences of all kinds are in test_images.py."""
    page = scripted_page()
    alert = page.locator("#message [role=alert]")
    page.click("#assess")
    expect(alert).to_contain_text("There is no image yet")
    expect(page.locator("#assess")).to_be_enabled()
    (tmp_path / "text.png").write_text("This is no image.")
    sentence = "This is not an image that can be read."
    page.set_input_files("#image input[type=file]", tmp_path / "text.png")
    expect(alert).to_contain_text(sentence)  # as soon as it is uploaded
    expect(page.locator("#image img")).to_be_hidden()  # no icon of a broken image
    page.click("#assess")
    expect(page.locator("#assess")).to_be_enabled()
    expect(alert).to_contain_text(sentence)  # and when it is to be assessed
    expect(alert).to_be_visible()
    assert page.locator(".toast-body").count() == 0
    assert "Traceback" not in page.content()


def drop(page: Page, box: str, *paths: Path, text: str = "") -> None:
    """From outside the browser, as people do."""
    at = page.locator(box).bounding_box()
    items = [{"mimeType": "text/plain", "data": text}] if text else []
    data = {"items": items, "files": list(map(str, paths)), "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent", {"type": kind, "x": at["x"] + 99, "y": at["y"] + 99, "data": data}
        )


def test_what_no_box_takes_is_named(scripted_page: NewPage, picture: Path, tmp_path: Path):
    (letter := tmp_path / "letter.pdf").write_bytes(b"%PDF-1.7")
    (photo := tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with (film := tmp_path / "film.mp4").open("wb") as file:
        file.truncate(201 * 2**20)
    page = scripted_page()
    alert, below = page.locator("#message [role=alert]"), page.locator("#assess-tab .upload-problem")
    page.wait_for_load_state("networkidle")  # until the page has its scripts, it takes no drop
    drop(page, "#image", letter)
    expect(alert).to_contain_text("This is a PDF document")
    drop(page, "#image", photo)
    expect(alert).to_contain_text("This is a HEIC picture")
    page.set_input_files("#image input[type=file]", letter)
    expect(alert).to_contain_text("This is a PDF document")
    drop(page, "#image", picture, letter)
    expect(page.locator("#image img")).to_be_visible()
    expect(below).to_contain_text("letter.pdf was left out: this box takes one image.")
    drop(page, "#image", film)
    expect(below).to_have_text("film.mp4 has 201 MB; at most 200 MB can be uploaded.")
    drop(page, "#image", tmp_path)
    expect(below).to_contain_text("is a folder; choose the files in it.")
    drop(page, "#image", text="https://example.org/a.png")
    expect(below).to_contain_text("This is not a file.")
    expect(page.locator("#image img")).to_be_visible()  # what was refused has not put it out
    page.get_by_role("tab", name="Compare").click()
    drop(page, "#compare-files", picture, letter, film)
    expect(page.locator("#compare-files")).to_contain_text("letter")
    expect(page.locator("#compare-tab .upload-problem")).to_contain_text("film.mp4")
    page.click("#compare")
    expect(page.locator("#compare-grid")).to_contain_text("letter.pdf is left out. This is a PDF document")
    assert page.locator(".toast-body").count() == 0


def _animated(path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


UNUSUAL_IMAGES: dict[str, Callable[[Path], None]] = {
    "animated.gif": _animated,
    "cmyk.jpg": lambda path: Image.new("CMYK", (64, 64), "red").save(path),
    "sixteen.png": lambda path: Image.new("I;16", (64, 64), 30_000).save(path),
    "alpha.webp": lambda path: Image.new("RGBA", (64, 64), (255, 0, 0, 90)).save(path),
    "scan.tiff": lambda path: Image.new("RGB", (64, 64), "red").save(path),
    "scan.jp2": lambda path: Image.new("RGB", (64, 64), "red").save(path),
}


def remove_image(page: Page) -> None:
    """And with it its cards."""
    page.click('#image button[aria-label="Remove Image"]')
    expect(page.locator(".card.idle")).to_have_count(3)


def test_unusual_images_are_assessed(scripted_page: NewPage, tmp_path: Path):
    page = scripted_page()
    for name, save in UNUSUAL_IMAGES.items():
        save(tmp_path / name)
        assess(page, tmp_path / name)
        wait_for_text(page)
        page.wait_for_function("document.querySelector('#image img').naturalWidth === 64")  # it is shown
        expect(page.locator("#message [role=alert]")).to_be_hidden()
        expect(page.locator("#download")).to_be_visible()
        remove_image(page)


def test_a_prompt_comes_and_goes_with_its_image(scripted_page: NewPage, picture: Path, tmp_path: Path):
    info = PngInfo()
    info.add_text(
        "parameters", "a fox in <snow>\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1"
    )
    Image.open(picture).save(generated := tmp_path / "generated.png", pnginfo=info)
    page, other = scripted_page(), tmp_path / "other.png"
    put_in(page, generated, prompt=None)
    expect(page.locator("#prompt textarea")).to_have_value("a fox in <snow>")
    expect(page.locator("#prompt-origin")).to_contain_text(
        "Prompt read from the image file: A1111 parameters"
    )
    page.click('#image button[aria-label="Remove Image"]')
    expect(page.locator("#prompt textarea")).to_have_value("")
    expect(page.locator("#prompt-origin")).to_be_hidden()

    Image.new("RGB", (64, 64), "red").save(other)
    box, status = page.locator("#prompt textarea"), page.locator("#status")
    assess(page, picture)
    expect(page.locator("#download")).to_be_visible()
    expect(status).to_contain_text("Done")
    expect(page.locator("#prompt-length")).to_have_text(f"{len(PROMPT)} of 8,000")
    box.fill("x" * 9000)
    expect(status).not_to_contain_text("Done", use_inner_text=True)
    expect(status).to_contain_text("these cards are about the one before", use_inner_text=True)
    expect(page.locator("#prompt-length")).to_have_text("9,000 characters: the first 8,000 are read")
    box.fill(f" {PROMPT}\n")
    expect(status).to_contain_text("Done", use_inner_text=True)

    remove_image(page)
    expect(status).to_have_text("")
    page.set_input_files("#image input[type=file]", other)
    expect(page.locator("#prompt-origin")).to_contain_text("The prompt before was for another image")
    expect(box).to_have_value("")
    page.click("#prompt-origin button")
    expect(box).to_have_value(re.compile(PROMPT))
    expect(page.locator("#prompt-origin p")).to_be_hidden()


def test_ten_tabs_of_one_browser(scripted_page: NewPage, picture: Path):
    first = scripted_page()
    tabs = [first] + [first.context.new_page() for _ in range(9)]
    for page in tabs[1:]:
        page.goto(first.url)
        expect(page.locator("#model .banner:not(.loading)")).to_contain_text("Model scripted")
    for page in (tabs[-1], first):
        assess(page, picture)
        expect(page.locator("#download")).to_be_visible()


def _luminance(colour: str) -> float:
    red, green, blue = (
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _expect_legible(page: Page, theme: str) -> None:
    style = """([selector, property]) => getComputedStyle(document.querySelector(selector))[property]"""
    card = page.evaluate(style, ["#card-quality", "backgroundColor"])
    body = page.evaluate("""() => {
        let part = document.querySelector("header.studio");
        while (/rgba\\(.*, 0\\)/.test(getComputedStyle(part).backgroundColor)) part = part.parentElement;
        return getComputedStyle(part).backgroundColor;
    }""")
    assert (_luminance(card) < 0.2) == (_luminance(body) < 0.2) == (theme == "dark")
    for selector, ground in [
        ("#card-quality h3", card),
        ("#card-quality .question", card),
        ("header.studio h1", body),
        ("#introduction p", body),
        ("header.studio h1 span", body),
    ]:
        colour = page.evaluate(style, [selector, "color"])
        assert _contrast(colour, ground) >= 4.5, (selector, colour, ground)


@pytest.mark.parametrize(
    ("screen", "theme"),
    [
        ({"viewport": {"width": 1366, "height": 768}}, "light"),
        ({"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}, "dark"),
    ],
    ids=["desktop", "phone"],
)
def test_cards_keep_their_place(scripted_page: NewPage, screen, theme):
    """And are legible there, without scrolling sideways."""
    page = scripted_page(f"/?__theme={theme}", **screen)
    _expect_legible(page, theme)
    expect(page.locator("#model .banner:not(.loading)")).to_be_visible()
    top = "[...document.querySelectorAll('.card, #image, [role=tablist], #model')].map("
    top += "part => [part.id, part.getBoundingClientRect().top + scrollY])"
    before = dict(page.evaluate(top))
    assert before[""] < before["image"] < before["card-quality"]
    assert (before["model"] > before["card-quality"]) == ("is_mobile" in screen), "on a phone it comes last"
    assert "Ctrl" not in page.locator("body").inner_text()
    if "is_mobile" not in screen:
        expect(page.locator("#card-quality header")).to_be_in_viewport()
    page.click(".example >> nth=0")
    expect(page.locator("#image img")).to_be_visible()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("lighthouse"))
    page.click("#assess")
    expect(page.locator("#download")).to_be_visible()
    after = dict(page.evaluate(top))
    for card in (f"card-{aspect}" for aspect in ASPECTS):
        assert after[card] == pytest.approx(before[card], abs=1)
    expect(page.locator("#card-quality header")).to_be_in_viewport()
    widths = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert max(widths) <= screen["viewport"]["width"]
    if "is_mobile" in screen:
        boxes = {aspect: page.locator(f"#card-{aspect}").bounding_box() for aspect in ASPECTS}
        assert boxes["quality"]["y"] < boxes["authenticity"]["y"] < boxes["correspondence"]["y"], "stacked"
        assert all(box["width"] > 300 for box in boxes.values())


def test_assess_waits_for_an_image_that_is_being_uploaded(scripted_page: NewPage, picture: Path):
    page = scripted_page()
    page.route("**/upload?*", lambda route: (page.wait_for_timeout(1500), route.continue_()))
    page.set_input_files("#image input[type=file]", picture)
    expect(page.locator("#image .uploading")).to_be_visible()
    page.click("#assess")
    assert page.locator("#image img").count() == 0, "the upload was over too soon to test this"
    wait_for_text(page)
    expect(page.locator("#message [role=alert]")).to_be_hidden()


def test_an_image_can_be_pasted_and_assessed_without_a_prompt(scripted_page: NewPage, picture: Path):
    page = scripted_page()
    page.evaluate(
        """async (base64) => {
            const bytes = await (await fetch("data:image/png;base64," + base64)).blob();
            const clipboard = new DataTransfer();
            clipboard.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.body.dispatchEvent(
                new ClipboardEvent("paste", { clipboardData: clipboard, bubbles: true, cancelable: true }));
        }""",
        base64.b64encode(picture.read_bytes()).decode(),
    )
    expect(page.locator("#image img")).to_be_visible()
    page.click("#assess")
    wait_for_text(page)
    expect(page.locator("#card-correspondence")).to_contain_text("there is no prompt")
    assert page.locator("#card-authenticity .description").inner_text().strip()


def test_a_tampered_weight_file_is_told_on_the_page(new_page: NewPage, picture: Path, tmp_path: Path):
    folder = shutil.copytree(find_checkpoint("nano"), tmp_path / "tampered")
    assert (folder / CARD_FILE).is_file()
    weights = folder / "predictor-quality.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 0xFF
    weights.write_bytes(content)
    with serve_scripted(tmp_path / "log.txt", M3AGIQA_MODEL=str(folder)) as tampered:
        page = new_page(url=tampered.url)
        sentence = f"The weight file {weights} is damaged or has been changed"
        expect(page.locator("#model [role=alert]")).to_contain_text(sentence)
        assess(page, picture)
        expect(page.locator("#message [role=alert]")).to_contain_text(sentence)
        expect(page.locator("#assess")).to_be_enabled()
        page.close()
