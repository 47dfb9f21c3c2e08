"""Admins make and revoke the tokens of programs on the page."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import argon2
import pytest
from sqlalchemy import select

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.api_tokens import token_like
from annotation.store.models import AuditEntry
from annotation.store.people import annotator_named
from annotation.ui.access import UsersAccess
from annotation.ui.context import Studio
from annotation.ui.data.token_form import TokenHandlers
from annotation.ui.model_service import ModelLoader
from annotation.users import Role, User, UsersFile, put_user, remove_user


def by(name: str) -> Any:
    return SimpleNamespace(username=name)


@pytest.fixture
def handlers(store: Store, loader: ModelLoader, tmp_path: Path) -> TokenHandlers:
    quick = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    for name, role in (("ann", Role.ADMIN), ("<vic>", Role.VIEWER)):
        put_user(tmp_path / "users.txt", User.new(name, role, "a long password", quick))
    users = UsersFile(tmp_path / "users.txt")
    return TokenHandlers(Studio(Settings(data=tmp_path), store, UsersAccess(users), loader), users)


def test_a_token_is_shown_once_and_ends_when_it_is_revoked(handlers: TokenHandlers, store: Store) -> None:
    told, table = handlers.make(by("ann"), "<vic>")
    [secret] = re.findall(r"<code>(m3a_[\w-]+)</code>", told)
    assert "&lt;vic&gt;" in told and "&lt;vic&gt;" in table and "never" in table
    shown, choices, message, table = handlers.show(by("ann"))
    assert shown["visible"] and choices["choices"] == ["<vic>", "ann"]
    assert secret not in f"{message}{table}"
    remove_user(handlers.users.path, "<vic>")
    assert "&lt;vic&gt; has ended" in handlers.revoke(by("ann"), "<vic>")[0]
    assert "Nobody has a token" in handlers.show(by("ann"))[-1]
    with store.database.reading() as session:
        token = token_like(session, secret)
        assert token is not None and token.revoked_at is not None
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        assert [each.action for each in entries] == ["make token", "revoke token"]
        assert {annotator_named(session, "ann").id} == {each.annotator_id for each in entries}


def test_others_see_no_form_and_make_no_token(handlers: TokenHandlers) -> None:
    assert handlers.show(by("<vic>"))[0]["visible"] is False
    assert "takes an admin" in handlers.make(by("<vic>"), "ann")[0]
    assert "takes an admin" in handlers.revoke(by("<vic>"), "ann")[0]


@pytest.mark.parametrize("name", [None, "", "zoe", ["ann"]])
def test_nobody_chosen_is_told(handlers: TokenHandlers, name: Any) -> None:
    assert "Choose a user" in handlers.make(by("ann"), name)[0]
    assert 'role="alert"' in handlers.revoke(by("ann"), name)[0]
