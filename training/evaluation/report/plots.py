"""The report's plots, as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from m3agiqa.aspects import MosScale

INK_COLOR, MUTED_COLOR, GRID_COLOR, PAPER_COLOR = "#0000a1", "#0000a2", "#0000a3", "#0000a4"
SERIES_COLORS = tuple(f"#0000b{digit}" for digit in range(1, 7))
CSS_VARIABLES = {
    INK_COLOR: "--ink",
    MUTED_COLOR: "--muted",
    GRID_COLOR: "--grid",
    PAPER_COLOR: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES_COLORS, 1)},
}
"""Stand-ins that matplotlib draws with, and the CSS variables that take their places."""

RC_PARAMS = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,  # a generator may be called "$x$"
    "font.family": "DejaVu Sans",  # to measure with, as matplotlib brings it; wider than most
    "font.size": 9.5,
    "text.color": INK_COLOR,
    "axes.labelcolor": INK_COLOR,
    "axes.edgecolor": GRID_COLOR,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "xtick.color": GRID_COLOR,
    "ytick.color": GRID_COLOR,
    "xtick.labelcolor": MUTED_COLOR,
    "ytick.labelcolor": MUTED_COLOR,
    "grid.color": GRID_COLOR,
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
}
PLOT_WIDTH = 4.4  # inches; narrow enough to be read on a phone without scaling
MAX_GROUPS = 24
"""Groups in one plot; the table has all."""
FIT_DEGREE = 4


def scatter(true: Sequence[float], predicted: Sequence[float], scale: MosScale) -> Markup:
    """Predicted against true MOS, with a polynomial of the fourth order (paper, Fig. 5)."""
    true, predicted = np.asarray(true, float), np.asarray(predicted, float)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        margin = 0.03 * (scale.high - scale.low)
        limits = (scale.low - margin, scale.high + margin)
        axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="True MOS", ylabel="Predicted MOS")
        axes.grid(True)
        axes.plot(limits, limits, color=MUTED_COLOR, linewidth=0.9, linestyle=(0, (4, 3)))
        size = float(np.clip(2500 / max(len(true), 1), 4, 18))  # points², less where there are many
        axes.scatter(true, predicted, s=size, color=SERIES_COLORS[0], alpha=0.45, linewidths=0)
        different = len(np.unique(true))
        if different > 1:
            fitted = np.polynomial.Polynomial.fit(true, predicted, min(FIT_DEGREE, different - 1))
            x = np.linspace(true.min(), true.max(), 100)
            axes.plot(x, fitted(x), color=PAPER_COLOR, linewidth=4)
            axes.plot(x, fitted(x), color=SERIES_COLORS[1], linewidth=2)

    return _svg(draw, PLOT_WIDTH)


def radar(methods: Mapping[str, Mapping[str, float]]) -> Markup:
    """Each method's values of 0 to 1 on common spokes (paper, Fig. 1).

    Lower ones are drawn as 0, and a missing one is a gap. The methods take the SERIES_COLORS in turn;
    the page has the legend.
    """
    spokes = list(dict.fromkeys(name for values in methods.values() for name in values))
    angles = np.linspace(0, 2 * math.pi, len(spokes), endpoint=False)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(projection="polar", theta_offset=math.pi / 2, theta_direction=-1)
        axes.set(xticks=angles, ylim=(0, 1), yticks=(0.2, 0.4, 0.6, 0.8, 1.0))
        axes.set_xticklabels([spoke.replace(" ", "\n", 1) for spoke in spokes], color=INK_COLOR)
        axes.set_rlabel_position(180 / len(spokes))
        axes.tick_params(axis="x", pad=12)
        axes.tick_params(axis="y", labelsize=7.5)
        for number, values in enumerate(methods.values()):
            colour = SERIES_COLORS[number % len(SERIES_COLORS)]
            heights = np.maximum([values.get(spoke, math.nan) for spoke in spokes], 0)
            around, closed = [*angles, angles[0]], [*heights, heights[0]]
            axes.plot(around, closed, color=colour, linewidth=1.8, marker="o", markersize=3.5)
            if number == 0:
                axes.fill(around, closed, color=colour, alpha=0.12)

    return _svg(draw, PLOT_WIDTH)


def dots(groups: pd.DataFrame) -> Markup:
    """SRCC of each group with its 95 % interval; `groups` as evaluate.by_group has them."""
    shown = groups[groups["srcc"].notna()].head(MAX_GROUPS).sort_values(["srcc", "group"])

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(len(shown))
        axes.hlines(
            rows, shown["srcc_low"], shown["srcc_high"], color=SERIES_COLORS[0], alpha=0.4, linewidth=2.5
        )
        axes.scatter(shown["srcc"], rows, s=28, color=SERIES_COLORS[0], linewidths=0, zorder=3)
        low = min(0.0, float(shown["srcc_low"].min()))
        axes.set(xlabel="SRCC", xlim=(low - 0.03, 1.03), ylim=(-0.6, len(shown) - 0.4))
        names = zip(shown["group"], shown["n"], strict=True)
        axes.set_yticks(rows, [f"{_short(group)} ({n:,})" for group, n in names])
        axes.tick_params(axis="y", length=0, labelcolor=INK_COLOR)
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")
        if low < 0:
            axes.axvline(0, color=MUTED_COLOR, linewidth=0.9)

    return _svg(draw, 0.7 + 0.26 * len(shown))


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _svg(draw: Callable[[Figure], None], height: float) -> Markup:
    """An <svg> element to stand in HTML; the same drawing gives the same bytes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**RC_PARAMS, "svg.hashsalt": "m3agiqa"}):
        figure = Figure(figsize=(PLOT_WIDTH, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)[0]
    body = text[text.index("</defs>") + len("</defs>") :]  # what is before has no use in a page
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    # What is left are ids of markers and clip paths, which must not meet those of another plot.
    prefix = hashlib.sha256(body.encode()).hexdigest()[:8]
    body = re.sub(r'(id="|href="#|url\(#)', rf"\1i{prefix}-", body)
    body = re.sub(r"(?<=: )#0000[ab]\d", lambda match: f"var({CSS_VARIABLES[match[0]]})", body)
    return Markup(f"<svg {box}>{body}")
