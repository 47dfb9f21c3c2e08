"""Whoever has read a MOS, others' answers or the model's, on whatever tab, does not score blind."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from seeded_cases import add, judge, picture, say, write_run

from annotation.failures.filters import View
from annotation.settings import Settings
from annotation.store import Store
from annotation.store.current_responses import current_responses
from annotation.ui.access import LOCAL_USER, Access, Person, Role
from annotation.ui.annotate.api import Annotating
from annotation.ui.annotate.prefetch import Prefetch
from annotation.ui.assess.tab import AssessHandlers
from annotation.ui.context import Studio
from annotation.ui.data.tab import DataHandlers
from annotation.ui.failures.tab import FailuresHandlers
from annotation.ui.model_service import ModelLoader
from m3agiqa.aspects import Aspect

REQUEST = SimpleNamespace(query_params={}, username=None, session_hash="visit")
LOCAL = Person(LOCAL_USER, Role.ADMIN)


@pytest.fixture
def studio(store: Store, loader: ModelLoader, tmp_path: Path) -> Studio:
    """Two people have scored item 1, and a model has; item 2 is of a training run's report as well."""
    for number, colour in ((1, "red"), (2, "green")):
        item = add(store, colour, "a square")
        assert item == number
        judge(store, item, dict.fromkeys(Aspect, 3.0))
    for person, score in (("ann", 2.0), ("ben", 4.0)):
        say(store, 1, {Aspect.QUALITY: score}, person)
    (tmp_path / "green.png").write_bytes(picture("green"))
    row = {"sample": "s1", "image": tmp_path / "green.png", "prompt": "a square", "aspect": "quality"}
    write_run(tmp_path / "runs", "one", [{**row, "mos": 3, "predicted": 2}])
    return Studio(Settings(data=tmp_path, runs=tmp_path / "runs", keep=False), store, Access(), loader)


def failures(studio: Studio, event: str, *first: object, **changes: object) -> None:
    view = View(**{"data": "db", "model": "db:1", **changes})
    values = [getattr(view, field.name) for field in fields(View)]
    getattr(FailuresHandlers(studio, Prefetch(studio)), event)(REQUEST, *first, *values)


def assess(studio: Studio) -> None:
    """Until the first words are there; then the page is closed."""

    async def look() -> None:
        image = {"path": str(studio.settings.data / "green.png"), "orig_name": "green.png"}
        run = AssessHandlers(studio).assess(image, "a square", REQUEST)
        async for outputs in run:
            if "one two" in str(outputs):
                break
        await run.aclose()

    with ThreadPoolExecutor(1) as pool:  # other tests may have left an event loop in this thread
        pool.submit(asyncio.run, look()).result()


READERS: dict[str, tuple[int, Callable[[Studio], object]]] = {
    "failure cases": (1, lambda studio: failures(studio, "show")),
    "an open case": (1, lambda studio: failures(studio, "choose", SimpleNamespace(case="1|quality"))),
    "its CSV": (1, lambda studio: failures(studio, "export", "")),
    "a training run": (
        2,
        lambda studio: failures(
            studio, "show", data="run:ffffffffffff", model="run:one/report/predictions.csv"
        ),
    ),
    "the least certain images": (1, lambda studio: DataHandlers(studio).show(REQUEST)),
    "all mean opinions": (1, lambda studio: DataHandlers(studio).take_answers(REQUEST)),
    "an assessment that is not kept": (2, assess),
}


@pytest.mark.parametrize("reader", READERS)
def test_who_has_read_answers_on_any_tab_is_not_blind(studio: Studio, reader: str) -> None:
    read, look = READERS[reader]
    look(studio)
    annotating = Annotating(studio)
    for item in (1, 2):
        annotating.save(LOCAL, item, [{"aspect": "quality", "score": 2}], f"{item}", blind=True)
    with studio.store.database.reading() as session:
        responses = current_responses(session)
    blind = responses[responses.annotator == LOCAL_USER].set_index("item_id").blind
    assert blind.to_dict() == {read: False, 3 - read: True}
