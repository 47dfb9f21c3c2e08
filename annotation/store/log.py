"""The audit log of what people did beside correcting, and what admins have decided for all."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store.models import AuditEntry, Promotion
from annotation.store.people import annotator_named

OPEN_ANSWERS = "open answers"


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


def ever_promoted(session: Session) -> set[str]:
    """All models that have ever been put into service here."""
    return set(session.scalars(select(Promotion.model)))


def open_answers(session: Session, is_open: bool, annotator: str) -> None:
    """Let everybody read all answers on the Failure cases tab, or only those to what they have scored."""
    log_action(session, annotator, OPEN_ANSWERS, open=is_open)


def answers_are_open(session: Session) -> bool:
    """The latest decision; without any they are not."""
    decision = select(AuditEntry.details).where(AuditEntry.action == OPEN_ANSWERS)
    details = session.scalar(decision.order_by(AuditEntry.id.desc()).limit(1))
    return details is not None and details["open"] is True
