"""The map of the cases' images as SVG: alike images lie near each other, coloured by the error."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from annotation.failures.error_table import Key
from annotation.failures.image_map import ImageMap

MAP_SIDE_PX, MARGIN_PX = 500, 24  # a drawing begins beside the points
FULL_ERROR = 0.375  # of the scale, from which on an error has its full colour; 1.5 points of five


def map_svg(selected: pd.DataFrame, images: ImageMap, chosen: Key | None) -> str:
    """A point for each image, with the first of its selected cases."""
    if selected.empty:
        return '<p class="nothing note">No case matches these filters. Widen them to see images here.</p>'
    is_chosen = pd.Series(
        [
            Key(item, aspect) == chosen
            for item, aspect in zip(selected["item"], selected["aspect"], strict=True)
        ],
        selected.index,
    )
    drawn = selected.iloc[np.argsort(~is_chosen, kind="stable")].drop_duplicates("image")
    rows: list[Any] = list(drawn.itertuples(index=False))
    marks = [
        mark for row in reversed(rows) if (mark := _mark(row, images.places[images.rows[row.image]], chosen))
    ]
    size = MAP_SIDE_PX + 2 * MARGIN_PX
    without = len(drawn) - len(marks)
    note = f'<p class="note">{without:,} images cannot be read and have no place.</p>' if without else ""
    label = f"Map of {len(marks)} images by what they show. The list beside it has their cases, too."
    return (
        f'<figure class="scatter panel map"><svg viewBox="0 0 {size} {size}" role="application" tabindex="0"'
        f' data-side="{MAP_SIDE_PX}" data-margin="{MARGIN_PX}" aria-label="{escape(label)}"'
        ' aria-keyshortcuts="ArrowLeft ArrowRight">'
        f'<rect class="paper" width="{size}" height="{size}"/><g class="points">{"".join(marks)}</g>'
        '<polygon class="lasso"/></svg>'
        '<figcaption><span class="key over">overestimated</span><span class="key under">underestimated</span>'
        "<span>The paler, the smaller the error. Alike images lie near each other. Click on a point, or draw "
        f"around some.</span></figcaption></figure>{note}"
    )


def _mark(row: Any, at: np.ndarray, chosen: Key | None) -> str:
    """A point, "" for an image without a place."""
    if np.isnan(at[0]):
        return ""
    key = Key(row.item, row.aspect)
    x, y = at * MAP_SIDE_PX + MARGIN_PX
    strength = min(abs(row.error) / (row.scale_high - row.scale_low) / FULL_ERROR, 1)
    current_mark = ' aria-current="true"' if key == chosen else ""
    return (
        f'<circle class="{"over" if row.error > 0 else "under"}" data-case="{escape(str(key))}"{current_mark}'
        f' cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="--strength:{100 * strength:.0f}%">'
        f"<title>{row.error:+.2f}, {escape(row.prompt or 'no prompt')}</title></circle>"
    )
