"""What pages and programs send to be saved: plain JSON, checked and made into the store's terms."""

from __future__ import annotations

from typing import Any

from annotation.settings import MOST_ANNOTATORS
from annotation.store.corrections import AspectResponse
from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError

LARGEST = 2**31 - 1  # of the databases' whole numbers


def whole(value: Any, what: str) -> int:
    """An id or a number of things; raises InputError naming `what` it should have been."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise InputError(f"{what} must be a whole number, not {value!r:.40}.")
    return value


def number(value: Any, what: str) -> float:
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


def token(value: Any) -> str:
    """Its length is the store's to judge."""
    if not isinstance(value, str) or not value.isprintable():
        raise InputError("The token must be printable text, such as a UUID.")
    return value


def aspect(value: Any) -> Aspect:
    if value not in tuple(Aspect):
        raise InputError(f"There is no aspect {value!r:.40}; the aspects are {', '.join(Aspect)}.")
    return Aspect(value)


def scale(value: Any) -> MosScale:
    """[low, high]."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"A scale is a list of its low and its high end, not {value!r:.40}.")
    try:
        return MosScale(number(value[0], "The low end of a scale"), number(value[1], "Its high end"))
    except ValueError as error:
        raise InputError(f"A scale needs a low end below its high one, not {value!r:.40}.") from error


def said(value: Any) -> AspectResponse:
    """What a person says of one aspect; only `aspect`, and `score` where they do not agree, are needed.

    An answer that is agreed with is filled in by `annotation.ui.annotate.work`, from the assessment.
    """
    if not isinstance(value, dict):
        raise InputError(f"What is said of an aspect must be a JSON object, not {value!r:.40}.")
    about = aspect(value.get("aspect"))
    agrees = value.get("agrees", False) is True
    return AspectResponse(
        aspect=about,
        score=0.0 if agrees else number(value.get("score"), f"The score of {about}"),
        scale=scale(value.get("scale", [1, 5])),
        description=_optional(value.get("description"), f"The description of {about}"),
        agrees=agrees,
        tags=_tags(value.get("tags", []), about),
        comment=_optional(value.get("comment"), f"The comment on {about}"),
        revision=whole(value.get("revision", 1), f"The revision of {about}"),
    )


def all_said(value: Any) -> tuple[AspectResponse, ...]:
    if not isinstance(value, list):
        raise InputError(f"What is said must be a list with one entry per aspect, not {value!r:.40}.")
    return tuple(said(entry) for entry in value)


def _optional(value: Any, what: str) -> str | None:
    return None if value is None else text(value, what)


def _tags(value: Any, about: Aspect) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"The tags of {about} must be a list, not {value!r:.40}.")
    return tuple(text(tag, f"A tag of {about}") for tag in value)
