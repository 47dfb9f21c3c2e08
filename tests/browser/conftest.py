"""A real browser on the real app: one server process for all tests, with the default model."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_server import PASSWORD, PATIENCE, Server, serve, serve_scripted
from hub_server import Hub, serving
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from m3agiqa.backbones.nano.grounded_text import FIRST_ESTIMATES_FILE
from m3agiqa.checkpoint.card import find_checkpoint, read_card, write_card

CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

DOWNLOAD = 600  # seconds for 110 MB and their unpacking

expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium from the system, else Playwright's own."""
    found = next(filter(None, map(shutil.which, ("/usr/bin/chromium", "chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=found, args=CHROMIUM_ARGS)
        except Error as error:
            reason = f"no Chromium to test with: {error.message.splitlines()[0]}"
            if os.environ.get("M3AGIQA_REQUIRE_BROWSER") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def free_writing_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model without its grammar: it writes word by word, so that a run can be watched."""
    original = find_checkpoint("nano")
    folder = shutil.copytree(original, tmp_path_factory.mktemp("free") / "nano")
    (folder / FIRST_ESTIMATES_FILE).unlink()
    write_card(read_card(original), folder)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, free_writing_nano: Path) -> Iterator[Server]:
    """The app, which loads its model; the first time ever, that downloads it."""
    with serve(
        tmp_path_factory.mktemp("server") / "log.txt", M3AGIQA_MODEL=str(free_writing_nano)
    ) as running:
        yield running


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hugging Face Hub that takes what is pushed."""
    with serving() as hub:
        hub.folder = tmp_path_factory.mktemp("hub")
        yield hub


@pytest.fixture(scope="session")
def scripted_server(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Server]:
    """The app with a quick model that follows a script, see scripted_app.py; one local user."""
    with serve_scripted(tmp_path_factory.mktemp("scripted") / "log.txt", **hub.environment) as running:
        yield running


@pytest.fixture(scope="session")
def idle_contexts() -> dict[str, BrowserContext]:
    """Browser contexts that no test uses now: their caches hold the scripts of the page."""
    return {}


@pytest.fixture
def new_page(
    browser: Browser, idle_contexts: dict[str, BrowserContext], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    """Opens the app as a new visitor; keyword arguments go to the browser context.

    Without `url` it is that of `server`, which is started then, and its model is loaded. `login` is a user of
    `serve_team`; `requests` takes the addresses of all that the page asks for. Pages that one test opens
    share no context.
    """
    contexts: list[tuple[str, BrowserContext]] = []

    def open_page(
        path: str = "/",
        url: str = "",
        login: str = "",
        tab: str = "",
        requests: list[str] | None = None,
        **options: object,
    ) -> Page:
        default = not url
        url = url or request.getfixturevalue("server").url
        key = f"{url} {login} {options}"
        context = idle_contexts.pop(key, None) or browser.new_context(accept_downloads=True, **options)
        contexts.append((key, context))
        context.set_default_timeout(PATIENCE * 1000)
        if login:
            form = {"username": login, "password": PASSWORD}
            expect(context.request.post(f"{url}/login", form=form)).to_be_ok()
        page = context.new_page()
        if requests is not None:
            page.on("request", lambda asked: requests.append(asked.url))
        page.goto(url + path)
        if default:
            banner = page.locator("#model .banner:not(.loading)")
            expect(banner).to_contain_text("Model", timeout=DOWNLOAD * 1000)
        if tab:
            page.get_by_role("tab", name=tab).click()
        else:
            expect(page.locator("#assess")).to_be_enabled()
        return page

    yield open_page
    for key, context in contexts:
        for page in context.pages:
            page.evaluate("localStorage.clear()")
            page.close()
        context.clear_cookies()
        if idle_contexts.setdefault(key, context) is not context:
            context.close()


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image that the tests draw themselves."""
    image = Image.new("RGB", (256, 256), "skyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 180, 256, 256), fill="seagreen")
    draw.ellipse((150, 30, 210, 90), fill="gold")
    draw.polygon([(40, 180), (90, 90), (140, 180)], fill="firebrick")
    path = tmp_path_factory.mktemp("pictures") / "red tent.png"
    image.save(path)
    return path
