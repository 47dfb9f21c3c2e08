"""What README and docs/ name is there: links, files, modules, commands, settings, variables."""

import ast
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from annotation import __main__ as annotation_cli
from m3agiqa import cli as m3agiqa_cli
from training import __main__ as training_cli
from training.config import RunConfig, build, merged, read_yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from docs_tables import with_tables  # noqa: E402

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
ALL = [README, *DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PACKAGES = ("m3agiqa", "annotation", "training")
FOLDERS = (*PACKAGES, "benchmarks", "docs", "examples", "tests", "tools", ".github", ".ci")
PROGRAMS = {"m3agiqa": m3agiqa_cli.main, "annotation": annotation_cli.main, "training": training_cli.main}
OTHERS_CLASSES = {"LayerNorm", "AdamW"}

each_document = pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.S | re.M)


def inline_code(path: Path) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`", prose(path))


def anchors(path: Path) -> set[str]:
    """Of all headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_documents_stay_short() -> None:
    """Words as `cat docs/*.md | wc -w` counts them; replace rather than add."""
    assert sum(len(path.read_text(encoding="utf-8").split()) for path in DOCS) <= 8_500


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@each_document
def test_files_are_there(path: Path) -> None:
    folders = rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*"
    pattern = rf"{folders}|requirements[\w-]*\.txt|app\.py|Makefile"
    named = {code for code in inline_code(path) if re.fullmatch(pattern, code) and "NAME" not in code}
    assert [name for name in sorted(named) if not list(ROOT.glob(name.rstrip("/")))] == []


@each_document
def test_tests_are_there(path: Path) -> None:
    named = [code.split("::") for code in inline_code(path) if "::" in code]
    assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()] == []


@each_document
def test_dotted_names_can_be_imported(path: Path) -> None:
    text = "\n".join([*inline_code(path), *blocks(path, "python")])
    for name in set(re.findall(rf"(?<![\w/.:-])(?:{'|'.join(PACKAGES)})(?:\.\w+)+", text)):
        if not name.endswith(".md"):
            assert resolved(name) is not None, name


def resolved(name: str) -> Any:
    """The module, or what it has by this name; None if there is neither."""
    parts, found = name.split("."), None
    for end in range(1, len(parts) + 1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            for part in parts[end - 1 :]:
                found = getattr(found, part, None)
            return found
    return found


@cache
def sources() -> dict[Path, str]:
    """All modules of the product, with their text."""
    files = [ROOT / "app.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    return {file: file.read_text(encoding="utf-8") for file in files}


@cache
def classes() -> set[str]:
    nodes = (node for text in sources().values() for node in ast.walk(ast.parse(text)))
    return {node.name for node in nodes if isinstance(node, ast.ClassDef)}


@each_document
def test_classes_are_there(path: Path) -> None:
    named = {code for code in inline_code(path) if re.fullmatch(r"(?:[A-Z][a-z0-9]+){2,}", code)}
    assert named - classes() - OTHERS_CLASSES == set()


def commands(path: Path) -> Iterator[list[str]]:
    """Program and arguments of each command line for this project, without comments."""
    scripts = "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    for line in [*scripts, *inline_code(path)]:
        command = re.search(rf"python -m ((?:{'|'.join(PACKAGES)}) [a-z][^;|…]*)(?:[;|]|$)", line)
        launched = re.search(r"accelerate launch .* -m (training [a-z].*)", line)
        if found := command or launched:
            words = shlex.split(found[1], comments=True)
            yield words if len(words) > 2 else [*words, "--help"]  # a command that is only mentioned


class Parsed(Exception):
    """Raised instead of running a command that was understood."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """The arguments of commands that were given since, none of which is run."""
    understood: list[Namespace] = []
    parse = ArgumentParser.parse_args

    def parse_only(parser: ArgumentParser, *arguments: Any) -> Namespace:
        understood.append(parse(parser, *arguments))
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_only)
    return understood


@each_document
def test_commands_are_understood(path: Path, parsed: list[Namespace]) -> None:
    for program, *arguments in commands(path):
        with pytest.raises((Parsed, SystemExit)) as stopped:
            PROGRAMS[program](arguments)
        if isinstance(stopped.value, SystemExit):
            assert stopped.value.code == 0, arguments
            continue
        args = parsed[-1]
        config = getattr(args, "config", None)
        if program == "training" and config and (ROOT / config).exists() and "ablate" not in arguments:
            settings = read_yaml(ROOT / config)
            for change in args.set:
                name, _, value = change.partition("=")
                nested = yaml.safe_load(value)
                for part in reversed(name.split(".")):
                    nested = {part: nested}
                settings = merged(settings, nested)
            build(RunConfig, settings, config)


@each_document
def test_benchmarks_are_understood(
    path: Path, parsed: list[Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in re.findall(r"python (benchmarks/\w+\.py[^`\n…]*)", path.read_text(encoding="utf-8")):
        monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
        monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as for a script
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


@each_document
def test_make_targets_are_there(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    scripts = "\n".join([*blocks(path, "sh"), *inline_code(path)])
    for target in re.findall(r"^make ([a-z-]+)", scripts, flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


@each_document
def test_settings_are_there(path: Path) -> None:
    """Blocks of YAML, and inline mappings such as `fit: {epochs: 50}`."""
    inline = [code for code in inline_code(path) if re.fullmatch(r"\w+: [\[{].*[\]}]", code)]
    for text in [*blocks(path, "yaml"), *inline]:
        settings = merged({"data": {"format": "table", "path": "images.csv"}}, yaml.safe_load(text))
        settings.setdefault("seeds", [0, 1])  # for ship_seeds
        build(RunConfig, settings, text)


@each_document
def test_variables_are_read(path: Path) -> None:
    tests = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py")]
    code = "\n".join([*sources().values(), *tests])
    named = set(re.findall(r"M3AGIQA_[A-Z_]+", path.read_text(encoding="utf-8")))
    assert [name for name in named if name not in code] == []


@each_document
def test_examples_in_python(path: Path) -> None:
    for text in blocks(path, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
                assert all(hasattr(import_module(node.module), name.name) for name in node.names), text


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_tables_are_those_of_the_dataclasses(path: Path) -> None:
    """If this fails: python tools/docs_tables.py"""
    text = path.read_text(encoding="utf-8")
    assert with_tables(text) == text
