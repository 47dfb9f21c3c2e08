"""The one data format between all stages: JSON Lines of samples beside image files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError
from m3agiqa.json_lines import read_json_lines

EXPORT_FORMAT = 1
"""Of an export of annotations: higher once a version would misread what a newer one has written."""


@dataclass(frozen=True)
class Sample:
    """One image with what is known about it; any MOS or description may be missing."""

    id: str
    image: Path
    prompt: str | None = None
    mos: dict[Aspect, float] = field(default_factory=dict)
    descriptions: dict[Aspect, str] = field(default_factory=dict)
    split: str = "train"
    generator: str | None = None
    source: str | None = None
    distorted: bool = False
    raters: dict[Aspect, int] = field(default_factory=dict)
    """People behind each MOS; none where that is not known."""


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """Write JSON Lines; image paths are stored relative to the file where they lie below its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = path.parent.resolve()
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            image = sample.image.resolve()
            shown = image.relative_to(base) if image.is_relative_to(base) else image
            file.write(json.dumps({**asdict(sample), "image": str(shown)}, ensure_ascii=False) + "\n")


def read_samples(path: Path) -> list[Sample]:
    """Read JSON Lines of samples. Raises InputError naming file and line."""
    samples = []
    for number, row in read_json_lines(path):
        try:
            known = {
                name: {Aspect(aspect): value for aspect, value in row.get(name, {}).items()}
                for name in ("mos", "descriptions", "raters")
            }
            samples.append(Sample(**{**row, **known, "image": path.parent / row["image"]}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}, line {number} is not a sample: {error}") from error
    return samples
