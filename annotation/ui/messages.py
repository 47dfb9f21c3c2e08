"""HTML of the lines around the cards: what is going on, what went wrong."""

from __future__ import annotations

from html import escape

from annotation.ui.assess.runs import RunStage, RunState
from m3agiqa.image_metadata import EmbeddedPrompt

OTHER_PROMPT = "The prompt has changed; these cards are about the one before. Assess again for this one."
OFFERED_CHARACTERS = 80  # of a prompt that is offered


def message(text: str) -> str:
    """A sentence the visitor must not miss; the element stays, so that screen readers hear a change."""
    return f'<p role="alert">{escape(text)}</p>'


def status(state: RunState | None, seconds: float = 0.0, prompt: str = "") -> str:
    """What a run is doing, and for how long; once it has ended, as long as the box has its prompt.

    Elements with `data-while-prompt` and `data-unless-prompt` are shown accordingly (static/assess.js).
    """
    if state is None:
        return '<p role="status"></p>'
    working, elapsed = escape(doing(state)), f'<span id="elapsed">{seconds:.1f} s</span>'
    if not state.results or not state.over:
        return f'<p role="status">{working}</p>{elapsed}'
    prompt = escape(prompt)
    return (
        f'<p role="status"><span data-while-prompt="{prompt}">{working}{elapsed}</span>'
        f'<span data-unless-prompt="{prompt}">{OTHER_PROMPT}</span></p>'
    )


def doing(state: RunState) -> str:
    """What a run is doing, in a few words; "" after a failure."""
    match state.stage:
        case RunStage.STARTING:
            return "Opening the image"
        case RunStage.LOADING:
            return f"Waiting for the model: {state.load.progress}"
        case RunStage.WAITING:
            if state.place == 1:
                return "You are next: what is before you is being stopped"
            before = "one visitor is" if state.place == 2 else f"{state.place - 1} visitors are"
            return f"You are number {state.place} in the queue: {before} before you"
        case RunStage.ASSESSING:
            if state.total:
                return f"{state.scored} of {state.total} {state.counted} judged"
            if state.ranking is not None:
                return f"{len(state.ranking.images)} judged so far"
            return "Writing" if state.descriptions else "Looking at the image"
        case RunStage.STOPPING:
            return "Stopping"
        case RunStage.FINISHED:
            return "Done"
        case RunStage.STOPPED:
            return "Stopped"
        case RunStage.FAILED:
            return ""


def prompt_origin(embedded: EmbeddedPrompt) -> str:
    """Where the prompt in the box came from, as long as it is the one in the file."""
    return (
        f'<p data-while-prompt="{escape(embedded.text)}">'
        f"Prompt read from the image file: <b>{escape(embedded.origin)}</b></p>"
        if embedded.origin
        else ""
    )


def prompt_offer(whose: str, prompt: str) -> str:
    """Another prompt than the one in the box, and a button that puts it there."""
    start = prompt if len(prompt) <= OFFERED_CHARACTERS else f"{prompt[:OFFERED_CHARACTERS]}…"
    return (
        f'<p data-unless-prompt="{escape(prompt)}">{whose}: “{escape(start)}” '
        f'<button type="button" data-use-prompt="{escape(prompt)}">Use it</button></p>'
    )
