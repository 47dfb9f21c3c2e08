"""People's descriptions as worked examples in a teacher's request, so that it judges as they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.text import STOP_WORDS, raw_words
from m3agiqa.samples import Sample
from training.data.human_feedback import Annotated


class WorkedExamples:
    """Training samples with what people have written of them; none that is held out."""

    def __init__(self, samples: Sequence[Sample], annotated: Annotated | None, count: int) -> None:
        """`count`: how many go into one request."""
        self.count = count
        described = annotated.described if annotated else {}
        self._samples = [
            replace(sample, descriptions={aspect: sample.descriptions[aspect] for aspect in by_people})
            for sample in samples
            if sample.split == "train" and (by_people := described.get(sample.id))
        ]

    def nearest(self, sample: Sample, wanted: Sequence[Aspect]) -> list[Sample]:
        """Those that describe most of the wanted aspects, then of the same generator, then with the prompt
        that shares most words, then with the nearest MOS."""
        words = _words(sample)

        def distance(other: Sample) -> tuple[int, bool, float, float, str]:
            shared = [aspect for aspect in wanted if aspect in other.descriptions]
            others = _words(other)
            common = len(words & others) / max(1, len(words | others))
            apart = [abs(sample.mos[a] - other.mos[a]) for a in shared if a in sample.mos and a in other.mos]
            return -len(shared), other.generator != sample.generator, -common, sum(apart), other.id

        useful = [
            other
            for other in self._samples
            if other.id != sample.id and any(aspect in other.descriptions for aspect in wanted)
        ]
        return sorted(useful, key=distance)[: self.count]


def _words(sample: Sample) -> set[str]:
    return set(raw_words(sample.prompt or "")) - STOP_WORDS
