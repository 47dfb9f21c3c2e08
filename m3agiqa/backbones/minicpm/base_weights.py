"""Where the published weights of MiniCPM-Llama3-V 2.5 are: in a folder of one's own, or on the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from m3agiqa.download.hub import snapshot, version, version_of, without_revisions
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import WeightsError

BASE_MODEL = "openbmb/MiniCPM-Llama3-V-2_5"
BASE_FILES = ("*.json", "*.safetensors")
FOLDER_VARIABLE = "M3AGIQA_MINICPM"


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
    return version(folder, BASE_FILES)


def _own_folder() -> Path | None:
    own = os.environ.get(FOLDER_VARIABLE)
    if not own:
        return None
    folder = Path(own).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"The environment variable {FOLDER_VARIABLE} names {own}, which is no folder.")
    return folder
