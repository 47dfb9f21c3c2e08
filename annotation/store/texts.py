"""What people write, as a database can keep it."""

from __future__ import annotations

from m3agiqa.errors import InputError


def storable(text: str) -> str:
    """Without NUL and half characters, which databases refuse, and without white space around it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode().strip()


def storable_within(text: str, limit: int, what: str) -> str:
    """`storable`, of at most `limit` characters. Raises InputError naming `what` is too long."""
    text = storable(text)
    if len(text) > limit:
        raise InputError(f"The {what} has {len(text):,} characters; shorten it to at most {limit:,}.")
    return text
