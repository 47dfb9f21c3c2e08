"""Replies appended to a file as they come, so that a kill loses none and nothing is asked for twice."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, Self, TextIO, TypeVar

R = TypeVar("R")


class AppendLog(Generic[R]):
    """Rows (of one dataclass) in a file; `add` returns once the row is on disk."""

    def __init__(self, path: Path, row_type: type[R]) -> None:
        self.path, self.row_type = path, row_type
        self.rows: list[R] = list(self._read())
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        if self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # a kill has cut the last line off; it is not part of the next
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, row: R) -> None:
        line = json.dumps(vars(row), ensure_ascii=False) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.rows.append(row)

    def _read(self) -> Iterator[R]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                yield self.row_type(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the line that was being written when the run was killed
