"""HTML of the form in which one aspect is corrected, on both tabs; static/correction_form.js goes with it."""

from __future__ import annotations

from html import escape

from annotation.store.corrections import ERROR_TAGS, MAX_COMMENT, MAX_DESCRIPTION, MAX_TAG
from m3agiqa.aspects import COMMON_SCALE, Aspect, MosScale


def correction_form(
    aspect: Aspect,
    form_id: str,
    *,
    scale: MosScale = COMMON_SCALE,
    score: float | None = None,
    description: str = "",
    tags: tuple[str, ...] = (),
    comment: str = "",
    version: str = "",
    score_keys: bool = False,
    actions: str = "",
) -> str:
    """The form with these values, above `actions`, its buttons.

    `score_keys`: the score comes first, with a button for each whole score. With another `version` the page
    begins the form anew; with the same one, what was typed stays.
    """
    chips = "".join(_chip(tag, tag in tags) for tag in ERROR_TAGS[aspect])
    others = ", ".join(tag for tag in tags if tag not in ERROR_TAGS[aspect])
    keys = "".join(f'<button type="button" class="key">{key}</button>' for key in range(1, 6))
    label_class = "visually-hidden" if score_keys else "field"
    shown_score, value = ("–", "") if score is None else (f"{score:.1f}", f' value="{score:.1f}"')
    parts = [
        f'<label class="{label_class}" for="{form_id}-description">Description</label>'
        f'<textarea id="{form_id}-description" name="description" rows="{2 if score_keys else 6}"'
        f' maxlength="{MAX_DESCRIPTION}">\n{escape(description)}</textarea>',
        f'<div class="slider"><label class="{label_class}" for="{form_id}-score">Score</label>'
        f'{keys * score_keys}<output for="{form_id}-score">{shown_score}</output>'
        f'<input type="range" id="{form_id}-score" name="score" min="{scale.low:g}" max="{scale.high:g}"'
        f' step="0.1"{value}>'
        f'<p class="ends" aria-hidden="true"><span>{scale.low:g}</span><span>{scale.high:g}</span></p></div>',
    ]
    return (
        f'<form id="{form_id}" class="correction" data-aspect="{aspect}" data-version="{version}"'
        f' aria-label="Correct {aspect}" autocomplete="off" novalidate>'
        f'{"".join(reversed(parts) if score_keys else parts)}<div class="more">'
        '<div class="tags" role="group" aria-label="What the model got wrong">'
        f'<span class="field note">What the model got wrong</span>{chips}'
        '<input type="text" name="others" class="others" aria-label="Other errors, separated by commas"'
        f' placeholder="other …" maxlength="{5 * MAX_TAG}" value="{escape(others)}"></div>'
        f'<label class="{label_class}" for="{form_id}-comment">Comment <small>(optional)</small></label>'
        f'<textarea id="{form_id}-comment" name="comment" rows="1" maxlength="{MAX_COMMENT}"'
        f' placeholder="{"Comment" * score_keys}">\n'
        f"{escape(comment)}</textarea></div>{actions}</form>"
    )


def _chip(tag: str, checked: bool) -> str:
    return (
        f'<label class="chip pill"><input type="checkbox" name="tags" value="{escape(tag)}"'
        f"{' checked' * checked}>{escape(tag)}</label>"
    )
