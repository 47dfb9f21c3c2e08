"""HTML of the form in which one aspect is corrected."""

from __future__ import annotations

from html import escape

from annotation.store.corrections import ERROR_TAGS, MAX_COMMENT, MAX_DESCRIPTION, MAX_TAG, AspectResponse
from m3agiqa.aspects import Aspect, MosScale


def correction_form(
    aspect: Aspect,
    scale: MosScale,
    score: float,
    description: str,
    saved: AspectResponse | None,
    version: str,
) -> str:
    """Filled with the given score and description, and with the tags and comment that were `saved` before.

    With another `version` the page begins the form anew; with the same one, what was typed stays.
    """
    tags = saved.tags if saved else ()
    chips = "".join(_chip(tag, tag in tags) for tag in ERROR_TAGS[aspect])
    others = ", ".join(tag for tag in tags if tag not in ERROR_TAGS[aspect])
    return (
        f'<form id="form-{aspect}" class="correction" data-aspect="{aspect}" data-version="{version}"'
        f' aria-label="Correct {aspect}" autocomplete="off" novalidate>'
        f'<label for="description-{aspect}">Description</label>'
        f'<textarea id="description-{aspect}" name="description" rows="6" maxlength="{MAX_DESCRIPTION}">\n'
        f"{escape(description)}</textarea>"
        f'<div class="slider"><label for="score-{aspect}">Score</label>'
        f'<output for="score-{aspect}">{score:.1f}</output>'
        f'<input type="range" id="score-{aspect}" name="score" min="{scale.low:g}" max="{scale.high:g}"'
        f' step="0.1" value="{score:.1f}">'
        f'<p class="ends" aria-hidden="true"><span>{scale.low:g}</span><span>{scale.high:g}</span></p></div>'
        f"<fieldset><legend>What the model got wrong</legend>{chips}"
        '<input type="text" name="others" class="others" aria-label="Other errors, separated by commas"'
        f' placeholder="other …" maxlength="{5 * MAX_TAG}" value="{escape(others)}"></fieldset>'
        f'<label for="comment-{aspect}">Comment <small>(optional)</small></label>'
        f'<textarea id="comment-{aspect}" name="comment" rows="1" maxlength="{MAX_COMMENT}">\n'
        f"{escape((saved.comment if saved else None) or '')}</textarea>"
        '<div class="verdict"><button type="submit" class="primary">Save</button>'
        '<button type="button" class="plain" data-do="cancel">Cancel</button>'
        '<small class="keys"><kbd>Ctrl</kbd> <kbd>Enter</kbd> saves, <kbd>Esc</kbd> cancels</small></div>'
        "</form>"
    )


def _chip(tag: str, checked: bool) -> str:
    return (
        f'<label class="chip"><input type="checkbox" name="tags" value="{escape(tag)}"'
        f"{' checked' * checked}><span>{escape(tag)}</span></label>"
    )
