"""Tokens that programs sign in with, one per user; of each only a hash is stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store.log import log_action
from annotation.store.models import ApiToken, now

TOKEN_PREFIX = "m3a_"  # so that people and scanners of secrets know it when they see one
USE_RESOLUTION = timedelta(minutes=1)
"""How exactly `last_used_at` is known: not every request shall write."""


def digest_of(secret: str) -> str:
    """SHA-256: enough for a random token of 32 bytes, which nobody can guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_token(session: Session, user: str, password_hash: str, by: str | None = None) -> str:
    """A new token of a user, which takes the place of their older one. A new password ends it.

    `by` is who makes it; None: the command line.
    """
    revoke_token(session, user, by)
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    session.add(ApiToken(user=user, digest=digest_of(token), password_digest=digest_of(password_hash)))
    log_action(session, by, "make token", user=user)
    return token


def revoke_token(session: Session, user: str, by: str | None = None) -> bool:
    """Whether there was one."""
    token = current_token(session, user)
    if token is not None:
        token.revoked_at = now()
        log_action(session, by, "revoke token", user=user)
    return token is not None


def current_token(session: Session, user: str) -> ApiToken | None:
    """The token of a user that is not revoked."""
    return session.scalar(select(ApiToken).where(ApiToken.user == user, ApiToken.revoked_at.is_(None)))


def current_tokens(session: Session) -> Sequence[ApiToken]:
    """All that are not revoked, by their users' names; also of users who were removed."""
    return session.scalars(
        select(ApiToken).where(ApiToken.revoked_at.is_(None)).order_by(ApiToken.user)
    ).all()


def token_like(session: Session, secret: str) -> ApiToken | None:
    """The row of a token, revoked or not; None for one that was never made."""
    return session.scalar(select(ApiToken).where(ApiToken.digest == digest_of(secret)))


def note_use(session: Session, token_id: int) -> None:
    """That the token has just been used."""
    token = session.get_one(ApiToken, token_id)
    if token.last_used_at is None or now() - token.last_used_at > USE_RESOLUTION:
        token.last_used_at = now()
