"""HTML of the lines around the cards: what is going on, what went wrong, which model is in use."""

from __future__ import annotations

from html import escape

from annotation.ui.assess.runs import RunState, Stage
from annotation.ui.model_loader import LoadState

RETRY = "Assessing an image tries it again."


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
        case Stage.STARTING:
            return "Opening the image"
        case Stage.LOADING:
            return f"Waiting for the model: {_loading(state.load)}"
        case Stage.WAITING:
            before = "one visitor is" if state.place == 2 else f"{state.place - 1} visitors are"
            return f"You are number {state.place} in the queue: {before} before you"
        case Stage.ASSESSING:
            return "Writing" if state.descriptions else "Looking at the image"
        case Stage.FINISHED:
            return "Done"
        case Stage.STOPPED:
            return "Stopped"
        case Stage.FAILED:
            return ""


def model_banner(load: LoadState) -> str:
    """How loading goes; in the end which model judges and what it learned from, or why there is none."""
    notice = f'<p class="banner failed" role="alert">{escape(load.notice)}</p>' if load.notice else ""
    if load.error is not None:
        failure = f"{load.error} {RETRY}"
        return f'{notice}<p class="banner failed" role="alert">{escape(failure)}</p>'
    if load.assessor is not None:
        card = load.assessor.card
        learned_from = f"Learned from {escape(card.learned_from)}."
        return f'<p class="banner">Model <b>{escape(card.title)}</b>. {learned_from}</p>{notice}'
    value = f' value="{load.fraction:.3f}"' if load.fraction else ""  # without a value the bar wanders
    return (
        f'<div class="banner loading"><label for="loading">{escape(_loading(load))}</label>'
        f'<progress id="loading" max="1"{value}></progress></div>'
    )


def _loading(load: LoadState) -> str:
    percent = f", {load.fraction:.0%}" if load.fraction else ""
    return f"{load.message}{percent}"


def prompt_origin(origin: str) -> str:
    """Where the prompt in the box came from, if not from the keyboard."""
    return f"<p>Prompt read from the image file: <b>{escape(origin)}</b></p>" if origin else ""
