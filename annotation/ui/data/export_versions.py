"""Exports that are kept beside the database, each one a ZIP named by its version."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotation.exchange.exporting import MANIFEST_FILE, ExportReport, export
from annotation.store import Store
from m3agiqa.errors import InputError
from m3agiqa.files import atomic_path
from m3agiqa.plurals import counted

MAX_VERSIONS = 10
"""Versions that stay; each one has all images in it."""


@dataclass(frozen=True)
class ExportVersion:
    """A finished export."""

    file: Path
    created: str
    """Moment in UTC, ISO 8601."""
    samples: int
    opinions: int
    picks: int

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def title(self) -> str:
        picks = f", {counted(self.picks, 'pick')}" if self.picks else ""
        return f"{self.name}: {self.samples:,} images, {self.opinions:,} corrections{picks}"


class ExportVersions:
    """The folder that holds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, store: Store, **options: Any) -> ExportReport:
        """Export as annotation.exchange.exporting.export does, into a new ZIP. Raises InputError.

        The same annotations under the same name and date are the same version, which is replaced. Of others,
        the newest stay, MAX_VERSIONS in all.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as temporary:
                report = export(store, Path(temporary) / "export", **options)
                with atomic_path(self.folder / f"{report.version}.zip") as packed:
                    _pack(report.folder, packed, report.version)
            older = [version for version in self.all() if version.name != report.version]
            for version in older[MAX_VERSIONS - 1 :]:
                version.file.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"The export cannot be written to {self.folder} ({error.strerror}); make room there or set "
                "M3AGIQA_DATA to another folder."
            ) from error
        return report

    def all(self) -> list[ExportVersion]:
        """Newest first; files that are no exports are passed over."""
        versions = [version for path in self.folder.glob("*.zip") if (version := _read(path)) is not None]
        return sorted(versions, key=lambda version: (version.created, version.name), reverse=True)

    def find(self, name: object) -> ExportVersion:
        """Raises InputError if there is none of that name."""
        for version in self.all():
            if version.name == name:
                return version
        raise InputError("This export is no longer there; choose another, or export again.")

    @contextmanager
    def unpacked(self, name: object) -> Iterator[Path]:
        """A version's files, for a while. Raises InputError if there is none of that name."""
        version = self.find(name)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".") as temporary:
            with zipfile.ZipFile(version.file) as archive:
                archive.extractall(temporary)
            yield Path(temporary) / version.name


def _pack(folder: Path, target: Path, name: str) -> None:
    """Without compression: nearly all of it is images, which are compressed already."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, Path(name) / path.relative_to(folder))


def _read(path: Path) -> ExportVersion | None:
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(f"{path.stem}/{MANIFEST_FILE}"))
        counts = manifest["counts"]
        numbers = counts["samples"], counts["opinions"], counts.get("picks", 0)
        return ExportVersion(path, str(manifest["created"]), *map(int, numbers))
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError):
        return None
