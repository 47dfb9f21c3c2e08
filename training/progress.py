"""Files that survive being interrupted, and the one progress bar."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from multiprocessing import parent_process
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from m3agiqa.errors import InputError

T = TypeVar("T")

CLAIM = "made_from.sha256"


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


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder elsewhere and move it into place, so that a kill leaves the old or the new one."""
    fresh, stale = _beside(target, "new"), _beside(target, "old")
    if stale.exists() and not target.exists():  # killed between the two moves below
        stale.replace(target)
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    write(fresh)
    if target.exists():
        target.replace(stale)
    fresh.replace(target)
    shutil.rmtree(stale, ignore_errors=True)


def latest_folder(target: Path) -> Path | None:
    """The newest whole version of a folder written by replace_folder, if any."""
    for candidate in (target, _beside(target, "old")):
        if candidate.is_dir():
            return candidate
    return None


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")  # hidden, as nobody's own folder is called


def claim(folder: Path, *facts: object) -> None:
    """Mark a folder as made from these data and settings, before anything is put into it.

    Raises InputError if it is marked as made from others: continuing there would mix the two.
    """
    path = folder / CLAIM
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{CLAIM}.{os.getpid()}"  # several processes may do this at once
        partial.write_text(_mark(facts))
        partial.replace(path)
    elif not is_claimed(folder, *facts):
        raise InputError(
            f"{folder} was made from other data or settings. Delete that folder to make it anew, or give "
            "another --run."
        )


def is_claimed(folder: Path, *facts: object) -> bool:
    """Whether a folder is marked as made from these data and settings."""
    path = folder / CLAIM
    return path.exists() and path.read_text() == _mark(facts)


def claim_anew(folder: Path, *facts: object) -> None:
    """The like for what takes minutes: a folder made from other data or settings is emptied first."""
    if folder.exists() and not is_claimed(folder, *facts):
        shutil.rmtree(folder)
    claim(folder, *facts)


def _mark(facts: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
