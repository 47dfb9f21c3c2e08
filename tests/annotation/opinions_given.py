"""People who score images, for tests of what is made of their scores."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping

import numpy as np
from PIL import Image
from sqlalchemy.orm import Session

from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, SavedSubmission, latest_revision, save
from annotation.store.items import add_item
from m3agiqa.aspects import Aspect, MosScale

SCALE = MosScale(1.0, 5.0)
_TOKENS = (f"token {number}" for number in itertools.count())


def picture(store: Store, number: int, prompt: str | None = "a cat", **options: str) -> int:
    """An item with an image of its own; returns its id."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (number % 256, number // 256, 90)).save(file, "PNG")
    stored = store.images.add(file.getvalue(), f"{number}.png")
    options = {"source": "cats", **options}
    return store.database.transact(lambda session: add_item(session, stored, prompt, **options)[0].id)


def say(
    store: Store,
    annotator: str,
    item: int,
    scores: Mapping[Aspect, float],
    scale: MosScale = SCALE,
    agrees: bool = False,
    description: str | None = None,
    **options: object,
) -> SavedSubmission:
    """Save scores of an item's aspects; `options` are NewSubmission's."""

    def work(session: Session) -> SavedSubmission:
        said = tuple(
            AspectResponse(
                aspect,
                score,
                scale,
                description=description,
                agrees=agrees,
                revision=latest_revision(session, item, aspect, annotator) + 1,
            )
            for aspect, score in scores.items()
        )
        return save(session, NewSubmission(next(_TOKENS), item, annotator, said, **options))

    return store.database.transact(work)


def crowd(store: Store, items: int, biases: Mapping[str, float]) -> list[int]:
    """Items whose quality everybody scores, each with their bias; nobody errs. Returns the items' ids."""
    levels = np.linspace(2, 4, items)
    ids = [picture(store, number) for number in range(items)]
    for item, level in zip(ids, levels, strict=True):
        for name, bias in biases.items():
            say(store, name, item, {Aspect.QUALITY: round(float(level + bias), 1)}, description="Fine.")
    return ids
