"""Which image of several of one prompt people like best: saved once, superseded by later picks, undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from annotation.store.corrections import MAX_TOKEN
from annotation.store.log import log_action
from annotation.store.models import ComparedItem, Item, ModelVersion, Preference, PreferenceWithdrawal
from annotation.store.people import annotator_named
from m3agiqa.errors import InputError


def save_preference(
    session: Session,
    token: str,
    annotator: str,
    preferred: int,
    overall: Mapping[int, float],
    model: ModelVersion,
) -> int:
    """Save that a person likes one of the items best, whose model's scores are `overall`. Returns the id.

    What is sent twice under the same token is saved once. Raises InputError for fewer than two items, and
    for a token of something else.
    """
    if not token or len(token) > MAX_TOKEN:
        raise InputError("This was sent without its token; reload the page and pick again.")
    if preferred not in overall or len(overall) < 2:
        raise InputError("A pick needs at least two different images; add another one.")
    person = annotator_named(session, annotator)
    known = session.scalar(select(Preference).where(Preference.token == token))
    if known is not None:
        same = {each.item_id for each in known.compared if each.preferred} == {preferred}
        if known.annotator_id != person.id or not same:
            raise InputError(
                "This was sent with the token of something else; reload the page and pick again."
            )
        return known.id
    row = Preference(
        token=token,
        annotator_id=person.id,
        model_version=model,
        compared=[
            ComparedItem(item_id=item, preferred=item == preferred, overall=score)
            for item, score in overall.items()
        ],
    )
    session.add(row)
    session.flush()
    log_action(session, annotator, "pick", preference=row.id, item=preferred, of=len(overall))
    return row.id


def withdraw_preference(session: Session, preference_id: int, annotator: str) -> None:
    """Undo a pick of one's own. Twice is the same as once.

    Raises InputError for one that does not exist or is somebody else's.
    """
    row = session.get(Preference, preference_id)
    if row is None:
        raise InputError(f"There is no pick #{preference_id} to undo.")
    if row.annotator_id != annotator_named(session, annotator).id:
        raise InputError(f"Pick #{preference_id} is somebody else's; only they can undo it.")
    if row.withdrawal is None:
        row.withdrawal = PreferenceWithdrawal()
        log_action(session, annotator, "undo pick", preference=row.id)
        session.flush()


def current_preferences(session: Session) -> list[Preference]:
    """The newest pick of each person among the same images, oldest first; without those that are undone."""
    rows = session.scalars(
        select(Preference)
        .where(~Preference.withdrawal.has())
        .order_by(Preference.id)
        .options(
            selectinload(Preference.annotator),
            selectinload(Preference.model_version),
            selectinload(Preference.compared).selectinload(ComparedItem.item).selectinload(Item.image),
            selectinload(Preference.compared).selectinload(ComparedItem.item).selectinload(Item.prompt),
        )
    )
    newest = {(row.annotator_id, frozenset(each.item_id for each in row.compared)): row for row in rows}
    return sorted(newest.values(), key=lambda row: row.id)


@dataclass(frozen=True)
class OrderAgreement:
    """How far the model's order is that of people's picks."""

    picks: int
    people: int
    firsts: int
    """Picks that the model had in the first place."""
    expected_firsts: float
    """How many these would be if the model guessed."""
    pairs: int
    """Of the pick with each other image."""
    agreed_pairs: float
    """Pairs in which the model has the pick higher; half a pair where it has both alike."""


def order_agreement(session: Session) -> OrderAgreement:
    """Over all current picks, each with the order of the model that was served then."""
    picks = current_preferences(session)
    firsts = pairs = 0
    agreed = expected = 0.0
    for pick in picks:
        own = next(each.overall for each in pick.compared if each.preferred)
        others = [each.overall for each in pick.compared if not each.preferred]
        firsts += own > max(others)
        expected += 1 / len(pick.compared)
        pairs += len(others)
        agreed += sum(1.0 if own > other else 0.5 if own == other else 0.0 for other in others)
    return OrderAgreement(
        len(picks), len({pick.annotator_id for pick in picks}), firsts, expected, pairs, agreed
    )
