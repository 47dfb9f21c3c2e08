"""Uploaded files on their way into the store and the queue."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from annotation.exchange.importing import ImportReport, import_into
from annotation.ui.access import Person, Role
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from m3agiqa.errors import InputError
from m3agiqa.images import is_image_name
from m3agiqa.tables import TABLE_SUFFIXES

IMPORTED_ALONE = (".zip", *TABLE_SUFFIXES)  # these bring their own order; other files are imported together

Progress = Callable[[int, int], None]
"""Told how many images of how many are in."""


def uploads(payload: Any) -> list[Upload]:
    """What a file component sends to an event with `preprocess=False`."""
    files = payload if isinstance(payload, list) else []
    return [upload for one in files if (upload := Upload.from_payload(one)) is not None]


def import_uploads(
    studio: Studio, person: Person, files: list[Upload], name: str, overlap: int, progress: Progress
) -> list[ImportReport]:
    """Import them as if they lay in one folder: a CSV finds its images beside it, an image its prompt.

    Raises InputError if there is nothing to import, and what import_into raises.
    """
    if not files:
        raise InputError("Choose images, a ZIP archive or a CSV file first.")
    if not any(
        is_image_name(Path(file.name)) or file.name.lower().endswith(IMPORTED_ALONE) for file in files
    ):
        raise InputError("There is no image, ZIP archive or CSV file among these.")
    title = Path(files[0].name).stem if len(files) == 1 else f"{len(files)} files"
    with one_folder(files) as folder:
        sources = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMPORTED_ALONE]
        has_table = any(path.suffix.lower() in TABLE_SUFFIXES for path in sources)
        if not has_table and len(sources) < len(files):
            _check_prompts(files)
            sources.append(folder)
        reports = [
            import_into(
                studio.store,
                source,
                overlap=overlap,
                name=name.strip() or (title if source == folder else source.stem),
                annotator=person.name,
                with_scores=person.role.allows(Role.ADMIN),
                progress=progress,
            )
            for source in sources
        ]
        if has_table:
            reports[-1].left_out += _unlisted(folder, reports)
        elif folder in sources:  # the ZIP files in it have reports of their own
            reports[-1].left_out = [
                name for name in reports[-1].left_out if not name.lower().endswith(IMPORTED_ALONE)
            ]
        return reports


def _unlisted(folder: Path, reports: list[ImportReport]) -> list[str]:
    """Names of the files beside a table that were not imported, as it does not list them."""
    listed = {os.path.normpath(path) for report in reports for path in report.read}
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and str(path) not in listed and path.suffix.lower() not in IMPORTED_ALONE
    ]


def _check_prompts(files: list[Upload]) -> None:
    """Raises InputError if a text may be the prompt of several images: browsers leave out the folders."""
    names = Counter(Path(file.name) for file in files)
    several = {name.stem for name, count in names.items() if count > 1}
    pictures = {name.stem for name in names if is_image_name(name)}
    for name in names:
        if name.suffix.lower() == ".txt" and name.stem in several & pictures:
            raise InputError(
                f"Several files are called {name.stem}, so it is not clear which image {name} tells the "
                "prompt of; put their folders into a ZIP, which keeps them apart."
            )


@contextmanager
def one_folder(files: list[Upload]) -> Iterator[Path]:
    """A folder of them all under their owner's names; of two with the same name each has its own folder."""
    with tempfile.TemporaryDirectory(dir=files[0].path.parents[1], prefix="import-") as temporary:
        folder = Path(temporary)
        for number, upload in enumerate(files):
            try:
                _link_or_copy(upload, folder, number)
            except OSError as error:
                raise InputError(
                    f"{upload.name[:80]} cannot be taken over ({error.strerror}); choose it again, under a "
                    "shorter name if it has a long one."
                ) from error
        yield folder


def _link_or_copy(upload: Upload, folder: Path, number: int) -> None:
    place = folder / upload.name
    if place.exists():
        place = folder / f"{number}" / upload.name
        place.parent.mkdir()
    try:
        place.hardlink_to(upload.path)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(upload.path, place)
