"""Image files as they were uploaded: Gradio would re-encode them and lose the prompt inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
