import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, insert, update
from sqlalchemy.orm import Session

from annotation.store import Database, queue
from annotation.store.image_files import StoredImage
from annotation.store.informative import most_representative
from annotation.store.items import add_item, record_assessment
from annotation.store.models import GoldAnswer, Image, Item, Prompt, QueueEntry, now
from annotation.store.queue import Pool, Progress, QueueOrder
from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.assessment import AspectResult, Assessment
from m3agiqa.errors import InputError

NOON = datetime.fromisoformat("2026-01-01T12:00:00+00:00")
LATER = NOON + queue.LEASE_DURATION + timedelta(minutes=1)
"""When whatever was taken at noon is no longer held."""


def new_items(session: Session, count: int, source: str = "import", start: int = 0) -> list[int]:
    """Ids of items that have no image files: the queue does not look at them."""
    images = (
        StoredImage(f"{source} {number}"[:64], "file.png", "name.png", 1, 1, 1)
        for number in range(start, start + count)
    )
    return [add_item(session, image, None, source)[0].id for image in images]


def make_gold(session: Session, item_ids: Iterable[int]) -> None:
    session.add_all(GoldAnswer(item_id=item_id, aspect=Aspect.QUALITY, score=4.0) for item_id in item_ids)


@dataclass
class Queue:
    """The queue's operations as transactions of their own, as a server runs them."""

    database: Database

    def fill(self, count: int, overlap: int = 1, source: str = "import") -> list[int]:
        def work(session: Session) -> list[int]:
            ids = new_items(session, count, source)
            queue.enqueue(session, ids, overlap)
            return ids

        return self.database.transact(work)

    def gold(self, count: int) -> set[int]:
        def work(session: Session) -> set[int]:
            ids = new_items(session, count, "gold")
            make_gold(session, ids)
            return set(ids)

        return self.database.transact(work)

    def enqueue(self, item_ids: Iterable[int], overlap: int) -> int:
        return self.database.transact(lambda session: queue.enqueue(session, item_ids, overlap))

    def take(self, person: str, count: int = 1, **options: object) -> list[int]:
        return self.database.transact(lambda session: queue.take(session, person, count, **options))

    def finish(self, item_id: int, person: str, at: datetime | None = None) -> None:
        self.database.transact(lambda session: queue.finish(session, item_id, person, at))

    def skip(self, item_id: int, person: str, at: datetime | None = None) -> None:
        self.database.transact(lambda session: queue.skip(session, item_id, person, at))

    def reopen(self, item_id: int, person: str, at: datetime | None = None) -> bool:
        return self.database.transact(lambda session: queue.reopen(session, item_id, person, at))

    def release(self, person: str) -> None:
        self.database.transact(lambda session: queue.release(session, person))

    def progress(self, person: str) -> Progress:
        with self.database.reading() as session:
            return queue.progress(session, person)

    def drain(self, person: str, **options: object) -> list[int]:
        """Everything that a person is given until nothing is left for them."""
        given = []
        while items := self.take(person, **options):
            given += items
            self.finish(items[0], person)
        return given


@pytest.fixture
def line(sqlite_database: Database) -> Queue:
    return Queue(sqlite_database)


# --- holding, finishing, skipping --------------------------------------------------------------


def test_the_holder_gets_the_same_items_after_a_restart(sqlite_url: str) -> None:
    before = Queue(Database.open(sqlite_url))
    before.fill(20)
    held = before.take("ada", 3)
    before.database.close()
    after = Queue(Database.open(sqlite_url))
    assert after.take("ada", 3) == held
    assert after.take("ada", 4)[:3] == held
    assert not set(after.take("ben", 16)) & set(held)
    after.database.close()


def test_an_item_is_free_again_when_its_holder_has_vanished(line: Queue) -> None:
    (item,) = line.fill(1)
    assert line.take("ada", at=NOON) == [item]
    assert line.take("ben", at=NOON + queue.LEASE_DURATION - timedelta(seconds=1)) == []
    assert line.take("ben", at=LATER) == [item]
    assert line.take("ada", at=LATER) == []


def test_asking_again_renews_the_hold(line: Queue) -> None:
    (item,) = line.fill(1)
    line.take("ada", at=NOON)
    assert line.take("ada", at=LATER) == [item]
    assert line.take("ben", at=LATER + timedelta(minutes=1)) == []


@pytest.mark.parametrize("again", [False, True])
def test_what_one_holds_is_found_without_reading_the_whole_queue(line: Queue, again: bool) -> None:
    (item,) = line.fill(1)
    line.take("ada")
    line.finish(item, "ada")
    asked: list[tuple[str, object]] = []

    def note(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(line.database.engine, "before_cursor_execute", note)
    if again:
        line.reopen(item, "ada")
    else:
        line.release("ada")
    event.remove(line.database.engine, "before_cursor_execute", note)
    entries = [query for query in asked if "FROM queue_entries" in query[0]]
    assert entries
    with line.database.engine.connect() as connection:
        for statement, parameters in entries:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert not any(step[-1].startswith("SCAN queue_entries") for step in plan), statement


def test_who_returns_late_may_still_save(line: Queue) -> None:
    (item,) = line.fill(1)
    line.take("ada", at=NOON)
    line.take("ben", at=LATER)
    line.finish(item, "ada", at=LATER)
    line.finish(item, "ben", at=LATER)
    assert line.progress("ada") == Progress(mine=1, left=0, done=1, total=1, skipped=0)
    assert line.progress("ben") == Progress(mine=1, left=0, done=1, total=1, skipped=0)
    assert line.take("ada", at=LATER) == line.take("ben", at=LATER) == []


def test_who_has_saved_late_fills_a_slot_that_is_given_up_or_added(line: Queue) -> None:
    (item,) = line.fill(1)
    line.take("ada")
    line.finish(item, "ben")
    assert line.progress("ben") == Progress(mine=1, left=0, done=0, total=1, skipped=0)
    line.skip(item, "ada")
    assert line.progress("ben").done == 1
    line.finish(item, "carl")
    line.enqueue([item], overlap=2)
    assert line.progress("ben") == Progress(mine=1, left=0, done=2, total=2, skipped=0)
    assert line.take("dora") == []


def test_a_skipped_item_is_for_somebody_else(line: Queue) -> None:
    (item,) = line.fill(1)
    line.take("ada")
    line.skip(item, "ada")
    assert line.take("ada") == []
    assert line.take("ben") == [item]
    assert line.progress("ada") == Progress(mine=0, left=0, done=0, total=1, skipped=1)


def test_what_is_done_is_not_skipped_any_more(line: Queue) -> None:
    (item,) = line.fill(1)
    line.finish(item, "ada")
    line.skip(item, "ada")
    assert line.progress("ada") == Progress(mine=1, left=0, done=1, total=1, skipped=0)


@pytest.mark.parametrize("leave", [Queue.finish, Queue.skip])
def test_going_back_gives_the_item_before_later_ones(line: Queue, leave: object) -> None:
    line.fill(3)
    first, second = line.take("ada", 2)
    leave(line, first, "ada")
    assert line.take("ada") == [second]
    assert line.reopen(first, "ada")
    assert line.take("ada", 2) == [first, second]
    assert line.progress("ada") == Progress(mine=0, left=3, done=0, total=3, skipped=0)


def test_going_back_to_what_somebody_else_has_taken_does_not_hold_it(line: Queue) -> None:
    (item,) = line.fill(1)
    line.skip(item, "ada")
    line.take("ben")
    assert not line.reopen(item, "ada")
    assert line.take("ada") == []
    line.finish(item, "ada")
    assert line.progress("ada").mine == 1


def test_nobody_goes_back_to_what_they_never_had(line: Queue) -> None:
    (item,) = line.fill(1)
    assert not line.reopen(item, "ada")
    assert line.take("ben") == [item]


def test_going_back_does_not_get_past_the_limit_of_held_items(line: Queue) -> None:
    items = line.fill(queue.MAX_LEASES + 1)
    for item in items:
        line.skip(item, "ada")
    for item in items[:-1]:
        assert line.reopen(item, "ada")
    assert line.reopen(items[0], "ada"), "is held already"
    with pytest.raises(InputError, match="save or skip one of them"):
        line.reopen(items[-1], "ada")
    line.finish(items[0], "ada")
    assert line.reopen(items[-1], "ada")


def test_released_items_are_for_everybody(line: Queue) -> None:
    items = line.fill(2)
    line.take("ada", 2)
    line.release("ada")
    assert sorted(line.take("ben", 2)) == items


def test_an_image_that_does_not_exist_is_refused(line: Queue) -> None:
    with pytest.raises(InputError, match="no image number 7"):
        line.skip(7, "ada")


# --- filling -----------------------------------------------------------------------------------


def test_overlap_is_raised_and_never_lowered(line: Queue) -> None:
    items = line.fill(2)
    assert line.enqueue(items, overlap=3) == 0
    assert line.enqueue(items, overlap=2) == 0
    assert line.progress("ada").total == 6
    for person in ("ada", "ben", "carl"):
        assert sorted(line.take(person, 2)) == items
    assert line.take("dora") == []


def test_an_item_given_twice_is_queued_once(line: Queue) -> None:
    (item,) = line.database.transact(lambda session: new_items(session, 1))
    assert line.enqueue([item, item], overlap=1) == 1
    assert line.progress("ada").total == 1


@pytest.mark.parametrize("overlap", [0, 101, 10**12])
def test_an_overlap_that_cannot_be_meant_is_refused(line: Queue, overlap: int) -> None:
    with pytest.raises(InputError, match="at least 1 annotator and at most 100"):
        line.enqueue([], overlap=overlap)


def test_what_was_annotated_before_it_was_queued_is_not_asked_for_again(line: Queue) -> None:
    (item,) = line.database.transact(lambda session: new_items(session, 1))
    line.finish(item, "ada")
    line.enqueue([item], overlap=1)
    assert line.take("ada") == line.take("ben") == []
    assert line.progress("ben") == Progress(mine=0, left=0, done=1, total=1, skipped=0)


# --- order -------------------------------------------------------------------------------------


def assess(
    session: Session, item_id: int, mos: float, rating: Rating, version: int = 1, **pooled: tuple[float, ...]
) -> None:
    """`pooled` states of each aspect that is judged, by default of quality, none."""
    card = SimpleNamespace(title=f"scripted {version}.0", digest="0", learned_from="a script")
    results = {
        Aspect(aspect): AspectResult(Aspect(aspect), "A text.", rating, mos, mos, MosScale(0, 100), pooled=of)
        for aspect, of in (pooled or {"quality": ()}).items()
    }
    assessment = Assessment(None, None, results, card.title, card.learned_from, 0.1)
    record_assessment(session, item_id, assessment, card)


def test_the_random_order_is_the_same_for_everybody(line: Queue) -> None:
    items = line.fill(30, overlap=2)
    order = line.drain("ada")
    assert sorted(order) == items
    assert order != items
    assert line.drain("ben") == order


def test_uncertain_ones_come_first(line: Queue) -> None:
    def before(session: Session) -> list[int]:
        items = new_items(session, 4)
        assess(session, items[0], 50, Rating.FAIR)  # agree
        assess(session, items[1], 50, Rating.EXCELLENT)  # 30 points below the word's range
        assess(session, items[2], 61, Rating.FAIR)  # 1 point above it
        queue.enqueue(session, items, 2)
        return items

    agree, differ, near, unknown = line.database.transact(before)
    order = line.drain("ada", order=QueueOrder.UNCERTAIN)
    assert order[:2] == [differ, near]
    assert set(order[2:]) == {agree, unknown}

    line.database.transact(lambda session: assess(session, unknown, 100, Rating.BAD))
    assert line.take("ben", 3, order=QueueOrder.UNCERTAIN) == [unknown, differ, near]


def test_what_stands_for_most_others_comes_first(database: Database) -> None:
    line = Queue(database)

    def before(session: Session) -> list[int]:
        items = new_items(session, 6)
        for item, states in zip(items, [(0, 0), (1, 0), (9, 1), (10, 0), (5, 9)], strict=False):
            assess(session, item, 50, Rating.FAIR, quality=states)
        assess(session, items[1], 50, Rating.FAIR, version=2, quality=(99, 99, 99))
        queue.enqueue(session, items, 2)
        return items

    first, near, far, farthest, aside, unknown = line.database.transact(before)
    line.finish(first, "ada")
    order = line.drain("ben", order=QueueOrder.INFORMATIVE)
    assert order[0] in (far, farthest), "either stands for both"
    assert order[1] == aside
    assert set(order[2:4]) == {near, far, farthest} - {order[0]}
    assert set(order[4:]) == {first, unknown}, "nothing new, or not assessed"
    assert line.take("carl", 2, order=QueueOrder.INFORMATIVE)[0] != unknown


def test_aspects_that_some_items_lack_are_no_reason_to_come_first(line: Queue) -> None:
    def before(session: Session) -> list[int]:
        items = new_items(session, 4)
        assess(session, items[0], 50, Rating.FAIR, quality=(0.0,), correspondence=(0.0,))
        assess(session, items[1], 50, Rating.FAIR, quality=(0.0,))
        for item in items[2:]:
            assess(session, item, 50, Rating.FAIR, quality=(0.0,), correspondence=(5.0,))
        queue.enqueue(session, items, 1)
        return items

    first, without, *others = line.database.transact(before)
    line.finish(first, "ada")
    order = line.drain("ben", order=QueueOrder.INFORMATIVE)
    assert order[0] in others and order[1] == without


@given(
    waiting=arrays(np.float32, (8, 3), elements=st.floats(-1e3, 1e3, width=32)),
    known=arrays(np.float32, (5, 3), elements=st.floats(-1e3, 1e3, width=32)),
)
def test_each_next_one_brings_all_nearest_to_a_known_one(waiting: np.ndarray, known: np.ndarray) -> None:
    together = np.concatenate([waiting, known]).astype(float)
    scaled = (together - together.mean(0)) / (together.std(0) + 1e-6)
    order = most_representative(waiting, known, 8)
    assert sorted(order) == list(range(8))

    def distance(chosen: list[int]) -> float:
        covered = np.concatenate([scaled[8:], scaled[chosen]])
        return sum(((covered - row) ** 2).sum(1).min() for row in scaled[:8])

    for place in range(8):
        others = [distance([*order[:place], number]) for number in order[place:]]
        assert others[0] <= min(others) + 1e-2


def test_the_least_annotated_come_first(line: Queue) -> None:
    first, second, third = line.fill(3, overlap=3)
    for item, people in ((second, ("ada", "ben")), (first, ("ada",))):
        for person in people:
            line.finish(item, person)
    assert line.take("carl", 3, order=QueueOrder.LEAST) == [third, first, second]


def test_pools(line: Queue) -> None:
    imported = line.fill(2, source="my folder")
    demo = line.fill(2, source="demo")
    assert sorted(line.take("ada", 4, pool=Pool.DEMO)) == demo
    assert sorted(line.take("ben", 4, pool=Pool.IMPORTED)) == imported


# --- calibration images ------------------------------------------------------------------------


def test_calibration_images_come_about_as_often_as_wanted_and_once_for_everybody(line: Queue) -> None:
    ordinary = line.fill(60, overlap=2)
    gold = line.gold(20)
    for person in ("ada", "ben"):
        given = line.drain(person, gold_every=5)
        places = [place for place, item in enumerate(given, 1) if item in gold]
        gaps = [after - before for before, after in zip([0, *places], places, strict=False)]
        assert min(gaps) >= 3
        assert max(gaps) <= 7
        assert len(set(gaps)) > 1
        assert 9 <= len(places) <= 20
        assert len(set(given)) == len(given)
        assert set(given) - gold == set(ordinary)


def test_calibration_images_wait_for_everybody_whatever_the_others_do(line: Queue) -> None:
    line.fill(8, overlap=4)
    (gold,) = line.gold(1)
    for person in ("ada", "ben", "carl"):
        assert line.take(person, 2, gold_every=1)[0] == gold
    line.finish(gold, "ada")
    line.skip(gold, "ben")
    assert gold not in line.take("ada", 8, gold_every=1) + line.take("ben", 8, gold_every=1)
    assert line.take("carl", gold_every=1) == [gold]
    assert line.take("dora", gold_every=1) == [gold]
    assert line.reopen(gold, "ada")
    assert line.take("ada")[0] == gold


def test_calibration_images_are_no_part_of_the_ordinary_queue(line: Queue) -> None:
    items = line.fill(3)
    line.database.transact(lambda session: make_gold(session, items[:1]))
    assert line.progress("ada").total == 2
    assert sorted(line.drain("ada", gold_every=0)) == items[1:]
    line.finish(items[0], "ada")
    assert line.progress("ada") == Progress(mine=3, left=0, done=2, total=2, skipped=0)


# --- many people -------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "at_once"), [(1, 2), (2, 2), (5, 10)])
def test_twenty_people_drain_the_queue_together(
    database: Database, overlap: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotation.store.database.MAX_ATTEMPTS", 1)  # nobody deadlocks with anybody
    line = Queue(database)
    items = line.fill(50, overlap)
    together = threading.Barrier(20)

    def person(number: int) -> list[int]:
        name = f"person {number}"
        together.wait(60)
        given: list[int] = []
        while held := line.take(name, at_once):
            for item in held[: max(1, at_once // 2)]:
                given.append(item)
                line.finish(item, name)
        return given

    with ThreadPoolExecutor(20) as pool:
        given = list(pool.map(person, range(20)))
    assert all(len(set(own)) == len(own) for own in given)
    assert Counter(item for own in given for item in own) == dict.fromkeys(items, overlap)
    assert line.progress("person 0").done == overlap * len(items)


def test_a_long_queue_that_is_nearly_done_stays_quick(line: Queue) -> None:
    numbers = range(1, 20_001)

    def nearly_done(session: Session) -> None:
        session.execute(insert(Prompt), [{"id": 1, "sha256": "", "text": ""}])
        image = {"file": "file.png", "name": "name.png", "width": 1, "height": 1, "size": 1}
        session.execute(insert(Image), [{"sha256": str(number), **image} for number in numbers])
        item = {"prompt_id": 1, "source": "import"}
        session.execute(insert(Item), [{"id": n, "image_sha256": str(n), **item} for n in numbers])
        queue.enqueue(session, numbers, 1)
        session.execute(update(QueueEntry).where(QueueEntry.order < 0.99).values(taken=1))

    line.database.transact(nearly_done)
    for order in QueueOrder:
        seconds = []
        for number in range(7):
            start = time.perf_counter()
            (item,) = line.take(f"person {number}", order=order)
            seconds.append(time.perf_counter() - start)
            line.finish(item, f"person {number}")
        assert statistics.median(seconds) < 0.1


# --- anything in any order ---------------------------------------------------------------------

PEOPLE = ("ada", "ben", "carl")
ITEMS = range(5)
GOLD = ITEMS[-1]

people = st.sampled_from(PEOPLE)
places = st.sampled_from(ITEMS)


class AnythingGoes(RuleBasedStateMachine):
    """Several people at work, compared with what each of them would remember."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.session = Session(database.engine)
        self.at = now()
        self.ids: list[int] = []
        self.overlap: dict[int, int] = {}
        self.held: dict[str, dict[int, datetime]] = {person: {} for person in PEOPLE}
        self.done: dict[str, set[int]] = {person: set() for person in PEOPLE}
        self.skipped: dict[str, set[int]] = {person: set() for person in PEOPLE}

    @initialize(overlap=st.integers(1, 2))
    def fill(self, overlap: int) -> None:
        self.ids = new_items(self.session, len(ITEMS))
        make_gold(self.session, [self.ids[GOLD]])
        queue.enqueue(self.session, self.ids, overlap)
        self.overlap = dict.fromkeys(self.ids, overlap)

    def teardown(self) -> None:
        if self.ids:
            for person in PEOPLE:
                queue.release(self.session, person, self.at)
            ordinary = set(self.ids) - {self.ids[GOLD]}
            filled = sum(min(self.overlap[item], self._workers(item, self.done)) for item in ordinary)
            for person in PEOPLE:
                assert queue.progress(self.session, person) == Progress(
                    mine=len(self.done[person]),
                    left=sum(
                        self._workers(item, self.done) < self.overlap[item]
                        for item in ordinary - self.done[person] - self.skipped[person]
                    ),
                    done=filled,
                    total=sum(self.overlap[item] for item in ordinary),
                    skipped=len(self.skipped[person]),
                )
        self.session.close()

    def _workers(self, item: int, work: dict[str, set[int]], but: str | None = None) -> int:
        return sum(item in mine for person, mine in work.items() if person != but)

    def _live(self) -> dict[str, set[int]]:
        return {
            person: {item for item, until in held.items() if until >= self.at}
            for person, held in self.held.items()
        }

    @rule(person=people, count=st.integers(1, 3), order=st.sampled_from(QueueOrder))
    def take(self, person: str, count: int, order: QueueOrder) -> None:
        given = queue.take(self.session, person, count, order, gold_every=2, at=self.at)
        mine, live = self.held[person], self._live()
        assert len(given) == len(set(given)) <= count
        assert not set(given) & (self.done[person] | self.skipped[person])
        assert set(mine) <= set(given) or set(given) <= set(mine)  # what is held goes before anything new
        for item in set(given) - set(mine) - {self.ids[GOLD]}:
            assert self._workers(item, live, person) + self._workers(item, self.done) < self.overlap[item]
        if len(given) < count:  # then there was nothing else
            known = set(mine) | set(given) | self.done[person] | self.skipped[person]
            for item in set(self.ids) - known - {self.ids[GOLD]}:
                assert self._workers(item, live) + self._workers(item, self.done) >= self.overlap[item]
        for other in PEOPLE:
            if other != person:
                self._forget_lapsed(other)
        mine.update(dict.fromkeys([*mine, *given], self.at + queue.LEASE_DURATION))

    def _forget_lapsed(self, person: str, items: Iterable[int] | None = None) -> None:
        gold = self.ids[GOLD]
        for item, until in list(self.held[person].items()):
            if until < self.at and item != gold and (items is None or item in items):
                del self.held[person][item]

    def _leave(self, person: str, item: int) -> None:
        self.held[person].pop(item, None)
        self.done[person].discard(item)
        self.skipped[person].discard(item)
        for other in PEOPLE:
            if other != person:
                self._forget_lapsed(other, [item])

    @rule(person=people, place=places)
    def finish(self, person: str, place: int) -> None:
        item = self.ids[place]
        queue.finish(self.session, item, person, self.at)
        self._leave(person, item)
        self.done[person].add(item)

    @rule(person=people, place=places)
    def skip(self, person: str, place: int) -> None:
        item = self.ids[place]
        queue.skip(self.session, item, person, self.at)
        if item not in self.done[person]:
            self._leave(person, item)
            self.skipped[person].add(item)

    @precondition(lambda self: any(self.done.values()) or any(self.skipped.values()))
    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        left = [(person, item) for person in PEOPLE for item in self.done[person] | self.skipped[person]]
        person, item = data.draw(st.sampled_from(sorted(left)))
        holds = queue.reopen(self.session, item, person, self.at)
        self._leave(person, item)
        if holds:
            self.held[person][item] = self.at + queue.LEASE_DURATION
        else:
            live = self._live()
            taken = self._workers(item, live) + self._workers(item, self.done)
            assert item != self.ids[GOLD]
            assert taken >= self.overlap[item]

    @rule(person=people)
    def release(self, person: str) -> None:
        queue.release(self.session, person, self.at)
        for item in list(self.held[person]):
            self._leave(person, item)

    @rule(place=places)
    def ask_for_one_more(self, place: int) -> None:
        item = self.ids[place]
        self.overlap[item] += 1
        assert queue.enqueue(self.session, [item], self.overlap[item]) == 0

    @rule(minutes=st.sampled_from([10, 40]))
    def wait(self, minutes: int) -> None:
        self.at += timedelta(minutes=minutes)

    @invariant()
    def nobody_holds_an_item_beyond_its_overlap(self) -> None:
        live = self._live()
        for place, item in enumerate(self.ids):
            assert place == GOLD or self._workers(item, live) <= self.overlap[item]


def test_any_sequence_of_work_keeps_the_overlap(database: Database) -> None:
    run_state_machine_as_test(
        lambda: AnythingGoes(database),
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
