"""Imports point one way: app -> annotation, training -> m3agiqa."""

from __future__ import annotations

import ast
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
