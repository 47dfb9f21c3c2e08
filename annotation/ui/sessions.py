"""Who has signed in, kept in a file: after a restart of the server people go on where they were."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar
from pathlib import Path

from annotation.users import UsersFile
from m3agiqa.files import write_atomically

log = logging.getLogger(__name__)

PROGRAM_USER: ContextVar[str | None] = ContextVar("PROGRAM_USER", default=None)
"""Who makes the current request, if that is a program with a token (annotation.ui.bearer_tokens)."""
SESSION_SECONDS = 30 * 24 * 3600  # after which people sign in again


class _Digest(str):
    """SHA-256 of a secret; the file holds no token that somebody could sign in with."""

    @classmethod
    def of(cls, secret: object) -> _Digest:
        return (
            secret if isinstance(secret, _Digest) else cls(hashlib.sha256(str(secret).encode()).hexdigest())
        )


class SessionsFile(MutableMapping[str, str]):
    """Names by token, in place of the dict that Gradio keeps them in. A new password ends them."""

    def __init__(self, path: Path, users: UsersFile) -> None:
        """A file that is not there or cannot be understood has no sessions."""
        self._path, self._users = path, users
        self.cookie_id: str = secrets.token_urlsafe(16)
        """In the cookie's name: a browser sends the cookies of all servers on one machine to each of them."""
        self._entries: dict[_Digest, tuple[str, str, float]] = {}
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.cookie_id = str(kept["cookie_id"])
            self._entries = {_Digest(key): (*entry,) for key, entry in kept["sessions"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            log.warning("%s cannot be read, so people have to sign in again: %s", path, error)

    def __getitem__(self, token: str | None) -> str:
        """Gradio asks for None where a request has no cookie."""
        if token is None and (program := PROGRAM_USER.get()) is not None:
            return program
        name, password, since = self._entries[_Digest.of(token)]
        if password != self._password(name) or time.time() - since > SESSION_SECONDS:
            raise KeyError(name)
        return name

    def __setitem__(self, token: str, name: str) -> None:
        self._entries[_Digest.of(token)] = (name, self._password(name), time.time())
        self._write()

    def __delitem__(self, token: str) -> None:
        del self._entries[_Digest.of(token)]
        self._write()

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(token for token in tuple(self._entries) if self.get(token)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _password(self, name: str) -> str:
        user = self._users.users().get(name)
        return _Digest.of(user.password_hash) if user else ""

    def _write(self) -> None:
        kept = {token: self._entries[_Digest.of(token)] for token in self}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"cookie_id": self.cookie_id, "sessions": kept}))
            self._path.chmod(0o600)
        except OSError as error:
            log.warning("%s cannot be written, so a restart will sign people out: %s", self._path, error)
