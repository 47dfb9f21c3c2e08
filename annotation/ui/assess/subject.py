"""What a visitor has before them on the Assess tab: one assessment, and what they have said of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from uuid import uuid4

from sqlalchemy.orm import Session

from annotation.store.corrections import (
    AspectResponse,
    NewSubmission,
    StaleError,
    current_corrections,
    latest_revision,
    save,
    withdraw,
)
from annotation.store.image_files import StoredImage
from annotation.store.items import DEMO, add_item, record_assessment
from annotation.store.models import Correction
from annotation.store.people import annotator_named
from annotation.store.queue import enqueue, finish, reopen
from annotation.ui.access import Person
from annotation.ui.assess.runs import RunState
from annotation.ui.context import Studio
from annotation.ui.uploads import Upload
from m3agiqa.aspects import Aspect
from m3agiqa.assessor import AspectResult
from m3agiqa.errors import InputError

PAUSE = 120.0  # seconds; who takes longer to agree has done something else meanwhile


@dataclass(frozen=True)
class Verdict:
    """What was saved of an aspect."""

    correction_id: int
    said: AspectResponse


@dataclass(frozen=True)
class _Record:
    """Where the assessment is in the database, and the latest revision of each aspect that is known here."""

    item_id: int
    assessment_id: int
    revisions: dict[Aspect, int]


class Subject:
    """A finished assessment, for one person. Events of the page may come at the same moment."""

    def __init__(self, studio: Studio, person: Person, upload: Upload, state: RunState) -> None:
        assert state.assessment is not None and state.card is not None
        self.key = uuid4().hex[:12]
        """Tells this assessment's cards from those of others."""
        self.person = person
        self.state = state
        self._store = studio.store
        self._overlap = studio.settings.overlap
        self.upload = upload
        self._record: _Record | None = None
        self._verdicts: dict[Aspect, list[Verdict]] = {aspect: [] for aspect in Aspect}
        self._lock = threading.Lock()
        self._since = time.monotonic()

    def verdict(self, aspect: Aspect) -> Verdict | None:
        """The latest that was saved here and not undone."""
        said = self._verdicts[aspect]
        return said[-1] if said else None

    def keep(self) -> None:
        """Store image and assessment, and put them into the annotation queue. Raises M3AgiqaError."""
        with self._lock:
            image = self._store.images.add(self.upload.path, self.upload.name)

            def work(session: Session) -> _Record:
                record = self._recorded(session, image)
                enqueue(session, [record.item_id], self._overlap)
                return record

            self._record = self._store.database.transact(work)

    def agree(self, person: Person, aspect: Aspect, token: str) -> None:
        """Save that the model's answer is right. Raises M3AgiqaError."""
        result = self._result(aspect)
        said = AspectResponse(aspect, result.mos, result.scale, result.description, agrees=True)
        self.save(person, said, token, min(time.monotonic() - self._since, PAUSE))

    def save(self, person: Person, said: AspectResponse, token: str, seconds: float) -> None:
        """Save a correction; it supersedes this person's earlier ones. Raises M3AgiqaError.

        Scale and revision are known here, whatever `said` has.
        """
        scale = self._result(said.aspect).scale
        if person.name != self.person.name:
            raise InputError("You have signed in as somebody else meanwhile; assess the image again.")
        with self._lock:
            image = None
            if self._record is None:  # assessments are not kept, or that one could not be
                image = self._store.images.add(self.upload.path, self.upload.name)

            def work(session: Session) -> tuple[_Record, Verdict]:
                record = self._record or self._recorded(session, image)
                revision = record.revisions[said.aspect] + 1
                now = replace(said, scale=scale, revision=revision)
                draft = NewSubmission(
                    token, record.item_id, person.name, (now,), record.assessment_id, "assess", False, seconds
                )
                saved = save(session, draft)
                if self._is_complete(session, record.item_id):
                    finish(session, record.item_id, person.name)  # the queue need not ask them again
                return record, Verdict(saved.corrections[said.aspect], now)

            try:
                self._record, verdict = self._store.database.transact(work)
            except StaleError as error:
                self._look_again(said.aspect)
                raise StaleError(
                    f"You have saved another correction of this image's {said.aspect} meanwhile, in another "
                    "tab. Nothing is lost: save again to put this one in its place."
                ) from error
            self._since = time.monotonic()
            shown = self.verdict(said.aspect)
            if shown is None or shown.correction_id != verdict.correction_id:  # else it was sent twice
                self._verdicts[said.aspect].append(verdict)
                self._record.revisions[said.aspect] = verdict.said.revision

    def undo(self, person: Person, aspect: Aspect, correction_id: int) -> None:
        """Withdraw the correction that the card shows; what was before is back. Raises M3AgiqaError."""
        with self._lock:
            verdict = self.verdict(aspect)
            if verdict is None or verdict.correction_id != correction_id:
                return  # pressed twice

            def work(session: Session) -> None:
                record = self._record
                was_complete = self._is_complete(session, record.item_id)
                withdraw(session, correction_id, person.name)
                if was_complete and not self._is_complete(session, record.item_id):
                    reopen(session, record.item_id, person.name)

            self._store.database.transact(work)
            self._verdicts[aspect].pop()

    def _is_complete(self, session: Session, item_id: int) -> bool:
        """Whether this person has said something of every aspect that was judged."""
        mine = current_corrections().where(
            Correction.item_id == item_id,
            Correction.annotator_id == annotator_named(session, self.person.name).id,
        )
        return self.state.results.keys() <= {correction.aspect for correction in session.scalars(mine)}

    def _recorded(self, session: Session, image: StoredImage) -> _Record:
        state, name = self.state, self.person.name
        item, _ = add_item(session, image, state.assessment.prompt, DEMO)
        assessment_id = record_assessment(session, item.id, state.assessment, state.card, name or None)
        revisions = {aspect: latest_revision(session, item.id, aspect, name) for aspect in Aspect}
        return _Record(item.id, assessment_id, revisions)

    def _look_again(self, aspect: Aspect) -> None:
        if (record := self._record) is not None:
            with self._store.database.reading() as session:
                record.revisions[aspect] = latest_revision(session, record.item_id, aspect, self.person.name)

    def _result(self, aspect: Aspect) -> AspectResult:
        if aspect not in self.state.results:
            raise InputError(f"The model has not judged {aspect} here, so there is nothing to correct.")
        return self.state.results[aspect]
