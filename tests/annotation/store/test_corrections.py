import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, func, select

from annotation.store import Database
from annotation.store.corrections import (
    ERROR_TAGS,
    AspectResponse,
    NewSubmission,
    SavedSubmission,
    StaleError,
    WithdrawnError,
    latest_revision,
    save,
    withdraw,
    withdraw_submission,
)
from annotation.store.current_responses import current_corrections, current_responses
from annotation.store.models import Correction, CorrectionTag, GoldAnswer, Submission, Withdrawal
from m3agiqa import Aspect, MosScale
from m3agiqa.errors import InputError

SCALE = MosScale(1, 5)
QUALITY, AUTHENTICITY = Aspect.QUALITY, Aspect.AUTHENTICITY
tokens = (f"token {number}" for number in count())


def said(score: float = 3.5, aspect: Aspect = QUALITY, **options: object) -> AspectResponse:
    return AspectResponse(aspect, score, SCALE, **options)


def draft(item: int, *all_said: AspectResponse, annotator: str = "ann", **options: object) -> NewSubmission:
    return NewSubmission(options.pop("token", None) or next(tokens), item, annotator, all_said, **options)


def saved(database: Database, *arguments: object, **options: object) -> SavedSubmission:
    what = draft(*arguments, **options)
    return database.transact(lambda session: save(session, what))


def table(database: Database, aspect: Aspect | None = None) -> pd.DataFrame:
    with database.reading() as session:
        every = current_responses(session)
    return every if aspect is None else every[every["aspect"] == aspect].reset_index(drop=True)


def scores(database: Database) -> dict[tuple[int, str, str], float]:
    """The current score of each item, aspect and annotator, as the two ways to ask for it agree."""
    with database.reading() as session:
        rows = {row.id for row in session.scalars(current_corrections())}
    found = table(database)
    assert rows == set(found.correction_id)
    keys = list(zip(found.item_id, found.aspect, found.annotator, strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, found.score, strict=True))


def written(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(Correction))


# --- saving ------------------------------------------------------------------------------------


def test_everything_that_is_said_is_kept(database: Database, item: int) -> None:
    result = saved(
        database,
        item,
        said(2.5, description="  Blurred. ", tags=("missed flaw", "own word"), comment="see left"),
        said(4, AUTHENTICITY, agrees=True, description="Looks real."),
        place="assess",
        blind=True,
        seconds=12.5,
    )
    assert not result.again
    assert set(result.corrections) == {QUALITY, AUTHENTICITY}
    with database.reading() as session:
        quality = session.get(Correction, result.corrections[QUALITY])
        assert (quality.score, quality.scale, quality.description) == (2.5, SCALE, "Blurred.")
        assert {tag.tag for tag in quality.tags} == {"missed flaw", "own word"}
        assert (quality.comment, quality.agrees, quality.revision) == ("see left", False, 1)
        assert session.get(Correction, result.corrections[AUTHENTICITY]).agrees
        submission = session.get(Submission, result.submission_id)
        assert (submission.place, submission.blind, submission.seconds) == ("assess", True, 12.5)
        assert submission.annotator.name == "ann"


def test_a_newer_correction_supersedes_and_undo_restores(database: Database, item: int) -> None:
    key = (item, "quality", "ann")
    saved(database, item, said(2))
    second = saved(database, item, said(3, revision=2))
    assert scores(database) == {key: 3}
    database.transact(lambda session: withdraw(session, second.corrections[QUALITY], "ann"))
    assert scores(database) == {key: 2}
    saved(database, item, said(4, revision=3))
    assert scores(database) == {key: 4}
    assert written(database) == 3


def test_undo_of_all_that_was_saved_in_one_go(database: Database, item: int) -> None:
    saved(database, item, said(2))
    both = saved(database, item, said(3, revision=2), said(5, AUTHENTICITY))
    for _ in range(2):  # twice is the same as once
        database.transact(lambda session: withdraw_submission(session, both.submission_id, "ann"))
        assert scores(database) == {(item, "quality", "ann"): 2}


def test_people_and_items_do_not_get_into_each_others_way(
    database: Database, new_item: Callable[..., int]
) -> None:
    cat, dog = new_item(1), new_item(2)
    saved(database, cat, said(1))
    saved(database, cat, said(2), annotator="bob")
    saved(database, dog, said(3))
    assert scores(database) == {
        (cat, "quality", "ann"): 1,
        (cat, "quality", "bob"): 2,
        (dog, "quality", "ann"): 3,
    }


def test_what_is_sent_twice_is_saved_once(database: Database, item: int) -> None:
    what = draft(item, said(2), said(3, AUTHENTICITY))
    first = database.transact(lambda session: save(session, what))
    again = database.transact(lambda session: save(session, what))
    assert again == replace(first, again=True)
    assert written(database) == 2


def test_what_is_sent_again_after_an_undo_is_not_said_to_be_saved(database: Database, item: int) -> None:
    what = draft(item, said(2), said(3, AUTHENTICITY))
    first = database.transact(lambda session: save(session, what))
    database.transact(lambda session: withdraw(session, first.corrections[QUALITY], "ann"))
    assert database.transact(lambda session: save(session, what)).again, "the rest of it stands"
    database.transact(lambda session: withdraw_submission(session, first.submission_id, "ann"))
    with pytest.raises(WithdrawnError, match="taken it back"):
        database.transact(lambda session: save(session, what))
    assert scores(database) == {}
    saved(database, item, said(2, revision=2))
    assert scores(database) == {(item, "quality", "ann"): 2}


def test_a_token_of_something_else_is_refused(database: Database, new_item: Callable[..., int]) -> None:
    cat, dog = new_item(1), new_item(2)
    saved(database, cat, said(2), token="one")
    for other in (draft(dog, said(3), token="one"), draft(cat, said(3), token="one", annotator="bob")):
        with pytest.raises(InputError, match="token of something else"):
            database.transact(lambda session, other=other: save(session, other))
    assert written(database) == 1


@pytest.mark.parametrize("revision", [0, 1, 3])
def test_who_has_not_seen_the_newest_saves_nothing(database: Database, item: int, revision: int) -> None:
    saved(database, item, said(2))
    with pytest.raises(StaleError, match="quality meanwhile, in another tab"):
        saved(database, item, said(4, AUTHENTICITY), said(3, revision=revision))
    assert scores(database) == {(item, "quality", "ann"): 2}


def test_withdrawn_revisions_count_as_seen(database: Database, item: int) -> None:
    first = saved(database, item, said(2))
    database.transact(lambda session: withdraw_submission(session, first.submission_id, "ann"))
    with database.reading() as session:
        assert latest_revision(session, item, QUALITY, "ann") == 1
        assert latest_revision(session, item, QUALITY, "bob") == 0
        assert latest_revision(session, item, AUTHENTICITY, "ann") == 0
    with pytest.raises(StaleError):
        saved(database, item, said(2))


# --- what cannot be saved ----------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ([], "at least one aspect"),
        ([said(), said()], "aspect was given twice"),
        ([said(math.nan)], "score of quality is nan; give one from 1 to 5"),
        ([said(math.inf)], "give one from 1 to 5"),
        ([said(0.99)], "score of quality is 0.99; give one from 1 to 5"),
        ([said(5.01)], "give one from 1 to 5"),
        ([AspectResponse(QUALITY, 0.0, MosScale(-1e308, 1e308))], r"too large; give one within ±1,000"),
        ([said(), said(0, AUTHENTICITY)], "score of authenticity"),
        ([said(description=" \n\0")], "description of quality is empty"),
        ([said(description="x" * 5001)], "description of quality has 5,001 characters"),
        ([said(comment="x" * 2001)], "comment on quality has 2,001 characters"),
        ([said(tags=("x" * 61,))], "tag has 61 characters"),
        ([said(tags=tuple(map(str, range(21))))], "Quality has 21 tags; give at most 20"),
    ],
)
def test_what_cannot_be_meant_is_refused_as_a_whole(
    database: Database, item: int, what: list[AspectResponse], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        saved(database, item, *what)
    assert written(database) == 0


def test_corrections_of_nothing(database: Database, item: int) -> None:
    with pytest.raises(InputError, match="no image number 99"):
        saved(database, 99, said())
    with pytest.raises(InputError, match=r"assessment .* is of another image"):
        saved(database, item, said(), assessment_id=99)
    with pytest.raises(InputError, match="without its token"):
        saved(database, item, said(), token="x" * 65)


def test_only_ones_own_corrections_can_be_undone(database: Database, item: int) -> None:
    result = saved(database, item, said(2))
    with pytest.raises(InputError, match="somebody else's"):
        database.transact(lambda session: withdraw(session, result.corrections[QUALITY], "bob"))
    with pytest.raises(InputError, match="somebody else's"):
        database.transact(lambda session: withdraw_submission(session, result.submission_id, "bob"))
    with pytest.raises(InputError, match="no correction #99"):
        database.transact(lambda session: withdraw(session, 99, "ann"))
    with pytest.raises(InputError, match="no submission #99"):
        database.transact(lambda session: withdraw_submission(session, 99, "ann"))
    assert scores(database) == {(item, "quality", "ann"): 2}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("seconds", "kept"), [(math.nan, 0.0), (-5.0, 0.0), (math.inf, 0.0), (1e9, 24 * 3600.0)]
)
def test_a_page_whose_clock_is_wrong_loses_nothing_else(
    database: Database, new_item: Callable[..., int], seconds: float, kept: float
) -> None:
    result = saved(database, new_item(), said(2), seconds=seconds)
    with database.reading() as session:
        assert session.get(Submission, result.submission_id).seconds == kept


def test_texts_and_tags_are_made_storable(database: Database, new_item: Callable[..., int]) -> None:
    odd = said(description="nul \0 half \udc80 🙂", tags=(" a ", "a", "", "b\0"), comment=" ")
    saved(database, new_item(), odd)
    row = table(database).iloc[0]
    assert (row.description, row.tags, row.comment) == ("nul  half ? 🙂", ("a", "b"), None)


def test_the_tags_on_offer_can_be_saved(database: Database, new_item: Callable[..., int]) -> None:
    assert set(ERROR_TAGS) == set(Aspect)
    saved(database, new_item(), *(said(aspect=aspect, tags=tags) for aspect, tags in ERROR_TAGS.items()))
    assert {Aspect(row.aspect): set(row.tags) for row in table(database).itertuples()} == {
        aspect: set(tags) for aspect, tags in ERROR_TAGS.items()
    }


# --- the table of current responses ------------------------------------------------------------


def test_each_response_with_all_that_is_known_of_it(database: Database, new_item: Callable[..., int]) -> None:
    item = new_item(7, "a cat", "cats", generator="SDXL")
    response = AspectResponse(QUALITY, 7.5, MosScale(0, 10), "Blurred.", tags=("b", "a"), comment="left")
    saved(database, item, response, place="assess", blind=True, seconds=9)
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
        "original_file": "7.png",
        "prompt": "a cat",
        "generator": "SDXL",
        "source": "cats",
        "gold": False,
    }


def test_what_is_not_known_is_none_and_never_a_number(
    database: Database, new_item: Callable[..., int]
) -> None:
    saved(database, new_item(1, None), said(3))
    row = table(database).iloc[0]
    assert (row.description, row.comment, row.generator, row.assessment_id) == (None, None, None, None)
    assert (row.prompt, row.tags) == ("", ())


def test_one_aspect_or_all(database: Database, item: int) -> None:
    saved(database, item, said(2), said(3, AUTHENTICITY))
    assert list(table(database).aspect) == ["quality", "authenticity"]
    assert list(table(database, AUTHENTICITY).score) == [3]


def test_calibration_images_are_told(database: Database, new_item: Callable[..., int]) -> None:
    known, other = new_item(1), new_item(2)
    database.transact(lambda session: session.add(GoldAnswer(item_id=known, aspect=QUALITY, score=2)))
    for item in (known, other):
        saved(database, item, said(2))
    assert table(database).set_index("item_id").gold.to_dict() == {known: True, other: False}


def test_a_table_without_rows_has_its_columns(database: Database, item: int) -> None:
    empty = table(database)
    saved(database, item, said(2))
    assert len(empty) == 0
    assert dict(empty.dtypes) == dict(table(database).dtypes)


# --- any order of saving and undoing -----------------------------------------------------------


def test_any_order_of_saving_and_undoing(database: Database, new_item: Callable[..., int]) -> None:
    """Against a list of revisions per item, aspect and annotator, as one would keep it by hand."""
    numbers = count(1)
    half_points = st.integers(2, 10).map(lambda points: points / 2)
    aspects = st.sampled_from([QUALITY, AUTHENTICITY])
    people = st.sampled_from(["ann", "bob"])

    class SavingAndUndoing(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.items = [new_item(next(numbers)) for _ in range(2)]
            self.revisions: dict[tuple[int, Aspect, str], list[tuple[int, float]]] = {}
            self.withdrawn: set[int] = set()
            self.submissions: list[tuple[NewSubmission, SavedSubmission]] = []

        def teardown(self) -> None:
            with database.engine.begin() as connection:
                for each in (Withdrawal, CorrectionTag, Correction, Submission):
                    connection.execute(delete(each))

        @rule(item=st.integers(0, 1), person=people, given=st.dictionaries(aspects, half_points, min_size=1))
        def save_something(self, item: int, person: str, given: dict[Aspect, float]) -> None:
            keys = {aspect: (self.items[item], aspect, person) for aspect in given}
            new = [
                said(score, aspect, revision=len(self.revisions.get(keys[aspect], ())) + 1)
                for aspect, score in given.items()
            ]
            what = draft(self.items[item], *new, annotator=person)
            result = database.transact(lambda session: save(session, what))
            assert not result.again
            for aspect, score in given.items():
                revisions = self.revisions.setdefault(keys[aspect], [])
                revisions.append((result.corrections[aspect], score))
            self.submissions.append((what, result))

        @rule(data=st.data())
        def send_again(self, data: st.DataObject) -> None:
            if self.submissions:
                what, result = data.draw(st.sampled_from(self.submissions))
                if self.withdrawn.issuperset(result.corrections.values()):
                    with pytest.raises(WithdrawnError):
                        database.transact(lambda session: save(session, what))
                else:
                    again = database.transact(lambda session: save(session, what))
                    assert again == replace(result, again=True)

        @rule(data=st.data())
        def save_from_an_old_tab(self, data: st.DataObject) -> None:
            if self.revisions:
                (item, aspect, person), revisions = data.draw(st.sampled_from(list(self.revisions.items())))
                stale = said(1, aspect, revision=data.draw(st.integers(1, len(revisions))))
                with pytest.raises(StaleError):
                    saved(database, item, stale, annotator=person)

        @rule(data=st.data(), whole=st.booleans())
        def undo(self, data: st.DataObject, whole: bool) -> None:
            if self.submissions:
                what, result = data.draw(st.sampled_from(self.submissions))
                if whole:
                    database.transact(
                        lambda session: withdraw_submission(session, result.submission_id, what.annotator)
                    )
                    self.withdrawn.update(result.corrections.values())
                else:
                    one = data.draw(st.sampled_from(list(result.corrections.values())))
                    database.transact(lambda session: withdraw(session, one, what.annotator))
                    self.withdrawn.add(one)

        @invariant()
        def in_force_is_the_newest_that_is_not_withdrawn(self) -> None:
            expected = {}
            for (item, aspect, person), revisions in self.revisions.items():
                standing = [score for number, score in revisions if number not in self.withdrawn]
                if standing:
                    expected[item, str(aspect), person] = standing[-1]
            assert scores(database) == expected

    run_state_machine_as_test(
        SavingAndUndoing,
        settings=settings(
            max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
