"""Many uploaded images, judged into a CSV in turns, so that visitors get theirs in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from annotation.exchange.import_zip import BYTES_PER_MB, Archive
from annotation.exchange.importing import SHOWN_NAMES
from annotation.ui.access import Person
from annotation.ui.annotate.imports import one_folder
from annotation.ui.assess.runs import ModelRun, RunStage, note_shown
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from m3agiqa.aspects import Aspect
from m3agiqa.batch_scoring import BATCH_SIZE, ScoreFile, score
from m3agiqa.errors import InputError
from m3agiqa.score_inputs import ScoreRow, read_rows
from m3agiqa.tables import TABLE_SUFFIXES, some_names

MAX_UNPACKED = 2000 * BYTES_PER_MB  # of a ZIP's files, which lie on the server's disk while they are judged


class ScoreRun(ModelRun):
    """Images of a table or folder that somebody has uploaded, in batches that wait in the line anew."""

    def __init__(
        self,
        files: Sequence[Upload],
        person: Person,
        out: Path,
        studio: Studio,
        take: Callable[[int], None] = lambda images: None,
    ) -> None:
        """`take` is told the number of images, and raises an error where these are too many."""
        super().__init__("", studio.loader, studio.line)
        self._take = take
        self.files = tuple(files)
        self.person = person
        self.out = out
        """The CSV; it is not there before the first row."""
        self._database = studio.store.database
        self._batch: Sequence[ScoreRow] = ()

    @property
    def subject(self) -> str:
        return f"{len(self.files)} uploaded files"

    @property
    def shown(self) -> Iterator[tuple[Path, str, Iterable[Aspect]]]:
        for row in self._batch:
            yield row.path, row.prompt, Aspect

    def _take_turn(self) -> None:
        if not self.files:
            raise InputError("There are no files; give a ZIP of images, or images, as `files`.")
        with one_folder(list(self.files)) as folder:
            notes: list[str] = []
            rows = uploaded_rows(self.files, folder, notes.append)
            self._take(len(rows))
            self._update(total=len(rows), notes=tuple(notes))
            assessor = self._loader.wait(self._stop.is_set, self._while_loading)
            with UploadedScores(self.out, folder) as output:
                output.start(assessor.card.title)
                for first in range(0, len(rows), BATCH_SIZE):
                    self._batch = [row.complete() for row in rows[first : first + BATCH_SIZE]]
                    with self._turn(assessor):
                        failed = sum(bool(error) for error in score(self._batch, output, assessor))
                    note_shown(self._database, self.person, self)
                    scored = self.state.scored + len(self._batch)
                    self._update(scored=scored, failed=self.state.failed + failed)
        self._update(stage=RunStage.FINISHED)


class UploadedScores(ScoreFile):
    """Its errors do not tell where on the server the images lay."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self._folder = folder

    def append(self, cells: dict[str, str]) -> None:
        super().append(cells | {"error": _without(self._folder, cells["error"])})


def uploaded_rows(
    files: Sequence[Upload], folder: Path, note: Callable[[str], object] = lambda sentence: None
) -> list[ScoreRow]:
    """The rows of a ZIP, or of a CSV or images that lie in `folder`. Raises InputError.

    `note` is given sentences on how a CSV was read, and which files it does not list.
    """
    refused: list[ScoreRow] = []
    if archives := [file.name for file in files if file.name.lower().endswith(".zip")]:
        if len(files) > 1:
            raise InputError("Give one ZIP alone; put the other files into it.")
        archive, folder = folder / archives[0], folder / "unpacked"
        refused = [ScoreRow(name, folder / name, error=why) for name, why in unpack(archive, folder)]
    tables = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TABLE_SUFFIXES)
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables[:3])
        raise InputError(f"There are several tables ({names}), and one at most can list the images.")
    try:
        rows = [_within(folder, row) for row in read_rows(tables[0] if tables else folder, note=note)]
    except InputError as error:
        raise InputError(_without(folder, str(error))) from error
    if tables and (unlisted := _unlisted(folder, tables[0], rows)):
        note(
            f"{tables[0].name} does not list {len(unlisted):,} of the other files, which are left out: "
            f"{some_names(unlisted, SHOWN_NAMES)}."
        )
    return rows + refused


def _unlisted(folder: Path, table: Path, rows: Sequence[ScoreRow]) -> list[str]:
    listed = {table.resolve(), *(row.path.resolve() for row in rows)}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.resolve() not in listed]
    return [str(path.relative_to(folder)) for path in files]


def unpack(source: Path, folder: Path) -> list[tuple[str, str]]:
    """A ZIP's files into a new folder; gives the names of those that cannot be read, and why.

    Raises InputError for one that cannot be read at all, or is too large.
    """
    folder.mkdir()
    with Archive(source) as archive:
        total = sum(info.file_size for info in archive.members.values())
        if total > MAX_UNPACKED:
            raise InputError(
                f"{source.name} would unpack to {total / BYTES_PER_MB:,.0f} MB; at most "
                f"{MAX_UNPACKED / BYTES_PER_MB:,.0f} MB are judged at once. Divide it."
            )
        refused = list(archive.refused)
        for name in archive.members:
            try:
                content = archive.read(name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            except InputError as error:
                refused.append((str(name), str(error)))
            except OSError as error:
                refused.append((str(name), f"The file cannot be unpacked: {error.strerror}."))
    return refused


def _within(folder: Path, row: ScoreRow) -> ScoreRow:
    """A CSV names what was uploaded with it, and no other file of the server."""
    if not row.error and not row.path.resolve().is_relative_to(folder.resolve()):
        return replace(row, error=f"{row.image} leads out of what was sent; put image and CSV into one ZIP.")
    return row


def _without(folder: Path, sentence: str) -> str:
    return sentence.replace(f"{folder}{os.sep}", "").replace(str(folder), "that was sent")
