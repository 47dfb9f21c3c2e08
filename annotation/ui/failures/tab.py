"""The Failure cases tab: where a model and people differ, as points, as a list, and one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import gradio as gr
import pandas as pd
from gradio import processing_utils
from gradio.utils import get_upload_folder
from sqlalchemy.orm import Session

from annotation.failures.catalogue import Catalogue, Choices
from annotation.failures.error_table import DataSet, Key, Version
from annotation.failures.export_and_queue import queue_items, queue_samples, to_csv
from annotation.failures.filters import (
    CHOICES_OF_FIELDS,
    Nearer,
    Order,
    Plot,
    Side,
    View,
    Words,
    key_at,
    place,
    select,
)
from annotation.failures.from_annotations import Annotations
from annotation.failures.image_map import ImageMap, ImageMaps, MapProgress, group_ranks, is_image_group
from annotation.failures.slices import error_slices
from annotation.store import exposures
from annotation.store.exposures import ItemAspect
from annotation.store.items import MAX_SOURCE
from annotation.store.log import answers_are_open, open_answers
from annotation.store.models import AnswersOf
from annotation.store.saved_views import MAX_VIEW_NAME, find_view, remove_view, save_view, saved_views
from annotation.ui import messages, payloads, theme
from annotation.ui.access import Person, Role
from annotation.ui.annotate.prefetch import Prefetch
from annotation.ui.context import Studio
from annotation.ui.events import PARALLEL_EVENT
from annotation.ui.failures.cards import (
    MAX_LISTED,
    ModelNames,
    agreement_table,
    case_detail,
    case_list,
    chosen_group,
    list_page,
    progress_html,
    queued_html,
    saved_views_html,
    slices_table,
)
from annotation.ui.failures.map_plot import map_svg
from annotation.ui.failures.scatter import scatter_svg
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError, M3AgiqaError

NOTHING_YET = "There is nothing to look into yet: assess images and have people score them, or train a model."
NO_MODEL = "No model has assessed an image here yet."
NO_SCORES = (
    "No person has scored an image that this model has assessed. Score some on the Annotate tab, or correct "
    "what the model says on the Assess tab."
)

HIDDEN_ANSWERS = (
    "Here annotators find what they have scored themselves, and how others and the model judge it; there is "
    "nothing of yours yet. An admin can open all cases to everybody."
)

ALL_CHOICE = [("All", "")]
ASPECT_CHOICES = ALL_CHOICE + [(aspect.capitalize(), str(aspect)) for aspect in Aspect]
SIDE_CHOICES = [("Any", Side.ANY), ("Over", Side.OVER), ("Under", Side.UNDER)]
WORD_CHOICES = [
    ("Any", Words.ANY),
    ("Word and score agree", Words.AGREE),
    ("They differ", Words.DIFFER),
    ("By two words or more", Words.FAR),
]
NEARER_CHOICES = [
    ("Any", Nearer.ANY),
    ("The first model is", Nearer.FIRST),
    ("The second model is", Nearer.OTHER),
]
ORDER_CHOICES = [
    ("Largest error first", Order.WORST),
    ("Smallest error first", Order.BEST),
    ("Most overestimated first", Order.OVER),
    ("Most underestimated first", Order.UNDER),
]
PLOT_CHOICES = [("Scores", Plot.SCORES), ("Images", Plot.IMAGES)]
COMPARED_ORDER_CHOICES = [
    ("Second model nearer by most", Order.GAIN),
    ("Second model further away by most", Order.LOSS),
]

CHOOSE_SCRIPT = theme.javascript("failures_choose.js")
# On phones the filters are folded, so that the first case is seen.
FILTERS_HTML = (
    '<label><input type="checkbox" aria-controls="failures-filters"> '
    "<span>Show filters<span data-active></span></span></label>"
)
FOLD_SCRIPT = theme.javascript("failures_fold.js")
LIST_SCRIPT = theme.javascript("failures_choose.js", "ticked_entries.js")
SLICE_SCRIPT = theme.javascript("button_data.js")
# For `js=`: the first input becomes the keys of the ticked cases.
TICKED_CASES = """(_, ...others) => {
    const ticked = document.querySelectorAll("#failures-list input:checked");
    return [[...ticked].map((box) => box.value).join("\\n"), ...others];
}"""
COPY_SCRIPT = theme.javascript("failures_copy.js")

# What `show` returns: message, agreement and slices, scatter, list, detail, link, the slice that is shown,
# and the case that is open.
Shown = tuple[str, str, str, str, str, str, str, str]
# What `arrange` returns: an update of each control and of what only some see, then the same.
Arranged = tuple[Any, ...]

Titled = TypeVar("Titled", DataSet, Version)


@dataclass(frozen=True)
class ResolvedView:
    """A view with what it refers to."""

    view: View
    data: DataSet
    model: Version
    other: Version | None
    table: pd.DataFrame
    selected: pd.DataFrame
    person: Person
    hidden: int
    """Cases that this person may not read yet."""
    images: ImageMap | MapProgress | None
    """None where no map is there or needed."""

    @property
    def names(self) -> ModelNames:
        return ModelNames(self.data.mos_label, self.model.title, self.other.title if self.other else "")


class FailuresHandlers:
    """What happens on the tab; every method is an event's function and can be called without a browser.

    `values` are those of the controls, in the order of View's fields.
    """

    def __init__(self, studio: Studio, prefetch: Prefetch) -> None:
        self.studio = studio
        self.prefetch = prefetch
        self.catalogue = Catalogue(studio.store, studio.settings.runs)
        self.maps = ImageMaps(
            studio.settings.data / "image-vectors.npz", is_busy=lambda: len(studio.line) > 0
        )

    def open(self, request: gr.Request, opened: bool, *values: Any) -> tuple[Any, ...]:
        """The tab is entered: the first time as the page's link says, later with what is new since."""
        if opened:
            return True, *self.arrange(request, *values)
        wanted = View.from_query(dict(request.query_params or {}))
        return True, *self._arrange(request, wanted, says_what_is_gone=True)

    def arrange(self, request: gr.Request, *values: Any) -> Arranged:
        """Another data set or model: the choices of everything else follow."""
        try:
            view = _view(values)
        except InputError as error:
            return *_unchanged(), *_as_it_was(str(error))
        return self._arrange(request, view)

    def show(self, request: gr.Request, *values: Any) -> Shown:
        """Another filter or order."""
        try:
            view = _view(values)
        except InputError as error:  # perhaps a number is not typed to its end
            return _as_it_was(str(error))
        try:
            return self._show(request, self._resolve(request, view))
        except M3AgiqaError as error:
            return _empty(str(error))

    def sort(self, request: gr.Request, *values: Any) -> Shown:
        """Another order: figures and points stay, as a browser takes a second to draw thousands again."""
        message, agreement, points, *others = self.show(request, *values)
        if any(others):
            agreement = points = gr.skip()
        return message, agreement, points, *others

    def follow(self, request: gr.Request, *values: Any) -> Shown:
        """How far the map is that a page waits for; once it is there, what it shows."""
        try:
            resolved = self._resolve(request, _view(values))
            if isinstance(resolved.images, MapProgress):
                plot = self._plot(resolved, Key.parse(resolved.view.case))
                return gr.skip(), gr.skip(), plot, *(gr.skip(),) * 5
            return self._show(request, resolved)
        except M3AgiqaError as error:
            return _as_it_was(str(error))

    def choose_slice(self, request: gr.Request, event: gr.EventData, *values: Any) -> Shown:
        """A slice is clicked, or the way back to all cases."""
        chosen = str(getattr(event, "slice", ""))
        return self.show(request, *values[: len(CONTROL_NAMES)], chosen, *values[len(CONTROL_NAMES) + 1 :])

    def choose(
        self, request: gr.Request, event: gr.EventData, *values: Any
    ) -> tuple[str, str, str, str, str]:
        """A point, a row or a neighbour is clicked: message, list, detail, link, and its key."""
        try:
            view = _view(values)
            resolved = self._resolve(request, replace(view, case=str(getattr(event, "case", ""))))
            selected, key = resolved.selected, Key.parse(resolved.view.case)
            if key is None or place(selected, key) is None:
                raise InputError("This case is no longer among the selected ones; choose another.")
            is_listed = list_page(selected, key) == list_page(selected, Key.parse(view.case))
            listed = gr.skip() if is_listed else self._list(resolved, key)
            return messages.message(""), listed, self._detail(resolved, key), _link(resolved.view), str(key)
        except M3AgiqaError as error:
            return messages.message(str(error)), gr.skip(), gr.skip(), gr.skip(), gr.skip()

    def export(self, request: gr.Request, ticked: Any, *values: Any) -> tuple[str, str | None]:
        """Message, and the ticked cases, or else the whole selection, as a file for the browser to save."""
        try:
            resolved = self._resolve(request, _view(values))
            chosen = _ticked(resolved.selected, ticked)
            if chosen.empty:
                raise InputError("No case matches these filters, so there is nothing to download.")
            self._note_shown(resolved, chosen)
        except M3AgiqaError as error:
            return messages.message(str(error)), None
        content = to_csv(chosen).encode("utf-8-sig")
        path = processing_utils.save_bytes_to_cache(content, "failure-cases.csv", get_upload_folder())
        return messages.message(""), path

    def queue(self, request: gr.Request, ticked: Any, overlap: Any, *values: Any) -> str:
        """Put images into the annotation queue, those of `export`; tells how that went."""
        try:
            person = self.studio.access.require(request, Role.ANNOTATOR)
            wanted = payloads.annotators_per_image(overlap)
            resolved = self._resolve(request, _view(values))
            chosen = _ticked(resolved.selected, ticked)
            if chosen.empty:
                raise InputError("No case matches these filters, so there is nothing to queue.")
            store = self.studio.store
            if isinstance(self.catalogue.source(resolved.data.key), Annotations):
                queued = queue_items(
                    store, [int(item) for item in chosen["item"].unique()], wanted, person.name
                )
            else:
                source = resolved.data.title[:MAX_SOURCE]
                queued = queue_samples(store, chosen, wanted, person.name, source)
        except M3AgiqaError as error:
            return messages.message(str(error))
        return queued_html(queued, wanted)

    def assess_scored(self, request: gr.Request) -> dict:
        """Have the served model assess what people have scored, in the background; how many there are."""
        try:
            self.studio.access.require(request, Role.ANNOTATOR)
            self.prefetch.catch_up()
            count = self.prefetch.behind()
        except M3AgiqaError as error:
            return gr.update(value=str(error), interactive=False)
        return gr.update(
            value=f"{count:,} images are being assessed; come back to this tab", interactive=False
        )

    def open_answers(self, request: gr.Request, is_open: Any) -> str:
        """An admin lets everybody read the answers to what they have not scored, or takes that back."""
        try:
            person = self.studio.access.require(request, Role.ADMIN)
            self.studio.store.database.transact(
                lambda session: open_answers(session, is_open is True, person.name)
            )
        except M3AgiqaError as error:
            return messages.message(str(error))
        return messages.message("")

    def views(self, request: gr.Request) -> str:
        """The saved views as HTML."""
        try:
            return self._views(self.studio.access.require_name(request))
        except M3AgiqaError as error:
            return messages.message(str(error))

    def save_view(self, request: gr.Request, name: Any, *values: Any) -> tuple[str, str]:
        """Keep what is shown under a name, for everybody: message, and the saved views."""
        try:
            person = self.studio.access.require(request, Role.ANNOTATOR)
            query = replace(_view(values), case="").query()
            self.studio.store.database.transact(
                lambda session: save_view(session, str(name or ""), query, person.name)
            )
            return messages.message(""), self._views(person)
        except M3AgiqaError as error:
            return messages.message(str(error)), gr.skip()

    def click_view(self, request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        """A saved view is opened or removed: the saved views, and what `arrange` returns."""
        try:
            person = self.studio.access.require_name(request)
            removed = getattr(event, "remove", None)
            with self.studio.store.database.reading() as session:
                view = find_view(session, removed or getattr(event, "open", None))
            if removed is None:
                wanted = View.from_query(dict(parse_qsl(view.query.removeprefix("?"))))
                return gr.skip(), *self._arrange(request, wanted, says_what_is_gone=True)
            if view.annotator.name != person.name:
                person = self.studio.access.require(request, Role.ADMIN)
            self.studio.store.database.transact(lambda session: remove_view(session, view, person.name))
            return self._views(person), *_unchanged(), *_as_it_was("")
        except M3AgiqaError as error:
            return gr.skip(), *_unchanged(), *_as_it_was(str(error))

    # --- what they share

    def _views(self, person: Person) -> str:
        with self.studio.store.database.reading() as session:
            return saved_views_html(saved_views(session), person)

    def _arrange(self, request: gr.Request, wanted: View, says_what_is_gone: bool = False) -> Arranged:
        """Updates of all controls, and what is shown then."""
        try:
            person = self.studio.access.require_name(request)
            view, choices = self.catalogue.settle(wanted, partial(self._visible, person))
            is_open, unassessed = self._is_open(), self.prefetch.behind()
        except M3AgiqaError as error:
            return *_unchanged(), *_empty(str(error))
        try:
            if not view.model:
                raise InputError(
                    NO_MODEL if any(data_set.versions for data_set in choices.data_sets) else NOTHING_YET
                )
            shown = self._show(request, self._resolve(request, view))
            current = replace(view, case=shown[-1])
            gone = [
                name for name in LINKED_NAMES if getattr(wanted, name) not in ("", getattr(current, name))
            ]
            if says_what_is_gone and gone:
                sentence = (
                    f"The link's {LINKED_NAMES[gone[0]]} is no longer there, so this is something else."
                )
                shown = messages.message(sentence), *shown[1:]
        except M3AgiqaError as error:
            shown = _empty(str(error))
        # Where nobody else can sign in, there is nobody to open the answers to.
        may_open = person.role.allows(Role.ADMIN) and self.studio.access.has_login
        return *_updates(view, choices, person, may_open, is_open, unassessed), *shown

    def _resolve(self, request: gr.Request, view: View) -> ResolvedView:
        """The cases of a view. Raises InputError for what is gone, Forbidden for whom may not look."""
        person = self.studio.access.require_name(request)
        data = _find(self.catalogue.data_sets(), view.data, "This data set")
        model = _find(data.versions, view.model, "This model version")
        other = None
        if view.other:
            other = _find(self.catalogue.comparable(data, model.key), view.other, "The second model version")
        table = self.catalogue.table(model.key, view.other)
        visible = self._visible(person, model.key, table)
        hidden = len(table) - len(visible)
        files, of_images = list(dict.fromkeys(table["image"])), is_image_group(view.slice)
        is_needed = of_images or view.plot is Plot.IMAGES
        images = self.maps.of(files) if is_needed else self.maps.known(files)
        ranks = None
        if of_images and isinstance(images, ImageMap):
            ranks = group_ranks(visible, images, view.slice)
        # All cases, as long as it is not known which ones are in the group.
        wanted = replace(view, slice="") if of_images else view
        selected = select(visible, wanted, ranks)
        return ResolvedView(view, data, model, other, visible, selected, person, hidden, images)

    def _is_open(self) -> bool:
        """Whether everybody may read the answers to what they have not scored themselves."""
        with self.studio.store.database.reading() as session:
            return not self.studio.settings.blind and answers_are_open(session)

    def _visible(self, person: Person, version: str, table: pd.DataFrame) -> pd.DataFrame:
        """The cases whose answers this person may read: of images in the database, what they have scored."""
        if person.role.allows(Role.ADMIN) or self._is_open():
            return table
        with self.studio.store.database.reading() as session:
            own = exposures.scored_by(session, person.name)
            may_read = [stored <= own for stored in self._stored(session, version, table)]
        return table.loc[may_read].reset_index(drop=True)

    def _stored(self, session: Session, version: str, rows: pd.DataFrame) -> list[set[ItemAspect]]:
        """What the database has of each case: itself, or of a training run what is about the same image."""
        aspects = map(Aspect, rows["aspect"])
        if isinstance(self.catalogue.source(version), Annotations):
            return [{(int(item), aspect)} for item, aspect in zip(rows["item"], aspects, strict=True)]
        files = map(Path, rows["image"])
        return exposures.of_images(session, zip(files, rows["prompt"], aspects, strict=True))

    def _note_shown(self, resolved: ResolvedView, rows: pd.DataFrame) -> None:
        """Whoever has these rows before them has read people's scores and the model's."""
        with self.studio.store.database.reading() as session:
            shown = set[ItemAspect]().union(*self._stored(session, resolved.data.key, rows))
        for answers_of in AnswersOf:
            exposures.note(self.studio.store.database, resolved.person.name, answers_of, shown)

    def _show(self, request: gr.Request, resolved: ResolvedView) -> Shown:
        """The page for a view; the first case is open unless another one is."""
        if resolved.table.empty:
            return _empty(HIDDEN_ANSWERS if resolved.hidden else NO_SCORES)
        selected, names = resolved.selected, resolved.names
        waiting = 0 if resolved.other else self.catalogue.waiting(resolved.model.key)
        key = Key.parse(resolved.view.case)
        if key is None or place(selected, key) is None:
            key = key_at(selected, 0) if len(selected) else None
        view = replace(resolved.view, case=str(key or ""))
        return (
            messages.message(""),
            chosen_group(view.slice)
            + agreement_table(selected, names, waiting, resolved.hidden)
            + self._slices(resolved),
            self._plot(resolved, key),
            self._list(resolved, key),
            self._detail(resolved, key) if key else "",
            _link(view),
            view.slice,
            view.case,
        )

    def _plot(self, resolved: ResolvedView, key: Key | None) -> str:
        selected, images = resolved.selected, resolved.images
        waiting = progress_html(images) if isinstance(images, MapProgress) else ""
        if resolved.view.plot is Plot.SCORES:
            return waiting + scatter_svg(selected, resolved.names.mos, key)
        return map_svg(selected, images, key) if isinstance(images, ImageMap) else waiting

    def _list(self, resolved: ResolvedView, key: Key | None) -> str:
        first = list_page(resolved.selected, key) * MAX_LISTED
        self._note_shown(resolved, resolved.selected.iloc[first : first + MAX_LISTED])
        listed = case_list(resolved.selected, key, bool(resolved.view.aspect))
        return chosen_group(resolved.view.slice) + listed

    def _slices(self, resolved: ResolvedView) -> str:
        """Of all cases of the chosen aspect, whatever else is filtered."""
        of_aspect = select(resolved.table, View(aspect=resolved.view.aspect))
        images = resolved.images if isinstance(resolved.images, ImageMap) else None
        return slices_table(error_slices(of_aspect), resolved.view.slice, images)

    def _detail(self, resolved: ResolvedView, key: Key) -> str:
        rows = resolved.table[resolved.table["item"] == key.item]
        self._note_shown(resolved, rows)
        return case_detail(
            key,
            place(resolved.selected, key),
            len(resolved.selected),
            rows,
            self.catalogue.source(resolved.data.key).opinions(key.item),
            resolved.names,
            resolved.person,
        )


# --- controls and views ------------------------------------------------------------------------

STATE_NAMES = ["slice", "case"]
"""Parts of a view that have no control, but are clicked."""
CONTROL_NAMES = [field.name for field in fields(View) if field.name not in STATE_NAMES]


def _view(values: Sequence[Any]) -> View:
    """From the controls' values. Raises InputError for limits that are none, and for what no page sends."""
    kinds: dict[str, Any] = {**CHOICES_OF_FIELDS, "least": float, "most": float}
    given = dict(zip([*CONTROL_NAMES, *STATE_NAMES], values, strict=True))
    try:
        chosen = {
            name: kinds.get(name, str)(value) for name, value in given.items() if value not in (None, "")
        }
    except (ValueError, TypeError) as error:
        raise InputError("This is not something to choose here; reload the page.") from error
    return View(**chosen)


def _ticked(selected: pd.DataFrame, ticked: Any) -> pd.DataFrame:
    """The selected cases that are ticked in the list, one key a line; all if none is.

    Raises InputError for ticks of which none is selected any more.
    """
    keys = set(str(ticked or "").splitlines())
    chosen = [
        str(Key(item, aspect)) in keys
        for item, aspect in zip(selected["item"], selected["aspect"], strict=True)
    ]
    if keys and not any(chosen):
        raise InputError("None of the ticked cases matches these filters any more; tick cases anew.")
    return selected[chosen] if keys else selected


def _updates(
    view: View, choices: Choices, person: Person, may_open: bool, is_open: bool, unassessed: int
) -> tuple[Any, ...]:
    """Of all controls but the open case, and of those that only annotators and admins have."""
    compared = bool(view.other)
    offered = {
        "data": [(data_set.title, data_set.key) for data_set in choices.data_sets],
        "model": [(version.title, version.key) for version in choices.models],
        "other": [("None", ""), *((version.title, version.key) for version in choices.others)],
        "generator": ALL_CHOICE + [(name, name) for name in choices.generators],
        "tag": ALL_CHOICE + [(tag, tag) for tag in choices.tags],
        "order": ORDER_CHOICES + COMPARED_ORDER_CHOICES * compared,
    }
    updates = []
    for name in CONTROL_NAMES:
        update = {"value": getattr(view, name)}
        if name in offered:
            update["choices"] = offered[name]
        if name == "nearer":
            update["visible"] = compared
        updates.append(gr.update(**update))
    return (
        *updates,
        gr.update(
            value=f"Assess the {unassessed:,} images that people have scored and the model has not seen",
            visible=unassessed > 0 and person.role.allows(Role.ANNOTATOR),
            interactive=True,
        ),
        gr.update(visible=person.role.allows(Role.ANNOTATOR)),
        gr.update(visible=may_open, value=is_open),
    )


def _unchanged() -> tuple[Any, ...]:
    return (gr.skip(),) * (len(CONTROL_NAMES) + 3)


def _empty(sentence: str) -> Shown:
    return messages.message(sentence), "", "", "", "", "", "", ""


def _as_it_was(sentence: str) -> Shown:
    return messages.message(sentence), *(gr.skip(),) * 7


LINKED_NAMES = {
    "data": "data set",
    "model": "model version",
    "other": "model to compare with",
    "generator": "generator",
    "tag": "tag",
    "slice": "group of cases",
    "case": "case",
}
"""What a link may name and nobody may find any more."""


def _find(known: Iterable[Titled], key: str, what: str) -> Titled:
    for candidate in known:
        if candidate.key == key:
            return candidate
    raise InputError(f"{what} is no longer there; choose another.")


def _link(view: View) -> str:
    href = escape(view.query())
    return (
        f'<p class="link" data-filters="{view.active_filters}"><a href="{href}">Link to this view</a>'
        '<button type="button">Copy link</button><span role="status"></span></p>'
    )


# --- the page ----------------------------------------------------------------------------------


def failures_tab(studio: Studio, tab: gr.Tab, demo: gr.Blocks, prefetch: Prefetch) -> FailuresHandlers:
    """Build the components within the current tab and wire them up."""
    handlers = FailuresHandlers(studio, prefetch)
    with gr.Row(elem_id="failures-models"):
        data = gr.Dropdown([], label="Data set", elem_id="failures-data")
        model = gr.Dropdown([], label="Model version", elem_id="failures-model")
        other = gr.Dropdown([("None", "")], value="", label="Compare with", elem_id="failures-other")
        nearer = gr.Dropdown(
            NEARER_CHOICES,
            value=Nearer.ANY,
            label="Nearer to people",
            visible=False,
            elem_id="failures-nearer",
        )
        order = gr.Dropdown(ORDER_CHOICES, value=Order.WORST, label="Sort by", elem_id="failures-order")
    theme.html(FILTERS_HTML, elem_id="failures-fold", script=FOLD_SCRIPT)
    with gr.Row(elem_id="failures-filters"):
        aspect = gr.Radio(ASPECT_CHOICES, value="", label="Aspect", elem_id="failures-aspect")
        side = gr.Radio(SIDE_CHOICES, value=Side.ANY, label="Estimated", elem_id="failures-side")
        least = gr.Number(label="Error from", step=0.1, min_width=90, elem_id="failures-least")
        most = gr.Number(label="Error to", step=0.1, min_width=90, elem_id="failures-most")
        words = gr.Dropdown(WORD_CHOICES, value=Words.ANY, label="Spoken word", elem_id="failures-words")
        generator = gr.Dropdown(ALL_CHOICE, value="", label="Generator", elem_id="failures-generator")
        tag = gr.Dropdown(ALL_CHOICE, value="", label="Tag of annotators", elem_id="failures-tag")
        text = gr.Textbox(label="Prompt has", placeholder="any text", elem_id="failures-text")
    message = theme.html(messages.message(""), elem_id="failures-message")
    unassessed = gr.Button(visible=False, size="md", elem_id="failures-unassessed")
    with gr.Row(elem_id="failures-all", equal_height=False):
        with gr.Column(elem_id="failures-overview", min_width=320):
            plot = gr.Radio(PLOT_CHOICES, value=Plot.SCORES, label="Map of", elem_id="failures-plot")
            points = theme.html("", elem_id="failures-scatter", script=CHOOSE_SCRIPT)
            agreement = theme.html("", elem_id="failures-agreement", script=SLICE_SCRIPT)
            with gr.Row(elem_id="failures-actions"):
                link = theme.html("", elem_id="failures-link", script=COPY_SCRIPT)
                export = gr.Button("Download as CSV", size="md", elem_id="failures-export", min_width=150)
            views = theme.html("", elem_id="failures-views", script=SLICE_SCRIPT)
            with gr.Row(elem_id="failures-save"):
                view_name = gr.Textbox(
                    label="Save this view as", max_length=MAX_VIEW_NAME, elem_id="failures-view-name"
                )
                save = gr.Button("Save view", size="md", elem_id="failures-save-view", min_width=120)
            with gr.Row(visible=False, elem_id="failures-queue") as queue_row:
                overlap = gr.Number(
                    studio.settings.overlap,
                    label="Annotators per image",
                    precision=0,
                    elem_id="failures-overlap",
                    min_width=130,
                )
                queue = gr.Button("Queue the matching images", size="md", elem_id="failures-enqueue")
            queued = theme.html("", elem_id="failures-queued")
            open_to_all = gr.Checkbox(
                label="Everybody may read the answers to images that they have not scored themselves",
                info="Their own scores of these no longer count as blind.",
                visible=False,
                elem_id="failures-open",
            )
        with gr.Column(min_width=320):
            listed = theme.html("", elem_id="failures-list", script=LIST_SCRIPT)
            detail = theme.html("", elem_id="failures-detail", script=CHOOSE_SCRIPT)
    file = gr.DownloadButton(visible="hidden", elem_id="failures-file")
    ticked = gr.Textbox(visible="hidden")
    opened, slice_name, case = gr.State(False), gr.State(""), gr.State("")

    controls = [
        data, model, other, aspect, side, least, most, generator, text, tag, words, nearer, order, plot,
    ]  # fmt: skip
    view = [*controls, slice_name, case]
    shown = [message, agreement, points, listed, detail, link, slice_name, case]
    arranged = [*controls, unassessed, queue_row, open_to_all, *shown]
    # Without `preprocess`: Gradio sends a choice twice, the second time when the choices may have changed
    # with it, and would refuse what is no longer among them.
    quiet = {"preprocess": False, **PARALLEL_EVENT}
    tab.select(handlers.open, inputs=[opened, *view], outputs=[opened, *arranged], **quiet)
    gr.on(
        [control.input for control in (data, model, other)],
        handlers.arrange,
        inputs=view,
        outputs=arranged,
        trigger_mode="always_last",
        **quiet,
    )
    # Not `input` of the text: Gradio leaves out what Backspace, Delete and pasting do to it.
    filters = [aspect, side, least, most, generator, tag, words, nearer, plot]
    # One after the other, so that the answer to the last change comes last.
    for events, handler in (
        ([*(control.input for control in filters), text.change], handlers.show),
        ([order.input], handlers.sort),
    ):
        gr.on(
            events,
            handler,
            inputs=view,
            outputs=shown,
            trigger_mode="always_last",
            **{**quiet, "concurrency_limit": 1, "concurrency_id": "arrange failure cases"},
        )
    gr.on(
        [agreement.click, points.select, listed.select, detail.select],
        handlers.choose_slice,
        inputs=view,
        outputs=shown,
        trigger_mode="multiple",
        **quiet,
    )
    points.tick(handlers.follow, inputs=view, outputs=shown, **quiet)
    gr.on(
        [points.click, listed.click, detail.click],
        handlers.choose,
        inputs=view,
        outputs=[message, listed, detail, link, case],
        # Not "always_last": Gradio 6.31 runs a click that had to wait with the data of the click before it.
        # One after the other, so that the answer to the last click comes last.
        trigger_mode="multiple",
        **{**quiet, "concurrency_limit": 1},
    )
    export.click(
        handlers.export, inputs=[ticked, *view], outputs=[message, file], js=TICKED_CASES, **quiet
    ).then(None, js=theme.press("failures-file"), api_visibility="private")
    queue.click(
        handlers.queue,
        inputs=[ticked, overlap, *view],
        outputs=queued,
        js=TICKED_CASES,
        concurrency_limit=1,
        preprocess=False,
        api_visibility="private",
    )
    tab.select(handlers.views, outputs=views, **quiet)
    save.click(handlers.save_view, inputs=[view_name, *view], outputs=[message, views], **quiet)
    views.click(handlers.click_view, outputs=[views, *arranged], **quiet)
    unassessed.click(handlers.assess_scored, outputs=unassessed, **quiet)
    open_to_all.input(
        handlers.open_answers, inputs=open_to_all, outputs=message, trigger_mode="always_last", **quiet
    )
    demo.load(js=theme.javascript("failures_link.js"))
    return handlers
