"""Images with their prompts, and what models say of them."""

from __future__ import annotations

import hashlib

from sqlalchemy import select, update
from sqlalchemy.orm import Session, joinedload, selectinload

from annotation.store import exposures
from annotation.store.database import get_or_add, storable, storable_within
from annotation.store.image_files import StoredImage
from annotation.store.informative import states_as_bytes
from annotation.store.models import (
    AnswersOf,
    AspectAssessment,
    Assessment,
    Generator,
    Image,
    Item,
    ModelVersion,
    PooledStates,
    Prompt,
    QueueEntry,
)
from annotation.store.people import annotator_named
from m3agiqa import assessment as assessed
from m3agiqa.checkpoint.card import Card
from m3agiqa.conversation import clean_prompt
from m3agiqa.errors import InputError

DEMO_SOURCE = "demo"
"""Source of what visitors assess; any other is the name of an import."""

MAX_GENERATOR = 200  # characters
MAX_SOURCE = 200


def add_item(
    session: Session, image: StoredImage, prompt: str | None, source: str, generator: str | None = None
) -> tuple[Item, bool]:
    """The item of an image and a prompt, and whether it is new.

    A known one learns its generator if that was unknown, and an import takes over what the demo had.
    Raises InputError for a prompt, source or generator that is too long.
    """
    prompt_row = _prompt(session, prompt)
    source = storable_within(source, MAX_SOURCE, "name of the source")
    made_by = _generator(session, generator)
    item = session.scalar(
        select(Item).where(Item.image_sha256 == image.sha256, Item.prompt_id == prompt_row.id)
    )
    if item is not None:
        item.generator = item.generator or made_by
        if item.source == DEMO_SOURCE:
            item.source = source
        return item, False
    image_row = session.get(Image, image.sha256) or Image(**vars(image))
    item = Item(image=image_row, prompt=prompt_row, generator=made_by, source=source)
    session.add(item)
    session.flush()
    return item, True


def model_version(session: Session, card: Card) -> ModelVersion:
    """The model version of a checkpoint, added if it is new."""
    known_by = {"title": card.title, "digest": card.digest}
    return get_or_add(session, ModelVersion, known_by, learned_from=card.learned_from)


def record_assessment(
    session: Session,
    item_id: int,
    assessment: assessed.Assessment,
    card: Card,
    annotator: str | None = None,
) -> int:
    """Keep what a model said of an item, and who asked for it and reads it (None: the queue). Returns its id.

    Raises InputError if there is no such item.
    """
    require_item(session, item_id)
    row = Assessment(
        item_id=item_id,
        model_version=model_version(session, card),
        annotator_id=None if annotator is None else annotator_named(session, annotator).id,
        seconds=assessment.seconds,
        aspects=[
            AspectAssessment(
                aspect=result.aspect,
                description=storable(result.description),
                rating=result.rating,
                spoken_rating=result.spoken_rating,
                mos=result.mos,
                raw_mos=result.raw_mos,
                scale_low=result.scale.low,
                scale_high=result.scale.high,
                spread=result.spread,
            )
            for result in assessment.aspects.values()
        ],
    )
    session.add(row)
    session.flush()
    session.add_all(
        PooledStates(assessment_id=row.id, aspect=result.aspect, states=states_as_bytes(result.pooled))
        for result in assessment.aspects.values()
        if result.pooled
    )
    if annotator is not None:
        exposures.record(session, annotator, AnswersOf.MODEL, [(item_id, one.aspect) for one in row.aspects])
    session.execute(
        update(QueueEntry).where(QueueEntry.item_id == item_id).values(uncertainty=row.uncertainty)
    )
    return row.id


def latest_assessment(session: Session, item_id: int) -> Assessment | None:
    """The newest assessment of an item by any model; None if there is none."""
    return session.scalar(
        select(Assessment)
        .where(Assessment.item_id == item_id)
        .order_by(Assessment.id.desc())
        .limit(1)
        .options(selectinload(Assessment.aspects), joinedload(Assessment.model_version))
    )


def require_item(session: Session, item_id: int) -> Item:
    """Raises InputError if there is no such item."""
    item = session.get(Item, item_id)
    if item is None:
        raise InputError(f"There is no image number {item_id} in the database; reload the page.")
    return item


def _prompt(session: Session, prompt: str | None) -> Prompt:
    text = (clean_prompt(prompt) or "").replace("\0", "")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return get_or_add(session, Prompt, {"sha256": sha256}, text=text)


def _generator(session: Session, name: str | None) -> Generator | None:
    name = storable_within(name or "", MAX_GENERATOR, "generator's name")
    return get_or_add(session, Generator, {"name": name}) if name else None
