"""The Assess tab: an image and its prompt in, three cards that fill as the model generates, corrections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import gradio as gr

from annotation.ui import messages, theme
from annotation.ui.access import Person
from annotation.ui.assess import correct
from annotation.ui.assess.cards import HOW_TO_READ, card, provenance
from annotation.ui.assess.correct import AssessedImage
from annotation.ui.assess.examples import EXAMPLE_IMAGES, example_prompt, gallery
from annotation.ui.assess.quality_map import MapHandlers, map_choice
from annotation.ui.assess.runs import CLOCK_INTERVAL, Run, Runs, RunState, note_shown
from annotation.ui.context import Studio
from annotation.ui.events import PARALLEL_EVENT, QUIET_EVENT
from annotation.ui.images import Upload, browser_copy
from annotation.ui.model_service import banner_html
from m3agiqa.aspects import Aspect
from m3agiqa.conversation import MAX_PROMPT
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.image_metadata import EmbeddedPrompt, find_prompt

IMAGE_HEIGHT = 380  # pixels
NO_IMAGE = "There is no image yet. Upload one, paste one or choose an example."

# What `show` returns, in the order of its outputs: what is to be corrected, a card for each aspect, status,
# message, provenance, model banner, Assess button, Stop button. All of them each time: Gradio sends what
# differs, and the page passes over updates that are followed closely by another one.
PageOutputs = tuple[AssessedImage | None, str, str, str, str, str | dict, str, str, dict, dict]
N_PAGE_OUTPUTS = len(Aspect) + 7
# Of `offer_prompt`: the prompt box, the lines below it, and the image with what the page put into the box.
PromptOutputs = tuple[str | dict, str, "ShownImage"]
SESSION_LIFETIME = 24 * 3600  # seconds that the server keeps what a page shows


@dataclass(frozen=True)
class ShownImage:
    """The image in the box, and which prompt belongs to it."""

    path: Path | None = None
    embedded: EmbeddedPrompt | None = None
    """The prompt in its file."""
    filled: str = ""
    """The prompt that the page itself has put into the box, "" if somebody has typed it."""
    prompt_before: str = ""
    """What was in the prompt box when the image before left."""


class AssessHandlers:
    """What happens on the tab; every method is an event's function and can be called without a browser."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.runs = Runs(studio.loader, studio.line)
        self.correct = correct.CorrectHandlers(studio.access)
        self.map = MapHandlers(self.runs)

    async def assess(
        self, image: dict | None, prompt: str | None, request: gr.Request
    ) -> AsyncIterator[PageOutputs]:
        """Run one assessment and show it as it grows, then keep it; ends the visitor's earlier one."""
        visitor = request.session_hash or ""
        upload = Upload.from_payload(image)
        try:
            person = self.studio.access.person(request)
            if upload is None:
                raise InputError(NO_IMAGE)
        except M3AgiqaError as error:
            self.runs.stop(visitor)
            yield self.show(None, message=str(error))
            return
        run = self.runs.begin(visitor, upload, prompt or "")
        try:
            async for state in run.follow(CLOCK_INTERVAL):
                if (
                    run.discarded
                ):  # the page starts no other run until this ends, and the model may be slow to stop
                    break
                yield self.show(run.told(state), run.seconds, prompt=run.prompt)
        finally:  # also when the page has been closed meanwhile
            self.runs.forget(visitor, run)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(note_shown, self.studio.store.database, person, run)
        if run.discarded:  # last, as Gradio sends it once more at the end
            yield self.show(None, message=None)
        elif run.state.assessment is not None:
            yield await anyio.to_thread.run_sync(self._finish, run, person)

    def _finish(self, run: Run, person: Person) -> PageOutputs:
        """Keep the assessment, if they are kept; it is shown and can be corrected either way."""
        assessed, message = AssessedImage(self.studio, person, run.upload, run.state), ""
        kept = self.studio.settings.keep
        if kept:
            try:
                assessed.keep()
            except M3AgiqaError as error:
                kept, message = False, f"The assessment could not be kept for annotation. {error}"
        return self.show(run.state, run.seconds, message, assessed, kept, run.prompt)

    async def stop(self, request: gr.Request) -> None:
        """End this visitor's run."""
        self.runs.stop(request.session_hash or "")

    def show(
        self,
        state: RunState | None,
        seconds: float = 0.0,
        message: str | None = "",
        assessed: AssessedImage | None = None,
        kept: bool = False,
        prompt: str = "",
    ) -> PageOutputs:
        """The page for a run's state; the buttons follow whether it is over. With None the message stays."""
        busy = state is not None and not state.over
        cards = [
            self.correct.card(aspect, assessed) if assessed else card(aspect, state) for aspect in Aspect
        ]
        return (
            assessed,
            *cards,
            messages.status(state, seconds, prompt),
            gr.skip() if message is None else messages.message(message or (state.error if state else "")),
            provenance(state.assessment if state else None, kept),
            banner_html(self.studio.loader.state),
            gr.update(interactive=not busy),
            gr.update(visible=busy),
        )

    def change_image(
        self, image: dict | None, prompt: str | None, shown: ShownImage, request: gr.Request
    ) -> tuple[ShownImage | dict, *tuple[Any, ...]]:
        """Another image, or none: what was about the one before ends and leaves the page.

        Gives what the box shows now, and then what `show` does.
        """
        upload = Upload.from_payload(image)
        path = upload.path if upload else None
        if path == shown.path:
            return tuple(gr.skip() for _ in range(1 + N_PAGE_OUTPUTS))
        self.runs.discard(request.session_hash or "")
        embedded, message = None, ""
        try:
            if upload is not None:
                upload.image()
                embedded = example_prompt(upload.path) or find_prompt(upload.path)
        except InputError as error:
            message = str(error)
        of_image_before = (prompt or "") if shown.path else shown.prompt_before
        return replace(shown, path=path, embedded=embedded, prompt_before=of_image_before), *self.show(
            None, message=message
        )

    def offer_prompt(self, prompt: str | None, shown: ShownImage) -> PromptOutputs:
        """Fill the prompt box from the file, unless something has been typed for this image.

        What was typed for the image before is taken out and offered. A box that stays as it is gets no
        update, which could undo what is just being typed.
        """
        prompt, filled, embedded = prompt or "", shown.filled, shown.embedded
        text = embedded.text if embedded else ""
        typed = bool(prompt.strip()) and prompt not in (filled, text)
        if typed and (shown.path is None or prompt != shown.prompt_before):
            offer = messages.prompt_offer("The image file holds another prompt", text) if text else ""
            return gr.skip(), offer, replace(shown, filled="")
        origin = messages.prompt_origin(embedded) if embedded else ""
        if typed:
            origin += messages.prompt_offer("The prompt before was for another image", prompt)
        return text if text != prompt else gr.skip(), origin, replace(shown, filled=text)

    def choose_example(self, event: gr.EventData) -> tuple[str, str]:
        """Put an example's image and prompt in."""
        example = EXAMPLE_IMAGES[int(event.index)]
        return str(example.path), example.prompt


def assess_tab(studio: Studio, banner: gr.HTML) -> None:
    """Build the components within the current tab and wire them up."""
    handlers = AssessHandlers(studio)
    with gr.Row(elem_id="inputs", equal_height=False):
        with gr.Column(min_width=280, elem_id="image-side"):
            image = gr.Image(
                label="Image",
                type="filepath",
                sources=["upload", "clipboard"],
                buttons=["fullscreen"],
                height=IMAGE_HEIGHT,
                elem_id="image",
                placeholder="Choose an image,\nor drop or paste one here",
                alt_text="The image to assess",
            )
            choice, quality_map = map_choice()
        with gr.Column(min_width=280, elem_id="prompt-side"):
            prompt = gr.Textbox(
                label="Prompt",
                info="What the image was generated from. Correspondence is judged against it.",
                placeholder="e.g. a lighthouse on a cliff above a calm sea at sunset",
                lines=3,
                max_lines=6,
                elem_id="prompt",
            )
            theme.html(f'<p class="note" data-most="{MAX_PROMPT}"></p>', elem_id="prompt-length")
            origin = theme.html("", elem_id="prompt-origin")
            with gr.Row(elem_id="actions"):
                assess = gr.Button("Assess", variant="primary", elem_id="assess", min_width=120)
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", min_width=120)
            status = theme.html(messages.status(None), elem_id="status")
            message = theme.html(messages.message(""), elem_id="message")
            examples = theme.html(gallery(), elem_id="examples", script=theme.javascript("button_data.js"))
    theme.html('<h2 class="visually-hidden">Result</h2>', elem_id="result")
    with gr.Row(elem_id="cards"):
        cards = [theme.html(card(aspect, None), script=correct.CARD_SCRIPT) for aspect in Aspect]
    source = theme.html("", elem_id="provenance")
    theme.html(HOW_TO_READ, elem_id="how-to-read")
    shown = gr.State(ShownImage(), time_to_live=SESSION_LIFETIME)
    assessed = gr.State(None, time_to_live=SESSION_LIFETIME)
    page = [assessed, *cards, status, message, source, banner, assess, stop]

    # `preprocess=False`: the file as it was uploaded. gr.Image would decode it first, and answer with its
    # own error for what is no image, without its text chunks for what is one.
    assessing = assess.click(
        handlers.assess,
        inputs=[image, prompt],
        outputs=page,
        preprocess=False,
        **PARALLEL_EVENT,  # the waiting line says who is next, and each visitor where they are
    )
    # Not queued, so that it cannot be kept waiting; not `cancels=`, which would only stop the display.
    stop.click(handlers.stop, queue=False, **QUIET_EVENT)
    changing = image.change(
        handlers.change_image,
        inputs=[image, prompt, shown],
        outputs=[shown, *page],
        preprocess=False,
        **PARALLEL_EVENT,
    )
    changing.then(  # a step of its own, as reading the file takes long enough to type something meanwhile
        handlers.offer_prompt, inputs=[prompt, shown], outputs=[prompt, origin, shown], **PARALLEL_EVENT
    )
    image.upload(
        lambda payload: browser_copy(payload) or gr.skip(),
        inputs=image,
        outputs=image,
        preprocess=False,
        **PARALLEL_EVENT,
    )
    examples.click(handlers.choose_example, outputs=[image, prompt], **PARALLEL_EVENT)
    assess.click(
        lambda: handlers.map.offer(None), outputs=[choice, quality_map], queue=False, **PARALLEL_EVENT
    )
    for ended in (assessing, changing):
        ended.then(handlers.map.offer, inputs=assessed, outputs=[choice, quality_map], **PARALLEL_EVENT)
    choice.input(
        handlers.map.show,
        inputs=[choice, assessed],
        outputs=quality_map,
        trigger_mode="multiple",  # "off" ends a map that is still computed
        **PARALLEL_EVENT,
    )
    gr.on([prompt.change, origin.change, status.change], js="() => followPrompt()")
    message.change(js="() => bringIntoView('#message [role=alert]:not(:empty)', 'nearest')")
    correct.wire(handlers.correct, cards, assessed)
