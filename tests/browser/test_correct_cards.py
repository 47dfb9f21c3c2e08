"""Correcting what the model says, on the Assess tab."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from app_server import PASSWORD, Server, serve_team
from PIL import Image
from playwright.sync_api import Locator, Page, Request, expect

from annotation.store import Database
from annotation.store.current_responses import current_responses
from annotation.ui.access import Role

NewPage = Callable[..., Page]

ASPECTS = ("quality", "correspondence", "authenticity")
NUMBERS = count()
SCRIPTED_TEXT = "What a script says of the quality of this image."


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The scripted app with a login."""
    with serve_team(tmp_path_factory.mktemp("guarded"), ann=Role.ANNOTATOR, vera=Role.VIEWER) as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Another one for each test, so that their corrections do not meet. Red: 4.2, green: 3.0, blue: 1.8."""
    path = tmp_path / "plain.png"
    picture = Image.new("RGB", (64, 64), (204, 128, 51))
    picture.save(path, dpi=(100 + next(NUMBERS), 100))
    return path


def assess(page: Page, image: Path, prompt: str = "a plain colour") -> Locator:
    """Returns the quality card, once it can be corrected (or not)."""
    page.set_input_files("#image input[type=file]", image)
    expect(page.locator("#image img")).to_be_visible()
    page.fill("#prompt textarea", prompt)
    page.click("#assess")
    expect(page.locator("#card-quality :is(.verdict, .hint)").first).to_be_visible()
    expect(page.locator("#assess")).to_be_enabled()
    expect(page.locator("#stop")).to_be_hidden()
    return page.locator("#card-quality")


def in_force(server: Server) -> list:
    """The corrections that stand in the server's database, the newest last."""
    database = Database.open(f"sqlite:///{server.data / 'annotations.db'}")
    with database.reading() as session:
        found = sorted(current_responses(session).itertuples(), key=lambda opinion: opinion.correction_id)
    database.close()
    return found


def test_assess_edit_save_undo(new_page: NewPage, scripted_server: Server, picture: Path):
    page = new_page(url=scripted_server.url)
    card = assess(page, picture, "a red tent")
    spoken, mos = card.locator(".description").inner_text(), card.locator(".mos strong").inner_text()
    before = len(in_force(scripted_server))

    card.get_by_role("button", name="Edit").click()
    description, score = card.get_by_label("Description"), card.get_by_role("slider", name="Score")
    expect(description).to_be_focused()
    expect(description).to_have_value(spoken)
    assert f"{float(score.input_value()):.1f}" == card.locator("output").inner_text() == mos
    assert not card.locator(".gauge").is_visible(), "the card is a form now"
    description.fill("A tent of three straight lines, <sharp>.")
    score.fill("2.2")
    expect(card.locator("output")).to_have_text("2.2")
    card.get_by_label("missed flaw").check()
    card.get_by_label("Other errors").fill("too flat, no shadows")
    card.get_by_label("Comment").fill("Look at the left.")
    card.get_by_role("button", name="Save").click()

    expect(card.locator(".verdict [role=status]")).to_contain_text("Saved as correction #")
    expect(card.locator(".description")).to_have_text("A tent of three straight lines, <sharp>.")
    expect(card.locator(".mos")).to_contain_text("2.2 of 1–5 by you")
    expect(card.get_by_role("button", name="Undo")).to_be_focused()
    *_, saved = in_force(scripted_server)
    assert f"#{saved.correction_id}" in card.locator(".verdict [role=status]").inner_text()
    assert (saved.description, saved.score) == ("A tent of three straight lines, <sharp>.", 2.2)
    assert set(saved.tags) == {"missed flaw", "too flat", "no shadows"}
    assert (saved.comment, saved.annotator, saved.prompt) == ("Look at the left.", "local", "a red tent")
    assert 0 < saved.seconds < 600

    card.get_by_role("button", name="Undo").click()
    expect(card.get_by_role("button", name="This is right")).to_be_visible()
    expect(card.locator(".description")).to_have_text(spoken)
    expect(card.locator(".mos strong")).to_have_text(mos)
    assert len(in_force(scripted_server)) == before
    card.get_by_role("button", name="Edit").click()
    expect(description).to_have_value(spoken)
    expect(card.get_by_label("missed flaw")).not_to_be_checked()


def test_one_click_agrees(new_page: NewPage, scripted_server: Server, image: Path):
    page = new_page(url=scripted_server.url)
    assess(page, image)
    for aspect in ASPECTS:  # at once, one after the other
        page.locator(f"#card-{aspect}").get_by_role("button", name="This is right").click()
    for aspect in ASPECTS:
        status = page.locator(f"#card-{aspect} .verdict [role=status]")
        expect(status).to_contain_text("You agree. Saved as correction #")
    said = {opinion.aspect: opinion for opinion in in_force(scripted_server)[-3:]}
    assert [said[aspect].agrees for aspect in ASPECTS] == [True] * 3
    assert said["quality"].description == SCRIPTED_TEXT
    assert [round(said[aspect].score, 1) for aspect in ASPECTS] == [4.2, 3.0, 1.8]


def test_by_keyboard(new_page: NewPage, scripted_server: Server, image: Path):
    page = new_page(url=scripted_server.url)
    card = assess(page, image)
    card.get_by_role("button", name="Edit").focus()
    page.keyboard.press("Enter")
    page.keyboard.type(" Or not.")
    page.keyboard.press("Escape")
    expect(card.get_by_role("button", name="Edit")).to_be_focused()
    expect(card.locator("form")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(card.get_by_label("Description")).to_have_value(SCRIPTED_TEXT)
    page.keyboard.type(" Indeed.")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Control+Enter")
    expect(card.locator(".verdict [role=status]")).to_contain_text("Saved as correction #")
    *_, saved = in_force(scripted_server)
    assert (saved.description, saved.score) == (f"{SCRIPTED_TEXT} Indeed.", 4.1)
    assert saved.tags == ("missed flaw",)


def test_a_second_tab_that_is_stale_is_told_and_loses_nothing(
    new_page: NewPage, scripted_server: Server, image: Path
):
    one, other = (assess(new_page(url=scripted_server.url), image) for _ in range(2))
    one.get_by_role("button", name="This is right").click()
    expect(one.locator(".saved")).to_be_visible()
    other.get_by_role("button", name="Edit").click()
    other.get_by_label("Description").fill("Mine of the other tab.")
    other.get_by_label("Comment").fill("typed with care")
    other.get_by_role("button", name="Save").click()
    expect(other.get_by_role("alert")).to_contain_text("in another tab")
    expect(other.get_by_label("Description")).to_have_value("Mine of the other tab.")
    expect(other.get_by_label("Comment")).to_have_value("typed with care")
    assert in_force(scripted_server)[-1].agrees
    other.get_by_role("button", name="Save").click()
    expect(other.locator(".saved")).to_be_visible()
    assert in_force(scripted_server)[-1].description == "Mine of the other tab."


def test_what_cannot_be_saved_stays_on_the_page(new_page: NewPage, scripted_server: Server, image: Path):
    """In the dark theme of a phone, where it can be corrected, too."""
    page = new_page(
        "/?__theme=dark", scripted_server.url, viewport={"width": 390, "height": 844}, is_mobile=True
    )
    card = assess(page, image)
    before = len(in_force(scripted_server))
    card.get_by_role("button", name="Edit").click()
    expect(card.get_by_label("Description")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    field = card.get_by_label("Description")
    colours = field.evaluate(
        "field => [getComputedStyle(field).color, getComputedStyle(field).backgroundColor]"
    )
    light, dark = (sum(map(int, colour.strip("rgba()").split(",")[:3])) for colour in colours)
    assert light - dark > 400, colours
    field.fill("   ")
    card.get_by_role("slider", name="Score").fill("1.5")
    card.get_by_label("missed flaw").check()
    for _ in range(2):  # the same mistake twice is answered twice
        card.get_by_role("button", name="Save").click()
        expect(card.get_by_role("alert")).to_contain_text("The description of quality is empty")
        expect(card.locator("xpath=ancestor-or-self::*[@data-busy]")).to_have_count(0)
    expect(card.locator("output")).to_have_text("1.5")
    expect(card.get_by_label("missed flaw")).to_be_checked()
    assert len(in_force(scripted_server)) == before
    card.get_by_role("button", name="Cancel").click()
    expect(card.get_by_role("alert")).to_be_hidden()
    expect(card.locator(".description")).to_have_text(SCRIPTED_TEXT)


def test_a_form_that_is_open_survives_what_happens_to_other_cards(
    new_page: NewPage, scripted_server: Server, image: Path
):
    page = new_page(url=scripted_server.url)
    card = assess(page, image)
    card.get_by_role("button", name="Edit").click()
    card.get_by_label("Description").fill("Half a")
    page.locator("#card-authenticity").get_by_role("button", name="This is right").click()
    expect(page.locator("#card-authenticity .saved")).to_be_visible()
    expect(card.get_by_label("Description")).to_have_value("Half a")
    expect(card.get_by_role("button", name="Save")).to_be_visible()
    with page.expect_event("dialog") as asked:  # as signing out does, too
        page.evaluate("setTimeout(() => location.reload())")
    asked.value.dismiss()
    expect(card.get_by_label("Description")).to_have_value("Half a")

    # Another image, and the judgement of the one before goes with what was typed about it.
    page.click(".example >> nth=0")
    expect(page.locator("#card-authenticity")).to_have_class("card idle")
    page.click("#assess")
    expect(page.locator("#card-authenticity").get_by_role("button", name="This is right")).to_be_visible()
    card.get_by_role("button", name="Edit").click()
    expect(card.get_by_label("Description")).to_have_value(SCRIPTED_TEXT)
    leaves = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    assert page.evaluate(leaves), "nothing was typed, and nothing is asked"


def test_a_viewer_cannot_save_not_even_by_calling_the_endpoint(
    new_page: NewPage, guarded_server: Server, image: Path
):
    page = new_page(url=guarded_server.url, login="vera")
    expect(page.locator("#who")).to_contain_text("Signed in as vera (viewer)")
    joined: list[Request] = []
    page.on("request", lambda request: joined.append(request) if "/queue/join" in request.url else None)
    page.add_init_script(KEEP_STREAMED)
    page.reload()
    card = assess(page, image)
    expect(card.locator(".hint")).to_have_text("Sign in as an annotator to correct this.")
    assert page.locator("[data-do]").count() == 0

    said = {"aspect": "quality", "description": "Forged.", "score": 1, "token": "forged", "seconds": 1}
    # In the page's own session, where the assessment is at hand.
    answers = _call_all(page, guarded_server, joined[-1].post_data_json["session_hash"], said)
    assert len(answers) == 11, "agree, save and undo of three cards; pick and undo of compared images"
    for answer in answers:
        assert "vera is signed in as a viewer" in json.dumps(answer["output"])
    assert in_force(guarded_server) == []

    page.context.clear_cookies()
    stranger = page.context.request.post(f"{guarded_server.url}/gradio_api/queue/join", data={})
    assert stranger.status == 401


# Each message of a session goes to one of its streams only, which may be one that the page has opened.
KEEP_STREAMED = """
const fetchOnly = window.fetch;
window.streamed = [];
window.fetch = async (...request) => {
    const response = await fetchOnly(...request);
    if (!String(request[0].url ?? request[0]).includes("/queue/data")) return response;
    const [forPage, forTest] = response.body.tee();
    const number = window.streamed.push("") - 1;
    forTest.pipeThrough(new TextDecoderStream())
        .pipeTo(new WritableStream({write: (text) => { window.streamed[number] += text; }})).catch(() => {});
    return new Response(forPage, response);
};
"""
CALL = """async (call) => {
    const headers = {"Content-Type": "application/json"};
    const join = await fetch("/gradio_api/queue/join", {method: "POST", headers, body: JSON.stringify(call)});
    fetch("/gradio_api/queue/data?session_hash=" + call.session_hash);
    return (await join.json()).event_id;
}"""


def _call_all(page: Page, server: Server, session: str, data: dict) -> list[dict]:
    """Call every endpoint of the cards from the page, and return the messages that end the calls."""
    answers = []
    for dependency in page.context.request.get(f"{server.url}/config").json()["dependencies"]:
        [(target, event), *_] = dependency["targets"] or [(None, None)]
        if event not in ("agree", "save", "undo", "pick"):
            continue
        call = {"data": [None], "fn_index": dependency["id"], "trigger_id": target, "event_data": data}
        event_id = page.evaluate(CALL, {**call, "session_hash": session})
        answers.append(_ending(page, event_id))
    return answers


def _ending(page: Page, event_id: str) -> dict:
    """The message that ends a call."""
    end_of_patience = time.monotonic() + 30
    while time.monotonic() < end_of_patience:
        for stream in page.evaluate("window.streamed"):
            for part in stream.split("\n\n")[:-1]:
                message = json.loads(part.removeprefix("data:"))
                if (message["msg"], message.get("event_id")) == ("process_completed", event_id):
                    return message
        page.wait_for_timeout(100)
    raise AssertionError(f"no message ended the call {event_id}")


def test_an_annotator_signs_in_corrects_and_signs_out(
    new_page: NewPage, guarded_server: Server, image: Path, browser
):
    page = browser.new_page()
    page.goto(guarded_server.url)
    for secret in ("wrong", PASSWORD):
        page.get_by_label("username").fill("ann")
        page.get_by_label("password").fill(secret)
        page.get_by_role("button", name="Login").click()
        if secret == "wrong":
            expect(page.locator(".creds")).to_have_css("font-size", "0px")  # Gradio's words
            said = page.locator(".creds").evaluate("each => getComputedStyle(each, '::after').content")
            assert "do not belong together" in said
    expect(page.locator("#who")).to_contain_text("Signed in as ann (annotator)")
    card = assess(page, image)
    card.get_by_role("button", name="This is right").click()
    expect(card.locator(".saved")).to_be_visible()
    assert in_force(guarded_server)[-1].annotator == "ann"
    page.get_by_role("link", name="Sign out").click()
    expect(page.get_by_label("password")).to_be_visible()
    page.close()


def test_a_session_that_lapses_takes_no_draft_along(new_page: NewPage, guarded_server: Server, image: Path):
    page = new_page(url=guarded_server.url, login="ann")
    card = assess(page, image)
    card.get_by_role("button", name="Edit").click()
    card.get_by_label("Description").fill("Flat, but even.")
    page.context.clear_cookies()
    card.get_by_role("button", name="Save").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    assert page.get_by_role("link", name="Sign in again").get_attribute("target") == "_blank"
    expect(card.get_by_label("Description")).to_have_value("Flat, but even.")
    page.context.request.post(f"{guarded_server.url}/login", form={"username": "ann", "password": PASSWORD})
    card.get_by_role("button", name="Save").click()
    expect(card.locator(".verdict [role=status]")).to_contain_text("Saved as correction #")
    assert in_force(guarded_server)[-1].description == "Flat, but even."
