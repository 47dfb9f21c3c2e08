"""Stage describe: the fine-tuned backbone speaks about every case, and is read while it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

from m3agiqa.aspects import Aspect
from m3agiqa.backbones import load_backbone
from m3agiqa.backbones.base import Backbone, Delta, Generation, Request
from m3agiqa.errors import InputError
from training.data.variants import Variant
from training.parallel import Shard, progress_bar
from training.stages.hidden_cache import Entry, HiddenCache
from training.stages.identity import backbone_id

T = TypeVar("T")

ROWS = 96
"""Conversations spoken at once; more are hardly faster on few cores, and need more memory."""


def describe(
    cases: Sequence[Variant], backbone: str, folder: Path, cache: HiddenCache, share: Shard | None = None
) -> None:
    """Speak what the cache does not hold yet, with the backbone fine-tuned in `folder`."""
    pictures = [list(group) for _, group in groupby(sorted(cases, key=picture), key=picture)]
    mine = list(chain.from_iterable((share or Shard()).of(pictures)))

    def todo(identity: str) -> list[list[Variant]]:
        """Whole batches as they would be without an interruption: rounding depends on what is in a batch."""

        def is_missing(case: Variant) -> bool:
            return any(case.key(aspect, identity) not in cache for aspect in case.aspects)

        return [batch for batch in batches_of(mine, ROWS) if any(map(is_missing, batch))]

    if not todo(backbone_id(backbone, folder)):
        return
    identity = backbone_id(backbone, folder, fetch=True)
    speaker, left = load_backbone(backbone, folder), todo(identity)
    with progress_bar(None, "describe", total=len(mine), start=len(mine) - sum(map(len, left))) as progress:
        for batch in left:
            rows = [(case, aspect) for case in batch for aspect in case.aspects]
            spoken = []
            for said in _speak(speaker, batch):
                if isinstance(said, Generation):
                    case, aspect = rows[said.row]
                    spoken.append((_entry(case, aspect, said, identity), said.hidden))
            cache.add(spoken)
            progress.update(len(batch))


def _speak(speaker: Backbone, batch: list[Variant]) -> Iterator[Delta | Generation]:
    """Raises InputError naming the sample that cannot be spoken about."""
    try:
        yield from speaker.describe(_requests(batch))
    except InputError as error:
        if len(batch) == 1:
            raise InputError(f"Sample {batch[0].sample.id}: {error}") from error
        for case in batch:
            next(_speak(speaker, [case]))
        raise


def _requests(batch: list[Variant]) -> list[Request]:
    """One request an image: cases about the same image share its visual tokens."""
    requests = []
    for _, group in groupby(batch, key=picture):
        cases = list(group)
        conversations = chain.from_iterable(case.conversations() for case in cases)
        requests.append(Request(cases[0].image(), tuple(conversations)))
    return requests


def picture(case: Variant) -> tuple[str, str]:
    """The same for cases about the same image."""
    return case.sample.id, case.damage or ""


def batches_of(items: Sequence[T], rows: int) -> Iterator[list[T]]:
    """Cases or tellings together until they have so many conversations."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if sum(len(each.aspects) for each in batch) >= rows:
            yield batch
            batch = []
    if batch:
        yield batch


def _entry(case: Variant, aspect: Aspect, said: Generation, identity: str) -> Entry:
    return Entry(
        key=case.key(aspect, identity),
        sample=case.sample.id,
        aspect=aspect,
        kind=case.kind,
        damage=case.damage,
        prompt=case.prompt,
        description=said.description,
        rating=said.rating,
    )
