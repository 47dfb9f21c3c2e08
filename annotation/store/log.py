"""The audit log of what people did beside correcting, and the model that admins have put into service."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store.models import AuditEntry, Promotion
from annotation.store.people import annotator_named


def log_action(session: Session, annotator: str | None, action: str, **details: Any) -> None:
    """Record that somebody (None: the program itself) did something; `details` are JSON values."""
    annotator_id = None if annotator is None else annotator_named(session, annotator).id
    session.add(AuditEntry(annotator_id=annotator_id, action=action, details=details))


def promote(session: Session, model: str, annotator: str) -> None:
    """Put a model into service, by its shipped name or its name in the registry; all decisions are kept."""
    session.add(Promotion(model=model, annotator_id=annotator_named(session, annotator).id))
    log_action(session, annotator, "promote model", model=model)


def promoted(session: Session) -> str | None:
    """The model that was put into service last; None before there was any decision."""
    return session.scalar(select(Promotion.model).order_by(Promotion.id.desc()).limit(1))
