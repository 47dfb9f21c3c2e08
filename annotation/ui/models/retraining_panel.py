"""HTML of a retraining: what it would learn from, how far it is, and what it has changed."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from annotation.retraining import AspectMaterial, Material, RetrainingProgress, RetrainingState
from annotation.ui.images import preview
from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.comparison import (
    MIN_DESCRIBED_IMAGES,
    MIN_TO_RESAMPLE,
    ChangedImage,
    ChangedScore,
    Comparison,
)
from m3agiqa.errors import InputError
from m3agiqa.plurals import counted

STAGE_TEXTS = {
    "export": "Writing out what people said",
    "datasets": "Reading what people said",
    "describe": "The model looks at the images",
    "fit": "Learning from people’s scores",
    "evaluate": "Comparing the new model with the one before",
    "ship": "Putting the new model together",
}
"""Of the stages that take long enough to be seen."""
TOO_LITTLE = (
    "There is too little to retrain from: an aspect needs scored images to learn from and scored images that "
    "are held out, which are those of about one prompt in five; picks alone need ten prompts and one that is "
    "held out. Score images, or pick the best one, of more prompts."
)
NOTHING_NEW = (
    "Nothing was corrected or picked since the latest retraining. To retrain again is to learn from the same."
)


def idle_html(
    material: Material | None,
    problem: str,
    last: RetrainingState | None,
    log: str,
    until_due: int | None = None,
) -> str:
    """What would be used, and a button that starts it.

    `problem` is why there is nothing to use; `until_due` is how many more corrections start one by itself,
    None for none.
    """
    lines, button = [], ""
    if last is not None:
        lines.append(f'<p role="status">{_outcome(last)}{_next_by_itself(last, until_due)}</p>')
        if not last.candidate:
            lines.append(_log(log))
    if material is None:
        lines.append(f"<p>{escape(problem)}</p>")
    else:
        if not material.is_enough:
            lines.append(f"<p>{TOO_LITTLE}</p>")
        elif new := _new(material):
            label = f"Retrain from {new}"
            button = f'<button class="primary" type="button" data-action="retrain">{label}</button>'
        else:
            lines.append(f"<p>{NOTHING_NEW}</p>")
            button = '<button type="button" data-action="retrain">Retrain again</button>'
        lines += _material(material)
    return _panel(button, lines)


def _new(material: Material) -> str:
    """What has come since the latest retraining and can be learned from; "" for nothing."""
    counts = (
        (material.new, "new correction"),
        (material.picks.new if material.picks.are_followed else 0, "new pick"),
    )
    return " and ".join(counted(*each) for each in counts if each[0])


def running_html(state: RetrainingState | None, progress: RetrainingProgress, log: str) -> str:
    """How far it is, and a button that cancels it."""
    who = f"Retraining, {state.who}" if state else "Retraining"
    text = STAGE_TEXTS.get(progress.stage, progress.stage.capitalize())
    value = f' value="{progress.done / progress.total:.3f}"' if progress.done else ""
    how_far = f": {progress.done:,} of {progress.total:,} images" if progress.total else ""
    left = f", about {progress.left} left" if progress.left else ""
    lines = [
        f"<p>{escape(who)}. The page can be closed, and the server restarted, meanwhile.</p>",
        f'<div class="banner loading"><label for="retraining-bar">{escape(text + how_far + left)}</label>'
        f'<progress id="retraining-bar" max="1"{value}></progress></div>',
        _log(log),
    ]
    return _panel('<button type="button" data-action="cancel">Cancel</button>', lines)


def _panel(button: str, lines: list[str]) -> str:
    return f'<section class="panel"><header><h3>Retrain</h3>{button}</header>{"".join(lines)}</section>'


def _outcome(state: RetrainingState) -> str:
    who = f"The last retraining, {escape(state.who)},"
    if state.ended_at is None:
        return f"{who} was interrupted. The next one goes on from there."
    if state.error:
        return f"{who} has made no model: {escape(state.error)}"
    return f"{who} has made {escape(state.candidate or 'a model')}."


def _next_by_itself(last: RetrainingState, until_due: int | None) -> str:
    if last.candidate or not until_due:
        return ""
    more = counted(until_due, "more correction")
    return f" The same corrections do not start it again by themselves: {more}, or the button, will."


def _log(log: str) -> str:
    return f"<details><summary>Log</summary><pre>{escape(log.strip())}</pre></details>" if log.strip() else ""


# --- what would be used ------------------------------------------------------------------------


def _material(material: Material) -> list[str]:
    heads = "".join(
        f'<th scope="col">{head}</th>' for head in ("Images to learn from", "Held out", "Corrections")
    )
    has_scores = any(each.train and each.test for each in material.aspects.values())
    otherwise = (
        " (stays as it is)" if has_scores or not material.picks.is_enough else " (learns from picks alone)"
    )
    body = "".join(_material_row(aspect, material.aspects.get(aspect), otherwise) for aspect in Aspect)
    texts = material.texts_left_out
    left_out = (
        f"Left out: {counted(texts, 'description')} of one word, with the same text under many images, or "
        "not in English; the Data tab lists them. "
        if texts
        else ""
    )
    learned, held_out = counted(material.described, "image"), material.described_test
    picks = f"Picks of the best image: {material.picks}. " if material.picks.items else ""
    too_few = material.described < MIN_DESCRIBED_IMAGES or held_out < MIN_TO_RESAMPLE
    needed = (
        f"; they stay as they are without {MIN_DESCRIBED_IMAGES} and {MIN_TO_RESAMPLE}" if too_few else ""
    )
    words = f"Words: {learned} with descriptions to learn from, {held_out:,} held out{needed}. "
    return [
        f"<p>{words}{picks}{left_out}{material.duration}</p>",
        f'<div class="wide"><table><thead><tr><th scope="col">Aspect</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>",
    ]


def _material_row(aspect: Aspect, known: AspectMaterial | None, otherwise: str) -> str:
    name = f'<tr><th scope="row">{aspect.capitalize()}</th>'
    lacking = "" if known and known.train and known.test else otherwise
    if known is None:
        return f"{name}<td>none{lacking}</td><td></td><td></td></tr>"
    return f"{name}<td>{known.train:,}{lacking}</td><td>{known.test:,}</td><td>{known.opinions:,}</td></tr>"


# --- what has changed --------------------------------------------------------------------------


def changes_html(comparison: Comparison, files: Mapping[str, Path]) -> str:
    """The images that changed most; `files`: where those of the store lie, by name."""
    rows = "".join(_changed(image, files.get(image.image)) for image in comparison.changed)
    return (
        f"<h4>Images that changed most, {escape(comparison.before)} → {escape(comparison.after)}</h4>"
        f'<ul class="changed">{rows}</ul>'
    )


def _changed(image: ChangedImage, file: Path | None) -> str:
    prompt = escape(image.prompt or "no prompt")
    picture = ""
    if file is not None:
        try:
            picture = f'<img src="{preview(file).url}" alt="{prompt}">'
        except InputError as error:
            picture = f"<p>{escape(str(error))}</p>"
    learned = "held out" if image.is_held_out else "learned from"
    scores = "".join(map(_changed_score, image.scores))
    return f'<li>{picture}<div><p class="note">{prompt} ({learned})</p>{scores}</div></li>'


def _changed_score(score: ChangedScore) -> str:
    old, new = score.words
    people = "" if score.mos is None else f", people {score.mos:.1f}"
    change = f"{score.before:.1f} {old} → <b>{score.after:.1f} {new}</b>"
    told = f"<p>{score.aspect.capitalize()}: {change}{people}</p>"
    if score.texts is None:
        return told
    before, after = map(escape, score.texts)
    return (
        f"{told}<dl><div><dt>Before</dt><dd>{before}</dd></div><div><dt>After</dt><dd>{after}</dd></div></dl>"
    )
