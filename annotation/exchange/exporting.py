"""Annotations as a folder that trains: samples, images, conversations, all opinions, and a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from annotation.exchange.dataset import (
    MOS_METHODS,
    Filters,
    HumanSamples,
    Method,
    human_samples,
    split_of_items,
)
from annotation.store import Store
from annotation.store.models import ComparedItem
from annotation.store.preferences import current_preferences
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.conversation_json import write_conversations
from m3agiqa.download import hub
from m3agiqa.errors import InputError
from m3agiqa.files import replace_folder, sha256
from m3agiqa.plurals import counted
from m3agiqa.samples import EXPORT_FORMAT, Sample, write_samples
from m3agiqa.tables import csv_text

SAMPLES_FILE, IMAGES_FOLDER, MANIFEST_FILE = "samples.jsonl", "images", "manifest.json"
OPINIONS_FILE, PREFERENCES_FILE = "annotations.csv", "preferences.csv"
DATASET_CARD_FILE = "README.md"
CONVERSATION_FILES = {aspect: f"conversations-{aspect}.json" for aspect in Aspect}
EXPORTED_FILES = {
    *(SAMPLES_FILE, IMAGES_FOLDER, OPINIONS_FILE, PREFERENCES_FILE, MANIFEST_FILE, DATASET_CARD_FILE),
    *CONVERSATION_FILES.values(),
}
OPINION_COLUMNS = (
    *("sample", "image", "original_file", "prompt", "generator", "source"),
    *("aspect", "annotator", "score", "low", "high", "common_score"),
    *("agrees", "description", "tags", "comment"),
    *("blind", "seconds", "place", "created_at", "correction_id"),
)
PREFERENCE_COLUMNS = (
    *("preference_id", "annotator", "prompt", "split", "preferred", "other"),
    *("preferred_overall", "other_overall", "model", "created_at"),
)


@dataclass(frozen=True)
class ExportReport:
    """A finished export."""

    folder: Path
    version: str
    """Name, date, and the beginning of a SHA-256 of the samples and picks."""
    samples_sha256: str
    counts: dict[str, Any]

    @property
    def text(self) -> str:
        """A summary for people."""
        counts = self.counts
        scores = ", ".join(f"{number:,} {aspect}" for aspect, number in counts["mos"].items()) or "none"
        left_out = (
            f" {counted(counts['texts_left_out'], 'description')} left out: one word, the same text under "
            "many images, or another language than English."
            if counts["texts_left_out"]
            else ""
        )
        picks = f" and {counted(counts['picks'], 'pick')} of the best image" if counts.get("picks") else ""
        return (
            f"{self.version}: {counted(counts['samples'], 'image')} ({counts['train']:,} for training, "
            f"{counts['test']:,} held out) with {counted(counts['opinions'], 'correction')} of "
            f"{counted(counts['annotators'], 'annotator')}{picks}; MOS: {scores}; in {self.folder}.{left_out}"
        )


def export(
    store: Store,
    out: Path,
    *,
    name: str = "annotations",
    aspects: Sequence[Aspect] | None = None,
    min_raters: int = 1,
    generators: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    method: Method = "p910",
    gold: bool = False,
    all_texts: bool = False,
) -> ExportReport:
    """Write what people think into the folder `out`, which appears as a whole or not at all.

    An earlier export there is replaced. Scores of all models' scales are brought to 1 to 5. The same
    annotations give the same samples, byte by byte. Picks of the best image are exported without scores, too.
    Raises InputError if there is nothing to export, or if `out` holds anything but an export.
    """
    if not re.fullmatch(r"\w[\w.-]{0,59}", name):
        raise InputError(
            f"{name[:80]!r} cannot be an export's name; use up to 60 letters, digits, dots, - and _."
        )
    out = out.absolute()
    _check_replaceable(out)
    filters = Filters(
        tuple(aspects) if aspects else tuple(Aspect),
        min_raters,
        tuple(generators) if generators else None,
        tuple(sources) if sources else None,
        gold,
        all_texts,
    )
    with store.database.reading() as session:
        has_picks = bool(current_preferences(session))
    human = human_samples(store, filters, method, may_be_unscored=has_picks)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(out, lambda folder: _write(store, folder, name, human, filters, method))
        manifest = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The export cannot be written to {out}: {error.strerror}.") from error
    return ExportReport(out, manifest["version"], manifest["samples_sha256"], manifest["counts"])


def _check_replaceable(out: Path) -> None:
    """Raises InputError if there is anything but an export, or nothing."""
    try:
        there = {path.name for path in out.iterdir()} if out.exists() else set()
    except OSError as error:
        raise InputError(f"{out} is no folder that can be written: {error.strerror}.") from error
    if there and (MANIFEST_FILE not in there or not there <= EXPORTED_FILES):
        other = min(there - EXPORTED_FILES, default="no manifest.json")
        raise InputError(
            f"{out} holds other things than an export ({other}), so it is left alone; choose another folder."
        )


# --- on the Hugging Face Hub -------------------------------------------------------------------


def push(folder: Path, repository: str, with_images: bool = True) -> str:
    """Make an export the newest version of a data set on the Hub, tagged with its version; the address.

    Raises InputError.
    """
    version = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["version"]
    without = () if with_images else (f"{IMAGES_FOLDER}/*",)
    return hub.push_folder(folder, repository, "dataset", version, without=without)


def pull(repository: str, out: Path, revision: str | None = None) -> None:
    """Take an export from the Hub, its newest or the one with this tag; an earlier export is replaced.

    Raises InputError or WeightsError.
    """
    _check_replaceable(out.absolute())
    copy = hub.snapshot(repository, revision=revision, kind="dataset")
    if not (copy / MANIFEST_FILE).is_file():
        raise InputError(f"{repository} is not an export: it has no {MANIFEST_FILE}.")

    def copy_files(folder: Path) -> None:
        notes = shutil.ignore_patterns(".*")  # of the Hub, e.g. .gitattributes
        shutil.copytree(copy, folder, ignore=notes, dirs_exist_ok=True)

    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        replace_folder(out.absolute(), copy_files)
    except OSError as error:
        raise InputError(f"The export cannot be written to {out}: {error.strerror}.") from error


def _dataset_card(manifest: dict[str, Any]) -> str:
    """What the Hub shows of the data set, and how it is loaded there."""
    counts = manifest["counts"]
    rows = "".join(
        f"|{aspect}|{number:,}|{counts['descriptions'].get(aspect, 0):,}|\n"
        for aspect, number in counts["mos"].items()
    )
    low, high = manifest["scale"]
    files = {"samples": SAMPLES_FILE, "answers": OPINIONS_FILE} if counts["samples"] else {}
    files |= {"preferences": PREFERENCES_FILE} if counts["picks"] else {}
    picks = (
        f"\n{counted(counts['picks'], 'pick')} of the best image of several: pairs in `{PREFERENCES_FILE}`."
        if counts["picks"]
        else ""
    )
    configs = "\n".join(f"- config_name: {name}\n  data_files: {file}" for name, file in files.items())
    return f"""---
pretty_name: {manifest["name"]}
tags: [image-quality-assessment, ai-generated-images, mean-opinion-scores]
configs:
{configs}
---

# {manifest["version"]}

What people say of {counted(counts["samples"], "AI-generated image")},
from {low:g} to {high:g} and in words:
{counted(counts["opinions"], "correction")} of {counted(counts["annotators"], "annotator")}.
{counts["test"]:,} images are held out for tests.{picks} Collected with M3-AGIQA Studio.

|aspect|images with a MOS|descriptions|
|---|---|---|
{rows}
MOS: {manifest["mos_method"]}. `{SAMPLES_FILE}` has an image a line, `{OPINIONS_FILE}` every answer with the
name of its annotator, `{MANIFEST_FILE}` filters and counts. Each version has a tag.
"""


# --- writing -----------------------------------------------------------------------------------


def _write(
    store: Store, folder: Path, name: str, human: HumanSamples, filters: Filters, method: Method
) -> None:
    """All files of an export."""
    samples = _with_images(human.samples, folder / IMAGES_FOLDER)
    write_samples(samples, folder / SAMPLES_FILE)
    for aspect in filters.aspects:
        described = [sample for sample in samples if aspect in sample.descriptions]
        if described:
            write_conversations(described, aspect, COMMON_SCALE, folder / CONVERSATION_FILES[aspect])
    _write_opinions(human.opinions, folder / OPINIONS_FILE)
    picks = _write_preferences(store, folder)
    created = datetime.now(UTC)
    samples_sha256 = version_sha256 = sha256(folder / SAMPLES_FILE)
    if picks:
        hashes = samples_sha256 + sha256(folder / PREFERENCES_FILE)
        version_sha256 = hashlib.sha256(hashes.encode()).hexdigest()
    manifest = {
        "format": EXPORT_FORMAT,
        "name": name,
        "version": f"{name}-{created:%Y%m%d}-{version_sha256[:8]}",
        "created": created.isoformat(timespec="seconds"),
        "samples_sha256": samples_sha256,
        "counts": _counts(samples, human.opinions) | {"texts_left_out": human.texts_left_out, "picks": picks},
        "filters": asdict(filters),
        "scale": [COMMON_SCALE.low, COMMON_SCALE.high],
        "mos_method": f"{method}: {MOS_METHODS[method]}",
    }
    (folder / DATASET_CARD_FILE).write_text(_dataset_card(manifest), encoding="utf-8")
    (folder / MANIFEST_FILE).write_text(
        json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _with_images(samples: Iterable[Sample], folder: Path) -> list[Sample]:
    """The samples, with their images linked or copied into a folder."""
    folder.mkdir()
    moved = []
    for sample in samples:
        image = folder / sample.image.name
        if not image.exists():
            _link_or_copy(sample.image, image)
        moved.append(replace(sample, image=image))
    return moved


def _link_or_copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise InputError(f"The image file {source} is missing; put it back from a backup.")
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


def _write_opinions(responses: pd.DataFrame, path: Path) -> None:
    rows = responses.assign(
        image=[f"{IMAGES_FOLDER}/{Path(file).name}" for file in responses["file"]],
        tags=["; ".join(tags) for tags in responses["tags"]],
    )
    text = csv_text(OPINION_COLUMNS, rows[list(OPINION_COLUMNS)].itertuples(index=False))
    path.write_text(text, encoding="utf-8-sig", newline="")  # else Excel takes it for Latin-1


def _write_preferences(store: Store, folder: Path) -> int:
    """A row for each pair of a current pick and another image, if there are any; returns how many picks."""
    with store.database.reading() as session:
        picks, part_of = current_preferences(session), split_of_items(session)
    if not picks:
        return 0
    images = folder / IMAGES_FOLDER

    def exported(compared: ComparedItem) -> str:
        target = images / Path(compared.item.image.file).name
        if not target.exists():
            _link_or_copy(store.images.path(compared.item.image.file), target)
        return f"{IMAGES_FOLDER}/{target.name}"

    rows = []
    for pick in picks:
        [best] = [each for each in pick.compared if each.preferred]
        for other in (each for each in pick.compared if not each.preferred):
            cells = (pick.id, pick.annotator.name, best.item.prompt.text, part_of[best.item_id])
            scores = (exported(best), exported(other), best.overall, other.overall)
            rows.append((*cells, *scores, pick.model_version.title, pick.created_at.isoformat()))
    text = csv_text(PREFERENCE_COLUMNS, rows)
    (folder / PREFERENCES_FILE).write_text(text, encoding="utf-8-sig", newline="")
    return len(picks)


def _counts(samples: Sequence[Sample], responses: pd.DataFrame) -> dict[str, Any]:
    in_parts = Counter(sample.split for sample in samples)
    return {
        "samples": len(samples),
        "train": in_parts["train"],
        "test": in_parts["test"],
        "images": len({sample.image for sample in samples}),
        "mos": {a: n for a in Aspect if (n := sum(a in s.mos for s in samples))},
        "descriptions": {a: n for a in Aspect if (n := sum(a in s.descriptions for s in samples))},
        "opinions": len(responses),
        "annotators": int(responses["annotator"].nunique()),
    }
