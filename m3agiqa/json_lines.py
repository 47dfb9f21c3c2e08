"""JSON Lines, the form of every data file here, and JSON lists and objects."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
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


def read_json_rows(path: Path) -> list[tuple[str, Any]]:
    """Places and values of a JSON list or of JSON Lines, whatever the file is called. Raises InputError."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(1024).lstrip()
            file.seek(0)
            if not start.startswith("["):
                return [(f"{path}, line {number}", row) for number, row in read_json_lines(path)]
            rows = json.load(file)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    return [(f"{path}, entry {number}", row) for number, row in enumerate(rows, 1)]


def write_json(path: Path, value: object) -> None:
    """Write a value for people to read; NaN and infinities become null."""
    text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def without_nan(value: object) -> Any:
    """A value as JSON can hold it: what is no number becomes null."""
    if isinstance(value, Mapping):
        return {str(name): without_nan(inner) for name, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
