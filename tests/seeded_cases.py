"""A store and training runs with known differences between models and people."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from PIL import Image

from annotation.store import Store
from annotation.store.corrections import AspectResponse, NewSubmission, save
from annotation.store.items import add_item, record_assessment
from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.assessor import AspectResult, Assessment

SCALE = MosScale(1, 5)


def picture(colour: tuple[int, int, int] | str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG")
    return file.getvalue()


def add(
    store: Store,
    colour: tuple[int, int, int] | str = "teal",
    prompt: str | None = "a cat",
    generator: str | None = None,
) -> int:
    """An item with an image of one colour."""
    image = store.images.add(picture(colour), "picture.png")
    return store.database.transact(
        lambda session: add_item(session, image, prompt, "an import", generator)[0].id
    )


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
    **options: object,
) -> int:
    """What a person says of an item; returns the submission's id."""
    said = tuple(AspectResponse(aspect, score, scale, **options) for aspect, score in scores.items())
    draft = NewSubmission(uuid.uuid4().hex, item, annotator, said)
    return store.database.transact(lambda session: save(session, draft)).submission_id


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
