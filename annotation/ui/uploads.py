"""Image files as they were uploaded: Gradio would re-encode them and lose the prompt inside."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from m3agiqa.images import open_image

_DECODING = threading.BoundedSemaphore(2)  # at once: a large image takes hundreds of megabytes


@dataclass(frozen=True)
class Upload:
    """A file on the server and the name that its owner gave it."""

    path: Path
    name: str

    @classmethod
    def from_payload(cls, payload: dict | None) -> Upload | None:
        """What an image component sends to an event with `preprocess=False`.

        Gradio has checked by then that the path is one of its own uploads.
        """
        if not payload or not payload.get("path"):
            return None
        path = Path(payload["path"])
        return cls(path, Path(payload.get("orig_name") or path).name)

    def check(self) -> None:
        """Raise InputError if this is no image that can be assessed."""
        with _DECODING:
            open_image(self.path)
