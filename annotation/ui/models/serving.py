"""Which models could judge here, and which one does: the one that an admin has promoted last."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.log import promote, promoted
from annotation.ui.model_loader import ModelLoader
from m3agiqa.checkpoint.card import Card, local_checkpoint, read_card, shipped
from m3agiqa.checkpoint.registry import Comparison, candidates
from m3agiqa.errors import InputError, WeightsError


@dataclass(frozen=True)
class Offer:
    """A model that may be put into service."""

    name: str
    """In the registry, or what M3AGIQA_MODEL may be set to."""
    card: Card | None
    """None if the model has to be loaded before it is known."""
    registered_at: datetime | None = None
    """None for those that were not registered here."""
    comparison: Comparison | None = None

    @property
    def title(self) -> str:
        return self.card.title if self.card else shown_name(self.name)


def model_to_serve(store: Store, settings: Settings) -> str:
    """The model that was promoted last, or the settings' where there is none. Raises StoreError."""
    with store.database.reading() as session:
        return promoted(session) or settings.model


def offers(settings: Settings, loader: ModelLoader) -> list[Offer]:
    """Registered models, the newest first, then that of the settings and those that are shipped."""
    registered = [
        Offer(each.name, each.card, each.registered_at, each.comparison)
        for each in candidates(settings.models)
    ]
    listed = {each.name for each in registered}
    others = dict.fromkeys((settings.model, *shipped()))
    return registered + [Offer(name, _card(name, loader)) for name in others if name not in listed]


def _card(name: str, loader: ModelLoader) -> Card | None:
    """A model's card, if it can be had without a download."""
    folder = local_checkpoint(name)
    if folder is not None:
        try:
            return read_card(folder, verify=False)
        except WeightsError:
            return None  # what is wrong will be said when it is loaded
    served = loader.state.assessor
    return served.card if served is not None and loader.name == name else None


def shown_name(name: str) -> str:
    """A model's name as pages have it: of a path on the server they know the last part only."""
    last = Path(name).name
    return name if name == last else f"…/{last}"


def serve_instead(loader: ModelLoader, store: Store, settings: Settings, name: str, annotator: str) -> None:
    """Promote a model, named as pages have it: it is loaded, the decision is stored, and then it is served.

    If any of that fails, M3AgiqaError is raised and everything stays as it was.
    """
    found = offers(settings, loader)
    chosen = next((offer.name for offer in found if shown_name(offer.name) == name), None)
    if chosen is None:
        raise InputError("This model is no longer registered; choose another.")

    def decide() -> None:
        store.database.transact(lambda session: promote(session, chosen, annotator))

    loader.switch(chosen, decide)
