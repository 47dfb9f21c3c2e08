"""Samples on their way in: where their rows and image files are, and what every data set is checked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from m3agiqa.aspects import MosScale
from m3agiqa.errors import InputError
from m3agiqa.files import is_file
from m3agiqa.json_lines import read_json_lines
from m3agiqa.samples import Sample, read_samples
from m3agiqa.tables import on_scale
from training.data.splits import part


@dataclass(frozen=True)
class LocatedSample:
    """A sample with its place (file and line) for error messages."""

    place: str
    sample: Sample


class ImageFinder:
    """Finds image files by name in the folders where downloads of a data set keep them."""

    def __init__(self, root: Path, folders: Iterable[str] = ("",)) -> None:
        within = [root / folder for folder in folders]
        self.folders: list[Path] = [folder for folder in within if folder.is_dir()] or [root]
        """Where images are looked for, in this order."""

    def path(self, *names: str) -> Path:
        """The first of the names that some folder has; if none has any, where the last was expected."""
        for name in names:
            for folder in self.folders:
                path = folder / name
                if is_file(path):
                    return path
        return self.folders[0] / names[-1]


def checked(
    entries: Iterable[LocatedSample], images: ImageFinder, scale: MosScale, source: Path
) -> list[Sample]:
    """The samples, with parts called train, test or validation.

    Raises InputError for none at all, ids given twice, wrong scores or parts, and missing images.
    """
    places: dict[str, str] = {}
    missing: list[LocatedSample] = []
    samples: list[Sample] = []
    for entry in entries:
        sample = entry.sample
        if sample.id in places:
            raise InputError(f"{entry.place}: the id {sample.id} was given before, in {places[sample.id]}.")
        places[sample.id] = entry.place
        for aspect, mos in sample.mos.items():
            on_scale(mos, scale, f"{entry.place}: {aspect}")
        if not is_file(sample.image):
            missing.append(entry)
        prompt = (sample.prompt or "").strip() or None
        samples.append(replace(sample, prompt=prompt, split=part(sample.split, entry.place)))
    if not samples:
        raise InputError(f"{source} holds no samples.")
    if missing:
        first, folders = missing[0], ", ".join(str(folder) for folder in images.folders)
        raise InputError(
            f"{len(missing):,} of {len(samples):,} images are missing; the first is "
            f"{first.sample.image.name} ({first.place}). Looked in {folders}. "
            "Set `images` to the folder that holds them."
        )
    return samples


def merged_entries(entries: Iterable[LocatedSample]) -> list[LocatedSample]:
    """One entry for each id, with the scores and descriptions of all entries of that id.

    Raises InputError where two of them disagree.
    """
    by_id: dict[str, LocatedSample] = {}
    for entry in entries:
        new, old = entry.sample, by_id.get(entry.sample.id)
        if old is None:
            by_id[new.id] = entry
            continue
        known = old.sample
        for name in ("image", "prompt", "split"):
            if getattr(new, name) != getattr(known, name):
                raise InputError(
                    f"{entry.place}: the {name} of {new.id} is {getattr(new, name)}, but "
                    f"{getattr(known, name)} in {old.place}. Load one aspect at a time (`aspects`)."
                )
        if known.descriptions.keys() & new.descriptions.keys():
            raise InputError(f"{entry.place}: {new.id} was described before, in {old.place}.")
        both = replace(
            known, mos={**known.mos, **new.mos}, descriptions={**known.descriptions, **new.descriptions}
        )
        by_id[new.id] = LocatedSample(old.place, both)
    return list(by_id.values())


def sample_entries(path: Path) -> Iterator[LocatedSample]:
    """Samples of our own JSON Lines (a file, or `samples.jsonl` in a folder), as annotations are exported.

    Raises InputError naming file and line.
    """
    file = path / "samples.jsonl" if path.is_dir() else path
    samples = read_samples(file)
    for (number, _), sample in zip(read_json_lines(file), samples, strict=True):
        yield LocatedSample(f"{file}, line {number}", sample)
