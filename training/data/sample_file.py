"""Our own JSON Lines of samples, which is also how annotations are exported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m3agiqa.json_lines import read_json_lines
from m3agiqa.samples import read_samples
from training.data.checks import LocatedSample


def sample_entries(path: Path) -> Iterator[LocatedSample]:
    """Samples of the file, or of `samples.jsonl` in the folder. Raises InputError naming file and line."""
    file = path / "samples.jsonl" if path.is_dir() else path
    samples = read_samples(file)
    for (number, _), sample in zip(read_json_lines(file), samples, strict=True):
        yield LocatedSample(f"{file}, line {number}", sample)
