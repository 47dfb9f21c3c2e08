"""HTML of an assessment: one card per aspect, and which model it comes from."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path

from annotation.store.corrections import AspectResponse
from annotation.ui.assess.runs import RunStage, RunState
from m3agiqa.aspects import Aspect
from m3agiqa.assessment import AspectResult, Assessment
from m3agiqa.checkpoint.calibration import INTERVAL_LEVEL

ASPECT_QUESTIONS = {
    Aspect.QUALITY: "Is it sharp, clean and well composed?",
    Aspect.CORRESPONDENCE: "Does it show what the prompt asks for?",
    Aspect.AUTHENTICITY: "Could it be real?",
}
HOW_TO_READ = (
    '<p class="note"><b>The score is surer than the words.</b> It is fitted to mean opinion scores (MOS). '
    "The words are not: a description can be wrong about what is in the image, and where. "
    "Of the prompt’s elements ✓ are seen, ✗ are not, ? is not sure; the others are not judged. Press one to "
    "read what was compared. "
    f"What people would likely say is the range that held {INTERVAL_LEVEL:.0%} of the mean opinion scores of "
    "images that the model had not learned from. On the map of where it looks bad the worst "
    "part is framed; the deeper the colour, the worse a part is beside the median part of the image.</p>"
).replace("80%", "80 %")
NO_PROMPT = (
    "Not judged: correspondence compares the image with its prompt, and there is no prompt. "
    "Type one and assess again."
)
KEPT_NOTE = '<p class="kept">Images assessed here are kept on this server, for people to annotate.</p>'
UNKNOWN_PROMPT = (
    "The words of this prompt are not known to the model, as they are in another language or script: "
    "this score says little."
)
LONG_PROMPT = "Of this prompt the model could read the first {:,} characters; this score is about these."
NO_PREDICTOR = "Not judged: this model was not trained for this aspect."


def card(
    aspect: Aspect,
    state: RunState | None,
    response: AspectResponse | None = None,
    below: str = "",
    editing: bool = False,
) -> str:
    """One aspect: description, then rating word, MOS and gauge once they are known.

    A person's `response` stands in place of the model's answer. `below` is HTML for correcting the card
    (annotation.ui.assess.correct), of which the form alone is seen while `editing`.
    """
    css_class, description = _description(aspect, state)
    result = state.results.get(aspect) if state else None
    if result and response:
        css_class = "finished corrected"
        description = f"<p>{escape(response.description or result.description)}</p>"
    word = result.rating if result else ""
    if result and response and not response.agrees:
        word = response.scale.rating(response.score)
    rating = f'<span class="rating {word}">{word}</span>' if word else ""
    return (
        f'<article id="card-{aspect}" class="card {css_class}" aria-labelledby="title-{aspect}"'
        f' aria-busy="{str(css_class in ("waiting", "speaking")).lower()}"'
        f' data-mode="{"edit" if editing else "read"}">'
        f'<header><h3 id="title-{aspect}">{aspect.capitalize()}</h3>{rating}</header>'
        f'<p class="question">{ASPECT_QUESTIONS[aspect]}</p>'
        f'<div class="description" aria-live="polite">{description}</div>'
        f"{_elements(result) if result else ''}{_tags(response) if response else ''}"
        f"{_score(result, response) if result else ''}{below}"
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
    if state.stage is RunStage.FINISHED:
        return "without-prompt", f"<p>{NO_PREDICTOR}</p>"
    text = escape(state.descriptions.get(aspect, ""))
    if state.stage is RunStage.STOPPED:
        return "stopped", (f"<p>{text}</p>" if text else "") + '<p class="ended">Stopped.</p>'
    if state.over:
        return "idle", f"<p>{text}</p>"
    if text:
        return "speaking", f"<p>{text}</p>"
    return "waiting", ""


def _elements(result: AspectResult) -> str:
    """Of the prompt, each with whether it is seen; opened, one says what was compared with what."""
    chips = "".join(
        f'<li><details name="element" class="{each.presence.name.lower()}">'
        f"<summary>{escape(each.element.text)}"
        f'<span class="visually-hidden">: {each.presence}</span></summary>'
        f"<p><b>{each.element.kind.capitalize()}, {each.presence}.</b> {escape(each.comparison)}</p>"
        "</details></li>"
        for each in result.elements
    )
    return f'<ul class="elements" aria-label="Elements of the prompt">{chips}</ul>' if chips else ""


def _tags(response: AspectResponse) -> str:
    chips = "".join(f"<li>{escape(tag)}</li>" for tag in response.tags)
    comment = f'<p class="comment">{escape(response.comment)}</p>' if response.comment else ""
    return (f'<ul class="said-tags">{chips}</ul>' if chips else "") + comment


def _score(result: AspectResult, response: AspectResponse | None = None) -> str:
    scale, score = result.scale, result.mos
    span = f"{scale.low:g}–{scale.high:g}"
    kind, note = '<abbr title="mean opinion score">MOS</abbr>', ""
    if response and not response.agrees:
        score, kind = response.score, "by you"
        note = f'<small class="raw" title="What the model said">model {result.mos:.1f}</small>'
    elif result.limited:
        note = (
            '<small class="raw" title="What the predictor said, before it was limited to the scale">'
            f"raw {result.raw_mos:.2f}</small>"
        )
    band, reading = "", ""
    if result.calibration is not None and not (response and not response.agrees):
        low, high = result.calibration.interval(result.mos, scale)
        left, right = 100 * scale.to_unit(low), 100 * scale.to_unit(high)
        band = f'<div class="interval" style="left:{left:.1f}%;width:{right - left:.1f}%"></div>'
        reading = f"People would likely say <b>{low:.1f} to {high:.1f}</b>"
        if result.percentile is not None:
            images = f"{result.calibration.training_images:,} images it learned from"
            reading += f". The score is above <b>{int(result.percentile)} %</b> of the {images}"
        reading = f'<p class="reading">{reading}.</p>'
    if result.unknown_prompt:
        reading += f'<p class="reading">{UNKNOWN_PROMPT}</p>'
    if result.read_characters is not None:
        reading += f'<p class="reading">{LONG_PROMPT.format(result.read_characters)}</p>'
    whose = "your score" if response and not response.agrees else "mean opinion score"
    return (
        '<footer class="score">'
        f'<p class="mos"><strong>{score:.1f}</strong> of {span} {kind} {note}</p>'
        f'<div class="gauge {scale.rating(score)}" role="meter"'
        f' aria-label="{result.aspect.capitalize()}, {whose}"'
        f' aria-valuemin="{scale.low:g}" aria-valuemax="{scale.high:g}" aria-valuenow="{score:.2f}"'
        f' aria-valuetext="{score:.1f} on a scale of {span}">'
        f'<div class="fill" style="width:{100 * scale.to_unit(score):.1f}%"></div>{band}</div>'
        f'<p class="ends" aria-hidden="true"><span>{scale.low:g}</span><span>{scale.high:g}</span></p>'
        f"{reading}"
        "</footer>"
    )


def provenance(assessment: Assessment | None, kept: bool = False) -> str:
    """Below the cards: which model, what it learned from, the result as a file, and whether it is kept."""
    if assessment is None:
        return ""
    text = json.dumps(assessment.to_dict(), indent=2, ensure_ascii=False)
    # A data URL leaves no file on the server and needs no further request.
    href = f"data:application/json;base64,{base64.b64encode(text.encode()).decode()}"
    name = f"{Path(assessment.image or 'image').stem}.m3agiqa.json"
    return (
        f'<p class="provenance"><span>Judged by <b>{escape(assessment.model)}</b>. '
        f"Learned from {escape(assessment.learned_from)}.</span>"
        f'<a id="download" class="download" href="{href}" download="{escape(name)}">Download JSON</a></p>'
        f"{KEPT_NOTE if kept else ''}"
    )
