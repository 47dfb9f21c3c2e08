"""Stage describe: the fine-tuned backbone speaks about every case, and is read while it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path

from m3agiqa.aspects import Aspect
from m3agiqa.backbones import BACKBONES, load_backbone
from m3agiqa.backbones.base import Request, Spoken
from m3agiqa.weights import sha256
from training.cases import Case
from training.finetune import STATE
from training.hidden_cache import Entry, HiddenCache
from training.progress import bar

ROWS = 96
"""Conversations spoken at once; more are hardly faster on few cores, and need more memory."""


def backbone_id(name: str, folder: Path) -> str:
    """Identity of a fine-tuned backbone: name, revision, and the content of its connector and adapter."""
    files = sorted(path for path in folder.rglob("*.safetensors") if "predictor" not in path.name)
    trained = [path for path in files if not path.relative_to(folder).parts[0].startswith(STATE)]
    return " ".join([name, str(BACKBONES[name].revision), *(sha256(path) for path in trained)])


def describe(cases: Sequence[Case], backbone: str, folder: Path, cache: HiddenCache) -> None:
    """Speak what the cache does not hold yet, with the backbone fine-tuned in `folder`."""
    identity = backbone_id(backbone, folder)
    missing = [
        case for case in cases if any(case.key(aspect, identity) not in cache for aspect in case.aspects)
    ]
    missing.sort(key=_picture)
    if not missing:
        return
    speaker = load_backbone(backbone, folder)
    with bar(None, "describe", total=len(cases), start=len(cases) - len(missing)) as progress:
        for batch in batches_of(missing):
            rows = [(case, aspect) for case in batch for aspect in case.aspects]
            spoken = []
            for said in speaker.describe(_requests(batch)):
                if isinstance(said, Spoken):
                    case, aspect = rows[said.row]
                    spoken.append((_entry(case, aspect, said, identity), said.hidden))
            cache.add(spoken)
            progress.update(len(batch))


def _requests(batch: list[Case]) -> list[Request]:
    """One request an image: cases about the same image share its visual tokens."""
    requests = []
    for _, group in groupby(batch, key=_picture):
        cases = list(group)
        conversations = chain.from_iterable(case.conversations() for case in cases)
        requests.append(Request(cases[0].image(), tuple(conversations)))
    return requests


def _picture(case: Case) -> tuple[str, str]:
    return case.sample.id, case.damage or ""


def batches_of(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Cases together until they have ROWS conversations."""
    batch: list[Case] = []
    for case in cases:
        batch.append(case)
        if sum(len(each.aspects) for each in batch) >= ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _entry(case: Case, aspect: Aspect, said: Spoken, identity: str) -> Entry:
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
