"""Models that others have published in parts, by name, put together as checkpoints.

A model's folder is made once, below `m3agiqa.download.pypi.home()`: the predictors, fused with the base's
output head, and a note of the base and of the adapters, which stay in the Hub's cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.minicpm.base_weights import (
    BASE_MODEL,
    CheckpointBase,
    PublishedAdapter,
    base_folder,
    base_version,
)
from m3agiqa.backbones.minicpm.head import head_blocks
from m3agiqa.backbones.minicpm.loading import check_room, check_transformers
from m3agiqa.backbones.minicpm.memory import Work
from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.checkpoint.card import Card, write_card
from m3agiqa.checkpoint.predictor_weights import save_predictor
from m3agiqa.checkpoint.revisions import Revision, check_revision, revision_of
from m3agiqa.download.hub import commit, snapshot, version_of
from m3agiqa.download.pypi import Progress, home
from m3agiqa.errors import WeightsError, reason
from m3agiqa.files import is_intact, sealed_folder
from m3agiqa.json_lines import write_json
from m3agiqa.predictor.lightning_import import CONTEXT_LENGTH, read_predictor
from m3agiqa.predictor.model import Predictor

SOURCES_FILE = "sources.json"
"""What a model was put together from: all repositories, each with its commit or the hash of a folder."""
FOLDER_FORMAT = 1
"""Of the folder; raised when the same parts would be put together differently."""


@dataclass(frozen=True)
class PublishedAspect:
    """One aspect: an adapter of MiniCPM-Llama3-V 2.5 and a predictor that reads logits."""

    adapter: str
    """Repository."""
    predictor: str
    """File in the model's repository of predictors."""
    dataset: str
    """Where the images and people's scores are from."""
    scale: MosScale
    context_length: int = CONTEXT_LENGTH
    """What conversations were cut to, where the predictor's file does not say."""
    max_slice_nums: int | None = None
    """Slices of an image in its training, at most; None: the base's."""


@dataclass(frozen=True)
class PublishedModel:
    """Aspects that share a base."""

    name: str
    version: str
    predictors: str
    """Repository."""
    by: str
    aspects: Mapping[Aspect, PublishedAspect]

    @property
    def repositories(self) -> list[str]:
        """All that it comes from; the base is the largest by far, and last."""
        return [self.predictors, *(aspect.adapter for aspect in self.aspects.values()), BASE_MODEL]

    @property
    def learned_from(self) -> str:
        datasets = ", ".join(f"{each.dataset} ({aspect})" for aspect, each in self.aspects.items())
        return f"people's scores of AI-generated images: {datasets}; trained and published by {self.by}"


# The authors' program limits all three scores to [0, 5]. The examples that they published (quality 2.20 to
# 4.47, authenticity 2.52) and their rating words are on that scale, too. As AIGCIQA2023 itself has [0, 100],
# its scores must have been divided by 20. Lengths and slices are those of their settings for each data set.
_AUTHORS_SCALE = MosScale(0.0, 5.0)
M3_AGIQA = PublishedModel(
    name="m3-agiqa",
    version="1.0",
    predictors="strawhat/m3-agiqa-predictor-checkpoints",
    by="the authors of M3-AGIQA",
    aspects={
        Aspect.QUALITY: PublishedAspect(
            "strawhat/minicpm2.5-AIGIQA-20k-ft",
            "aigciqa-30k/quality/best-epoch=11-val_SRCC=0.89.ckpt",
            "AIGCIQA-20k",
            _AUTHORS_SCALE,
            context_length=768,
            max_slice_nums=4,
        ),
        Aspect.CORRESPONDENCE: PublishedAspect(
            "strawhat/minicpm2.5-agiqa-3k-corr-ft",
            "agiqa-3k/alignment/best-epoch=14-val_SRCC=0.87.ckpt",
            "AGIQA-3k",
            _AUTHORS_SCALE,
        ),
        Aspect.AUTHENTICITY: PublishedAspect(
            "strawhat/minicpm2.5-aigciqa2023-auth-ft",
            "aigciqa2023/authenticity/best-epoch=15-val_SRCC=0.83.ckpt",
            "AIGCIQA2023",
            _AUTHORS_SCALE,
        ),
    },
)


def _alone(model: PublishedModel, aspect: Aspect) -> PublishedModel:
    return PublishedModel(
        f"{model.name}-{aspect}", model.version, model.predictors, model.by, {aspect: model.aspects[aspect]}
    )


PUBLISHED_MODELS = {
    model.name: model for model in (M3_AGIQA, *(_alone(M3_AGIQA, aspect) for aspect in M3_AGIQA.aspects))
}
"""By name; each model with all of its aspects, and each aspect by itself, without the others' adapters."""


def assembled(
    model: PublishedModel,
    progress: Progress | None = None,
    revision: Revision | None = None,
    placement: Placement = AS_PUBLISHED,
) -> Path:
    """The folder of a published model as a checkpoint; what is not here yet is downloaded.

    Raises WeightsError for what is missing or does not fit, also into the memory of a placement, and
    InputError for a revision that is not for it.
    """
    check_transformers()
    check_revision(revision, model.name, model.repositories)
    versions = {name: _version(name, revision_of(name, revision)) for name in model.repositories}
    facts = {"format": FOLDER_FORMAT, "model": asdict(model), "repositories": versions}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    target = home() / "published" / f"{model.name}-{key}"
    if is_intact(target):
        return target
    check_room(commit(versions[BASE_MODEL]), placement, Work(adapters=len(model.aspects)))
    predictors = dict(_predictors(model, versions, progress or (lambda message, done: None)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with sealed_folder(target) as folder:
            for aspect, predictor in predictors.items():
                save_predictor(predictor, folder, aspect, torch.float32)
            adapters = {
                aspect: PublishedAdapter(each.adapter, versions[each.adapter], each.max_slice_nums)
                for aspect, each in model.aspects.items()
            }
            CheckpointBase(version=versions[BASE_MODEL], adapters=adapters).write(folder)
            write_json(folder / SOURCES_FILE, facts)
            write_card(_card(model, f"{model.version}+{key}", predictors), folder)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{model.name} cannot be kept in {target.parent}: {reason(error)}. Free some space there, or set "
            "M3AGIQA_HOME to a folder that can be written to."
        ) from error
    return target


def _version(repository: str, revision: str | None) -> str:
    return base_version(revision) if repository == BASE_MODEL else version_of(repository, revision)


def _predictors(
    model: PublishedModel, versions: Mapping[str, str], progress: Progress
) -> Iterator[tuple[Aspect, Predictor]]:
    """Each aspect's predictor, fused to read hidden states."""
    files = [aspect.predictor for aspect in model.aspects.values()]
    published = snapshot(model.predictors, files, progress, commit(versions[model.predictors]))
    base = base_folder(progress, commit(versions[BASE_MODEL]))
    for aspect, each in model.aspects.items():
        file = published / each.predictor
        if not file.is_file():
            raise WeightsError(
                f"{model.predictors} has no file {each.predictor} in this revision, or it was not downloaded "
                "wholly. Connect to the network and start again without HF_HUB_OFFLINE, or choose another "
                "revision."
            )
        predictor = read_predictor(file, each.context_length)
        head = _reported(head_blocks(base), f"Fusing the predictor of {aspect}", progress)
        try:
            yield aspect, predictor.fuse(head)
        except ValueError as error:
            raise WeightsError(f"{file} does not fit {BASE_MODEL}: {error}.") from error


def _reported(blocks: Iterator[tuple[Tensor, float]], message: str, progress: Progress) -> Iterator[Tensor]:
    for block, done in blocks:
        yield block
        progress(message, done)


def _card(model: PublishedModel, version: str, predictors: Mapping[Aspect, Predictor]) -> Card:
    return Card(
        name=model.name,
        version=version,
        backbone="minicpm",
        learned_from=model.learned_from,
        fingerprint="",  # the training data are not known here
        scales={aspect: each.scale for aspect, each in model.aspects.items()},
        predictors={aspect: predictor.config for aspect, predictor in predictors.items()},
    )
