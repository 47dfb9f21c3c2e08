"""The database of annotations, and every operation on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annotation.store.database import Database
from annotation.store.image_files import ImageFiles

__all__ = ["Database", "ImageFiles", "Store"]


@dataclass(frozen=True)
class Store:
    """The database, and the folder of image files beside it."""

    database: Database
    images: ImageFiles

    @classmethod
    def open(cls, database_url: str, images: Path) -> Store:
        """Create or open both, with the database's tables brought up to date. Raises StoreError."""
        return cls(Database.open(database_url), ImageFiles(images))

    def close(self) -> None:
        self.database.close()
