"""Stage evaluate-responses: the rating words of a published response file against true scores (Table V)."""

from __future__ import annotations

from pathlib import Path

from m3agiqa.aspects import MosScale, Rating
from m3agiqa.errors import InputError
from m3agiqa.json_lines import read_json_rows
from m3agiqa.metrics import Ratings, accuracy, precision_and_f1, rough_accuracy
from m3agiqa.tables import decimal_number, read_table


def evaluate_responses(responses: Path, mos: Path, column: str, scale: MosScale) -> dict[str, float]:
    """Five-class agreement of a file's last answers (response_1) with binned MOS.

    `mos` is a CSV with the images' names and a column of scores on `scale`; images are matched by
    file name. An answer that is no rating word counts as wrong. Raises InputError naming what is missing.
    """
    scores = _scores(mos, column)
    predicted: list[Rating | None] = []
    true: list[Rating] = []
    rows = read_json_rows(responses)
    if not rows:
        raise InputError(f"{responses} has no entries.")
    for place, row in rows:
        if not isinstance(row, dict) or "image" not in row or "response_1" not in row:
            raise InputError(f"{place}: every entry needs image and response_1.")
        name = Path(str(row["image"])).name
        if name not in scores:
            raise InputError(f"{place}: {mos} has no row for the image {name}.")
        predicted.append(Rating.parse(str(row["response_1"])))
        true.append(scale.rating(scores[name]))
    return classification(predicted, true)


def classification(predicted: Ratings, true: list[Rating]) -> dict[str, float]:
    """How many answers there are, how many were no rating word, and how right they are."""
    measures: dict[str, float] = {
        "n": len(true),
        "unparsed": sum(word is None for word in predicted),
        "rough_accuracy": rough_accuracy(predicted, true),
        "accuracy": accuracy(predicted, true),
    }
    for average in ("weighted", "macro"):
        precision, f1 = precision_and_f1(predicted, true, average)
        measures |= {f"precision_{average}": precision, f"f1_{average}": f1}
    return measures


def _scores(path: Path, column: str) -> dict[str, float]:
    """File name of an image -> score."""
    table = read_table(path).select(("image", column), needed=("image", column))
    return {
        Path(row.cells["image"]).name: decimal_number(row.cells[column], f"{row.place}: {column}")
        for row in table.sound_rows()
    }
