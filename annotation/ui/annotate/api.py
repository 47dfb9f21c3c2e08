"""The endpoints of annotation, for the Annotate tab and for programs: JSON in, JSON out.

`POST /gradio_api/run/NAME` with `{"data": [all arguments in order]}` answers `{"data": [result]}`, or
`{"error": a sentence}` with status 500. Defaults are gradio_client's to fill in: if an argument is missing
here, Gradio itself answers `{"error": null}`. `GET /gradio_api/info` lists the arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from annotation.ui.access import Person, Role
from annotation.ui.annotate.work import Annotating
from m3agiqa.errors import M3AgiqaError


class AnnotationApi:
    """Each method is an endpoint of its own name; all of them take an annotator."""

    def __init__(self, annotating: Annotating) -> None:
        self._annotating = annotating

    def publish(self) -> None:
        """Add the endpoints to the app that is being built."""
        for endpoint in (self.take, self.look, self.reveal, self.save, self.skip, self.undo, self.progress):
            # Not queued: one request, one answer, and many people at once.
            gr.api(endpoint, api_name=endpoint.__name__, queue=False, concurrency_limit=None)

    def take(
        self,
        request: gr.Request,
        count: int = 2,
        order: str = "random",
        pool: str = "all",
        blind: bool = False,
        release: bool = False,
    ) -> dict[str, Any]:
        """The next items, held for whoever asks: {"items": [view, ...], "progress": {...}, ...}.

        What is held already comes first. `order`: "random", "uncertain first" or "least annotated first";
        `pool`: "all", "imported" or "demo"; `blind`: without the model's answers; `release`: give up first
        what is held.
        """
        with self._for_annotator(request) as person:
            return self._annotating.take(person, count, order, pool, blind, release)

    def look(self, request: gr.Request, item: int, blind: bool = False) -> dict[str, Any]:
        """An item's view: image, prompt, aspects with scale and revision, and the model's answer."""
        with self._for_annotator(request) as person:
            return self._annotating.look(person, item, blind)

    def reveal(self, request: gr.Request, item: int, aspect: str, score: float) -> dict[str, Any]:
        """Blind mode: tell one's score of an aspect, and get the view with the model's answer to it."""
        with self._for_annotator(request) as person:
            return self._annotating.reveal(person, item, aspect, score)

    def save(
        self,
        request: gr.Request,
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
        with self._for_annotator(request) as person:
            return self._annotating.save(person, item, said, token, assessment, seconds, blind)

    def skip(self, request: gr.Request, item: int) -> dict[str, Any]:
        """Leave an item to others: {"skipped": item}."""
        with self._for_annotator(request) as person:
            return self._annotating.skip(person, item)

    def undo(
        self, request: gr.Request, item: int, submission: int | None = None, blind: bool = False
    ) -> dict[str, Any]:
        """Withdraw one's submission (without one: a skip) and hold the item again; answers its view."""
        with self._for_annotator(request) as person:
            return self._annotating.undo(person, item, submission, blind)

    def progress(self, request: gr.Request) -> dict[str, int]:
        """{"mine": items I finished, "done": places filled, "total": places, "skipped": items I skipped}."""
        with self._for_annotator(request) as person:
            return self._annotating.progress(person)

    @contextmanager
    def _for_annotator(self, request: gr.Request) -> Iterator[Person]:
        try:
            yield self._annotating.studio.access.require(request, Role.ANNOTATOR)
        except M3AgiqaError as error:
            raise gr.Error(str(error), print_exception=False) from error
