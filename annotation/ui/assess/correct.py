"""Correcting the cards of the Assess tab: "This is right", a form with what the model said, and undo."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from html import escape
from typing import Any
from uuid import uuid4

import gradio as gr
from sqlalchemy.orm import Session

from annotation.store.corrections import AspectResponse, StaleError, latest_revision, withdraw
from annotation.store.current_responses import current_corrections
from annotation.store.image_files import StoredImage
from annotation.store.items import DEMO_SOURCE, add_item, record_assessment
from annotation.store.models import Correction
from annotation.store.people import annotator_named
from annotation.store.queue import enqueue, finish, reopen
from annotation.ui import payloads, theme
from annotation.ui.access import Access, Person, Role
from annotation.ui.assess import cards
from annotation.ui.assess.runs import RunState
from annotation.ui.context import Studio
from annotation.ui.correction_form import submissions
from annotation.ui.correction_form.form import correction_form
from annotation.ui.correction_form.submissions import Entered
from annotation.ui.images import Upload
from m3agiqa.aspects import Aspect
from m3agiqa.assessment import AspectResult
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.quality_map import QualityMap

log = logging.getLogger(__name__)

CARD_SCRIPT = theme.javascript("correction_form.js") + theme.javascript("assess_card.js")
MAX_SECONDS_TO_AGREE = 120.0  # who takes longer has done something else meanwhile

FORM_BUTTONS = (
    '<div class="verdict"><button type="submit" class="primary">Save</button>'
    '<button type="button" data-do="cancel">Cancel</button>'
    '<small class="keys"><kbd>Ctrl</kbd> <kbd>Enter</kbd> saves, <kbd>Esc</kbd> cancels</small></div>'
)
SIGN_IN = '<p class="hint">Sign in as an annotator to correct this.</p>'
UNEXPECTED_ERROR = "Something unexpected went wrong, and this was not saved; the app's log says more."

ASSESSMENT_LOST = (
    "The server no longer has this page's assessment: it has started anew, or a day has passed. Copy what "
    "you typed, then assess the image again."
)

# A card for each aspect, in their order; gr.skip() for those that stay as they are.
Cards = tuple[str | dict, ...]


@dataclass(frozen=True)
class SavedResponse:
    """What was saved of an aspect."""

    correction_id: int
    response: AspectResponse


@dataclass(frozen=True)
class _Record:
    """Where the assessment is in the database, and the latest revision of each aspect that is known here."""

    item_id: int
    assessment_id: int
    revisions: dict[Aspect, int]


class AssessedImage:
    """A finished assessment, for one person, and their corrections of it.

    Events of the page may come at the same moment.
    """

    def __init__(self, studio: Studio, person: Person, upload: Upload, state: RunState) -> None:
        assert state.assessment is not None and state.card is not None
        self.key = uuid4().hex[:12]
        """Tells this assessment's cards from those of others."""
        self.person = person
        self.state = state
        self._store = studio.store
        self._overlap = studio.settings.overlap
        self.upload = upload
        self.quality_map: QualityMap | None = None
        """Once somebody has asked for it."""
        self.latest_map_choice: object = None
        """Tells the newest choice of a map from those before it."""
        self._record: _Record | None = None
        self._saved: dict[Aspect, list[SavedResponse]] = {aspect: [] for aspect in Aspect}
        self._lock = threading.Lock()
        self._since = time.monotonic()

    def saved(self, aspect: Aspect) -> SavedResponse | None:
        """The latest that was saved here and not undone."""
        history = self._saved[aspect]
        return history[-1] if history else None

    def keep(self) -> None:
        """Store image and assessment, and put them into the annotation queue. Raises M3AgiqaError."""
        with self._lock:
            image = self._stored_image()

            def record_and_enqueue(session: Session) -> _Record:
                record = self._recorded(session, image)
                enqueue(session, [record.item_id], self._overlap)
                return record

            self._record = self._store.database.transact(record_and_enqueue)

    def agree(self, person: Person, aspect: Aspect, token: Any) -> None:
        """Save that the model's answer is right. Raises M3AgiqaError."""
        self._require_result(aspect)
        seconds = min(time.monotonic() - self._since, MAX_SECONDS_TO_AGREE)
        self.save(person, Entered.from_json([{"aspect": aspect, "agrees": True}], token, seconds))

    def save(self, person: Person, entered: Entered) -> None:
        """Save a correction of one aspect; it supersedes this person's earlier ones. Raises M3AgiqaError.

        Scale and revision are known here, whatever was sent.
        """
        [response] = entered.responses
        aspect = response.aspect
        result = self._require_result(aspect)
        if person.name != self.person.name:
            raise InputError("You have signed in as somebody else meanwhile; assess the image again.")
        with self._lock:
            image = None
            if self._record is None:  # assessments are not kept, or that one could not be
                image = self._stored_image()

            def save_and_finish(session: Session) -> tuple[_Record, SavedResponse]:
                record = self._record or self._recorded(session, image)
                newest = replace(response, scale=result.scale, revision=record.revisions[aspect] + 1)
                saved = submissions.save_entered(
                    session,
                    replace(entered, responses=(newest,)),
                    annotator=person.name,
                    item_id=record.item_id,
                    assessment_id=record.assessment_id,
                    tab="assess",
                )
                if self._is_complete(session, record.item_id):
                    finish(session, record.item_id, person.name)  # the queue need not ask them again
                if newest.agrees:
                    newest = replace(newest, score=result.mos, description=result.description)
                return record, SavedResponse(saved.corrections[aspect], newest)

            try:
                self._record, saved = self._store.database.transact(save_and_finish)
            except StaleError as error:
                if (record := self._record) is not None:
                    with self._store.database.reading() as session:
                        newest = latest_revision(session, record.item_id, aspect, person.name)
                        record.revisions[aspect] = newest
                raise StaleError(
                    f"You have saved another correction of this image's {aspect} meanwhile, in another "
                    "tab. Nothing is lost: save again to put this one in its place."
                ) from error
            self._since = time.monotonic()
            latest = self.saved(aspect)
            if latest is None or latest.correction_id != saved.correction_id:  # else it was sent twice
                self._saved[aspect].append(saved)
                self._record.revisions[aspect] = saved.response.revision

    def undo(self, person: Person, aspect: Aspect, correction_id: int) -> None:
        """Withdraw the correction that the card shows; what was before is back. Raises M3AgiqaError."""
        with self._lock:
            saved, record = self.saved(aspect), self._record
            if record is None or saved is None or saved.correction_id != correction_id:
                return  # pressed twice

            def withdraw_and_reopen(session: Session) -> None:
                was_complete = self._is_complete(session, record.item_id)
                withdraw(session, correction_id, person.name)
                if was_complete and not self._is_complete(session, record.item_id):
                    reopen(session, record.item_id, person.name)

            self._store.database.transact(withdraw_and_reopen)
            self._saved[aspect].pop()

    def _stored_image(self) -> StoredImage:
        return self._store.images.add(self.upload.path, self.upload.name, self.upload.image().size)

    def _is_complete(self, session: Session, item_id: int) -> bool:
        """Whether this person has said something of every aspect that was judged."""
        mine = current_corrections().where(
            Correction.item_id == item_id,
            Correction.annotator_id == annotator_named(session, self.person.name).id,
        )
        return self.state.results.keys() <= {correction.aspect for correction in session.scalars(mine)}

    def _recorded(self, session: Session, image: StoredImage) -> _Record:
        state, name = self.state, self.person.name
        item, _ = add_item(session, image, state.assessment.prompt, DEMO_SOURCE)
        assessment_id = record_assessment(session, item.id, state.assessment, state.card, name or None)
        revisions = {aspect: latest_revision(session, item.id, aspect, name) for aspect in Aspect}
        return _Record(item.id, assessment_id, revisions)

    def _require_result(self, aspect: Aspect) -> AspectResult:
        if aspect not in self.state.results:
            raise InputError(f"The model has not judged {aspect} here, so there is nothing to correct.")
        return self.state.results[aspect]


class CorrectHandlers:
    """Events of the three cards. What they change is in the store before the card says so."""

    def __init__(self, access: Access) -> None:
        self.access = access

    def card(self, aspect: Aspect, assessed: AssessedImage, problem: str = "", editing: bool = False) -> str:
        """A finished card as this person may see it; with a `problem`, what they typed stays."""
        saved = assessed.saved(aspect)
        below = self._below(aspect, assessed, saved, problem)
        return cards.card(aspect, assessed.state, saved.response if saved else None, below, editing)

    def agree(self, assessed: AssessedImage | None, event: gr.EventData, request: gr.Request) -> Cards:
        """This is right: the model's answer is the person's own."""
        return self._answer("agree", assessed, event, request)

    def save(self, assessed: AssessedImage | None, event: gr.EventData, request: gr.Request) -> Cards:
        """The form of a card was sent; it stays a form if this fails."""
        return self._answer("save", assessed, event, request)

    def undo(self, assessed: AssessedImage | None, event: gr.EventData, request: gr.Request) -> Cards:
        """Withdraw what the card shows as saved."""
        return self._answer("undo", assessed, event, request)

    def _answer(
        self, action: str, assessed: AssessedImage | None, event: gr.EventData, request: gr.Request
    ) -> Cards:
        data = event._data if isinstance(event._data, dict) else {}
        try:
            person = self.access.require(request, Role.ANNOTATOR)
            aspect = payloads.aspect(data.get("aspect"))
            if assessed is None:
                raise InputError(ASSESSMENT_LOST)
        except M3AgiqaError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error
        try:
            if action == "agree":
                assessed.agree(person, aspect, data.get("token"))
            elif action == "undo":
                assessed.undo(person, aspect, payloads.whole(data.get("correction"), "The correction"))
            else:
                response = {**data, "agrees": False}
                assessed.save(person, Entered.from_json([response], data.get("token"), data.get("seconds")))
            problem = ""
        except M3AgiqaError as error:
            problem = str(error)
        except Exception:  # a bug; what was typed must stay on the page
            log.exception("Correcting %s failed", aspect)
            problem = UNEXPECTED_ERROR
        card = self.card(aspect, assessed, problem, editing=action == "save" and bool(problem))
        return tuple(card if other is aspect else gr.skip() for other in Aspect)

    def _below(
        self, aspect: Aspect, assessed: AssessedImage, saved: SavedResponse | None, problem: str
    ) -> str:
        result = assessed.state.results.get(aspect)
        if result is None:
            return ""
        if not assessed.person.role.allows(Role.ANNOTATOR):
            return SIGN_IN if self.access.has_login else ""
        # The form begins with the latest that was said, the person's own before the model's.
        response = saved.response if saved else None
        form = correction_form(
            aspect,
            f"form-{aspect}",
            scale=result.scale,
            score=response.score if response else result.mos,
            description=(response.description if response else None) or result.description,
            tags=response.tags if response else (),
            comment=(response.comment if response else None) or "",
            version=f"{assessed.key}-{saved.correction_id if saved else 0}",
            actions=FORM_BUTTONS,
        )
        # The answer's number: even the same sentence twice is news to the page.
        return (
            f"{_buttons(aspect, saved)}{form}"
            f'<p class="problem" role="alert" data-answer="{uuid4().hex[:8]}">{escape(problem)}</p>'
        )


def wire(handlers: CorrectHandlers, card_parts: list[gr.HTML], assessed: gr.State) -> None:
    """Connect the cards' own events; each changes nothing but its card."""
    for card in card_parts:
        for handler in (handlers.agree, handlers.save, handlers.undo):
            getattr(card, handler.__name__)(
                handler,
                inputs=assessed,
                outputs=card_parts,
                show_progress="hidden",
                concurrency_limit=None,
                api_name=f"correct_{handler.__name__}",  # `save` and `undo` are endpoints for everybody
                api_visibility="private",
            ).failure(js="() => document.dispatchEvent(new Event('unanswered'))")


def _buttons(aspect: Aspect, saved: SavedResponse | None) -> str:
    if saved is None:
        return (
            '<div class="verdict"><p role="status"></p>'
            '<button type="button" data-do="agree">This is right</button>'
            '<button type="button" data-do="edit"'
            f' aria-controls="form-{aspect}">Edit</button></div>'
        )
    agrees = "You agree. " if saved.response.agrees else ""
    return (
        f'<div class="verdict saved"><p role="status">{agrees}Saved as correction'
        f" #{saved.correction_id}</p>"
        f'<button type="button" class="link" data-do="undo" data-correction="{saved.correction_id}">'
        "Undo</button>"
        f'<button type="button" class="link" data-do="edit" aria-controls="form-{aspect}">Edit</button></div>'
    )
