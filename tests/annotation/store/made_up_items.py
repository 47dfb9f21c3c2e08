"""Items whose images nobody has to draw."""

from __future__ import annotations

from annotation.store import Database
from annotation.store.image_files import StoredImage
from annotation.store.items import add_item


def made_up_item(
    database: Database, number: int = 1, prompt: str | None = "a cat", source: str = "cats", **options: str
) -> int:
    """Add an item with the image of that number; returns its id."""
    sha256 = f"{number:064x}"
    image = StoredImage(sha256, f"{sha256[:2]}/{sha256}.png", f"{number}.png", 64, 48, 100 + number)
    return database.transact(lambda session: add_item(session, image, prompt, source, **options)[0].id)
