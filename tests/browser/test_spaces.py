"""The app as Hugging Face Spaces run it, up to the sign-in page of huggingface.co itself."""

import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

from app_server import serve_scripted
from itsdangerous import TimestampSigner
from playwright.sync_api import BrowserContext, Page, expect

SECRET = "the space's own"
SPACE = {
    "SYSTEM": "spaces",
    "SPACE_ID": "somebody/studio",
    "OAUTH_CLIENT_ID": "client",
    "OAUTH_CLIENT_SECRET": SECRET,
    "OAUTH_SCOPES": "openid profile",
    "OPENID_PROVIDER_URL": "https://huggingface.co",
}


def sign_in(context: BrowserContext, url: str, name: str, secret: str) -> None:
    """The cookie that Gradio leaves when somebody comes back from Hugging Face's sign-in page."""
    user = {"preferred_username": name, "name": name, "profile": "", "picture": ""}
    session = {"oauth_info": {"userinfo": user, "expires_at": int(time.time()) + 3600}}
    signer = TimestampSigner(hashlib.sha256(f"{secret}-v4".encode()).hexdigest())
    value = signer.sign(b64encode(json.dumps(session).encode())).decode()
    context.add_cookies([{"name": "session", "value": value, "url": url}])


def assess_as_program(page: Page, url: str, picture: Path) -> str:
    """The last event of a call with the page's cookies."""
    file = {"name": picture.name, "mimeType": "image/png", "buffer": picture.read_bytes()}
    [path] = page.request.post(f"{url}/gradio_api/upload", multipart={"files": file}).json()
    data = {"image": {"path": path, "meta": {"_type": "gradio.FileData"}}}
    call = f"{url}/gradio_api/call/v2/assess"
    event = page.request.post(call, data=data).json()["event_id"]
    return page.request.get(f"{call}/{event}").text().strip().rpartition("event: ")[2]


def test_the_public_assesses_and_who_signs_in_corrects(
    new_page: Callable[..., Page], picture: Path, tmp_path: Path
):
    # On Spaces, Gradio starts a server for apps that are edited there; it may lack its package, or its port.
    settings = {"M3AGIQA_ADMINS": "boss", "M3AGIQA_QUOTA": "1"}
    with serve_scripted(tmp_path / "log.txt", others_may_fail=True, **settings, **SPACE) as space:
        page = new_page(url=space.url)
        # Programs have the visitor's own sign-in; of all who have none, one image an hour is judged.
        for secret, role, answer in (
            ("", "", "complete"),
            ("forged", "", "used up"),
            (SECRET, "annotator", "complete"),
        ):
            if secret:
                sign_in(page.context, space.url, "ann", secret)
                page.reload()
            assert answer in assess_as_program(page, space.url, picture)
            page.set_input_files("#image input[type=file]", picture)
            expect(page.locator("#image img")).to_be_visible()
            page.click("#assess")
            card = page.locator("#card-quality")
            if role:
                expect(page.locator("#who")).to_have_text("Signed in as ann (annotator)")
                expect(page.locator("#sign-in")).to_have_text("Logout (ann)")
                card.get_by_role("button", name="This is right").click()
                expect(card.locator(".saved")).to_be_visible()
            else:
                expect(page.locator("#sign-in")).to_have_text("Sign in with Hugging Face")
                expect(card.locator(".hint")).to_have_text("Sign in as an annotator to correct this.")
        expect(page.locator("#storage-warning [role=alert]")).to_be_empty()
        sign_in(page.context, space.url, "boss", SECRET)
        page.reload()
        expect(page.locator("#storage-warning")).to_contain_text("only until it restarts")
        page.close()
