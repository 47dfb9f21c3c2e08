"""Readers of data sets; each yields samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample

TEACHER_SCALE = MosScale(1.0, 5.0)


def _json_lines(path: Path) -> Iterator[dict]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}, line {number} is not JSON: {error}") from error
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}. Does --data name the right folder?"
        ) from error


def load_teacher(data: Path) -> list[Sample]:
    """`agi-teacher`: pictures with scores (1-5) and descriptions by a multimodal LLM."""
    folder = data / "agi-teacher"
    samples = []
    for row in _json_lines(folder / "samples.jsonl"):
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
        for row in _json_lines(folder / "samples.jsonl")
    ]


def load_captions(data: Path) -> list[tuple[Path, list[str]]]:
    """`captions`: photographs with five human captions each."""
    folder = data / "captions"
    return [(folder / row["image"], row["captions"]) for row in _json_lines(folder / "captions.jsonl")]


def load_published_conversations(data: Path) -> list[tuple[Aspect, list[dict[str, str]]]]:
    """The turns ({role, content}) of the authors' training conversations, without images."""
    conversations = []
    for path in sorted((data / "m3-agiqa-conversations").glob("*train*")):
        published = "correspondence" if "alignment" in path.name else None
        name = published or next(aspect for aspect in Aspect if aspect in path.name)
        for item in json.loads(path.read_text(encoding="utf-8")):
            conversations.append((Aspect(name), item["conversations"]))
    return conversations


def fingerprint(samples: list[Sample]) -> str:
    """SHA-256 over ids, prompts, scores, descriptions and splits: which data a model learned from."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.id):
        facts = [sample.id, sample.prompt, sample.mos, sample.descriptions, sample.split]
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
