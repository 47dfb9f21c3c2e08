"""The Assess tab: an image and its prompt in, three cards that fill as the model generates, corrections."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import gradio as gr

from annotation.store import exposures
from annotation.store.models import AnswersOf
from annotation.ui import messages, theme
from annotation.ui.access import Person
from annotation.ui.assess import correct
from annotation.ui.assess.cards import card, provenance
from annotation.ui.assess.correct import AssessedImage
from annotation.ui.assess.examples import EXAMPLE_IMAGES, gallery
from annotation.ui.assess.runs import CLOCK_INTERVAL, Run, Runs, RunState
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from annotation.ui.model_service import banner_html
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.image_metadata import EmbeddedPrompt, find_prompt

log = logging.getLogger(__name__)

NO_IMAGE = "There is no image yet. Upload one, paste one or choose an example."

# What `show` returns, in the order of its outputs: what is to be corrected, a card for each aspect, status,
# message, provenance, model banner, Assess button, Stop button. All of them each time: Gradio sends what
# differs, and the page passes over updates that are followed closely by another one.
PageOutputs = tuple[AssessedImage | None, str, str, str, str, str, str, str, dict, dict]
# Of `offer_prompt`: the prompt in the image file, where it comes from, what the page put into the box.
PromptOutputs = tuple[str | dict, str, str]


class AssessHandlers:
    """What happens on the tab; every method is an event's function and can be called without a browser."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.runs = Runs(studio.loader, studio.line)
        self.correct = correct.CorrectHandlers(studio.access)

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
                yield self.show(state, run.seconds)
        finally:  # also when the page has been closed meanwhile
            self.runs.forget(visitor, run)
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._note_shown, run, person)
        if run.state.assessment is not None:
            yield await anyio.to_thread.run_sync(self._finish, run, person)

    def _note_shown(self, run: Run, person: Person) -> None:
        """Whoever has read what the model writes of an image in the store does not score it blind."""
        store = self.studio.store
        try:
            with store.database.reading() as session:
                shown = list(exposures.of_image(session, run.upload.path, run.prompt, run.state.descriptions))
            exposures.note(store.database, person.name, AnswersOf.MODEL, shown)
        except M3AgiqaError as error:
            log.warning("What %s has read cannot be recorded: %s", person.name, error)

    def _finish(self, run: Run, person: Person) -> PageOutputs:
        """Keep the assessment, if they are kept; it is shown and can be corrected either way."""
        assessed, message = AssessedImage(self.studio, person, run.upload, run.state), ""
        kept = self.studio.settings.keep
        if kept:
            try:
                assessed.keep()
            except M3AgiqaError as error:
                kept, message = False, f"The assessment could not be kept for annotation. {error}"
        return self.show(run.state, run.seconds, message, assessed, kept)

    async def stop(self, request: gr.Request) -> None:
        """End this visitor's run."""
        self.runs.stop(request.session_hash or "")

    def show(
        self,
        state: RunState | None,
        seconds: float = 0.0,
        message: str = "",
        assessed: AssessedImage | None = None,
        kept: bool = False,
    ) -> PageOutputs:
        """The page for a run's state; the buttons follow whether it is over."""
        busy = state is not None and not state.over
        cards = [
            self.correct.card(aspect, assessed) if assessed else card(aspect, state) for aspect in Aspect
        ]
        return (
            assessed,
            *cards,
            messages.status(state, seconds),
            messages.message(message or (state.error if state else "")),
            provenance(state.assessment if state else None, kept),
            banner_html(self.studio.loader.state),
            gr.update(interactive=not busy),
            gr.update(visible=busy),
        )

    def read_upload(self, image: dict | None) -> tuple[EmbeddedPrompt | None, str]:
        """A new image, or none: the prompt in its file, and a message if it cannot be assessed."""
        upload = Upload.from_payload(image)
        if upload is None:
            return None, messages.message("")
        try:
            upload.image()
        except InputError as error:
            return None, messages.message(str(error))
        return find_prompt(upload.path), messages.message("")

    def offer_prompt(self, prompt: str | None, embedded: EmbeddedPrompt | None, filled: str) -> PromptOutputs:
        """Fill the prompt box from the file, unless the visitor has typed something.

        `filled` is what the page itself has put into the box; it belongs to the image before and goes
        with it. A box that stays as it is gets no update, which could undo what is just being typed.
        """
        prompt = prompt or ""
        if prompt.strip() and prompt != filled:
            return gr.skip(), "", ""
        text, origin = (embedded.text, embedded.origin) if embedded else ("", "")
        return (text if text != prompt else gr.skip()), messages.prompt_origin(origin), text

    def clear_other(self, assessed: AssessedImage | None, image: dict | None) -> tuple:
        """Remove the assessment from a page that now shows another image, or none."""
        upload = Upload.from_payload(image)
        if assessed is None or (upload is not None and upload.path == assessed.upload.path):
            return tuple(gr.skip() for _ in range(len(Aspect) + 2))
        return None, *(card(aspect, None) for aspect in Aspect), ""

    def choose_example(self, event: gr.EventData) -> tuple[str, str, str, str, str]:
        """Put an example's image and prompt in."""
        example = EXAMPLE_IMAGES[int(event.index)]
        return str(example.path), example.prompt, "", example.prompt, messages.message("")


def assess_tab(studio: Studio, banner: gr.HTML) -> AssessHandlers:
    """Build the components within the current tab and wire them up."""
    handlers = AssessHandlers(studio)
    with gr.Row(elem_id="inputs", equal_height=False):
        with gr.Column(min_width=280):
            image = gr.Image(
                label="Image",
                type="filepath",
                sources=["upload", "clipboard"],
                buttons=["fullscreen"],
                height=330,
                elem_id="image",
                placeholder="Drop an image here, click to choose one,\nor paste with Ctrl+V",
                alt_text="The image to assess",
            )
        with gr.Column(min_width=280):
            prompt = gr.Textbox(
                label="Prompt",
                info="What the image was generated from. Correspondence is judged against it.",
                placeholder="e.g. a lighthouse on a cliff above a calm sea at sunset",
                lines=5,
                max_lines=8,
                elem_id="prompt",
            )
            origin = theme.html("", elem_id="prompt-origin")
            with gr.Row(elem_id="actions"):
                assess = gr.Button("Assess", variant="primary", elem_id="assess", min_width=120)
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", min_width=120)
            status = theme.html(messages.status(None), elem_id="status")
            message = theme.html(messages.message(""), elem_id="message")
    with gr.Column(elem_id="stage"):
        theme.html('<h2 class="visually-hidden">Result</h2>', elem_id="result")
        with gr.Row(elem_id="cards"):
            cards = [theme.html(card(aspect, None), script=correct.CARD_SCRIPT) for aspect in Aspect]
        source = theme.html("", elem_id="provenance")
        examples = theme.html(gallery(), elem_id="examples", script=_CHOOSE_SCRIPT)
    embedded, filled, assessed = gr.State(None), gr.State(""), gr.State(None)

    # `preprocess=False`: the file as it was uploaded. gr.Image would decode it first, and answer with its
    # own error for what is no image, without its text chunks for what is one.
    judged = assess.click(
        handlers.assess,
        inputs=[image, prompt],
        outputs=[assessed, *cards, status, message, source, banner, assess, stop],
        preprocess=False,
        show_progress="hidden",
        concurrency_limit=None,  # the waiting line says who is next, and each visitor where they are
        api_visibility="private",
    )
    for event in (image.change, judged.then):
        event(
            handlers.clear_other,
            inputs=[assessed, image],
            outputs=[assessed, *cards, source],
            preprocess=False,
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )
    # Not queued, so that it cannot be kept waiting; not `cancels=`, which would only stop the display.
    stop.click(handlers.stop, queue=False, show_progress="hidden", api_visibility="private")
    gr.on(
        [image.upload, image.clear],
        handlers.read_upload,
        inputs=image,
        outputs=[embedded, message],
        preprocess=False,
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    ).then(  # a step of its own, because uploading takes long enough to type something meanwhile
        handlers.offer_prompt,
        inputs=[prompt, embedded, filled],
        outputs=[prompt, origin, filled],
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    examples.click(
        handlers.choose_example,
        outputs=[image, prompt, origin, filled, message],
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    correct.wire(handlers.correct, cards, assessed)
    return handlers


_CHOOSE_SCRIPT = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button.example");
  if (button) trigger("click", { index: button.dataset.index });
});
"""
