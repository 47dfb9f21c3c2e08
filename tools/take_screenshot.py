"""Takes docs/screenshot.png: the app after it has assessed an example. `python tools/take_screenshot.py`

Needs a Chromium: the system's, or `playwright install chromium`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "screenshot.png"
PORT = 7870
PATIENCE = 300_000  # milliseconds; a first start downloads the model


def wait_for_server(app: subprocess.Popen) -> None:
    """Until the app accepts connections."""
    while app.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("The app did not start.")


def take(target: Path = TARGET, theme: str = "light", width: int = 1280) -> None:
    """Assess the first example and photograph the whole page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=args)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{PORT}/?__theme={theme}")
        page.click(".example >> nth=0")
        page.wait_for_selector("#image img")
        page.click("#assess")
        page.wait_for_selector("#download")
        page.wait_for_timeout(1000)  # until the gauges have grown
        page.screenshot(path=target, full_page=True)
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(PORT), "M3AGIQA_DATA": data}
        app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment)
        try:
            wait_for_server(app)
            take()
        finally:
            app.terminate()
            app.wait()


if __name__ == "__main__":
    main()
