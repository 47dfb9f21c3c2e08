"""Many annotators at once, and writers that are killed: what was acknowledged is there, once."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from sqlalchemy import func, select

from annotation.store import Database
from annotation.store.corrections import AspectResponse, NewSubmission, SavedSubmission, StaleError, save
from annotation.store.current_responses import current_responses
from annotation.store.models import Correction, Submission
from m3agiqa import Aspect, MosScale

ANNOTATORS = 20
ITEMS = 100
SCALE = MosScale(1, 5)

FORK = multiprocessing.get_context("fork")  # torch takes seconds to import anew


def draft(item: int, annotator: str) -> NewSubmission:
    said = tuple(
        AspectResponse(aspect, 1 + item % 5, SCALE, f"{annotator} on {item}", tags=("missed flaw",))
        for aspect in (Aspect.QUALITY, Aspect.AUTHENTICITY)
    )
    return NewSubmission(f"{annotator} {item}", item, annotator, said)


def saved(database: Database, what: NewSubmission) -> SavedSubmission:
    return database.transact(lambda session: save(session, what))


def test_twenty_annotators_save_two_thousand_corrections(
    database: Database, new_item: Callable[..., int]
) -> None:
    items = [new_item(number) for number in range(ITEMS)]

    def annotate(annotator: str) -> list[SavedSubmission]:
        mine = random.Random(annotator).sample(items, ITEMS // 2)
        return [saved(database, draft(item, annotator)) for item in mine]  # two corrections each

    people = [f"annotator {number}" for number in range(ANNOTATORS)]
    with ThreadPoolExecutor(ANNOTATORS) as threads:
        acknowledged = [one for answers in threads.map(annotate, people) for one in answers]

    ids = [number for one in acknowledged for number in one.corrections.values()]
    assert len(ids) == len(set(ids)) == ANNOTATORS * ITEMS == 2000
    with database.reading() as session:
        table = current_responses(session)
    assert sorted(table.correction_id) == sorted(ids)
    for row in table.itertuples():
        assert (row.description, row.score) == (f"{row.annotator} on {row.item_id}", 1 + row.item_id % 5)
        assert row.tags == ("missed flaw",)


def test_tabs_that_save_the_same_item_at_the_same_time(database: Database, item: int) -> None:

    def save_from_tab(number: int) -> bool:
        said = AspectResponse(Aspect.QUALITY, 1 + number % 5, SCALE)
        try:
            saved(database, NewSubmission(f"tab {number}", item, "ann", (said,)))
        except StaleError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        succeeded = list(threads.map(save_from_tab, range(8)))
    assert succeeded.count(True) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Submission)) == 1
        row = current_responses(session).iloc[0]
    assert row.score == 1 + succeeded.index(True) % 5


def test_a_request_that_arrives_several_times_at_once_is_saved_once(
    database: Database, new_item: Callable[..., int]
) -> None:
    what = draft(new_item(), "ann")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: saved(database, what), range(8)))
    assert [answer.again for answer in answers].count(False) == 1
    assert len({answer.submission_id for answer in answers}) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Correction)) == 2


def write_for_ever(url: str, items: list[int], writer: int, acknowledged: Connection) -> None:
    database = Database.open(url)
    for number, item in enumerate(items):
        saved(database, draft(item, f"writer {writer} {number % 7}"))
        acknowledged.send((f"writer {writer} {number % 7}", item))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_writers_that_are_killed_lose_nothing_that_was_acknowledged(
    database_url: str, database: Database, new_item: Callable[..., int], tmp_path: Path
) -> None:
    items = [new_item(number) for number in range(200)]
    database.close()
    acknowledged: set[tuple[str, int]] = set()
    for writer in range(5):
        listening, telling = FORK.Pipe(duplex=False)
        process = FORK.Process(target=write_for_ever, args=(database_url, items, writer, telling))
        process.start()
        telling.close()
        assert listening.poll(60), "a writer that never writes"
        acknowledged.add(listening.recv())
        time.sleep(random.uniform(0, 0.15))
        process.kill()
        process.join(60)
        try:
            while True:
                acknowledged.add(listening.recv())
        except EOFError:
            pass
        with sqlite3.connect(tmp_path / "annotations.db") as plain:
            assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with database.reading() as session:
        table = current_responses(session)
    kept = table.groupby(["annotator", "item_id"]).size()
    assert acknowledged <= set(kept.index)
    assert set(kept) == {2}  # both aspects of a submission, or neither
