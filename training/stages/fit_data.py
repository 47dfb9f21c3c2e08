"""What a predictor is fitted to: cached states of each image beside its MOS and a worse case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from training.data.variants import Variant
from training.stages.encode import EncodedConversation
from training.stages.hidden_cache import HiddenCache
from training.stages.predictor_input import Reading


@dataclass(frozen=True)
class Target:
    """One image of one aspect: its states [L, d] and MOS."""

    sample: Sample
    aspect: Aspect
    states: Tensor
    mos: float
    worse: Target | None = None
    """The image damaged, or with a wrong prompt; its MOS is made up."""
    rating: Rating | None = None
    """The word that the backbone has spoken."""
    description: str | None = None
    """What the backbone has said before that."""

    @property
    def weight(self) -> int:
        """How much it counts in the losses: the people behind its MOS, or one where that is not known."""
        return self.sample.raters.get(self.aspect, 1)


def targets(
    cases: Sequence[Variant], cache: HiddenCache, identity: str, aspect: Aspect, scale: MosScale
) -> list[Target]:
    """All cached own cases that have a MOS for the aspect; `identity` is the backbone's in their keys."""
    about = [case for case in cases if aspect in case.aspects and aspect in case.sample.mos]
    keys = {id(case): case.key(aspect, identity) for case in about}
    states = cache.states(key for key in keys.values() if key in cache)
    worse, found = {}, []
    # The own cases last, as each takes its worse one along.
    for case in sorted(about, key=lambda case: case.kind == "own"):
        key = keys[id(case)]
        if key in states:
            said = cache.entries[key]
            target = Target(
                case.sample,
                aspect,
                states[key],
                case.mos(aspect, scale),
                rating=said.rating,
                description=said.description,
            )
            if case.kind == "own":
                found.append(replace(target, worse=worse.get(case.sample.id)))
            else:
                worse[case.sample.id] = target
    return found


def parts(every: Sequence[Target], wanted: Iterable[str], source: object) -> dict[str, list[Target]]:
    """Targets by their samples' split. Raises InputError naming `source` if a wanted split has none."""
    found = {name: [target for target in every if target.sample.split == name] for name in wanted}
    for name, members in found.items():
        if not members:
            raise InputError(f"{source} has no images with scores in its {name} split, which this needs.")
    return found


def tellings(
    cases: Sequence[Variant], cache: HiddenCache, speaker: str, aspect: Aspect, reading: Reading
) -> list[EncodedConversation]:
    """What must be encoded for a reading of the own cases that have a MOS.

    `speaker` is the identity of the backbone that spoke the descriptions.
    """
    found = []
    for case in cases:
        if case.kind == "own" and aspect in case.aspects and aspect in case.sample.mos:
            needed = [each for each in reading.needs(aspect) if case.prompt or not each.needs_prompt]
            keys = {each: case.key(each, speaker) for each in needed}
            spoken = {each: cache.entries[key] for each, key in keys.items() if key in cache}
            if spoken.keys() == keys.keys():
                found.append(EncodedConversation(case, reading.conversation(case, aspect, spoken)))
    return found


def told_targets(tellings: Sequence[EncodedConversation], cache: HiddenCache, reader: str) -> list[Target]:
    """The like for conversations with given turns, as far as they are encoded; without worse cases."""
    keys = [telling.key(reader) for telling in tellings]
    states = cache.states(key for key in keys if key in cache)
    found = []
    for telling, key in zip(tellings, keys, strict=True):
        if key in states:
            sample, aspect = telling.case.sample, telling.conversation.aspect
            found.append(Target(sample, aspect, states[key], sample.mos[aspect]))
    return found
