"""Views of the failure cases that people have given a name, for everybody on this server."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotation.store.database import storable_within
from annotation.store.models import SavedView
from annotation.store.people import annotator_named
from m3agiqa.errors import InputError

MAX_VIEW_NAME = 100  # characters


def save_view(session: Session, name: str, query: str, annotator: str) -> None:
    """Keep the query of a view; it takes the place of an older one of this name.

    Raises InputError without a name, or for one that is too long.
    """
    name = storable_within(name, MAX_VIEW_NAME, "view's name")
    if not name:
        raise InputError("The view has no name; give one.")
    session.add(SavedView(name=name, query=query, annotator_id=annotator_named(session, annotator).id))


def remove_view(session: Session, view: SavedView, annotator: str) -> None:
    """Take a view off the list."""
    save_view(session, view.name, "", annotator)


def saved_views(session: Session) -> list[SavedView]:
    """The current ones, by name."""
    latest = select(func.max(SavedView.id)).group_by(SavedView.name)
    current = select(SavedView).where(SavedView.id.in_(latest), SavedView.query != "")
    return list(session.scalars(current.order_by(SavedView.name)))


def find_view(session: Session, number: object) -> SavedView:
    """A current view by its id. Raises InputError if it is none any more."""
    for view in saved_views(session):
        if str(view.id) == str(number):
            return view
    raise InputError("This view is no longer there; choose another.")
