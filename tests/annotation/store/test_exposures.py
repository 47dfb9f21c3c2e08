"""What people have been shown, and which of their scores are blind because of that."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, text

from annotation.store import Database, exposures, migrations
from annotation.store import models as m
from annotation.store.models import AnswersOf, Base
from m3agiqa.aspects import Aspect

Q, C, A = Aspect


def is_blind(database: Database, item: int, aspect: Aspect, score: float, person: str = "ann") -> bool:
    with database.reading() as session:
        return exposures.is_blind(session, person, item, {(item, aspect): score}, ())


@pytest.mark.parametrize("answers_of", AnswersOf)
def test_a_score_is_blind_until_answers_are_shown_and_stays_so_while_it_stands(
    database: Database, item: int, answers_of: AnswersOf
) -> None:
    assert is_blind(database, item, Q, 3.0)
    exposures.note(database, "ann", answers_of, [(item, Q)], {(item, Q): 3.0})
    exposures.note(database, "ann", answers_of, [(item, Q), (item, C)], {})
    assert is_blind(database, item, Q, 3.0) and not is_blind(database, item, Q, 2.9)
    assert not is_blind(database, item, C, 3.0), "nothing had been said of it before"
    assert is_blind(database, item, A, 3.0) and is_blind(database, item, C, 3.0, "ben")
    with database.reading() as session:
        assert exposures.recorded(session, "ann", answers_of, [item]) == {(item, Q), (item, C)}


def test_what_is_said_of_an_image_does_not_depend_on_the_prompt_where_none_is_needed(
    database: Database, new_item: Callable[..., int]
) -> None:
    cat, dog, other = new_item(1, "a cat"), new_item(1, "a dog"), new_item(2, "a cat")
    exposures.note(database, "ann", AnswersOf.PEOPLE, [(cat, aspect) for aspect in Aspect])
    assert [is_blind(database, dog, aspect, 3.0) for aspect in Aspect] == [False, True, False]
    assert is_blind(database, other, Q, 3.0)


def test_a_visitor_without_a_name_leaves_nothing(database: Database, item: int) -> None:
    exposures.note(database, "", AnswersOf.MODEL, [(item, Q)])
    with database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM exposures")) == 0


def test_an_older_database_learns_who_had_read_what(database: Database, new_item: Callable[..., int]) -> None:
    """One assessed item 1 themselves; of 2 they saved blind, of 3 with the model's answer, of 4 before it."""
    items = [new_item(number) for number in range(1, 5)]
    at = datetime(2026, 1, 1, tzinfo=UTC)

    def before(session) -> None:
        session.execute(text("DROP TABLE exposures"))
        session.execute(text("UPDATE alembic_version SET version_num = '0002'"))
        for table, rows in (
            (m.Annotator, [{"id": 1, "name": "ann"}]),
            (m.ModelVersion, [{"id": 1, "title": "t", "digest": "d", "learned_from": ""}]),
            (
                m.Assessment,
                [
                    {"id": i, "item_id": i, "model_version_id": 1, "seconds": 1, "annotator_id": who}
                    for i, who in zip(items[:3], (1, None, None), strict=True)
                ],
            ),
            (
                m.AspectAssessment,
                [
                    {"assessment_id": i, "aspect": aspect, "description": "", "rating": "fair", "mos": 3}
                    | {"raw_mos": 3, "scale_low": 1, "scale_high": 5}
                    for i in items[:3]
                    for aspect in (Q, A)
                ],
            ),
            (
                m.Submission,
                [
                    {"id": i, "token": str(i), "item_id": i, "annotator_id": 1, "place": "annotate"}
                    | {"assessment_id": None if i == items[3] else i, "blind": i == items[1], "seconds": 1}
                    for i in items[1:]
                ],
            ),
            (
                m.Correction,
                [
                    {"submission_id": i, "item_id": i, "aspect": Q, "annotator_id": 1, "revision": 1}
                    | {"agrees": False, "score": 2.5, "scale_low": 1, "scale_high": 5}
                    for i in items[1:]
                ],
            ),
        ):
            moment = {"added_at": at} if hasattr(table, "added_at") else {"created_at": at}
            stamped = [row | (moment if hasattr(table, next(iter(moment))) else {}) for row in rows]
            session.execute(insert(Base.metadata.tables[table.__tablename__]), stamped)

    database.transact(before)
    with database.engine.begin() as connection:
        migrations.upgrade(connection, "0003")
        rows = connection.execute(text("SELECT item_id, aspect, score, answers_of FROM exposures")).all()
    assert set(rows) == {
        (items[0], "quality", None, "model"),
        (items[0], "authenticity", None, "model"),
        (items[1], "quality", 2.5, "model"),
        (items[2], "quality", None, "model"),
        (items[2], "authenticity", None, "model"),
    }
