"""What a predictor is fitted to: cached states of each image beside its MOS and a worse case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from m3agiqa.aspects import Aspect, Rating
from m3agiqa.samples import Sample
from training.cases import Case
from training.hidden_cache import HiddenCache


@dataclass(frozen=True)
class Target:
    """One image of one aspect: its states [L, d] and MOS, and those of a case that must score lower."""

    sample: Sample
    states: Tensor
    mos: float
    worse: Tensor | None = None
    rating: Rating | None = None
    """The word that the backbone has spoken."""


def targets(cases: Sequence[Case], cache: HiddenCache, identity: str, aspect: Aspect) -> list[Target]:
    """All cached own cases that have a MOS for the aspect; `identity` is the backbone's in their keys."""
    about = [case for case in cases if aspect in case.aspects]
    keys = {id(case): case.key(aspect, identity) for case in about}
    states = cache.states(key for key in keys.values() if key in cache)
    worse = {
        case.sample.id: states[keys[id(case)]]
        for case in about
        if case.kind != "own" and keys[id(case)] in states
    }
    found = []
    for case in about:
        mos, own = case.sample.mos.get(aspect), states.get(keys[id(case)])
        if case.kind == "own" and mos is not None and own is not None:
            rating = cache.entries[keys[id(case)]].rating
            found.append(Target(case.sample, own, mos, worse.get(case.sample.id), rating))
    return found
