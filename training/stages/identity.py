"""What a backbone is called in keys of the cache: by all that decides what it says and holds in mind."""

from __future__ import annotations

from pathlib import Path

from m3agiqa.backbones import backbone_class
from m3agiqa.backbones.base import BASE_FILE, NotesBase
from m3agiqa.errors import WeightsError
from m3agiqa.files import sha256
from training.stages.finetune import STATE


def backbone_id(name: str, folder: Path, fetch: bool = False) -> str:
    """Identity of a backbone: name, revision, base weights, and the content of what a folder has trained.

    Base weights that are not on this machine are downloaded with `fetch` (raises WeightsError); without it,
    the identity is one that nothing was kept under.
    """
    kind = backbone_class(name)
    base = [_base_version(kind, folder, fetch)] if issubclass(kind, NotesBase) else []
    found = [*folder.rglob("*.safetensors"), *folder.rglob(BASE_FILE)]
    files = sorted(path for path in found if "predictor" not in path.name)
    trained = [path for path in files if not path.relative_to(folder).parts[0].startswith(STATE)]
    return " ".join([name, str(kind.revision), *base, *(sha256(path) for path in trained)])


def _base_version(kind: type[NotesBase], folder: Path, fetch: bool) -> str:
    try:
        return kind.base_version(folder, fetch)
    except WeightsError:
        if fetch:
            raise
        return "not here"
