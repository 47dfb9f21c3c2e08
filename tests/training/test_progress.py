"""Unfinished work is continued only by the same work, and never lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from m3agiqa.errors import InputError
from training.progress import claim, claim_anew, is_claimed, latest_folder, replace_folder


def test_a_claimed_folder_takes_no_other_work(tmp_path: Path) -> None:
    claim(tmp_path / "fit", "data", 1)
    claim(tmp_path / "fit", "data", 1)
    with pytest.raises(InputError, match="made from other data or settings"):
        claim(tmp_path / "fit", "data", 2)


def test_what_is_made_in_minutes_is_made_anew(tmp_path: Path) -> None:
    claim_anew(tmp_path / "fit", "data", 1)
    (tmp_path / "fit" / "kept").touch()
    claim_anew(tmp_path / "fit", "data", 1)
    assert (tmp_path / "fit" / "kept").exists() and is_claimed(tmp_path / "fit", "data", 1)
    claim_anew(tmp_path / "fit", "data", 2)
    assert not (tmp_path / "fit" / "kept").exists() and is_claimed(tmp_path / "fit", "data", 2)


def test_nobodys_own_folders_are_touched(tmp_path: Path) -> None:
    (tmp_path / "state.old").mkdir()
    (tmp_path / "state.new").mkdir()
    replace_folder(tmp_path / "state", lambda folder: (folder / "file").touch())
    assert {path.name for path in tmp_path.iterdir()} == {"state", "state.old", "state.new"}


def test_the_newest_whole_folder_survives_every_kill(tmp_path: Path) -> None:
    target = tmp_path / "state"

    def write(text: str):
        return lambda folder: (folder / "file").write_text(text)

    def killed(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt

    replace_folder(target, write("one"))
    replace_folder(target, write("two"))
    assert (latest_folder(target) / "file").read_text() == "two"
    target.replace(tmp_path / ".state.old")  # as a kill between the two moves leaves it
    assert (latest_folder(target) / "file").read_text() == "two"
    with pytest.raises(KeyboardInterrupt):
        replace_folder(target, killed)
    assert (latest_folder(target) / "file").read_text() == "two"
