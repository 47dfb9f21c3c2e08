"""The Data tab in a browser: figures of what people said, and an export that arrives."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from app_server import PASSWORD, Server, serve_team
from hub_server import Hub
from playwright.sync_api import Page, expect
from seeded_cases import add, say

from annotation.store import Store
from annotation.users import Role
from m3agiqa.aspects import Aspect

BIASES = {"zoe": 0.4, "roberta": -0.4}

SignIn = Callable[[str], Page]


def score(data: Path, number: int) -> None:
    """Put in an image, whose quality zoe and roberta score."""
    store = Store.open(f"sqlite:///{data / 'annotations.db'}", data / "images")
    item = add(store, number, f"prompt {number}")
    for name, bias in BIASES.items():
        scores = {Aspect.QUALITY: 2 + 0.2 * number + bias}
        say(store, item, scores, name, description="It is fine.", seconds=20.0)
    store.close()


@pytest.fixture(scope="module")
def team_server(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Server]:
    """The app for a team whose zoe and roberta have scored eight images."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(8):
        score(folder / "data", number)
    roles = {"zoe": Role.ANNOTATOR, "boss": Role.ADMIN, "vera": Role.VIEWER}
    with serve_team(folder, hub.environment, **roles) as running:
        yield running


@pytest.fixture
def sign_in(new_page: Callable[..., Page], team_server: Server) -> SignIn:
    """Opens the Data tab for one of the team, in a browser of their own."""

    def open_tab(name: str) -> Page:
        page = new_page(url=team_server.url, login=name, tab="Data")
        expect(page.locator("#data-summary")).to_contain_text("Corrections")
        return page

    return open_tab


def test_an_admin_sees_everybody_and_exports(sign_in: SignIn, team_server: Server, hub: Hub) -> None:
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
    expect(page.locator("#export-message")).to_contain_text("with 18 corrections of 2 annotators")
    with page.expect_download() as download:
        page.click("#export-file")
    assert download.value.suggested_filename.startswith("spring-")
    with zipfile.ZipFile(download.value.path()) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        manifest = json.loads(archive.read(names["manifest.json"]))
        samples = archive.read(names["samples.jsonl"]).decode().splitlines()
    assert manifest["name"] == "spring"
    assert len(samples) == manifest["counts"]["samples"] == 9
    made, repository = Path(download.value.suggested_filename).stem, page.get_by_label("Data set on the")
    repository.fill("spring")
    page.click("#export-push")
    expect(page.locator("#export-message [role=alert]")).to_contain_text("give it as organisation/name")
    expect(repository).to_have_value("spring")
    repository.fill("team/spring")
    page.click("#export-push")
    done = page.locator("#export-message .done")
    expect(done).to_contain_text(f"Pushed {made} to {hub.url}/team/spring/commit/")
    assert made in hub.names["team/spring"] and hub.private["team/spring"]
    pushed = hub.newest("team/spring")
    assert (pushed / "samples.jsonl").read_text().splitlines() == samples
    assert len(list((pushed / "images").iterdir())) == 9

    with page.expect_download() as download:
        page.click("#data-csv")
    assert len(Path(download.value.path()).read_text().splitlines()) == 1 + 9

    page.fill("#export-name input, #export-name textarea", "no good/name")
    page.click("#export-start")
    expect(page.locator("#export-message [role=alert]")).to_contain_text("cannot be an export")

    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("link", name="Images").click()
    last = page.locator("#data-images li").last
    expect(page.get_by_role("button", name="Queue all 9 matching images")).to_be_visible()
    last.get_by_role("checkbox").check()
    page.get_by_role("button", name="Queue 1 ticked image").click()
    expect(page.locator("#images-queued")).to_contain_text("1 image is in the annotation queue")
    expect(page.locator("#images-queued")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Queue all 9 matching images")).to_be_visible()
    expect(page.locator("#data-images").get_by_role("checkbox", checked=True)).to_have_count(0)
    expect(last).to_contain_text("scored by 2, 1 wanted")
    page.fill("#images-text :is(input, textarea)", "prompt 5")  # of which the tick must not become one
    expect(page.get_by_role("button", name="Queue 1 matching image")).to_be_visible()
    page.fill("#images-text :is(input, textarea)", "")
    expect(page.get_by_role("button", name="Queue all 9 matching images")).to_be_visible()
    last.get_by_role("button").click()
    expect(page.locator("#images-detail img")).to_be_in_viewport()
    page.locator("#images-detail").get_by_role("button", name="Close").click()
    expect(page.locator("#images-detail img")).to_be_hidden()
    expect(last.get_by_role("button")).to_be_focused()
    last.get_by_role("button").click()
    expect(page.locator("#images-detail img")).to_be_in_viewport()
    parts = page.locator("#data-export .block")
    assert not parts.evaluate_all("blocks => blocks.filter(each => each.scrollWidth > each.clientWidth)")

    # What was exported holds everybody's names: others cannot have it by its address either.
    packed = next((team_server.data / "exports").glob("*.zip")).resolve()
    for name in ("boss", "vera"):
        with httpx.Client(base_url=team_server.url) as other:
            assert other.post("/login", data={"username": name, "password": PASSWORD}).is_success
            assert other.get("/config").is_success
            assert other.get(f"/gradio_api/file={packed}").status_code in (403, 404)


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
