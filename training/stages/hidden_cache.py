"""Cache of hidden states of conversations, and the identity of the backbone that they are of.

A folder of shards, each a safetensors file of [L, d] tensors and a JSON Lines file of entries.
Shards appear whole or not at all, and entries are found by a key that hashes everything they depend
on, so an interrupted run resumes and nothing stale is ever used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from m3agiqa.aspects import Aspect, Rating
from m3agiqa.backbones.base import BASE_FILE, NotesBase
from m3agiqa.backbones.loading import backbone_class
from m3agiqa.errors import WeightsError
from m3agiqa.files import sha256, write_atomically
from m3agiqa.json_lines import read_json_lines
from training.stages.finetune import STATE_FOLDER


@dataclass(frozen=True)
class Entry:
    """One encoded conversation; no rating where the description was given, not generated."""

    key: str
    sample: str
    aspect: Aspect
    kind: str
    damage: str | None
    prompt: str | None
    description: str
    rating: Rating | None


class HiddenCache:
    """`add` appends a shard; `entries` and `states` read all of them.

    Several processes may add to one folder at a time: each names its shards by a token of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token = uuid4().hex[:8]
        self.entries: dict[str, Entry] = {}
        self._shard_of: dict[str, Path] = {}
        for index in sorted(folder.glob("*.jsonl")):
            self._read(index)

    def _read(self, index: Path) -> None:
        for _, row in read_json_lines(index):
            rating = Rating(row["rating"]) if row["rating"] else None
            entry = Entry(**{**row, "aspect": Aspect(row["aspect"]), "rating": rating})
            self.entries[entry.key] = entry
            self._shard_of[entry.key] = index.with_suffix(".safetensors")

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def add(self, encoded: Iterable[tuple[Entry, Tensor]]) -> None:
        """Store a batch; the index is moved into place last, so a kill leaves no half shard."""
        encoded = list(encoded)
        self.folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in self.folder.glob("*.jsonl"))
        index = self.folder / f"shard-{number:05}-{self._token}.jsonl"
        save_file(
            {entry.key: states.contiguous() for entry, states in encoded}, index.with_suffix(".safetensors")
        )
        lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry, _ in encoded]
        write_atomically(index, "".join(lines))
        self._read(index)

    def states(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Hidden states [L, d] by key."""
        by_shard: dict[Path, list[str]] = {}
        for key in keys:
            by_shard.setdefault(self._shard_of[key], []).append(key)
        tensors = {}
        for shard, wanted in by_shard.items():
            with safe_open(shard, framework="pt") as file:
                tensors.update({key: file.get_tensor(key) for key in wanted})
        return tensors


def backbone_id(name: str, folder: Path, fetch: bool = False) -> str:
    """Identity of a backbone: name, revision, base weights, and the content of what a folder has trained.

    Base weights that are not on this machine are downloaded with `fetch` (raises WeightsError); without it,
    the identity is one that nothing was kept under.
    """
    kind = backbone_class(name)
    base = [_base_version(kind, folder, fetch)] if issubclass(kind, NotesBase) else []
    candidates = [*folder.rglob("*.safetensors"), *folder.rglob(BASE_FILE)]
    files = sorted(path for path in candidates if "predictor" not in path.name)
    trained = [path for path in files if not path.relative_to(folder).parts[0].startswith(STATE_FOLDER)]
    return " ".join([name, str(kind.revision), *base, *(sha256(path) for path in trained)])


def _base_version(kind: type[NotesBase], folder: Path, fetch: bool) -> str:
    try:
        return kind.base_version(folder, fetch)
    except WeightsError:
        if fetch:
            raise
        return "not here"
