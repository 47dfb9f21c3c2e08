"""What a predictor is fitted to: cached states of each image beside its MOS and a worse variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from training.data.variants import Variant
from training.stages.describe import EncodedConversation
from training.stages.hidden_cache import HiddenCache
from training.stages.predictor_input import PredictorInput


@dataclass(frozen=True)
class Target:
    """One image of one aspect: its states [L, d] and MOS."""

    sample: Sample
    aspect: Aspect
    states: Tensor
    mos: float
    """NaN where nothing but the order of two images is known."""
    worse: Target | None = None
    """The image damaged, or with a wrong prompt, whose MOS is made up; or an image that people like less."""
    rating: Rating | None = None
    """The word that the backbone has generated."""
    description: str | None = None
    """What the backbone has generated before that."""

    @property
    def weight(self) -> int:
        """How much it counts in the losses: the people behind its MOS, or one where that is not known."""
        return self.sample.raters.get(self.aspect, 1)


def targets(
    variants: Sequence[Variant], cache: HiddenCache, identity: str, aspect: Aspect, scale: MosScale
) -> list[Target]:
    """All cached own variants that have a MOS for the aspect; `identity` is the backbone's in their keys."""
    about = [variant for variant in variants if aspect in variant.aspects and aspect in variant.sample.mos]
    keys = {id(variant): variant.key(aspect, identity) for variant in about}
    states = cache.states(key for key in keys.values() if key in cache)
    worse: dict[str, Target] = {}
    own: list[Target] = []
    # The own variants last, as each takes its worse one along.
    for variant in sorted(about, key=lambda variant: variant.kind == "own"):
        key = keys[id(variant)]
        if key in states:
            entry = cache.entries[key]
            target = Target(
                variant.sample,
                aspect,
                states[key],
                variant.mos(aspect, scale),
                rating=entry.rating,
                description=entry.description,
            )
            if variant.kind == "own":
                own.append(replace(target, worse=worse.get(variant.sample.id)))
            else:
                worse[variant.sample.id] = target
    return own


def preferred_targets(
    variants: Sequence[Variant],
    pairs: Sequence[tuple[str, str]],
    cache: HiddenCache,
    identity: str,
    aspect: Aspect,
) -> list[Target]:
    """The first sample of each pair of ids, with the second as its worse one; as far as both are cached."""
    own = {each.sample.id: each for each in variants if each.kind == "own" and aspect in each.aspects}
    wanted = [pair for pair in pairs if all(name in own for name in pair)]
    keys = {name: own[name].key(aspect, identity) for pair in wanted for name in pair}
    states = cache.states(key for key in set(keys.values()) if key in cache)

    def target(name: str, worse: Target | None = None) -> Target:
        return Target(own[name].sample, aspect, states[keys[name]], math.nan, worse)

    known = [pair for pair in wanted if all(keys[name] in states for name in pair)]
    return [target(better, target(other)) for better, other in known]


def parts(targets: Sequence[Target], wanted: Iterable[str], source: object) -> dict[str, list[Target]]:
    """Targets by their samples' split. Raises InputError naming `source` if a wanted split has none."""
    by_split = {name: [target for target in targets if target.sample.split == name] for name in wanted}
    for name, members in by_split.items():
        if not members:
            raise InputError(f"{source} has no images with scores in its {name} split, which this needs.")
    return by_split


def conversations_to_encode(
    variants: Sequence[Variant], cache: HiddenCache, identity: str, aspect: Aspect, reading: PredictorInput
) -> list[EncodedConversation]:
    """What must be encoded for an input of the predictor, of the own variants that have a MOS.

    `identity` is that of the backbone that generated the descriptions.
    """
    conversations = []
    for variant in variants:
        if variant.kind == "own" and aspect in variant.aspects and aspect in variant.sample.mos:
            needed = [each for each in reading.needs(aspect) if variant.prompt or not each.needs_prompt]
            keys = {each: variant.key(each, identity) for each in needed}
            generated = {each: cache.entries[key] for each, key in keys.items() if key in cache}
            if generated.keys() == keys.keys():
                conversation = reading.conversation(variant, aspect, generated)
                conversations.append(EncodedConversation(variant, conversation))
    return conversations


def targets_of_conversations(
    conversations: Sequence[EncodedConversation], cache: HiddenCache, identity: str
) -> list[Target]:
    """The same for conversations with given turns, as far as they are encoded; without worse variants."""
    keys = [each.key(identity) for each in conversations]
    states = cache.states(key for key in keys if key in cache)
    targets = []
    for each, key in zip(conversations, keys, strict=True):
        if key in states:
            sample, aspect = each.variant.sample, each.conversation.aspect
            targets.append(Target(sample, aspect, states[key], sample.mos[aspect]))
    return targets
