import math
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from seeded_cases import add, crowd, say
from sqlalchemy.orm import Session

from annotation.statistics.overview import AnnotatorSummary, Overview, differences, overview, pace, version
from annotation.store import Store
from annotation.store.corrections import withdraw
from annotation.store.models import GoldAnswer
from m3agiqa.aspects import Aspect, MosScale

QUALITY, AUTHENTICITY = Aspect.QUALITY, Aspect.AUTHENTICITY


def seen(store: Store) -> Overview:
    with store.database.reading() as session:
        return overview(session)


def changes(store: Store) -> tuple[int, ...]:
    with store.database.reading() as session:
        return version(session)


def person(found: Overview, name: str) -> AnnotatorSummary:
    return next(each for each in found.annotators if each.name == name)


def test_an_empty_database_is_all_zeros(store: Store) -> None:
    found = seen(store)
    assert (found.images, found.items, found.assessments, found.corrections) == (0, 0, 0, 0)
    assert found.annotators == []
    assert all(math.isnan(each.confirmed) and not each.scaling.opinions for each in found.aspects.values())


def test_counts(store: Store) -> None:
    one, two = add(store, 1), add(store, 2)
    add(store, 1, prompt="another prompt")
    say(store, one, {QUALITY: 2.0, AUTHENTICITY: 3.0}, "ann")
    say(store, one, {QUALITY: 2.5}, "ann")
    say(store, two, {QUALITY: 4.0}, "bob", agrees=True)
    undone = say(store, two, {AUTHENTICITY: 4.0}, "bob")
    correction = undone.corrections[AUTHENTICITY]
    store.database.transact(lambda session: withdraw(session, correction, "bob"))
    found = seen(store)
    assert (found.images, found.items) == (2, 3)
    assert (found.corrections, found.superseded, found.undone) == (3, 1, 1)
    assert (found.aspects[QUALITY].corrections, found.aspects[QUALITY].confirmed) == (2, 0.5)
    assert found.aspects[QUALITY].scaling.opinions[one].mos == 2.5
    assert [(each.name, each.corrections, each.images) for each in found.annotators] == [
        ("ann", 2, 1),
        ("bob", 1, 1),
    ]


def test_biases_of_a_crowd(store: Store) -> None:
    crowd(store, 20, {"mild": 0.6, "fair": 0.0, "strict": -0.6})
    found = seen(store)
    assert person(found, "mild").difference == pytest.approx(0.9)
    assert person(found, "mild").subjects[QUALITY].bias == pytest.approx(0.6, abs=0.01)
    assert person(found, "strict").subjects[QUALITY].bias == pytest.approx(-0.6, abs=0.01)
    assert found.aspects[QUALITY].agreement.pairwise.value == pytest.approx(1)
    assert AUTHENTICITY not in person(found, "mild").subjects


def test_scores_on_a_models_other_scale_count_as_from_1_to_5(store: Store) -> None:
    item = add(store, 1)
    say(store, item, {QUALITY: 75.0}, "ann", scale=MosScale(0, 100))
    say(store, item, {QUALITY: 4.0}, "bob")
    found = seen(store)
    assert found.aspects[QUALITY].scaling.opinions[item].mos == 4
    assert person(found, "ann").difference == 0


def test_calibration_images(store: Store) -> None:
    items = [add(store, number) for number in range(3)]

    def know(session: Session) -> None:
        session.add(GoldAnswer(item_id=items[0], aspect=QUALITY, score=4.0, tolerance=0.5))
        session.add(GoldAnswer(item_id=items[0], aspect=AUTHENTICITY, score=1.0, tolerance=0.5))
        session.add(GoldAnswer(item_id=items[1], aspect=QUALITY, score=2.0, tolerance=1.0))

    store.database.transact(know)
    say(store, items[0], {QUALITY: 3.5, AUTHENTICITY: 1.6}, "ann")
    say(store, items[1], {QUALITY: 3.0}, "ann")
    say(store, items[2], {QUALITY: 3.0}, "ann")
    ann = person(seen(store), "ann")
    assert (ann.gold_right, ann.gold_asked, ann.corrections) == (2, 3, 4)


def test_time_per_image_is_the_median_of_what_was_done_here(store: Store) -> None:
    items = [add(store, number) for number in range(4)]
    for item, seconds in zip(items, (10.0, 20.0, 90.0), strict=False):
        say(store, item, {QUALITY: 3.0, AUTHENTICITY: 3.0}, "ann", seconds=seconds)
    say(store, items[3], {QUALITY: 3.0}, "ann", seconds=1.0, place="import")
    say(store, items[3], {QUALITY: 3.0}, "bob", place="import")
    found = seen(store)
    assert person(found, "ann").median_seconds == 20
    assert math.isnan(person(found, "bob").median_seconds) and math.isnan(person(found, "bob").per_hour)
    assert person(found, "ann").last_active.tzinfo is not None


def test_pace_leaves_breaks_out() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    minutes = [0, 1, 2, 3, 60, 61]  # five gaps, of which one is a break
    own = pd.DataFrame(
        {
            "item_id": [item for item in range(6) for _ in range(2)],
            "created_at": [start + timedelta(minutes=at) for at in minutes for _ in range(2)],
            "place": "annotate",
        }
    )
    assert pace(own) == pytest.approx(60)
    assert math.isnan(pace(own[:2]))


def test_differences_by_hand() -> None:
    said = pd.DataFrame(
        {
            "item_id": [1, 1, 1, 2, 1],
            "aspect": ["quality", "quality", "quality", "quality", "authenticity"],
            "score": [1.0, 2.0, 6.0, 3.0, 3.0],
        }
    )
    found = differences(said)
    assert found[:3].tolist() == [-3.0, -1.5, 4.5]
    assert found[3:].isna().all()


def test_version_follows_every_change(store: Store) -> None:
    known = [changes(store)]
    item = add(store, 1)
    known.append(changes(store))
    saved = say(store, item, {QUALITY: 2.0}, "ann")
    known.append(changes(store))
    store.database.transact(lambda session: withdraw(session, saved.corrections[QUALITY], "ann"))
    known.append(changes(store))
    assert len(set(known)) == 4
    assert changes(store) == known[-1]
