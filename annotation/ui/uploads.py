"""Image files as they were uploaded: Gradio would re-encode them and lose the prompt inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder, is_in_or_equal

from annotation.store.texts import storable
from annotation.ui.decoding import opened


@dataclass(frozen=True)
class Upload:
    """A file on the server and the name that its owner gave it."""

    path: Path
    name: str

    @classmethod
    def from_payload(cls, payload: Any) -> Upload | None:
        """What an image component sends to an event with `preprocess=False`; None for nothing.

        Any other file of the server counts as nothing: of images Gradio checks that only if the payload asks.
        """
        told = payload.get("path") if isinstance(payload, dict) else None
        path = Path(storable(told)) if isinstance(told, str) else Path()
        if not _is_uploaded(path):
            return None
        return cls(path, _file_name(payload.get("orig_name")) or path.name)

    def check(self) -> None:
        """Raise InputError if this is no image that can be assessed."""
        with opened(self.path):
            pass


def _is_uploaded(path: Path) -> bool:
    try:
        return is_in_or_equal(path, get_upload_folder()) and path.is_file()
    except OSError:  # e.g. a longer name than any file has
        return False


def _file_name(told: Any) -> str:
    """A name that a file can have; "" where none was told."""
    name = Path(storable(told)).name if isinstance(told, str) else ""
    return "" if name == ".." else name
