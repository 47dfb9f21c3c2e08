"""The trail of what people did beside correcting."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from annotation.store.models import AuditEntry
from annotation.store.people import annotator as annotator_named


def record(session: Session, annotator: str | None, action: str, **details: Any) -> None:
    """Note that somebody (None: the program itself) did something; `details` are JSON values."""
    who = None if annotator is None else annotator_named(session, annotator).id
    session.add(AuditEntry(annotator_id=who, action=action, details=details))
