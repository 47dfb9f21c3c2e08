"""Items to say something about, and a disk that is soon full."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from made_up_items import made_up_item

from annotation.store import Database


@pytest.fixture
def new_item(database: Database) -> Callable[..., int]:
    """Adds an item and returns its id; arguments as of made_up_item."""
    return partial(made_up_item, database)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
