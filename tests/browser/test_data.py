"""The Data tab in a browser: figures of what people said, and an export that arrives."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import argon2
import pytest
from app_server import Server, serve_scripted
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from sqlalchemy.orm import Session

from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.items import add_item
from annotation.users import Role, User, put_user
from m3agiqa.aspects import Aspect, MosScale

PASSWORD = "a long password"
SCALE = MosScale(1.0, 5.0)
BIASES = {"zoe": 0.4, "roberta": -0.4}

SignIn = Callable[[str], Page]


def score(data: Path, number: int) -> None:
    """Put in an image, whose quality zoe and roberta score."""
    store = Store.open(f"sqlite:///{data / 'annotations.db'}", data / "images")
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (20 * number, 90, 120)).save(file, "PNG")
    image = store.images.add(file.getvalue(), f"{number}.png")

    def work(session: Session) -> None:
        item, _ = add_item(session, image, f"prompt {number}", "cats")
        for name, bias in BIASES.items():
            said = AspectResponse(Aspect.QUALITY, 2 + 0.2 * number + bias, SCALE, description="It is fine.")
            save(session, NewSubmission(f"{name} {number}", item.id, name, (said,), seconds=20.0))

    store.database.transact(work)
    store.close()


@pytest.fixture(scope="module")
def team_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app for a team whose zoe and roberta have scored eight images."""
    folder = tmp_path_factory.mktemp("data")
    quick = argon2.PasswordHasher(time_cost=1, memory_cost=64)
    for name, role in (("zoe", Role.ANNOTATOR), ("boss", Role.ADMIN), ("vera", Role.VIEWER)):
        put_user(folder / "users.txt", User.new(name, role, PASSWORD, quick))
    for number in range(8):
        score(folder / "data", number)
    with serve_scripted(folder / "log.txt", M3AGIQA_AUTH=str(folder / "users.txt")) as running:
        yield running


@pytest.fixture
def sign_in(browser: Browser, team_server: Server) -> Iterator[SignIn]:
    """Opens the Data tab for one of the team, in a browser of their own."""
    contexts = []

    def open_tab(name: str) -> Page:
        context = browser.new_context(accept_downloads=True)
        contexts.append(context)
        context.request.post(f"{team_server.url}/login", form={"username": name, "password": PASSWORD})
        page = context.new_page()
        page.goto(team_server.url)
        page.get_by_role("tab", name="Data").click()
        expect(page.locator("#data-summary")).to_contain_text("Current responses")
        return page

    yield open_tab
    for context in contexts:
        context.close()


def test_an_admin_sees_everybody_and_exports(sign_in: SignIn, team_server: Server) -> None:
    page = sign_in("boss")
    people = page.locator("#data-annotators")
    expect(people.get_by_role("row", name="zoe")).to_contain_text("+0.40")
    expect(people.get_by_role("row", name="roberta")).to_contain_text("−0.40")
    quality = page.locator("#data-agreement").get_by_role("row", name="Quality")
    expect(quality).to_contain_text("8 images, 2 people")
    expect(page.locator("#data-charts svg.marks")).to_have_count(1)
    expect(page.locator("#data-uncertain")).to_contain_text("prompt 3")

    score(team_server.data, 8)
    page.click("#data-refresh")
    expect(quality).to_contain_text("9 images, 2 people")

    page.fill("#export-name input, #export-name textarea", "spring")
    page.click("#export-start")
    expect(page.locator("#export-message")).to_contain_text("9 images")
    with page.expect_download() as download:
        page.click("#export-file")
    assert download.value.suggested_filename.startswith("spring-")
    with zipfile.ZipFile(download.value.path()) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        manifest = json.loads(archive.read(names["manifest.json"]))
        samples = archive.read(names["samples.jsonl"]).decode().splitlines()
    assert manifest["name"] == "spring"
    assert len(samples) == manifest["counts"]["samples"] == 9
    with page.expect_download() as download:
        page.click("#data-csv")
    assert len(Path(download.value.path()).read_text().splitlines()) == 1 + 9

    page.fill("#export-name input, #export-name textarea", "no good/name")
    page.click("#export-start")
    expect(page.locator("#export-message [role=alert]")).to_contain_text("cannot be an export")

    # What was exported holds everybody's names: others cannot have it by its address either.
    packed = next((team_server.data / "exports").glob("*.zip")).resolve()
    for name in ("boss", "vera"):
        other = sign_in(name)
        answer = other.request.get(f"{team_server.url}/gradio_api/file={packed}")
        assert answer.status in (403, 404)


def test_an_annotator_sees_themselves_alone(sign_in: SignIn) -> None:
    page = sign_in("zoe")
    people = page.locator("#data-annotators")
    expect(people).to_contain_text("Your own figures")
    expect(people.locator("tbody tr")).to_have_count(1)
    expect(page.locator("#data-agreement")).to_contain_text("Krippendorff")
    expect(page.locator("#data-export")).to_be_hidden()
    assert "roberta" not in page.content()


def test_a_viewer_sees_counts_alone(sign_in: SignIn) -> None:
    page = sign_in("vera")
    expect(page.locator("#data-annotators")).to_contain_text("Who may annotate sees their own figures")
    expect(page.locator("#data-charts svg.marks")).to_have_count(1)
    expect(page.locator("#data-export")).to_be_hidden()
    assert "roberta" not in page.content() and ">zoe<" not in page.content()
