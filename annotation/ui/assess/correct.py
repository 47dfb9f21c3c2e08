"""Correcting a card: "This is right", a form prefilled with what the model said, and undo."""

from __future__ import annotations

import logging
from collections.abc import Callable
from html import escape
from typing import Any
from uuid import uuid4

import gradio as gr

from annotation.store.corrections import ERROR_TAGS, MAX_COMMENT, MAX_DESCRIPTION, MAX_TAG
from annotation.ui import payloads, theme
from annotation.ui.access import Access, Person, Role
from annotation.ui.assess import cards
from annotation.ui.assess.subject import Subject, Verdict
from m3agiqa.aspects import Aspect
from m3agiqa.assessor import AspectResult
from m3agiqa.errors import InputError, M3AgiqaError

log = logging.getLogger(__name__)

JAVASCRIPT = theme.javascript("assess-correct.js")

SIGN_IN = '<p class="hint">Sign in as an annotator to correct this.</p>'
UNEXPECTED = "Something unexpected went wrong, and this was not saved; the app's log says more."

# A card for each aspect, in their order; gr.skip() for those that stay as they are.
Cards = tuple[str | dict, ...]


class CorrectHandlers:
    """Events of the three cards. What they change is in the store before the card says so."""

    def __init__(self, access: Access) -> None:
        self.access = access

    def card(self, aspect: Aspect, subject: Subject, problem: str = "", editing: bool = False) -> str:
        """A finished card as this person may see it; with a `problem`, what they typed stays."""
        verdict = subject.verdict(aspect)
        return cards.card(
            aspect,
            subject.state,
            said=verdict.said if verdict else None,
            below=self._below(aspect, subject, verdict, problem),
            editing=editing,
        )

    def agree(self, subject: Subject | None, event: gr.EventData, request: gr.Request) -> Cards:
        """This is right: the model's answer is the person's own."""

        def agree(subject: Subject, person: Person, aspect: Aspect, data: dict) -> None:
            subject.agree(person, aspect, payloads.text(data.get("token"), "The token"))

        return self._answer(agree, subject, event, request, editing=False)

    def save(self, subject: Subject | None, event: gr.EventData, request: gr.Request) -> Cards:
        """The form of a card was sent."""

        def save(subject: Subject, person: Person, aspect: Aspect, data: dict) -> None:
            token = payloads.text(data.get("token"), "The token")
            said = payloads.said({**data, "agrees": False})
            subject.save(person, said, token, payloads.number(data.get("seconds"), "The time spent"))

        return self._answer(save, subject, event, request, editing=True)

    def undo(self, subject: Subject | None, event: gr.EventData, request: gr.Request) -> Cards:
        """Withdraw what the card shows as saved."""

        def undo(subject: Subject, person: Person, aspect: Aspect, data: dict) -> None:
            subject.undo(person, aspect, payloads.whole(data.get("correction"), "The correction"))

        return self._answer(undo, subject, event, request, editing=False)

    def _answer(
        self,
        act: Callable[[Subject, Person, Aspect, dict[str, Any]], None],
        subject: Subject | None,
        event: gr.EventData,
        request: gr.Request,
        editing: bool,
    ) -> Cards:
        """`editing`: whether the card stays a form if this fails."""
        data = event._data if isinstance(event._data, dict) else {}
        try:
            person = self.access.require(request, Role.ANNOTATOR)
            aspect = payloads.aspect(data.get("aspect"))
            if subject is None:
                raise InputError("There is no assessment to correct; assess the image again.")
        except M3AgiqaError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
        try:
            act(subject, person, aspect, data)
            problem = ""
        except M3AgiqaError as error:
            problem = str(error)
        except Exception:  # a bug; what was typed must stay on the page
            log.exception("Correcting %s failed", aspect)
            problem = UNEXPECTED
        shown = self.card(aspect, subject, problem, editing=editing and bool(problem))
        return tuple(shown if other is aspect else gr.skip() for other in Aspect)

    def _below(self, aspect: Aspect, subject: Subject, verdict: Verdict | None, problem: str) -> str:
        result = subject.state.results.get(aspect)
        if result is None:
            return ""
        if not subject.person.role.allows(Role.ANNOTATOR):
            return SIGN_IN if self.access.has_login else ""
        # The answer's number: even the same sentence twice is news to the page.
        return (
            f"{_buttons(aspect, verdict)}{_form(result, verdict, subject.key)}"
            f'<p class="problem" role="alert" data-answer="{uuid4().hex[:8]}">{escape(problem)}</p>'
        )


def wire(handlers: CorrectHandlers, shown: list[gr.HTML], subject: gr.State) -> None:
    """Connect the cards' own events; each changes nothing but its card."""
    for card in shown:
        for event, handler in (
            (card.agree, handlers.agree),
            (card.save, handlers.save),
            (card.undo, handlers.undo),
        ):
            event(
                handler,
                inputs=subject,
                outputs=shown,
                show_progress="hidden",
                concurrency_limit=None,
                api_name=f"correct_{handler.__name__}",  # `save` and `undo` are endpoints for everybody
                api_visibility="private",
            )


def _buttons(aspect: Aspect, verdict: Verdict | None) -> str:
    if verdict is None:
        return (
            '<div class="verdict"><p role="status"></p>'
            '<button type="button" class="plain" data-do="agree">This is right</button>'
            '<button type="button" class="plain" data-do="edit"'
            f' aria-controls="form-{aspect}">Edit</button></div>'
        )
    agrees = "You agree. " if verdict.said.agrees else ""
    return (
        f'<div class="verdict saved"><p role="status">{agrees}Saved as correction'
        f" #{verdict.correction_id}</p>"
        f'<button type="button" class="link" data-do="undo" data-correction="{verdict.correction_id}">'
        "Undo</button>"
        f'<button type="button" class="link" data-do="edit" aria-controls="form-{aspect}">Edit</button></div>'
    )


def _form(result: AspectResult, verdict: Verdict | None, subject: str) -> str:
    """Prefilled with the latest that was said, the person's own before the model's."""
    aspect, scale = result.aspect, result.scale
    said = verdict.said if verdict else None
    description = (said.description if said else None) or result.description
    score = f"{said.score if said else result.mos:.1f}"
    tags = said.tags if said else ()
    chips = "".join(_chip(tag, tag in tags) for tag in ERROR_TAGS[aspect])
    others = ", ".join(tag for tag in tags if tag not in ERROR_TAGS[aspect])
    version = f"{subject}-{verdict.correction_id if verdict else 0}"  # another one: the form begins anew
    return (
        f'<form id="form-{aspect}" class="correction" data-aspect="{aspect}" data-version="{version}"'
        f' aria-label="Correct {aspect}" autocomplete="off" novalidate>'
        f'<label for="description-{aspect}">Description</label>'
        f'<textarea id="description-{aspect}" name="description" rows="6" maxlength="{MAX_DESCRIPTION}">\n'
        f"{escape(description)}</textarea>"
        f'<div class="slider"><label for="score-{aspect}">Score</label>'
        f'<output for="score-{aspect}">{score}</output>'
        f'<input type="range" id="score-{aspect}" name="score" min="{scale.low:g}" max="{scale.high:g}"'
        f' step="0.1" value="{score}">'
        f'<p class="ends" aria-hidden="true"><span>{scale.low:g}</span><span>{scale.high:g}</span></p></div>'
        f"<fieldset><legend>What the model got wrong</legend>{chips}"
        '<input type="text" name="others" class="others" aria-label="Other errors, separated by commas"'
        f' placeholder="other …" maxlength="{5 * MAX_TAG}" value="{escape(others)}"></fieldset>'
        f'<label for="comment-{aspect}">Comment <small>(optional)</small></label>'
        f'<textarea id="comment-{aspect}" name="comment" rows="1" maxlength="{MAX_COMMENT}">\n'
        f"{escape((said.comment if said else None) or '')}</textarea>"
        '<div class="verdict"><button type="submit" class="primary">Save</button>'
        '<button type="button" class="plain" data-do="cancel">Cancel</button>'
        '<small class="keys"><kbd>Ctrl</kbd> <kbd>Enter</kbd> saves, <kbd>Esc</kbd> cancels</small></div>'
        "</form>"
    )


def _chip(tag: str, chosen: bool) -> str:
    checked = " checked" if chosen else ""
    return (
        f'<label class="chip"><input type="checkbox" name="tags" value="{escape(tag)}"{checked}>'
        f"<span>{escape(tag)}</span></label>"
    )
