"""The Models tab: which model judges, which others could, and how these compare on held-out images."""

from __future__ import annotations

from html import escape

import gradio as gr

from annotation.store.log import promoted
from annotation.ui import messages, theme
from annotation.ui.access import Role
from annotation.ui.context import Studio
from annotation.ui.model_service import (
    ServableModel,
    Unconfirmed,
    banner_html,
    display_name,
    promote_model,
    servable_models,
)
from m3agiqa.checkpoint.card import shipped
from m3agiqa.checkpoint.comparison import METRIC_NAMES, Compared, Comparison
from m3agiqa.errors import M3AgiqaError

NO_CANDIDATE = (
    "No model has been trained from corrections yet: run <code>python -m annotation retrain</code>; the "
    "new model appears here."
)
TRAINING_NOTE = (
    "Of what people correct, a retrained model learns the scores only: corrected descriptions reach no "
    "checkpoint yet."
)

# What `show` returns: message, list of models. `promote` adds the model banner.
Shown = tuple[str, str]


class ModelsHandlers:
    """What happens on the tab; every method is an event's function and can be called without a browser."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def show(self, request: gr.Request, asked: str = "") -> Shown:
        """The tab is entered; the model that is `asked` about waits for a confirmation."""
        try:
            return messages.message(""), self._list(request, asked)
        except M3AgiqaError as error:
            return messages.message(str(error)), ""

    def promote(self, request: gr.Request, event: gr.EventData) -> tuple[str, str, str]:
        """Put a model into service; a failure leaves the one that is there, and says so."""
        confirmed = getattr(event, "confirmed", False) is True
        return self.serve(request, str(getattr(event, "model", "")), confirmed)

    def serve(self, request: gr.Request, name: str, confirmed: bool = False) -> tuple[str, str, str]:
        """The same, by the model's name; `confirmed`: also if it is not known to be better."""
        loader, asked = self.studio.loader, ""
        try:
            person = self.studio.access.require(request, Role.ADMIN)
            promote_model(loader, self.studio.store, self.studio.settings, name, person.name, confirmed)
            problem = ""
        except Unconfirmed as error:
            problem, asked = str(error), name
        except M3AgiqaError as error:
            problem = f"{error} {display_name(loader.name)} stays in service."
        message, listed = self.show(request, asked)
        return messages.message(problem) if problem else message, listed, banner_html(loader.state)

    def _list(self, request: gr.Request, asked: str) -> str:
        studio = self.studio
        may_promote = studio.access.person(request).role.allows(Role.ADMIN)
        with studio.store.database.reading() as session:
            wanted = promoted(session)
        models = servable_models(studio.settings, studio.loader)
        return models_list(models, studio.loader.name, wanted, may_promote, asked)


def models_list(
    models: list[ServableModel], served: str, wanted: str | None, may_promote: bool, asked: str = ""
) -> str:
    """All models as HTML; `served` judges now, `wanted` is the one that was promoted last.

    `asked`: the display name of one whose promotion has to be confirmed.
    """
    lines = [f"<p>{TRAINING_NOTE}</p>"]
    if wanted is not None and wanted != served:
        lost, instead = escape(display_name(wanted)), escape(display_name(served))
        lines.append(
            f'<p role="status"><b>{lost}</b> was promoted, but could not be '
            f"served when this server started; <b>{instead}</b> judges instead.</p>"
        )
    if not any(model.registered_at for model in models):
        lines.append(f"<p>{NO_CANDIDATE}</p>")
    cards = "".join(
        _card(model, model.name == served, may_promote, display_name(model.name) == asked) for model in models
    )
    return f'{"".join(lines)}<div class="models">{cards}</div>'


def _card(model: ServableModel, is_served: bool, may_promote: bool, is_asked: bool) -> str:
    name, title = escape(display_name(model.name), quote=True), escape(model.title)
    learned_from = f"<p>Learned from {escape(model.card.learned_from)}.</p>" if model.card else ""
    doubt = f'<p class="doubt"><b>Not better</b>: {escape(model.doubt)}.</p>' if model.doubt else ""
    if is_served:
        action = '<span class="in-service pill">In service</span>'
    elif may_promote:
        confirms, wish = (' data-confirmed="true"', " all the same") if is_asked else ("", "")
        action = (
            f'<button class="promote" type="button" data-model="{name}"{confirms}'
            f' aria-label="Put {title} into service{wish}">Put into service{wish}</button>'
        )
    else:
        action = ""
    if model.registered_at:
        origin = f"Registered {model.registered_at:%Y-%m-%d %H:%M} UTC as {name}"
    else:
        origin = "Shipped" if model.name in shipped() else f"Set by M3AGIQA_MODEL: {name}"
    return (
        f'<article class="panel{" served" if is_served else ""}" data-model="{name}">'
        f"<header><h3>{title}</h3>{action}</header>"
        f"{learned_from}{doubt}"
        f'<p class="note">{origin}</p>'
        f"{comparison_table(model.comparison) if model.comparison else ''}"
        f"</article>"
    )


def comparison_table(comparison: Comparison) -> str:
    """Before and after on the same held-out images."""
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


def models_tab(studio: Studio, banner: gr.HTML, tab: gr.Tab) -> ModelsHandlers:
    """Build the components within the tab and wire them up."""
    handlers = ModelsHandlers(studio)
    message = theme.html(messages.message(""), elem_id="models-message")
    models = theme.html("", elem_id="models", script=theme.javascript("models.js"))
    tab.select(
        handlers.show,
        outputs=[message, models],
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    models.click(
        handlers.promote,
        outputs=[message, models, banner],
        show_progress="hidden",
        api_visibility="private",
    )
    return handlers
