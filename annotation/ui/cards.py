"""HTML of what the model says: one card per aspect, and whose judgement it is."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path

from annotation.ui.runs import RunState, Stage
from m3agiqa.aspects import Aspect
from m3agiqa.assessor import AspectResult, Assessment

QUESTIONS = {
    Aspect.QUALITY: "Is it sharp, clean and well composed?",
    Aspect.CORRESPONDENCE: "Does it show what the prompt asks for?",
    Aspect.AUTHENTICITY: "Could it be real?",
}
NO_PROMPT = (
    "Not judged: correspondence compares the image with its prompt, and there is no prompt. "
    "Type one and assess again."
)
NO_PREDICTOR = "Not judged: this model was not trained for this aspect."


def cards(state: RunState | None) -> str:
    """The three cards side by side; without a run they say what they are for."""
    body = "".join(card(aspect, state) for aspect in Aspect)
    return (
        f'<section class="cards" aria-label="Result"><h2 class="visually-hidden">Result</h2>{body}</section>'
    )


def card(aspect: Aspect, state: RunState | None) -> str:
    """One aspect: description, then rating word, MOS and gauge once they are known."""
    look, description = _description(aspect, state)
    result = state.results.get(aspect) if state else None
    rating = f'<span class="rating {result.rating}">{result.rating}</span>' if result else ""
    return (
        f'<article id="card-{aspect}" class="card {look}" aria-labelledby="title-{aspect}"'
        f' aria-busy="{str(look in ("waiting", "speaking")).lower()}">'
        f'<header><h3 id="title-{aspect}">{aspect.capitalize()}</h3>{rating}</header>'
        f'<p class="question">{QUESTIONS[aspect]}</p>'
        f'<div class="description" aria-live="polite">{description}</div>'
        f"{_score(result) if result else ''}"
        f"</article>"
    )


def _description(aspect: Aspect, state: RunState | None) -> tuple[str, str]:
    """How the card looks (its CSS class), and its text as HTML."""
    if state is None:
        return "idle", ""
    if aspect in state.results:
        return "finished", f"<p>{escape(state.results[aspect].description)}</p>"
    if aspect.needs_prompt and not state.has_prompt:
        return "without-prompt", f"<p>{NO_PROMPT}</p>"
    if state.stage is Stage.FINISHED:
        return "without-prompt", f"<p>{NO_PREDICTOR}</p>"
    said = escape(state.descriptions.get(aspect, ""))
    if state.stage is Stage.STOPPED:
        return "stopped", (f"<p>{said}</p>" if said else "") + '<p class="ended">Stopped.</p>'
    if state.over:
        return "idle", f"<p>{said}</p>"
    if said:
        return "speaking", f"<p>{said}</p>"
    return "waiting", ""


def _score(result: AspectResult) -> str:
    scale = result.scale
    span = f"{scale.low:g}–{scale.high:g}"
    raw = (
        f' <small class="raw" title="What the predictor said, before it was limited to the scale">'
        f"raw {result.raw_mos:.2f}</small>"
        if result.limited
        else ""
    )
    return (
        '<footer class="score">'
        f'<p class="mos"><strong>{result.mos:.1f}</strong> of {span}'
        f' <abbr title="mean opinion score">MOS</abbr>{raw}</p>'
        f'<div class="gauge {scale.rating(result.mos)}" role="meter"'
        f' aria-label="{result.aspect.capitalize()}, mean opinion score"'
        f' aria-valuemin="{scale.low:g}" aria-valuemax="{scale.high:g}" aria-valuenow="{result.mos:.2f}"'
        f' aria-valuetext="{result.mos:.1f} on a scale of {span}">'
        f'<div class="fill" style="width:{100 * scale.to_unit(result.mos):.1f}%"></div></div>'
        f'<p class="ends" aria-hidden="true"><span>{scale.low:g}</span><span>{scale.high:g}</span></p>'
        "</footer>"
    )


def provenance(assessment: Assessment | None) -> str:
    """One line below the cards: which model, what it learned from, and the result as a file."""
    if assessment is None:
        return ""
    text = json.dumps(assessment.to_dict(), indent=2, ensure_ascii=False)
    # A data URL leaves no file on the server and needs no further request.
    href = f"data:application/json;base64,{base64.b64encode(text.encode()).decode()}"
    name = f"{Path(assessment.image or 'image').stem}.m3agiqa.json"
    return (
        f'<p class="provenance"><span>Judged by <b>{escape(assessment.model)}</b>. '
        f"{escape(assessment.learned_from)}</span>"
        f'<a id="download" class="download" href="{href}" download="{escape(name)}">Download JSON</a></p>'
    )
