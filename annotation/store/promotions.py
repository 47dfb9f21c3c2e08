"""Which model is in service, as admins have decided; every decision is kept."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store import log as audit
from annotation.store.models import Promotion
from annotation.store.people import annotator as annotator_named


def promote(session: Session, model: str, annotator: str) -> None:
    """Put a model into service, by its shipped name or its name in the registry."""
    session.add(Promotion(model=model, annotator_id=annotator_named(session, annotator).id))
    audit.record(session, annotator, "promote model", model=model)


def promoted(session: Session) -> str | None:
    """The model that was put into service last; None before there was any decision."""
    return session.scalar(select(Promotion.model).order_by(Promotion.id.desc()).limit(1))
