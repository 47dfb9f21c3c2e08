"""Which items are held out: a part that no model is trained on, so that models can be compared on it."""

from __future__ import annotations

import hashlib

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store.models import Item, Prompt

TEST_EVERY = 5
"""About every how manyth prompt is held out: four parts for training to one for test, as in the paper."""


def parts(session: Session) -> dict[int, str]:
    """ "train" or "test" for every item, by id, and ever the same one for the same database.

    Images of one prompt are in one part, and so are all prompts of one image. A hash of the prompt decides;
    of prompts that share an image, the earliest in the database decides for all of them.
    """
    groups = _Groups()
    items = {}
    for item_id, image, text in session.execute(
        select(Item.id, Item.image_sha256, Prompt.text).join(Item.prompt).order_by(Item.id)
    ):
        folded = " ".join(text.split()).casefold()
        items[item_id] = f"prompt {folded}" if folded else f"image {image}"
        groups.join(items[item_id], f"image {image}")
    return {item_id: _part(groups.first(key)) for item_id, key in items.items()}


def _part(key: str) -> str:
    digest = hashlib.sha256(key.encode()).digest()
    return "train" if int.from_bytes(digest[:8]) % TEST_EVERY else "test"


class _Groups:
    """Keys that are joined, directly or through others; each group goes by its earliest key."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}
        self._order: dict[str, int] = {}

    def join(self, one: str, other: str) -> None:
        firsts = sorted({self.first(one), self.first(other)}, key=self._order.__getitem__)
        self._above[firsts[-1]] = firsts[0]

    def first(self, key: str) -> str:
        self._order.setdefault(key, len(self._order))
        above = self._above.setdefault(key, key)
        while above != key:
            self._above[key] = self._above[above]
            key, above = above, self._above[above]
        return key
