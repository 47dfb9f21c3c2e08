"""The scatter of predicted against human MOS as SVG, with the counts along both axes.

Gradio's own plots do not tell which point was clicked, and cannot be used with the keyboard.
"""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from annotation.failures.error_table import Key

MAX_DRAWN = 5000
"""Points at most; of more cases a random sample is drawn."""
HISTOGRAM_BINS = 20
LEFT_PX, TOP_PX, SIDE_PX = 52, 66, 450  # of the square plot
DEPTH_PX = 50  # of the counts beside it
WIDTH_PX, HEIGHT_PX = LEFT_PX + SIDE_PX + TOP_PX, TOP_PX + SIDE_PX + 52


def scatter_svg(selected: pd.DataFrame, mos_label: str, chosen: Key | None) -> str:
    """The plot of the selected cases; where two models are compared, each case is an arrow between them."""
    if selected.empty:
        return '<p class="nothing note">No case matches these filters. Widen them to see points here.</p>'
    low, high = float(selected["scale_low"].min()), float(selected["scale_high"].max())
    drawn = selected
    if len(selected) > MAX_DRAWN:
        drawn = selected.sample(MAX_DRAWN, random_state=0)
        if chosen is not None:
            is_chosen = (selected["item"] == chosen.item) & (selected["aspect"] == chosen.aspect)
            drawn = pd.concat([drawn, selected[is_chosen].drop(drawn.index, errors="ignore")])
        drawn = drawn.sort_index()
    compared = "gain" in selected
    label = (
        f"Scatter of {len(selected)} cases: predicted MOS over {mos_label}. The list beside it has them too."
    )
    marks = _marks(drawn, low, high, chosen, compared)
    note = (
        f'<p class="note">A random sample of {MAX_DRAWN:,} cases is drawn, of {len(selected):,}. '
        "The counts and correlations are of all.</p>"
        if len(drawn) < len(selected)
        else ""
    )
    return (
        f'<figure class="scatter panel{" compared" if compared else ""}">'
        f'<svg viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" role="application" tabindex="0"'
        f' aria-label="{escape(label)}" aria-keyshortcuts="ArrowLeft ArrowRight">'
        f"{_axes(low, high, mos_label)}{_counts(selected, low, high)}"
        f'<g class="points">{marks}</g></svg>'
        f"<figcaption>{_legend(compared)}</figcaption></figure>{note}"
    )


def _axes(low: float, high: float, mos_label: str) -> str:
    lines = []
    for tick in _ticks(low, high):
        x, y = _x(tick, low, high), _y(tick, low, high)
        bottom, right = TOP_PX + SIDE_PX, LEFT_PX + SIDE_PX
        lines.append(
            f'<path class="grid" d="M{x:.1f} {TOP_PX}V{bottom}M{LEFT_PX} {y:.1f}H{right}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
            f'<text class="tick" x="{LEFT_PX - 9}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    middle = TOP_PX + SIDE_PX / 2
    return (
        f'<rect class="paper" x="{LEFT_PX}" y="{TOP_PX}" width="{SIDE_PX}" height="{SIDE_PX}"/>'
        f"{''.join(lines)}"
        f'<path class="identity" d="M{LEFT_PX} {TOP_PX + SIDE_PX}L{LEFT_PX + SIDE_PX} {TOP_PX}"/>'
        f'<text class="side-label" x="{LEFT_PX + 12}" y="{TOP_PX + 20}">overestimated</text>'
        f'<text class="side-label" x="{LEFT_PX + SIDE_PX - 12}" y="{TOP_PX + SIDE_PX - 12}"'
        ' text-anchor="end">underestimated</text>'
        f'<text class="axis" x="{LEFT_PX + SIDE_PX / 2}" y="{HEIGHT_PX - 8}" text-anchor="middle">'
        f"{escape(mos_label)}</text>"
        f'<text class="axis" x="15" y="{middle}" text-anchor="middle"'
        f' transform="rotate(-90 15 {middle})">predicted MOS</text>'
    )


def _ticks(low: float, high: float) -> np.ndarray:
    return np.arange(low, high + 0.5) if high - low <= 10 else np.linspace(low, high, 6)


def _counts(selected: pd.DataFrame, low: float, high: float) -> str:
    """How many cases there are along each axis."""
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    step = SIDE_PX / HISTOGRAM_BINS
    mos_counts = np.histogram(np.clip(selected["mos"], low, high), edges)[0]
    predicted_counts = np.histogram(np.clip(selected["predicted"], low, high), edges)[0]
    most = max(mos_counts.max(), predicted_counts.max())
    bars = []
    for index, (column, row) in enumerate(zip(mos_counts, predicted_counts, strict=True)):
        span = f"{edges[index]:.3g} to {edges[index + 1]:.3g}"
        if column:
            depth = DEPTH_PX * column / most
            bars.append(
                f'<rect x="{LEFT_PX + index * step + 1:.1f}" y="{TOP_PX - 6 - depth:.1f}"'
                f' width="{step - 2:.1f}" height="{depth:.1f}"><title>{column} with MOS {span}</title></rect>'
            )
        if row:
            depth = DEPTH_PX * row / most
            bars.append(
                f'<rect x="{LEFT_PX + SIDE_PX + 6}" y="{TOP_PX + SIDE_PX - (index + 1) * step + 1:.1f}"'
                f' width="{depth:.1f}" height="{step - 2:.1f}">'
                f"<title>{row} predicted {span}</title></rect>"
            )
    return f'<g class="counts">{"".join(bars)}</g>'


def _marks(drawn: pd.DataFrame, low: float, high: float, chosen: Key | None, compared: bool) -> str:
    """In reverse, so that what comes first in the list lies on top."""
    marks = []
    for row in reversed(list(drawn.itertuples(index=False))):
        key = Key(row.item, row.aspect)
        x, y = _x(row.mos, low, high), _y(row.predicted, low, high)
        side = "over" if row.error > 0 else "under"
        current_mark = ' aria-current="true"' if key == chosen else ""
        label = f"MOS {row.mos:.2f}, predicted {row.predicted:.2f}"
        case = f'data-case="{escape(str(key))}"{current_mark}'
        if compared:
            better = "nearer" if row.gain > 0 else "further"
            y_other = _y(row.other_predicted, low, high)
            marks.append(
                f'<g class="{better}" {case}><title>{label}, then {row.other_predicted:.2f}</title>'
                f'<path d="M{x:.1f} {y:.1f}V{y_other:.1f}"/>'
                f'<circle class="end" cx="{x:.1f}" cy="{y_other:.1f}" r="3"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>'
            )
        else:
            marks.append(
                f'<circle class="{side}" {case} cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
                f"<title>{label}</title></circle>"
            )
    return "".join(marks)


def _legend(compared: bool) -> str:
    if compared:
        return (
            '<span class="key nearer">the second model is nearer to people</span>'
            '<span class="key further">it is further away</span>'
            "<span>Filled is the first model, a ring the second.</span>"
        )
    return (
        '<span class="key over">overestimated</span><span class="key under">underestimated</span>'
        "<span>Dashed is perfect agreement.</span>"
    )


def _x(mos: float, low: float, high: float) -> float:
    return LEFT_PX + SIDE_PX * (min(max(mos, low), high) - low) / (high - low)


def _y(mos: float, low: float, high: float) -> float:
    return TOP_PX + SIDE_PX * (1 - (min(max(mos, low), high) - low) / (high - low))
