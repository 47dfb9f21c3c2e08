"""The queue of items to annotate: who gets which one next, and how far everybody is.

An item has as many slots as it shall have annotators (its overlap). A person who is handed the item leases
one of them; saving makes it theirs for good, while skipping it, or a lease that runs out, leaves it to
somebody else. Who saves when all slots are taken, because they came back late, has done the item all the
same, and moves into the next slot that is given up. Calibration images (those with known answers) have no
slots: everybody is to answer them, so they come in between, beside the order of the others.

Who changes an item's slots locks its entry first, so that two people never share them out at once. Nobody
waits for an entry while holding a lock on a later one (by item id), so that transactions do not deadlock.
PostgreSQL keeps the lock on an entry that a query has locked and then left out, because it no longer fits:
`_next_free` gives such locks back before it waits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import ColumnElement, Select, case, exists, func, insert, select, update
from sqlalchemy.orm import Session, selectinload

from annotation.settings import MOST_ANNOTATORS
from annotation.store import items
from annotation.store.database import query_chunks, storable
from annotation.store.informative import most_informative
from annotation.store.models import (
    Annotator,
    Assessment,
    Assignment,
    GoldAnswer,
    Item,
    QueueEntry,
    WorkState,
    now,
)
from annotation.store.people import annotator_named
from m3agiqa.errors import InputError

MAX_LEASES = 10
"""Items in the hands of one person."""
LEASE_DURATION = timedelta(minutes=30)
"""How long an item stays with a person who does not ask for anything any more."""


class QueueOrder(StrEnum):
    """Which of the free items comes next."""

    RANDOM = "random"
    UNCERTAIN = "uncertain first"
    INFORMATIVE = "most informative first"
    LEAST = "least annotated first"


class Pool(StrEnum):
    """Which items a person wants to see."""

    ALL = "all"
    IMPORTED = "imported"
    DEMO = items.DEMO_SOURCE


@dataclass(frozen=True)
class Progress:
    """How much is done. Calibration images count among a person's own items only."""

    mine: int
    """Items that this person has finished."""
    left: int
    """Items that this person holds or may still be given."""
    done: int
    """Slots of all items that anybody has finished."""
    total: int
    """Slots of all items."""
    skipped: int
    """Items that this person has skipped."""


# --- filling it --------------------------------------------------------------------------------


def enqueue(session: Session, item_ids: Iterable[int], overlap: int) -> int:
    """Ask for `overlap` annotators of each item, and never for fewer than before.

    Gives how many items are new in the queue. Raises InputError if the overlap is below 1 or above
    MOST_ANNOTATORS.
    """
    if not 1 <= overlap <= MOST_ANNOTATORS:
        raise InputError(
            f"An image needs at least 1 annotator and at most {MOST_ANNOTATORS}; the overlap asked for is "
            f"{overlap}."
        )
    return sum(_enqueue(session, ids, overlap) for ids in query_chunks(item_ids))


def _enqueue(session: Session, item_ids: list[int], overlap: int) -> int:
    known = set()
    for entry in session.scalars(_locked(QueueEntry.item_id.in_(item_ids))):
        entry.overlap = max(entry.overlap, overlap)
        known.add(entry.item_id)
    new = [item_id for item_id in item_ids if item_id not in known]
    if new:
        doubts = _uncertainties(session, new)
        session.execute(
            insert(QueueEntry),
            [
                {
                    "item_id": item_id,
                    "overlap": overlap,
                    "order": random.random(),
                    "uncertainty": doubts.get(item_id, 0.0),
                }
                for item_id in new
            ],
        )
    done_without_slot = select(Assignment.item_id).where(
        Assignment.item_id.in_(item_ids),
        Assignment.state == WorkState.DONE,
        Assignment.slot.is_(None),
    )
    for item_id in session.scalars(done_without_slot.distinct()).all():
        _settle(session, item_id, now())
    return len(new)


def _uncertainties(session: Session, item_ids: list[int]) -> dict[int, float]:
    latest = (
        select(func.max(Assessment.id)).where(Assessment.item_id.in_(item_ids)).group_by(Assessment.item_id)
    )
    assessments = session.scalars(
        select(Assessment).where(Assessment.id.in_(latest)).options(selectinload(Assessment.aspects))
    )
    return {assessment.item_id: assessment.uncertainty for assessment in assessments}


# --- working on it -----------------------------------------------------------------------------


def take(
    session: Session,
    annotator: str,
    count: int = 1,
    order: QueueOrder = QueueOrder.RANDOM,
    pool: Pool = Pool.ALL,
    gold_every: int = 10,
    at: datetime | None = None,
) -> list[int]:
    """Ids of up to `count` items for a person to work on; fewer if there are no more.

    Items that they lease already come first, in the order in which they got them, and stay theirs for another
    half hour. Items that others are taking at this moment are left out unless there is nothing else at all.
    `gold_every`: one item in about so many is a calibration image, 0 for none; `at`: the moment
    (default: now).
    """
    at = at or now()
    annotator_id = _lock_annotator(session, annotator)
    held = _held(session, annotator_id)
    if held:
        session.execute(
            update(Assignment)
            .where(Assignment.annotator_id == annotator_id, Assignment.item_id.in_(held))
            .values(held_until=at + LEASE_DURATION)
        )
    has_locks = _free_lapsed(session, annotator_id, at) or bool(held)
    if len(held) >= count:
        return held[:count]
    free = _ordered(session, _free(annotator_id, pool), order)
    while len(held) < count:
        item_id = _due_gold(session, annotator_id, gold_every)
        if item_id is None:
            item_id = _next_free(session, free, wait=not has_locks)
        if item_id is None:
            break
        _settle(session, item_id, at, annotator_id, WorkState.HELD)
        held.append(item_id)
        has_locks = True
    return held


def finish(session: Session, item_id: int, annotator: str, at: datetime | None = None) -> None:
    """The person has saved the item, whether or not they leased it; part of the transaction that saves."""
    annotator_id = annotator_named(session, annotator).id
    _settle(session, item_id, at or now(), annotator_id, WorkState.DONE)


def skip(session: Session, item_id: int, annotator: str, at: datetime | None = None) -> None:
    """The person does not want the item: somebody else shall have it. What is done stays done."""
    annotator_id = annotator_named(session, annotator).id
    _settle(session, item_id, at or now(), annotator_id, WorkState.SKIPPED)


def reopen(session: Session, item_id: int, annotator: str, at: datetime | None = None) -> bool:
    """The person goes back to an item that they finished or skipped; `take` gives it before what came later.

    False if others have taken all of its slots meanwhile, it is not in the queue, or they had never had it:
    then they do not lease it, but may still save it. Raises InputError if they lease MAX_LEASES others.
    """
    annotator_id = _lock_annotator(session, annotator)
    if session.get(Assignment, (item_id, annotator_id)) is None:
        return False
    others = set(_held(session, annotator_id, item_id)) - {item_id}
    if len(others) >= MAX_LEASES:
        raise InputError(
            f"You have {len(others)} images in your hands already; save or skip one of them before you go "
            "back to another."
        )
    return _settle(session, item_id, at or now(), annotator_id, WorkState.HELD)


def is_done(session: Session, item_id: int, annotator: str) -> bool:
    """Whether the person has finished the item."""
    work = (
        select(Assignment.item_id)
        .join(Annotator)
        .where(
            Assignment.item_id == item_id,
            Annotator.name == storable(annotator),
            Assignment.state == WorkState.DONE,
        )
    )
    return bool(session.scalar(work.exists().select()))


def release(session: Session, annotator: str, at: datetime | None = None) -> None:
    """The person gives up what they merely lease."""
    annotator_id = _lock_annotator(session, annotator)
    for item_id in _held(session, annotator_id):
        _settle(session, item_id, at or now(), annotator_id, None)


def progress(session: Session, annotator: str, pool: Pool = Pool.ALL) -> Progress:
    """How much this person and everybody have done; what is left is of the pool alone."""
    mine = dict(
        session.execute(
            select(Assignment.state, func.count())
            .join(Annotator)
            .where(Annotator.name == annotator)
            .group_by(Assignment.state)
        ).all()
    )
    calibration = select(GoldAnswer.item_id)
    taken, total = session.execute(
        select(
            func.coalesce(func.sum(QueueEntry.taken), 0), func.coalesce(func.sum(QueueEntry.overlap), 0)
        ).where(QueueEntry.item_id.not_in(calibration))
    ).one()
    held = session.scalar(
        select(func.count()).where(
            Assignment.state == WorkState.HELD,
            Assignment.slot.is_not(None),
            Assignment.item_id.not_in(calibration),
        )
    )
    annotator_id = session.scalar(select(Annotator.id).where(Annotator.name == storable(annotator))) or 0
    free = select(func.count()).select_from(_free(annotator_id, pool).subquery())
    return Progress(
        mine=mine.get(WorkState.DONE, 0),
        left=mine.get(WorkState.HELD, 0) + (session.scalar(free) or 0),
        done=taken - (held or 0),
        total=total,
        skipped=mine.get(WorkState.SKIPPED, 0),
    )


# --- how it works ------------------------------------------------------------------------------


def _lock_annotator(session: Session, annotator: str) -> int:
    """The annotator's id; until the transaction ends, requests from their other tabs wait."""
    annotator_id = annotator_named(session, annotator).id
    session.execute(select(Annotator.id).where(Annotator.id == annotator_id).with_for_update(key_share=True))
    return annotator_id


def _settle(
    session: Session,
    item_id: int,
    at: datetime,
    annotator_id: int | None = None,
    state: WorkState | None = None,
) -> bool:
    """Bring a person's work on an item into a state (None: given up), and share out its slots anew.

    Leases of others that have run out are given up on the way; without an annotator, that is all. Gives
    whether the work is in that state now: what is done is not skipped, and no slot may be left to lease.
    """
    is_gold = session.scalar(select(exists().where(GoldAnswer.item_id == item_id)))
    entry = None if is_gold else session.scalar(_locked(QueueEntry.item_id == item_id))
    assignments = select(Assignment).where(Assignment.item_id == item_id)
    work = {
        assignment.annotator_id: assignment
        for assignment in session.scalars(assignments.execution_options(populate_existing=True))
    }
    mine = None if annotator_id is None else work.get(annotator_id)
    if state is WorkState.SKIPPED and mine is not None and mine.state is WorkState.DONE:
        return False
    for assignment in list(work.values()):
        if (assignment is mine and state is None) or (assignment is not mine and _lapsed(assignment, at)):
            session.delete(work.pop(assignment.annotator_id))
    if annotator_id is not None and state is not None:
        if mine is None:
            items.require_item(session, item_id)
            turn = _next_turn(session, annotator_id)
            mine = work[annotator_id] = Assignment(
                item_id=item_id, annotator_id=annotator_id, slot=None, turn=turn
            )
            session.add(mine)
        mine.state, mine.held_until = state, at + LEASE_DURATION
        if state is WorkState.SKIPPED:
            mine.slot = None
    session.flush()  # an item's slots are unique: each is given up before somebody else gets it

    if is_gold:
        return True
    if entry is not None:
        _share_out(entry, sorted(work.values(), key=lambda assignment: assignment is not mine))
    if state is WorkState.HELD and mine is not None and mine.slot is None:
        session.delete(mine)
        return False
    return True


def _share_out(entry: QueueEntry, work: list[Assignment]) -> None:
    """Give slots that are free to those who work on the item without one, the first ones first."""
    without = [one for one in work if one.slot is None and one.state is not WorkState.SKIPPED]
    free = sorted(set(range(entry.overlap)) - {one.slot for one in work})
    for assignment, slot in zip(without, free, strict=False):
        assignment.slot = slot
    entry.taken = sum(one.slot is not None for one in work)


def _lapsed(assignment: Assignment, at: datetime) -> bool:
    """Whether somebody has held one of an item's slots for too long."""
    held = assignment.state is WorkState.HELD and assignment.slot is not None
    return held and assignment.held_until < at


def _next_free(session: Session, free: Select[int], wait: bool) -> int | None:
    """The first of some items of the queue that nobody has locked.

    `wait` for an item that somebody else has locked, if there is no other: only for who has locked none.
    """
    candidates = free.limit(1)
    with session.begin_nested() as savepoint:
        item_id = session.scalar(candidates.with_for_update(of=QueueEntry, skip_locked=True))
        if item_id is not None:
            return item_id
        savepoint.rollback()
    while wait and (item_id := session.scalar(candidates)) is not None:
        with session.begin_nested() as savepoint:
            session.execute(_locked(QueueEntry.item_id == item_id))
            if session.scalar(candidates.where(QueueEntry.item_id == item_id)) is not None:
                return item_id
            savepoint.rollback()
    return None


def _free(annotator_id: int, pool: Pool) -> Select[int]:
    """Items of a pool with a free slot that this person has had nothing to do with."""
    candidates = select(QueueEntry.item_id).where(
        QueueEntry.taken < QueueEntry.overlap,
        ~exists().where(Assignment.item_id == QueueEntry.item_id, Assignment.annotator_id == annotator_id),
        ~exists().where(GoldAnswer.item_id == QueueEntry.item_id),
    )
    if pool is Pool.ALL:
        return candidates
    from_demo = QueueEntry.item_id.in_(select(Item.id).where(Item.source == items.DEMO_SOURCE))
    return candidates.where(from_demo if pool is Pool.DEMO else ~from_demo)


ORDER_COLUMNS = {
    QueueOrder.RANDOM: (QueueEntry.order,),
    QueueOrder.UNCERTAIN: (QueueEntry.uncertainty.desc(), QueueEntry.order.desc()),
    QueueOrder.INFORMATIVE: (QueueEntry.order,),  # after those that `_ordered` puts first
    QueueOrder.LEAST: (QueueEntry.taken, QueueEntry.order),
}


def _ordered(session: Session, free: Select[int], order: QueueOrder) -> Select[int]:
    """Free items in an order; what no model has assessed comes at random after the most informative ones."""
    if order is QueueOrder.INFORMATIVE and (ranked := most_informative(session, free)):
        places = {item: place for place, item in enumerate(ranked)}
        free = free.order_by(case(places, value=QueueEntry.item_id, else_=len(ranked)))
    return free.order_by(*ORDER_COLUMNS[order])


def _due_gold(session: Session, annotator_id: int, gold_every: int) -> int | None:
    """A calibration image that this person has not had, if it is time for one.

    The distance from one to the next varies around `gold_every`, so that nobody can count them out.
    """
    if gold_every == 0:
        return None
    fresh = session.scalar(
        select(GoldAnswer.item_id)
        .where(
            ~exists().where(Assignment.item_id == GoldAnswer.item_id, Assignment.annotator_id == annotator_id)
        )
        .order_by(GoldAnswer.item_id)
        .limit(1)
    )
    if fresh is None:
        return None
    latest = session.scalar(
        select(Assignment.turn)
        .where(
            Assignment.annotator_id == annotator_id, exists().where(GoldAnswer.item_id == Assignment.item_id)
        )
        .order_by(Assignment.turn.desc())
        .limit(1)
    )
    half = gold_every // 2
    distance = random.Random(f"{annotator_id} {latest}").randint(gold_every - half, gold_every + half)
    return fresh if _next_turn(session, annotator_id) - (latest or 0) >= distance else None


def _free_lapsed(session: Session, annotator_id: int, at: datetime) -> bool:
    """Give up what others have held for too long. Whether any entry was locked for it."""
    lapsed = select(Assignment.item_id).where(
        Assignment.state == WorkState.HELD,
        Assignment.held_until < at,
        Assignment.slot.is_not(None),
        Assignment.annotator_id != annotator_id,
    )
    entries = session.scalars(_locked(QueueEntry.item_id.in_(lapsed)).with_for_update(skip_locked=True)).all()
    for entry in entries:
        _settle(session, entry.item_id, at)
    return bool(entries)


def _held(session: Session, annotator_id: int, also_locked: int | None = None) -> list[int]:
    """What the person leases, in the order in which they got it; nobody else can give it up meanwhile."""
    held = (
        select(Assignment.item_id)
        .where(Assignment.annotator_id == annotator_id, Assignment.state == WorkState.HELD)
        .order_by(Assignment.turn)
    )
    entries = QueueEntry.item_id.in_(held.order_by(None))
    if also_locked is not None:
        entries |= QueueEntry.item_id == also_locked
    session.execute(_locked(entries))
    return list(session.scalars(held))


def _next_turn(session: Session, annotator_id: int) -> int:
    return (
        session.scalar(select(func.max(Assignment.turn)).where(Assignment.annotator_id == annotator_id)) or 0
    ) + 1


def _locked(which: ColumnElement[bool]) -> Select[QueueEntry]:
    """Entries, locked until the transaction ends; SQLite's writers are alone anyway."""
    return (
        select(QueueEntry)
        .where(which)
        .order_by(QueueEntry.item_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
