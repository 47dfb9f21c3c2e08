"""People's responses to images: saved as a whole, superseded by later ones, withdrawn by undo."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session, selectinload

from annotation.store.current_responses import current_corrections
from annotation.store.database import storable, storable_within
from annotation.store.items import require_item
from annotation.store.models import (
    Annotator,
    AspectAssessment,
    Assessment,
    Correction,
    CorrectionTag,
    Submission,
    Withdrawal,
)
from annotation.store.people import annotator_named
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError

ERROR_TAGS: dict[Aspect, tuple[str, ...]] = {
    Aspect.QUALITY: (
        "missed flaw",
        "invented flaw",
        "wrong sharpness",
        "wrong colours or light",
        "wrong composition",
        "score too high",
        "score too low",
    ),
    Aspect.CORRESPONDENCE: (
        "missed object",
        "invented object",
        "wrong count",
        "wrong attribute",
        "wrong relation",
        "wrong style",
        "score too high",
        "score too low",
    ),
    Aspect.AUTHENTICITY: (
        "missed artefact",
        "invented artefact",
        "wrong anatomy",
        "wrong text in image",
        "wrong physics or light",
        "score too high",
        "score too low",
    ),
}
"""Kinds of error that the model's answer may have; people may write their own, too."""

MAX_DESCRIPTION = 5000  # characters
MAX_COMMENT = 2000
MAX_TAG = 60
MAX_TAGS = 20
MAX_TOKEN = 64
MAX_SCORE = 1000.0  # points, either way; on far larger scales the arithmetic of means would overflow
MAX_SECONDS = 24 * 3600.0  # seconds; a page that was open for longer tells nothing about the work


class StaleError(InputError):
    """The same annotator has saved something newer meanwhile, in another tab."""


class WithdrawnError(InputError):
    """What is sent again had been saved under this token, and has been withdrawn since."""


@dataclass(frozen=True)
class AspectResponse:
    """What a person says of one aspect."""

    aspect: Aspect
    score: float
    """On `scale`."""
    scale: MosScale
    description: str | None = None
    """None for a score alone."""
    agrees: bool = False
    """Whether this is the model's own answer, confirmed."""
    tags: tuple[str, ...] = ()
    comment: str | None = None
    revision: int = 1
    """Of this annotator's for the item and aspect: one more than the latest that they have seen."""


@dataclass(frozen=True)
class NewSubmission:
    """What a person wants to save of an item, in one go."""

    token: str
    """Made by the page: what is sent twice under the same token is saved once, also if it is withdrawn."""
    item_id: int
    annotator: str
    responses: tuple[AspectResponse, ...]
    assessment_id: int | None = None
    """What they had before them."""
    place: str = "annotate"
    blind: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class SavedSubmission:
    """A saved submission, and the id of the correction of each aspect."""

    submission_id: int
    corrections: dict[Aspect, int]
    again: bool
    """Whether this token had been saved before, and nothing new was written."""


def save(session: Session, draft: NewSubmission) -> SavedSubmission:
    """Save a draft, all of it or nothing.

    Raises InputError for what cannot be saved, StaleError where a newer revision exists, and WithdrawnError
    if all of it had been saved before and withdrawn.
    """
    draft = _checked(draft)
    person = annotator_named(session, draft.annotator)
    known = session.scalar(select(Submission).where(Submission.token == draft.token))
    if known is not None:
        return _saved_before(known, draft, person)
    require_item(session, draft.item_id)
    _require_assessment(session, draft)
    for response in draft.responses:
        _require_newest(session, draft, response)
    submission = Submission(
        token=draft.token,
        item_id=draft.item_id,
        annotator_id=person.id,
        assessment_id=draft.assessment_id,
        place=draft.place,
        blind=draft.blind,
        seconds=draft.seconds,
        corrections=[_correction(draft, response, person) for response in draft.responses],
    )
    session.add(submission)
    session.flush()
    return SavedSubmission(submission.id, _ids(submission), again=False)


def latest_revision(session: Session, item_id: int, aspect: Aspect, annotator: str) -> int:
    """The highest revision of an annotator's corrections of an aspect, withdrawn ones included; 0 if none."""
    revision = session.scalar(
        select(func.max(Correction.revision))
        .join(Annotator, Annotator.id == Correction.annotator_id)
        .where(
            Correction.item_id == item_id,
            Correction.aspect == aspect,
            Annotator.name == storable(annotator),
        )
    )
    return revision or 0


def withdraw(session: Session, correction_id: int, annotator: str) -> None:
    """Undo a correction of one's own; what it superseded is current again. Twice is the same as once.

    Raises InputError for one that does not exist or is somebody else's.
    """
    correction = session.get(Correction, correction_id)
    if correction is None:
        raise InputError(f"There is no correction #{correction_id} to undo.")
    if correction.annotator_id != annotator_named(session, annotator).id:
        raise InputError(f"Correction #{correction_id} is somebody else's; only they can undo it.")
    if correction.withdrawal is None:
        session.add(Withdrawal(correction=correction))
        session.flush()


def withdraw_submission(session: Session, submission_id: int, annotator: str) -> None:
    """Undo all that was saved in one go. Raises InputError as `withdraw` does."""
    submission = session.get(Submission, submission_id, options=[selectinload(Submission.corrections)])
    if submission is None:
        raise InputError(f"There is no submission #{submission_id} to undo.")
    for correction in submission.corrections:
        withdraw(session, correction.id, annotator)


def has_response(session: Session, item_id: int, annotator: str) -> bool:
    """Whether anything that an annotator said of an item is current."""
    standing = (
        select(Correction.id)
        .join(Annotator, Annotator.id == Correction.annotator_id)
        .where(
            Correction.item_id == item_id,
            Annotator.name == storable(annotator),
            ~Correction.withdrawal.has(),
        )
    )
    return bool(session.scalar(standing.exists().select()))


def model_texts(session: Session, item_id: int | None = None) -> dict[int, str]:
    """By current correction: what the model had said to the person; of one item, or of all."""
    current = current_corrections().with_only_columns(Correction.id)
    if item_id is not None:
        current = current.where(Correction.item_id == item_id)
    rows = session.execute(
        select(Correction.id, AspectAssessment.description)
        .join(Correction.submission)
        .join(
            AspectAssessment,
            and_(
                AspectAssessment.assessment_id == Submission.assessment_id,
                AspectAssessment.aspect == Correction.aspect,
            ),
        )
        .where(Correction.id.in_(current))
    )
    return dict(rows.tuples().all())


def same_text(own: str | None, models: str | None) -> bool:
    """Whether a person has left the model's text standing; white space makes no difference."""
    return (own or "").split() == (models or "").split()


# --- saving ------------------------------------------------------------------------------------


def _checked(draft: NewSubmission) -> NewSubmission:
    """The draft as it can be stored. Raises InputError."""
    if not draft.token or len(draft.token) > MAX_TOKEN:
        raise InputError("This was sent without its token; reload the page and save again.")
    if not draft.responses:
        raise InputError("Nothing has been scored yet; give at least one aspect a score.")
    if len({response.aspect for response in draft.responses}) < len(draft.responses):
        raise InputError("An aspect was given twice; reload the page and save again.")
    seconds = min(max(draft.seconds, 0.0), MAX_SECONDS) if math.isfinite(draft.seconds) else 0.0
    return replace(draft, responses=tuple(map(_checked_aspect, draft.responses)), seconds=seconds)


def _checked_aspect(response: AspectResponse) -> AspectResponse:
    low, high = response.scale.low, response.scale.high
    if max(abs(low), abs(high)) > MAX_SCORE:
        raise InputError(f"A scale from {low:g} to {high:g} is too large; give one within ±{MAX_SCORE:,.0f}.")
    if not (math.isfinite(response.score) and low <= response.score <= high):
        raise InputError(
            f"The score of {response.aspect} is {response.score:g}; give one from {low:g} to {high:g}."
        )
    description = response.description
    if description is not None:
        description = (
            storable_within(description, MAX_DESCRIPTION, f"description of {response.aspect}") or None
        )
        if description is None and not response.agrees:
            raise InputError(
                f"The description of {response.aspect} is empty; write one, or take the model's."
            )
    tags = tuple(dict.fromkeys(filter(None, (storable_within(tag, MAX_TAG, "tag") for tag in response.tags))))
    if len(tags) > MAX_TAGS:
        raise InputError(f"{response.aspect.capitalize()} has {len(tags)} tags; give at most {MAX_TAGS}.")
    comment = storable_within(response.comment or "", MAX_COMMENT, f"comment on {response.aspect}") or None
    return replace(response, description=description, tags=tags, comment=comment)


def _saved_before(submission: Submission, draft: NewSubmission, person: Annotator) -> SavedSubmission:
    if (submission.annotator_id, submission.item_id) != (person.id, draft.item_id):
        raise InputError("This was sent with the token of something else; reload the page and save again.")
    if all(correction.withdrawal is not None for correction in submission.corrections):
        raise WithdrawnError(
            "You had saved this before and have taken it back since; reload the page, then save it again if "
            "you want it after all."
        )
    return SavedSubmission(submission.id, _ids(submission), again=True)


def _require_assessment(session: Session, draft: NewSubmission) -> None:
    if draft.assessment_id is None:
        return
    assessment = session.get(Assessment, draft.assessment_id)
    if assessment is None or assessment.item_id != draft.item_id:
        raise InputError("The assessment that this corrects is of another image; reload the page.")


def _require_newest(session: Session, draft: NewSubmission, response: AspectResponse) -> None:
    """Two tabs that get past this at the same moment meet at the table's unique constraint."""
    latest = latest_revision(session, draft.item_id, response.aspect, draft.annotator)
    if response.revision != latest + 1:
        raise StaleError(
            f"You have saved another correction of this image's {response.aspect} meanwhile, in another tab; "
            "reload the page to see it, then save again if you still want to change it."
        )


def _correction(draft: NewSubmission, response: AspectResponse, person: Annotator) -> Correction:
    return Correction(
        item_id=draft.item_id,
        aspect=response.aspect,
        annotator_id=person.id,
        revision=response.revision,
        agrees=response.agrees,
        score=response.score,
        scale_low=response.scale.low,
        scale_high=response.scale.high,
        description=response.description,
        comment=response.comment,
        tags=[CorrectionTag(tag=tag) for tag in response.tags],
    )


def _ids(submission: Submission) -> dict[Aspect, int]:
    return {correction.aspect: correction.id for correction in submission.corrections}
