"""What people have been shown of the model's and others' answers: a score given before that is blind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from sqlalchemy import Select, insert, select
from sqlalchemy.orm import Session

from annotation.store.current_responses import current_corrections
from annotation.store.database import Database, query_chunks, storable
from annotation.store.models import Annotator, AnswersOf, Correction, Exposure, Item, Prompt
from annotation.store.people import annotator_named
from m3agiqa.aspects import Aspect
from m3agiqa.conversation import clean_prompt
from m3agiqa.files import sha256

ItemAspect = tuple[int, Aspect]
"""An item's id, and the aspect of it that an answer is about."""


def note(
    database: Database,
    person: str,
    answers_of: AnswersOf,
    shown: Iterable[ItemAspect],
    scores: Mapping[ItemAspect, float] | None = None,
) -> None:
    """Record in a transaction of its own what a person is about to be shown; nothing for "", a visitor.

    `scores`: what they have told before, where that is not saved yet. Raises StoreError.
    """
    wanted = set(shown)
    if not person or not wanted:
        return
    with database.reading() as session:
        if wanted <= recorded(session, person, answers_of, {item for item, _ in wanted}):
            return
    database.transact(lambda session: record(session, person, answers_of, wanted, scores))


def record(
    session: Session,
    person: str,
    answers_of: AnswersOf,
    shown: Iterable[ItemAspect],
    scores: Mapping[ItemAspect, float] | None = None,
) -> None:
    """Record what a person is shown, with what they had said of it before; the first time counts.

    `scores`: what they had said, where that is not what is saved now.
    """
    wanted = set(shown)
    items = {item for item, _ in wanted}
    new = sorted(wanted - recorded(session, person, answers_of, items))
    if not new:
        return
    before = current_scores(session, person, items) if scores is None else scores
    annotator_id = annotator_named(session, person).id
    session.execute(
        insert(Exposure),
        [
            {
                "annotator_id": annotator_id,
                "item_id": item,
                "aspect": aspect,
                "answers_of": answers_of,
                "score": before.get((item, aspect)),
            }
            for item, aspect in new
        ],
    )


def recorded(session: Session, person: str, answers_of: AnswersOf, items: Iterable[int]) -> set[ItemAspect]:
    """What a person has been shown of these items."""
    seen: set[ItemAspect] = set()
    for chunk in query_chunks(items):
        query = _of(person, answers_of).where(Exposure.item_id.in_(chunk))
        seen |= set(session.execute(query.with_only_columns(Exposure.item_id, Exposure.aspect)).tuples())
    return seen


def is_blind(
    session: Session, person: str, item: int, scores: Mapping[ItemAspect, float], agreed: Iterable[Aspect]
) -> bool:
    """Whether a person had given all these scores before they were shown anybody's answers to them.

    `agreed`: the aspects where they adopt the model's answer, which is not blind where it was not shown
    afterwards. Other prompts of the same image count as well, for the aspects that do not need one.
    """
    image = select(Item.image_sha256).where(Item.id == item).scalar_subquery()
    rows = session.execute(
        _of(person)
        .join(Item, Item.id == Exposure.item_id)
        .where(Item.image_sha256 == image)
        .with_only_columns(Exposure.item_id, Exposure.aspect, Exposure.answers_of, Exposure.score)
    ).tuples()
    revealed = set()
    for shown_item, aspect, answers_of, before in rows:
        if shown_item != item and aspect.needs_prompt:
            continue
        if shown_item == item and answers_of is AnswersOf.MODEL:
            revealed.add(aspect)
        given = scores.get((item, aspect))
        stands = shown_item == item and before is not None and given == before
        if given is not None and not stands:
            return False
    return revealed.issuperset(agreed)


def all_scored(session: Session) -> set[ItemAspect]:
    """What anybody has scored."""
    scored = current_corrections().with_only_columns(Correction.item_id, Correction.aspect)
    return set(session.execute(scored).tuples())


def scored_by(session: Session, person: str) -> set[ItemAspect]:
    """What a person has scored."""
    return set(current_scores(session, person))


def of_images(session: Session, cases: Iterable[tuple[Path, str | None, Aspect]]) -> list[set[ItemAspect]]:
    """What the store has of each case, an image file, its prompt and an aspect.

    The prompt counts where the aspect needs one. Nothing for a file that cannot be read.
    """
    wanted = [(_digest_of(path), clean_prompt(prompt) or "", aspect) for path, prompt, aspect in cases]
    known: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for chunk in query_chunks(digest for digest, _, _ in wanted if digest):
        query = select(Item.image_sha256, Item.id, Prompt.text).join(Item.prompt)
        for digest, item, text in session.execute(query.where(Item.image_sha256.in_(chunk))).tuples():
            known[digest].append((item, text))
    return [
        {(item, aspect) for item, text in known.get(digest, ()) if text == own or not aspect.needs_prompt}
        for digest, own, aspect in wanted
    ]


def _digest_of(path: Path) -> str:
    """Of a file's content; "" if it cannot be read."""
    try:
        stat = path.stat()
        return _digest(path, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return ""


@lru_cache(maxsize=10_000)
def _digest(path: Path, modified: int, size: int) -> str:
    """Of a file; the other two tell when it has changed."""
    return sha256(path)


def _of(person: str, answers_of: AnswersOf | None = None) -> Select[Exposure]:
    query = (
        select(Exposure)
        .join(Annotator, Annotator.id == Exposure.annotator_id)
        .where(Annotator.name == storable(person))
    )
    return query if answers_of is None else query.where(Exposure.answers_of == answers_of)


def current_scores(
    session: Session, person: str, items: Iterable[int] | None = None
) -> dict[ItemAspect, float]:
    """What a person says of the items, or of all."""
    own = (
        current_corrections()
        .join(Annotator, Annotator.id == Correction.annotator_id)
        .where(Annotator.name == storable(person))
        .with_only_columns(Correction.item_id, Correction.aspect, Correction.score)
    )
    parts = () if items is None else query_chunks(items)
    queries = [own] if items is None else [own.where(Correction.item_id.in_(part)) for part in parts]
    return {
        (item, aspect): score for query in queries for item, aspect, score in session.execute(query).tuples()
    }
