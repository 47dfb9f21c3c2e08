from collections.abc import Callable
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import joinedload

from annotation.store import Database, Store
from annotation.store.items import add_item, latest_assessment, record_assessment
from annotation.store.log import log_action
from annotation.store.models import Assessment, AuditEntry, Image, Item, Prompt
from annotation.store.people import annotator_named
from m3agiqa import Aspect, AspectResult, MosScale, Rating
from m3agiqa import Assessment as Assessed
from m3agiqa.errors import InputError

SCALE = MosScale(1, 5)
CARD = SimpleNamespace(title="nano 1.0", digest="f" * 64, learned_from="people")
NEWER = SimpleNamespace(title="nano 1.1", digest="e" * 64, learned_from="more people")


def assessed(mos: float) -> Assessed:
    """Quality and authenticity, as of an image without a prompt."""
    results = {
        aspect: AspectResult(aspect, f"It is {mos}.", Rating.POOR, mos, mos + 1, SCALE, 0.25)
        for aspect in (Aspect.QUALITY, Aspect.AUTHENTICITY)
    }
    return Assessed("a.png", None, results, "nano 1.0", "people", 1.5)


def item(database: Database, item_id: int) -> Item:
    every = (joinedload(Item.image), joinedload(Item.prompt), joinedload(Item.generator))
    with database.reading() as session:
        return session.scalars(select(Item).where(Item.id == item_id).options(*every)).one()


def test_an_item_is_an_image_with_its_prompt(database: Database, new_item: Callable[..., int]) -> None:
    cat = new_item(1, "a cat")
    assert new_item(1, " a  cat\n") == cat  # white space means nothing to a model either
    assert len({cat, new_item(1, "a dog"), new_item(1, None), new_item(2, "a cat")}) == 4
    assert new_item(1, "  ") == new_item(1, None)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Image)) == 2
        assert sorted(session.scalars(select(Prompt.text))) == ["", "a cat", "a dog"]


def test_what_is_known_of_an_item(store: Store, png: Callable[[int], bytes]) -> None:
    stored = store.images.add(png(1), "cat.png")
    added, new = store.database.transact(
        lambda session: add_item(session, stored, "a cat", "cats", "SDXL 1.0")
    )
    assert new
    found = item(store.database, added.id)
    assert (found.image.name, found.image.file, found.image.width) == ("cat.png", stored.file, 64)
    assert (found.prompt.text, found.generator.name, found.source) == ("a cat", "SDXL 1.0", "cats")
    assert not store.database.transact(lambda session: add_item(session, stored, "a cat", "cats"))[1]


def test_an_import_takes_over_what_the_demo_had(database: Database, new_item: Callable[..., int]) -> None:
    cat = new_item(1, source="demo")
    assert new_item(1, source="cats", generator="SDXL") == cat
    assert (item(database, cat).source, item(database, cat).generator.name) == ("cats", "SDXL")
    new_item(1, source="demo", generator="another")
    assert (item(database, cat).source, item(database, cat).generator.name) == ("cats", "SDXL")


def test_texts_that_databases_refuse_are_made_storable(
    database: Database, new_item: Callable[..., int]
) -> None:
    odd = new_item(1, "nul \0 and half \ud800 of a character", source="\0s", generator=" \0 ")
    found = item(database, odd)
    assert found.prompt.text == "nul  and half ? of a character"
    assert (found.source, found.generator) == ("s", None)


def test_texts_that_are_too_long(new_item: Callable[..., int]) -> None:
    with pytest.raises(InputError, match="prompt has 8,001 characters"):
        new_item(1, "x" * 8001)
    with pytest.raises(InputError, match="generator's name has 201"):
        new_item(1, generator="x" * 201)
    with pytest.raises(InputError, match="source has 201"):
        new_item(1, source="x" * 201)


def test_an_assessment_is_kept_with_all_its_aspects(database: Database, new_item: Callable[..., int]) -> None:
    cat = new_item()
    kept = database.transact(
        lambda session: record_assessment(session, cat, assessed(3.5), CARD, annotator="ann")
    )
    with database.reading() as session:
        found = latest_assessment(session, cat)
    assert (found.id, found.seconds, found.model_version.title) == (kept, 1.5, "nano 1.0")
    assert {row.aspect for row in found.aspects} == {Aspect.QUALITY, Aspect.AUTHENTICITY}
    quality = next(row for row in found.aspects if row.aspect is Aspect.QUALITY)
    assert (quality.description, quality.rating, quality.mos) == ("It is 3.5.", Rating.GOOD, 3.5)
    assert quality.spoken_rating is Rating.POOR
    assert (quality.raw_mos, quality.scale, quality.spread) == (4.5, SCALE, 0.25)


def test_the_latest_assessment_is_that_of_any_model(database: Database, new_item: Callable[..., int]) -> None:
    cat, dog = new_item(1), new_item(2)
    record = record_assessment
    first = database.transact(lambda session: record(session, cat, assessed(1), CARD))
    second = database.transact(lambda session: record(session, cat, assessed(2), CARD))
    third = database.transact(lambda session: record(session, cat, assessed(3), NEWER))
    with database.reading() as session:
        assert first < second < third
        assert latest_assessment(session, cat).id == third
        assert latest_assessment(session, dog) is None


def test_an_assessment_of_no_item_is_refused(database: Database) -> None:
    with pytest.raises(InputError, match="no image number 9"):
        database.transact(lambda session: record_assessment(session, 9, assessed(1), CARD))
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Assessment)) == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["", " \0 ", "x" * 201])
def test_names_that_no_annotator_has(database: Database, name: str) -> None:
    with pytest.raises(InputError, match="name"):
        database.transact(lambda session: annotator_named(session, name))


def test_the_audit_trail(database: Database) -> None:
    database.transact(lambda session: log_action(session, "ann", "export", name="cats", counts={"a": 1}))
    database.transact(lambda session: log_action(session, None, "start", text="nul \0"))
    with database.reading() as session:
        entries = list(session.scalars(select(AuditEntry).order_by(AuditEntry.id)))
    assert [(entry.action, entry.details) for entry in entries] == [
        ("export", {"name": "cats", "counts": {"a": 1}}),
        ("start", {"text": "nul \0"}),
    ]
    assert entries[0].annotator_id is not None
    assert entries[1].annotator_id is None
