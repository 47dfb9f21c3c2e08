"""What may be learned from beside the samples: images with prompts alone, and captioned photographs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from m3agiqa.grouping import fold_prompt
from m3agiqa.samples import Sample
from training.data import load_captions, load_unlabelled


def prompted(extras: Path | None) -> list[Sample]:
    """Images with prompts and without scores that may be learned from."""
    return [] if extras is None else [s for s in load_unlabelled(extras) if s.split == "train" and s.prompt]


def captioned(extras: Path | None, samples: Iterable[Sample]) -> list[tuple[Path, list[str]]]:
    """Photographs with their captions, but those that are among the samples too.

    A caption that is a sample's prompt gives them away: whether they may be learned from is said there.
    """
    if extras is None:
        return []
    said = {fold_prompt(sample.prompt) for sample in samples if sample.prompt}
    return [
        (image, captions)
        for image, captions in load_captions(extras)
        if said.isdisjoint(map(fold_prompt, captions))
    ]
