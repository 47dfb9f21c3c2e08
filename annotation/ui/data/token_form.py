"""Tokens for programs, made and revoked by admins; the form is there only where a users file is."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from annotation.store.api_tokens import current_tokens, make_token, revoke_token
from annotation.ui import messages, theme
from annotation.ui.access import Person, Role, UsersAccess
from annotation.ui.context import Studio
from annotation.ui.events import PARALLEL_EVENT, QUIET_EVENT
from annotation.users import UsersFile
from m3agiqa.errors import InputError, M3AgiqaError

# What `make` and `revoke` return: message, and the table of tokens.
Told = tuple[str, str]


class TokenHandlers:
    """What happens in the form; every method is an event's function."""

    def __init__(self, studio: Studio, users: UsersFile) -> None:
        self.studio, self.users = studio, users

    def show(self, request: gr.Request) -> tuple[dict, dict, str, str]:
        """For admins: the form's visibility, whose token it can be, no message, and the table."""
        try:
            self._admin(request)
            table = self._table()
        except M3AgiqaError:
            return gr.update(visible=False), gr.skip(), "", ""
        return gr.update(visible=True), gr.update(choices=self._names()), messages.message(""), table

    def make(self, request: gr.Request, name: Any) -> Told:
        """A new token, which is shown this once."""
        try:
            admin, user = self._admin(request), self.users.users().get(str(name or ""))
            if user is None:
                raise InputError("Choose a user of this server; programs have their role.")
            secret = self.studio.store.database.transact(
                lambda session: make_token(session, user.name, user.password_hash, by=admin.name)
            )
            told = (
                f'<p class="done" role="status">The token of {escape(user.name)}, which is not shown again: '
                f"<code>{secret}</code></p>"
            )
            return told, self._table()
        except M3AgiqaError as error:
            return messages.message(str(error)), gr.skip()

    def revoke(self, request: gr.Request, name: Any) -> Told:
        """End a user's token; also that of somebody who was removed."""
        try:
            admin, user = self._admin(request), str(name or "")
            database = self.studio.store.database
            if not database.transact(lambda session: revoke_token(session, user, by=admin.name)):
                raise InputError(f"{user} has no token." if user else "Choose whose token shall end.")
            return f'<p class="done" role="status">The token of {escape(user)} has ended.</p>', self._table()
        except M3AgiqaError as error:
            return messages.message(str(error)), gr.skip()

    def _admin(self, request: gr.Request) -> Person:
        return self.studio.access.require(request, Role.ADMIN)

    def _names(self) -> list[str]:
        with self.studio.store.database.reading() as session:
            return sorted({*self.users.users(), *(token.user for token in current_tokens(session))})

    def _table(self) -> str:
        with self.studio.store.database.reading() as session:
            tokens = [(each.user, each.created_at, each.last_used_at) for each in current_tokens(session)]
        if not tokens:
            return '<p class="note">Nobody has a token.</p>'
        rows = "".join(
            f'<tr><th scope="row">{escape(user)}</th><td>{made:%Y-%m-%d %H:%M}</td>'
            f"<td>{f'{used:%Y-%m-%d %H:%M}' if used else 'never'}</td></tr>"
            for user, made, used in tokens
        )
        return (
            '<section class="figures"><table><thead><tr><th scope="col">Token of</th>'
            '<th scope="col">Made (UTC)</th><th scope="col">Last used</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></section>"
        )


def token_form(studio: Studio, tab: gr.Tab) -> None:
    """Build the components and wire them up; nothing where people do not sign in by a users file."""
    if not isinstance(studio.access, UsersAccess):
        return
    handlers = TokenHandlers(studio, studio.access.users)
    with gr.Accordion("Tokens for programs", open=False, visible=False, elem_id="data-tokens") as form:
        with gr.Row(elem_id="tokens-head"):
            user = gr.Dropdown(
                [],
                label="User",
                info="Programs have this user's role. A new token takes the place of the older one.",
                elem_id="tokens-user",
                scale=3,
            )
            make = gr.Button("Make a token", elem_id="tokens-make", min_width=140)
            revoke = gr.Button("Revoke the token", elem_id="tokens-revoke", min_width=140)
        message = theme.html(messages.message(""), elem_id="tokens-message")
        table = theme.html("", elem_id="tokens-table")
    tab.select(handlers.show, outputs=[form, user, message, table], **PARALLEL_EVENT)
    for button, handler in ((make, handlers.make), (revoke, handlers.revoke)):
        button.click(handler, inputs=user, outputs=[message, table], preprocess=False, **QUIET_EVENT)
