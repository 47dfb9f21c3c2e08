"""Image files as they were uploaded: Gradio would re-encode them and lose the prompt inside."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from gradio.utils import get_upload_folder, is_in_or_equal

from m3agiqa.images import open_image

_DECODING = threading.BoundedSemaphore(2)  # at once: a large image takes hundreds of megabytes


@dataclass(frozen=True)
class Upload:
    """A file on the server and the name that its owner gave it."""

    path: Path
    name: str

    @classmethod
    def from_payload(cls, payload: dict | None) -> Upload | None:
        """What an image component sends to an event with `preprocess=False`; None for nothing.

        Any other file of the server counts as nothing: of images Gradio checks that only if the payload asks.
        """
        if not payload or not payload.get("path"):
            return None
        path = Path(payload["path"])
        if not is_in_or_equal(path, get_upload_folder()):
            return None
        return cls(path, Path(payload.get("orig_name") or path).name)

    def check(self) -> None:
        """Raise InputError if this is no image that can be assessed."""
        with _DECODING:
            open_image(self.path)
