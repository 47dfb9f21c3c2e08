"""Files and folders are there whole or not at all, and work is continued only by the same work."""

from pathlib import Path

import pytest

from m3agiqa.errors import InputError
from m3agiqa.files import (
    is_intact,
    is_stamped,
    latest_folder,
    replace_folder,
    sealed_folder,
    stamp,
    stamp_or_empty,
    write_atomically,
)


def test_a_stamped_folder_takes_no_other_work(tmp_path: Path) -> None:
    stamp(tmp_path / "fit", "data", 1)
    stamp(tmp_path / "fit", "data", 1)
    with pytest.raises(InputError, match="made from other data or settings"):
        stamp(tmp_path / "fit", "data", 2)


def test_what_is_made_in_minutes_is_made_anew(tmp_path: Path) -> None:
    stamp_or_empty(tmp_path / "fit", "data", 1)
    (tmp_path / "fit" / "kept").touch()
    stamp_or_empty(tmp_path / "fit", "data", 1)
    assert (tmp_path / "fit" / "kept").exists() and is_stamped(tmp_path / "fit", "data", 1)
    stamp_or_empty(tmp_path / "fit", "data", 2)
    assert not (tmp_path / "fit" / "kept").exists() and is_stamped(tmp_path / "fit", "data", 2)


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


def test_sealed_folder_notices_changes(tmp_path: Path) -> None:
    target = tmp_path / "model"
    assert not is_intact(target)
    with sealed_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert is_intact(target)
    (target / "a").write_text("2")
    assert not is_intact(target)
    (target / "a").unlink()
    assert not is_intact(target)


def test_sealed_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), sealed_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_as_a_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    write_atomically(target, "old")
    write_atomically(target, b"new", durable=True)
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no such folder" / "file", "")
