"""Endpoints for programs, through Gradio's queue: /assess, /compare and /score; as MCP tools, too.

While the model works for others or loads, they stream {"status": a sentence}; the last value is the result.
Whoever stops listening, or cancels, takes the run out of the waiting line. Roles are those of the page.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import gradio as gr
from gradio.data_classes import ListFiles
from gradio_client import handle_file
from pydantic import model_validator
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from annotation.ui import messages, payloads
from annotation.ui.annotate.imports import uploads
from annotation.ui.assess.quality_map import MapRun
from annotation.ui.assess.runs import ModelRun, Run, RunStage, RunState, note_shown
from annotation.ui.compare.comparison import ComparisonRun
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from annotation.ui.scoring import ScoreRun
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.image_metadata import find_prompt, shared_prompt
from m3agiqa.ranking import MAX_IMAGES, MIN_IMAGES, OVERALL, check_count, parse_weights

STATUS_INTERVAL = 1.0  # seconds after which a status is told again: only then Gradio sees that nobody listens
ARGUMENT_ERRORS = ("Parameter `", "No value provided", "Too many arguments")  # of gradio_client.utils
EXAMPLE_URL = "https://raw.githubusercontent.com/gradio-app/gradio/main/test/test_files/"
EXAMPLE_WEIGHTS = "quality=2,authenticity=1"
EXAMPLE_IMAGES = [EXAMPLE_URL + name for name in ("bus.png", "cheetah1.jpg")]


class ApiHandlers:
    """What the endpoints do; the docstrings are what programs and agents are told of them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    async def assess(
        self,
        request: gr.Request,
        image: Any,
        prompt: str | None = None,
        with_map: bool = False,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio wants it)
    ) -> AsyncIterator[dict[str, Any]]:
        """Judge one AI-generated image the way people would: quality, correspondence with its prompt, and
        authenticity, each with a mean opinion score (MOS), a rating, an interval and a description.

        Args:
            image: The image file.
            prompt: What the image was generated from; by default what its generator wrote into the file.
            with_map: Whether to tell where it looks bad, too: scores of its parts, as `map`.
        Returns:
            The assessment as JSON, as `python -m m3agiqa assess --json` prints it.
        """
        with _errors_as_json():
            upload = Upload.from_payload(image)
            if upload is None:
                raise InputError("There is no image; give one as `image`.")
            if prompt is None:
                embedded = await anyio.to_thread.run_sync(find_prompt, upload.path)
                prompt = embedded.text if embedded else ""
            prompt = payloads.text(prompt, "The prompt")
            self._take(request, 1)
            run = Run(upload, prompt, self.studio.loader, self.studio.line)
            async with aclosing(self._states(run, request, progress)) as states:
                async for state in states:
                    yield {"status": messages.doing(state)}
            assert run.state.assessment is not None
            result = run.state.assessment.to_dict()
            if with_map:
                looking = MapRun(upload, run.state, self.studio.loader, self.studio.line)
                async with aclosing(self._states(looking, request, progress)) as states:
                    async for state in states:
                        yield {"status": messages.doing(state)}
                assert looking.state.quality_map is not None
                result["map"] = looking.state.quality_map.to_dict()
            yield result

    async def compare(
        self,
        request: gr.Request,
        images: Any,
        prompt: str | None = None,
        order: str = OVERALL,
        weights: str | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> AsyncIterator[dict[str, Any]]:
        """Judge 2 to 24 images of one prompt and put them in order, the best first, with what is clearly
        better and what is about equal.

        Args:
            images: The image files.
            prompt: What all of them were generated from; by default what their generator wrote into all
                files. Without it correspondence is left out.
            order: What they are ordered by: overall, quality, correspondence or authenticity.
            weights: Of the aspects in the overall score, such as quality=2,authenticity=1; those that are not
                named do not count. By default all the same.
        Returns:
            The ranking as JSON, as `python -m m3agiqa compare --json` prints it for each prompt.
        """
        with _errors_as_json():
            checked = parse_weights(payloads.text(weights or "", "Weights"))
            given = uploads(images)
            if prompt is None and len(given) <= MAX_IMAGES:
                prompt = await anyio.to_thread.run_sync(shared_prompt, [each.path for each in given])
            run = ComparisonRun(given, payloads.text(prompt or "", "The prompt"), self.studio)
            check_count(len(given))
            self._take(request, len(run.uploads))
            async with aclosing(self._states(run, request, progress)) as states:
                async for state in states:
                    yield {"status": messages.doing(state)}
            assert run.state.ranking is not None
            yield replace(run.state.ranking, weights=checked).to_dict(str(order))

    async def score(
        self,
        request: gr.Request,
        files: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> AsyncIterator[tuple[str | None, dict[str, Any]]]:
        """Judge many images into a CSV file with a row for each, in which a failed one says why.

        Args:
            files: A ZIP of images, or images; with prompts in .txt files of the same names, or in a CSV with
                the columns image,prompt.
        Returns:
            The CSV file, as `python -m m3agiqa score` writes it, and how many rows were judged and failed;
            `notes` tells how a table was read, and which files it does not list.
        """
        with _errors_as_json(), TemporaryDirectory() as folder:
            person, out = self.studio.access.person(request), Path(folder) / "scores.csv"
            run = ScoreRun(uploads(files), person, out, self.studio, partial(self._take, request))
            async with aclosing(self._states(run, request, progress)) as states:
                async for state in states:
                    yield None, _counts(state)
            yield str(out), _counts(run.state)

    def _take(self, request: gr.Request, images: int) -> None:
        """Count images for whoever asks. Raises QuotaUsedUp."""
        self.studio.quota.take(self.studio.access.person(request).name, images)

    async def _states(
        self, run: ModelRun, request: gr.Request, progress: gr.Progress
    ) -> AsyncGenerator[RunState, None]:
        """Have the model work, until it is done or nobody listens any more. Raises M3AgiqaError."""
        person = self.studio.access.person(request)
        run.start()
        try:
            async for state in run.follow(STATUS_INTERVAL):
                if not state.over:
                    done = (state.scored, state.total) if state.total else None
                    progress(done, desc=messages.doing(state), unit=state.counted)
                    yield state
        finally:
            run.stop()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(note_shown, self.studio.store.database, person, run)
        if run.state.stage is not RunStage.FINISHED:
            raise InputError(run.state.error or "Stopped.")


@contextmanager
def _errors_as_json() -> Iterator[None]:
    """Gradio answers with the sentence of a gr.Error, and keeps others' to itself."""
    try:
        yield
    except M3AgiqaError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _counts(state: RunState) -> dict[str, Any]:
    return {
        "status": messages.doing(state),
        "scored": state.scored,
        "failed": state.failed,
        "total": state.total,
        "notes": list(state.notes),
    }


class CallErrors:
    """ASGI middleware: a sentence in JSON where Gradio fails over a call that no endpoint takes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        called = re.search(r"/call/v2/([^/]+)/?$", scope.get("path", ""))
        try:
            return await self._app(scope, receive, send)
        except KeyError as error:
            if called is None or error.args != (f"/{called[1]}",):
                raise
            sentence, status = f"There is no endpoint /{called[1]}", HTTPStatus.NOT_FOUND
        except TypeError as error:
            sentence, status = str(error).partition(". ")[0], HTTPStatus.BAD_REQUEST
            if called is None or not sentence.startswith(ARGUMENT_ERRORS):
                raise
        answer = JSONResponse({"error": f"{sentence}; /gradio_api/info lists what there is."}, status)
        await answer(scope, receive, send)


class _OneOrMoreFiles(ListFiles):
    """The documentation's snippets for curl and JavaScript send a single file as it is."""

    @model_validator(mode="before")
    @classmethod
    def _as_list(cls, files: Any) -> Any:
        return [files] if isinstance(files, dict) else files


def _files(label: str) -> gr.File:
    """Several files; the page's documentation of the endpoint gives images as an example, not a PDF."""
    component = gr.File(label=label, file_count="multiple")
    component.data_model = _OneOrMoreFiles
    component.example_payload = lambda: [handle_file(url) for url in EXAMPLE_IMAGES]  # type: ignore[method-assign]
    component.example_value = lambda: EXAMPLE_IMAGES  # type: ignore[method-assign]
    return component


def publish(studio: Studio) -> None:
    """Add the endpoints to the app that is being built; their components are never shown."""
    handlers = ApiHandlers(studio)
    with gr.Column(visible=False):
        prompt = gr.Textbox(label="Prompt")
        images = _files(f"{MIN_IMAGES} to {MAX_IMAGES} images")
        order = gr.Radio([OVERALL, *map(str, Aspect)], value=OVERALL, label="Order")
        with_map, weights = gr.Checkbox(label="With map"), gr.Textbox(label="Weights")
        weights.example_payload = lambda: EXAMPLE_WEIGHTS  # type: ignore[method-assign]
        csv_file, counts = gr.File(label="CSV"), gr.JSON(label="Counts")
        endpoints: list[tuple[Any, list[Any], list[Any]]] = [
            (handlers.assess, [gr.Image(label="Image"), prompt, with_map], [gr.JSON(label="Assessment")]),
            (handlers.compare, [images, prompt, order, weights], [gr.JSON(label="Ranking")]),
            (handlers.score, [_files("Files")], [csv_file, counts]),
        ]
    for function, inputs, outputs in endpoints:
        gr.on(
            [],  # nothing on the page triggers it
            function,
            inputs=inputs,
            outputs=outputs,
            preprocess=False,  # the files as they were sent
            api_name=function.__name__,
            concurrency_limit=None,  # the waiting line says who is next
        )
