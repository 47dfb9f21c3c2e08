"""The Models tab: which model judges, which others could, and how these compare on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Collection
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy import select

from annotation.retraining import Material, Retraining
from annotation.settings import Settings
from annotation.statistics.overview import version
from annotation.store import Store, exposures
from annotation.store.log import ever_promoted, log_action, promoted
from annotation.store.models import AnswersOf, Image, Item
from annotation.ui import messages, payloads, theme
from annotation.ui.access import Person, Role
from annotation.ui.context import Studio
from annotation.ui.model_service import (
    ModelLoader,
    ServableModel,
    Unconfirmed,
    banner_html,
    discard_model,
    display_name,
    promote_model,
    servable,
    servable_models,
)
from annotation.ui.models.retraining_panel import changes_html, idle_html, running_html
from m3agiqa.checkpoint.card import shipped
from m3agiqa.checkpoint.comparison import METRIC_NAMES, Compared, Comparison
from m3agiqa.checkpoint.registry import find, push_model
from m3agiqa.errors import InputError, M3AgiqaError

NO_CANDIDATE = (
    "No model has been trained from corrections yet. An admin retrains here or with "
    "<code>python -m annotation retrain</code>; the new model then appears here."
)
KEPT = (
    "It was in service, so it cannot be discarded: every model that ever was stays, so that one can go back "
    "to it."
)
FOLLOW_INTERVAL = 2.0  # seconds between two questions of a page how far a retraining is

# What `show` returns: message, list of models. `serve` and `discard` add the model banner.
Shown = tuple[str, str]


class ModelsHandlers:
    """What happens on the tab; every method is an event's function and can be called without a browser."""

    def __init__(self, studio: Studio, on_promoted: Callable[[], None] = lambda: None) -> None:
        """`on_promoted` is called once another model is in service."""
        self.studio = studio
        self._on_promoted = on_promoted
        self.retraining = Retraining(studio.settings)
        self._known: tuple[Any, Material] | None = None

    def show(self, request: gr.Request, asked: str = "", repository: str = "") -> Shown:
        """The tab is entered; `asked`: what waits for a confirmation, or is opened, e.g. "promote NAME".

        `repository` is what stands in the field of "push NAME".
        """
        try:
            return messages.message(""), self._list(request, asked, repository)
        except M3AgiqaError as error:
            return messages.message(str(error)), ""

    def click(self, request: gr.Request, event: gr.EventData) -> tuple[str, str, str]:
        """What a model's buttons do; a failure leaves everything as it is, and says so."""
        name, confirmed = str(getattr(event, "model", "")), getattr(event, "confirmed", False) is True
        match getattr(event, "action", None):
            case "promote":
                return self.serve(request, name, confirmed)
            case "discard":
                return self.discard(request, name, confirmed)
            case "push":
                return *self.show(request, f"push {name}"), banner_html(self.studio.loader.state)
            case _:
                return *self.show(request, f"changes {name}"), banner_html(self.studio.loader.state)

    def submit(self, request: gr.Request, event: gr.EventData) -> Shown:
        """Push a model to where the field says; of all buttons that of a push alone takes minutes."""
        return self.push(request, str(getattr(event, "model", "")), getattr(event, "repository", ""))

    def serve(self, request: gr.Request, name: str, confirmed: bool = False) -> tuple[str, str, str]:
        """Put a model into service by its name; `confirmed`: also if it is not known to be better."""
        stays = f" {display_name(self.studio.loader.name)} stays in service."
        return self._decide(request, "promote", promote_model, name, confirmed, stays)

    def discard(self, request: gr.Request, name: str, confirmed: bool = False) -> tuple[str, str, str]:
        """Delete a model that was never in service."""
        return self._decide(request, "discard", discard_model, name, confirmed)

    def push(self, request: gr.Request, name: str, repository: Any) -> Shown:
        """Make a model the newest version of a repository on the Hugging Face Hub."""
        studio, asked, target = self.studio, "", ""
        try:
            person = studio.access.require(request, Role.ADMIN)
            target = payloads.text(repository or "", "The repository").strip()
            model = servable(studio.settings, studio.loader, name)
            settings = studio.settings
            folder = find(model.name, settings.models, settings.revision_of(model.name))
            address = push_model(folder, target)
            studio.store.database.transact(
                lambda session: log_action(session, person.name, "push", model=name, repository=target)
            )
            said = f'<p class="done" role="status">Pushed {escape(model.title)} to {escape(address)}</p>'
        except M3AgiqaError as error:
            said, asked = messages.message(str(error)), f"push {name}"
        return said, self.show(request, asked, target)[1]

    def _decide(
        self,
        request: gr.Request,
        action: str,
        decide: Callable[[ModelLoader, Store, Settings, str, str, bool], None],
        name: str,
        confirmed: bool,
        otherwise: str = "",
    ) -> tuple[str, str, str]:
        studio, asked = self.studio, ""
        try:
            person = studio.access.require(request, Role.ADMIN)
            decide(studio.loader, studio.store, studio.settings, name, person.name, confirmed)
            problem = ""
            if action == "promote":
                self._on_promoted()
        except Unconfirmed as error:
            problem, asked = str(error), f"{action} {name}"
        except M3AgiqaError as error:
            problem = f"{error}{otherwise}"
        message, listed = self.show(request, asked)
        return messages.message(problem) if problem else message, listed, banner_html(studio.loader.state)

    def _list(self, request: gr.Request, asked: str, repository: str) -> str:
        studio = self.studio
        person = studio.access.person(request)
        is_admin = person.role.allows(Role.ADMIN)
        with studio.store.database.reading() as session:
            wanted, kept = promoted(session), ever_promoted(session)
        models = servable_models(studio.settings, studio.loader)
        opened = next((each for each in models if f"changes {display_name(each.name)}" == asked), None)
        changes = ""
        if is_admin and opened is not None and opened.comparison is not None:
            changes = self._changes(person, opened.comparison)
        return models_list(models, studio.loader.name, wanted, is_admin, asked, kept, changes, repository)

    def _changes(self, person: Person, comparison: Comparison) -> str:
        """The images that changed most; whoever sees them has read the models' and people's scores."""
        by_model, by_people, files = set(), set(), {}
        images = {Path(changed.image).stem: changed for changed in comparison.changed}
        with self.studio.store.database.reading() as session:
            known = select(Item, Image.file).join(Item.image).where(Item.image_sha256.in_(images))
            for item, file in session.execute(known).tuples():
                scores = images[item.image_sha256].scores
                by_model |= {(item.id, score.aspect) for score in scores}
                by_people |= {(item.id, score.aspect) for score in scores if score.mos is not None}
                files[images[item.image_sha256].image] = self.studio.store.images.path(file)
        for answers_of, shown in ((AnswersOf.MODEL, by_model), (AnswersOf.PEOPLE, by_people)):
            exposures.note(self.studio.store.database, person.name, answers_of, shown)
        return changes_html(comparison, files)

    # --- retraining

    def follow(self, request: gr.Request) -> tuple[str, gr.Timer]:
        """What could be learned from, or how far it is; pages ask again while a retraining runs."""
        try:
            if not self.studio.access.person(request).role.allows(Role.ADMIN):
                return "", gr.Timer(active=False)
            running = self.retraining.is_running()
            return self._panel(running), gr.Timer(active=running)
        except M3AgiqaError as error:
            return messages.message(str(error)), gr.Timer(active=False)

    def tick(self, request: gr.Request) -> tuple[str, gr.Timer, Any]:
        """As `follow`; once it has ended, the models too, with the new one."""
        panel, again = self.follow(request)
        return panel, again, gr.skip() if self.retraining.is_running() else self.show(request)[1]

    def retrain(self, request: gr.Request, event: gr.EventData) -> tuple[str, str, gr.Timer]:
        """Start a retraining, or cancel the one that runs."""
        return self.start_or_cancel(request, str(getattr(event, "action", "")))

    def start_or_cancel(self, request: gr.Request, action: str) -> tuple[str, str, gr.Timer]:
        """The same, by what is to be done: retrain or cancel."""
        problem = ""
        try:
            person = self.studio.access.require(request, Role.ADMIN)
            if action == "cancel":
                self.retraining.cancel()
            else:
                self.retraining.start(person.name)
            self.studio.store.database.transact(lambda session: log_action(session, person.name, action))
        except M3AgiqaError as error:
            problem = str(error)
        return messages.message(problem), *self.follow(request)

    def _panel(self, running: bool) -> str:
        state = self.retraining.state()
        if running:
            return running_html(state, self.retraining.progress(), self.retraining.log_tail())
        try:
            material, problem = self._material(), ""
        except InputError as error:
            material, problem = None, str(error)
        until_due = self.retraining.corrections_until_due(self.studio.store)
        return idle_html(material, problem, state, self.retraining.log_tail(), until_due)

    def _material(self) -> Material:
        """Computed anew only if something has changed."""
        with self.studio.store.database.reading() as session:
            now = version(session), self.retraining.state(), promoted(session)
        if self._known is None or self._known[0] != now:
            self._known = now, self.retraining.material(self.studio.store)
        return self._known[1]


def models_list(
    models: list[ServableModel],
    served: str,
    wanted: str | None,
    is_admin: bool,
    asked: str = "",
    kept: Collection[str] = (),
    changes: str = "",
    repository: str = "",
) -> str:
    """All models as HTML; `served` judges now, `wanted` is the one that was promoted last.

    `asked` is what waits for a confirmation or is opened, e.g. "discard NAME"; `kept` are models that were
    ever in service; `changes` is what is opened of a model with "changes NAME", `repository` stands in
    the field of "push NAME".
    """
    lines = []
    stands_in = wanted is not None and wanted != served
    if wanted is not None and stands_in:
        lost, instead = escape(display_name(wanted)), escape(display_name(served))
        lines.append(
            f'<p role="status"><b>{lost}</b> was promoted, but could not be '
            f"served when this server started; <b>{instead}</b> judges instead.</p>"
        )
    if not any(model.registered_at for model in models):
        lines.append(f"<p>{NO_CANDIDATE}</p>")
    cards = "".join(
        _card(
            model, model.name == served, stands_in, is_admin, asked, model.name in kept, changes, repository
        )
        for model in models
    )
    return f'{"".join(lines)}<div class="models">{cards}</div>'


def _card(
    model: ServableModel,
    is_served: bool,
    stands_in: bool,
    is_admin: bool,
    asked: str,
    is_kept: bool,
    changes: str,
    repository: str,
) -> str:
    name, title = escape(display_name(model.name), quote=True), escape(model.title)
    action, _, about = asked.partition(" ")
    pill = '<span class="in-service pill">In service</span>' if is_served else ""
    asked_here = action if about == display_name(model.name) else ""
    learned_from = f"<p>Learned from {escape(model.card.learned_from)}.</p>" if model.card else ""
    verdict = f'<p class="doubt"><b>Not better</b>: {escape(model.doubt)}.</p>' if model.doubt else ""
    if model.comparison and not model.doubt:
        verdict = f"<p>{escape(model.comparison.sentence)}</p>"
    if is_served and not stands_in:
        buttons = pill
    elif is_admin:
        confirms, wish = (' data-confirmed="true"', " all the same") if asked_here == "promote" else ("", "")
        buttons = (
            f'{pill}<button class="promote" type="button" data-model="{name}"{confirms}'
            f' aria-label="Put {title} into service{wish}">Put into service{wish}</button>'
        )
        if model.registered_at and not is_kept:
            confirms, wish = (' data-confirmed="true"', " for good") if asked_here == "discard" else ("", "")
            buttons = (
                f'<button class="discard" type="button" data-model="{name}"{confirms}'
                f' aria-label="Discard {title}{wish}">Discard{wish}</button>{buttons}'
            )
    else:
        buttons = pill
    push = _push(name, title, asked_here == "push", repository) if is_admin and model.card else ""
    if model.registered_at:
        origin = f"Registered {model.registered_at:%Y-%m-%d %H:%M} UTC as {name}"
        if is_admin and is_kept and not is_served:
            origin += f". {KEPT}"
    else:
        origin = "Shipped" if model.name in shipped() else f"Set by M3AGIQA_MODEL: {name}"
    opened = ""
    if asked_here == "changes":
        opened = changes
    elif is_admin and model.comparison and model.comparison.changed:
        opened = (
            f'<button class="changes" type="button" data-model="{name}">Images that changed most</button>'
        )
    return (
        f'<article class="panel{" served" if is_served else ""}" data-model="{name}">'
        f'<header><h3>{title}</h3><span class="buttons">{buttons}</span></header>'
        f"{learned_from}{verdict}"
        f'<p class="note">{origin}</p>'
        f"{comparison_table(model.comparison) if model.comparison else ''}{_words(model.comparison)}"
        f"{opened}{push}"
        f"</article>"
    )


def _push(name: str, title: str, is_open: bool, repository: str) -> str:
    """A button that asks where to, then the field for it; both are read by static/models.js."""
    if not is_open:
        return (
            f'<button class="push" type="button" data-model="{name}" aria-label="Push {title} to the Hub">'
            "Push to the Hub</button>"
        )
    return (
        '<p class="push-to"><label>Repository on the Hugging Face Hub; a new one is private'
        f'<input name="repository" placeholder="organisation/name" value="{escape(repository)}"></label>'
        f'<button class="push" type="button" data-model="{name}" data-confirmed="true">Push</button></p>'
    )


def _words(comparison: Comparison | None) -> str:
    words = comparison and comparison.words
    return f"<p>{escape(words.sentence)}</p>" if words else ""


def comparison_table(comparison: Comparison) -> str:
    """Before and after on the same held-out images; "" where picks alone compare the two."""
    if not comparison.rows:
        return ""
    heads = "".join(f'<th scope="col">{label}</th>' for label in METRIC_NAMES.values())
    body = "".join(_row(row) for row in comparison.rows)
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Before and after"><table>'
        f"<caption>Before: {escape(comparison.before)}. After: this one.</caption>"
        f'<thead><tr><th scope="col">Held-out images</th><th scope="col">n</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Compared) -> str:
    cells = "".join(_cell(*change) for change in row.changes())
    return f'<tr><th scope="row">{escape(row.name.capitalize())}</th><td>{row.n:,}</td>{cells}</tr>'


def _cell(before: str, after: str, verdict: str) -> str:
    for_screen_readers = f' <span class="visually-hidden">{verdict}</span>' if verdict else ""
    return f'<td class="{verdict}">{before} → <b>{after}</b>{for_screen_readers}</td>'


def models_tab(
    studio: Studio, banner: gr.HTML, tab: gr.Tab, on_promoted: Callable[[], None]
) -> ModelsHandlers:
    """Build the components within the tab and wire them up."""
    handlers = ModelsHandlers(studio, on_promoted)
    message = theme.html(messages.message(""), elem_id="models-message")
    retraining = theme.html("", elem_id="retraining", script=theme.javascript("models.js"))
    models = theme.html("", elem_id="models", script=theme.javascript("models.js"))
    again = gr.Timer(FOLLOW_INTERVAL, active=False)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.select(handlers.show, outputs=[message, models], concurrency_limit=None, **quiet)
    tab.select(handlers.follow, outputs=[retraining, again], concurrency_limit=None, **quiet)
    again.tick(handlers.tick, outputs=[retraining, again, models], queue=False, **quiet)
    retraining.click(handlers.retrain, outputs=[message, retraining, again], **quiet)
    models.click(handlers.click, outputs=[message, models, banner], **quiet)
    # An event of its own, any number at once: uploads must not hold up the other buttons.
    models.submit(
        handlers.submit, outputs=[message, models], trigger_mode="multiple", concurrency_limit=None, **quiet
    )
    return handlers
