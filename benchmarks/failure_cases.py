"""How long the Failure cases tab takes in a browser with many cases.

    python benchmarks/failure_cases.py [--cases 3000] [--repeats 5]

Fills a database in a scratch folder, serves it with the tests' scripted model, and opens it in Chromium. Of
each action the time is printed from the click until the list has changed.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from sqlalchemy.orm import Session

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.items import add_item, record_assessment
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.assessment import AspectResult, Assessment

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")
GENERATORS = ("dalle", "flux", "glide", "midjourney")
PATIENCE = 60_000  # milliseconds


def fill(settings: Settings, cases: int) -> None:
    """Images of noise, each judged by a model and a person."""
    random = np.random.default_rng(0)
    store = Store.open(settings.database_url, settings.images)
    scratch = settings.data / "image.png"
    stored = []
    for _ in range(cases):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(scratch)
        stored.append(store.images.add(scratch, scratch.name))
    scratch.unlink()
    card = SimpleNamespace(title="first 1.0", digest="first", learned_from="noise")

    def judge(session: Session) -> None:
        for number, image in enumerate(stored):
            prompt = f"picture {number} of a {('cat', 'dog', 'red house')[number % 3]}"
            item, _ = add_item(session, image, prompt, "benchmark", GENERATORS[number % len(GENERATORS)])
            people, model = random.uniform(1, 5, 2)
            result = AspectResult(
                Aspect.QUALITY, "Noise.", COMMON_SCALE.rating(model), model, model, COMMON_SCALE
            )
            said = Assessment(None, prompt, {Aspect.QUALITY: result}, card.title, card.learned_from, 1.0)
            record_assessment(session, item.id, said, card)
            response = AspectResponse(Aspect.QUALITY, round(people, 1), COMMON_SCALE, description="Noise.")
            save(session, NewSubmission(f"token {number}", item.id, "ann", (response,)))

    store.database.transact(judge)
    store.close()


def measure(page: Page, cases: int, repeats: int) -> None:
    def timed(name: str, act: Callable[[], object], is_done: str) -> float:
        before = time.monotonic()
        act()
        page.wait_for_function(is_done, timeout=PATIENCE)
        return time.monotonic() - before

    def first() -> str:
        return page.locator("#failures-list button[data-case]").first.get_attribute("data-case") or ""

    def changes(name: str, act: Callable[[], object]) -> float:
        shown = "document.querySelector('#failures-list button[data-case]')?.dataset.case"
        return timed(name, act, f"() => ({shown} ?? {first()!r}) !== {first()!r}")

    def choose(control: str, option: str) -> Callable[[], object]:
        page.click(f"#failures-{control} input")
        return page.get_by_role("option", name=option, exact=True).click

    opened = timed(
        "open",
        page.get_by_role("tab", name="Failure cases").click,
        "() => document.querySelector('#failures-list li')",
    )
    times: dict[str, list[float]] = {"filter": [], "sort": [], "page": [], "open a case": []}
    for _ in range(repeats):
        for side in ("Under", "Over"):
            times["filter"].append(changes("filter", page.get_by_role("radio", name=side).check))
        page.get_by_role("radio", name="Any").check()
        page.wait_for_timeout(2000)
        for order in ("Smallest error first", "Largest error first"):
            times["sort"].append(changes("sort", choose("order", order)))
        for button in ("Next", "Previous"):
            turn = page.locator(".pages").get_by_role("button", name=button).click
            times["page"].append(changes("page", turn))
        case = page.locator("#failures-list li button").nth(3)
        key = case.get_attribute("data-case")
        is_open = f"() => document.querySelector('#failures-detail .failure')?.dataset.case === {key!r}"
        times["open a case"].append(timed("open a case", case.click, is_open))
    sys.stdout.write(f"{cases:,} cases; opening the tab {opened:.2f} s\n")
    for name, seconds in times.items():
        sys.stdout.write(f"{name}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        settings = Settings(data=Path(folder))
        fill(settings, args.cases)
        environment = {"M3AGIQA_DATA": folder, "GRADIO_SERVER_PORT": str(port)}
        server = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "scripted_app.py"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(300):
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM if CHROMIUM.exists() else None, args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1366, "height": 768})
            page.goto(address)
            page.locator("#assess:enabled").wait_for(timeout=PATIENCE)
            measure(page, args.cases, args.repeats)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
