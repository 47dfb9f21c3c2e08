"""What a checkpoint on MiniCPM-Llama3-V 2.5 is made of: the base, and adapters that stay where they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.base import BASE_FILE
from m3agiqa.backbones.minicpm.base_weights import BASE_FILES, BASE_MODEL
from m3agiqa.download.hub import commit, snapshot, version
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import WeightsError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.*")


@dataclass(frozen=True)
class PublishedAdapter:
    """A repository with an adapter over the whole model, of the kind that the paper's authors published."""

    repository: str
    version: str = ""
    """Of its content (hub.version)."""
    max_slice_nums: int | None = None
    """Slices of an image that it was trained with, at most; None: as many as the base."""

    def folder(self, progress: Progress | None = None) -> Path:
        """Its files, downloaded if they are not here yet. Raises WeightsError."""
        return snapshot(self.repository, ADAPTER_FILES, progress, commit(self.version))


@dataclass(frozen=True)
class CheckpointBase:
    """The content of BASE_FILE; without such a file it is the base as it is published now."""

    model: str = BASE_MODEL
    version: str = ""
    """Of the base's content (hub.version)."""
    adapters: Mapping[Aspect, PublishedAdapter] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Path) -> Self:
        """Nothing but the base in a folder."""
        return cls(version=version(base, BASE_FILES))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a checkpoint's folder, or in that of one of its aspects. Raises WeightsError."""
        places = [folder / part / BASE_FILE for part in ("", *Aspect)]
        path = next((path for path in places if path.exists()), None)
        if path is None:
            return cls()
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            adapters = facts.pop("adapters")
            return cls(**facts, adapters={Aspect(k): PublishedAdapter(**v) for k, v in adapters.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{path} does not say what the model is made of: {error}.") from error

    def write(self, folder: Path) -> None:
        """Record it in a checkpoint's folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / BASE_FILE).write_text(text + "\n", encoding="utf-8")

    @property
    def commit(self) -> str | None:
        """The base's commit on the Hub; None where it came from a folder of someone's own."""
        return commit(self.version)
