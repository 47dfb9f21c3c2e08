"""JSON of unknown shape."""

from __future__ import annotations

import json


def parsed(text: str) -> object:
    """Its value; None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def member(value: object, key: str) -> object:
    """Of an object; None for anything else."""
    return value.get(key) if isinstance(value, dict) else None


def text_member(value: object, key: str) -> str | None:
    """Of an object, if it is a text."""
    text = member(value, key)
    return text if isinstance(text, str) else None
