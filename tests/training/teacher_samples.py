"""What nano's training data holds, as the tests' stages are given it."""

from pathlib import Path

from m3agiqa.samples import Sample
from training.data.nano_teacher import teacher_entries


def load_teacher(data: Path) -> list[Sample]:
    """The samples of `agi-teacher`; whether their images exist is not checked."""
    return [entry.sample for entry in teacher_entries(data)]
