"""What a checkpoint on MiniCPM-Llama3-V 2.5 is made of, and where the published weights are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.base import BASE_FILE
from m3agiqa.download.hub import commit, folder_version, snapshot, version_of, without_revisions
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import WeightsError
from m3agiqa.json_lines import write_json

BASE_MODEL = "openbmb/MiniCPM-Llama3-V-2_5"
BASE_FILES = ("*.json", "*.safetensors")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.*")
FOLDER_VARIABLE = "M3AGIQA_MINICPM"


@dataclass(frozen=True)
class PublishedAdapter:
    """A repository with an adapter over the whole model, of the kind that the paper's authors published."""

    repository: str
    version: str = ""
    """Of its content (hub.folder_version)."""
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
    """Of the base's content (hub.folder_version)."""
    adapters: Mapping[Aspect, PublishedAdapter] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Path) -> Self:
        """Nothing but the base in a folder."""
        return cls(version=folder_version(base, BASE_FILES))

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
        write_json(folder / BASE_FILE, asdict(self))

    @property
    def commit(self) -> str | None:
        """The base's commit on the Hub; None where it came from a folder of someone's own."""
        return commit(self.version)


def base_folder(
    progress: Progress | None = None,
    revision: str | None = None,
    fetch: bool = True,
    files: Sequence[str] = BASE_FILES,
) -> Path:
    """The folder with MiniCPM-Llama3-V 2.5: that of the environment variable M3AGIQA_MINICPM, or the Hub's.

    `revision` is of the Hub's. Raises WeightsError where it is not there and cannot be downloaded, or must
    not be (without `fetch`).
    """
    return _own_folder() or snapshot(BASE_MODEL, files, progress, revision, fetch)


def base_version(revision: str | None = None) -> str:
    """As hub.version_of has it, of the base, wherever that is."""
    folder = _own_folder()
    if folder is None:
        return version_of(BASE_MODEL, revision)
    if revision is not None:
        raise without_revisions(BASE_MODEL, folder, FOLDER_VARIABLE)
    return folder_version(folder, BASE_FILES)


def _own_folder() -> Path | None:
    own = os.environ.get(FOLDER_VARIABLE)
    if not own:
        return None
    folder = Path(own).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"The environment variable {FOLDER_VARIABLE} names {own}, which is no folder.")
    return folder
