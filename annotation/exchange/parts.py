"""Which items are held out: a part that no model is trained on, so that models can be compared on it."""

from __future__ import annotations

import hashlib

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store.models import Item, Prompt
from m3agiqa.grouping import connected_groups, fold_prompt

TEST_EVERY = 5
"""About every how manyth prompt is held out: four parts for training to one for test, as in the paper."""


def parts(session: Session) -> dict[int, str]:
    """ "train" or "test" for every item, by id, and ever the same one for the same database.

    Images of one prompt are in one part, and so are all prompts of one image. A hash of the prompt decides;
    of prompts that share an image, the earliest in the database decides for all of them.
    """
    statement = select(Item.id, Item.image_sha256, Prompt.text).join(Item.prompt).order_by(Item.id)
    keys, images = {}, []
    for item_id, image, text in session.execute(statement):
        prompt = fold_prompt(text)
        keys[item_id] = f"prompt {prompt}" if prompt else f"image {image}"
        images.append(f"image {image}")
    groups = connected_groups(zip(keys.values(), images, strict=True))
    names = list(keys.values())
    return {item_id: _part(names[first]) for item_id, first in zip(keys, groups, strict=True)}


def _part(key: str) -> str:
    digest = hashlib.sha256(key.encode()).digest()
    return "train" if int.from_bytes(digest[:8]) % TEST_EVERY else "test"
