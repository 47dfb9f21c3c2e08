"""HTML of the Data tab: counts, agreement, mean opinions, and how each annotator works."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import gradio as gr
import numpy as np
import pandas as pd

from annotation.statistics.doubts import Doubts
from annotation.statistics.inter_rater import Coefficient
from annotation.statistics.mos import MeanOpinion, Subject
from annotation.statistics.overview import AnnotatorSummary, Overview
from annotation.store import exposures
from annotation.store.preferences import OrderAgreement
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.plurals import counted

NO_NUMBER = "<small>–</small>"
BIN_WIDTH = 0.5  # points of MOS per bar
MAX_LEAST_CERTAIN = 50  # images that the table of mean opinions shows
MAX_SHOWN_PROMPT = 120  # characters of it
MAX_CONTRADICTIONS = 10  # images that are listed

NO_CORRECTIONS = (
    '<p class="note">There are no corrections yet. Correct an assessment on the Assess tab, or work '
    "through images on the Annotate tab; what people say is counted here.</p>"
)


def summary_html(overview: Overview) -> str:
    """How much there is."""
    several = f"{overview.items:,} pairs of image and prompt" if overview.items != overview.images else ""
    tiles = [
        ("Images", overview.images, several),
        ("Assessments by models", overview.assessments, ""),
        ("Corrections", overview.corrections, "each on one aspect of an image"),
        ("Superseded", overview.superseded, "by the same person's newer ones"),
        ("Undone", overview.undone, ""),
        ("Annotators", len(overview.annotators), ""),
    ]
    shown = "".join(
        f"<div class='panel'><dt>{name}</dt><dd>{number:,}</dd><small>{escape(more)}</small></div>"
        for name, number, more in tiles
    )
    return f'<dl class="tiles">{shown}</dl>' + ("" if overview.corrections else NO_CORRECTIONS)


# --- agreement ---------------------------------------------------------------------------------


def agreement_html(overview: Overview) -> str:
    """A row for each aspect; below, what the coefficients are and why some are missing."""
    if not overview.corrections:
        return ""
    head = (
        "Aspect",
        "Corrections",
        "Model confirmed",
        "Krippendorff’s α",
        "ICC(2,1)",
        "ICC(2,k)",
        "SRCC, each with the others",
        "SRCC, pairs",
    )
    rows: list[list[str]] = []
    reasons: dict[str, None] = {}
    for of_aspect in overview.aspects.values():
        on = of_aspect.agreement
        coefficients = (on.alpha, on.single, on.mean, on.with_others, on.pairwise)
        confirmed = NO_NUMBER if math.isnan(of_aspect.confirmed) else f"{of_aspect.confirmed:.0%}"
        rows.append([f"{of_aspect.corrections:,}", confirmed, *(_coefficient(one) for one in coefficients)])
        reasons |= {one.reason: None for one in coefficients if one.reason}
    notes = (
        "<p>1 is full agreement, 0 is chance. α treats scores as ordinal. ICC(2,1) tells how far one "
        "annotator can be relied upon, ICC(2,k) how far the mean of k can, with 95 % intervals; both rest on "
        "images that the same people have scored. Below each number: what it rests on.</p>"
    )
    if reasons:
        notes += f"<p>– {escape(' '.join(reasons))}</p>"
    return _titled("Agreement", _table(head, zip(overview.aspects, rows, strict=True)) + notes)


def _coefficient(one: Coefficient) -> str:
    if math.isnan(one.value):
        return f'<small title="{escape(one.reason)}">–</small>'
    interval = "" if math.isnan(one.low) else f" <small>{one.low:.2f} to {one.high:.2f}</small>"
    people = counted(one.raters, "person", "people")
    return f"<b>{one.value:.2f}</b>{interval}<small>{one.items:,} images, {people}</small>"


def picks_html(picks: OrderAgreement) -> str:
    """How often people's picks of the best image are the model's; nothing before the first one."""
    if not picks.picks:
        return ""
    rows = [
        ("The pick was the model's first", picks.firsts, picks.picks, picks.expected_firsts),
        ("The pick above another image", picks.agreed_pairs, picks.pairs, picks.pairs / 2),
    ]
    cells = [
        (name, [f"<b>{agreed / of:.0%}</b><small>of {of:,}</small>", f"{chance / of:.0%}"])
        for name, agreed, of, chance in rows
    ]
    people = counted(picks.people, "person", "people")
    return _titled(
        "Picks and the model's order",
        _table(("On the Compare tab", "Agreed", "By chance"), cells),
        f"Current picks of {people}; of images with the same overall score half a pair counts.",
    )


# --- mean opinions -----------------------------------------------------------------------------


def mean_opinions_html(overview: Overview) -> str:
    """The heading of the distributions, and how MOS are computed."""
    if not overview.corrections:
        return ""
    return _titled(
        "Mean opinion scores",
        "<p>MOS by ITU-T P.910: without the annotators’ biases, the consistent ones counting for more, "
        "after screening out who errs in both directions (ITU-R BT.500).</p>",
    )


def distribution(aspect: Aspect, overview: Overview) -> gr.BarPlot:
    """How the MOS of an aspect are distributed, and how certain they are; hidden while there are none."""
    means = list(overview.aspects[aspect].scaling.opinions.values()) if overview.corrections else []
    if not means:
        return gr.BarPlot(None, visible=False)
    edges = np.arange(COMMON_SCALE.low, COMMON_SCALE.high + BIN_WIDTH, BIN_WIDTH)
    counts, _ = np.histogram([mean.mos for mean in means], edges)
    bars = pd.DataFrame({"MOS": edges[:-1] + BIN_WIDTH / 2, "Images": counts})
    images = counted(len(means), "image")
    mos, raw = (np.mean([getattr(mean, name) for mean in means]) for name in ("mos", "raw_mean"))
    widths = [(mean.high - mean.low) / 2 for mean in means if mean.raters > 1 and not math.isnan(mean.low)]
    certainty = f" 95 % interval ±{np.mean(widths):.2f} where several people scored." if widths else ""
    single = sum(mean.raters == 1 for mean in means)
    lonely = f" {single:,} with one person's score alone." if single else ""
    return gr.BarPlot(
        bars, caption=f"{images}, mean {mos:.2f}, raw {raw:.2f}.{certainty}{lonely}", visible=True
    )


def least_certain(overview: Overview) -> list[tuple[Aspect, MeanOpinion]]:
    """The mean opinions with the widest intervals, where another opinion tells most."""
    known = [
        (aspect, mean)
        for aspect, of_aspect in overview.aspects.items()
        for mean in of_aspect.scaling.opinions.values()
        if mean.raters > 1 and not math.isnan(mean.low)
    ]
    known.sort(key=lambda pair: (pair[1].low - pair[1].high, pair[1].item))
    return known[:MAX_LEAST_CERTAIN]


def least_certain_html(means: Sequence[tuple[Aspect, MeanOpinion]], overview: Overview) -> str:
    """A row for each."""
    if not means:
        return ""
    head = ("Aspect", "Image", "Prompt", "MOS", "95 % interval", "Raw mean", "Annotators")
    rows = [(aspect, _mean_row(mean, overview)) for aspect, mean in means]
    return _titled("Least certain images", _table(head, rows), "Where another score tells most.")


def _mean_row(mean: MeanOpinion, overview: Overview) -> list[str]:
    prompt = str(overview.of_items.at[mean.item, "prompt"]) or "no prompt"
    return [
        f"#{mean.item}",
        f'<span class="prompt">{_shortened(prompt)}</span>',
        f"<b>{mean.mos:.2f}</b>",
        f"{mean.low:.2f} to {mean.high:.2f}",
        f"{mean.raw_mean:.2f}",
        str(mean.raters),
    ]


# --- annotators --------------------------------------------------------------------------------


def annotators(people: Sequence[AnnotatorSummary], title: str, note: str = "") -> str:
    """A row for each."""
    if not people:
        return ""
    head = (
        "Annotator",
        "Corrections",
        "Images",
        "Time per image",
        "Images per hour",
        "Against the others",
        *(f"Bias in {aspect}" for aspect in Aspect),
        "Calibration",
        "Last active",
    )
    rows = [(escape(person.name), _annotator(person)) for person in people]
    explained = (
        "<p>Time is the median; breaks of over ten minutes do not count as work. Against the others: mean "
        "difference to the others’ mean of the same image. Bias by P.910, in points, ± inconsistency. "
        "Calibration: scores near enough to the known answer.</p>"
    )
    return _titled(title, _table(head, rows) + explained, note)


def _annotator(person: AnnotatorSummary) -> list[str]:
    right = NO_NUMBER
    if person.gold_asked:
        share = person.gold_right / person.gold_asked
        right = f"{share:.0%} <small>{person.gold_right} of {person.gold_asked}</small>"
    return [
        f"{person.corrections:,}",
        f"{person.images:,}",
        NO_NUMBER if math.isnan(person.median_seconds) else f"{person.median_seconds:.0f} s",
        NO_NUMBER if math.isnan(person.per_hour) else f"{person.per_hour:.0f}",
        _signed(person.difference),
        *(_bias(person.subjects.get(aspect)) for aspect in Aspect),
        right,
        f"{person.last_active:%Y-%m-%d %H:%M} UTC",
    ]


def _signed(points: float) -> str:
    # 0 is added, as a small negative number would round to −0.00.
    return NO_NUMBER if math.isnan(points) else f"{round(points, 2) + 0:+.2f}".replace("-", "−")


def _bias(subject: Subject | None) -> str:
    if subject is None or math.isnan(subject.bias):
        return NO_NUMBER
    spread = "" if math.isnan(subject.inconsistency) else f" <small>± {subject.inconsistency:.2f}</small>"
    out = ' <strong class="outlying">screened out</strong>' if subject.outlying else ""
    side, share = ("over" if subject.bias > 0 else "under"), min(abs(subject.bias) / 2, 1)
    bar = f'<i class="bias {side}" style="--share: {share:.2f}" aria-hidden="true"></i>'
    return f"{_signed(subject.bias)}{spread}{bar}{out}"


def doubts_html(doubts: Doubts, only: str | None = None) -> str:
    """What hardly tells anything of an image, or contradicts others; or such texts of one person alone."""
    one_word, repeated, foreign = (
        texts if only is None else texts[texts["annotator"] == only]
        for texts in (doubts.one_word, doubts.repeated, doubts.foreign)
    )
    lines = []
    for (name, aspect, _), rows in repeated.groupby(["annotator", "aspect", "words"]):
        text, images = _shortened(rows["description"].iloc[0]), rows["item_id"].nunique()
        lines.append(f"{_who(name, only)} wrote “{text}” of the {aspect} of {images:,} images.")
    for texts, kind in ((one_word, "of a single word"), (foreign, "in another language than English")):
        for name, rows in texts.groupby("annotator"):
            examples = ", ".join(f"“{_shortened(text)}”" for text in rows["description"].unique()[:3])
            number = counted(len(rows), "description")
            lines.append(f"{_who(name, only)} gave {number} {kind}: {examples}.")
    if lines:
        lines.append("Exports leave these texts out unless they are asked for; the scores stay in.")
    if only is None:
        for (item, aspect), rows in contradictions(doubts):
            given = zip(rows["annotator"], rows["score"], strict=True)
            scores = ", ".join(f"{escape(name)} {score:.1f}" for name, score in given)
            lines.append(f"Image #{item} ({escape(rows['original_file'].iloc[0])}), {aspect}: {scores}.")
        more = doubts.contradicting.groupby(["item_id", "aspect"]).ngroups - MAX_CONTRADICTIONS
        if more > 0:
            lines.append(f"On {more:,} more, people differ as much.")
    if not lines:
        return ""
    return _titled("Worth a look", "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>")


def contradictions(doubts: Doubts) -> list[tuple[exposures.ItemAspect, pd.DataFrame]]:
    """The first images of which people contradict each other, with what they say."""
    grouped = doubts.contradicting.groupby(["item_id", "aspect"])
    return [((int(rows["item_id"].iloc[0]), Aspect(rows["aspect"].iloc[0])), rows) for _, rows in grouped][
        :MAX_CONTRADICTIONS
    ]


def _who(name: object, only: str | None) -> str:
    return "You" if name == only else escape(str(name))


def _shortened(text: str) -> str:
    return escape(text if len(text) <= MAX_SHOWN_PROMPT else text[: MAX_SHOWN_PROMPT - 1] + "…")


# --- what they share ---------------------------------------------------------------------------


def _titled(title: str, content: str, note: str = "") -> str:
    about = f"<p>{escape(note)}</p>" if note else ""
    return f'<section class="figures"><h3>{escape(title)}</h3>{about}{content}</section>'


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Rows are a heading and cells, which are HTML already."""
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{name.capitalize() if isinstance(name, Aspect) else name}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    table = f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'
