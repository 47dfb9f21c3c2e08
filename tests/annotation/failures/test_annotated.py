"""Cases from the annotation database."""

from pathlib import Path

import pytest
from older_database import rewind
from seeded_cases import add, judge, say
from sqlalchemy import select
from sqlalchemy import text as sql

from annotation.failures.catalogue import Catalogue
from annotation.failures.from_annotations import Annotations
from annotation.statistics.overview import overview
from annotation.store import Database, ImageFiles, Store
from annotation.store.corrections import withdraw_submission
from annotation.store.models import AspectAssessment
from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.errors import InputError

QUALITY, AUTHENTICITY = Aspect.QUALITY, Aspect.AUTHENTICITY


def test_cases_are_what_a_model_and_people_have_both_scored(database: Database, tmp_path: Path) -> None:
    store = Store(database, ImageFiles(tmp_path / "images"))
    scored = add(store, "red", "a cat", "dalle")
    alone = add(store, "green")
    for item in (scored, alone):
        judge(store, item, {QUALITY: 4.5, AUTHENTICITY: 2.0}, rating=Rating.FAIR)
    say(store, scored, {QUALITY: 3.0}, "ann", tags=("missed flaw",))
    say(store, scored, {QUALITY: 2.0}, "ben", tags=("blur", "missed flaw"))
    source = Annotations(store)
    [data] = source.data_sets()
    judged = source.judged(data.versions[0].key)
    [case] = judged.cases.to_dict("records")
    assert (case["item"], case["aspect"]) == (str(scored), "quality")
    assert (case["mos"], case["raters"], case["error"]) == (2.5, 2, 2.0)
    assert case["mos_low"] < 2.5 < case["mos_high"]
    assert (case["rating"], case["spoken_rating"], case["words_apart"]) == ("excellent", "fair", 2)
    assert case["tags"] == ("blur", "missed flaw")
    assert (case["prompt"], case["generator"], case["source"]) == ("a cat", "dalle", "an import")
    assert Path(case["image"]).is_file()
    assert judged.waiting == 3


def test_a_database_without_spoken_ratings_keeps_its_words(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    store = Store(database, ImageFiles(tmp_path / "images"))
    item = add(store)
    judge(store, item, {QUALITY: 4.5})
    say(store, item, {QUALITY: 3.0})
    with database.engine.begin() as connection:
        rewind(connection, "0001")
        connection.execute(sql("ALTER TABLE aspect_assessments DROP COLUMN spoken_rating"))
        connection.execute(sql("UPDATE aspect_assessments SET rating = 'fair'"))
    opened = Database.open(database_url)
    [case] = Annotations(Store(opened, store.images)).judged("db:1").cases.to_dict("records")
    assert (case["rating"], case["spoken_rating"], case["words_apart"]) == ("excellent", "fair", 2)
    with opened.reading() as session:
        assert session.scalars(select(AspectAssessment.rating)).all() == [Rating.FAIR]
    opened.close()


def test_the_latest_assessment_and_the_opinions_in_force_count(store: Store) -> None:
    item = add(store)
    judge(store, item, {QUALITY: 1.0})
    judge(store, item, {QUALITY: 4.0})
    judge(store, item, {QUALITY: 2.0}, "second 1.0")
    say(store, item, {QUALITY: 3.0})
    wrong = say(store, item, {QUALITY: 5.0}).submission_id
    catalogue = Catalogue(store, Path("nowhere"))
    [second, first] = [version.key for version in catalogue.data_sets()[0].versions]
    assert catalogue.table(first, second)[["mos", "predicted", "other_predicted"]].to_numpy().tolist() == [
        [5.0, 4.0, 2.0]
    ]
    store.database.transact(lambda session: withdraw_submission(session, wrong, "ann"))
    assert catalogue.table(first)["mos"].tolist() == [3.0], "also where the table had been kept"


def test_scores_of_people_are_brought_to_the_models_scale(store: Store) -> None:
    item = add(store)
    judge(store, item, {QUALITY: 80.0}, scale=MosScale(0, 100))
    say(store, item, {QUALITY: 3.0}, "ann")
    say(store, item, {QUALITY: 70.0}, "ben", scale=MosScale(0, 100))
    [case] = Annotations(store).judged("db:1").cases.to_dict("records")
    assert case["mos"] == pytest.approx(60), "50 and 70"


def test_the_mos_is_that_of_the_data_tab_whatever_a_model_has_judged(store: Store) -> None:
    """Habits show on all images that people have scored, not on those few alone that a model has judged."""
    items = [add(store, (40 * number, 90, 120)) for number in range(6)]
    for number, item in enumerate(items):
        for name, bias in (("ann", 0.6), ("ben", -0.3), ("kim", 0.0)):
            if (number, name) != (0, "ben"):
                say(store, item, {QUALITY: 2 + 0.3 * number + bias}, name)
    judge(store, items[0], {QUALITY: 50.0}, scale=MosScale(0, 100))
    [case] = Annotations(store).judged("db:1").cases.to_dict("records")
    with store.database.reading() as session:
        mean = overview(session).aspects[QUALITY].scaling.opinions[items[0]]
    assert abs(mean.mos - mean.raw_mean) > 0.1, "else this test would tell nothing"
    assert case["mos"] == pytest.approx(25 * (mean.mos - 1))
    assert case["mos_low"] == pytest.approx(25 * (mean.low - 1))
    assert case["raters"] == 2


def test_every_person_is_heard(store: Store) -> None:
    item, other = add(store, "red"), add(store, "green")
    say(store, item, {QUALITY: 3.0, AUTHENTICITY: 1.0}, "eve", description="Soft.", comment="see the hands")
    say(store, item, {QUALITY: 4.0}, "ann", description="Sharp.", agrees=True, tags=("blur",))
    say(store, other, {QUALITY: 5.0}, "ben")
    heard = Annotations(store).opinions(str(item))
    assert [(said.aspect, said.annotator, said.score) for said in heard] == [
        (QUALITY, "ann", 4.0),
        (QUALITY, "eve", 3.0),
        (AUTHENTICITY, "eve", 1.0),
    ]
    assert (heard[0].agrees, heard[0].tags, heard[1].comment) == (True, ("blur",), "see the hands")
    assert Annotations(store).opinions("no number") == []


def test_a_models_text_that_was_left_standing_is_nobodys_words(store: Store) -> None:
    item = add(store, "red")
    shown = judge(store, item, {QUALITY: 4.0})
    for person, text in (("ann", "first 1.0 on quality"), ("ben", "Blurred.")):
        say(store, item, {QUALITY: 2.0}, person, assessment_id=shown, description=text)
    assert [said.description for said in Annotations(store).opinions(str(item))] == [None, "Blurred."]


def test_an_empty_database_has_no_models_and_says_so(store: Store) -> None:
    source = Annotations(store)
    assert source.data_sets()[0].versions == ()
    for key in ("db:1", "db:x", "db:"):
        with pytest.raises(InputError, match="no such model version"):
            source.judged(key)


def test_a_model_whom_nobody_has_answered_has_no_cases(store: Store) -> None:
    judge(store, add(store), {QUALITY: 3.0})
    judged = Annotations(store).judged("db:1")
    assert judged.cases.empty and judged.waiting == 1


def test_versions_of_the_same_title_can_be_told_apart(store: Store) -> None:
    item = add(store)
    judge(store, item, {QUALITY: 3.0}, "nano 1.0")
    judge(store, item, {QUALITY: 3.0}, "nano 2.0")
    titles = [version.title for version in Annotations(store).data_sets()[0].versions]
    assert titles == ["nano 2.0", "nano 1.0"]
