"""Stage encode: hidden states of conversations whose turns are given.

What `describe` speaks is read while it is spoken and needs no second pass. This stage is for descriptions
from elsewhere (a teacher's, a person's) and for other readings of what was spoken (training.reading).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3agiqa.aspects import Aspect
from m3agiqa.backbones import load_backbone
from m3agiqa.backbones.base import Request
from m3agiqa.conversation import Conversation
from m3agiqa.samples import Sample
from training.cases import Case
from training.describe import backbone_id, batches_of
from training.hidden_cache import Entry, HiddenCache
from training.progress import bar
from training.shares import Share

ROWS = 24
"""Conversations encoded at once, each with an image of its own, whose feature maps take the memory."""


@dataclass(frozen=True)
class Telling:
    """A conversation with all its turns, about a case."""

    case: Case
    conversation: Conversation

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        return (self.conversation.aspect,)

    def key(self, identity: str) -> str:
        return self.case.told_key(self.conversation, identity)


def given(samples: Sequence[Sample]) -> list[Telling]:
    """The samples' own descriptions, as the first of two rounds."""
    tellings = []
    for sample in samples:
        for aspect, text in sample.descriptions.items():
            if sample.prompt or not aspect.needs_prompt:
                told = Conversation.open(aspect, sample.prompt).describe(text)
                tellings.append(Telling(Case(sample, "own", (aspect,), sample.prompt), told))
    return tellings


def encode(
    tellings: Sequence[Telling], backbone: str, folder: Path, cache: HiddenCache, share: Share | None = None
) -> None:
    """Encode what the cache does not hold yet, with the backbone in `folder`."""
    identity = backbone_id(backbone, folder)
    # Conversations of like length together, as the shorter ones are padded.
    mine = (share or Share()).of(sorted(tellings, key=_length))
    batches = batches_of(mine, ROWS)
    todo = [batch for batch in batches if any(each.key(identity) not in cache for each in batch)]
    if not todo:
        return
    reader = load_backbone(backbone, folder)
    with bar(None, "encode", total=len(mine), start=len(mine) - sum(map(len, todo))) as progress:
        for batch in todo:
            states = reader.encode([Request(each.case.image(), (each.conversation,)) for each in batch])
            cache.add(zip((_entry(each, identity) for each in batch), states, strict=True))
            progress.update(len(batch))


def _length(telling: Telling) -> tuple[int, str]:
    return sum(len(turn.content) for turn in telling.conversation.turns), telling.case.sample.id


def _entry(telling: Telling, identity: str) -> Entry:
    case, told = telling.case, telling.conversation
    answers = [turn.content for turn in told.turns if turn.role == "assistant"]
    return Entry(
        key=telling.key(identity),
        sample=case.sample.id,
        aspect=told.aspect,
        kind="told",
        damage=case.damage,
        prompt=case.prompt,
        description="\n".join(answers),
        rating=None,
    )
