"""How corrections reach the store: what either tab or a program sends, checked and saved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store import corrections, exposures
from annotation.store.corrections import AspectResponse, NewSubmission, SavedSubmission
from annotation.store.models import AnswersOf, AspectAssessment
from annotation.ui import payloads
from m3agiqa.aspects import MosScale
from m3agiqa.errors import InputError


@dataclass(frozen=True)
class Entered:
    """What was entered in a form, in the store's terms."""

    responses: tuple[AspectResponse, ...]
    token: str
    seconds: float

    @classmethod
    def from_json(cls, responses: Any, token: Any, seconds: Any) -> Entered:
        """From what a page or program sends. Raises InputError for anything else."""
        if not isinstance(responses, list):
            raise InputError(f"What is said must be a list with one entry per aspect, not {responses!r:.40}.")
        if not isinstance(token, str) or not token.isprintable():  # its length is the store's to judge
            raise InputError("The token must be printable text, such as a UUID.")
        return cls(tuple(map(_response, responses)), token, payloads.as_number(seconds, "The seconds spent"))


def save_entered(
    session: Session,
    entered: Entered,
    *,
    annotator: str,
    item_id: int,
    assessment_id: int | None,
    tab: str,
    blind_mode: bool = False,
) -> SavedSubmission:
    """Save what was entered about an item, all of it or nothing; where it agrees, with the model's answer.

    Whether scores in blind mode were really blind is decided here. Raises InputError as
    annotation.store.corrections.save does.
    """
    responses = tuple(
        _with_model_answer(session, assessment_id, response) if response.agrees else response
        for response in entered.responses
    )
    scores = {(item_id, response.aspect): response.score for response in responses}
    agreed = [response.aspect for response in responses if response.agrees]
    blind = blind_mode and exposures.is_blind(session, annotator, item_id, scores, agreed)
    before = scores if blind_mode else exposures.current_scores(session, annotator, [item_id])
    submission = NewSubmission(
        token=entered.token,
        item_id=item_id,
        annotator=annotator,
        responses=responses,
        assessment_id=assessment_id,
        place=tab,
        blind=blind,
        seconds=entered.seconds,
    )
    saved = corrections.save(session, submission)
    if assessment_id is not None and not saved.again:
        # Whoever saves with the model's answer at hand has read it: in blind mode after scoring.
        judged = select(AspectAssessment.aspect).where(AspectAssessment.assessment_id == assessment_id)
        shown = {(item_id, aspect) for aspect in session.scalars(judged)}
        exposures.record(
            session, annotator, AnswersOf.MODEL, shown & scores.keys() if blind_mode else shown, before
        )
    return saved


# --- what pages and programs send --------------------------------------------------------------


def _response(value: Any) -> AspectResponse:
    """Of one aspect; only "aspect", and "score" where it does not agree with the model, are needed."""
    if not isinstance(value, dict):
        raise InputError(f"What is said of an aspect must be a JSON object, not {value!r:.40}.")
    aspect = payloads.aspect(value.get("aspect"))
    agrees = value.get("agrees", False) is True
    tags = value.get("tags", [])
    if not isinstance(tags, list | tuple):
        raise InputError(f"The tags of {aspect} must be a list, not {tags!r:.40}.")
    return AspectResponse(
        aspect=aspect,
        score=0.0 if agrees else payloads.as_number(value.get("score"), f"The score of {aspect}"),
        scale=_scale(value.get("scale", [1, 5])),
        description=_optional_text(value.get("description"), f"The description of {aspect}"),
        agrees=agrees,
        tags=tuple(payloads.text(tag, f"A tag of {aspect}") for tag in tags),
        comment=_optional_text(value.get("comment"), f"The comment on {aspect}"),
        revision=payloads.whole(value.get("revision", 1), f"The revision of {aspect}"),
    )


def _scale(value: Any) -> MosScale:
    """[low, high]."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"A scale is a list of its low and its high end, not {value!r:.40}.")
    try:
        return MosScale(
            payloads.as_number(value[0], "The low end of a scale"),
            payloads.as_number(value[1], "Its high end"),
        )
    except ValueError as error:
        raise InputError(f"A scale needs a low end below its high one, not {value!r:.40}.") from error


def _optional_text(value: Any, what: str) -> str | None:
    return None if value is None else payloads.text(value, what)


# --- agreement -----------------------------------------------------------------------------------


def _with_model_answer(
    session: Session, assessment_id: int | None, response: AspectResponse
) -> AspectResponse:
    # No assessment has the number 0.
    answer = session.get(AspectAssessment, (assessment_id or 0, response.aspect))
    if answer is None:
        raise InputError(f"The model has said nothing on {response.aspect} that you could agree with.")
    return replace(response, score=answer.mos, scale=answer.scale, description=answer.description)
