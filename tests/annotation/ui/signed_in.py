"""Access where whoever asks is whom a test says."""

import gradio as gr

from annotation.ui.access import Access, Forbidden, Person, Role


class SignedIn(Access):
    """A login through which everybody is this person; without a role, one who is no user any more."""

    has_login = True

    def __init__(self, role: Role | None, name: str = "kim") -> None:
        self.name, self.role = name, role

    def person(self, request: gr.Request) -> Person:
        if self.role is None:
            raise Forbidden("You are no longer a user of this server; sign in again.")
        return Person(self.name, self.role)
