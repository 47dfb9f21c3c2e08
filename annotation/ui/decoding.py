"""Images opened for the page, few at once: a large one takes hundreds of megabytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from m3agiqa.images import open_image

_PLACES = threading.BoundedSemaphore(2)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The decoded image, for the `with` block; waits for a place. Raises InputError as open_image does."""
    with _PLACES:
        yield open_image(path)
