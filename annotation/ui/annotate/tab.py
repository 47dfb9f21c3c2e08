"""The Annotate tab: one image after the other, judged with the keyboard alone if one likes."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from annotation.store.queue import Pool, QueueOrder
from annotation.ui import messages, payloads, theme
from annotation.ui.access import Role
from annotation.ui.annotate.api import Annotating
from annotation.ui.annotate.guideline import guideline_html
from annotation.ui.annotate.imports import import_uploads, uploads
from annotation.ui.assess.cards import ASPECT_QUESTIONS
from annotation.ui.context import Studio
from annotation.ui.correction_form.form import correction_form
from m3agiqa.aspects import Aspect
from m3agiqa.errors import M3AgiqaError

ORDER_LABELS = {
    QueueOrder.RANDOM: "Random",
    QueueOrder.UNCERTAIN: "Uncertain first",
    QueueOrder.INFORMATIVE: "Most informative first",
    QueueOrder.LEAST: "Least annotated first",
}
ORDER_HINT = (
    "Uncertain: the model's word and MOS differ most. Most informative: stands for the most other images. "
    "Both choose among images that the model has assessed; it assesses more while you annotate."
)
POOL_LABELS = {Pool.ALL: "All images", Pool.IMPORTED: "Imported images", Pool.DEMO: "From the Assess tab"}

IMPORT_HINT = (
    "Images, a ZIP archive, or a CSV file (columns image, prompt, generator) together with its images; "
    "or a folder. What is known already is recognised."
)

# What the page says of its keys; what they do is in static/annotate.js (KEYS).
KEY_HELP = (
    ("1–5", "score"),
    ("↑ ↓", "aspect"),
    ("← →", "fine"),
    ("A", "agree"),
    ("E C", "text, comment"),
    ("Z", "zoom"),
    ("G", "guide"),
)
FIELD_KEY_HELP = (("Esc", "leave field"), ("Ctrl+Enter", "save and go on"))


def annotate_tab(studio: Studio) -> Annotating:
    """Build the components within the current tab, and publish the endpoints that they use."""
    annotating = Annotating(studio)
    annotating.publish()
    script = theme.javascript("correction_form.js") + theme.javascript("annotate.js")
    theme.html(_page(), elem_id="annotate", script=script)
    handlers = ImportHandlers(studio)
    with gr.Accordion("Add images to the queue", open=False, elem_id="annotate-import"):
        with gr.Row(equal_height=False):
            files = gr.File(
                label="Images, a ZIP or a CSV",
                file_count="multiple",
                height=140,
                elem_id="import-files",
            )
            with gr.Column(min_width=280):
                theme.html(f'<p class="note">{escape(IMPORT_HINT)}</p>')
                name = gr.Textbox(
                    label="Name of this import", placeholder="by default the file's", elem_id="import-name"
                )
                overlap = gr.Number(
                    label="Annotators per image",
                    value=studio.settings.overlap,
                    minimum=1,
                    precision=0,
                    elem_id="import-overlap",
                )
                with gr.Row():
                    folder = gr.UploadButton(
                        "Choose a folder", file_count="directory", size="md", elem_id="import-folder"
                    )
                    start = gr.Button("Import", variant="primary", size="md", elem_id="import-start")
        result = theme.html("", elem_id="import-result")
    for chosen, event in ((files, start.click), (folder, folder.upload)):
        event(
            handlers.bring_in,
            inputs=[chosen, name, overlap],
            outputs=result,
            preprocess=False,  # the names that the files have at home
            concurrency_limit=2,
            api_visibility="private",
        ).then(None, js=_QUEUE_CHANGED, api_visibility="private")
    return annotating


class ImportHandlers:
    """What happens when files are given; every method is an event's function."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def bring_in(
        self,
        request: gr.Request,
        files: Any,
        name: Any,
        overlap: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it by its default)
    ) -> str:
        """Import uploaded files; a summary as HTML."""

        def report(done: int, total: int) -> None:
            progress((done, total), desc="Importing", unit="images")

        try:
            person = self.studio.access.require(request, Role.ANNOTATOR)
            import_name = payloads.text(name or "", "The name of this import")
            annotators_per_image = payloads.annotators_per_image(overlap)
            reports = import_uploads(
                self.studio, person, uploads(files), import_name, annotators_per_image, report
            )
        except M3AgiqaError as error:
            return messages.message(str(error))
        lines = "\n".join(report.text for report in reports)
        return f'<p class="annotate-report" role="status">{escape(lines)}</p>'


# Tells the working area that there may be something to do now.
_QUEUE_CHANGED = '() => document.dispatchEvent(new Event("m3agiqa-queue"))'


def _page() -> str:
    """The working area before the first item; static/annotate.js fills it."""
    keys = "".join(f"<span><kbd>{key}</kbd> {escape(what)}</span>" for key, what in KEY_HELP)
    keys += "".join(
        f'<span class="typing"><kbd>{key}</kbd> {escape(what)}</span>' for key, what in FIELD_KEY_HELP
    )
    return f"""
<section class="annotate loading without-item" tabindex="-1" aria-label="Annotation">
  <div class="bar">
    {_select("order", "Order", {str(key): text for key, text in ORDER_LABELS.items()}, ORDER_HINT)}
    {_select("pool", "Images", {str(key): text for key, text in POOL_LABELS.items()})}
    <label class="blind" title="Hide the model's answer to an aspect until you have scored it">
      <input type="checkbox" data-part="blind"> Blind</label>
    <div class="progress">
      <span data-part="mine"></span>
      <b data-part="left"></b>
      <progress data-part="progress" max="1" value="0" aria-label="Progress of all annotators"></progress>
      <span data-part="all"></span>
    </div>
  </div>
  <p class="message" data-part="message" role="alert"></p>
  <div class="work">
    <figure>
      <div class="picture" data-part="figure"></div>
      <figcaption data-part="prompt"></figcaption>
      <div class="guideline panel" data-part="guideline" role="region" aria-label="Guideline" hidden>
        {guideline_html()}</div>
    </figure>
    <div class="aspects" data-part="aspects"></div>
    {"".join(map(_aspect_template, Aspect))}
  </div>
  <div class="empty">
    <h3 data-part="empty-title">Nothing is waiting for you</h3>
    <p data-part="empty-text"></p>
    <button type="button" data-part="again">Look again</button>
  </div>
  <footer>
    <button type="button" class="primary" data-part="save">Save and go on <kbd>Enter</kbd></button>
    <button type="button" data-part="skip">Skip <kbd>S</kbd></button>
    <button type="button" data-part="undo">Undo <kbd>U</kbd></button>
    <span class="report" data-part="report" role="status"></span>
    <div class="keys" aria-label="Keys">{keys}</div>
  </footer>
</section>"""


def _aspect_template(aspect: Aspect) -> str:
    """What the page shows of one aspect: what the model says, and the form for what a person says."""
    title = aspect.capitalize()
    form = correction_form(aspect, f"annotate-{aspect}", score_keys=True)
    return (
        f'<template data-for="{aspect}">'
        f'<article class="aspect panel" data-aspect="{aspect}" aria-label="{title}">'
        f'<header><h3 title="{ASPECT_QUESTIONS[aspect]}">{title}</h3><span class="model-score"></span>'
        '<button type="button" class="agree" aria-pressed="false">This is right</button></header>'
        f"{form}</article></template>"
    )


def _select(part: str, label: str, choices: dict[str, str], hint: str = "") -> str:
    options = "".join(
        f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices.items()
    )
    return f'<label title="{escape(hint)}">{label} <select data-part="{part}">{options}</select></label>'
