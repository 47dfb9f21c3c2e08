"""The Data tab: what people have said so far, how far they agree, and the way to get it out."""

from __future__ import annotations

import math
import threading
from html import escape
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.utils import get_upload_folder
from sqlalchemy import select

from annotation.exchange import exporting
from annotation.statistics.overview import Overview, overview, version
from annotation.store import exposures
from annotation.store.log import log_action
from annotation.store.models import AnswersOf, Generator, Item
from annotation.ui import messages, payloads, theme
from annotation.ui.access import Person, Role
from annotation.ui.context import Studio
from annotation.ui.data import figures
from annotation.ui.data.export_versions import ExportVersions
from annotation.ui.data.images import images_section
from annotation.ui.data.token_form import token_form
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.tables import csv_text

PARTS_HTML = (
    '<nav aria-label="Parts of this tab"><a href="#data-agreement">Agreement</a> '
    '<a href="#data-means">Scores</a> <a href="#data-annotators">Annotators</a> '
    '<a href="#data-all-images">Images</a> <a href="#data-export">Export</a></nav>'
)
AGGREGATES_ONLY = (
    '<section class="figures"><h3>Annotators</h3><p>Who may annotate sees their own figures here, admins '
    "those of everybody.</p></section>"
)

# What `show` returns: message, summary, agreement, mean opinions, annotators, for admins the least certain
# images, for annotators the visibility of all images; then for admins the file of all mean opinions, the
# form's visibility, its generators and sources, versions, the download's visibility; at last the distribution
# of each aspect's MOS.
Shown = tuple[Any, ...]


class DataHandlers:
    """What happens on the tab; every method is an event's function and can be called without a browser."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.versions = ExportVersions(studio.settings.data / "exports")
        self._lock = threading.Lock()
        self._known: tuple[tuple[int, ...], Overview] | None = None

    def show(self, request: gr.Request) -> Shown:
        """The database as it is now, as far as this person may see it."""
        try:
            person = self.studio.access.require(request, Role.VIEWER)
            current = self._overview()
            admin = person.role.allows(Role.ADMIN)
            uncertain = figures.least_certain(current) if admin else []
            contradictions = figures.contradictions(current.doubts) if admin else []
            read = {(mean.item, aspect) for aspect, mean in uncertain}
            self._note_read(person, read | {about for about, _ in contradictions})
            return (
                messages.message(""),
                figures.summary_html(current) + (self._backup_note() if admin else ""),
                figures.agreement_html(current) + figures.picks_html(current.picks),
                figures.mean_opinions_html(current),
                _annotators(current, person),
                figures.least_certain_html(uncertain, current),
                gr.update(visible=person.role.allows(Role.ANNOTATOR) and current.items > 0),
                *(self._form(current) if admin else _no_form()),
                *(figures.distribution(aspect, current) for aspect in Aspect),
            )
        except M3AgiqaError as error:
            no_charts = [gr.update(value=None, visible=False)] * len(Aspect)
            figures_gone = [""] * 5
            return (
                messages.message(str(error)),
                *figures_gone,
                gr.update(visible=False),
                *_no_form(),
                *no_charts,
            )

    def export(
        self,
        request: gr.Request,
        name: Any,
        aspects: Any,
        min_raters: Any,
        generators: Any,
        sources: Any,
        method: Any,
        gold: Any,
        all_texts: Any,
    ) -> tuple[str, dict, dict]:
        """Make a new version: message, the versions with the new one chosen, the download's visibility."""
        try:
            person = self.studio.access.require(request, Role.ADMIN)
            report = self.versions.make(
                self.studio.store,
                name=str(name or "").strip(),
                aspects=_aspects(aspects),
                min_raters=payloads.annotators_per_image(min_raters),
                generators=_names(generators),
                sources=_names(sources),
                method=str(method),
                gold=bool(gold),
                all_texts=bool(all_texts),
            )
            self.studio.store.database.transact(
                lambda session: log_action(session, person.name, "export", version=report.version)
            )
            listed = [(each.title, each.name) for each in self.versions.all()]
            chosen = gr.update(choices=listed, value=report.version, visible=True)
            done = f'<p class="done" role="status">{escape(_report(report.version, report.counts))}</p>'
            return done, chosen, gr.update(visible=True)
        except M3AgiqaError as error:
            return messages.message(str(error)), gr.skip(), gr.skip()

    def download(self, request: gr.Request, name: Any) -> tuple[str, str | None]:
        """Message, and a version as a file for the browser to save."""
        try:
            self.take_answers(request)
            path = self.versions.find(name).file
        except M3AgiqaError as error:
            return messages.message(str(error)), None
        # Gradio serves copies of its own, under names that cannot be guessed: the data folder itself is
        # closed, because whoever may look may not have everybody's names.
        return messages.message(""), processing_utils.save_file_to_cache(path, get_upload_folder())

    def push(self, request: gr.Request, name: Any, repository: Any, with_images: Any) -> str:
        """Make a version the newest one of a data set on the Hub; a message."""
        try:
            person = self.studio.access.require(request, Role.ADMIN)
            target = payloads.text(repository or "", "The data set").strip()
            with self.versions.unpacked(name) as folder:
                address = exporting.push(folder, target, bool(with_images))
            self.studio.store.database.transact(
                lambda session: log_action(session, person.name, "push", version=name, repository=target)
            )
        except M3AgiqaError as error:
            return messages.message(str(error))
        return f'<p class="done" role="status">Pushed {escape(str(name))} to {escape(address)}</p>'

    def take_answers(self, request: gr.Request) -> None:
        """Whoever takes a file with all answers along has read them. Raises Forbidden for all but admins."""
        person = self.studio.access.require(request, Role.ADMIN)
        with self.studio.store.database.reading() as session:
            scored = exposures.all_scored(session)
        self._note_read(person, scored)

    # --- what they share

    def _backup_note(self) -> str:
        backup = self.studio.backup
        return f'<p class="note">{escape(backup.status())}</p>' if backup else ""

    def _note_read(self, person: Person, shown: set[exposures.ItemAspect]) -> None:
        exposures.note(self.studio.store.database, person.name, AnswersOf.PEOPLE, shown)

    def _overview(self) -> Overview:
        """Computed anew only if something has changed; others who ask meanwhile wait for it."""
        with self._lock, self.studio.store.database.reading() as session:
            now = version(session)
            if self._known is None or self._known[0] != now:
                self._known = now, overview(session)
            return self._known[1]

    def _form(self, current: Overview) -> tuple[Any, ...]:
        with self.studio.store.database.reading() as session:
            generators = session.scalars(select(Generator.name).order_by(Generator.name)).all()
            sources = session.scalars(select(Item.source).distinct().order_by(Item.source)).all()
        versions = self.versions.all()
        newest = versions[0].name if versions else None
        return (
            self._means(current) if current.corrections else gr.update(value=None, visible=False),
            gr.update(visible=bool(current.corrections or current.picks.picks)),
            gr.update(choices=list(generators), visible=bool(generators)),
            gr.update(choices=list(sources)),
            gr.update(
                choices=[(each.title, each.name) for each in versions], value=newest, visible=bool(versions)
            ),
            gr.update(visible=bool(versions)),
        )

    def _means(self, current: Overview) -> dict:
        """All mean opinions as a CSV to download."""
        text = means_csv(current).encode("utf-8-sig")
        path = processing_utils.save_bytes_to_cache(text, "mean-opinions.csv", get_upload_folder())
        return gr.update(value=path, visible=True)


def _annotators(current: Overview, person: Person) -> str:
    """Everybody's figures for admins, their own for annotators, none for viewers."""
    if person.role.allows(Role.ADMIN):
        return figures.annotators(current.annotators, "Annotators") + figures.doubts_html(current.doubts)
    if person.role.allows(Role.ANNOTATOR):
        own = [each for each in current.annotators if each.name == person.name]
        shown = figures.annotators(own, "Your own figures", "Only you and the admins see them.")
        return shown + figures.doubts_html(current.doubts, person.name)
    return AGGREGATES_ONLY


def _no_form() -> tuple[Any, ...]:
    hidden, nothing = gr.update(visible=False), gr.update(value=None, visible=False)
    return nothing, hidden, gr.skip(), gr.skip(), nothing, hidden


def _aspects(given: Any) -> list[Aspect]:
    chosen = _names(given)
    if chosen is None:
        raise InputError("No aspect was chosen; choose one at least.")
    unknown = [name for name in chosen if name not in list(Aspect)]
    if unknown:
        raise InputError(f"There is no aspect {unknown[0]!r}; reload the page.")
    return [Aspect(name) for name in chosen]


def _names(given: Any) -> list[str] | None:
    """What is chosen; None for nothing."""
    return [str(one) for one in given] if isinstance(given, list) and given else None


def _report(name: str, counts: dict[str, Any]) -> str:
    picks = f" Picks of the best image: {counts['picks']:,}." if counts["picks"] else ""
    return (
        f"Exported {name}: {counts['samples']:,} images ({counts['train']:,} for training, "
        f"{counts['test']:,} held out) with {counts['opinions']:,} corrections of "
        f"{counts['annotators']:,} annotators.{picks}"
    )


def means_csv(current: Overview) -> str:
    """Every mean opinion with its 95 % interval and raw mean, on the scale from 1 to 5."""
    columns = ("item", "image_sha256", "original_file", "aspect", "mos", "low", "high", "raters", "raw_mean")
    files = current.of_items[["image_sha256", "original_file"]].T.to_dict("list")

    def number(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.4f}"  # NaN: no interval is known

    rows = (
        (
            *(mean.item, *files[mean.item], aspect, *map(number, (mean.mos, mean.low, mean.high))),
            *(mean.raters, number(mean.raw_mean)),
        )
        for aspect, of_aspect in current.aspects.items()
        for mean in of_aspect.scaling.opinions.values()
    )
    return csv_text(columns, rows)


def data_tab(studio: Studio, tab: gr.Tab) -> DataHandlers:
    """Build the components within the tab and wire them up; it is brought up to date when entered."""
    handlers = DataHandlers(studio)
    with gr.Row(elem_id="data-head"):
        theme.html(PARTS_HTML)
        refresh = gr.Button("Refresh", elem_id="data-refresh", size="sm", scale=0, min_width=110)
    message = theme.html(messages.message(""), elem_id="data-message")
    summary = theme.html("", elem_id="data-summary")
    agreement = theme.html("", elem_id="data-agreement")
    means = theme.html("", elem_id="data-means")
    with gr.Row(elem_id="data-charts"):
        charts = [
            gr.BarPlot(
                x="MOS",
                y="Images",
                x_bin=figures.BIN_WIDTH,
                x_lim=[COMMON_SCALE.low, COMMON_SCALE.high],
                title=aspect.capitalize(),
                height=260,
                min_width=220,
                visible=False,
            )
            for aspect in Aspect
        ]
    people = theme.html("", elem_id="data-annotators")
    uncertain = theme.html("", elem_id="data-uncertain")
    csv_file = gr.DownloadButton(
        "All MOS with their intervals (CSV)", visible=False, elem_id="data-csv", size="sm"
    )
    images = images_section(studio, [tab.select, refresh.click])
    with gr.Column(visible=False, elem_id="data-export") as form:
        theme.html(
            '<section class="figures"><h3>Export</h3><p>Images, their MOS and the best human description per '
            "aspect, ready for training: samples as JSON Lines, conversations, and every correction as CSV."
            "</p></section>"
        )
        with gr.Row():
            name = gr.Textbox("annotations", label="Name", elem_id="export-name", max_length=60)
            min_raters = gr.Number(
                1, label="Annotators per image, at least", precision=0, minimum=1, elem_id="export-raters"
            )
            method = gr.Radio(
                [("P.910", "p910"), ("Raw mean", "mean")],
                value="p910",
                label="MOS",
                info="P.910 takes annotators’ biases off; consistent ones count for more.",
                elem_id="export-method",
            )
        with gr.Row():
            aspects = gr.CheckboxGroup(
                [(aspect.capitalize(), str(aspect)) for aspect in Aspect],
                value=[str(aspect) for aspect in Aspect],
                label="Aspects",
                min_width=220,
                elem_id="export-aspects",
            )
            generators = gr.Dropdown(
                [], multiselect=True, label="Generators", info="None chosen: all", elem_id="export-generators"
            )
            sources = gr.Dropdown(
                [], multiselect=True, label="Sources", info="None chosen: all", elem_id="export-sources"
            )
            gold = gr.Checkbox(False, label="With calibration images", elem_id="export-gold")
            all_texts = gr.Checkbox(
                False, label="With one-word, repeated and non-English texts", elem_id="export-all-texts"
            )
        start = gr.Button("Export", variant="primary", elem_id="export-start")
        result = theme.html(messages.message(""), elem_id="export-message")
        with gr.Row():
            versions = gr.Dropdown([], label="Versions", visible=False, elem_id="export-versions", scale=3)
            download = gr.Button("Download ZIP", visible=False, elem_id="export-file", min_width=160)
        with gr.Row(elem_id="export-hub"):
            repository = gr.Textbox(
                label="Data set on the Hugging Face Hub",
                placeholder="organisation/name",
                info="The chosen version becomes its newest one. A new data set is private.",
                elem_id="export-repository",
                scale=3,
            )
            with_images = gr.Checkbox(True, label="With images", min_width=160)
            push = gr.Button("Push to the Hub", elem_id="export-push", min_width=160)
    file = gr.DownloadButton(visible="hidden", elem_id="data-file")
    token_form(studio, tab)

    shown = [message, summary, agreement, means, people, uncertain, images]
    gr.on(
        [tab.select, refresh.click],
        handlers.show,
        outputs=[*shown, csv_file, form, generators, sources, versions, download, *charts],
        show_progress="minimal",
        show_progress_on=summary,
        concurrency_limit=None,
        api_visibility="private",
    )
    # `preprocess=False`: the handler checks what comes, and says in words what is wrong with it.
    start.click(
        handlers.export,
        inputs=[name, aspects, min_raters, generators, sources, method, gold, all_texts],
        outputs=[result, versions, download],
        preprocess=False,
        show_progress_on=result,
        concurrency_limit=1,
        api_visibility="private",
    )
    push.click(
        handlers.push,
        inputs=[versions, repository, with_images],
        outputs=result,
        preprocess=False,
        show_progress_on=result,
        concurrency_limit=1,
        api_visibility="private",
    )
    csv_file.click(handlers.take_answers, show_progress="hidden", api_visibility="private")
    download.click(
        handlers.download,
        inputs=versions,
        outputs=[result, file],
        preprocess=False,
        show_progress_on=result,
        api_visibility="private",
    ).then(None, js=theme.press("data-file"), api_visibility="private")
    return handlers
