"""The Compare tab: up to 24 images of one prompt in, a grid in order that fills as they are judged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from html import escape
from typing import Any

import anyio
import gradio as gr

from annotation.ui import messages, payloads, theme
from annotation.ui.access import Role
from annotation.ui.assess.runs import CLOCK_INTERVAL, Runs, note_shown
from annotation.ui.compare.comparison import ComparisonRun, ImageComparison
from annotation.ui.compare.grid import grid_html
from annotation.ui.context import Studio
from annotation.ui.events import PARALLEL_EVENT, QUIET_EVENT
from annotation.ui.images import Upload
from m3agiqa.aspects import Aspect
from m3agiqa.errors import M3AgiqaError
from m3agiqa.image_metadata import shared_prompt
from m3agiqa.ranking import MAX_IMAGES, OVERALL, check_count, checked_weights

SESSION_LIFETIME = 24 * 3600  # seconds that the server keeps what a page shows
MAX_WEIGHT = 5

# What `show` returns, all of it each time: the comparison, grid, status, message, Compare and Stop button.
PageOutputs = tuple[ImageComparison | None, str, str, str, dict, dict]


class CompareHandlers:
    """What happens on the tab; every method is an event's function and can be called without a browser."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.runs = Runs(studio.loader, studio.line)

    async def compare(
        self,
        files: Any,
        prompt: str | None,
        order: Any,
        quality: Any,
        correspondence: Any,
        authenticity: Any,
        request: gr.Request,
    ) -> AsyncIterator[PageOutputs]:
        """Judge the images and show them as they come; ends the visitor's earlier comparison."""
        visitor = request.session_hash or ""
        try:
            person = self.studio.access.person(request)
            uploads = [upload for file in files or [] if (upload := Upload.from_payload(file))]
            check_count(len(uploads))
            run = ComparisonRun(uploads, prompt or "", self.studio)
            comparison = ImageComparison(self.studio, person, run)
            self._arrange(comparison, order, [quality, correspondence, authenticity])
        except M3AgiqaError as error:
            self.runs.stop(visitor)
            yield self.show(None, str(error))
            return
        self.runs.start(visitor, run)
        try:
            async for _ in run.follow(CLOCK_INTERVAL):
                yield await anyio.to_thread.run_sync(self.show, comparison)
        finally:  # also when the page has been closed meanwhile
            self.runs.forget(visitor, run)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(note_shown, self.studio.store.database, person, run)

    def offer_prompt(self, files: Any, prompt: str | None, filled: str) -> tuple[str | dict, str, str | dict]:
        """Fill the prompt box with what all files carry, unless somebody has typed something.

        Gives the prompt, what the box was filled with by this, and the status.
        """
        if (prompt or "").strip() and prompt != filled:
            return gr.skip(), "", gr.skip()
        uploads = [upload for file in files or [] if (upload := Upload.from_payload(file))]
        shared = shared_prompt([upload.path for upload in uploads])
        if shared == (prompt or ""):
            return gr.skip(), shared, gr.skip()
        origin = "The generator of these images has written their prompt into the files." if shared else ""
        return shared, shared, f'<p role="status">{origin}</p>'

    async def stop(self, request: gr.Request) -> None:
        """End this visitor's run; what is judged stays."""
        self.runs.stop(request.session_hash or "")

    def arrange(
        self, comparison: ImageComparison | None, order: Any, *weights: Any
    ) -> tuple[str | dict, str]:
        """Another order or other weights: grid and message."""
        if comparison is None:
            return gr.skip(), messages.message("")
        try:
            self._arrange(comparison, order, weights)
            return grid_html(comparison, comparison.places()), messages.message(comparison.order_note)
        except M3AgiqaError as error:
            return gr.skip(), messages.message(str(error))

    def pick(
        self, comparison: ImageComparison | None, event: gr.EventData, request: gr.Request
    ) -> tuple[str | dict, str]:
        """This one is the best."""
        return self._answer("pick", comparison, event, request)

    def undo(
        self, comparison: ImageComparison | None, event: gr.EventData, request: gr.Request
    ) -> tuple[str | dict, str]:
        """Withdraw the pick that the page shows."""
        return self._answer("undo", comparison, event, request)

    def show(self, comparison: ImageComparison | None, message: str = "") -> PageOutputs:
        """The page for a comparison as far as it is."""
        if comparison is None:
            idle = '<p role="status"></p>'
            return None, "", idle, messages.message(message), gr.update(), gr.update(visible=False)
        run, busy = comparison.run, not comparison.run.state.over
        try:
            places = comparison.places()
        except M3AgiqaError as error:
            places, message = [], str(error)
        return (
            comparison,
            grid_html(comparison, places),
            f'<p role="status">{escape(messages.doing(run.told(run.state)))} {run.seconds:.1f} s</p>',
            messages.message(message or run.state.error or comparison.order_note),
            gr.update(interactive=not busy),
            gr.update(visible=busy),
        )

    def _answer(
        self, action: str, comparison: ImageComparison | None, event: gr.EventData, request: gr.Request
    ) -> tuple[str | dict, str]:
        data = event._data if isinstance(event._data, dict) else {}
        try:
            person = self.studio.access.require(request, Role.ANNOTATOR)
            if comparison is None:
                return gr.skip(), messages.message("There is nothing to pick from; compare the images again.")
            if action == "pick":
                token = payloads.text(data.get("token"), "The token")
                comparison.save_pick(person, payloads.whole(data.get("index"), "The image"), token)
            else:
                comparison.undo_pick(person, payloads.whole(data.get("pick"), "The pick"))
            return grid_html(comparison, comparison.places()), messages.message("")
        except M3AgiqaError as error:
            return gr.skip(), messages.message(str(error))

    def _arrange(self, comparison: ImageComparison, order: Any, weights: Any) -> None:
        given = [payloads.as_number(weight, "A weight") for weight in weights]
        comparison.weights = checked_weights(dict(zip(Aspect, given, strict=True)))
        comparison.order = str(order)
        comparison.places()


def compare_tab(studio: Studio) -> None:
    """Build the components within the current tab and wire them up."""
    handlers = CompareHandlers(studio)
    with gr.Row(elem_id="compare-inputs", equal_height=False):
        with gr.Column(min_width=280):
            files = gr.File(
                label=f"2 to {MAX_IMAGES} images of one prompt",
                file_count="multiple",
                file_types=["image", ".tif", ".tiff", ".jp2", ".ppm"],
                type="filepath",
                height=220,
                elem_id="compare-files",
            )
        with gr.Column(min_width=280):
            prompt = gr.Textbox(
                label="Prompt",
                info="What all of them were generated from. Without it correspondence is left out.",
                placeholder="e.g. a lighthouse on a cliff above a calm sea at sunset",
                lines=2,
                max_lines=6,
                elem_id="compare-prompt",
            )
            with gr.Row(elem_id="compare-actions"):
                compare = gr.Button("Compare", variant="primary", elem_id="compare", min_width=120)
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="compare-stop", min_width=120)
            status = theme.html('<p role="status"></p>', elem_id="compare-status")
            message = theme.html(messages.message(""), elem_id="compare-message")
    with gr.Row(elem_id="compare-order"):
        order = gr.Radio(
            [(name.capitalize(), name) for name in (OVERALL, *map(str, Aspect))],
            value=OVERALL,
            label="Order",
            min_width=280,
        )
        weights = [
            gr.Slider(
                0,
                MAX_WEIGHT,
                1,
                step=0.5,
                label=f"Weight of {aspect}",
                min_width=140,
                elem_id=f"weight-{aspect}",
            )
            for aspect in Aspect
        ]
    grid = theme.html("", elem_id="compare-grid", script=theme.javascript("compare.js"))
    shown = gr.State(None, time_to_live=SESSION_LIFETIME)
    arranged = [order, *weights]

    # `preprocess=False`: the files as they were uploaded, with what their owner calls them.
    compare.click(
        handlers.compare,
        inputs=[files, prompt, *arranged],
        outputs=[shown, grid, status, message, compare, stop],
        preprocess=False,
        **PARALLEL_EVENT,  # the waiting line says who is next
    )
    # A sentence about the images before would be wrong for these.
    no_message = f"() => {json.dumps(messages.message(''))}"
    files.change(None, outputs=message, js=no_message, **QUIET_EVENT)
    filled = gr.State("")
    files.change(
        handlers.offer_prompt,
        inputs=[files, prompt, filled],
        outputs=[prompt, filled, status],
        preprocess=False,
        trigger_mode="always_last",
        **QUIET_EVENT,
    )
    stop.click(handlers.stop, queue=False, **QUIET_EVENT)
    for event in (order.change, *(weight.release for weight in weights)):
        event(
            handlers.arrange,
            inputs=[shown, *arranged],
            outputs=[grid, message],
            trigger_mode="always_last",
            **PARALLEL_EVENT,
        )
    for answer in (handlers.pick, handlers.undo):
        getattr(grid, answer.__name__)(
            answer,
            inputs=shown,
            outputs=[grid, message],
            api_name=f"compare_{answer.__name__}",
            **PARALLEL_EVENT,
        )
