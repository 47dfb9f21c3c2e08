"""Which models could judge here, and which one does: the one that an admin has promoted last."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.promotions import promote, promoted
from annotation.ui.model_loader import ModelLoader
from m3agiqa.checkpoint import Card, read_card, shipped
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.registry import Comparison, candidates, find


@dataclass(frozen=True)
class Offer:
    """A model that may be put into service."""

    name: str
    """In the registry, or of a shipped one, or the path in M3AGIQA_MODEL."""
    card: Card
    registered_at: datetime | None = None
    """None for those that were not registered here."""
    comparison: Comparison | None = None


def model_to_serve(store: Store, settings: Settings) -> tuple[str, str]:
    """The promoted model, or the settings' where there is none; and a sentence if it cannot be served.

    Raises StoreError.
    """
    with store.database.reading() as session:
        wanted = promoted(session)
    if wanted is None:
        return settings.model, ""
    try:
        read_card(find(wanted, settings.models))
    except M3AgiqaError as error:
        return settings.model, f"{settings.model} is served instead of {wanted}, which was promoted. {error}"
    return wanted, ""


def offers(settings: Settings) -> list[Offer]:
    """Registered models, the newest first, then that of the settings and those that are shipped."""
    registered = [
        Offer(each.name, each.card, each.registered_at, each.comparison)
        for each in candidates(settings.models)
    ]
    others = []
    for name in dict.fromkeys((settings.model, *shipped())):
        try:
            others.append(Offer(name, read_card(find(name, settings.models), verify=False)))
        except M3AgiqaError:
            continue  # a wrong M3AGIQA_MODEL; the model's own line says so
    return registered + others


def shown_name(name: str) -> str:
    """A model's name as pages have it: of a path on the server they know the last part only."""
    last = Path(name).name
    return name if name == last else f"…/{last}"


def serve_instead(loader: ModelLoader, store: Store, settings: Settings, name: str, annotator: str) -> None:
    """Promote a model, named as pages have it: it is loaded, the decision is stored, and then it is served.

    If any of that fails, M3AgiqaError is raised and everything stays as it was.
    """
    chosen = next((offer.name for offer in offers(settings) if shown_name(offer.name) == name), None)
    if chosen is None:
        raise InputError("This model is no longer registered; choose another.")

    def decide() -> None:
        store.database.transact(lambda session: promote(session, chosen, annotator))

    loader.switch(chosen, decide)
