from datetime import timedelta

import pytest
from sqlalchemy import select

from annotation.store import Database
from annotation.store.api_tokens import (
    USE_RESOLUTION,
    current_token,
    make_token,
    note_use,
    revoke_token,
    token_like,
)
from annotation.store.models import ApiToken, AuditEntry, now


def test_a_token_is_stored_as_a_hash_and_the_newest_counts(database: Database) -> None:
    first = database.transact(lambda session: make_token(session, "ann", "hash of a password"))
    second = database.transact(lambda session: make_token(session, "ann", "hash of a password"))
    with database.reading() as session:
        rows = list(session.scalars(select(ApiToken).order_by(ApiToken.id)))
        assert [row.revoked_at is None for row in rows] == [False, True]
        assert not any(secret in str(vars(row)) for row in rows for secret in (first, second, "hash of a"))
        assert token_like(session, second) is current_token(session, "ann") is rows[1]
        assert token_like(session, first) is rows[0]
        assert token_like(session, "m3a_guessed") is None


def test_a_revoked_token_is_none_and_the_log_tells(database: Database) -> None:
    database.transact(lambda session: make_token(session, "ann", "hash"))
    assert database.transact(lambda session: revoke_token(session, "ann"))
    assert not database.transact(lambda session: revoke_token(session, "ann"))
    with database.reading() as session:
        assert current_token(session, "ann") is None
        log = [(entry.action, entry.details) for entry in session.scalars(select(AuditEntry))]
    assert log == [("make token", {"user": "ann"}), ("revoke token", {"user": "ann"})]


@pytest.mark.parametrize(("age", "is_new"), [(USE_RESOLUTION / 2, False), (USE_RESOLUTION * 2, True)])
def test_the_last_use_is_known_to_the_minute(database: Database, age: timedelta, is_new: bool) -> None:
    database.transact(lambda session: make_token(session, "ann", "hash"))
    before = now() - age

    def used_before(session):
        token = current_token(session, "ann")
        token.last_used_at = before
        return token.id

    token_id = database.transact(used_before)
    database.transact(lambda session: note_use(session, token_id))
    with database.reading() as session:
        assert (current_token(session, "ann").last_used_at > before) == is_new
