"""Requests of programs, which send `Authorization: Bearer TOKEN` where a browser sends its cookie."""

from __future__ import annotations

import re
import secrets
from http import HTTPStatus

import anyio
from gradio.route_utils import API_PREFIX
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from annotation.store import Database
from annotation.store.api_tokens import USE_RESOLUTION, digest_of, note_use, token_like
from annotation.store.models import now
from annotation.ui.quota import Quota, QuotaUsedUp
from annotation.ui.sessions import PROGRAM_USER
from annotation.users import UsersFile
from m3agiqa.errors import M3AgiqaError

MODEL_CALL = re.compile(r"/(call|run)/(v2/)?(assess|compare|score)/?$")
"""Paths of plain HTTP that have the model work; other ways in find the same sentence in the answer."""
ASK_FOR_ANOTHER = "ask an admin of this server for one (Data tab, or python -m annotation users token)."
LOOPBACK_HEADER = "x-m3agiqa-loopback"
LOOPBACK_SECRET = secrets.token_urlsafe(32)
"""Of the app's own requests to itself, which Gradio makes for its MCP tools; it is nobody's login."""


class Refused(M3AgiqaError):
    """The token does not let anybody in; `status` is what HTTP calls that."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class BearerTokens:
    """ASGI middleware: makes a token's user the one whom Gradio takes for signed in."""

    def __init__(self, app: ASGIApp, users: UsersFile, database: Database, quota: Quota) -> None:
        self._app, self._users, self._database, self._quota = app, users, database, quota

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with a status of 4xx and {"error": a sentence} where a token is wrong."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            if scheme.lower() == "bearer":
                user = await anyio.to_thread.run_sync(self._user, token.strip())
                if request.method == "POST" and MODEL_CALL.search(scope["path"]):
                    self._quota.check(user)
            elif _is_loopback(request):
                user = ""
            elif scope["path"].startswith(f"{API_PREFIX}/mcp"):  # Gradio asks nobody there to sign in
                raise Refused(HTTPStatus.UNAUTHORIZED, f"These tools need a token; {ASK_FOR_ANOTHER}")
            else:
                return await self._app(scope, receive, send)
        except M3AgiqaError as error:
            status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {}
            if isinstance(error, QuotaUsedUp):
                status, headers = HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": f"{error.seconds:.0f}"}
            elif isinstance(error, Refused):
                status = error.status
                headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
            return await JSONResponse({"error": str(error)}, status, headers)(scope, receive, send)
        without_cookies = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
        reset = PROGRAM_USER.set(user)
        try:
            await self._app({**scope, "headers": without_cookies}, receive, send)
        finally:
            PROGRAM_USER.reset(reset)

    def _user(self, secret: str) -> str:
        """Whose token it is. Raises Refused, and StoreError."""
        with self._database.reading() as session:
            token = token_like(session, secret)
        if token is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, f"This token is not known here; {ASK_FOR_ANOTHER}")
        user = self._users.users().get(token.user)
        if user is None:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"{token.user} is no longer a user of this server, and the token is not valid any more.",
            )
        if token.revoked_at is not None:
            raise Refused(HTTPStatus.UNAUTHORIZED, f"This token was revoked; {ASK_FOR_ANOTHER}")
        if token.password_digest != digest_of(user.password_hash):
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                f"{user.name} has a new password, which has ended this token; {ASK_FOR_ANOTHER}",
            )
        if token.last_used_at is None or now() - token.last_used_at > USE_RESOLUTION:
            self._database.transact(lambda session: note_use(session, token.id))
        return user.name


def _is_loopback(request: Request) -> bool:
    secret = request.headers.get(LOOPBACK_HEADER, "")
    return secrets.compare_digest(secret.encode(), LOOPBACK_SECRET.encode())
