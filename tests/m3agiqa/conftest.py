"""An assessor without a model: its backbone says what it is told to, at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from m3agiqa import Aspect, Assessor, MosScale, Rating
from m3agiqa.backbones.base import Delta, Generation, Request
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.checkpoint.card import Card
from m3agiqa.predictor.model import Prediction

WORDS = "It has a calm, even light, and the ball is round."


class ScriptedBackbone:
    """Speaks the same sentence about every image, word by word."""

    name = "scripted"
    hidden_size = 4
    vocab_size = 8

    def __init__(self) -> None:
        self.seen: list[Image.Image] = []

    @property
    def head(self) -> Tensor:
        return torch.zeros(self.vocab_size, self.hidden_size)

    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        self.seen += [request.image for request in requests]
        rows = range(sum(len(request.conversations) for request in requests))
        for word in WORDS.split(" "):
            yield from (Delta(row, word + " ") for row in rows)
        yield from (Generation(row, WORDS, Rating.FAIR, torch.zeros(3, self.hidden_size)) for row in rows)

    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        raise NotImplementedError


class FixedPredictor:
    """Always the same raw MOS."""

    def __init__(self, mos: float) -> None:
        self.mos = mos

    def predict_all(self, conversations: Sequence[Tensor]) -> list[Prediction]:
        return [Prediction(self.mos, torch.zeros(2)) for _ in conversations]


@pytest.fixture
def scripted() -> Assessor:
    """Quality is 3.62 of 1–5, correspondence beyond the scale, authenticity below it."""
    raw = {Aspect.QUALITY: 3.62, Aspect.CORRESPONDENCE: 5.31, Aspect.AUTHENTICITY: 0.2}
    card = Card(
        name="scripted",
        version="1.2",
        backbone="scripted",
        learned_from="nobody",
        fingerprint="0",
        scales=dict.fromkeys(Aspect, MosScale(1, 5)),
        predictors={},
    )
    return Assessor(ScriptedBackbone(), {aspect: FixedPredictor(mos) for aspect, mos in raw.items()}, card)


@pytest.fixture
def calibrated(scripted: Assessor) -> Assessor:
    """The same with intervals of ± 0.5, learned from MOS of 2 to 4; it knows Latin letters alone."""
    calibration = dict.fromkeys(Aspect, Calibration(0.5, 100, (2.0, 4.0), 3827))
    scripted.backbone.knows_words = str.isascii
    return Assessor(scripted.backbone, scripted.predictors, replace(scripted.card, calibration=calibration))


@pytest.fixture
def image_file(tmp_path: Path, picture: Image.Image) -> Path:
    """The picture as a PNG that carries no prompt."""
    path = tmp_path / "ball.png"
    picture.save(path)
    return path
