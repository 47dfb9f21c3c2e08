"""HTML of the failure cases: their agreement as a table, their list, and one of them in detail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from annotation.failures.error_table import CaseAgreement, Key, Opinion, agreements
from annotation.failures.export_and_queue import Queued
from annotation.failures.filters import Place, key_at
from annotation.failures.filters import place as place_of
from annotation.failures.image_map import NEAR_DUPLICATES, SIMILAR_PREFIX, ImageMap, MapProgress, group_title
from annotation.failures.slices import ErrorSlice
from annotation.store.models import SavedView
from annotation.ui.access import Person, Role
from annotation.ui.images import preview
from annotation.ui.thumbnails import thumbnail_url
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.plurals import counted

MAX_LISTED = 300
"""Cases on one page of the list."""


@dataclass(frozen=True)
class ModelNames:
    """What the two models and the human scores are called."""

    mos: str
    model: str
    other: str = ""


# --- all of them -------------------------------------------------------------------------------


def agreement_table(selected: pd.DataFrame, names: ModelNames, waiting: int, hidden: int) -> str:
    """SRCC, PLCC and mean error of the selection, by aspect and model.

    `waiting` more have no MOS; `hidden` more may not be read by who looks.
    """
    compared = "gain" in selected
    other = agreements(selected, "other_predicted") if compared else {}
    rows = []
    for aspect, agreement in agreements(selected).items():
        rows.append(_agreement_row(aspect.capitalize(), names.model, agreement))
        if compared:
            rows.append(_agreement_row(aspect.capitalize(), names.other, other[aspect]))
    nearer = ""
    if compared and len(selected):
        better, worse = int((selected["gain"] > 0).sum()), int((selected["gain"] < 0).sum())
        nearer = (
            f"<p><b>{escape(names.other)}</b> is nearer to people in {better:,} of {len(selected):,} cases, "
            f"<b>{escape(names.model)}</b> in {worse:,}.</p>"
        )
    others = (
        f"<p>{waiting:,} more judgements of this model are waiting for the first score of a person.</p>"
        if waiting
        else ""
    )
    if hidden:
        others += f"<p>{hidden:,} more open once you have scored them yourself.</p>"
    if not rows:
        return f'<div class="wide" role="status"><p><b>0 cases</b></p>{others}</div>'
    constant = any("–" in row for row in rows)
    why = "<p>– : too few scores, or all alike, so that nothing can correlate.</p>" if constant else ""
    return (
        '<div class="wide" role="status"><table><thead><tr><th scope="col">Aspect</th>'
        '<th scope="col">Model</th><th scope="col">Cases</th><th scope="col">SRCC</th>'
        '<th scope="col">PLCC</th><th scope="col">Mean error</th><th scope="col">Overestimated</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>{nearer}{why}{others}</div>"
    )


def _agreement_row(aspect: str, model: str, agreement: CaseAgreement) -> str:
    cells = (
        f"{agreement.count:,}",
        _number(agreement.srcc),
        _number(agreement.plcc),
        f"{agreement.bias:+.2f}",
        f"{agreement.over / agreement.count:.0%}",
    )
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{aspect}</th><td>{escape(model)}</td>{numbers}</tr>'


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def chosen_group(name: str) -> str:
    """Which group of cases is shown alone, and the way back.

    It stands above the list; on phones below the map, too, which is far from the list.
    """
    if not name:
        return ""
    return (
        f'<p class="chosen-group">Shown: {escape(group_title(name))}. '
        '<a href="#failures-list">To the cases</a> '
        '<button type="button" data-slice="">Show all cases</button></p>'
    )


def slices_table(slices: Sequence[ErrorSlice], chosen: str, images: ImageMap | None) -> str:
    """Groups on which the model errs more than elsewhere, as buttons that show their cases alone."""
    rows = "".join(
        f'<tr><th scope="row"><button type="button" data-slice="{escape(each.name)}"'
        f' aria-pressed="{str(each.name == chosen).lower()}">{escape(each.name)}</button></th>'
        f"<td>{each.count:,}</td><td>{each.mean_error:.2f}</td><td>{each.mean_error_outside:.2f}</td>"
        f"<td>{each.low:.2f} to {each.high:.2f}</td><td>{each.bias:+.2f}</td></tr>"
        for each in slices
    )
    if not rows:
        table = "<p>No group of cases stands out: differences are within what chance gives.</p>"
    else:
        table = (
            '<table><thead><tr><th scope="col">Cases</th><th scope="col">How many</th>'
            '<th scope="col">Size of error</th><th scope="col">Elsewhere</th>'
            '<th scope="col">Difference, 95 %</th><th scope="col">Mean error</th></tr></thead>'
            f"<tbody>{rows}</tbody></table>"
            "<p>The intervals allow for all groups that were tried.</p>"
        )
    return (
        f'<section class="slices"><h4>Where it errs most</h4><div class="wide">{table}</div></section>'
        f'<section class="slices"><h4>Near-duplicates</h4>{_duplicates(chosen, images)}</section>'
    )


def _duplicates(chosen: str, images: ImageMap | None) -> str:
    """How many images nearly repeat another one, or a button that has them looked for."""
    label = "Look for images that are nearly alike"
    if images is not None:
        groups = images.duplicates[images.duplicates >= 0]
        if not len(groups):
            return "<p>No two of these images are nearly alike.</p>"
        label = f"{len(groups):,} images in {len(set(groups.tolist())):,} groups that are nearly alike"
    return (
        f'<p><button type="button" data-slice="{NEAR_DUPLICATES}"'
        f' aria-pressed="{str(chosen == NEAR_DUPLICATES).lower()}">{label}</button></p>'
    )


def progress_html(progress: MapProgress) -> str:
    """How far the images are looked at, or why they cannot be."""
    if progress.problem:
        return f'<p class="nothing" role="alert">{escape(progress.problem)}</p>'
    text = f"Looking at the images: {progress.done:,} of {progress.total:,}"
    return (
        f'<div class="nothing waiting" role="status"><label for="failures-bar">{text}</label>'
        f'<progress id="failures-bar" max="{progress.total}" value="{progress.done}"></progress></div>'
    )


def case_list(selected: pd.DataFrame, chosen: Key | None, one_aspect: bool) -> str:
    """The page of cases that has the chosen one, as buttons."""
    if selected.empty:
        return ""
    compared = "gain" in selected
    first = list_page(selected, chosen) * MAX_LISTED
    rows = [
        _list_row(row, Key(row.item, row.aspect) == chosen, one_aspect)
        for row in selected.iloc[first : first + MAX_LISTED].itertuples(index=False)
    ]
    more = _pages(selected, first) if len(selected) > MAX_LISTED else ""
    heads = "Error, MOS → prediction" + (" | second model, by how much it is nearer" if compared else "")
    return (
        f'<p class="note" data-matching="{len(selected)}">{heads}. Tick cases to '
        '<a href="#failures-actions">download or queue</a> these alone.</p>'
        f'<ol class="cases panel" aria-label="Cases" aria-description="{heads}">{"".join(rows)}</ol>{more}'
    )


def list_page(selected: pd.DataFrame, key: Key | None) -> int:
    """Which page of the list has a case, from 0; the first one for a case that is not there."""
    found = place_of(selected, key) if key else None
    return found.position // MAX_LISTED if found else 0


def _pages(selected: pd.DataFrame, first: int) -> str:
    """Where the list is among all cases, and buttons that open the first case of its neighbours."""
    last = min(first + MAX_LISTED, len(selected))
    buttons = "".join(
        f'<button type="button" data-case="{escape(str(key_at(selected, start)))}">{name}</button> '
        for name, start in (("Previous", first - MAX_LISTED), ("Next", last))
        if 0 <= start < len(selected)
    )
    return f'<p class="note pages">Cases {first + 1:,} to {last:,} of {len(selected):,} {buttons}</p>'


def _list_row(row: Any, current: bool, one_aspect: bool) -> str:
    about = [] if one_aspect else [row.aspect]
    about += [row.generator] if row.generator else []
    scores = f"{row.mos:.1f} → {row.predicted:.1f}"
    gain = ""
    if hasattr(row, "gain"):
        scores += f" | {row.other_predicted:.1f}"
        better = "nearer" if row.gain > 0 else "further"
        gain = f'<span class="gain {better}">{row.gain:+.2f}</span>'
    current_mark = ' aria-current="true"' if current else ""
    return (
        f'<li><input type="checkbox" aria-label="Choose" value="{escape(str(Key(row.item, row.aspect)))}">'
        f'<button type="button" data-case="{escape(str(Key(row.item, row.aspect)))}"{current_mark}>'
        f'<img loading="lazy" alt="" src="{thumbnail_url(Path(row.image))}">'
        f'<span class="error {"over" if row.error > 0 else "under"}">{row.error:+.2f}</span>'
        f'<span class="scores">{scores}</span>{gain}'
        f'<span class="about note">{escape(", ".join(about))}</span>'
        f'<span class="prompt note">{escape(row.prompt or "no prompt")}</span></button></li>'
    )


def saved_views_html(views: Sequence[SavedView], reader: Person) -> str:
    """Views that open by a click; whoever has saved one, and admins, may remove it."""
    rows = []
    for view in views:
        name, remove = escape(view.name), ""
        if reader.role.allows(Role.ADMIN) or view.annotator.name == reader.name:
            remove = f'<button type="button" data-remove="{view.id}" aria-label="Remove {name}">×</button>'
        open_button = f'<button type="button" data-open="{view.id}">{name}</button>'
        rows.append(f'<li class="pill">{open_button}{remove}</li>')
    return f'<ul aria-label="Saved views">{"".join(rows)}</ul>' if rows else ""


def queued_html(queued: Queued, overlap: int) -> str:
    """How queuing went, in sentences."""
    images = counted(queued.items, "image is", "images are")
    each = counted(overlap, "annotator", "annotators each")
    known = ""
    if queued.new != queued.items:
        before = f"{queued.items - queued.new:,} had been there before"
        known = f" ({before}; to have more people score them, ask for more annotators per image)"
    left = ""
    if queued.left_out:
        left = f"<p>{len(queued.left_out):,} left out. {escape(queued.left_out[0])}</p>"
    done = f"<p>{images} in the annotation queue for {each}{known}.</p>"
    return f'<div class="done" role="status">{done}{left}</div>'


# --- one of them -------------------------------------------------------------------------------


def case_detail(
    key: Key,
    place: Place,
    count: int,
    image: pd.DataFrame,
    opinions: Sequence[Opinion],
    names: ModelNames,
    reader: Person,
) -> str:
    """One case: its image, what it was made from, and every aspect of it; `image` has their rows.

    Admins read the annotators' names, others numbers, and "You" for themselves.
    """
    rows = {row.aspect: row for row in image.itertuples(index=False)}
    case = rows[key.aspect]
    people = _displayed_names(opinions, reader)
    sections = "".join(
        _aspect(
            row,
            [opinion for opinion in opinions if opinion.aspect == aspect],
            people,
            names,
            aspect == key.aspect,
        )
        for aspect in sorted(Aspect, key=lambda aspect: aspect != key.aspect)  # the open one first
        if (row := rows.get(aspect)) is not None
    )
    return (
        f'<article class="failure panel" data-case="{escape(str(key))}" aria-label="The open case">'
        f'<header><h3>Case {place.position + 1:,} of {count:,}</h3><div class="steps">'
        f'<button type="button" class="similar" data-slice="{escape(SIMILAR_PREFIX + key.item)}">'
        "Similar images</button>"
        f"{_step('previous', place.previous)}{_step('next', place.next)}</div></header>"
        f'<div class="about-image">{_figure(Path(case.image), case.prompt)}{_facts(case)}</div>'
        f'<div class="aspects">{sections}</div></article>'
    )


def _displayed_names(opinions: Sequence[Opinion], reader: Person) -> dict[str, str]:
    """By their names: what the reader may call them."""
    people = sorted({opinion.annotator for opinion in opinions})
    if reader.role.allows(Role.ADMIN):
        return {name: name for name in people}
    return {name: "You" if name == reader.name else f"Person {i}" for i, name in enumerate(people, 1)}


def _step(name: str, key: Key | None) -> str:
    to = f'data-case="{escape(str(key))}"' if key else "disabled"
    arrow = ("← " if name == "previous" else "") + name.capitalize() + (" →" if name == "next" else "")
    return f'<button type="button" class="step {name}" {to}>{arrow}</button>'


def _figure(path: Path, prompt: str | None) -> str:
    try:
        shown = preview(path)
    except InputError as error:
        return f'<figure><p role="alert">{escape(str(error))}</p></figure>'
    alt = f"Image made from: {prompt}" if prompt else "Image without a prompt"
    return (
        f'<figure><img src="{shown.url}" alt="{escape(alt)}">'
        f"<figcaption>{shown.width} × {shown.height} pixels</figcaption></figure>"
    )


def _facts(case: tuple) -> str:
    facts = {
        "Prompt": case.prompt or "none",
        "Generator": case.generator or "not given",
        "Source": case.source or "not given",
        "Name": case.item,
        "File": case.original_file or Path(case.image).name,
    }
    return "<dl>" + "".join(f"<dt>{k}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>"


def _aspect(
    row: Any, opinions: Sequence[Opinion], people: Mapping[str, str], names: ModelNames, open_one: bool
) -> str:
    scale = MosScale(row.scale_low, row.scale_high)
    predictions = _prediction(names.model, row)
    if hasattr(row, "other_predicted"):
        predictions += _prediction(names.other, row, "other_")
    reference = (
        f'<div class="says reference"><h5>Reference description</h5><p>{escape(row.reference)}</p></div>'
        if row.reference
        else ""
    )
    responses = "".join(_opinion(opinion, people[opinion.annotator]) for opinion in opinions)
    people_section = (
        f'<div class="says people"><h5>People</h5><ul>{responses}</ul></div>' if responses else ""
    )
    return (
        f'<section class="aspect panel{" open" if open_one else ""}" aria-label="{row.aspect.capitalize()}">'
        f"<header><h4>{row.aspect.capitalize()}</h4>{_score(row, names)}</header>{_track(row, scale, names)}"
        f'<div class="sayings">{predictions}{reference}{people_section}</div></section>'
    )


def _score(row: Any, names: ModelNames) -> str:
    interval = f", 95 % from {row.mos_low:.1f} to {row.mos_high:.1f}" if not math.isnan(row.mos_low) else ""
    people = "person" if row.raters == 1 else "people"
    count = "" if math.isnan(row.raters) else f" ({row.raters:.0f} {people}{interval})"
    return f'<p class="people-score note">{escape(names.mos)} <b>{row.mos:.2f}</b>{count}</p>'


def _track(row: Any, scale: MosScale, names: ModelNames) -> str:
    """Where on the scale people and the models are."""

    def at(mos: float) -> str:
        return f"{100 * scale.to_unit(mos):.1f}%"

    band = ""
    if not math.isnan(row.mos_low):
        width = f"{100 * (scale.to_unit(row.mos_high) - scale.to_unit(row.mos_low)):.1f}%"
        band = f'<span class="band" style="left:{at(row.mos_low)};width:{width}"></span>'
    marks = f'<span class="mark people" style="left:{at(row.mos)}"></span>'
    marks += f'<span class="mark first" style="left:{at(row.predicted)}"></span>'
    label = f"{names.mos} {row.mos:.2f}, {names.model} {row.predicted:.2f}"
    if hasattr(row, "other_predicted"):
        marks += f'<span class="mark other" style="left:{at(row.other_predicted)}"></span>'
        label += f", {names.other} {row.other_predicted:.2f}"
    return (
        f'<div class="track note" role="img" aria-label="{escape(label)}">'
        f'<span>{scale.low:g}</span><div class="line">{band}{marks}</div>'
        f"<span>{scale.high:g}</span></div>"
    )


def _prediction(model: str, row: Any, prefix: str = "") -> str:
    """What one model says; `prefix` is that of its columns."""
    columns = ("predicted", "error", "rating", "spoken_rating", "description")
    predicted, error, rating, spoken, description = (getattr(row, prefix + name) for name in columns)
    differs = (
        f'<p class="note">It says “{spoken}”, but its score is in the range of “{rating}”.</p>'
        if spoken and spoken != rating
        else ""
    )
    which = "other" if prefix else "first"
    text = f"<p>{escape(description)}</p>" if description else '<p class="note">No description.</p>'
    return (
        f'<div class="says {which}"><h5><span class="dot"></span>{escape(model)}</h5>'
        f'<p class="predicted"><b>{predicted:.2f}</b> '
        f'<span class="error {"over" if error > 0 else "under"}">{error:+.2f}</span>'
        f'<span class="rating {rating}">{rating}</span></p>'
        f"{text}{differs}</div>"
    )


def _opinion(opinion: Opinion, name: str) -> str:
    tags = "".join(f'<span class="pill">{escape(tag)}</span>' for tag in opinion.tags)
    agrees = '<span class="note">agrees with the model</span>' if opinion.agrees else ""
    description = (
        f"<p>{escape(opinion.description)}</p>" if opinion.description and not opinion.agrees else ""
    )
    comment = f'<p class="note">“{escape(opinion.comment)}”</p>' if opinion.comment else ""
    return f"<li><p><b>{opinion.score:.1f}</b> {escape(name)} {agrees}{tags}</p>{description}{comment}</li>"
