"""HTML of the Compare tab: a card for each image, the view of two in turn, and the table as files."""

from __future__ import annotations

import base64
import json
from html import escape
from urllib.parse import quote

from gradio.route_utils import API_PREFIX

from annotation.ui.access import Role
from annotation.ui.compare.comparison import ImageComparison
from annotation.ui.images import Upload, browser_copy
from m3agiqa.aspects import MosScale
from m3agiqa.ranking import DIFFERENCE_NOTE, OVERALL, Difference, Standing, rankings_csv

VERDICT_WORDS = {
    Difference.CLEAR: "clearly better than the next",
    Difference.EQUAL: "about equal to the next",
    Difference.UNKNOWN: "",
}
LOOK_HINT = (
    '<p class="note look-hint">Press an image to see it large, and to flip between two at the same place. '
    '<span class="keys">Keys: <kbd>←</kbd> <kbd>→</kbd> walk, <kbd>Space</kbd> flips to the image before, '
    "<kbd>Z</kbd> shows the actual size, <kbd>Enter</kbd> picks the best, <kbd>Esc</kbd> closes the view."
    "</span></p>"
)
VIEWER_HTML = (
    '<dialog class="flicker" aria-label="Two images in turn">'
    '<div class="stage" tabindex="-1" autofocus></div>'
    '<footer><p role="status"></p>'
    '<button type="button" data-do="before" aria-label="Previous image">←</button>'
    '<button type="button" data-do="after" aria-label="Next image">→</button>'
    '<button type="button" data-do="flip">Flip</button>'
    '<button type="button" data-do="zoom" aria-pressed="false">Actual size</button>'
    '<button type="button" data-do="pick">Pick as best</button>'
    '<button type="button" data-do="close">Close</button></footer></dialog>'
)


def grid_html(comparison: ImageComparison, places: list[Standing]) -> str:
    """All images that are judged, those that are left out with the reason, and the table to download."""
    ranking = comparison.ranking
    if ranking is None:
        return ""
    may_pick = comparison.may_be_picked_from and comparison.person.role.allows(Role.ANNOTATOR)
    cards = "".join(_card(comparison, each, may_pick) for each in places)
    left_out = "".join(
        f"<li><b>{escape(each.name)}</b> is left out. {escape(each.reason)}</li>" for each in ranking.left_out
    )
    left_out = f'<ul class="left-out">{left_out}</ul>' if left_out else ""
    over = comparison.run.state.over and places
    hint = LOOK_HINT if over else ""
    done = (
        f"{_picked(comparison)}{_downloads(comparison)}{_scale_note(places[0].figure.scale)}" if over else ""
    )
    return f'{left_out}{hint}<ol class="compared">{cards}</ol>{done}{VIEWER_HTML if places else ""}'


def _scale_note(scale: MosScale) -> str:
    return (
        f'<p class="note">Scores are on a scale from {scale.low:g} to {scale.high:g}; people would likely '
        f"score within the small numbers beside them. {DIFFERENCE_NOTE}</p>"
    )


def _card(comparison: ImageComparison, standing: Standing, may_pick: bool) -> str:
    image, figure = standing.image, standing.figure
    name, upload = escape(image.name), comparison.run.uploads[image.index]
    verdict = VERDICT_WORDS[standing.to_next] if standing.to_next else ""
    interval = "" if figure.low is None else f" <small>{figure.low:.1f} to {figure.high:.1f}</small>"
    aspects = "".join(
        f"<div><dt>{result.aspect.capitalize()}</dt><dd>{result.mos:.2f}</dd></div>"
        for result in image.assessment.aspects.values()
    )
    picked = comparison.pick is not None and comparison.pick.index == image.index
    button = (
        f'<button type="button" data-do="pick" aria-pressed="{str(picked).lower()}">'
        f"{'Your pick' if picked else 'Pick as best'}</button>"
        if may_pick
        else ""
    )
    equal = standing.to_first is Difference.EQUAL
    return (
        f'<li class="panel{" picked" if picked else ""}" data-index="{image.index}">'
        f'<button type="button" class="look" data-do="look" aria-label="Look at {name}">'
        f'<img src="{_url(upload)}" alt="{name}" loading="lazy"></button>'
        f'<header><h4><span class="place">{standing.place}</span> {name}</h4>{button}</header>'
        f'<p class="mos"><strong>{figure.mos:.2f}</strong>{interval}</p>'
        f"<dl>{aspects}</dl>"
        + (f'<p class="verdict-next">{verdict}</p>' if verdict else "")
        + ('<p class="pill">about equal to the first</p>' if equal and standing.place > 1 else "")
        + "</li>"
    )


def _url(upload: Upload) -> str:
    """Of the uploaded file, or of the PNG that stands for one that browsers cannot show."""
    path = browser_copy({"path": str(upload.path), "orig_name": upload.name}) or str(upload.path)
    return escape(f"{API_PREFIX}/file={quote(path)}")


def _picked(comparison: ImageComparison) -> str:
    pick = comparison.pick
    if pick is None:
        return '<p class="verdict" role="status"></p>'
    name = escape(comparison.run.uploads[pick.index].name)
    return (
        f'<p class="verdict" role="status">You picked {name}; saved as pick #{pick.preference_id}. '
        f'<button type="button" class="link" data-do="undo" data-pick="{pick.preference_id}">Undo</button>'
        "</p>"
    )


def _downloads(comparison: ImageComparison) -> str:
    ranking = comparison.ranking
    assert ranking is not None
    order = comparison.order if comparison.order in ranking.orders else OVERALL
    table = ("\ufeff" + rankings_csv([ranking], order)).encode()
    values = json.dumps(ranking.to_dict(order), indent=2, ensure_ascii=False).encode()
    return (
        '<p class="downloads">'
        + "".join(
            # A data URL leaves no file on the server and needs no further request.
            f'<a class="download" href="data:{kind};base64,{base64.b64encode(content).decode()}"'
            f' download="compared.{suffix}">Download {suffix.upper()}</a> '
            for suffix, kind, content in (("csv", "text/csv", table), ("json", "application/json", values))
        )
        + "</p>"
    )
