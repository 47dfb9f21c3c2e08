"""Small copies of images for lists, made when a browser asks, at addresses that cannot be guessed."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from annotation.ui.images import scaled
from m3agiqa.errors import InputError

THUMBNAIL_PATH = "/thumbnails"
THUMBNAIL_SIDE = 192  # pixels of the longer one
MAX_ADDRESSES = 50_000  # the oldest end first
CACHED_THUMBNAILS = 1000  # of about 8 kB
BROWSER_SECONDS = 3600  # for which a browser need not ask again

_secret = secrets.token_bytes(16)  # of this server: an address tells nothing of the file's place
_files: OrderedDict[str, Path] = OrderedDict()


def thumbnail_url(file: Path) -> str:
    """An address that shows this file, whatever it holds, until the server ends."""
    name = hashlib.blake2b(str(file).encode(), key=_secret, digest_size=16).hexdigest()
    _files[name] = file
    _files.move_to_end(name)
    while len(_files) > MAX_ADDRESSES:
        _files.popitem(last=False)
    return f"{THUMBNAIL_PATH}/{name}"


def _answer(request: Request) -> Response:
    """The small copy; 404 for an address that nobody was given, and for what is no image (any more)."""
    file = _files.get(request.path_params["name"])
    if file is None:
        return Response(status_code=404)
    try:
        content = _thumbnail(file, file.stat().st_mtime_ns)
    except (InputError, OSError):
        return Response(status_code=404)
    return Response(
        content, media_type="image/webp", headers={"Cache-Control": f"private, max-age={BROWSER_SECONDS}"}
    )


@lru_cache(maxsize=CACHED_THUMBNAILS)
def _thumbnail(file: Path, modified: int) -> bytes:
    image, _ = scaled(file, THUMBNAIL_SIDE)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()


THUMBNAIL_ROUTES = [Route(f"{THUMBNAIL_PATH}/{{name}}", _answer)]
"""For the app, before Gradio's own, which answer everything."""
