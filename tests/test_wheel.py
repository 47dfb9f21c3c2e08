"""The wheel of `python -m build`, installed in an environment of its own and used outside the repository.

By default one is built, and the environment borrows its dependencies from the tests' own. The one that
M3AGIQA_WHEEL names, as in `make wheel`, is installed with all extras and what they ask for.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from urllib.request import urlopen

import pytest
from app_server import PATIENCE, serve
from packaging.requirements import Requirement
from PIL import Image

from m3agiqa import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("m3agiqa", "annotation", "training")
BUILT_WHEEL = os.environ.get("M3AGIQA_WHEEL")
MODULE_OF_EXTRA = {
    "train": "matplotlib",
    "gpu": "bitsandbytes",
    "postgres": "psycopg",
    "scale": "ray.data",
    "mcp": "mcp",
}
MAX_WHEEL_SIZE = 100_000_000  # bytes; what PyPI takes of a file


def files_of(package: Path) -> set[str]:
    paths = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package.parent).as_posix() for path in paths}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, since what earlier builds have left in the folder gets in."""
    if BUILT_WHEEL:
        return Path(BUILT_WHEEL).resolve()
    copy, out = tmp_path_factory.mktemp("source") / "m3agiqa", tmp_path_factory.mktemp("dist")
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
        elif path.name in PACKAGES:
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, copy]
    subprocess.run(command, check=True, capture_output=True)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    python = Path(paths["scripts"], "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    if BUILT_WHEEL:
        extras = ",".join(MODULE_OF_EXTRA)
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{wheel}[{extras}]"], check=True)
    else:
        subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
        Path(paths["purelib"], "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return Path(paths["scripts"])


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of commands, in which nothing of the repository can be imported."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("M3AGIQA_MODEL", "nano")
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def output(*command: object, cwd: Path) -> str:
    words, timeout = list(map(str, command)), 5 * PATIENCE
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_all_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == set().union(*(files_of(ROOT / package) for package in PACKAGES))
    assert wheel.stat().st_size < MAX_WHEEL_SIZE


def test_its_extras_are_the_requirements_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    extras = {path.stem.removeprefix("requirements-") for path in ROOT.glob("requirements-*.txt")}
    assert set(metadata.get_all("Provides-Extra")) == extras == {*MODULE_OF_EXTRA, "dev"}
    told = set(re.findall(r"pip install (?:-r )?(\S*(?:requirements|m3agiqa)[\w.\[\]-]*)", "".join(sources)))
    assert told == {f'"m3agiqa[{extra}]' for extra in ("mcp", "postgres", "scale", "train")}
    required = {(extra_of(line), bare(line)) for line in metadata.get_all("Requires-Dist")}
    for path in ROOT.glob("requirements*.txt"):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        extra = path.stem.removeprefix("requirements").removeprefix("-")
        assert {bare(line) for line in lines} <= {each for of, each in required if of == extra}


def extra_of(requirement: str) -> str:
    """The extra that it is for; "" if it is always needed."""
    found = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
    return found[1] if found else ""


def bare(requirement: str) -> str:
    """Without the condition on which it is needed."""
    parsed = Requirement(requirement)
    parsed.marker = None
    return str(parsed)


def test_it_assesses_outside_the_repository(scripts: Path, outside: Path) -> None:
    Image.linear_gradient("L").convert("RGB").save(outside / "grey.png")
    told = output(scripts / "m3agiqa", "assess", "grey.png", "--prompt", "a wall", "--json", cwd=outside)
    assert list(json.loads(told)["aspects"]) == ["quality", "correspondence", "authenticity"]


AS_PYTHON_M = """
import runpy, sys
for sys.argv in (["m3agiqa", "--version"], ["annotation", "--help"], ["training", "--help"]):
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code
"""
"""What `python -m` does, for all packages in one process: imports take most of the time."""


def test_its_packages_are_programs(scripts: Path, outside: Path) -> None:
    told = output(scripts / "python", "-c", AS_PYTHON_M, cwd=outside)
    assert told.startswith(f"m3agiqa {__version__}\n")
    assert told.count("usage: ") == 2


@pytest.mark.skipif(not BUILT_WHEEL, reason="the environment borrows its dependencies; for `make wheel`")
def test_its_extras_are_installed(scripts: Path, outside: Path) -> None:
    modules = ", ".join(MODULE_OF_EXTRA.values())
    output(scripts / "python", "-c", f"import {modules}, annotation.ui.mcp_server", cwd=outside)


def test_it_serves_the_app(scripts: Path, outside: Path) -> None:
    with serve(outside / "log.txt", command=[scripts / "m3agiqa", "serve"], cwd=outside) as running:
        with urlopen(f"{running.url}/config") as answer:
            page = json.load(answer)
        tabs = [each["props"].get("label") for each in page["components"] if each["type"] == "tabitem"]
        assert tabs[0] == "Assess"
        example = next(Path(scripts.parent).rglob("annotation/ui/assess/examples/lighthouse.webp"))
        with urlopen(f"{running.url}/gradio_api/file={example}") as answer:
            assert answer.read() == example.read_bytes()
        assert (running.data / "annotations.db").exists()
