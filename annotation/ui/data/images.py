"""The images of the database: searched, looked at, and put into the annotation queue; nobody's answers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from annotation.failures.export_and_queue import queue_items
from annotation.store.item_search import (
    ItemSearch,
    ItemState,
    ItemSummary,
    item_summary,
    matching_items,
    search_items,
)
from annotation.ui import messages, payloads, theme
from annotation.ui.access import Role
from annotation.ui.context import Studio
from annotation.ui.events import QUIET_EVENT
from annotation.ui.failures.cards import queued_html
from annotation.ui.images import preview
from annotation.ui.thumbnails import thumbnail_url
from m3agiqa.errors import InputError, M3AgiqaError

PAGE_SIZE = 48  # images
STATE_CHOICES = [
    ("All", ItemState.ALL),
    ("Annotators wanted", ItemState.OPEN),
    ("Annotated", ItemState.DONE),
    ("Not in the queue", ItemState.NOT_QUEUED),
]
# For `js=`: the first input becomes the ids of the ticked images.
TICKED_IMAGES = """(_, ...others) => {
    const ticked = document.querySelectorAll("#data-images input:checked");
    return [[...ticked].map((box) => box.value).join(" "), ...others];
}"""
# For `js=`, given what queuing has answered: images that were queued are no longer ticked.
UNTICK_IMAGES = """(answer) => {
    if (!answer.includes('class="done"')) return;
    for (const box of document.querySelectorAll("#data-images input:checked")) box.click();
}"""


class ImagesHandlers:
    """What happens among the images; every method is an event's function."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def show(self, request: gr.Request, text: Any, state: Any, page: Any = 0) -> tuple[str, str, int]:
        """A page of the images that match: message, grid, and which page it is, from 0."""
        try:
            search, at = self._search(request, text, state), int(page or 0)
            with self.studio.store.database.reading() as session:
                items, count = search_items(session, search, at * PAGE_SIZE, PAGE_SIZE)
                if not items and at:  # fewer match than a moment ago
                    at = 0
                    items, count = search_items(session, search, 0, PAGE_SIZE)
        except M3AgiqaError as error:
            return messages.message(str(error)), "", 0
        return messages.message(""), self._grid(items, count, at), at

    def choose(
        self, request: gr.Request, event: gr.EventData, text: Any, state: Any, page: Any
    ) -> tuple[str, Any, Any, str]:
        """Another page, or an image: message, grid, page, and the image in detail."""
        step, item = getattr(event, "step", ""), getattr(event, "item", "")
        if str(step) in ("-1", "1"):
            return *self.show(request, text, state, max(0, int(page or 0) + int(step))), ""
        try:
            detail = self._detail(self._search(request, "", ItemState.ALL), str(item))
            return messages.message(""), gr.skip(), gr.skip(), detail
        except M3AgiqaError as error:
            return messages.message(str(error)), gr.skip(), gr.skip(), ""

    def queue(self, request: gr.Request, ticked: Any, text: Any, state: Any, overlap: Any) -> str:
        """Put the ticked images, or else all that match, into the annotation queue; tells how that went."""
        try:
            person = self.studio.access.require(request, Role.ANNOTATOR)
            wanted, store = payloads.annotators_per_image(overlap), self.studio.store
            with store.database.reading() as session:
                ids = matching_items(session, self._search(request, text, state))
            chosen = {int(item) for item in str(ticked or "").split() if item.isdecimal()}
            if not ids:
                raise InputError("No image matches, so there is nothing to queue.")
            if chosen and not (ids := [item for item in ids if item in chosen]):
                raise InputError("None of the ticked images matches any more; tick images anew.")
            return queued_html(queue_items(store, ids, wanted, person.name), wanted)
        except M3AgiqaError as error:
            return messages.message(str(error))

    def _search(self, request: gr.Request, text: Any, state: Any) -> ItemSearch:
        """What this person may look for. Raises Forbidden for who may not annotate."""
        person = self.studio.access.require(request, Role.ANNOTATOR)
        return ItemSearch(str(text or ""), _state(state), person.role.allows(Role.ADMIN))

    # --- HTML

    def _grid(self, items: list[ItemSummary], count: int, page: int) -> str:
        if not items:
            return '<p class="nothing note">No image matches.</p>'
        shown = "".join(self._tile(item) for item in items)
        first = page * PAGE_SIZE
        before = '<button type="button" data-step="-1">← Newer</button>' if page else ""
        after = '<button type="button" data-step="1">Older →</button>' if first + len(items) < count else ""
        return (
            f'<p class="pages" data-matching="{count}">'
            f"{first + 1:,} to {first + len(items):,} of {count:,} images {before}{after}</p>"
            f'<ul class="image-grid">{shown}</ul>'
        )

    def _tile(self, item: ItemSummary) -> str:
        url = thumbnail_url(self.studio.store.images.path(item.file))
        name = escape(item.prompt or item.name)
        return (
            f'<li><label><input type="checkbox" aria-label="Choose {name}" value="{item.id}"></label>'
            f'<button type="button" data-item="{item.id}" title="{name}">'
            f'<img loading="lazy" alt="{name}" src="{url}"><span class="note">{_people(item)}</span>'
            "</button></li>"
        )

    def _detail(self, search: ItemSearch, number: str) -> str:
        with self.studio.store.database.reading() as session:
            item = item_summary(session, search, int(number)) if number.isdecimal() else None
        if item is None:
            raise InputError("This image is no longer there; search again.")
        facts = {
            "Prompt": item.prompt or "none",
            "Generator": item.generator or "not given",
            "Source": item.source,
            "File": item.name,
            "Size": f"{item.width} × {item.height} pixels",
            "People": _people(item),
        }
        listed = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
        image = preview(self.studio.store.images.path(item.file))
        alt = escape(item.prompt or item.name)
        return (
            f'<article class="image-detail panel" data-item="{item.id}"><img src="{image.url}" alt="{alt}">'
            f'<div><dl>{listed}</dl><button type="button" data-do="close">Close</button></div></article>'
        )


def _state(given: Any) -> ItemState:
    try:
        return ItemState(str(given))
    except ValueError as error:
        raise InputError("This is not something to choose here; reload the page.") from error


def _people(item: ItemSummary) -> str:
    wanted = f"{item.wanted} wanted" if item.wanted else "not queued"
    return f"scored by {item.people}, {wanted}"


def images_section(studio: Studio, refreshed: Sequence[Any]) -> gr.Column:
    """Build the components and wire them up; the column is hidden from who may not annotate.

    `refreshed` are the events that bring the images up to date.
    """
    handlers = ImagesHandlers(studio)
    with gr.Column(visible=False, elem_id="data-all-images") as section:
        theme.html('<section class="figures"><h3>Images</h3></section>')
        with gr.Row():
            text = gr.Textbox(
                label="Search",
                placeholder="prompt, file, generator or source",
                min_width=280,
                elem_id="images-text",
            )
            state = gr.Dropdown(
                STATE_CHOICES, value=ItemState.ALL, label="Annotation", elem_id="images-state"
            )
        message = theme.html(messages.message(""), elem_id="images-message")
        detail = theme.html("", elem_id="images-detail", script=theme.javascript("images_detail.js"))
        scripts = theme.javascript("button_data.js", "ticked_entries.js")
        grid = theme.html("", elem_id="data-images", script=scripts)
        with gr.Column(elem_id="images-queue"):
            with gr.Row():
                overlap = gr.Number(
                    studio.settings.overlap, label="Annotators per image", precision=0, min_width=130
                )
                queue = gr.Button("Queue the matching images", size="md", elem_id="images-enqueue")
            queued = theme.html(messages.message(""), elem_id="images-queued")
    page, ticked = gr.State(0), gr.Textbox(visible="hidden")
    raw: dict[str, Any] = {"preprocess": False, **QUIET_EVENT}
    gr.on(
        [*refreshed, text.submit, text.change, state.input],
        handlers.show,
        inputs=[text, state],
        outputs=[message, grid, page],
        trigger_mode="always_last",
        **raw,
    )
    # One after the other, so that the answer to the last click comes last.
    grid.click(
        handlers.choose,
        inputs=[text, state, page],
        outputs=[message, grid, page, detail],
        trigger_mode="multiple",
        concurrency_limit=1,
        **raw,
    )
    queue.click(
        handlers.queue, inputs=[ticked, text, state, overlap], outputs=queued, js=TICKED_IMAGES, **raw
    ).then(None, inputs=queued, js=UNTICK_IMAGES, api_visibility="private").then(
        handlers.show, inputs=[text, state, page], outputs=[message, grid, page], **raw
    )
    return section
