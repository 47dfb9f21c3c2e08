"""What the name of a model stands for: the folder of a checkpoint, which may have to be downloaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.checkpoint.card import CARD_FILE, local_checkpoint, shipped
from m3agiqa.checkpoint.published import PUBLISHED_MODELS, assembled
from m3agiqa.checkpoint.revisions import Revision, check_revision, parse_revision, revision_of
from m3agiqa.download.hub import NotOnHub, commit, snapshot, version_of
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError

CHECKPOINT_FILES = ("*.json", "*.safetensors")  # no weights that need unpickling, no code


def checkpoint_named(
    name_or_path: str | Path,
    progress: Progress | None = None,
    revision: Revision | None = None,
    placement: Placement = AS_PUBLISHED,
) -> Path:
    """The folder of a checkpoint: shipped, published, on the Hub ("organisation/name"), or at a path.

    `revision` is for those of the Hub. Raises InputError for a name that stands for nothing, or that has no
    revisions, and WeightsError for what cannot be downloaded, or would not fit into the memory of a placement
    if it were.
    """
    name = str(name_or_path)
    revision = parse_revision(revision) if isinstance(revision, str) else revision or None
    if name in PUBLISHED_MODELS:
        return assembled(PUBLISHED_MODELS[name], progress, revision, placement)
    folder = local_checkpoint(name_or_path)
    if folder is not None:
        if revision is not None:
            where = "comes with this package" if name in shipped() else "is a folder on this machine"
            raise InputError(f"{name} {where}, so it has no revisions. Leave the revision out.")
        return folder
    if Path(name).is_dir():
        raise InputError(f"The folder {name} has no {CARD_FILE}, so it is no model.")
    if _may_be_repository(name):
        return _from_hub(name, progress, revision)
    known = ", ".join([*shipped(), *PUBLISHED_MODELS])
    raise InputError(
        f"There is no model {name!r}. Give one of {known}; a folder with a {CARD_FILE}; or "
        "organisation/name of a model on the Hugging Face Hub that has one."
    )


def _may_be_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _from_hub(name: str, progress: Progress | None, revision: Revision | None) -> Path:
    check_revision(revision, name, [name])
    try:
        wanted = commit(version_of(name, revision_of(name, revision)))
    except NotOnHub as error:
        raise InputError(f"There is no folder {name} here. {error}") from error
    card = snapshot(name, (CARD_FILE,), None, wanted) / CARD_FILE
    if not card.is_file():
        raise InputError(
            f"{name} on the Hugging Face Hub is not a model of this program, as it has no {CARD_FILE}."
        )
    return snapshot(name, CHECKPOINT_FILES, progress, wanted)
