"""The file of people who may sign in: a line each, `name:role:argon2 hash of the password`.

Empty lines and lines that begin with # are kept as they are. The hash says by itself how it was made.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import argon2

from m3agiqa.errors import InputError
from m3agiqa.files import atomic_path

log = logging.getLogger(__name__)

MAX_NAME = 100  # characters
MIN_PASSWORD = 8  # characters

_PASSWORD_HASHER = argon2.PasswordHasher()
_VERIFICATION_SLOTS = threading.BoundedSemaphore(2)  # at once: each takes 64 MB, and guessing shall be slow


class Role(StrEnum):
    """What a person may do, from little to everything."""

    VIEWER = "viewer"
    """Look, and assess images."""
    ANNOTATOR = "annotator"
    """Correct, annotate and import images, too."""
    ADMIN = "admin"
    """Import known answers and scores in others' names, see who said what, export, promote models, too."""

    def allows(self, needed: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class User:
    """A line of the file."""

    name: str
    role: Role
    password_hash: str

    @classmethod
    def new(
        cls, name: str, role: Role, password: str, hasher: argon2.PasswordHasher = _PASSWORD_HASHER
    ) -> User:
        """Raises InputError for a name that no line can hold, and for a short password."""
        if len(password) < MIN_PASSWORD:
            raise InputError(f"The password is too short; give at least {MIN_PASSWORD} characters.")
        return cls(_checked_name(name), role, hasher.hash(password))

    @property
    def line(self) -> str:
        return f"{self.name}:{self.role}:{self.password_hash}"

    def has_password(self, password: str) -> bool:
        try:
            with _VERIFICATION_SLOTS:
                return _PASSWORD_HASHER.verify(self.password_hash, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


def parse_users(text: str, source: str) -> dict[str, User]:
    """The users of a file's text, by name. Raises InputError naming `source` and the line that is wrong."""
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if _is_comment(line):
            continue
        try:
            user = _parse(line)
            if user.name in users:
                raise InputError(f"{user.name} is there twice.")
        except InputError as error:
            raise InputError(f"{source}, line {number}: {error}") from error
        users[user.name] = user
    return users


def read_users(path: Path) -> dict[str, User]:
    """Raises InputError for a file that cannot be read or has a wrong line."""
    return parse_users(_read(path), str(path))


def put_user(path: Path, user: User) -> None:
    """Add a user, or replace the one of that name; the file is made if it is not there."""
    text = _read(path) if path.exists() else "# name:role:argon2 hash (python -m annotation users)\n"
    known = user.name in parse_users(text, str(path))
    lines = [user.line if _belongs_to(line, user.name) else line for line in text.splitlines()]
    _write(path, lines if known else [*lines, user.line])


def remove_user(path: Path, name: str) -> None:
    """Raises InputError if there is no such user."""
    text = _read(path)
    if name not in parse_users(text, str(path)):
        raise InputError(f"{path} has no user {name!r}.")
    _write(path, [line for line in text.splitlines() if not _belongs_to(line, name)])


class UsersFile:
    """The users as the file has them now: it is read again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a file that cannot be read, has a wrong line, or nobody in it."""
        self.path = path
        self._stamp = self._stat()
        self._users = read_users(path)
        if not self._users:
            raise InputError(f"{path} has no users; add one with python -m annotation users add.")
        self._nobody = _nobody_like(next(iter(self._users.values())))

    def users(self) -> Mapping[str, User]:
        """By name; those of before while the file cannot be understood."""
        if (stamp := self._stat()) != self._stamp:
            self._stamp = stamp
            try:
                self._users = read_users(self.path)
            except InputError as error:
                log.warning("%s The users of before stay until that is mended.", error)
        return self._users

    def check(self, name: str, password: str) -> bool:
        """Whether this is that user's password; as slow for a name that nobody has."""
        user = self.users().get(name)
        return (user or self._nobody).has_password(password) and user is not None

    def _stat(self) -> tuple[int, ...] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _nobody_like(user: User) -> User:
    """Nobody's password, whose check takes as long as this user's."""
    parameters = argon2.extract_parameters(user.password_hash)
    return User("", Role.VIEWER, argon2.PasswordHasher.from_parameters(parameters).hash(os.urandom(16)))


def _checked_name(name: str) -> str:
    if not name or name != name.strip() or ":" in name or name.startswith("#") or not name.isprintable():
        raise InputError(f"{name!r} cannot be a user's name; use letters, digits, dots and dashes.")
    if len(name) > MAX_NAME:
        raise InputError(f"A user's name has at most {MAX_NAME} characters.")
    return name


def _is_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _belongs_to(line: str, name: str) -> bool:
    return not _is_comment(line) and line.strip().split(":")[0] == name


def _parse(line: str) -> User:
    parts = line.strip().split(":", 2)
    if len(parts) != 3:
        raise InputError("a line has three parts, name:role:hash.")
    name, role, password_hash = parts
    if role not in list(Role):
        raise InputError(f"the role is {role!r}; it can be {', '.join(Role)}.")
    try:
        argon2.extract_parameters(password_hash)
    except argon2.exceptions.InvalidHashError as error:
        raise InputError(
            "the last part is no argon2 hash; make it with python -m annotation users passwd."
        ) from error
    return User(_checked_name(name), Role(role), password_hash)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"There is no users file {path}. Make it with python -m annotation users add NAME --role admin."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"The users file {path} cannot be read: {reason}.") from error


def _write(path: Path, lines: list[str]) -> None:
    """Replaced as a whole, so that a server that reads meanwhile sees the old or the new one."""
    try:
        with atomic_path(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            partial.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o600)
    except OSError as error:
        raise InputError(f"The users file {path} cannot be written: {error.strerror}.") from error
