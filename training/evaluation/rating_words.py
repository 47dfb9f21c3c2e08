"""Stage evaluate-responses: the rating words of a published response file against true scores (Table V)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from m3agiqa.aspects import MosScale, Rating
from m3agiqa.errors import InputError
from m3agiqa.json_lines import read_json_lines
from m3agiqa.metrics import Ratings, accuracy, precision_and_f1, rough_accuracy


def evaluate_responses(responses: Path, mos: Path, column: str, scale: MosScale) -> dict[str, float]:
    """Five-class agreement of a file's last answers (response_1) with binned MOS.

    `mos` is a CSV with the images' names and a column of scores on `scale`; images are matched by
    file name. An answer that is no rating word counts as wrong. Raises InputError naming what is missing.
    """
    scores = _scores(mos, column)
    predicted: list[Rating | None] = []
    true: list[Rating] = []
    for number, row in enumerate(_rows(responses), 1):
        place = f"{responses}, entry {number}"
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


def _rows(path: Path) -> list[dict]:
    """A JSON list, whatever the file is called, or JSON Lines."""
    try:
        text = path.read_text(encoding="utf-8")
        listed = text.lstrip().startswith("[")
        rows = json.loads(text) if listed else [row for _, row in read_json_lines(path)]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not rows:
        raise InputError(f"{path} has no entries.")
    return rows


def _scores(path: Path, column: str) -> dict[str, float]:
    """File name of an image -> score."""
    try:
        frame = pd.read_csv(path)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not a CSV file: {error}.") from error
    names = next((name for name in ("name", "image") if name in frame), None)
    if names is None or column not in frame:
        raise InputError(f"{path} needs the columns name (or image) and {column}; it has {', '.join(frame)}.")
    values = pd.to_numeric(frame[column], errors="coerce")
    if values.isna().any():
        row = int(values.isna().to_numpy().argmax()) + 2  # the header is line 1
        raise InputError(f"{path}, line {row}: {column} is not a number.")
    return {Path(str(name)).name: value for name, value in zip(frame[names], values, strict=True)}
