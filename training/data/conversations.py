"""The conversation files of the paper's authors, which hold distilled descriptions: import and export.

A file is about one aspect: a JSON list (whatever the file is called) or JSON Lines of
`{id, image, conversations: [{role, content} x 4]}`. The image belongs to the first turn, which begins with
`<image>` and cites the prompt; then come the description, the question for a rating, and one rating word.

The published AGIQA-3k files about correspondence carry the rating words of quality, so their correspondence
is right only with a table of true scores (`mos`); from its scores, export writes the right words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from m3agiqa import prompts
from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale, Rating
from m3agiqa.conversation_json import write_conversations
from m3agiqa.errors import InputError
from m3agiqa.json_lines import read_json_rows
from m3agiqa.samples import Sample
from m3agiqa.tables import on_scale
from training.data.checks import ImageFinder, LocatedSample, merged_entries
from training.data.csv_table import read_scores

MOS_SCALE = MosScale(0.0, 5.0)
IMAGE_FOLDERS = ("", "images", "image", "Image/allimg", "train", "val", "test", "all")
TURN_ROLES = ["user", "assistant", "user", "assistant"]

# The wording of the published AGIQA-3k quality files, older than the paper's.
OLDER_QUALITY = (
    "Take a close look at this AI-generated image and tell me everything you can about what you see. "
    "It's original prompt is: '{prompt}'. Could you please help to analyze the image's quality?"
)
KNOWN_QUESTIONS = {
    aspect: (text, OLDER_QUALITY) if aspect is Aspect.QUALITY else (text,)
    for aspect, text in prompts.DESCRIBE_PROMPTS.items()
}
ASPECT_WORDS = {"alignment": Aspect.CORRESPONDENCE, **{str(aspect): aspect for aspect in Aspect}}
"""What names of files call the aspects."""

Scores = Mapping[str, Mapping[Aspect, float]]


def conversation_entries(
    path: Path, aspects: Sequence[Aspect] | None, images: ImageFinder, scale: MosScale, mos: Path | None
) -> Iterator[LocatedSample]:
    """Samples of a file, or of all files of a folder, whose names tell aspect and split.

    The files of a folder number their images anew for each aspect; there the image's file name is the
    sample's id, and what several files say of it goes together. Files with a model's answers (`response_0`)
    repeat other files and are left out. Raises InputError naming file and entry.
    """
    scores = read_scores(mos, scale) if mos else None
    if path.is_file():
        yield from _file_entries(path, _file_aspect(path, aspects), images, scale, scores)
        return
    entries = []
    for file in sorted([*path.glob("*.json"), *path.glob("*.jsonl")]):
        aspect = _named_aspect(file)
        if aspect is None or (aspects and aspect not in aspects) or _has_answers(file):
            continue
        for entry in _file_entries(file, aspect, images, scale, scores):
            entries.append(replace(entry, sample=replace(entry.sample, id=entry.sample.image.name)))
    yield from merged_entries(entries)


def export_conversations(samples: Sequence[Sample], aspect: Aspect, scale: MosScale, path: Path) -> None:
    """Write both rounds about one aspect as a JSON list; image paths are relative where below its folder.

    Raises InputError if a sample has no description or no MOS for the aspect, or one off the scale.
    """
    lacking = [s.id for s in samples if aspect not in s.descriptions or aspect not in s.mos]
    if lacking:
        raise InputError(
            f"{len(lacking):,} of {len(samples):,} samples have no description or no MOS for {aspect}; "
            f"the first is {lacking[0]}. Leave them out."
        )
    for sample in samples:
        on_scale(sample.mos[aspect], scale, f"Sample {sample.id}: {aspect}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_conversations(samples, aspect, scale, path)


def cited_prompt(question: str, aspect: Aspect) -> str | None:
    """The prompt that a first user turn cites; None if it is in no known wording or cites none."""
    text = question.removeprefix("<image>").strip()
    for template in KNOWN_QUESTIONS[aspect]:
        before, after = template.split("{prompt}")
        match = re.fullmatch(f"{re.escape(before)}(.*){re.escape(after)}", text, re.DOTALL)
        if match:
            return match[1].strip() or None
    return None


def read_conversations(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Place and entry of each conversation, with id, image and four turns. Raises InputError naming both."""
    rows = []
    for place, row in read_json_rows(path):
        try:
            turns = row["conversations"]
            sound = [turn["role"] for turn in turns] == TURN_ROLES and all(turn["content"] for turn in turns)
            whole = sound and bool(row["image"]) and row["id"] is not None
        except (KeyError, TypeError) as error:
            raise InputError(f"{place} lacks id, image or conversations ({error!r}).") from error
        if not whole:
            raise InputError(
                f"{place} needs id, image and four turns (user, assistant, user, assistant) with text."
            )
        rows.append((place, row))
    return rows


def _file_entries(
    path: Path, aspect: Aspect, images: ImageFinder, scale: MosScale, scores: Scores | None
) -> Iterator[LocatedSample]:
    split = _named_split(path)
    for place, row in read_conversations(path):
        asked, described, _, rated = (str(turn["content"]) for turn in row["conversations"])
        steps = [step for step in re.split(r"[/\\]", str(row["image"])) if step]
        prompt = cited_prompt(asked, aspect)
        if prompt is None and aspect.needs_prompt:
            raise InputError(f"{place}: no prompt was found in its first turn. Is the file about {aspect}?")
        sample = Sample(
            id=str(row["id"]),
            image=images.path(*("/".join(steps[i:]) for i in range(len(steps)))),
            prompt=prompt,
            mos={aspect: _mos(rated, steps[-1], aspect, scale, scores, place)},
            descriptions={aspect: described},
            split=split,
        )
        yield LocatedSample(place, sample)


def _mos(rated: str, image: str, aspect: Aspect, scale: MosScale, scores: Scores | None, place: str) -> float:
    if scores is not None:
        true = scores.get(image, {}).get(aspect)
        if true is None:
            raise InputError(f"{place}: the table of scores has no {aspect} for {image}.")
        return true
    rating = Rating.parse(rated)
    if rating is None:
        raise InputError(f"{place}: {rated!r} is none of {', '.join(RATING_WORDS)}.")
    return scale.from_unit((RATING_WORDS.index(rating) + 0.5) / len(RATING_WORDS))


def _named_aspect(path: Path) -> Aspect | None:
    """The last aspect that the file's name names, as folders and models come before it."""
    where = {path.name.rfind(word): aspect for word, aspect in ASPECT_WORDS.items() if word in path.name}
    return where[max(where)] if where else None


def _file_aspect(path: Path, aspects: Sequence[Aspect] | None) -> Aspect:
    aspect = Aspect(aspects[0]) if aspects and len(aspects) == 1 else _named_aspect(path)
    if aspect is None:
        raise InputError(f"The name of {path} does not tell its aspect. Name it in `aspects`.")
    return aspect


def _named_split(path: Path) -> str:
    """train unless the file's name holds another part, as in `gemini_val_quality.json`."""
    words = re.findall(r"(?<![a-z])(train|test|val|validation)(?![a-z])", path.stem.lower())
    return words[0] if words else "train"


def _has_answers(path: Path) -> bool:
    return any("response_0" in row for _, row in read_json_rows(path) if isinstance(row, dict))
