"""Imports point one way: app -> annotation, training -> m3agiqa; one name means one thing."""

import ast
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "m3agiqa": {"m3agiqa"},
    "annotation": {"annotation", "m3agiqa"},
    "training": {"training", "m3agiqa"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    forbidden = {*ALLOWED, "app", "tests", "benchmarks"} - ALLOWED[package]
    wrong = {str(path.relative_to(ROOT)): names for path in modules if (names := imported(path) & forbidden)}
    assert wrong == {}


@pytest.mark.parametrize("module", ["m3agiqa.cli", "annotation.__main__", "annotation.ui.server"])
def test_help_refusals_and_the_page_do_not_wait_for_pytorch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


STAGE = "a stage of a run, and the work that it does"
PARALLEL_NAMES = {
    "main": "an entry point",
    "upgrade": "Alembic's name for a migration",
    **dict.fromkeys(("align", "describe", "distill", "encode", "finetune", "fit", "plan", "ship"), STAGE),
    "Assessment": "what the library returns, and its row in the database",
}
"""Public names of classes and functions that more than one module defines, and what each of them is."""


def test_public_names_are_defined_once() -> None:
    modules = defaultdict(set)
    for path in [ROOT / "app.py", *(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                modules[node.name].add(str(path.relative_to(ROOT)))
    several = {name: paths for name, paths in modules.items() if len(paths) > 1}
    assert {name: paths for name, paths in several.items() if name not in PARALLEL_NAMES} == {}


def test_constants_say_what_they_are() -> None:
    """At most one in ten has a name of a single word."""
    names = [
        target.id.strip("_")
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id.isupper()
    ]
    assert sum("_" not in name for name in names) <= len(names) / 10


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "tools"])
def test_programs_outside_the_packages_import_what_is_there(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ALLOWED:
                module = import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], path
