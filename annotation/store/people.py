"""People, as the database knows them."""

from __future__ import annotations

from sqlalchemy.orm import Session

from annotation.store.database import get_or_add, storable_within
from annotation.store.models import Annotator
from m3agiqa.errors import InputError

MAX_NAME = 200  # characters


def annotator_named(session: Session, name: str) -> Annotator:
    """The annotator of a name, added if they are new. Raises InputError for an empty or too long name."""
    name = storable_within(name, MAX_NAME, "annotator's name")
    if not name:
        raise InputError("The annotator has no name; give one.")
    return get_or_add(session, Annotator, {"name": name})
