"""Items to say something about, and a disk that is soon full."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from annotation.store import Database
from annotation.store.image_files import StoredImage
from annotation.store.items import add_item


@pytest.fixture
def new_item(database: Database) -> Callable[..., int]:
    """Adds an item with the image of some number, which nobody has to draw; returns its id."""

    def add(number: int = 1, prompt: str | None = "a cat", source: str = "cats", **options: str) -> int:
        sha256 = f"{number:064x}"
        image = StoredImage(sha256, f"{sha256[:2]}/{sha256}.png", f"{number}.png", 64, 48, 100 + number)
        return database.transact(lambda session: add_item(session, image, prompt, source, **options)[0].id)

    return add


@pytest.fixture
def item(new_item: Callable[..., int]) -> int:
    """Any item."""
    return new_item()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
