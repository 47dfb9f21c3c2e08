"""Stage encode: hidden states of conversations whose descriptions are given (a teacher's, a person's).

What `describe` speaks is read while it is spoken and needs no second pass; this stage is for
descriptions from elsewhere, e.g. to see what the predictor would gain from better ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m3agiqa.backbones import load_backbone
from m3agiqa.backbones.base import Request
from m3agiqa.samples import Sample
from training.cases import Case
from training.describe import backbone_id, batches_of
from training.hidden_cache import Entry, HiddenCache
from training.progress import bar


def given_cases(samples: Sequence[Sample]) -> list[Case]:
    """Samples' own images and prompts, for the aspects that have a description."""
    cases = []
    for sample in samples:
        told = tuple(a for a in sample.descriptions if sample.prompt or not a.needs_prompt)
        if told:
            cases.append(Case(sample, "own", told, sample.prompt))
    return cases


def encode(samples: Sequence[Sample], backbone: str, folder: Path, cache: HiddenCache) -> None:
    """Encode the samples' own descriptions as far as the cache does not hold them yet."""
    identity = backbone_id(backbone, folder)
    cases = given_cases(samples)
    missing = [case for case in cases if any(key not in cache for key in _keys(case, identity))]
    if not missing:
        return
    reader = load_backbone(backbone, folder)
    with bar(None, "encode", total=len(cases), start=len(cases) - len(missing)) as progress:
        for batch in batches_of(missing):
            states = reader.encode([_told(case) for case in batch])
            entries = [entry for case in batch for entry in _entries(case, identity)]
            cache.add(zip(entries, states, strict=True))
            progress.update(len(batch))


def _keys(case: Case, identity: str) -> list[str]:
    return [case.key(aspect, identity, case.sample.descriptions[aspect]) for aspect in case.aspects]


def _told(case: Case) -> Request:
    texts = case.sample.descriptions
    return Request(case.image(), tuple(c.describe(texts[c.aspect]) for c in case.conversations()))


def _entries(case: Case, identity: str) -> list[Entry]:
    texts = case.sample.descriptions
    return [
        Entry(key, case.sample.id, aspect, "given", None, case.prompt, texts[aspect], None)
        for key, aspect in zip(_keys(case, identity), case.aspects, strict=True)
    ]
