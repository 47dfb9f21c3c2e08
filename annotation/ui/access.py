"""Who a visitor is, and what they may do. Names come from the login alone, never from a form's field."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from gradio.routes import App
from starlette.middleware import Middleware

from annotation.settings import Settings
from annotation.store import Database
from annotation.ui.bearer_tokens import BearerTokens
from annotation.ui.quota import Quota
from annotation.ui.sessions import SessionsFile
from annotation.users import Role, UsersFile
from m3agiqa.errors import M3AgiqaError

__all__ = ["Access", "Forbidden", "Person", "Role", "SpaceAccess", "UsersAccess"]

LOCAL_USER = "local"
# Gradio's page for signing in takes HTML here, and has nothing else to change it by: it says "Incorrect
# Credentials" and has no title.
SIGN_IN_HTML = """<title>Sign in to M3-AGIQA Studio</title>
<style>
  .creds { font-size: 0; }
  .creds::after {
    font-size: 1rem;
    content: "This name and password do not belong together. Try again, or ask whoever runs this server.";
  }
  @media (pointer: coarse) { input { font-size: 1rem !important; } }
</style>
Sign in with the name and password that you were given."""


@dataclass(frozen=True)
class Person:
    """Who makes a request; the name is "" for a visitor who has not signed in."""

    name: str
    role: Role


class Forbidden(M3AgiqaError):
    """The person's role does not allow this."""


class Access:
    """Without a login: whoever reaches the server is its one local user, and may do everything."""

    has_login = False
    """Whether people can sign in here."""

    @classmethod
    def from_settings(cls, settings: Settings, environment: Mapping[str, str] = os.environ) -> Access:
        """A users file goes before Hugging Face's login. Raises InputError for a wrong users file."""
        if settings.auth is not None:
            return UsersAccess(UsersFile(settings.auth), settings.data / "sessions.json")
        if environment.get("SPACE_ID"):
            return SpaceAccess(settings.admins, has_login=bool(environment.get("OAUTH_CLIENT_ID")))
        return Access()

    def person(self, request: gr.Request) -> Person:
        """Whoever makes the request. Raises Forbidden for somebody who is no longer a user."""
        return Person(LOCAL_USER, Role.ADMIN)

    def require(self, request: gr.Request, role: Role) -> Person:
        """The person, if their role allows what `role` may do; else Forbidden is raised."""
        person = self.person(request)
        if person.role.allows(role):
            return person
        if not self.has_login:
            raise Forbidden("This server is for looking and assessing only; nobody can sign in here.")
        if not person.name:
            raise Forbidden(f"Sign in as {_a(role)} to do this.")
        raise Forbidden(
            f"{person.name} is signed in as {_a(person.role)}, and this takes {_a(role)}; "
            "ask whoever runs this server for that role."
        )

    def require_name(self, request: gr.Request) -> Person:
        """The person, if they are known at all: what others have brought is not for the public."""
        person = self.person(request)
        if person.name:
            return person
        if not self.has_login:
            raise Forbidden("This server shows nobody what others have brought; nobody can sign in here.")
        raise Forbidden("Sign in to see this: it shows what others have brought.")

    def launch_options(self, database: Database, quota: Quota) -> dict[str, Any]:
        """What Gradio must know of the login at launch; the database has the tokens of programs."""
        return {}

    def warning(self, server_name: str) -> str:
        """A sentence for the log if this is too open for the address that is served; else ""."""
        if server_name == "localhost" or server_name.startswith("127.") or server_name == "::1":
            return ""
        return (
            f"Everybody who reaches this server at {server_name} is its admin. "
            "Set M3AGIQA_AUTH to a users file to have people sign in (python -m annotation users add)."
        )


class UsersAccess(Access):
    """Everybody signs in with a name and password of the users file, before the page is shown at all."""

    has_login = True

    def __init__(self, users: UsersFile, sessions: Path | None = None) -> None:
        """`sessions` is the file that keeps who has signed in, for when the server starts again."""
        self.users = users
        self.sessions = sessions

    def person(self, request: gr.Request) -> Person:
        user = self.users.users().get(request.username or "")
        if user is None:  # the file has changed since they signed in
            raise Forbidden("You are no longer a user of this server; sign in again.")
        return Person(user.name, user.role)

    def launch_options(self, database: Database, quota: Quota) -> dict[str, Any]:
        tokens = Middleware(BearerTokens, users=self.users, database=database, quota=quota)
        return {
            "auth": self._check,
            "auth_message": SIGN_IN_HTML,
            "app_kwargs": {"lifespan": self._restore_sessions, "middleware": [tokens]},
        }

    @asynccontextmanager
    async def _restore_sessions(self, app: App) -> AsyncIterator[None]:
        """Before the first request; Gradio itself keeps in memory who has signed in."""
        if self.sessions is not None:
            sessions = SessionsFile(self.sessions, self.users)
            app.cookie_id, app.tokens = sessions.cookie_id, sessions  # type: ignore[assignment]
        yield

    def warning(self, server_name: str) -> str:
        return ""

    async def _check(self, name: str, password: str) -> bool:
        return await anyio.to_thread.run_sync(self.users.check, name, password)


class SpaceAccess(Access):
    """Hugging Face Spaces: the public looks and assesses; who signs in with Hugging Face annotates."""

    def __init__(self, admins: frozenset[str], has_login: bool) -> None:
        self.admins = admins
        self.has_login = has_login

    def person(self, request: gr.Request) -> Person:
        name = _hugging_face_name(request) if self.has_login else ""
        if not name:
            return Person("", Role.VIEWER)
        return Person(name, Role.ADMIN if name in self.admins else Role.ANNOTATOR)

    def warning(self, server_name: str) -> str:
        return ""


def _hugging_face_name(request: gr.Request) -> str:
    """From the session that gr.LoginButton's routes keep in a signed cookie; "" without a valid one."""
    scope = getattr(request.request, "scope", {})
    signed_in = scope.get("session", {}).get("oauth_info") or {}
    if signed_in.get("expires_at", math.inf) < time.time():
        return ""
    return signed_in.get("userinfo", {}).get("preferred_username", "")


def _a(role: Role) -> str:
    return f"a {role}" if role is Role.VIEWER else f"an {role}"
