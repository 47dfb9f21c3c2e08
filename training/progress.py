"""The one progress bar."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing import parent_process
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def bar(items: Iterable[T], label: str, total: int | None = None, start: int = 0) -> tqdm:
    """A progress bar that also reads well in a log file; workers of a pool have none, as theirs would mix."""
    return tqdm(
        items,
        desc=label,
        total=total,
        initial=start,
        mininterval=2.0,
        dynamic_ncols=True,
        disable=parent_process() is not None,
    )
