"""The head of the page: what this is, and who is signed in."""

from __future__ import annotations

from html import escape

import gradio as gr

from annotation.backup import storage_warning
from annotation.ui import messages, theme
from annotation.ui.access import Access, Role, SpaceAccess, UsersAccess
from annotation.ui.context import Studio
from m3agiqa.errors import M3AgiqaError

TITLE_HTML = """
<header class="studio">
  <h1>M3-AGIQA <span>Studio</span></h1>
</header>
"""
INTRODUCTION_HTML = """
<p>Judges an AI-generated image the way people would: quality, correspondence with its prompt, and
authenticity, each with a description, a rating and a mean opinion score.</p>
"""
SIGN_OUT = '<a href="logout">Sign out</a>'


def page_head(studio: Studio, demo: gr.Blocks) -> None:
    """Build it; who makes the request is asked whenever a page is opened."""
    access, warning = studio.access, storage_warning(studio.settings)

    def who(request: gr.Request) -> str:
        return signed_in(access, request)

    def warn(request: gr.Request) -> str:
        return messages.message(warning if access.person(request).role.allows(Role.ADMIN) else "")

    with gr.Row(elem_id="head"):
        theme.html(TITLE_HTML)
        if access.has_login:
            with gr.Column(elem_id="login", scale=0, min_width=280):
                user_line = theme.html("", elem_id="who")
                if isinstance(access, SpaceAccess):
                    gr.LoginButton(size="sm", elem_id="sign-in")
            demo.load(who, outputs=user_line, show_progress="hidden", queue=False, api_visibility="private")
    if warning:
        alert = theme.html(messages.message(""), elem_id="storage-warning")
        demo.load(warn, outputs=alert, show_progress="hidden", queue=False, api_visibility="private")
    theme.html(INTRODUCTION_HTML, elem_id="introduction")


def signed_in(access: Access, request: gr.Request) -> str:
    """Name and role, and the way out where Hugging Face's own button is not that."""
    way_out = SIGN_OUT if isinstance(access, UsersAccess) else ""
    try:
        person = access.person(request)
    except M3AgiqaError as error:
        return f'<p class="note">{escape(str(error))} {way_out}</p>'
    if not person.name:
        return '<p class="note">Visitors may look and assess; sign in to annotate as well.</p>'
    return f'<p class="note">Signed in as <b>{escape(person.name)}</b> ({person.role}) {way_out}</p>'
