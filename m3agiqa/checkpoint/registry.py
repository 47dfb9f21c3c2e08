"""Registered checkpoints: a folder where newly trained models wait to be put into service."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from m3agiqa.checkpoint.card import CARD_FILE, Card, local_checkpoint, read_card
from m3agiqa.checkpoint.comparison import Comparison
from m3agiqa.checkpoint.revisions import Revision
from m3agiqa.download import hub
from m3agiqa.errors import InputError, WeightsError
from m3agiqa.files import new_folder, write_atomically

REGISTRATION_FILE = "registration.json"


@dataclass(frozen=True)
class Candidate:
    """A registered checkpoint."""

    folder: Path
    card: Card
    registered_at: datetime
    comparison: Comparison | None

    @property
    def name(self) -> str:
        """What it is called in its registry."""
        return self.folder.name


def register(checkpoint: Path, folder: Path, comparison: Comparison | None = None) -> Candidate:
    """Copy a checkpoint into the registry at `folder`; the same one twice is the same candidate.

    It is there whole or not at all. Raises WeightsError for a damaged checkpoint, InputError where the
    folder cannot be written.
    """
    card = read_card(checkpoint)
    title = re.sub(r"[^\w.+]+", "-", card.title).strip(".-") or "model"
    name = f"{title}-{card.digest[:8]}"
    target = folder / name
    facts = {
        "registered_at": datetime.now(UTC).isoformat(),
        "comparison": comparison and comparison.to_dict(),
    }
    try:
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with new_folder(target) as copy:
                shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
                _write(copy / REGISTRATION_FILE, facts)
        elif comparison is not None:  # measured anew: it is still known since when it was first registered
            facts["registered_at"] = _read(target).registered_at.isoformat()
            _write(target / REGISTRATION_FILE, facts)
    except OSError as error:
        raise InputError(f"The model cannot be registered in {folder}: {error.strerror}.") from error
    return _read(target)


def discard(name: str, folder: Path) -> None:
    """Take a candidate out of the registry and delete it. Raises InputError if it cannot be."""
    target = registered(name, folder)
    if target is None:
        raise InputError("This model is no longer registered.")
    hidden = target.with_name(f".{name}.discarded")
    shutil.rmtree(hidden, ignore_errors=True)  # of an earlier one that was killed
    try:
        target.replace(hidden)  # at once, so that nobody finds half of it
        shutil.rmtree(hidden)
    except OSError as error:
        raise InputError(f"{target} cannot be deleted: {error.strerror}.") from error


def candidates(folder: Path) -> list[Candidate]:
    """All registered checkpoints, the newest first; folders that are none of them are passed over."""
    readable: list[Candidate] = []
    for card in folder.glob(f"[!.]*/{CARD_FILE}"):
        try:
            readable.append(_read(card.parent))
        except WeightsError:
            continue  # perhaps of another version
    return sorted(readable, key=lambda each: (each.registered_at, each.name), reverse=True)


def registered(name: str, folder: Path) -> Path | None:
    """A candidate's folder by its name in the registry; None if it is not registered there."""
    return folder / name if (folder / name / CARD_FILE).is_file() else None


def find(name: str, folder: Path, revision: Revision | None = None) -> Path:
    """A candidate's folder by its name in the registry, or any other checkpoint as by checkpoint_named.

    Raises InputError if there is none, and WeightsError for one that cannot be downloaded. What is in it is
    looked at by m3agiqa.checkpoint.card.read_card.
    """
    local = registered(name, folder) or local_checkpoint(name)
    if local is not None:
        return local
    from m3agiqa.checkpoint.resolve import checkpoint_named  # takes seconds, as it imports PyTorch

    return checkpoint_named(name, revision=revision)


def push_model(folder: Path, repository: str) -> str:
    """Make a checkpoint the newest version of a repository on the Hugging Face Hub; the address.

    Raises InputError, or WeightsError if the checkpoint is damaged.
    """
    card = read_card(folder)
    readme = (
        "---\nlibrary_name: m3agiqa\npipeline_tag: image-text-to-text\n"
        "tags: [image-quality-assessment, ai-generated-images]\n---\n\n"
        f"# {card.title}\n\nJudges AI-generated images: {', '.join(card.scales)}. Backbone: {card.backbone}. "
        f"Learned from {card.learned_from}.\n\n"
        f"    python -m m3agiqa assess image.png --model {repository}\n"
    )
    return hub.push_folder(
        folder, repository, "model", card.title.replace(" ", "-"), readme=readme, without=(REGISTRATION_FILE,)
    )


def _read(folder: Path) -> Candidate:
    card, path = read_card(folder, verify=False), folder / REGISTRATION_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        known = facts["comparison"]
        comparison = None if known is None else Comparison.from_dict(known)
        return Candidate(folder, card, datetime.fromisoformat(facts["registered_at"]), comparison)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} is missing or damaged: {error}. Register the model anew.") from error


def _write(path: Path, facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n", durable=True)
