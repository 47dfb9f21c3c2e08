"""What pages and programs send to be saved: plain JSON, checked and made into the store's terms."""

from __future__ import annotations

from typing import Any

from annotation.settings import MOST_ANNOTATORS
from m3agiqa.aspects import Aspect
from m3agiqa.errors import InputError

MAX_INTEGER = 2**31 - 1  # of the databases' whole numbers


def whole(value: Any, what: str) -> int:
    """An id or a number of things; raises InputError naming `what` it should have been."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        raise InputError(f"{what} must be a whole number, not {value!r:.40}.")
    return value


def as_number(value: Any, what: str) -> float:
    """Any finite or infinite number; what it may be is the store's to say."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{what} must be a number, not {value!r:.40}.")
    try:
        return float(value)
    except OverflowError as error:
        raise InputError(f"{what} is too large a number.") from error


def annotators_per_image(value: Any) -> int:
    """From a field of a page."""
    if value not in range(1, MOST_ANNOTATORS + 1):
        raise InputError(f"Annotators per image: give a whole number from 1 to {MOST_ANNOTATORS}.")
    return int(value)


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{what} must be text, not {value!r:.40}.")
    return value


def aspect(value: Any) -> Aspect:
    if value not in tuple(Aspect):
        raise InputError(f"There is no aspect {value!r:.40}; the aspects are {', '.join(Aspect)}.")
    return Aspect(value)
