"""HTML of the lines around the cards: what is going on, what went wrong."""

from __future__ import annotations

from html import escape

from annotation.ui.assess.runs import RunStage, RunState


def message(text: str) -> str:
    """A sentence the visitor must not miss; the element stays, so that screen readers hear a change."""
    return f'<p role="alert">{escape(text)}</p>'


def status(state: RunState | None, seconds: float = 0.0) -> str:
    """What a run is doing, and for how long."""
    if state is None:
        return '<p role="status"></p>'
    elapsed = f'<span id="elapsed">{seconds:.1f} s</span>'
    return f'<p role="status">{escape(_doing(state))}</p>{elapsed}'


def _doing(state: RunState) -> str:
    match state.stage:
        case RunStage.STARTING:
            return "Opening the image"
        case RunStage.LOADING:
            return f"Waiting for the model: {state.load.progress}"
        case RunStage.WAITING:
            before = "one visitor is" if state.place == 2 else f"{state.place - 1} visitors are"
            return f"You are number {state.place} in the queue: {before} before you"
        case RunStage.ASSESSING:
            return "Writing" if state.descriptions else "Looking at the image"
        case RunStage.FINISHED:
            return "Done"
        case RunStage.STOPPED:
            return "Stopped"
        case RunStage.FAILED:
            return ""


def prompt_origin(origin: str) -> str:
    """Where the prompt in the box came from, if not from the keyboard."""
    return f"<p>Prompt read from the image file: <b>{escape(origin)}</b></p>" if origin else ""
