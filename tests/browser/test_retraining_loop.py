"""The loop, closed in the browser: from people's scores to the answers of the promoted model."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from app_server import serve_scripted
from PIL import Image
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.items import add_item
from m3agiqa.aspects import COMMON_SCALE, Aspect

NUMBERS = range(32, 44)  # of images; the prompts' hashes hold out two, and ten are the fewest to learn from
PEOPLE = {"ada": 4.6, "ben": 4.2}  # who like what the shipped model takes for poor
RETRAINING_TIMEOUT = 300_000  # milliseconds; the default model looks at all images, twice


def noise(path: Path, number: int) -> Path:
    pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def correct(settings: Settings, folder: Path) -> None:
    """All people score the quality of all images."""
    store = Store.open(settings.database_url, settings.images)
    stored = [store.images.add(noise(folder / f"{n}.png", n), f"{n}.png") for n in NUMBERS]

    def annotate(session: Session) -> None:
        for number, image in zip(NUMBERS, stored, strict=True):
            item, _ = add_item(session, image, f"noise number {number}", "noise")
            for name, score in PEOPLE.items():
                response = AspectResponse(Aspect.QUALITY, score - number % 3 / 10, COMMON_SCALE)
                save(session, NewSubmission(f"{name}-{number}", item.id, name, (response,)))

    store.database.transact(annotate)
    store.close()


def test_from_a_click_to_the_answers_of_the_promoted_model(
    new_page: Callable[..., Page], tmp_path: Path
) -> None:
    settings = Settings(data=tmp_path / "data")
    correct(settings, tmp_path)
    with serve_scripted(tmp_path / "log.txt", M3AGIQA_RUNS=str(tmp_path / "runs")) as server:
        page = new_page(url=server.url)
        page.get_by_role("tab", name="Models").click()
        panel = page.locator("#retraining")
        expect(panel.get_by_role("row", name="Quality")).to_contain_text("24")
        panel.get_by_role("button", name="Retrain from 24 new corrections").click()
        expect(panel).to_contain_text("Retraining, started by local on")
        page.reload()
        page.get_by_role("tab", name="Models").click()
        expect(panel.get_by_role("button", name="Cancel")).to_be_visible()
        expect(panel).to_contain_text("has made corrected-", timeout=RETRAINING_TIMEOUT)

        card = page.locator("article[data-model^=corrected-]")
        expect(card).to_contain_text("Not better: quality, ")  # two images are too few to know
        card.get_by_role("button", name="Images that changed most").click()
        changed = card.locator(".changed li").first
        expect(changed.locator("img")).to_be_visible()
        number = re.search(r"noise number (\d+)", changed.inner_text())[1]
        before, after = map(
            float, re.search(r"Quality: ([\d.]+) .*→ ([\d.]+) ", changed.inner_text()).groups()
        )
        assert after > before + 0.5
        card.get_by_role("button", name="into service").click()
        card.get_by_role("button", name="into service all the same").click()
        expect(card.locator(".in-service")).to_be_visible()

        page.get_by_role("tab", name="Assess").click()
        page.set_input_files("#image input[type=file]", tmp_path / f"{number}.png")
        expect(page.locator("#image img")).to_be_visible()
        page.locator("#prompt textarea").fill(f"noise number {number}")
        page.locator("#assess").click()
        expect(page.locator("#card-quality .mos")).to_contain_text(f"{after:.1f} of 1–5")
