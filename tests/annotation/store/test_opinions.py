from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pandas as pd

from annotation.store import Database
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.current_responses import current_responses
from annotation.store.models import GoldAnswer
from m3agiqa import Aspect, MosScale


def table(database: Database, aspect: Aspect | None = None) -> pd.DataFrame:
    with database.reading() as session:
        return current_responses(session, aspect)


def test_each_opinion_with_all_that_is_known_of_it(database: Database, new_item: Callable[..., int]) -> None:
    item = new_item(7, "a cat", "cats", generator="SDXL")
    said = AspectResponse(Aspect.QUALITY, 7.5, MosScale(0, 10), "Blurred.", tags=("b", "a"), comment="left")
    database.transact(
        lambda session: save(session, NewSubmission("t", item, "ann", (said,), None, "assess", True, 9))
    )
    row = table(database).iloc[0].to_dict()
    assert datetime.now(UTC) - row.pop("created_at") < timedelta(minutes=5)
    assert row == {
        "correction_id": row["correction_id"],
        "item_id": item,
        "aspect": "quality",
        "annotator": "ann",
        "score": 7.5,
        "low": 0.0,
        "high": 10.0,
        "description": "Blurred.",
        "agrees": False,
        "blind": True,
        "tags": ("a", "b"),
        "comment": "left",
        "seconds": 9.0,
        "assessment_id": None,
        "place": "assess",
        "image_sha256": f"{7:064x}",
        "prompt": "a cat",
        "generator": "SDXL",
        "source": "cats",
        "gold": False,
    }


def test_what_is_not_known_is_none_and_never_a_number(
    database: Database, new_item: Callable[..., int]
) -> None:
    item = new_item(1, None)
    said = AspectResponse(Aspect.QUALITY, 3, MosScale(1, 5))
    database.transact(lambda session: save(session, NewSubmission("t", item, "ann", (said,))))
    row = table(database).iloc[0]
    assert (row.description, row.comment, row.generator, row.assessment_id) == (None, None, None, None)
    assert (row.prompt, row.tags) == ("", ())


def test_one_aspect_or_all(database: Database, new_item: Callable[..., int]) -> None:
    item, scale = new_item(), MosScale(1, 5)
    both = (AspectResponse(Aspect.QUALITY, 2, scale), AspectResponse(Aspect.AUTHENTICITY, 3, scale))
    database.transact(lambda session: save(session, NewSubmission("t", item, "ann", both)))
    assert list(table(database).aspect) == ["quality", "authenticity"]
    assert list(table(database, Aspect.AUTHENTICITY).score) == [3]


def test_calibration_images_are_told(database: Database, new_item: Callable[..., int]) -> None:
    known, other = new_item(1), new_item(2)
    said = AspectResponse(Aspect.QUALITY, 2, MosScale(1, 5))
    database.transact(lambda session: session.add(GoldAnswer(item_id=known, aspect=Aspect.QUALITY, score=2)))
    for item in (known, other):
        database.transact(
            lambda session, item=item: save(session, NewSubmission(f"t{item}", item, "ann", (said,)))
        )
    assert dict(zip(table(database).item_id, table(database).gold, strict=True)) == {
        known: True,
        other: False,
    }


def test_a_table_without_rows_has_its_columns(database: Database, new_item: Callable[..., int]) -> None:
    empty = table(database)
    item = new_item()
    said = AspectResponse(Aspect.QUALITY, 2, MosScale(1, 5))
    database.transact(lambda session: save(session, NewSubmission("t", item, "ann", (said,))))
    assert len(empty) == 0
    assert dict(empty.dtypes) == dict(table(database).dtypes)
