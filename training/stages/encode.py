"""Stage encode: hidden states of conversations whose turns are given.

What `describe` speaks is read while it is spoken and needs no second pass. This stage is for descriptions
from elsewhere (a teacher's, a person's, a server's) and for other readings of what was spoken
(training.stages.predictor_input).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from m3agiqa.aspects import Aspect
from m3agiqa.backbones import load_backbone
from m3agiqa.backbones.base import Request
from m3agiqa.conversation import Conversation
from m3agiqa.samples import Sample
from training.data.variants import Variant
from training.parallel import Shard, progress_bar
from training.stages.describe import batches_of, picture
from training.stages.hidden_cache import Entry, HiddenCache
from training.stages.identity import backbone_id

ROWS = 24
"""Conversations encoded at once; if each has an image of its own, their feature maps take the memory."""


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation with all its turns, about a case."""

    case: Variant
    conversation: Conversation

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        return (self.conversation.aspect,)

    def key(self, identity: str) -> str:
        """Of its hidden states in the cache; `identity` is that of the backbone that reads them."""
        return self.case.told_key(self.conversation, identity)

    def entry(self, identity: str) -> Entry:
        """What the cache holds beside its hidden states."""
        case, told = self.case, self.conversation
        answers = [turn.content for turn in told.turns if turn.role == "assistant"]
        return Entry(
            key=self.key(identity),
            sample=case.sample.id,
            aspect=told.aspect,
            kind="told",
            damage=case.damage,
            prompt=case.prompt,
            description="\n".join(answers),
            rating=None,
        )


def given(samples: Sequence[Sample]) -> list[EncodedConversation]:
    """The samples' own descriptions, as the first of two rounds."""
    tellings = []
    for sample in samples:
        for aspect, text in sample.descriptions.items():
            if sample.prompt or not aspect.needs_prompt:
                told = Conversation.open(aspect, sample.prompt).describe(text)
                tellings.append(EncodedConversation(Variant(sample, "own", (aspect,), sample.prompt), told))
    return tellings


def encode(
    tellings: Sequence[EncodedConversation],
    backbone: str,
    folder: Path,
    cache: HiddenCache,
    share: Shard | None = None,
) -> None:
    """Encode what the cache does not hold yet, with the backbone in `folder`."""
    # Images with conversations of like length together, as the shorter ones are padded.
    images = sorted(_by_image(tellings), key=lambda group: max(map(_length, group)))
    mine = list(chain.from_iterable((share or Shard()).of(images)))

    def todo(identity: str) -> list[list[EncodedConversation]]:
        batches = batches_of(mine, ROWS)
        return [batch for batch in batches if any(each.key(identity) not in cache for each in batch)]

    if not todo(backbone_id(backbone, folder)):
        return
    identity = backbone_id(backbone, folder, fetch=True)
    reader, left = load_backbone(backbone, folder), todo(identity)
    with progress_bar(None, "encode", total=len(mine), start=len(mine) - sum(map(len, left))) as progress:
        for batch in left:
            groups = _by_image(batch)
            requests = [Request(g[0].case.image(), tuple(each.conversation for each in g)) for g in groups]
            states = reader.encode(requests)
            told = chain.from_iterable(groups)
            cache.add(zip((each.entry(identity) for each in told), states, strict=True))
            progress.update(len(batch))


def _by_image(tellings: Iterable[EncodedConversation]) -> list[list[EncodedConversation]]:
    """Those about the same image together, which is seen once for all of them."""
    groups: dict[object, list[EncodedConversation]] = {}
    for telling in tellings:
        groups.setdefault(picture(telling.case), []).append(telling)
    return list(groups.values())


def _length(telling: EncodedConversation) -> tuple[int, str]:
    return sum(len(turn.content) for turn in telling.conversation.turns), telling.case.sample.id
