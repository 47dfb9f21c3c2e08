"""Readers of data sets; each yields samples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.json_lines import read_json_lines
from m3agiqa.samples import Sample

TEACHER_SCALE = MosScale(1.0, 5.0)


def load_teacher(data: Path) -> list[Sample]:
    """`agi-teacher`: pictures with scores (1-5) and descriptions by a multimodal LLM."""
    folder = data / "agi-teacher"
    samples = []
    for _, row in read_json_lines(folder / "samples.jsonl"):
        judged = {aspect: row[aspect] for aspect in Aspect if row.get(aspect)}
        samples.append(
            Sample(
                id=row["id"],
                image=folder / row["image"],
                prompt=row["prompt"],
                mos={aspect: value["score"] for aspect, value in judged.items()},
                descriptions={aspect: value["description"] for aspect, value in judged.items()},
                split=row["split"],
                generator=row["generator"],
                source=row["source"],
                distorted=bool(row.get("distortion")),
            )
        )
    return samples


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


def fingerprint(samples: list[Sample]) -> str:
    """SHA-256 over ids, prompts, scores, descriptions and splits: which data a model learned from."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.id):
        facts = [sample.id, sample.prompt, sample.mos, sample.descriptions, sample.split]
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
