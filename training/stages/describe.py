"""Stages describe and encode: conversations about images, and the backbone's hidden states over them.

`describe` has the backbone generate descriptions and ratings, and keeps the hidden states of doing so.
`encode` is for conversations whose turns are given: descriptions from elsewhere (a teacher's, a person's, a
server's), and other inputs of the predictor (training.stages.predictor_input).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from m3agiqa.aspects import Aspect, Rating
from m3agiqa.backbones.base import Backbone, Delta, Generation, Request
from m3agiqa.backbones.loading import load_backbone
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError
from m3agiqa.grouping import batched_by_size
from m3agiqa.samples import Sample
from training.data.variants import Variant
from training.parallel import Shard, progress_bar
from training.stages.hidden_cache import Entry, HiddenCache, backbone_id

DESCRIBE_BATCH_SIZE = 96
"""Conversations generated at once; more are hardly faster on few cores, and need more memory."""
ENCODE_BATCH_SIZE = 24
"""Conversations encoded at once; if each has an image of its own, their feature maps take the memory."""


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation with all its turns, about a variant of a sample, whose hidden states are cached."""

    variant: Variant
    conversation: Conversation

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        return (self.conversation.aspect,)

    def key(self, identity: str) -> str:
        """Of its hidden states in the cache; `identity` is that of the backbone that encodes it."""
        return self.variant.given_key(self.conversation, identity)

    def entry(self, identity: str) -> Entry:
        """What the cache holds beside its hidden states."""
        answers = [turn.content for turn in self.conversation.turns if turn.role == "assistant"]
        return _entry(self.variant, self.conversation.aspect, self.key(identity), "\n".join(answers))


Item = TypeVar("Item", Variant, EncodedConversation)


def given(samples: Sequence[Sample]) -> list[EncodedConversation]:
    """The samples' own descriptions, as the first of two rounds."""
    conversations = []
    for sample in samples:
        for aspect, text in sample.descriptions.items():
            if sample.prompt or not aspect.needs_prompt:
                variant = Variant(sample, "own", (aspect,), sample.prompt)
                described = Conversation.open(aspect, sample.prompt).describe(text)
                conversations.append(EncodedConversation(variant, described))
    return conversations


def describe(
    variants: Sequence[Variant], backbone: str, folder: Path, cache: HiddenCache, share: Shard | None = None
) -> None:
    """Generate what the cache does not hold yet, with the backbone fine-tuned in `folder`."""
    images = [list(group) for _, group in groupby(sorted(variants, key=_image_key), key=_image_key)]
    mine = list(chain.from_iterable((share or Shard()).of(images)))

    def is_missing(variant: Variant, identity: str) -> bool:
        return any(variant.key(aspect, identity) not in cache for aspect in variant.aspects)

    def process(model: Backbone, batch: list[Variant], identity: str) -> list[tuple[Entry, Tensor]]:
        rows = [(variant, aspect) for variant in batch for aspect in variant.aspects]
        encoded = []
        for each in _generate(model, batch):
            if isinstance(each, Generation):
                variant, aspect = rows[each.row]
                key = variant.key(aspect, identity)
                entry = _entry(variant, aspect, key, each.description, each.rating)
                encoded.append((entry, each.hidden))
        return encoded

    _process(mine, DESCRIBE_BATCH_SIZE, backbone, folder, cache, "describe", is_missing, process)


def encode(
    conversations: Sequence[EncodedConversation],
    backbone: str,
    folder: Path,
    cache: HiddenCache,
    share: Shard | None = None,
) -> None:
    """Encode what the cache does not hold yet, with the backbone in `folder`."""
    # Images with conversations of like length together, as the shorter ones are padded.
    images = sorted(_by_image(conversations), key=lambda group: max(map(_length, group)))
    mine = list(chain.from_iterable((share or Shard()).of(images)))

    def is_missing(conversation: EncodedConversation, identity: str) -> bool:
        return conversation.key(identity) not in cache

    def process(
        model: Backbone, batch: list[EncodedConversation], identity: str
    ) -> list[tuple[Entry, Tensor]]:
        groups = _by_image(batch)
        requests = [Request(g[0].variant.image(), tuple(each.conversation for each in g)) for g in groups]
        entries = [each.entry(identity) for each in chain.from_iterable(groups)]
        return list(zip(entries, model.encode(requests), strict=True))

    _process(mine, ENCODE_BATCH_SIZE, backbone, folder, cache, "encode", is_missing, process)


def _process(
    items: list[Item],
    batch_size: int,
    backbone: str,
    folder: Path,
    cache: HiddenCache,
    label: str,
    is_missing: Callable[[Item, str], bool],
    process: Callable[[Backbone, list[Item], str], list[tuple[Entry, Tensor]]],
) -> None:
    """Fill the cache batch by batch; nothing is loaded where nothing is missing."""

    def todo(identity: str) -> list[list[Item]]:
        """Whole batches as they would be without an interruption: rounding depends on what is in a batch."""
        batches = batched_by_size(items, batch_size, lambda item: len(item.aspects))
        return [batch for batch in batches if any(is_missing(item, identity) for item in batch)]

    if not todo(backbone_id(backbone, folder)):
        return
    identity = backbone_id(backbone, folder, fetch=True)
    model, left = load_backbone(backbone, folder), todo(identity)
    with progress_bar(None, label, total=len(items), start=len(items) - sum(map(len, left))) as progress:
        for batch in left:
            cache.add(process(model, batch, identity))
            progress.update(len(batch))


def _generate(model: Backbone, batch: list[Variant]) -> Iterator[Delta | Generation]:
    """Raises InputError naming the sample that cannot be described."""
    try:
        yield from model.describe(_requests(batch))
    except InputError as error:
        if len(batch) == 1:
            raise InputError(f"Sample {batch[0].sample.id}: {error}") from error
        for variant in batch:
            next(_generate(model, [variant]))
        raise


def _requests(batch: list[Variant]) -> list[Request]:
    """One request an image: variants with the same image share its visual tokens."""
    requests = []
    for _, group in groupby(batch, key=_image_key):
        variants = list(group)
        conversations = chain.from_iterable(variant.conversations() for variant in variants)
        requests.append(Request(variants[0].image(), tuple(conversations)))
    return requests


def _image_key(variant: Variant) -> tuple[str, str]:
    """The same for variants with the same image."""
    return variant.sample.id, variant.damage or ""


def _by_image(conversations: Iterable[EncodedConversation]) -> list[list[EncodedConversation]]:
    """Those about the same image together, which is encoded once for all of them."""
    groups: dict[tuple[str, str], list[EncodedConversation]] = {}
    for conversation in conversations:
        groups.setdefault(_image_key(conversation.variant), []).append(conversation)
    return list(groups.values())


def _length(conversation: EncodedConversation) -> tuple[int, str]:
    characters = sum(len(turn.content) for turn in conversation.conversation.turns)
    return characters, conversation.variant.sample.id


def _entry(
    variant: Variant, aspect: Aspect, key: str, description: str, rating: Rating | None = None
) -> Entry:
    """Without a rating: of a description that was given, not generated."""
    kind = variant.kind if rating else "told"
    return Entry(key, variant.sample.id, aspect, kind, variant.damage, variant.prompt, description, rating)
