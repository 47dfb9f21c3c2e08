"""The data folder that nano learns from: teacher scores, unlabelled images, captions, published texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.grouping import fold_prompt
from m3agiqa.json_lines import read_json_lines
from m3agiqa.samples import Sample
from training.data.checks import LocatedSample

TEACHER_SCALE = MosScale(1.0, 5.0)


def judged_entries(
    folder: Path, file: str = "samples.jsonl", score: str = "score"
) -> Iterator[LocatedSample]:
    """Images of a folder with scores (the member `score` of each aspect) and descriptions.

    Raises InputError naming file and line.
    """
    path = folder / file
    for number, row in read_json_lines(path):
        place = f"{path}, line {number}"
        try:
            judged = {aspect: row[aspect] for aspect in Aspect if row.get(aspect)}
            texts = {aspect: value.get("description") for aspect, value in judged.items()}
            sample = Sample(
                id=row["id"],
                image=folder / row["image"],
                prompt=row["prompt"],
                mos={aspect: value[score] for aspect, value in judged.items()},
                descriptions={aspect: text for aspect, text in texts.items() if text},
                split=row["split"],
                generator=row["generator"],
                source=row["source"],
                distorted=bool(row.get("distortion")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{place} is not a row of {folder.name}: {error!r}") from error
        yield LocatedSample(place, sample)


def teacher_entries(data: Path) -> Iterator[LocatedSample]:
    """`agi-teacher` below `data`: pictures with scores (1-5) and descriptions by a multimodal LLM."""
    return judged_entries(data / "agi-teacher")


def load_unlabelled(data: Path) -> list[Sample]:
    """`agi-unlabelled`: generated pictures with prompts and no scores."""
    folder = data / "agi-unlabelled"
    return [
        Sample(
            row["id"], folder / row["image"], row["prompt"], split=row["split"], generator=row["generator"]
        )
        for _, row in read_json_lines(folder / "samples.jsonl")
    ]


def load_captions(data: Path) -> list[tuple[Path, list[str]]]:
    """`captions`: photographs with five human captions each."""
    folder = data / "captions"
    return [(folder / row["image"], row["captions"]) for _, row in read_json_lines(folder / "captions.jsonl")]


def load_published_conversations(data: Path) -> list[tuple[Aspect, list[dict[str, str]]]]:
    """The turns ({role, content}) of the authors' training conversations, without images."""
    folder = data / "m3-agiqa-conversations"
    names = {"alignment": Aspect.CORRESPONDENCE, **{str(aspect): aspect for aspect in Aspect}}
    conversations = []
    for path in sorted(folder.glob("*train*")):
        aspect = next((aspect for name, aspect in names.items() if name in path.name), None)
        if aspect is not None:
            items = json.loads(path.read_text(encoding="utf-8"))
            conversations += [(aspect, item["conversations"]) for item in items]
    if not conversations:
        raise InputError(f"{folder} holds no training conversations (*train*quality* and the like).")
    return conversations


def images_with_prompts(auxiliary_data: Path | None) -> list[Sample]:
    """Images with prompts and without scores that may be learned from."""
    unlabelled = [] if auxiliary_data is None else load_unlabelled(auxiliary_data)
    return [sample for sample in unlabelled if sample.split == "train" and sample.prompt]


def images_with_captions(
    auxiliary_data: Path | None, samples: Iterable[Sample]
) -> list[tuple[Path, list[str]]]:
    """Photographs with their captions, but those that are among the samples too.

    A caption that is a sample's prompt gives them away: whether they may be learned from is said there.
    """
    if auxiliary_data is None:
        return []
    sample_prompts = {fold_prompt(sample.prompt) for sample in samples if sample.prompt}
    return [
        (image, captions)
        for image, captions in load_captions(auxiliary_data)
        if sample_prompts.isdisjoint(map(fold_prompt, captions))
    ]
