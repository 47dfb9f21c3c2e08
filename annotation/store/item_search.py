"""Items by what is written of them and by how far their annotation is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, true
from sqlalchemy.orm import Session

from annotation.store.current_responses import current_corrections
from annotation.store.items import DEMO_SOURCE
from annotation.store.models import Assignment, Generator, Image, Item, Prompt, QueueEntry, WorkState


class ItemState(StrEnum):
    """How far the annotation of an item is."""

    ALL = "all"
    OPEN = "open"
    """In the queue, and people are wanted still."""
    DONE = "done"
    """In the queue, and as many people are through as were wanted."""
    NOT_QUEUED = "not queued"


@dataclass(frozen=True)
class ItemSummary:
    """An item without anybody's answers."""

    id: int
    file: str
    """Path within the folder of image files."""
    name: str
    """What its first owner called the file."""
    width: int
    height: int
    prompt: str
    generator: str | None
    source: str
    people: int
    """How many have said something of it."""
    wanted: int | None
    """How many annotators the queue wants; None outside of it."""


@dataclass(frozen=True)
class ItemSearch:
    """Which items are wanted."""

    text: str = ""
    """In prompt, file name, generator or source."""
    state: ItemState = ItemState.ALL
    with_uploads: bool = False
    """Also what visitors have uploaded and nobody has put into the queue: it is shown to admins alone."""


def search_items(
    session: Session, search: ItemSearch, offset: int, limit: int
) -> tuple[list[ItemSummary], int]:
    """Items, newest first, and how many there are."""
    query = _matching(_summaries(), search).order_by(Item.id.desc()).offset(offset).limit(limit)
    count = session.scalar(_matching(_joined(select(func.count(Item.id))), search)) or 0
    return [ItemSummary(**row) for row in session.execute(query).mappings()], count


def item_summary(session: Session, search: ItemSearch, item_id: int) -> ItemSummary | None:
    """None if there is no such item among those that are searched."""
    query = _matching(_summaries(), search).where(Item.id == item_id)
    row = session.execute(query).mappings().one_or_none()
    return None if row is None else ItemSummary(**row)


def matching_items(session: Session, search: ItemSearch) -> list[int]:
    """Ids of all that `search_items` would give."""
    return list(session.scalars(_matching(_joined(select(Item.id)), search)))


def _summaries() -> Select:
    current = current_corrections().subquery()
    people = select(func.count(current.c.annotator_id.distinct())).where(current.c.item_id == Item.id)
    return _joined(
        select(
            Item.id,
            Image.file,
            Image.name,
            Image.width,
            Image.height,
            Prompt.text.label("prompt"),
            Generator.name.label("generator"),
            Item.source,
            people.scalar_subquery().label("people"),
            QueueEntry.overlap.label("wanted"),
        )
    )


def _joined(query: Select) -> Select:
    return (
        query.select_from(Item)
        .join(Item.image)
        .join(Item.prompt)
        .outerjoin(Item.generator)
        .outerjoin(QueueEntry, QueueEntry.item_id == Item.id)
    )


def _matching(query: Select, search: ItemSearch) -> Select:
    text = search.text.strip()
    columns = (Prompt.text, Image.name, Generator.name, Item.source)
    has_text = or_(*(column.icontains(text, autoescape=True) for column in columns))
    shown = or_(Item.source != DEMO_SOURCE, QueueEntry.item_id.is_not(None))
    return query.where(
        has_text if text else true(), true() if search.with_uploads else shown, _is_in(search.state)
    )


def _is_in(state: ItemState) -> ColumnElement[bool]:
    done = (
        select(func.count())
        .where(
            Assignment.item_id == Item.id, Assignment.slot.is_not(None), Assignment.state == WorkState.DONE
        )
        .scalar_subquery()
    )
    match state:
        case ItemState.OPEN:
            return and_(QueueEntry.item_id.is_not(None), done < QueueEntry.overlap)
        case ItemState.DONE:
            return and_(QueueEntry.item_id.is_not(None), done >= QueueEntry.overlap)
        case ItemState.NOT_QUEUED:
            return QueueEntry.item_id.is_(None)
        case ItemState.ALL:
            return true()
