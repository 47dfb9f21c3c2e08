"""A backbone without a model, and runs on drawings whose brightness is their score.

What it says and holds in mind depends on the image and the conversation alone. The brightness stands in its
hidden states only after something was described, so that readings without a description find nothing.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale
from m3agiqa.backbones.base import Delta, Generation, Request
from m3agiqa.backbones.nano import NanoBackbone
from m3agiqa.conversation import Conversation
from m3agiqa.samples import Sample, write_samples
from training import pipeline
from training.config import RunConfig
from training.data import DataConfig
from training.data.splits import SplitConfig
from training.run import RunFolder
from training.stages.fit import FitConfig

WIDTH = 6
WORDS = 30
QUICK = FitConfig(extractor="none", dim=8, dropout=0.0, input_dropout=0.0, epochs=5, batch=8, lr=2e-2)


class ScriptedBackbone:
    """Takes nano's place in BACKBONE_CLASSES; `asked` has the requests of every call to any instance."""

    name = "nano"
    revision = NanoBackbone.revision
    hidden_size = WIDTH
    vocab_size = WORDS
    asked: ClassVar[list[list[Request]]] = []
    fails_at: ClassVar[int | None] = None
    """The number of the call that raises."""

    @classmethod
    def load(cls, folder: Path, progress: object = None, placement: object = None) -> Self:
        return cls()

    @property
    def head(self) -> Tensor:
        return torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(0))

    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        self._count(requests)
        rows = [(request.image, told) for request in requests for told in request.conversations]
        for row, (image, opened) in enumerate(rows):
            text = f"{opened.aspect}: {brightness(image):.3f}"
            yield Delta(row, text)
            rating = RATING_WORDS[min(4, int(5 * brightness(image)))]
            yield Generation(row, text, rating, states(image, opened.describe(text)))

    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        self._count(requests)
        return [states(request.image, told) for request in requests for told in request.conversations]

    def _count(self, requests: Sequence[Request]) -> None:
        type(self).asked.append(list(requests))
        if len(type(self).asked) == type(self).fails_at:
            raise KeyboardInterrupt


def brightness(image: Image.Image) -> float:
    """0 to 1."""
    return float(np.asarray(image.convert("L")).mean()) / 255


def states(image: Image.Image, told: Conversation) -> Tensor:
    """[L, WIDTH] in 16 bit."""
    text = "".join(turn.content for turn in told.turns)
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode() + image.tobytes()))
    found = torch.randn(4 + len(text) % 3, WIDTH, generator=generator)
    if any(turn.role == "assistant" for turn in told.turns):
        found[:, 0] += 8 * brightness(image)
    return found.half()


def drawings(folder: Path, count: int, scale: MosScale, aspects: Sequence[Aspect]) -> list[Sample]:
    """Grey checkerboards, in samples.jsonl; every fifth has no prompt. Authenticity is the darkness."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        grey = 20 + 210 * ((number * 37) % count) // count
        rows, columns = np.indices((64, 64)) // 8
        board = (grey + 15 * (-1) ** (rows + columns)).astype(np.uint8)
        Image.fromarray(np.stack([board] * 3, axis=-1)).save(folder / f"{number}.png")
        light = scale.from_unit(grey / 255)
        mos = {each: scale.high + scale.low - light if each == "authenticity" else light for each in aspects}
        prompt = f"a grey number {number}" if number % 5 else None
        mos = {each: value for each, value in mos.items() if prompt or not each.needs_prompt}
        found.append(Sample(f"d{number}", folder / f"{number}.png", prompt, mos))
    write_samples(found, folder / "samples.jsonl")
    return found


def begun_run(
    folder: Path,
    count: int = 40,
    scale: tuple[float, float] = (1.0, 5.0),
    aspects: Sequence[Aspect] = (Aspect.QUALITY,),
    **settings: object,
) -> RunFolder:
    """A run whose stage datasets is done, on drawings that are split 2:1:1."""
    drawings(folder / "data", count, MosScale(*scale), aspects)
    split = SplitConfig(by="image", ratios=(2, 1, 1))
    data = DataConfig("samples", folder / "data" / "samples.jsonl", scale=scale, split=split)
    run = RunFolder(folder / "run", RunConfig(data, start=None, **{"fit": QUICK, **settings}))
    run.begin()
    pipeline.datasets(run)
    return run
