"""How corrections reach the store: what either tab or a program sends, checked and saved."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.store import corrections
from annotation.store.corrections import AspectResponse, NewSubmission, SavedSubmission
from annotation.store.models import Annotator, AspectAssessment, Assessment, Correction, Submission
from annotation.ui import payloads
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError

MAX_REMEMBERED = 20_000  # people times items; far more than are ever being worked on


class ShownAnswers:
    """Which of the model's answers were shown to whom, so that a blind score is known to be one.

    Kept in memory. After a restart of the server, saved submissions still tell who knows an answer; people
    who had merely looked at it pass for blind, unless their page knows better. A blind score stays blind
    when the answer is shown afterwards, and no longer once it is changed.
    """

    def __init__(self) -> None:
        self._scores: OrderedDict[tuple[str, int], dict[Aspect, float]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, person: str, item: int, aspect: Aspect, score: float = math.nan) -> None:
        """The answer is shown from now on; `score` is what the person had given before, NaN for nothing."""
        with self._lock:
            self._scores.setdefault((person, item), {}).setdefault(aspect, score)
            self._scores.move_to_end((person, item))
            if len(self._scores) > MAX_REMEMBERED:
                self._scores.popitem(last=False)

    def aspects(self, person: str, item: int) -> frozenset[Aspect]:
        """The aspects whose answers may have been shown to this person."""
        return frozenset(self._scores.get((person, item), ()))

    def had_score(self, person: str, item: int, aspect: Aspect, score: float) -> bool:
        """Whether this very score was given before the answer was shown."""
        return math.isclose(self._scores.get((person, item), {}).get(aspect, score), score)


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


def save(
    session: Session,
    entered: Entered,
    *,
    annotator: str,
    item_id: int,
    assessment_id: int | None,
    tab: str,
    shown_answers: ShownAnswers | None = None,
) -> SavedSubmission:
    """Save what was entered about an item, all of it or nothing; where it agrees, with the model's answer.

    `shown_answers` are given in blind mode: whether the scores were really blind is decided here.
    Raises InputError as annotation.store.corrections.save does.
    """
    responses = tuple(
        _with_model_answer(session, assessment_id, response) if response.agrees else response
        for response in entered.responses
    )
    submission = NewSubmission(
        token=entered.token,
        item_id=item_id,
        annotator=annotator,
        responses=responses,
        assessment_id=assessment_id,
        place=tab,
        blind=shown_answers is not None and _is_blind(session, annotator, item_id, responses, shown_answers),
        seconds=entered.seconds,
    )
    return corrections.save(session, submission)


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


# --- agreement and blindness -------------------------------------------------------------------


def _with_model_answer(
    session: Session, assessment_id: int | None, response: AspectResponse
) -> AspectResponse:
    # No assessment has the number 0.
    answer = session.get(AspectAssessment, (assessment_id or 0, response.aspect))
    if answer is None:
        raise InputError(f"The model has said nothing on {response.aspect} that you could agree with.")
    return replace(response, score=answer.mos, scale=answer.scale, description=answer.description)


def _is_blind(
    session: Session,
    annotator: str,
    item_id: int,
    responses: tuple[AspectResponse, ...],
    shown_answers: ShownAnswers,
) -> bool:
    """Whether all these scores were given before their answers were shown."""
    shown = shown_answers.aspects(annotator, item_id)
    return (
        all(shown_answers.had_score(annotator, item_id, one.aspect, one.score) for one in responses)
        and all(one.aspect in shown for one in responses if one.agrees)  # with what has been shown
        and not _has_assessed(session, annotator, item_id)
        and _equals_earlier_blind_scores(session, annotator, item_id, responses)
    )


def _has_assessed(session: Session, annotator: str, item_id: int) -> bool:
    """Whether they have had this image assessed themselves, and so know the answer."""
    own = select(Assessment.id).join(Annotator, Annotator.id == Assessment.annotator_id)
    own = own.where(Assessment.item_id == item_id, Annotator.name == annotator)
    return bool(session.scalar(own.exists().select()))


def _equals_earlier_blind_scores(
    session: Session, annotator: str, item_id: int, responses: tuple[AspectResponse, ...]
) -> bool:
    """Whether these scores are those that the person had saved blind, as far as they have saved any.

    Whoever has saved something with the model's answer at hand has seen it: before, or right after a score
    that was blind. This is known for good, other than what `ShownAnswers` knows.
    """
    scores = {response.aspect: response.score for response in responses}
    earlier = session.execute(
        select(Correction.aspect, Correction.score, Submission.blind)
        .join(Correction.submission)
        .join(Submission.annotator)
        .where(
            Submission.item_id == item_id,
            Submission.assessment_id.is_not(None),
            Annotator.name == annotator,
        )
    )
    return all(
        blind and math.isclose(score, scores.get(aspect, score)) for aspect, score, blind in earlier.tuples()
    )
