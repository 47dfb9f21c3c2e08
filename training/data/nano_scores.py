"""The scores that nano learns from: people's and a multimodal LLM's, brought to one scale.

The scale is that of five levels, as people use it who see images at full size. The maps of the LLM's scores
to it are least squares fits on images that both have scored.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.grouping import fold_prompt
from m3agiqa.samples import Sample
from training.data.checks import LocatedSample
from training.data.nano_teacher import judged_entries, teacher_entries

FIVE_LEVELS = MosScale(1.0, 5.0)


@dataclass(frozen=True)
class LinearMap:
    """slope * score + intercept."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, score: float) -> float:
        return self.slope * score + self.intercept

    def inverse(self, score: float) -> float:
        return (score - self.intercept) / self.slope


LLM_TO_PEOPLE = {
    Aspect.QUALITY: LinearMap(1.06, -0.67),
    Aspect.CORRESPONDENCE: LinearMap(1.07, -0.52),
    Aspect.AUTHENTICITY: LinearMap(0.96, -0.16),
}
"""Scores of an LLM that saw images at their own pixels -> people's, on five levels."""
LLM_TO_AGIQA_3K = {Aspect.QUALITY: LinearMap(0.92, -0.45), Aspect.CORRESPONDENCE: LinearMap(0.77, 0.01)}
"""The same -> the MOS of AGIQA-3k, which are normalised and run from 0 to 5."""
SMALL_VERSION_EXCESS = {Aspect.QUALITY: 0.3, Aspect.CORRESPONDENCE: 0.0, Aspect.AUTHENTICITY: 0.3}
"""By how much the LLM scored small versions of images higher than those at their own pixels."""


def nano_entries(data: Path) -> Iterator[LocatedSample]:
    """`agiqa-3k`, `agi-native` and `agi-teacher` below `data`, on FIVE_LEVELS.

    Half of the prompts that AGIQA-3k has for validation become its test part. Raises InputError naming file
    and line.
    """
    authenticity = {
        each.sample.image.name: each.sample.mos[Aspect.AUTHENTICITY]
        for each in judged_entries(data / "agi-native", "agiqa-3k.jsonl")
        if not each.sample.distorted
    }
    for each in judged_entries(data / "agiqa-3k", score="mos"):
        sample = each.sample
        mos = {aspect: LLM_TO_AGIQA_3K[aspect].inverse(score) for aspect, score in sample.mos.items()}
        if sample.image.name in authenticity:
            mos[Aspect.AUTHENTICITY] = authenticity[sample.image.name]
        split = "test" if sample.split == "validation" and _is_in_half(sample) else sample.split
        yield LocatedSample(each.place, _on_five_levels(replace(sample, mos=mos, split=split)))
    for each in judged_entries(data / "agi-native"):
        yield LocatedSample(each.place, _on_five_levels(each.sample))
    for each in teacher_entries(data):
        mos = {aspect: score - SMALL_VERSION_EXCESS[aspect] for aspect, score in each.sample.mos.items()}
        yield LocatedSample(each.place, _on_five_levels(replace(each.sample, mos=mos)))


def _on_five_levels(sample: Sample) -> Sample:
    mos = {a: FIVE_LEVELS.clamp(LLM_TO_PEOPLE[a](score)) for a, score in sample.mos.items()}
    return replace(sample, mos=mos)


def _is_in_half(sample: Sample) -> bool:
    """By the prompt, so that images of one prompt stay together."""
    return zlib.crc32((fold_prompt(sample.prompt) or sample.id).encode()) % 2 == 0
