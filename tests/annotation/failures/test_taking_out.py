"""Chosen cases as CSV and in the annotation queue."""

import csv
import io
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from seeded_cases import add, picture
from sqlalchemy import select

from annotation.failures.error_table import cases
from annotation.failures.export_and_queue import queue_items, queue_samples, to_csv
from annotation.store import Store
from annotation.store.models import AuditEntry, Item, QueueEntry
from m3agiqa.errors import InputError
from m3agiqa.tables import FORMULA_STARTS

USUAL = {"aspect": "quality", "mos": 3.0, "predicted": 2.25, "scale_low": 1.0, "scale_high": 5.0}


def samples(folder: Path, **colours: str) -> pd.DataFrame:
    rows = []
    for name, colour in colours.items():
        path = folder / f"{name}.png"
        if colour:
            path.write_bytes(picture(colour))
        rows += [{**USUAL, "item": name, "image": str(path), "prompt": name, "generator": "dalle"}]
    return cases(pd.DataFrame(rows))


def queued(store: Store) -> list[tuple[str, str | None, int]]:
    """Prompt, source and overlap of what is in the queue."""
    with store.database.reading() as session:
        entries = session.scalars(select(QueueEntry).join(Item).order_by(Item.id)).all()
        return [(entry.item.prompt.text, entry.item.source, entry.overlap) for entry in entries]


def test_the_table_has_names_numbers_and_texts(tmp_path: Path) -> None:
    text = to_csv(samples(tmp_path, cat="red").assign(tags=[("blur", "missed flaw")]))
    [row] = csv.DictReader(io.StringIO(text))
    assert (row["item"], row["image"], row["tags"]) == ("cat", "cat.png", "blur; missed flaw")
    assert (float(row["mos"]), float(row["predicted"]), float(row["error"])) == (3.0, 2.25, -0.75)
    assert str(tmp_path) not in text


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMULA_STARTS) | st.just(" ="), texts)
def test_no_text_is_a_formula_to_a_spreadsheet(start: str, text: str) -> None:
    told = start + text
    assume(not is_number(told))
    row = {**USUAL, "item": told, "image": "x", "prompt": told, "tags": (told,)}
    [found] = csv.DictReader(io.StringIO(to_csv(cases(pd.DataFrame([row]))), newline=""))
    for name in ("item", "prompt", "tags"):
        assert found[name] == f"'{told}"
    assert found["error"] == "-0.7500", "a number is no formula"


def test_items_are_queued_once(store: Store) -> None:
    item = add(store, prompt="a cat")
    first = queue_items(store, [item], 2, "ann")
    again = queue_items(store, [item], 3, "ann")
    assert ((first.items, first.new), (again.items, again.new)) == ((1, 1), (1, 0))
    assert queued(store) == [("a cat", "an import", 3)]
    with store.database.reading() as session:
        assert [entry.action for entry in session.scalars(select(AuditEntry))] == ["queued images"] * 2


def test_samples_of_a_run_are_taken_over_and_queued(store: Store, tmp_path: Path) -> None:
    selected = samples(tmp_path, red="red", green="green", gone="")
    result = queue_samples(store, selected, 2, "ann", "run one")
    assert (result.items, result.new) == (2, 2)
    [why] = result.left_out
    assert why.startswith("gone.png: ") and str(tmp_path) not in why
    assert sorted(queued(store)) == [("green", "run one", 2), ("red", "run one", 2)]
    assert queue_samples(store, selected, 2, "ann", "run one").new == 0


def test_if_no_image_can_be_read_nothing_is_queued(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="None of the images"):
        queue_samples(store, samples(tmp_path, gone=""), 2, "ann", "run one")
    assert queued(store) == []
