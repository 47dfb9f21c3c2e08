"""Annotating one item after the other: what the Annotate tab and programs do over HTTP, as plain JSON.

`POST /gradio_api/run/NAME` with `{"data": [all arguments in order]}` answers `{"data": [result]}`, or
`{"error": a sentence}` with status 500. Defaults are gradio_client's to fill in: if an argument is missing
here, Gradio itself answers `{"error": null}`. `GET /gradio_api/info?all_endpoints=true` lists the
arguments.

An item's view holds what a person needs to judge it, with the model's answer as far as they may see it:
all of it, or in blind mode the aspects that they have scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

import gradio as gr
from sqlalchemy.orm import Session

from annotation.store import corrections, exposures, queue
from annotation.store.items import latest_assessment, require_item
from annotation.store.models import AnswersOf, AspectAssessment, Assessment, Submission
from annotation.ui import payloads
from annotation.ui.access import Person, Role
from annotation.ui.annotate.prefetch import AHEAD_OF_ORDER, ITEMS_AHEAD, Prefetch
from annotation.ui.assess.cards import ASPECT_QUESTIONS
from annotation.ui.context import Studio
from annotation.ui.correction_form import submissions
from annotation.ui.correction_form.submissions import Entered
from annotation.ui.images import image_url
from m3agiqa.aspects import COMMON_SCALE, Aspect, MosScale
from m3agiqa.errors import InputError, M3AgiqaError

View = dict[str, Any]
Choice = TypeVar("Choice", queue.QueueOrder, queue.Pool)


class Annotating:
    """Every method is done for one person; it raises M3AgiqaError with a sentence for them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.prefetch = Prefetch(studio)

    def publish(self) -> None:
        """Add the endpoints to the app that is being built, each of its method's name."""
        for method in (self.take, self.look, self.reveal, self.save, self.skip, self.undo, self.progress):
            # Not queued: one request, one answer, and many people at once.
            gr.api(
                self.endpoint(method),
                api_name=method.__name__,
                queue=False,
                concurrency_limit=None,
                api_visibility="undocumented",  # programs may call them, but agents get no tools to annotate
            )

    def endpoint(self, method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """The method with the request in place of the person, who must be an annotator."""

        @wraps(method)
        def answer(request: gr.Request, *given: Any) -> dict[str, Any]:
            try:
                return method(self.studio.access.require(request, Role.ANNOTATOR), *given)
            except M3AgiqaError as error:
                raise gr.Error(str(error), print_exception=False) from error

        known = signature(method)
        parameters = [Parameter("request", Parameter.POSITIONAL_OR_KEYWORD), *known.parameters.values()]
        del parameters[1]  # the person
        answer.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
        answer.__annotations__ = {"request": gr.Request, **method.__annotations__}
        return answer

    def take(
        self,
        person: Person,
        count: int = 2,
        order: str = "random",
        pool: str = "all",
        blind: bool = False,
        release: bool = False,
    ) -> dict[str, Any]:
        """The next items, held for whoever asks: {"items": [view, ...], "progress": {...}, ...}.

        What is held already comes first. `order`: "random", "uncertain first", "most informative first" or
        "least annotated first"; `pool`: "all", "imported" or "demo"; `blind`: without the model's answers;
        `release`: give up first what is held.
        """
        count = min(max(payloads.whole(count, "The number of items"), 1), queue.MAX_LEASES)
        chosen_order, chosen_pool = (
            _choice(queue.QueueOrder, order, "order"),
            _choice(queue.Pool, pool, "pool"),
        )
        gold_every = self.studio.settings.gold_every

        def hold(session: Session) -> list[int]:
            if release:
                queue.release(session, person.name)
            return queue.take(session, person.name, count, chosen_order, chosen_pool, gold_every)

        items = self.studio.store.database.transact(hold)
        self.prefetch.want(person.name, items, AHEAD_OF_ORDER.get(chosen_order, ITEMS_AHEAD))
        with self.studio.store.database.reading() as session:
            views = [self._view(session, item, person, blind) for item in items]
            progress = asdict(queue.progress(session, person.name, chosen_pool))
        for view in views[:1]:  # the one that is looked at now; the page has the others ready for later
            self._note_shown(person, view)
        return {
            "person": person.name,
            "blind_always": self.studio.settings.blind,
            "items": views,
            "progress": progress,
        }

    def look(self, person: Person, item: int, blind: bool = False) -> View:
        """An item's view: image, prompt, aspects with scale and revision, and the model's answer."""
        with self.studio.store.database.reading() as session:
            view = self._view(session, payloads.whole(item, "The item"), person, blind)
        self._note_shown(person, view)
        if view["model"]["state"] == "coming":
            self.prefetch.show(person.name, item)
        return view

    def reveal(self, person: Person, item: int, aspect: str, score: float) -> View:
        """Blind mode: tell one's score of an aspect, and get the view with the model's answer to it."""
        item, about = payloads.whole(item, "The item"), payloads.aspect(aspect)
        given = payloads.as_number(score, "The score")
        with self.studio.store.database.reading() as session:
            is_assessed = latest_assessment(session, item) is not None
        if is_assessed:  # else there is nothing to see yet
            one = (item, about)
            exposures.note(self.studio.store.database, person.name, AnswersOf.MODEL, [one], {one: given})
        return self.look(person, item, blind=True)

    def save(
        self,
        person: Person,
        item: int,
        said: list[dict[str, Any]],
        token: str,
        assessment: int | None = None,
        seconds: float = 0.0,
        blind: bool = False,
    ) -> dict[str, Any]:
        """Save what is said of an item and finish it: {"submission": id, "corrections": {...}, "again": ...}.

        `said`: per aspect {"aspect", "score", "scale": [low, high], "description", "agrees", "tags",
        "comment", "revision"}, of which "aspect" and either "score" or "agrees" are needed. `token`: any
        text of at most 64 characters that is new for each judgement; sent twice, it is saved once.
        `assessment`: the id of the model's answer that was shown.
        """
        item = payloads.whole(item, "The item")
        shown = None if assessment is None else payloads.whole(assessment, "The assessment")
        entered = Entered.from_json(said, token, seconds)

        def save_and_finish(session: Session) -> corrections.SavedSubmission:
            saved = submissions.save_entered(
                session,
                entered,
                annotator=person.name,
                item_id=item,
                assessment_id=shown,
                tab="annotate",
                blind_mode=self._is_blind(blind),
            )
            if not saved.again:
                queue.finish(session, item, person.name)
            return saved

        saved = self.studio.store.database.transact(save_and_finish)
        self.prefetch.leave(person.name, item)
        return {
            "submission": saved.submission_id,
            "corrections": {str(about): number for about, number in saved.corrections.items()},
            "again": saved.again,
        }

    def skip(self, person: Person, item: int) -> dict[str, Any]:
        """Leave an item to others: {"skipped": item}."""
        item = payloads.whole(item, "The item")
        self.studio.store.database.transact(lambda session: queue.skip(session, item, person.name))
        self.prefetch.leave(person.name, item)
        return {"skipped": item}

    def undo(self, person: Person, item: int, submission: int | None = None, blind: bool = False) -> View:
        """Withdraw one's submission (without one: a skip) and hold the item again; answers its view.

        Where an older response is current again, the item stays done, and may be saved anew all the same.
        """
        item = payloads.whole(item, "The item")
        withdrawn = None if submission is None else payloads.whole(submission, "The submission")

        def back(session: Session) -> None:
            if withdrawn is not None:
                corrections.withdraw_submission(session, withdrawn, person.name)
                if session.get(Submission, withdrawn).item_id != item:
                    raise InputError(f"Submission #{withdrawn} is of another image; undo it there.")
            stands = corrections.has_response(session, item, person.name)
            if not (stands and queue.is_done(session, item, person.name)):
                queue.reopen(session, item, person.name)
            elif withdrawn is None:
                raise InputError("You have saved this image, not skipped it; take back what you saved.")

        self.studio.store.database.transact(back)
        return self.look(person, item, blind)

    def progress(self, person: Person) -> dict[str, int]:
        """{"mine": items I finished, "left" for me, I "skipped"; "done": slots filled, of "total"}."""
        with self.studio.store.database.reading() as session:
            return asdict(queue.progress(session, person.name))

    def _view(self, session: Session, item_id: int, person: Person, blind: bool) -> View:
        item = require_item(session, item_id)
        latest = latest_assessment(session, item_id)
        prompt = item.prompt.text or None
        scales = {one.aspect: one.scale for one in latest.aspects} if latest else {}
        aspects = [aspect for aspect in Aspect if prompt or not aspect.needs_prompt]
        return {
            "item": item_id,
            "image": image_url(self.studio.store.images, item.image.file),
            "width": item.image.width,
            "height": item.image.height,
            "prompt": prompt,
            "aspects": [
                {
                    "aspect": str(aspect),
                    "question": ASPECT_QUESTIONS[aspect],
                    **_scale(scales.get(aspect, COMMON_SCALE)),
                    "tags": list(corrections.ERROR_TAGS[aspect]),
                    "revision": 1 + corrections.latest_revision(session, item_id, aspect, person.name),
                }
                for aspect in aspects
            ],
            "model": self._answer(session, latest, item_id, person, blind),
        }

    def _answer(
        self, session: Session, latest: Assessment | None, item: int, person: Person, blind: bool
    ) -> dict[str, Any]:
        """What the model says, as far as this person may see it."""
        if latest is None:
            failure = self.prefetch.failure(item)
            return {"state": "failed" if failure else "coming", "message": failure, "aspects": {}}
        shown = latest.aspects
        if self._is_blind(blind):
            visible = exposures.recorded(session, person.name, AnswersOf.MODEL, [item])
            shown = [one for one in shown if (item, one.aspect) in visible]
        return {
            "state": "ready",
            "message": "",
            "assessment": latest.id,
            "title": latest.model_version.title,
            "aspects": {str(one.aspect): _said_by_model(one) for one in shown},
        }

    def _note_shown(self, person: Person, view: View) -> None:
        shown = [(view["item"], Aspect(name)) for name in view["model"]["aspects"]]
        exposures.note(self.studio.store.database, person.name, AnswersOf.MODEL, shown)

    def _is_blind(self, wanted: bool) -> bool:
        return self.studio.settings.blind or wanted is True


def _scale(scale: MosScale) -> dict[str, list[float]]:
    """The scale's ends, and what the keys 1 to 5 stand for."""
    whole = scale.low <= 1 and scale.high == 5
    keys = [key if whole else round(scale.from_unit((key - 1) / 4), 1) for key in range(1, 6)]
    return {"scale": [scale.low, scale.high], "keys": keys}


def _said_by_model(one: AspectAssessment) -> dict[str, Any]:
    return {
        "description": one.description,
        "rating": str(one.scale.rating(one.mos)),
        "mos": one.mos,
        **_scale(one.scale),
    }


def _choice(kind: type[Choice], value: Any, what: str) -> Choice:
    try:
        return kind(value)
    except ValueError as error:
        raise InputError(f"There is no {what} {value!r:.40}; choose one of {', '.join(kind)}.") from error
