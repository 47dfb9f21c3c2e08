"""Repositories of the Hub: downloaded, kept, pinned, stood in for, and what is said when that fails."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import NOBODY, Hub, reached, serving

from m3agiqa import InputError, WeightsError
from m3agiqa.backbones.loading import load_backbone
from m3agiqa.download import hub
from m3agiqa.download.hub import (
    FOLDER_VARIABLE,
    PIECE_BYTES,
    SAMPLED_PIECES,
    commit,
    folder_version,
    snapshot,
    version_of,
)

NAME = "someone/something"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With one repository of one commit, which is tagged v1."""
    folder = tmp_path / "something"
    (folder / "inner").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "inner" / "weights.bin").write_bytes(os.urandom(300_000))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with serving() as server:
        server.publish(NAME, folder, "v1")
        reached(monkeypatch, server.url, cache)
        yield server


def test_bytes_are_reported_and_what_was_downloaded_needs_no_network(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float]] = []
    folder = snapshot(NAME, ("*.json", "*.bin"), lambda message, done: told.append((message, done)), "v1")
    assert (folder / "inner" / "weights.bin").stat().st_size == 300_000
    assert told[-1] == (f"Downloading {NAME} (0.0 of 0.0 GB)", 1.0)
    assert all(0 <= done <= 1 for _, done in told)
    for url, offline in ((NOBODY, False), (server.url, True)):
        asked = len(server.asked)
        reached(monkeypatch, url, cache, offline)
        assert snapshot(NAME, ("*.json", "*.bin"), revision="v1") == folder
        assert version_of(NAME, "v1") == folder.name
        assert len(server.asked) == asked


def test_a_broken_connection_goes_on_where_it_broke(server: Hub) -> None:
    server.breaks.add("weights.bin")
    folder = snapshot(NAME)
    original = next(iter(server.commits[NAME].values()))
    names = ("config.json", "inner/weights.bin")
    assert all((folder / name).read_bytes() == (original / name).read_bytes() for name in names)
    assert not server.breaks


def test_an_incomplete_download_is_not_taken_for_a_whole_one(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = snapshot(NAME)
    (folder / "inner" / "weights.bin").unlink()
    reached(monkeypatch, NOBODY, cache)
    with pytest.raises(WeightsError, match=f"{NAME} is not, or not wholly, on this machine"):
        snapshot(NAME)
    with pytest.raises(WeightsError, match="Hub cannot be reached"):
        version_of(NAME, "v7")
    reached(monkeypatch, server.url, cache)
    assert (snapshot(NAME) / "inner" / "weights.bin").exists()


def test_branches_move_and_commits_stay(server: Hub, tmp_path: Path) -> None:
    first = version_of(NAME)
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "config.json").write_text('{"newer": true}')
    second = server.publish(NAME, tmp_path / "newer")
    assert (version_of(NAME), version_of(NAME, "v1"), version_of(NAME, first)) == (second, first, first)
    assert (snapshot(NAME, revision=first) / "config.json").read_text() == "{}"
    assert "newer" in (snapshot(NAME) / "config.json").read_text()


@pytest.mark.parametrize("revision", ["v7", "0" * 40])
def test_revisions_that_are_not_there_are_named(server: Hub, revision: str) -> None:
    with pytest.raises(WeightsError, match=f"^{NAME} has no revision '{revision}'"):
        snapshot(NAME, revision=revision)


def test_repositories_that_are_not_shown_are_named(server: Hub) -> None:
    with pytest.raises(WeightsError, match="Hub has no someone/else, or shows it only after: hf auth login"):
        version_of("someone/else")
    server.gated.add(NAME)
    with pytest.raises(WeightsError, match=f"^{NAME} is only for those who accepted its terms"):
        snapshot(NAME)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("someone/else", "The Hugging Face Hub has no someone/else, or shows it only after"),
        (f"{NAME}@v7", f"{NAME} has no revision 'v7'"),
        (NAME, f"{NAME} is only for those who accepted its terms"),
    ],
)
def test_other_backbones_say_the_same(server: Hub, tmp_path: Path, model: str, sentence: str) -> None:
    server.gated.add(NAME)
    with pytest.raises(WeightsError, match=sentence):
        load_backbone(f"hf:{model}", tmp_path)


def test_a_full_disk_is_reported(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(WeightsError, match=rf"There is no room for {NAME} at v1: .* GB are free in {cache}"):
        snapshot(NAME, revision="v1")


def test_a_server_that_fails_is_reported(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("data processing error")  # of the library behind the Hub's storage

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(WeightsError, match=f"{NAME} could not be downloaded: data processing error"):
        snapshot(NAME)


# --- folders instead --------------------------------------------------------------------------


def test_folders_stand_in_for_repositories(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "own"))
    with pytest.raises(WeightsError, match=f"{FOLDER_VARIABLE} names .*own, which is no folder"):
        snapshot(NAME)
    own = tmp_path / "own" / NAME
    own.mkdir(parents=True)
    assert (snapshot(NAME), version_of(NAME)) == (own, folder_version(own))
    assert not server.asked
    with pytest.raises(InputError, match=rf"{NAME} is taken from the folder .*{FOLDER_VARIABLE}"):
        version_of(NAME, "v1")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))  # where there is none of this name
    assert snapshot(NAME).parent.name == "snapshots"


def test_the_version_of_a_folder_is_its_content(server: Hub, tmp_path: Path) -> None:
    assert commit(folder_version(snapshot(NAME))) == version_of(NAME)
    weights = bytearray(SAMPLED_PIECES * PIECE_BYTES * 3)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        (folder / ".cache").mkdir(parents=True)
        (folder / ".cache" / "note").write_text(folder.name)
        (folder / "weights.bin").write_bytes(weights)
    first, second = map(folder_version, folders)
    assert first == second and commit(first) is None
    for place in (0, len(weights) - 2 * PIECE_BYTES - 1):
        changed = bytearray(weights)
        changed[place] = 1
        (folders[1] / "weights.bin").write_bytes(changed)
        assert folder_version(folders[1]) != first
    (folders[1] / "weights.bin").write_bytes(weights)
    assert folder_version(folders[1], ("*.bin",)) == first
    (folders[1] / "more.json").write_text("{}")
    assert folder_version(folders[1]) != first and folder_version(folders[1], ("*.bin",)) == first
