"""People's corrections on top of a data set: an export of annotations, checked and merged without a leak.

What people said of an image with its prompt goes before what the data says of the same two, and images that
the data does not have are added. Images are known by the content of their files. An image stands in one part
of the split, whichever of the two it came from: in the test part if either holds it out for testing. So does
a prompt, or a generator, wherever the data's own split keeps it in one part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.files import sha256
from m3agiqa.grouping import fold_prompt
from m3agiqa.samples import EXPORT_FORMAT, Sample
from training.data.checks import ImageFinder, checked, sample_entries
from training.data.preferences import PreferencePair, read_preferences
from training.data.splits import HELD_OUT, keep_together
from training.data.variants import image_hash

MANIFEST_FILE = "manifest.json"
SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class AnnotationExport:
    """An export: samples with the MOS and descriptions of people, and which images they prefer to others."""

    name: str
    version: str
    scale: MosScale
    samples: list[Sample]
    preferences: list[PreferencePair] = field(default_factory=list)


@dataclass(frozen=True)
class Annotated:
    """What people said of a run's samples."""

    name: str
    version: str
    """Of the export."""
    scored: dict[str, list[Aspect]]
    """Which aspects have the MOS of people, by the samples' ids."""
    described: dict[str, list[Aspect]] = field(default_factory=dict)
    """Which aspects have the description of people, by the samples' ids."""
    preferred: list[tuple[str, str]] = field(default_factory=list)
    """Ids of two samples, of which somebody has picked the first as the better one."""


def read_annotations(folder: Path) -> AnnotationExport:
    """An export of `python -m annotation export`.

    Raises InputError where there is none, or it is not as it was written.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise InputError(f"There is no export of annotations in {folder}: no such folder.")
    if not path.is_file() or not (folder / SAMPLES_FILE).is_file():
        raise InputError(
            f"{folder} is no export of annotations: it needs {MANIFEST_FILE} and {SAMPLES_FILE}. "
            "Write one with `python -m annotation export --out DIR`."
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        written_in = int(facts.get("format", 1))
        if written_in > EXPORT_FORMAT:
            raise InputError(
                f"{folder} was exported by a newer version of M3-AGIQA Studio (format {written_in}; this one "
                f"reads up to {EXPORT_FORMAT}). Install that version here, or export again with this one."
            )
        name, version, digest = str(facts["name"]), str(facts["version"]), facts["samples_sha256"]
        low, high = facts["scale"]
        scale = MosScale(float(low), float(high))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged or of another version: {error!r}. Export again.") from error
    if sha256(folder / SAMPLES_FILE) != digest:
        raise InputError(
            f"{folder / SAMPLES_FILE} is damaged or has been changed: its SHA-256 is not the one in "
            f"{MANIFEST_FILE}. Export again."
        )
    entries, preferences = list(sample_entries(folder)), read_preferences(folder)
    only_picks = preferences and not entries
    samples = [] if only_picks else checked(entries, ImageFinder(folder), scale, folder)
    for sample in samples:
        if any(not isinstance(count, int) or count < 1 for count in sample.raters.values()):
            raise InputError(
                f"{folder}: sample {sample.id} has a MOS of {sample.raters} people. Export again."
            )
    return AnnotationExport(name, version, scale, samples, preferences)


def merge(
    samples: Sequence[Sample], scale: MosScale, annotations: AnnotationExport
) -> tuple[list[Sample], Annotated]:
    """A data set's samples, on its scale, with what people said, of whatever aspects.

    A sample that is not in the data gets an id of its own; one that was only compared with others has no
    MOS. Raises InputError where people said nothing, or the export has an image with the same prompt twice.
    """
    theirs: dict[tuple[str, str], Sample] = {}
    for sample in annotations.samples:
        by_people = _on_scale(sample, annotations.scale, scale)
        if not by_people.mos and not by_people.descriptions:
            continue
        if theirs.setdefault(sample_key(by_people), by_people) is not by_people:
            raise InputError(
                f"The annotations {annotations.name} have {sample.image} with the same prompt twice."
            )
    if not theirs and not annotations.preferences:
        raise InputError(f"The annotations {annotations.name} hold neither scores nor descriptions.")
    corrected = [_corrected(sample, theirs.get(sample_key(sample))) for sample in samples]
    known = {sample_key(sample) for sample in samples}
    pairs = [(each.preferred, each.other) for each in annotations.preferences]
    compared = {sample_key(sample): sample for pair in pairs for sample in pair}
    added = [
        replace(by_people, id=f"annotations/{by_people.id}")
        for key, by_people in {**compared, **theirs}.items()
        if key not in known
    ]
    parted = _without_leak(samples, corrected, added)
    id_of = {sample_key(sample): sample.id for sample in parted}
    preferred = [(id_of[sample_key(better)], id_of[sample_key(other)]) for better, other in pairs]
    annotated = {each.id: theirs[key] for each in parted if (key := sample_key(each)) in theirs}
    scored = {name: list(by_people.mos) for name, by_people in annotated.items() if by_people.mos}
    described = {
        name: list(by_people.descriptions) for name, by_people in annotated.items() if by_people.descriptions
    }
    return parted, Annotated(annotations.name, annotations.version, scored, described, preferred)


def pairs_within(
    samples: Sequence[Sample], annotated: Annotated | None, splits: Collection[str]
) -> list[tuple[str, str]]:
    """Ids of two samples of which people prefer the first, where both are in one of these parts."""
    part_of = {sample.id: sample.split for sample in samples}
    preferred = annotated.preferred if annotated else []
    return [(one, two) for one, two in preferred if {part_of.get(one), part_of.get(two)} <= {*splits}]


def sample_key(sample: Sample) -> tuple[str, str]:
    """Content of the image, and the prompt without differences in white space."""
    return image_hash(sample.image), " ".join((sample.prompt or "").split())


def _on_scale(sample: Sample, own: MosScale, wanted: MosScale) -> Sample:
    """What is said of aspects that can be judged, on another scale; whoever scored, somebody did."""
    aspects = {aspect for aspect in Aspect if sample.prompt or not aspect.needs_prompt}
    mos = {
        aspect: wanted.from_unit(own.to_unit(value))
        for aspect, value in sample.mos.items()
        if aspect in aspects
    }
    descriptions = {aspect: text for aspect, text in sample.descriptions.items() if aspect in aspects}
    raters = {aspect: sample.raters.get(aspect, 1) for aspect in mos}
    return replace(sample, mos=mos, descriptions=descriptions, raters=raters)


def _corrected(sample: Sample, annotated: Sample | None) -> Sample:
    if annotated is None:
        return sample
    return replace(
        sample,
        mos={**sample.mos, **annotated.mos},
        raters={**sample.raters, **annotated.raters},
        descriptions={**sample.descriptions, **annotated.descriptions},
        split=max(sample.split, annotated.split, key=HELD_OUT.index),
    )


def _without_leak(data: Sequence[Sample], corrected: list[Sample], added: list[Sample]) -> list[Sample]:
    """Corrected and added samples with an image in one part, and a prompt where the data has each in one."""
    by_prompt = all(len(parts) == 1 for parts in _parts(data, lambda each: fold_prompt(each.prompt)).values())
    generators = _parts(data, lambda sample: sample.generator)
    if all(len(parts) == 1 for parts in generators.values()):
        # Never the other way round: one annotated image would take all of its generator's out of training.
        added = [
            replace(
                each, split=max([each.split, *generators.get(each.generator or "", ())], key=HELD_OUT.index)
            )
            for each in added
        ]

    def marks(sample: Sample) -> Iterator[Hashable]:
        yield "image", image_hash(sample.image)
        if by_prompt and sample.prompt:
            yield "prompt", fold_prompt(sample.prompt)

    return keep_together([*corrected, *added], marks)


def _parts(samples: Sequence[Sample], key: Callable[[Sample], str | None]) -> dict[str, set[str]]:
    """In which parts the samples of a prompt or generator are."""
    parts: dict[str, set[str]] = {}
    for sample in samples:
        if name := key(sample):
            parts.setdefault(name, set()).add(sample.split)
    return parts
