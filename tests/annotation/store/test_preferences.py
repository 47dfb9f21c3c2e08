"""Picks of the best of several images: saved once, superseded, undone, audited; a database of before."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from older_database import rewind
from sqlalchemy import select

from annotation.store import Database, migrations
from annotation.store.items import model_version
from annotation.store.models import AuditEntry
from annotation.store.preferences import (
    OrderAgreement,
    current_preferences,
    order_agreement,
    save_preference,
    withdraw_preference,
)
from m3agiqa.errors import InputError

CARD = SimpleNamespace(title="scripted 1.0", digest="abc", learned_from="a script")

NewItem = Callable[..., int]
Pick = Callable[..., int]


@pytest.fixture
def pick(database: Database) -> Pick:
    """Saves a pick; the model's scores are 3.0, 2.0, 1.0 for the items in turn, unless given."""

    def save(
        preferred: int, items: list[int], who: str = "ann", token: str = "", scores=(3.0, 2.0, 1.0)
    ) -> int:
        overall = dict(zip(items, scores, strict=False))
        token = token or f"{who} {preferred} of {items}"
        return database.transact(
            lambda session: save_preference(
                session, token, who, preferred, overall, model_version(session, CARD)
            )
        )

    return save


def current(database: Database) -> list[tuple[str, int]]:
    with database.reading() as session:
        return [
            (each.annotator.name, next(one.item_id for one in each.compared if one.preferred))
            for each in current_preferences(session)
        ]


def test_a_pick_is_superseded_and_undone(database: Database, new_item: NewItem, pick: Pick) -> None:
    items = [new_item(number) for number in (1, 2, 3)]
    first = pick(items[0], items)
    assert pick(items[0], items) == first, "the same token: saved once"
    second = pick(items[2], items[::-1])  # in whatever order
    pick(items[1], items, who="bob")
    pick(items[0], items[:2])  # other images, so another question
    assert current(database) == [("ann", items[2]), ("bob", items[1]), ("ann", items[0])]
    for _ in range(2):
        database.transact(lambda session: withdraw_preference(session, second, "ann"))
    assert current(database) == [("ann", items[0]), ("bob", items[1]), ("ann", items[0])]
    with database.reading() as session:
        log = [(each.action, each.details["preference"]) for each in session.scalars(select(AuditEntry))]
    assert log == [("pick", first), ("pick", second), ("pick", 3), ("pick", 4), ("undo pick", second)]


def test_what_cannot_be_picked(database: Database, new_item: NewItem, pick: Pick) -> None:
    items = [new_item(number) for number in (1, 2)]
    number = pick(items[0], items)
    for wrong, sentence in (
        (lambda: pick(items[0], items[:1]), "A pick needs at least two different images"),
        (lambda: pick(items[1], items, token=f"ann {items[0]} of {items}"), "the token of something else"),
        (lambda: pick(items[0], items, token="x" * 65), "sent without its token"),
        (
            lambda: database.transact(lambda session: withdraw_preference(session, number, "bob")),
            "is somebody else's; only they can undo it",
        ),
        (lambda: database.transact(lambda session: withdraw_preference(session, 99, "ann")), "no pick #99"),
    ):
        with pytest.raises(InputError, match=sentence):
            wrong()
    assert current(database) == [("ann", items[0])]


def test_agreement_with_the_models_order(database: Database, new_item: NewItem, pick: Pick) -> None:
    items = [new_item(number) for number in (1, 2, 3)]
    with database.reading() as session:
        assert order_agreement(session) == OrderAgreement(0, 0, 0, 0.0, 0, 0.0)
    pick(items[0], items)
    pick(items[1], items, who="bob")  # over the third, under the first
    pick(items[1], items[:2], scores=(2.0, 2.0))  # a draw is no first place
    with database.reading() as session:
        agreement = order_agreement(session)
    assert agreement == OrderAgreement(3, 2, 1, pytest.approx(2 / 3 + 1 / 2), 5, 3.5)


def test_a_database_of_before_takes_picks(database: Database, new_item: NewItem, pick: Pick) -> None:
    items = [new_item(number) for number in (1, 2)]

    with database.engine.begin() as connection:
        rewind(connection, "0003")
        migrations.upgrade(connection)
    pick(items[1], items)
    assert current(database) == [("ann", items[1])]
