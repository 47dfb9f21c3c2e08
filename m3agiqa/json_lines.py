"""JSON Lines, the form of every data file here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3agiqa.errors import InputError


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values; empty lines are skipped. Raises InputError naming file and line."""
    try:
        # Iterating over the file, as str.splitlines also splits at characters that JSON leaves as they are.
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as error:
                        raise InputError(f"{path}, line {number} is not JSON: {error}") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a UTF-8 text file: {error.reason}.") from error
