"""The Models tab as an admin meets it."""

from collections.abc import Callable
from pathlib import Path

from app_server import Server
from hub_server import Hub
from playwright.sync_api import Page, expect

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.log import promoted
from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import Card, read_card, write_card
from m3agiqa.checkpoint.comparison import Agreement, Compared, Comparison
from m3agiqa.checkpoint.registry import register

LEARNED = "1,400 images; 160 of them were scored anew by people"


def candidate(folder: Path, models: Path) -> str:
    """A registered model that has nothing but a card; its name."""
    folder.mkdir()
    write_card(Card("nano", "0.2.0+annotations-3", "nano", LEARNED, "f", {}, {}), folder)
    rows = (
        Compared(
            "people", Aspect.QUALITY, 40, Agreement(0.41, 0.45, 1.2, -0.8), Agreement(0.7, 0.6, 0.5, 0.1)
        ),
        Compared("data", Aspect.QUALITY, 209, Agreement(0.66, 0.7, 0.5, 0), Agreement(0.65, 0.7, 0.52, 0.04)),
    )
    return register(folder, models, Comparison("nano 0.2.0", "nano 0.2.0+annotations-3", rows)).name


def test_an_admin_pushes_a_candidate_and_puts_it_into_service_without_a_restart(
    new_page: Callable[..., Page], scripted_server: Server, tmp_path: Path, hub: Hub
) -> None:
    settings = Settings(data=scripted_server.data)
    name = candidate(tmp_path / "made", settings.models)
    page = new_page(url=scripted_server.url)
    page.get_by_role("tab", name="Models").click()
    card = page.locator(f'article[data-model="{name}"]')
    expect(card).to_contain_text(LEARNED)
    expect(card.get_by_role("row", name="Quality, scored by people")).to_contain_text("0.410 → 0.700")

    card.get_by_role("button", name="to the Hub").click()
    repository = card.get_by_label("Repository on the Hugging Face Hub")
    expect(repository).to_be_focused()
    page.keyboard.type("judge")
    box = repository.bounding_box()
    page.set_viewport_size({"width": 1280, "height": int(box["y"] + box["height"]) + 1})
    page.keyboard.press("Enter")
    expect(page.locator("#models-message")).to_contain_text("'judge' is no repository on the Hub")
    expect(repository).to_have_value("judge")
    expect(repository).to_be_focused()
    expect(repository).to_be_in_viewport(ratio=0.9)  # a fraction of a pixel may be cut off
    repository.fill("team/judge")
    hub.may_answer_writing.clear()
    card.get_by_role("button", name="Push").click()
    card.get_by_role("button", name="into service").click()
    expect(page.locator("#models-message")).to_contain_text("Press again")  # which need not wait for the push
    hub.may_answer_writing.set()
    pushed = page.locator("#models-message .done")
    expect(pushed).to_contain_text(f"Pushed nano 0.2.0+annotations-3 to {hub.url}/team/judge/commit/")
    assert read_card(hub.newest("team/judge")).learned_from == LEARNED
    assert "nano-0.2.0+annotations-3" in hub.names["team/judge"]
    expect(card.get_by_role("button", name="to the Hub")).to_be_enabled()

    expect(card).to_contain_text("Not better: quality, 40 images: RMSE falls by 0.70")
    card.get_by_role("button", name="into service").press("Enter")
    expect(page.locator("#models-message")).to_contain_text("Press again")
    page.set_viewport_size({"width": 1280, "height": 300})  # the model is far down the page
    card.get_by_role("row", name="Quality, scored by people").scroll_into_view_if_needed()
    expect(page.locator("#models-message [role=alert]")).to_be_in_viewport(ratio=1)
    card.get_by_role("button", name="into service all the same").press("Enter")
    expect(card.locator(".in-service")).to_be_visible()
    expect(page.locator("#models-message")).to_have_text("")
    store = Store.open(settings.database_url, settings.images)
    with store.database.reading() as session:
        assert promoted(session) == name
    store.close()

    page.reload()
    page.get_by_role("tab", name="Models").click()
    expect(card.locator(".in-service")).to_be_visible()
    nano = page.locator('article[data-model="nano"]')
    nano.get_by_role("button", name="into service").click()
    expect(nano.locator(".in-service")).to_be_visible()
    expect(card.get_by_role("button", name="into service")).to_be_enabled()
    expect(card).to_contain_text("It was in service, so it cannot be discarded")
