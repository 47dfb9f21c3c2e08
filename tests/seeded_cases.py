"""A store and training runs with known differences between models and people."""

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image
from sqlalchemy.orm import Session

from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, SavedSubmission, latest_revision, save
from annotation.store.items import add_item, model_version, record_assessment
from annotation.store.preferences import save_preference
from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.assessment import AspectResult, Assessment

SCALE = MosScale(1, 5)


def picture(colour: tuple[int, int, int] | str, size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def add(
    store: Store,
    colour: tuple[int, int, int] | str | int = "teal",
    prompt: str | None = "a cat",
    generator: str | None = None,
    source: str = "an import",
) -> int:
    """An item with an image of one colour, of which a number stands for another one each; returns its id."""
    if isinstance(colour, int):
        colour = (colour % 256, colour // 256, 90)
    image = store.images.add(picture(colour), "picture.png")
    return store.database.transact(lambda session: add_item(session, image, prompt, source, generator)[0].id)


def judge(
    store: Store,
    item: int,
    scores: Mapping[Aspect, float],
    model: str = "first 1.0",
    rating: Rating | None = None,
    scale: MosScale = SCALE,
) -> int:
    """What a model says of an item; its rating words are those of its scores unless one is given."""
    results = {
        aspect: AspectResult(aspect, f"{model} on {aspect}", rating or scale.rating(mos), mos, mos, scale)
        for aspect, mos in scores.items()
    }
    card = SimpleNamespace(title=model, digest=model, learned_from="a test")
    assessment = Assessment(None, None, results, model, "a test", 1.0)
    return store.database.transact(lambda session: record_assessment(session, item, assessment, card))


def say(
    store: Store,
    item: int,
    scores: Mapping[Aspect, float],
    annotator: str = "ann",
    scale: MosScale = SCALE,
    assessment_id: int | None = None,
    place: str = "annotate",
    seconds: float = 0.0,
    **options: object,
) -> SavedSubmission:
    """What a person says of an item, in place of what they said before; `options` are AspectResponse's."""

    def work(session: Session) -> SavedSubmission:
        said = tuple(
            AspectResponse(aspect, score, scale, revision=revision + 1, **options)
            for aspect, score in scores.items()
            for revision in [latest_revision(session, item, aspect, annotator)]
        )
        token = uuid.uuid4().hex
        draft = NewSubmission(token, item, annotator, said, assessment_id, place=place, seconds=seconds)
        return save(session, draft)

    return store.database.transact(work)


def pick(store: Store, best: int, scores: Mapping[int, float], annotator: str = "ann") -> None:
    """A person's pick of the best of some items, of which a model has these overall scores."""
    card = SimpleNamespace(title="first 1.0", digest="first 1.0", learned_from="a test")

    def save_pick(session: Session) -> None:
        save_preference(session, uuid.uuid4().hex, annotator, best, scores, model_version(session, card))

    store.database.transact(save_pick)


def crowd(store: Store, items: int, biases: Mapping[str, float]) -> list[int]:
    """Items whose quality everybody scores, each with their bias; nobody errs. Returns the items' ids."""
    ids = [add(store, number) for number in range(items)]
    for item, level in zip(ids, np.linspace(2, 4, items), strict=True):
        for name, bias in biases.items():
            say(store, item, {Aspect.QUALITY: round(float(level + bias), 1)}, name, description="Fine.")
    return ids


def write_run(
    runs: Path, name: str, rows: Sequence[Mapping[str, object]], fingerprint: str = "f" * 64
) -> Path:
    """The report of a training run; returns its table."""
    report = runs / name / "report"
    report.mkdir(parents=True)
    table = report / "predictions.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    facts = {
        "title": f"{name} 1.0",
        "facts": {"data": "drawings", "data fingerprint": fingerprint},
        "scales": {str(aspect): [1.0, 5.0] for aspect in Aspect},
    }
    (report / "metrics.json").write_text(json.dumps(facts))
    return table
