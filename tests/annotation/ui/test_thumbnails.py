"""Small copies of images for lists."""

import io
from pathlib import Path

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from annotation.ui.thumbnails import THUMBNAIL_ROUTES, THUMBNAIL_SIDE, thumbnail_url


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=THUMBNAIL_ROUTES))


def test_a_small_copy_has_the_image_s_shape_and_colour(client: TestClient, tmp_path: Path) -> None:
    Image.new("RGB", (800, 400), (200, 30, 30)).save(tmp_path / "red.png")
    answer = client.get(thumbnail_url(tmp_path / "red.png"))
    image = Image.open(io.BytesIO(answer.content))
    assert answer.status_code == 200 and image.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2)
    assert image.getpixel((5, 5)) == pytest.approx((200, 30, 30), abs=6)


def test_only_images_at_addresses_that_were_given_out_are_served(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    urls = [thumbnail_url(tmp_path / "secret.txt"), thumbnail_url(tmp_path / "gone.png")]
    for url in [*urls, "/thumbnails/0", f"/thumbnails/..%2F{tmp_path.name}%2Fsecret.txt"]:
        answer = client.get(url)
        assert answer.status_code == 404 and b"secret" not in answer.content
    assert not any(tmp_path.name in url for url in urls)
