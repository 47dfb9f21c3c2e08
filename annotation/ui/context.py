"""What all tabs share: settings, store, model and who may do what."""

from __future__ import annotations

from dataclasses import dataclass, field

from annotation.backup import HubBackup
from annotation.settings import Settings
from annotation.store import Store
from annotation.ui.access import Access
from annotation.ui.model_service import ModelLoader, WaitingLine
from annotation.ui.quota import Quota


@dataclass(frozen=True)
class Studio:
    """Made once per server, and given to every tab."""

    settings: Settings
    store: Store
    access: Access
    loader: ModelLoader
    backup: HubBackup | None = None
    line: WaitingLine = field(default_factory=WaitingLine)
    """One line for the one model: visitors and the queue's own assessments."""
    quota: Quota = field(init=False)
    """Of programs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "quota", Quota(self.settings.quota))
