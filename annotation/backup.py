"""A copy of database, images and models on the Hugging Face Hub, for a server whose disk does not last.

A Space without persistent storage begins with an empty disk whenever it restarts.
"""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitScheduler
from sqlalchemy import func, select

from annotation.settings import Settings
from annotation.store import Store
from annotation.store.models import Correction
from m3agiqa.download.hub import NotOnHub, snapshot
from m3agiqa.errors import reason
from m3agiqa.files import atomic_path

log = logging.getLogger(__name__)

DATABASE_FILE = "annotations.db"
DATABASE_COPY = "backup/annotations.db"
"""In the data folder and in the repository; a database that is written to cannot be copied as a file."""
COPIED_FILES = (DATABASE_COPY, "images/*", "models/*")
NOT_COPIED = ("images/shown/*", "*.tmp", "*/.*")


def storage_warning(settings: Settings, environment: Mapping[str, str] = os.environ) -> str:
    """A sentence for admins of a Space on which a restart deletes what people save; else ""."""
    folder = settings.data.absolute()
    lasts = any(path != path.parent and path.is_mount() for path in (folder, *folder.parents))
    if not environment.get("SPACE_ID") or settings.backup or lasts:
        return ""
    return (
        f"This Space keeps {folder} only until it restarts: what people save is lost then. Add persistent "
        "storage and set M3AGIQA_DATA=/data, or let M3AGIQA_BACKUP name a data set to copy it to."
    )


def restore(settings: Settings) -> None:
    """Fill an empty data folder from the copy on the Hub, if there is one.

    Raises WeightsError where the Hub cannot be asked: an empty server would copy nothing over what is there.
    """
    database = settings.data / DATABASE_FILE
    if not settings.backup or database.exists():
        return
    try:
        copy = snapshot(settings.backup, kind="dataset")
    except NotOnHub:
        log.info("%s is not on the Hub yet; this server begins empty", settings.backup)
        return
    if not (copy / DATABASE_COPY).exists():
        return
    for folder in ("images", "models"):
        if (copy / folder).exists():
            shutil.copytree(copy / folder, settings.data / folder, dirs_exist_ok=True)
    settings.data.mkdir(parents=True, exist_ok=True)
    with atomic_path(database) as new:  # last: what is broken off before begins again
        shutil.copyfile(copy / DATABASE_COPY, new)
    log.info("The data folder was filled from %s", settings.backup)


def of(settings: Settings, store: Store) -> HubBackup | None:
    """The server's backup, if one is set."""
    return HubBackup(settings, store) if settings.backup else None


class HubBackup:
    """Copies what has changed every few minutes, and once more when the server ends."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self.scheduler: CommitScheduler | None = None
        self._copied_until = 0  # the newest correction in the copy
        self._copied_at: datetime | None = None
        self._problem = ""

    def start(self) -> None:
        """Begin to copy, in a thread of its own."""
        settings = self._settings
        try:
            self.scheduler = _Scheduler(
                self._copy,
                repo_id=settings.backup,
                repo_type="dataset",
                private=True,
                folder_path=settings.data,
                every=settings.backup_minutes,
                allow_patterns=list(COPIED_FILES),
                ignore_patterns=list(NOT_COPIED),
            )
        except Exception as error:  # of the Hub's client, e.g. without a token
            self._fail(error)

    def finish(self) -> None:
        """Copy what has changed since the last time; nothing is copied by itself from then on."""
        if self.scheduler is None:
            return
        with suppress(Exception):  # _copy has told it
            self.scheduler.trigger().result()
        self.scheduler.stop()

    def status(self) -> str:
        """Sentences for admins: how much is not in the copy yet, and why."""
        repository, minutes = self._settings.backup, self._settings.backup_minutes
        when = f", copied at {self._copied_at:%H:%M} UTC" if self._copied_at else ""
        waiting = self._newest() - self._copied_until
        if not waiting and not self._problem:
            return f"All corrections are in {repository}{when}."
        why = self._problem or f"the next copy is made within {minutes} minutes"
        return f"Corrections that are not in {repository} yet: {waiting:,}{when}; {why}."

    def _newest(self) -> int:
        with self._store.database.reading() as session:
            return session.scalar(select(func.max(Correction.id))) or 0

    def _fail(self, error: Exception) -> None:
        self._problem = f"{reason(error)} (a token that may write is set as HF_TOKEN)"
        log.error("%s could not be copied to: %s", self._settings.backup, self._problem)

    def _copy(self, push: Callable[[], CommitInfo | None]) -> CommitInfo | None:
        """The database first, as it is now, and then the image files: it may name only what is there."""
        try:
            newest, copy = self._newest(), self._settings.data / DATABASE_COPY
            copy.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".") as scratch:
                now = Path(scratch) / copy.name
                database = self._settings.data / DATABASE_FILE
                with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(now)) as target:
                    source.backup(target)
                if not copy.exists() or not filecmp.cmp(copy, now, shallow=False):
                    now.replace(copy)
            commit = push()
        except Exception as error:  # of the Hub's client or the disk; the next copy tries again
            self._fail(error)
            raise
        self._copied_until, self._copied_at, self._problem = newest, datetime.now(UTC), ""
        return commit


class _Scheduler(CommitScheduler):
    """Pushes the folder's new and changed files, each time within `copy`."""

    def __init__(
        self, copy: Callable[[Callable[[], CommitInfo | None]], CommitInfo | None], **options: Any
    ) -> None:
        self._copy = copy
        super().__init__(**options)

    def push_to_hub(self) -> CommitInfo | None:
        return self._copy(super().push_to_hub)
